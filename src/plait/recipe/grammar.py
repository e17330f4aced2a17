"""How a document is read: pydantic classes describe its levels, and every complaint gets its place in the text.

mergekit ignores keys that it does not know; here they are errors, or warnings when the reading is lenient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    PlainValidator,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic_core import PydanticCustomError

from plait.errors import PlaitError, Problems, RecipeError, Where, nearest, raise_all
from plait.recipe.damage import short
from plait.recipe.document import key_place, place

#: names that are a method's parameters wherever they are met
PARAMETERS = {"weight", "density", "t", "lambda", "normalize", "rescale", "int8_mask", "gamma", "epsilon", "scale"}
PARAMETERS |= {"select_topk", "filter_wise", "max_iter", "tol", "eps", "alpha", "r", "normalize_weights"}
PARAMETERS |= {"nuslerp_flatten", "nuslerp_row_wise"}
_TYPES = {"list_type": "a list", "string_type": "text", "bool_type": "true or false", "bool_parsing": "true or false"}


@dataclass
class Reading:
    """What comes up while one document is read."""

    lenient: bool = False
    problems: list[PlaitError] = field(default_factory=list)
    ignored: list[RecipeError] = field(default_factory=list)

    def ignore(self, what: str, do: str, where: Where | None, wanted: str | None = None) -> None:
        """Note something that mergekit passes over in silence."""
        self.ignored.append(RecipeError(what, wanted=wanted or "only what has an effect", do=do, where=where))

    def refuse(self, error: PlaitError, where: Where | None = None) -> None:
        """Note an error, or each of several; `where` is used for those that do not know their place."""
        for problem in error.problems if isinstance(error, Problems) else [error]:
            problem.where = problem.where or where
            self.problems.append(problem)

    def conclude(self) -> tuple[str, ...]:
        """Raise everything that came up; when it is only what mergekit ignores and the reading is lenient, return warnings."""
        if self.problems or not self.lenient:
            raise_all([*self.problems, *self.ignored])
        return tuple(warning(error) for error in self.ignored)


def warning(error: PlaitError, passed: str = "ignored, as mergekit does: ") -> str:
    """An error that is passed over, as one line."""
    where, do = f"{error.where}: " if error.where else "", f"; {error.do}" if error.do else ""
    return f"{where}{passed}{error.what}{do}"


class Keys(BaseModel):
    """One level of a document. Subclasses declare the keys; `level` names it in messages."""

    model_config = ConfigDict(extra="ignore", defer_build=True, json_schema_extra={"additionalProperties": False})
    level: ClassVar[str]
    mends: ClassVar[dict[str, str]] = {}
    _where: Where | None = PrivateAttr(None)

    @property
    def where(self) -> Where | None:
        return self._where

    @model_validator(mode="wrap")
    @classmethod
    def _read(cls, value: Any, handler: Callable[[Any], Any], info: ValidationInfo) -> Any:
        if isinstance(value, dict) and isinstance(info.context, Reading):
            for key in (key for key in value if key not in cls.words()):
                what, do = cls._unknown(key)
                wanted = ", ".join(cls.words())
                info.context.ignore(what, do, key_place(value, key), None if wanted in do else wanted)
        made = handler(value)
        made._where = place(value)
        return made

    @classmethod
    def words(cls) -> list[str]:
        """The keys as a document has them."""
        return [declared.alias or name for name, declared in cls.model_fields.items()]

    @classmethod
    def _unknown(cls, key: str) -> tuple[str, str]:
        what = f"{short(key)} is not a key of {cls.level}"
        if key in cls.mends:
            return what, cls.mends[key]
        if key in PARAMETERS and "parameters" in cls.model_fields:
            return what, "put it under 'parameters:'"
        near = nearest(key, cls.words())
        return what, f"did you mean {near!r}?" if near else f"the keys are {', '.join(cls.words())}"


K = TypeVar("K", bound=Keys)


def parse(keys: type[K], tree: object, reading: Reading) -> K | None:
    """The document `tree` as `keys`, or None with the reasons in `reading.problems`."""
    try:
        return keys.model_validate(tree, context=reading)
    except ValidationError as errors:
        for error in errors.errors(include_url=False):
            where = place(tree, *error["loc"])
            known = error.get("ctx", {}).get("error")
            reading.refuse(known if isinstance(known, PlaitError) else _translated(error), where)
    return None


def _translated(error: Any) -> RecipeError:
    key = next((part for part in reversed(error["loc"]) if isinstance(part, str)), "recipe")
    if error["type"] == "missing":
        given = ", ".join(map(str, error["input"])) if isinstance(error["input"], dict) else ""
        return RecipeError(f"{key!r} is missing", found=given[:80] or "nothing", do=f"add '{key}:'")
    wanted = _TYPES.get(error["type"], "a mapping" if error["type"] in ("model_type", "dict_type") else None)
    do = f"write {wanted}" if wanted else "write an allowed value"
    if wanted == "text" and isinstance(error["input"], bool | int | float):
        do = "quote it"
    return RecipeError(f"{key!r} cannot be read", wanted=wanted or error["msg"], found=kind_of(error["input"]), do=do)


def kind_of(value: object) -> str:
    """A value of a document in words, for messages."""
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    return "nothing" if value is None else short(str(value))


def reader(read: Callable[[Any, list[RecipeError]], Any]) -> PlainValidator:
    """A pydantic validator of `read`, which raises `PlaitError` for what it refuses and lists what is ignored."""

    def validate(value: Any, info: ValidationInfo) -> Any:
        try:
            return read(value, info.context.ignored if isinstance(info.context, Reading) else [])
        except PlaitError as error:
            raise PydanticCustomError("plait", "refused", {"error": error}) from None

    return PlainValidator(validate)

"""What a merge method declares. A method is one file in `methods/`: docstring, parameters, one decorated function.

    @dataclass(frozen=True)
    class Params:
        t: float = param("Position between the base (0) and the model (1).")

    @method(Params, base="required", inputs=(1, 1), first=gram, gives="coefficients")
    def slerp(p, gram): ...

`space`
    "weight": the function sees the models' weights (and the base's among them, first, when the method has a base).
    "delta": it sees the models' differences to the base, and what it returns is added to the base. Where the base is
    optional and none is given, it sees the weights.
`unit`
    the smallest piece that the function may be given: "entry" (any rows of the matrix view), "row" (whole rows; a vector
    is one row), "matrix" (one matrix [out, in], of a stack of experts too; whole rows of what is none: see `plait.matrices`)
    or "tensor" (everything, in its own shape). May be a function of the parameters.
`first`
    `first(pieces, params)` goes through all pieces before the function sees one; its result is `piece.whole`.
`gives`
    "entries": the function takes (piece, params) and returns the merged piece.
    "coefficients": it takes (params, whole) once a tensor and returns one number for each input; the runner adds the
    inputs up. Without `first` that happens while planning, and a ValueError is reported before any work; its second
    argument, if it has one, says what to do.
`survey`
    for the few methods that must know of the whole model before its first tensor.
`raw`
    whether function and `first` only hand `piece.models` to those functions of `ops/` that know `Raw`; then the kernels work
    on the inputs as they are stored, and PyTorch is not even loaded. May be a function of the parameters.
`breaks`
    laws of the contract (`plait.testing.methods`) that the method breaks by its nature: "equal models give that model" of sums.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from plait.ops.pieces import Pieces

T = TypeVar("T")
#: a parameter with one value for each model
PerModel = tuple[T, ...]


class _Required:
    def __repr__(self) -> str:
        return "required"


REQUIRED = _Required()


@dataclass(frozen=True)
class Parameter:
    """One parameter as recipes see it. `kind` is float, int, bool or str; `low` and `high` are inclusive bounds."""

    name: str
    kind: type
    per_model: bool
    doc: str
    default: Any = REQUIRED
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()

    @property
    def required(self) -> bool:
        return self.default is REQUIRED

    @property
    def range(self) -> str:
        """The allowed values in words."""
        if self.choices:
            return " or ".join(self.choices)
        if self.kind is bool:
            return "true or false"
        low, high = self.low, self.high
        number = {int: "a whole number", float: "a number"}.get(self.kind, "text")
        if low is not None and high is not None:
            return f"{number} from {low:g} to {high:g}"
        return number if low is None else f"{number}, at least {low:g}"


def param(
    doc: str,
    *,
    default: Any = REQUIRED,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
) -> Any:
    """A field of a method's parameters: one sentence that says what it means, its unit and where its default is from."""
    facts = {"doc": doc, "default": default, "low": low, "high": high, "choices": choices}
    return dataclasses.field(metadata=facts)


@dataclass(frozen=True)
class Survey:
    """What a method must know of the whole model, found out before its first tensor (TIES trims over the model at once).

    `key(params)`: None where nothing is wanted, else what the survey depends on; tensors with equal keys are surveyed together.
    `find(tensors, key)` goes through the pieces of all these tensors; every `Pieces` then has the result as `survey`.
    `seen(pieces, params)`: what the method sees of a tensor's pieces, where bricks before it change them.
    """

    key: Callable[[Any], Hashable | None]
    find: Callable[[Sequence[Pieces], Any], Any]
    seen: Callable[[Pieces, Any], Pieces] = lambda pieces, _: pieces


@dataclass(frozen=True)
class Declared:
    """A function with declared parameters and a page: what methods and bricks have in common."""

    name: str
    function: Callable[..., Any]
    params: type
    parameters: tuple[Parameter, ...]
    unit: str | Callable[[Any], str]
    first: Callable[..., Any] | None
    doc: str

    def __call__(self, *args: Any) -> Any:
        return self.function(*args)

    def unit_of(self, params: Any) -> str:
        return self.unit(params) if callable(self.unit) else self.unit

    @property
    def summary(self) -> str:
        return self.doc.split("\n", 1)[0]

    @property
    def reference(self) -> str:
        """The line of the docstring after `Reference:`."""
        match = re.search(r"^Reference:\s*(.+?)(?:\n\s*\n|\Z)", self.doc, re.M | re.S)
        return re.sub(r"\s+", " ", match[1]).strip() if match else ""


@dataclass(frozen=True)
class Method(Declared):
    """A merge method: one function and what the runner must know of it (see the module's docstring)."""

    space: str
    base: str  # "required", "optional" or "ignored"
    inputs: tuple[int, int | None]  # fewest and most models; a base that the method uses is not counted
    gives: str
    idle: tuple[str, ...]  # parameters that recipes may set and that change nothing
    survey: Survey | None
    raw: bool | Callable[[Any], bool]
    breaks: tuple[str, ...] = ()

    def takes_raw(self, params: Any) -> bool:
        """Whether the kernels can work on the inputs as they are stored, without a tensor of PyTorch in between."""
        return self.raw(params) if callable(self.raw) else self.raw


def method(
    params: type,
    *,
    space: str = "weight",
    base: str = "ignored",
    inputs: tuple[int, int | None] = (1, None),
    unit: str | Callable[[Any], str] = "entry",
    first: Callable[..., Any] | None = None,
    gives: str = "entries",
    idle: tuple[str, ...] = (),
    survey: Survey | None = None,
    raw: bool | Callable[[Any], bool] = False,
    breaks: tuple[str, ...] = (),
) -> Callable[[Callable[..., Any]], Method]:
    """Make a `Method` of a function; its name is the name in recipes, its module's docstring the documentation."""

    def make(function: Callable[..., Any]) -> Method:
        fields = parameters_of(params)
        name, doc = function.__name__, page_of(function)
        own = (name, function, params, fields, unit, first, doc)
        return Method(*own, space, base, inputs, gives, idle, survey, raw, breaks)

    return make


def page_of(function: Callable[..., Any]) -> str:
    """The docstring of the function's module, or its own."""
    module = inspect.getmodule(function)
    return inspect.cleandoc((module and module.__doc__) or function.__doc__ or "")


def parameters_of(params: type) -> tuple[Parameter, ...]:
    hints: Mapping[str, Any] = typing.get_type_hints(params)
    found = []
    for f in dataclasses.fields(params):
        hint = hints[f.name]
        per_model = typing.get_origin(hint) is tuple
        kind = typing.get_args(hint)[0] if per_model else hint
        found.append(Parameter(f.name.rstrip("_"), kind, per_model, **f.metadata))
    return tuple(found)


def bind(method: Declared, values: Mapping[str, Any]) -> Any:
    """Its parameters object from recipe names (`lambda` becomes the field `lambda_`); what is not given has its default.

    A parameter of each model that is not given has its default as often as the others of that kind have values.
    """
    fields = {f.name.rstrip("_"): f.name for f in dataclasses.fields(method.params)}
    each = {p.name for p in method.parameters if p.per_model}
    models = max((len(value) for name, value in values.items() if name in each), default=0)
    left = {p.name: p for p in method.parameters if p.name not in values and not p.required}
    rest = {name: (p.default,) * models if p.per_model else p.default for name, p in left.items()}
    return method.params(**{fields[name]: value for name, value in {**rest, **values}.items()})

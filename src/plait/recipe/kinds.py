"""What kind of file a document is, and whether it is well formed.

merge    one recipe
raw      one recipe whose models are single files of weights (mergekit-pytorch)
multi    several recipes, separated by `---`, that may name each other (mergekit-multi)
moe      `experts:`, a mixture of experts made of dense models (mergekit-moe)
evolve   `genome:`, a search for merge parameters (mergekit-evolve)
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import yaml
from pydantic import Field, WithJsonSchema

from plait.errors import PlaitError, RecipeError, Where, nearest, raise_all
from plait.recipe import document
from plait.recipe.document import place
from plait.recipe.grammar import Keys, Reading, parse, reader
from plait.recipe.keys import DTypeName, Reference, TokenizerSource
from plait.recipe.load import Recipe, build, open_text

#: how the router's rows are made
GATE_MODES = ("hidden", "hidden_avg", "hidden_last", "cheap_embed", "random", "uniform_random")
#: methods whose parameters mergekit-evolve searches
EVOLVED = ("linear", "task_arithmetic", "ties", "dare_ties", "slerp")
MEANING = {
    "merge": "one recipe",
    "raw": "a recipe of single weight files",
    "multi": "several recipes, separated by '---'",
    "moe": "a mixture of experts to be built from dense models",
    "evolve": "a search for merge parameters",
}
_RAW = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")


@dataclass(frozen=True)
class Checked:
    """A well-formed file: its kind, its recipes (none of a moe or evolve file), and what a lenient reading passed over."""

    kind: str
    recipes: tuple[Recipe, ...]
    warnings: tuple[str, ...]

    @property
    def recipe(self) -> Recipe | None:
        """The recipe of a file that holds exactly one."""
        return self.recipes[0] if len(self.recipes) == 1 else None

    @property
    def last(self) -> Recipe:
        """The recipe that is the merge: the one without a name, or the last in the file."""
        return next((recipe for recipe in self.recipes if recipe.name is None), self.recipes[-1])


def kind_of_file(documents: Sequence[object]) -> str:
    """The kind of a file with these documents; anything that is no other kind counts as a merge."""
    if len(documents) > 1:
        return "multi"
    tree = documents[0] if documents else None
    if not isinstance(tree, dict):
        return "merge"
    if "genome" in tree:
        return "evolve"
    if "experts" in tree or ("gate_mode" in tree and not {"models", "slices", "modules"} & tree.keys()):
        return "moe"
    models = tree.get("models")
    names = [entry.get("model") for entry in models if isinstance(entry, dict)] if isinstance(models, list) else []
    raw = bool(names) and all(isinstance(name, str) and name.lower().endswith(_RAW) for name in names)
    return "raw" if raw else "merge"


def check(source: str | os.PathLike[str], *, lenient: bool = False) -> Checked:
    """Read a file of any known kind (or a text with a newline in it). Raises `PlaitError` with everything that is wrong."""
    path, text = open_text(source)
    documents = document.parse(text, path or "recipe")
    kind = kind_of_file(documents)
    if kind in ("moe", "evolve"):
        reading = Reading(lenient)
        _moe(documents[0], reading) if kind == "moe" else _evolve(documents[0], reading)
        return Checked(kind, (), reading.conclude())
    if kind == "multi":
        recipes = _stages(documents, text, path, lenient)
    else:
        recipes = (build(documents[0] if documents else None, text, path, lenient=lenient),)
    return Checked(kind, recipes, tuple(warning for recipe in recipes for warning in recipe.warnings))


def _stages(documents: Sequence[object], text: str, path: str | None, lenient: bool) -> tuple[Recipe, ...]:
    problems: list[PlaitError] = []
    stages: dict[str | None, tuple[Recipe, Where | None]] = {}
    recipes = []
    for tree in documents:
        try:
            recipe = build(tree, text, path, lenient=lenient)
        except PlaitError as error:
            problems.append(error)
            continue
        recipes.append(recipe)
        if recipe.name in stages:
            what = f"two stages are named {recipe.name!r}" if recipe.name else "two stages have no name"
            where = stages[recipe.name][1]
            found = f"the other one begins on line {where.line}" if where else None
            do = "give each stage but the last a 'name:' of its own, and use it as a model in later stages"
            problems.append(RecipeError(what, found=found, do=do, where=place(tree)))
        stages.setdefault(recipe.name, (recipe, place(tree)))
    raise_all(problems)
    waiting = {name: {ref.path for ref in recipe.references()} & stages.keys() for name, (recipe, _) in stages.items()}
    while ready := [name for name, needs in waiting.items() if not needs & waiting.keys()]:
        for name in ready:
            del waiting[name]
    if waiting:
        names = ", ".join(str(name) for name in waiting)
        where = stages[next(iter(waiting))][1]
        raise RecipeError(
            "the stages need each other", found=f"a circle through {names}", do="break the circle", where=where
        )
    return tuple(recipes)


# -- moe


class ExpertKeys(Keys):
    level = "an expert"
    mends: ClassVar = {"model": "did you mean 'source_model'?", "prompts": "did you mean 'positive_prompts'?"}
    source_model: Reference = Field(description="the model whose mlp becomes the expert")
    positive_prompts: list[str] = Field([], description="texts that this expert is for")
    negative_prompts: list[str] = Field([], description="texts that it is not for")
    noise_scale: float | None = Field(None, description="standard deviation of noise added to its weights")
    residual_scale: float | None = Field(None, description="factor on its down projection")


GateMode = Annotated[
    str, reader(lambda value, _: _one_of(value, GATE_MODES, "gate_mode")), WithJsonSchema({"enum": [*GATE_MODES]})
]


@dataclass(frozen=True)
class Mixture:
    """A checked moe file: its keys, its text and places, and what a lenient reading passed over."""

    keys: MoeKeys
    text: str
    path: str | None
    tree: Any
    warnings: tuple[str, ...]

    def at(self, *path: str | int) -> Where | None:
        """The place of a value, by keys and list indices."""
        return place(self.tree, *path)


def mixture(source: str | os.PathLike[str] | Mapping[str, Any], *, lenient: bool = False) -> Mixture:
    """Read a moe file, a text with a newline in it, or a mapping. Raises `PlaitError` with everything that is wrong."""
    path = None
    if isinstance(source, Mapping):
        tree: Any = document.plain(source)
        text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
    else:
        path, text = open_text(source)
        documents = document.parse(text, path or "recipe")
        kind = kind_of_file(documents)
        if kind != "moe":
            do = f"run it with 'plait {'multi' if kind == 'multi' else 'merge'}', or list 'experts:'"
            where = place(documents[0]) if documents else Where(path or "recipe")
            raise RecipeError(
                "this file lists no experts", wanted=MEANING["moe"], found=MEANING[kind], do=do, where=where
            )
        tree = documents[0]
    reading = Reading(lenient)
    keys = _moe(tree, reading)
    warnings = reading.conclude()
    assert keys is not None
    return Mixture(keys, text, path, tree, warnings)


class MoeKeys(Keys):
    level = "a mixture of experts"
    base_model: Reference = Field(description="the model that everything but the mlp comes from")
    experts: list[ExpertKeys] = Field(description="the routed experts")
    shared_experts: list[ExpertKeys] | None = Field(None, description="experts that are always on")
    gate_mode: GateMode = Field("hidden", description="how the router's rows are made")
    dtype: DTypeName = Field(None, description="dtype of the weights")
    experts_per_token: int = Field(2, ge=1, description="how many experts a token is routed to")
    architecture: str | None = Field(None, description="the beginning of the output architecture's name")
    tokenizer_source: TokenizerSource | None = Field(None, description="refused: the base's is kept")
    merge_method: Any = Field(None, description="refused: it belongs to a merge")


def _moe(tree: Any, reading: Reading) -> MoeKeys | None:
    if "merge_method" in tree:
        do = "delete the line; or list the models under 'models:' for a merge"
        error = RecipeError("a mixture of experts has no merge_method", found=repr(tree["merge_method"]), do=do)
        reading.refuse(error, place(tree, "merge_method"))
    keys = parse(MoeKeys, tree, reading)
    if keys is None:
        return None
    if keys.tokenizer_source is not None:
        what = "'tokenizer_source' has no effect: the base model's tokenizer is kept"
        reading.ignore(what, "delete the line", place(tree, "tokenizer_source"))
    experts = keys.experts
    if len(experts) < max(keys.experts_per_token, 1):
        error = RecipeError(
            "there are too few experts",
            wanted=f"at least experts_per_token = {keys.experts_per_token}",
            found=str(len(experts)),
            do="list more experts, or lower experts_per_token",
        )
        reading.refuse(error, place(tree, "experts"))
    if "random" in keys.gate_mode:
        return keys  # no prompt is looked at
    for expert in experts:
        if not expert.positive_prompts:
            do = "list some, or write 'gate_mode: random'"
            what, wanted = "an expert has no positive_prompts", f"one or more, for gate_mode: {keys.gate_mode}"
            reading.refuse(RecipeError(what, wanted=wanted, found="none", do=do, where=expert.where))
    prompts = [(expert.positive_prompts, expert.negative_prompts) for expert in experts]
    if not reading.lenient and len(prompts) > 1 and prompts[0][0] and all(p == prompts[0] for p in prompts):
        do = "give each expert prompts of its own, or write 'gate_mode: random'"
        what, found = "all experts have the same prompts", ", ".join(map(repr, prompts[0][0]))[:80]
        reading.refuse(RecipeError(what, found=found, do=do), place(tree, "experts"))
    return keys


# -- evolve


class TaskKeys(Keys):
    level = "a task"
    name: str = Field(description="the evaluation harness's name of the task")
    weight: float = Field(1.0, description="how much its score counts")
    metric: str = Field("acc,none", description="which of its scores counts")


class GenomeKeys(Keys):
    level = "a genome"
    models: list[Reference] = Field(min_length=1, description="the models to merge")
    merge_method: Annotated[str, reader(lambda value, _: _one_of(value, EVOLVED, "merge_method"))] = Field(
        description="the method"
    )
    base_model: Reference | None = Field(None, description="the model that the others are compared with")
    tokenizer_source: TokenizerSource | None = Field(None, description="union, base or a model")
    layer_granularity: int = Field(1, ge=0, description="layers that share one set of parameters")
    normalize: bool | None = Field(None, description="fix the method's normalize")
    allow_negative_weights: bool = Field(False, description="let weights fall below 0")
    filters: list[str] | None = Field(None, description="parts of tensor names that get parameters of their own")
    smooth: bool = Field(False, description="interpolate between groups of layers")


class EvolveKeys(Keys):
    level = "an evolve file"
    genome: GenomeKeys = Field(description="what is searched")
    tasks: list[TaskKeys] = Field(min_length=1, description="what is measured")
    limit: int | None = Field(None, description="questions of each task")
    num_fewshot: int | None = Field(None, description="examples shown before each question")
    shuffle: bool = Field(False, description="take the questions in random order")
    random_init: bool = Field(False, description="begin the search at random")
    apply_chat_template: bool = Field(True, description="ask through the chat template")


def _evolve(tree: Any, reading: Reading) -> None:
    keys = parse(EvolveKeys, tree, reading)
    if keys and keys.genome.base_model is None and keys.genome.merge_method != "linear":
        what = f"{keys.genome.merge_method} needs a base_model"
        reading.refuse(RecipeError(what, found="none", do="add 'base_model:' to the genome"), keys.genome.where)


def _one_of(value: object, known: Sequence[str], key: str) -> str:
    if isinstance(value, str) and value in known:
        return value
    near = nearest(value, known) if isinstance(value, str) else None
    do = f"write {near}" if near else "write one of them"
    raise RecipeError(f"the {key} {value!r} is unknown", wanted=", ".join(known), found=repr(value), do=do)

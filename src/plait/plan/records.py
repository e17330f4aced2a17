"""What a plan is made of: frozen data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from plait.checkpoint import stored_nbytes
from plait.errors import PlanError, Where, nearest
from plait.layout import SHARD_SIZE, Shard
from plait.method import Method
from plait.recipe import Recipe, Rule
from plait.strands import Model
from plait.types import TensorSpec
from plait.vocabulary.shared import Vocabulary


@dataclass(frozen=True, slots=True)
class Input:
    """One input of a step: a tensor of a model, and how many of its rows are read (None: all)."""

    model: int
    name: str
    rows: int | None = None


@dataclass(frozen=True, slots=True)
class Given:
    """A parameter's value for one tensor: for which model (None: shared), from which scope, from which line."""

    parameter: str
    value: Any
    model: int | None
    scope: str
    where: Where | None


@dataclass(frozen=True, slots=True)
class Step:
    """How one output tensor is made. Without a method it is a copy of the first input; the others must be equal to it."""

    name: str
    spec: TensorSpec
    inputs: tuple[Input, ...]
    base: Input | None
    method: Method | None
    params: Any
    settings: tuple[Given, ...]
    module: str
    layer: int | None
    note: str | None = None
    depth: float = 0.0  # of its layer in its slice, from 0 to 1; 0 before the layers, 1 after them
    rule: Rule | None = None  # the rule of the recipe that fitted

    def sources(self) -> Iterator[Input]:
        """Every input, the base first."""
        if self.base:
            yield self.base
        yield from self.inputs


@dataclass(frozen=True)
class Dropped:
    """Input tensors that do not reach the output, and why."""

    model: int
    names: tuple[str, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Made:
    """What a plan makes that is no merge by a method: its name, a sentence, a paper, the command to do it again."""

    name: str
    summary: str
    paper: str
    command: str


@dataclass(frozen=True)
class Plan:
    """All that `run` needs, and all that can be said before it runs."""

    recipe: Recipe
    models: tuple[Model, ...]
    donor: int  # the model whose config, tokenizer and side files the output takes
    steps: tuple[Step, ...]
    shards: tuple[Shard, ...]
    config: Mapping[str, Any]
    dropped: tuple[Dropped, ...]
    notes: tuple[str, ...]
    seed: int
    options: Options
    vocabulary: Vocabulary | None = None  # where the models' rows were realigned, or a tokenizer was asked for
    nested: tuple[Plan, ...] = ()  # of the models that are merges themselves
    made: Made | None = None  # where it is not the recipe's method that made it
    memo: dict[Any, Any] = field(
        default_factory=dict, compare=False, repr=False
    )  # surveys of the whole model, once made

    @property
    def title(self) -> str:
        """What makes the output: the recipe's method, or the verb."""
        return self.made.name if self.made else self.recipe.method

    @property
    def specs(self) -> dict[str, TensorSpec]:
        return {step.name: step.spec for step in self.steps}

    @property
    def nbytes(self) -> int:
        """Bytes of the output's shards."""
        return sum(shard.nbytes for shard in self.shards)

    @property
    def read_nbytes(self) -> int:
        """Bytes of all inputs that the steps read, each once."""
        models = [model.opened.checkpoint for model in self.models]
        return sum(stored_nbytes(models[s.model], s.name) for step in self.steps for s in step.sources())

    def spec_of(self, source: Input) -> TensorSpec:
        return self.models[source.model].opened.checkpoint.specs[source.name]

    def reads(self) -> list[frozenset[str]]:
        """The tensors that the steps read of each model."""
        found: list[set[str]] = [set() for _ in self.models]
        for step in self.steps:
            for source in step.sources():
                found[source.model].add(source.name)
        return [frozenset(names) for names in found]

    def with_notes(self, notes: Sequence[str]) -> Plan:
        return replace(self, notes=tuple(dict.fromkeys((*notes, *self.notes))))

    def with_vocabulary(self, vocabulary: Vocabulary | None) -> Plan:
        """The plan of models that were realigned to `vocabulary`, with what there is to say about it."""
        if vocabulary is None:
            return self
        told = vocabulary.origins
        steps = tuple(replace(s, note=s.note or told.get(s.name)) if s.name in told else s for s in self.steps)
        return replace(self, steps=steps, vocabulary=vocabulary, notes=(*self.notes, *vocabulary.notes))

    def step(self, name: str) -> Step:
        """The step of one output tensor; raises `PlanError` with the nearest name."""
        for step in self.steps:
            if step.name == name:
                return step
        guess = nearest(name, (s.name for s in self.steps))
        raise PlanError(
            f"the output has no tensor {name!r}",
            wanted="a name that `plait plan` lists",
            found=name,
            do=f"did you mean {guess}?" if guess else "see the names with: plait plan RECIPE",
        )


@dataclass(frozen=True)
class Options:
    """What the caller, not the recipe, decides."""

    shard_size: int = SHARD_SIZE
    allow_crimes: bool = False
    truncate_embeddings: bool = False
    seed: int | None = None
    expert_layout: str | None = None  # "split" or "fused"; None: the base's
    lora_merge_dtype: str | None = None  # a dtype's name
    lenient: bool = False

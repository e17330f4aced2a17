"""From a model and the tokens that it is to have to a plan: all tensors as they are, but for those that the vocabulary spans."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import yaml

from plait import arch
from plait.arch.config import mend
from plait.checkpoint import home
from plait.checkpoint.source import Opened, fetched, open_model
from plait.errors import PlanError
from plait.layout import SHARD_SIZE, layout
from plait.methods.passthrough import passthrough
from plait.plan import Input, Made, Options, Plan, Step
from plait.recipe import Recipe
from plait.strands import Model
from plait.tokens.rows import Made as Rows
from plait.tokens.rows import Revised, Settled
from plait.types import MERGEABLE, ModelRef, TensorSpec
from plait.vocabulary.read import Tokens, read_tokens
from plait.vocabulary.realign import Matrix
from plait.vocabulary.rows import NONE
from plait.vocabulary.shared import Vocabulary
from plait.vocabulary.unite import strip
from plait.vocabulary.words import converted
from plait.vocabulary.write import named_ids, sized, tokenizer_files

#: says what the rows of a tensor are: (name, whether it is a head, the model's matrix) -> which they have been, and the others
Settle = Callable[[str, bool, Matrix], Settled]


@dataclass(frozen=True)
class Subject:
    """A model whose vocabulary is to change, or a donor: with its tokens that have rows."""

    model: Model
    tokens: Tokens
    held: int  # rows of its embedding

    @property
    def ref(self) -> ModelRef:
        return self.model.ref

    def matrix(self, head: bool) -> Matrix:
        """The embedding, or the head: a tied one is the embedding."""
        anatomy = self.model.arch
        name = anatomy.head if head and anatomy.head in anatomy.specs else anatomy.embedding
        return Matrix(self.model.opened.checkpoint, str(name))


def subject(model: str | os.PathLike[str] | ModelRef, cache: Path | None = None, dtype: str | None = None) -> Subject:
    """Open a model, headers only; raises `PlanError` for one without tokens or an embedding."""
    ref = model if isinstance(model, ModelRef) else ModelRef.parse(os.fspath(model))
    opened = fetched(open_model(ref, cache=cache, lora_dtype=dtype, fetch=False), None, side_files=True)
    anatomy = arch.infer(opened.checkpoint.specs, opened.checkpoint.config)
    tokens = read_tokens(opened.folder)
    name = anatomy.embedding
    if tokens is None or name is None or name not in anatomy.specs or anatomy.vocab_axis(name) != 0:
        raise PlanError(
            f"{ref} has no vocabulary that can be changed",
            wanted="a model directory with a token embedding, and tokenizer.json beside it",
            found="no tokenizer" if tokens is None else "no embedding of [tokens, hidden]",
            do="name the directory of a language model",
        )
    held = anatomy.specs[name].shape[0]
    return Subject(Model(opened, anatomy), strip(tokens, held), held)


def changed(
    subject: Subject,
    output: Tokens,
    rows: int,
    settle: Settle,
    made: Made,
    *,
    donor: Subject | None = None,
    asked: dict[str, object],
    seed: int = 0,
    held: int = 0,
    shard_size: int = SHARD_SIZE,
    notes: Sequence[str] = (),
) -> Plan:
    """The plan of the model with the tokens `output` in matrices of so many rows, which `settle` says what they are.

    `held`: bytes that making the new rows of a matrix takes.
    `donor`: whose tokenizer files these are. `asked`: what the command was given, which is the recipe.
    """
    opened, anatomy, source = subject.model.opened, subject.model.arch, donor or subject
    whole = _whole(source)
    files = tokenizer_files(whole, output)
    vocabulary = Vocabulary(
        tokens=output,
        source=1 if donor else 0,
        rows=rows,
        files=files,
        moved=_moved(subject.tokens, output),
        named=named_ids(output, source.model.opened.folder) if donor else {},
        origins={},
        notes=(),
    )
    checkpoint, views = opened.checkpoint, {}
    for name, spec in anatomy.specs.items():
        axis = anatomy.vocab_axis(name)
        if axis is None or spec.shape[axis] != subject.held:
            continue
        if axis != 0 or len(spec.shape) > 2:
            raise PlanError(
                f"{name} of {subject.ref} spans the vocabulary in a way that cannot be changed",
                wanted="[tokens, …], one or two axes",
                found=str(list(spec.shape)),
                do="leave its vocabulary as it is, or choose another model",
            )
        matrix = Matrix(checkpoint, name)
        views[name] = Rows(matrix, rows, partial(_settled, settle, name, name == anatomy.head, matrix), held)
    config = vocabulary.follow(sized(opened.config, subject.held, rows))
    view = replace(opened, checkpoint=Revised(checkpoint, views, config))
    models = [Model(view, replace(anatomy, specs=view.checkpoint.specs)), *([donor.model] if donor else [])]
    steps = tuple(_steps(view))
    specs = {step.name: step.spec for step in steps}
    mended = mend(config, anatomy, {}, specs)
    text = yaml.safe_dump(asked, sort_keys=False, allow_unicode=True)
    return Plan(
        recipe=Recipe(passthrough.name, base=subject.ref, text=text),
        models=tuple(models),
        donor=0,
        steps=steps,
        shards=layout(specs, shard_size),
        config=mended.config,
        dropped=(),
        notes=(*notes, *converted(source.ref, whole, files), *mended.notes),
        seed=seed,
        options=Options(shard_size, seed=seed),
        vocabulary=vocabulary,
        made=made,
    )


def _whole(source: Subject) -> Tokens:
    """The tokens of the source's files, those without rows among them."""
    found = read_tokens(source.model.opened.folder)
    assert found
    return found


def _settled(settle: Settle, name: str, head: bool, matrix: Matrix) -> Settled:
    row, make = settle(name, head, matrix)
    if len(matrix.spec.shape) > 1:
        return row, make
    # a bias of the head has the mean of all where it is new
    return row, lambda: matrix.rows(np.arange(matrix.spec.shape[0])).float().mean().expand(int((row == NONE).sum()), 1)


def _moved(old: Tokens, new: Tokens) -> dict[int, int | None]:
    return {n: new.ids.get(text) for text, n in old.ids.items() if new.ids.get(text) != n}


def _steps(opened: Opened) -> Sequence[Step]:
    found = []
    for name, spec in opened.checkpoint.specs.items():
        code = home(opened.checkpoint, name)
        if spec.floating and code not in MERGEABLE:
            raise PlanError(
                f"tensors in {code} cannot be written",
                wanted="float32, float16, bfloat16 or float64 weights",
                found=f"{name} of {opened.ref}",
                do="use the model that this one was quantised from",
            )
        found.append(
            Step(name, TensorSpec(code, spec.shape), (Input(0, name),), None, None, None, (), "default", _layer(name))
        )
    return found


def _layer(name: str) -> int | None:
    parts = arch.names.numbered(name)
    return parts[1] if parts else None

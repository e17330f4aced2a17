"""What a GGUF file of a model, or of a merge that was not written, will hold; decided before a weight is read.

Needs the `gguf` package. Reference: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plait.checkpoint import home
from plait.errors import OutputError, PlaitError
from plait.export.layout import Stored, blocks, layout
from plait.export.metadata import family_of, metadata, text_config
from plait.export.modelfile import modelfile
from plait.export.tokens import Vocabulary, vocabulary
from plait.merged import Merge
from plait.output.inputs import fetch
from plait.output.sidefiles import laid_out
from plait.plan import Plan
from plait.writer import check_disk


@dataclass(frozen=True)
class Export:
    """An export that is ready: everything is known but the weights."""

    plan: Plan
    out: Path
    modelfile: Path
    type: str
    name: str
    tensors: tuple[Stored, ...]
    settings: Mapping[str, list[float]]  # tensors of floats that hold settings
    keys: Mapping[str, Any]
    architecture: str
    tokens: Vocabulary
    ollama: str
    notes: tuple[str, ...]

    @property
    def nbytes(self) -> int:
        """Of the weights."""
        return sum(one.nbytes for one in self.tensors)


def export(
    plan: Plan,
    out: Path,
    *,
    name: str,
    type: str | None = None,
    pre: str | None = None,
    force: bool = False,
) -> Export:
    """Make an export of a plan's model ready: `out` a file that ends in .gguf, or a folder for one called after `name`.

    `type`: one of `layout.blocks()`; by default the dtype of the model's embedding. `pre`: see `tokens.vocabulary`. Every
    problem that can be found before the weights are read is raised here.
    """
    _package()
    plan = fetch(plan, weights=False)
    merge = Merge(plan)
    config = text_config(merge.config)
    architecture, family = family_of(config)
    kind = _kind(type, merge)
    keys, settings, told = metadata(family, config)
    tensors, more = layout(family, merge.specs, config, kind)
    rows = next(one.shape[0] for one in tensors if one.name == "token_embd.weight")
    path, beside = _target(out, name, kind)
    with laid_out(plan, config) as folder:
        try:
            tokens = vocabulary(folder, rows, pre)
            ollama = modelfile(path.name, folder, tokens)
        except PlaitError as error:
            error.what = error.what.replace(f"{folder}/", "").replace(str(folder), name)
            raise
    _check(path, beside, sum(one.nbytes for one in tensors), force)
    return Export(
        plan=plan,
        out=path,
        modelfile=beside,
        type=kind,
        name=_called(name, architecture, tokens),
        tensors=tuple(tensors),
        settings=settings,
        keys={**keys, "vocab_size": rows},
        architecture=architecture,
        tokens=tokens,
        ollama=ollama,
        notes=(*told, *more, *tokens.notes),
    )


def _package() -> None:
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise PlaitError(
            "the package gguf is not installed", wanted="gguf, which writes the file", do='pip install "plait[gguf]"'
        ) from error


def _kind(asked: str | None, merge: Merge) -> str:
    embedding = next((name for name in merge.specs if name.endswith("embed_tokens.weight")), None)
    kind = asked.upper() if asked else home(merge, embedding) if embedding else "F32"
    if kind == "F64":
        kind = "F32"
    if kind not in blocks():
        raise PlaitError(
            f"a GGUF file of type {asked} cannot be written",
            wanted=", ".join(blocks()),
            found=str(asked),
            do="export BF16, and make others of it with llama-quantize",
        )
    return kind


def _target(out: Path, name: str, kind: str) -> tuple[Path, Path]:
    """The file, and the Modelfile beside it."""
    if out.suffix == ".gguf":
        return out, out.with_suffix(".Modelfile")
    stem = re.sub(r"[^\w.-]+", "-", name).strip("-.") or "model"
    return out / f"{stem}-{kind}.gguf", out / "Modelfile"


def _check(path: Path, beside: Path, nbytes: int, force: bool) -> None:
    """Refuse an OUT that is there, or has no place."""
    if os.path.isdir(path) or (os.path.exists(path.parent) and not os.path.isdir(path.parent)):
        what = path if os.path.isdir(path) else path.parent
        raise OutputError(f"{what} is no place for a file", wanted="a name that is free", do="choose another OUT")
    if not force and (there := [found for found in (path, beside) if os.path.exists(found)]):
        raise OutputError(
            f"{there[0]} is there already", wanted="a new file", do="choose another OUT, or pass --force to replace it"
        )
    check_disk(path.absolute().parent, nbytes + 48_000_000)  # for tokens and merges


def _called(name: str, architecture: str, tokens: Vocabulary) -> str:
    """`general.name`, from which llama.cpp takes whether special tokens swallow the space after them: if it has "phi-3" in it.

    And then it needs the four tokens of Phi-3.
    """
    able = {"</s>", "<unk>", "<s>", "<|endoftext|>"} <= set(tokens.texts)
    said = re.search(r"phi-?3", name, re.IGNORECASE)
    if architecture == "phi3" and tokens.strips and able:
        return name if said else f"{name} (phi-3)"
    return re.sub(r"(phi)-?3", r"\1 3", name, flags=re.IGNORECASE) if said else name

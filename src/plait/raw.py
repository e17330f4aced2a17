"""Merges of any state dicts: single files, folders of weights, and pipelines of diffusers, component by component.

There is no architecture: a tensor is merged with the tensors of the same name. It is a plan like any other (`plain`).
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from plait import plain
from plait.checkpoint.directory import SafetensorsFiles, read_json, weight_files
from plait.checkpoint.pickled import PickledFiles
from plait.checkpoint.source import Opened, local_path, open_model
from plait.errors import ModelError, PlaitError
from plait.layout import SHARD_SIZE, layout
from plait.plan import Options, Plan
from plait.plan.findings import some
from plait.prepare import Source
from plait.recipe import Recipe, load
from plait.strands import Model
from plait.types import ModelRef
from plait.writer import check_output

#: names that must be in all inputs; those that are in all; those that are in any
Names = Literal["same", "intersection", "union"]
_PICKLES = (".pt", ".pth", ".bin", ".ckpt")
_PIPELINE = "model_index.json"
_VARIANTS = (".fp16.", ".bf16.", ".non_ema.", ".fp32.")
_WEIGHTS = (".safetensors", ".safetensors.index.json", *_PICKLES, ".bin.index.json", ".msgpack", ".onnx", ".h5")


@dataclass(frozen=True)
class Part:
    """A plan, and the folder in OUT that it goes to: "" for OUT itself, else a component of a pipeline."""

    folder: str
    plan: Plan


def prepare(
    source: Source | Recipe,
    *,
    names: Names = "same",
    lenient: bool = False,
    seed: int | None = None,
    shard_size: int = SHARD_SIZE,
    cache: str | None = None,
) -> list[Part]:
    """The plans of a recipe whose models are files or folders of weights; several where these are pipelines of diffusers.

    Raises every problem that is found; no weight is read.
    """
    recipe = source if isinstance(source, Recipe) else load(source, lenient=lenient)
    beside = Path(recipe.path).parent if recipe.path else None
    options = Options(shard_size, seed=seed, lenient=lenient)
    folders = {ref: local_path(ref.path, beside) for ref in recipe.references()}
    pipelines = {ref: p for ref, p in folders.items() if p is not None and (p / _PIPELINE).is_file()}
    if not pipelines:
        return [Part("", _plan(recipe, "", names, options, cache, beside))]
    if len(pipelines) < len(folders):
        odd = next(ref for ref in folders if ref not in pipelines)
        what = f"{odd} is no pipeline, and others are"
        do = "list pipelines alone, or one component of each: PIPELINE/unet"
        raise ModelError(what, wanted=_PIPELINE, found=str(folders[odd]), do=do)
    first = pipelines[recipe.base or recipe.references()[0]]
    return [Part(name, _plan(recipe, name, names, options, cache, beside)) for name in components(first)]


def components(pipeline: Path) -> list[str]:
    """The folders of a pipeline that hold weights."""
    return [
        name
        for name in read_json(pipeline / _PIPELINE)
        if (pipeline / name).is_dir()
        and any(p.name.endswith((".safetensors", *_PICKLES)) for p in (pipeline / name).iterdir())
    ]


def save(parts: Sequence[Part], out: Path, write: Any, *, force: bool = False) -> list[Any]:
    """Write every part; of a pipeline also what has no weights. `write(plan, folder)` writes one plan."""
    if [part.folder for part in parts] == [""]:
        return [write(parts[0].plan, out)]
    donor = parts[0].plan.models[parts[0].plan.donor].opened.folder
    assert donor
    pipeline = donor.parent
    inputs = [m.opened.folder.parent for part in parts for m in part.plan.models if m.opened.folder]
    check_output(out, sum(part.plan.nbytes for part in parts), inputs, force)
    saved = [write(part.plan, out / part.folder) for part in parts]
    written = {part.folder for part in parts}
    for path in sorted(pipeline.rglob("*")):
        place = path.relative_to(pipeline)
        weights = place.parts[0] in written and path.name.endswith(_WEIGHTS)
        if path.is_file() and not weights and not (out / place).exists():
            (out / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, out / place)
    return saved


def _plan(
    recipe: Recipe, component: str, names: Names, options: Options, cache: str | None, beside: Path | None
) -> Plan:
    def opened(ref: ModelRef) -> Opened:
        return _open(ref, component, cache, beside)

    def models(found: Sequence[Opened]) -> list[Model]:
        return _joined(found, names)

    plan = plain.plan(recipe, opened, models, options)
    stem = "diffusion_pytorch_model"
    donor = plan.models[plan.donor].opened
    if component and any(path.name.startswith(stem) for path in donor.files):
        plan = replace(plan, shards=layout(plan.specs, options.shard_size, stem))
    return replace(plan, config=donor.config)


def _open(ref: ModelRef, component: str, cache: str | None, beside: Path | None) -> Opened:
    """One input: a component of a pipeline, a file, or a folder of weights."""
    if ref.adapter:
        what, do = f"{ref} has an adapter", "leave the adapter out, or use plait merge"
        raise ModelError(what, wanted="files or folders of weights", found=str(ref.adapter), do=do)
    local = local_path(ref.path, beside)
    if local is not None and component:
        if not (local / component).is_dir():
            found = ", ".join(components(local)) or "none"
            what, do = f"{ref} has no component {component!r}", "merge pipelines that have the same components"
            raise ModelError(what, wanted=component, found=found, do=do)
        local = local / component
    if local is not None and local.is_file() and local.suffix in _PICKLES:
        return Opened(ref, None, None, PickledFiles([local], {}), (local,))
    if local is not None and local.is_dir():
        listed = [p.name for p in local.iterdir() if p.is_file() and not any(v in p.name for v in _VARIANTS)]
        indexes = [name for name in listed if name.endswith(".safetensors.index.json")]
        files = weight_files(local, listed)
        if indexes and files[0].suffix == ".safetensors":
            mapped = read_json(local / indexes[0]).get("weight_map")
            files = [local / name for name in dict.fromkeys(mapped.values())] if isinstance(mapped, dict) else files
        config = read_json(local / "config.json") if component and (local / "config.json").is_file() else {}
        weights = SafetensorsFiles(files, config) if files[0].suffix == ".safetensors" else PickledFiles(files, config)
        return Opened(ref, local, None, weights, tuple(files))
    return replace(open_model(ref, cache=Path(cache) if cache else None, relative_to=beside), folder=None)


def _joined(found: Sequence[Opened], names: Names) -> list[Model]:
    """The inputs with one anatomy, and what each of them lacks or has to spare."""
    every = list(dict.fromkeys(name for opened in found for name in opened.checkpoint.specs))
    common = [name for name in every if all(name in opened.checkpoint.specs for opened in found)]
    if names == "same" and len(common) < len(every):
        lacking = [(o, [n for n in every if n not in o.checkpoint.specs]) for o in found]
        raise PlaitError(
            "the inputs do not have the same tensors",
            wanted="one set of names",
            found="; ".join(f"{o.ref} lacks {len(missing)}: {some(missing)}" for o, missing in lacking if missing),
            do="pass -i to merge what all of them have, or -u to merge each tensor of those that have it",
        )
    if not common and names != "union":
        found_names = "; ".join(f"{o.ref}: {some(list(o.checkpoint.specs))}" for o in found)
        what = "the inputs have no tensor in common"
        do = "give models of one kind, or pass -u to keep the tensors of all"
        raise PlaitError(what, wanted="equal names", found=found_names, do=do)
    kept = every if names == "union" else common
    return [
        Model(
            opened,
            plain.anatomy(kept, opened.checkpoint.specs),
            lacks={name: "this input does not have it" for name in kept if name not in opened.checkpoint.specs},
            spare={name: "not in every input (-i)" for name in opened.checkpoint.specs if name not in set(kept)},
        )
        for opened in found
    ]

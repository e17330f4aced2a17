"""What is scored: a model's folder or Hub id, or a recipe, whose merge need not be written."""

from __future__ import annotations

import inspect
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from plait.checkpoint.source import Opened, open_model
from plait.evaluate.cache import digest, file_digest
from plait.evaluate.records import Subject
from plait.merged import Merge
from plait.methods import registry
from plait.output.sidefiles import laid_out, side_files
from plait.plan import Plan
from plait.prepare import prepare
from plait.types import ModelRef

#: files of a model's folder that change nothing when it is run
BESIDE = ("README.md", "LICENSE", "plait_", ".")


@dataclass(frozen=True, slots=True)
class Machine:
    """Where and how models are run."""

    device: str = "cpu"
    dtype: str = "float32"


@dataclass
class Written:
    """A model directory."""

    name: str
    opened: Opened
    machine: Machine
    _loaded: tuple[Any, Any] | None = field(default=None, init=False, repr=False)

    @property
    def path(self) -> Path:
        assert self.opened.folder
        return self.opened.folder

    @cached_property
    def fingerprint(self) -> str:
        files = (p for p in self.path.iterdir() if p.is_file() and not p.name.startswith(BESIDE))
        return digest("model 1", _files(files), _environment(self.machine))

    def loaded(self) -> tuple[Any, Any]:
        if self._loaded is None:
            from plait.evaluate.network import load

            network, tokenizer = load(self.path)
            self._loaded = placed(network, self.machine), tokenizer
        return self._loaded

    def folder(self) -> Path:
        return self.path

    def close(self) -> None:
        self._loaded = None


@dataclass
class Unwritten:
    """A merge that is in no folder; its weights are computed when they are needed. `source`: a recipe's file, or its text."""

    name: str
    source: str
    plan: Plan
    machine: Machine
    path: None = None
    _loaded: tuple[Any, Any] | None = field(default=None, init=False, repr=False)
    _written: tempfile.TemporaryDirectory[str] | None = field(default=None, init=False, repr=False)

    @cached_property
    def fingerprint(self) -> str:
        plan, beside = self.plan, side_files(self.plan)
        return digest(
            "merge 1",
            version("plait"),
            recipe_data(self.source),
            [file_digest(path) for path in _code()],
            [
                (
                    str(m.ref),
                    m.opened.revision,
                    m.opened.adapter_revision,
                    _files(m.opened.files),
                    _small(m.opened),
                )
                for m in plan.models
            ],
            _files(beside.copied.values()),
            sorted(beside.texts.items()),
            (plan.config, plan.seed, str(plan.options)),
            _environment(self.machine),
        )

    def loaded(self) -> tuple[Any, Any]:
        if self._loaded is None:
            from plait.evaluate.network import tokenizer, transformers

            with laid_out(self.plan, self.plan.config) as folder, transformers() as library:
                network = Merge(self.plan).to_transformers().float().eval()
                if (folder / "generation_config.json").is_file():
                    network.generation_config = library.GenerationConfig.from_pretrained(folder)
                self._loaded = placed(network, self.machine), tokenizer(folder)
        return self._loaded

    def folder(self) -> Path:
        if self._written is None:
            self._written = tempfile.TemporaryDirectory(prefix="plait-")
            Merge(self.plan).save(Path(self._written.name) / self.name)
        return Path(self._written.name) / self.name

    def close(self) -> None:
        self._loaded = None
        if self._written is not None:
            self._written.cleanup()
            self._written = None


def placed(network: Any, machine: Machine) -> Any:
    """The network on the machine's device, in its dtype."""
    import torch

    return network.to(device=machine.device, dtype=getattr(torch, machine.dtype))


def subjects(
    given: Sequence[str],
    machine: Machine = Machine(),
    cache: Path | None = None,
    plan: Callable[[str], Plan] = prepare,
) -> list[Subject]:
    """Each of `given`, a folder, a Hub id or a recipe (.yml, .yaml), opened; headers only. Raises `PlaitError`."""
    given = list(dict.fromkeys(given))
    short = [_short(text) for text in given]
    names = [name if Counter(short)[name] == 1 else text for name, text in zip(short, given, strict=True)]
    return [_subject(text, name, machine, cache, plan) for text, name in zip(given, names, strict=True)]


def _subject(
    text: str, name: str, machine: Machine, cache: Path | None, plan: Callable[[str], Plan]
) -> Written | Unwritten:
    if _is_recipe(text):
        return Unwritten(name, text, plan(text), machine)
    ref = ModelRef.parse(text)
    opened = open_model(ref, cache=cache)
    if opened.folder is None or ref.adapter or "quantization_config" in opened.config:
        alone = f"merge_method: passthrough\nmodels:\n  - model: {json.dumps(text)}\n"
        return Unwritten(name, alone, prepare(alone, cache=cache), machine)
    return Written(name, opened, machine)


def _is_recipe(text: str) -> bool:
    return Path(text).suffix in (".yml", ".yaml") and Path(text).is_file()


def _short(text: str) -> str:
    return Path(text).stem if _is_recipe(text) else text.rstrip("/").rsplit("/", 1)[-1]


def recipe_data(source: str) -> list[Any]:
    """What a recipe says, without its comments and layout, and what the recipes say that it names in a model's place."""
    path = Path(source) if _is_recipe(source) else None
    found = list(yaml.safe_load_all(path.read_text("utf-8") if path else source))
    for text in _texts(found):
        beside = [Path(text), *([path.parent / text] if path else [])]
        if text.endswith((".yml", ".yaml")) and (file := next((p for p in beside if p.is_file()), None)):
            found.append(recipe_data(str(file)))
    return found


def _texts(data: object) -> Iterator[str]:
    if isinstance(data, str):
        yield data
    elif isinstance(data, dict | list):
        for item in data.values() if isinstance(data, dict) else list(data):
            yield from _texts(item)


def _code() -> list[Path]:
    """The files that the methods are in, those of --load among them."""
    return [Path(inspect.getfile(method.function)) for method in registry().values()]


def _files(paths: Iterable[Path]) -> list[tuple[str, str]]:
    return [(path.name, file_digest(path)) for path in sorted(paths)]


def _small(opened: Opened) -> list[list[tuple[str, str]]]:
    """What stands beside weights, a model's and an adapter's: tokenizer, config."""
    folders = dict.fromkeys(filter(None, [opened.folder, *(path.parent for path in opened.files)]))
    return [_files(p for kind in ("*.json", "*.model", "*.jinja") for p in folder.glob(kind)) for folder in folders]


def _environment(machine: Machine) -> list[str]:
    found = [machine.device.split(":")[0], machine.dtype]
    for package in ("torch", "transformers", "tokenizers"):
        try:
            found.append(version(package))
        except PackageNotFoundError:  # a command may score models without them
            found.append("none")
    return found

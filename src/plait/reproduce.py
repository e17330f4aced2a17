"""Make a merge once more, from the recipe, the options and the commits that are kept beside it, and compare the bytes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from plait.errors import ModelError
from plait.merged import Merge
from plait.output.card import read_facts
from plait.output.hashes import sha256
from plait.output.whole import PROVENANCE, differences, listed, pins, recipe_in_place, tensor_hashes
from plait.prepare import prepare
from plait.run import Progress

#: what `Merge.save` was told
_SAVING = {"copy_tokenizer": bool, "write_card": bool, "allow_nonfinite": bool}
_PLANNING: dict[str, Any] = {
    "lenient": bool,
    "shard_size": int,
    "allow_crimes": bool,
    "truncate_embeddings": bool,
    "expert_layout": (str, type(None)),
    "lora_merge_dtype": (str, type(None)),
}


@dataclass(frozen=True)
class Reproduced:
    """What came of it. `changed`: what else than the recipe is not as it was, in words; it may explain what differs."""

    out: Path
    into: Path | None  # None: it was made in a temporary folder
    tensors: int
    differ: tuple[str, ...]  # tensors with other bytes, or on one side only
    files: tuple[str, ...]  # files beside the weights with other bytes
    changed: tuple[str, ...]

    @property
    def same(self) -> bool:
        return not self.differ and not self.files


def reproduce(
    out: str | os.PathLike[str],
    into: str | os.PathLike[str] | None = None,
    *,
    relative_to: str | os.PathLike[str] | None = None,
    cache: str | os.PathLike[str] | None = None,
    threads: int | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Reproduced:
    """Make the merge in `out` again, in `into` or in a temporary folder beside `out`, and compare all but the card.

    `relative_to`: where the recipe lay, for its relative paths, if it is no longer there; those that start at the current
    directory are found first.
    Models on the Hub are taken at the commits of then. Raises `ModelError` where `out` does not say enough, and what a merge
    raises.
    """
    folder = Path(out).expanduser()
    facts = read_facts(folder)
    options = _options(folder, facts)
    if not (command := str(facts.get("command", "plait merge"))).startswith("plait merge"):
        what, do = f"{folder} was made by '{facts['method']}', which is not done again by itself", f"run: {command}"
        raise ModelError(what, wanted="a merge of a recipe", found=str(facts["method"]), do=do)
    recipe = folder / "plait_config.yml"
    if not recipe.is_file() or recipe.read_text("utf-8", errors="replace") != facts["recipe"]:
        raise ModelError(
            f"{recipe} is not the recipe that the merge was made by",
            wanted=f"the text in {PROVENANCE}",
            found="another text" if recipe.is_file() else "no such file",
            do="bring the file back, or merge by it: plait merge",
        )
    before = tensor_hashes(folder)
    plan = prepare(
        recipe if relative_to else recipe_in_place(folder, facts) or recipe,
        seed=facts["seed"],
        cache=cache,
        relative_to=Path(relative_to) if relative_to else None,
        pins=dict(pins(facts)),
        **{name: options[name] for name in _PLANNING},
    )
    with _place(folder, into) as place:
        Merge(plan).save(
            place,
            threads=threads,
            force=force,
            progress=progress,
            copy_tokenizer=options["copy_tokenizer"],
            card=options["write_card"],
            allow_nonfinite=options["allow_nonfinite"],
        )
        made = read_facts(place)
        after = made["output"]["hashes"]
        files = {**listed(facts["output"]["files"]), **made["output"]["files"]}
        return Reproduced(
            folder,
            Path(into) if into else None,
            len(after),
            tuple(name for name in {**before, **after} if before.get(name) != after.get(name)),
            tuple(name for name in files if _hash(folder / name) != _hash(place / name)),
            tuple(differences(facts, made)),
        )


def _options(folder: Path, facts: Mapping[str, Any]) -> Mapping[str, Any]:
    """The options of then; `ModelError` for a provenance that does not have them."""
    options, output, wrong = facts.get("options"), facts.get("output"), list[str]()
    for name, kind in {**_PLANNING, **_SAVING}.items():
        if not isinstance(options, dict) or not isinstance(options.get(name, ...), kind):
            wrong.append(name)
    wrong += [name for name in ("plan", "recipe") if not isinstance(facts.get(name), str)]
    wrong += [name for name in ("methods", "versions") if not isinstance(facts.get(name), dict)]
    wrong += ["seed"] if type(facts.get("seed")) is not int else []
    wrong += ["models"] if not _models(facts) else []
    wrong += ["output"] if not isinstance(output, dict) else []
    if wrong:
        raise ModelError(
            f"{folder / PROVENANCE} does not say how the merge was made",
            wanted="a provenance of this version of plait",
            found=f"nothing that fits for {', '.join(wrong[:4])}",
            do="merge by plait_config.yml: plait merge",
        )
    assert isinstance(options, dict)
    assert isinstance(output, dict)
    listed(output.get("files"))
    return options


def _models(facts: Mapping[str, Any]) -> bool:
    """Whether the models, and those of nested merges, are described as plait does it."""
    models, nested = facts.get("models"), facts.get("nested", [])
    return (
        isinstance(models, list)
        and all(
            isinstance(model, dict)
            and all(isinstance(model.get(name), str) for name in ("model", "fingerprint"))
            and all(isinstance(model.get(name), str | None) for name in ("revision", "adapter_revision"))
            and "revision" in model
            for model in models
        )
        and isinstance(nested, list)
        and all(isinstance(inner, dict) and _models(inner) for inner in nested)
    )


@contextmanager
def _place(folder: Path, into: str | os.PathLike[str] | None) -> Iterator[Path]:
    if into is not None:
        yield Path(into).expanduser()
        return
    beside = folder.resolve().parent  # a disk that had room for one
    with TemporaryDirectory(prefix=".plait-", dir=beside if os.access(beside, os.W_OK) else None) as place:
        yield Path(place)


def _hash(path: Path) -> str | None:
    return sha256(path) if path.is_file() else None

"""The files beside the weights: tokenizer, templates, generation settings, processors. From one model, never by chance."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plait.checkpoint.directory import read_json
from plait.checkpoint.header import unreadable
from plait.checkpoint.source import Opened
from plait.errors import ModelError, OutputError, PlanError, reason
from plait.output.hashes import sha256
from plait.output.templates import NAMED, syntax
from plait.plan import Plan

TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "tekken.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "source.spm",
    "target.spm",
)
TEMPLATES = ("chat_template.jinja", "chat_template.json")
OTHERS = (
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "image_processor_config.json",
    "video_preprocessor_config.json",
    "feature_extractor_config.json",
    "normalizer.json",
    "modules.json",  # sentence-transformers: how texts are embedded, with a numbered folder for each part
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
)
PARTS = ("[0-9]*_*/config.json", "[0-9]*_*/model.safetensors")


#: what plait writes besides
OWN = ("config.json", "README.md", "plait_config.yml", "plait_provenance.json", "plait_scores.json")
NAMED_TEMPLATES = "additional_chat_templates"


def clear(out: Path) -> None:
    """Remove the side files of an older model: one that the new model lacks would pass for the new model's."""
    for name in (*OWN, *TOKENIZER, *TEMPLATES, *OTHERS):
        (out / name).unlink(missing_ok=True)
    for path in [path for pattern in (f"{NAMED_TEMPLATES}/*.jinja", *PARTS) for path in out.glob(pattern)]:
        path.unlink()
        if not any(path.parent.iterdir()):
            path.parent.rmdir()


@dataclass(frozen=True)
class SideFiles:
    """What is copied (name in the output -> file), what is written instead (name -> text), and whose each of them is."""

    copied: Mapping[str, Path]
    texts: Mapping[str, str]
    origins: Mapping[str, str]
    notes: tuple[str, ...]

    @property
    def chat_template(self) -> bool:
        """Whether there is a template for conversations among them."""
        if "chat_template.jinja" in (names := {*self.copied, *self.texts}) or "chat_template.json" in names:
            return True
        return bool(_settings(self.copied, self.texts, "tokenizer_config.json").get("chat_template"))

    def hashes(self) -> dict[str, str]:
        """Name in the output -> SHA-256 of what is written there."""
        return {name: sha256(path) for name, path in self.copied.items()} | {
            name: hashlib.sha256(text.encode()).hexdigest() for name, text in self.texts.items()
        }

    def write(self, out: Path) -> list[Path]:
        for name, path in self.copied.items():
            (out / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(path, out / f"{name}.partial")
            os.replace(out / f"{name}.partial", out / name)
        for name, text in self.texts.items():
            (out / f"{name}.partial").write_text(text, "utf-8")
            os.replace(out / f"{name}.partial", out / name)
        return [out / name for name in (*self.copied, *self.texts)]


@contextmanager
def laid_out(plan: Plan, config: Mapping[str, Any]) -> Iterator[Path]:
    """The side files and a config.json in a temporary folder, for what reads them there."""
    with ExitStack() as stack:
        try:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="plait-")))
            side_files(plan).write(folder)
            (folder / "config.json").write_text(json.dumps(config), "utf-8")
        except OSError as error:
            raise OutputError(
                "temporary files cannot be written",
                wanted="a folder with some MB of space for them",
                found=reason(error),
                do="free some space, or name another folder in the environment's TMPDIR",
            ) from error
        yield folder


def side_files(plan: Plan, copy_tokenizer: bool = True) -> SideFiles:
    """Decide what goes beside the weights; raises `PlanError` for a template that cannot be given.

    A tokenizer that the recipe asks for is written whatever `copy_tokenizer` says.
    """
    donor = plan.models[plan.donor]
    tokenizer = plan.models[tokenizer_donor(plan)]
    template = _template(plan)
    copied: dict[str, Path] = {}
    texts: dict[str, str] = {}
    notes = []
    if copy_tokenizer or plan.recipe.tokenizer:
        copied |= _found(tokenizer.opened, TOKENIZER, words=True)
        if not copied:
            notes.append(f"{tokenizer.ref} has no tokenizer files")
        made = plan.vocabulary.files if plan.vocabulary else {}
        copied = {name: path for name, path in copied.items() if name not in made}
        texts |= {name: text for name, text in made.items() if text is not None}
        if left := [name for name, text in made.items() if text is None]:
            notes.append(f"{', '.join(left)} of {tokenizer.ref} cannot hold the output's tokens: left out")
        if template is None:
            copied |= _found(tokenizer.opened, TEMPLATES, f"{NAMED_TEMPLATES}/*.jinja", words=True)
    origins = dict.fromkeys([*copied, *texts], str(tokenizer.ref))
    others = _found(donor.opened, OTHERS)
    if "modules.json" in others:
        others |= {name: path for pattern in PARTS for name, path in _found(donor.opened, (), pattern).items()}
        if kept := [name for name in others if name.endswith(".safetensors")]:
            notes.append(f"{', '.join(kept)} of {donor.ref}: copied, not merged")
    copied |= others
    for taken in copied.values():
        if taken.exists() and not os.access(taken, os.R_OK):
            raise unreadable(taken, "a file that may not be read")
    origins |= dict.fromkeys(others, str(donor.ref))
    if plan.vocabulary and plan.vocabulary.moves and (path := copied.get("generation_config.json")):
        del copied["generation_config.json"]
        texts["generation_config.json"] = _json(plan.vocabulary.follow(read_json(path)))
    if template is not None:
        texts["chat_template.jinja"], origins["chat_template.jinja"] = template
        settings = _settings(copied, texts, "tokenizer_config.json")
        if settings.pop("chat_template", None) is not None:  # a second template, which some loaders prefer
            copied.pop("tokenizer_config.json", None)
            texts["tokenizer_config.json"] = _json(settings)
    if "auto_map" in plan.config:
        notes.append(f"config.json names Python code of {donor.ref} (auto_map), which is not copied")
    if len(whose := dict.fromkeys(origins.values())) > 1:
        notes += [f"of {each}: " + ", ".join(name for name in origins if origins[name] == each) for each in whose]
    return SideFiles(copied, texts, origins, tuple(notes))


def tokenizer_donor(plan: Plan) -> int:
    """The model whose tokenizer the output takes: the one that the recipe names, else the config's."""
    return plan.vocabulary.source if plan.vocabulary else plan.donor


def _settings(copied: Mapping[str, Path], texts: Mapping[str, str], name: str) -> dict[str, Any]:
    """A JSON file of the output, which is written or copied; empty when it is neither."""
    if name in texts:
        return dict(json.loads(texts[name]))
    return read_json(copied[name]) if name in copied else {}


def _json(data: object) -> str:
    return json.dumps(data, indent=2, ensure_ascii=False) + "\n"


def _found(opened: Opened, names: Sequence[str], pattern: str = "", words: bool = False) -> dict[str, Path]:
    """The files of these names, and of the pattern, that a model's folder has or will have; `words`: the tokenizer's folder."""
    own = opened.words if words else None
    folder = own or opened.folder
    if folder is None:
        return {}
    listed = {name: folder / name for name in names if ((folder / name).is_file() if own else opened.has(name))}
    return listed | {str(p.relative_to(folder)): p for p in (sorted(folder.glob(pattern)) if pattern else ())}


def _template(plan: Plan) -> tuple[str, str] | None:
    """The recipe's chat template and whose it is; None to leave the donor's alone."""
    wanted, where = plan.recipe.chat_template, plan.recipe.at("chat_template")
    if wanted is None:
        return None
    if wanted in NAMED:
        return NAMED[wanted], "plait"
    if wanted == "auto":
        found = [
            (text, str(model.ref))
            for model in plan.models
            if (text := _template_of(model.opened.words or model.opened.folder))
        ]
        if not found:
            return None
        text = Counter(text for text, _ in found).most_common(1)[0][0]
        whose = next(ref for found_text, ref in found if found_text == text)
    else:
        text, whose = wanted, "the recipe"
    if fault := syntax(text):
        do = "name one of " + ", ".join(NAMED) if wanted == "auto" else "mend the template"
        raise PlanError(
            f"the chat template of {whose} cannot be parsed", wanted="Jinja", found=fault, do=do, where=where
        )
    return text, whose


def _template_of(folder: Path | None) -> str | None:
    if folder is None:
        return None
    if (path := folder / "chat_template.jinja").is_file():
        try:
            return path.read_text("utf-8").strip()
        except UnicodeDecodeError as error:
            do = "save it as UTF-8"
            raise ModelError(f"{path} is not text", wanted="UTF-8", found=str(error), do=do) from error
    config = folder / "tokenizer_config.json"
    text = read_json(config).get("chat_template") if config.is_file() else None
    return text.strip() if isinstance(text, str) else None

"""The files beside the weights: tokenizer, templates, generation settings, processors. From one model, never by chance."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from plait.checkpoint.directory import read_json
from plait.errors import ModelError, PlanError
from plait.output.templates import NAMED
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
)


#: what plait writes besides
OWN = ("config.json", "README.md", "plait_config.yml", "plait_provenance.json")
NAMED_TEMPLATES = "additional_chat_templates"


def clear(out: Path) -> None:
    """Remove the side files of an older model: one that the new model lacks would pass for the new model's."""
    for name in (*OWN, *TOKENIZER, *TEMPLATES, *OTHERS):
        (out / name).unlink(missing_ok=True)
    for path in (out / NAMED_TEMPLATES).glob("*.jinja"):
        path.unlink()
    if (out / NAMED_TEMPLATES).is_dir() and not any((out / NAMED_TEMPLATES).iterdir()):
        (out / NAMED_TEMPLATES).rmdir()


@dataclass(frozen=True)
class SideFiles:
    """What is copied (paths inside the donor's folder), and what is written instead: name -> text."""

    folder: Path | None
    copied: tuple[str, ...]
    texts: Mapping[str, str]
    notes: tuple[str, ...]

    def write(self, out: Path) -> list[Path]:
        written = []
        for name in self.copied:
            assert self.folder is not None
            target = out / name
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(self.folder / name, target)
            written.append(target)
        for name, text in self.texts.items():
            (out / name).write_text(text, "utf-8")
            written.append(out / name)
        return written


def side_files(plan: Plan, copy_tokenizer: bool = True) -> SideFiles:
    """Decide what goes beside the weights; raises `PlanError` for a tokenizer or template that cannot be given."""
    donor = plan.models[plan.donor]
    folder = donor.opened.folder
    notes: list[str] = []
    template = _template(plan)
    texts = {} if template is None else {"chat_template.jinja": template}
    if folder is None:
        return SideFiles(None, (), texts, ("the first model is a single file: no tokenizer and no side files",))
    groups = (
        *(TOKENIZER if copy_tokenizer else ()),
        *(TEMPLATES if template is None and copy_tokenizer else ()),
        *OTHERS,
    )
    copied = [name for name in groups if (folder / name).is_file()]
    if template is not None and "tokenizer_config.json" in copied:
        settings = read_json(folder / "tokenizer_config.json")
        if settings.pop("chat_template", None) is not None:  # a second template, which some loaders prefer
            copied.remove("tokenizer_config.json")
            texts["tokenizer_config.json"] = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
    if template is None and copy_tokenizer:
        copied += [f"{NAMED_TEMPLATES}/{p.name}" for p in sorted((folder / NAMED_TEMPLATES).glob("*.jinja"))]
    if copy_tokenizer and not any(name in TOKENIZER for name in copied):
        notes.append(f"{donor.ref} has no tokenizer files")
    if "auto_map" in plan.config:
        notes.append(f"config.json names Python code of {donor.ref} (auto_map), which is not copied")
    return SideFiles(folder, tuple(copied), texts, tuple(notes))


def _template(plan: Plan) -> str | None:
    """The text of the recipe's chat template; None to leave the donor's alone."""
    wanted = plan.recipe.chat_template
    if wanted is None:
        return None
    if wanted == "auto":
        found = [text for model in plan.models if (text := _template_of(model.opened.folder))]
        return Counter(found).most_common(1)[0][0] if found else None
    if wanted in NAMED:
        return NAMED[wanted]
    if len(wanted) >= 20 and "{" in wanted:
        return wanted
    raise PlanError(
        f"there is no chat template {wanted!r}",
        wanted="auto, a template's text, or one of " + ", ".join(NAMED),
        found=wanted,
        where=plan.recipe.at("chat_template"),
    )


def _template_of(folder: Path | None) -> str | None:
    if folder is None:
        return None
    if (path := folder / "chat_template.jinja").is_file():
        try:
            return path.read_text("utf-8").strip()
        except UnicodeDecodeError as error:
            raise ModelError(f"{path} is not text", wanted="UTF-8", found=str(error)) from error
    config = folder / "tokenizer_config.json"
    text = read_json(config).get("chat_template") if config.is_file() else None
    return text.strip() if isinstance(text, str) else None


def check_vocabulary(plan: Plan) -> tuple[str, ...]:
    """What the recipe's tokenizer request comes to; raises `PlanError` where rows would have to be moved."""
    request = plan.recipe.tokenizer
    if request is None:
        return ()
    taking = {source.model for step in plan.steps for source in step.sources()} | {plan.donor}
    vocabularies = {plan.models[i].ref: _vocabulary(plan.models[i].opened.folder) for i in sorted(taking)}
    where = plan.recipe.at("tokenizer") or plan.recipe.at("tokenizer_source")
    if request.tokens or request.pad_to_multiple_of:
        raise PlanError(
            "this version cannot move or add rows of the vocabulary",
            wanted="a tokenizer without tokens and pad_to_multiple_of",
            found="tokens" if request.tokens else "pad_to_multiple_of",
            do="take them out of the recipe",
            where=where,
        )
    different = [str(ref) for ref, v in vocabularies.items() if v != next(iter(vocabularies.values()))]
    if different:
        raise PlanError(
            "the models have different vocabularies, and this version cannot realign them",
            wanted="the same tokens with the same ids in every model",
            found=f"{', '.join(different)} differ from {next(iter(vocabularies))}",
            do="merge models with one vocabulary",
            where=where,
        )
    return (f"tokenizer: the vocabularies of all {len(vocabularies)} models are the same; nothing is realigned",)


def _vocabulary(folder: Path | None) -> dict[str, int] | None:
    """Token -> id of a folder's tokenizer.json (or vocab.json); None when it has neither."""
    if folder is None:
        return None
    if (path := folder / "tokenizer.json").is_file():
        data = read_json(path)
        model = data.get("model")
        vocab = model.get("vocab") if isinstance(model, dict) else None
        try:
            tokens = vocab if isinstance(vocab, dict) else {str(entry[0]): i for i, entry in enumerate(vocab or [])}
            return {**tokens, **{entry["content"]: entry["id"] for entry in data.get("added_tokens") or []}}
        except (TypeError, LookupError) as error:
            raise ModelError(
                f"{path} holds no vocabulary", wanted="model.vocab and added_tokens", found=f"{error}"
            ) from error
    if (folder / "vocab.json").is_file():
        return dict(read_json(folder / "vocab.json"))
    return None


def licences(plan: Plan) -> Sequence[str]:
    """The licence that each model's card states, in the recipe's order, without duplicates; "unknown" where none does."""
    found = []
    for model in plan.models:
        card = model.opened.folder / "README.md" if model.opened.folder else None
        text = card.read_text("utf-8", errors="replace") if card and card.is_file() else ""
        head = text[3:].split("\n---", 1)[0] if text.startswith("---") else ""
        lines = [line.partition(":")[2].strip() for line in head.splitlines() if line.startswith("license:")]
        found.append(lines[0] if lines and lines[0] else "unknown")
    return list(dict.fromkeys(found))

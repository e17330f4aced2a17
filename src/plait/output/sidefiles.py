"""The files beside the weights: tokenizer, templates, generation settings, processors. From one model, never by chance."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from plait.checkpoint.directory import read_json
from plait.checkpoint.source import Opened
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
OWN = ("config.json", "README.md", "plait_config.yml", "plait_provenance.json", "plait_scores.json")
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
    """What is copied (name in the output -> file), and what is written instead (name -> text)."""

    copied: Mapping[str, Path]
    texts: Mapping[str, str]
    notes: tuple[str, ...]

    @property
    def chat_template(self) -> bool:
        """Whether there is a template for conversations among them."""
        if "chat_template.jinja" in (names := {*self.copied, *self.texts}) or "chat_template.json" in names:
            return True
        settings = self.copied.get("tokenizer_config.json")
        return settings is not None and bool(read_json(settings).get("chat_template"))

    def write(self, out: Path) -> list[Path]:
        for name, path in self.copied.items():
            (out / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(path, out / name)
        for name, text in self.texts.items():
            (out / name).write_text(text, "utf-8")
        return [out / name for name in (*self.copied, *self.texts)]


def side_files(plan: Plan, copy_tokenizer: bool = True) -> SideFiles:
    """Decide what goes beside the weights; raises `PlanError` for a tokenizer or template that cannot be given."""
    tokenizer = plan.models[tokenizer_donor(plan)]
    template = _template(plan)
    texts = {} if template is None else {"chat_template.jinja": template}
    notes = []
    copied: dict[str, Path] = {}
    if copy_tokenizer:
        copied |= _found(tokenizer.opened, TOKENIZER)
        if not copied:
            notes.append(f"{tokenizer.ref} has no tokenizer files")
        if template is None:
            copied |= _found(tokenizer.opened, TEMPLATES, f"{NAMED_TEMPLATES}/*.jinja")
    copied |= _found(plan.models[plan.donor].opened, OTHERS)
    if template is not None and "tokenizer_config.json" in copied:
        settings = read_json(copied["tokenizer_config.json"])
        if settings.pop("chat_template", None) is not None:  # a second template, which some loaders prefer
            del copied["tokenizer_config.json"]
            texts["tokenizer_config.json"] = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
    if "auto_map" in plan.config:
        notes.append(f"config.json names Python code of {plan.models[plan.donor].ref} (auto_map), which is not copied")
    return SideFiles(copied, texts, tuple(notes))


def _found(opened: Opened, names: Sequence[str], pattern: str = "") -> dict[str, Path]:
    """The files of these names, and of the pattern, that a model's folder has or will have."""
    folder = opened.folder
    if folder is None:
        return {}
    listed = {name: folder / name for name in names if opened.has(name)}
    return listed | {str(p.relative_to(folder)): p for p in (sorted(folder.glob(pattern)) if pattern else ())}


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
    taking = {source.model for step in plan.steps for source in step.sources()} | {plan.donor, tokenizer_donor(plan)}
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
    if unknown := [str(ref) for ref, v in vocabularies.items() if v is None]:
        raise PlanError(
            "the recipe asks for a tokenizer, and there are models without one that can be read",
            wanted="tokenizer.json, tokenizer.model or vocab.json in each model",
            found="none in " + ", ".join(unknown),
            do="take 'tokenizer' out of the recipe if all models have one vocabulary, or add the file",
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


def tokenizer_donor(plan: Plan) -> int:
    """The model whose tokenizer the output takes: the one that the recipe names, else the config's."""
    source = plan.recipe.tokenizer.source if plan.recipe.tokenizer else None
    return next((i for i, model in enumerate(plan.models) if model.ref == source), plan.donor)


def _vocabulary(folder: Path | None) -> object:
    """What two folders with one vocabulary have in common: token -> id, or the bytes of tokenizer.model; None without any."""
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
    return (folder / "tokenizer.model").read_bytes() if (folder / "tokenizer.model").is_file() else None

"""The merge at work: the perplexity of a text, next to its parents', and a few words that it writes. Needs transformers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plait.diff.sides import Side
from plait.diff.verdicts import Verdict
from plait.errors import ModelError
from plait.evaluate.compare import Evaluation, compare
from plait.evaluate.network import one_thread, prompt_ids, write
from plait.evaluate.records import Settings
from plait.evaluate.subjects import subjects
from plait.evaluate.tasks import perplexity
from plait.merged import Merge
from plait.report.origin import Origin

#: perplexities above those of all parents by this factor are a broken model's …
LOST = 1.5
#: … and by this one worth a look
WORSE = 1.05
WRITTEN = 20  # tokens


@dataclass(frozen=True)
class Said:
    """Perplexities by model, the merge last; None without a text. What it wrote after the prompt; None without a prompt."""

    perplexity: dict[str, float] | None = None
    prompt: str | None = None
    text: str | None = None


def run(
    origin: Origin, text: Path | None, prompt: str | None, progress: Callable[[int], Any] | None = None
) -> tuple[Said, list[Verdict]]:
    """Run the merge, and for `text` its parents that are folders; what cannot be run is told in a verdict."""
    if text is None and prompt is None:
        return Said(), []
    name = origin.out.name
    try:
        known = _perplexities(origin, text, progress) if text else None
        said = Said(known, prompt, _written(origin, prompt) if prompt is not None else None)
    except ModelError as error:
        return Said(prompt=prompt), [Verdict("running", "bad", f"{name} does not run: {error.what}", error.found or "")]
    return said, [*_judged(name, known or {}), *_read(name, said)]


def _perplexities(origin: Origin, text: Path, progress: Callable[[int], Any] | None) -> dict[str, float]:
    folders = {str(side.folder): side.name for side in origin.sides if side.folder and _is_folder(origin, side)}
    found = subjects(list(folders))
    with one_thread():
        done: Evaluation = compare(found, perplexity.tasks(str(text), Settings()), progress=progress)
    scores = {folders[str(s.path)]: done.scores[s.name] for s in done.subjects}
    return {name: next(x.value for x in given if x.metric == "perplexity") for name, given in scores.items()}


def _is_folder(origin: Origin, side: Side) -> bool:
    """Whether the side's folder holds its weights: those of an adapter, a recipe, or a model that stays on the Hub do not."""
    refs = [m.opened for m in origin.plan.models if str(m.ref) == side.called] if origin.plan else []
    return "+" not in side.called and all(
        opened.files and opened.remote is None and not isinstance(opened.checkpoint, Merge) for opened in refs
    )


def _judged(name: str, known: dict[str, float]) -> list[Verdict]:
    parents = {parent: x for parent, x in known.items() if parent != name}
    if not parents or name not in known:
        return []
    own, worst = known[name], max(parents.values())
    because = "perplexity " + ", ".join(f"{model} {x:.4g}" for model, x in known.items())
    if own > LOST * worst:
        return [Verdict("running", "bad", f"the text surprises {name} far more than any of its parents", because)]
    if own > WORSE * worst:
        return [Verdict("running", "note", f"the text surprises {name} more than its parents", because)]
    return [Verdict("running", "good", f"{name} reads the text as well as its parents", because)]


def _written(origin: Origin, prompt: str) -> str:
    [subject] = subjects([str(origin.out.folder)])
    network, tokenizer = subject.loaded()
    with one_thread():
        return write(network, tokenizer, [prompt_ids(tokenizer, prompt)], WRITTEN)[0]


def _read(name: str, said: Said) -> Sequence[Verdict]:
    if said.text is None:
        return []
    parts = said.text.split()
    if len(parts) > 5 and len(set(parts)) == 1:
        return [Verdict("running", "note", f"{name} writes one word again and again", repr(said.text[:80]))]
    return []

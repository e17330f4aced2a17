"""Everything about a merge that was written: what was found, what it means, and the recipe's values, as data."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from plait.diff import Comparison, compare
from plait.diff.facts import facts, real
from plait.diff.sums import Sums
from plait.diff.verdicts import Verdict
from plait.output.depths import stacking, values
from plait.report import running, weights, words
from plait.report.origin import Origin, trace
from plait.run import Progress


@dataclass(frozen=True)
class Report:
    """A merge and its parents, what was measured, and all verdicts, the worst first."""

    origin: Origin
    found: Comparison
    said: running.Said
    verdicts: tuple[Verdict, ...]

    @property
    def reasons(self) -> tuple[Verdict, ...]:
        """Why the merge is broken; nothing for a good one."""
        return tuple(v for v in self.verdicts if v.mark == "bad")

    @property
    def verdict(self) -> str:
        """`good` or `broken`."""
        return "broken" if self.reasons else "good"


def report(
    out: str | os.PathLike[str],
    *,
    recipe: str | os.PathLike[str] | None = None,
    against: Sequence[str] = (),
    text: str | os.PathLike[str] | None = None,
    prompt: str | None = None,
    ranks: bool = True,
    threads: int | None = None,
    cache: str | None = None,
    progress: Callable[[int], Progress | None] | None = None,
    asking: Callable[[int], Any] | None = None,
) -> Report:
    """Look the merge in the folder `out` through, beside what its recipe made it of; or `against` other models, the base first.

    `text`: a file whose perplexity is compared with the parents'; `prompt`: what the merge is to go on from, for 20 tokens;
    both need transformers. `progress` is as in `diff.compare`, `asking` as in `evaluate.compare`. Raises `ModelError` where the
    parents cannot be had.
    """
    origin = trace(out, recipe=recipe, against=against, cache=cache)
    found = compare(*origin.sides, ranks=ranks, threads=threads, progress=progress)
    said, heard = running.run(origin, Path(text) if text else None, prompt, asking)
    all_of_it = [*weights.verdicts(origin, found), *words.verdicts(origin, found), *heard]
    all_of_it += [Verdict("parents", "note", note, "see its provenance") for note in origin.notes]
    order = ("bad", "note", "good")
    return Report(origin, found, said, tuple(sorted(all_of_it, key=lambda v: order.index(v.mark))))


def as_json(made: Report) -> dict[str, Any]:
    """All of it as JSON types; `comparison` is what `plait diff --json` prints of the parents and the merge."""
    found, plan = made.found, made.origin.plan
    shown = [asdict(v) for v in made.verdicts]
    body = weights.matrices(found) or found.total
    return {
        "model": made.origin.out.called,
        "name": made.origin.out.name,
        "verdict": made.verdict,
        "reasons": [v.says for v in made.reasons],
        "verdicts": shown,
        "parents": [
            {
                "name": side.name,
                "model": side.called,
                **_against(made, body, i),
                "layers": [
                    {"module": module, "layer": layer, **_against(made, sums, i)}
                    for (module, layer), sums in found.layers.items()
                ],
            }
            for i, side in enumerate(found.sides[:-1])
        ],
        "values": values(plan) if plan else made.origin.recorded.get("settings", []),
        "stacking": stacking(plan) if plan else made.origin.recorded.get("stacking", []),
        "perplexity": made.said.perplexity,
        "written": {"prompt": made.said.prompt, "text": made.said.text} if made.said.text is not None else None,
        "comparison": {**facts(found), "verdicts": shown},
    }


def _against(made: Report, s: Sums, i: int) -> dict[str, Any]:
    """The merge, last of the models, against one parent: cosine, norm / that of the parent, how much of its change is there."""
    norm = s.size(i - 1) if i else s.norm
    return {
        "cosine": real(s.cosine_between(i, s.models)),
        "norm": real(s.size(s.models - 1) / norm) if norm else None,
        "carried": real(s.carried(i, s.models)) if made.origin.based else None,
    }

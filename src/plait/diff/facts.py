"""A comparison as plain data: what `--json` prints and the page shows."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict
from statistics import median
from typing import Any

from plait.diff.comparison import Comparison
from plait.diff.measure import Measured
from plait.diff.sums import Sums
from plait.diff.verdicts import verdicts
from plait.diff.vocabulary import WordsDiffer, against, words
from plait.types import DTYPES


def facts(found: Comparison) -> dict[str, Any]:
    """Everything that was found, as JSON types. Numbers that are not finite or not defined are None."""
    read = tuple(words(side) for side in found.sides)
    apart = tuple(against(read[0], other) for other in read[1:])
    total, names = found.total, [side.name for side in found.sides]
    return {
        "models": [_model(found, i) for i in range(len(names))],
        "compared": {
            "tensors": len(found.tensors),
            "entries": sum(m.sums.entries for m in found.tensors),
            "first_rows_only": [p.name for p in found.pairing.pairs if not p.whole],
            "lacking": {name: list(lost) for name, lost in zip(names, found.pairing.lacking, strict=True)},
            "shapes": {name: [list(s) for s in shapes] for name, shapes in found.pairing.shapes.items()},
            "not_numbers": list(found.pairing.other),
            "not_finite": list(found.broken),
        },
        "total": {**_numbers(total), "ranks": [_rank(found, i) for i in range(total.models)]},
        "pairs": [
            {
                "models": [names[i], names[j]],
                "distance": real(total.distance(i, j)),
                "delta_cosine": real(total.delta_cosine(i - 1, j - 1)) if i else None,
                "sign_agreement": real(total.sign_agreement(i - 1, j - 1)) if i else None,
            }
            for i in range(len(names))
            for j in range(i + 1, len(names))
        ],
        "kinds": [{"kind": kind, **_numbers(sums)} for kind, sums in found.kinds.items()],
        "layers": [
            {
                "module": module,
                "layer": layer,
                **_numbers(found.layers[module, layer]),
                "kinds": {kind: _numbers(sums) for kind, sums in cells.items()},
            }
            for (module, layer), cells in found.cells.items()
            if layer is not None and (module, layer) in found.layers
        ],
        "outside": [
            {"module": module, "kinds": {kind: _numbers(sums) for kind, sums in cells.items()}}
            for (module, layer), cells in found.cells.items()
            if layer is None
        ],
        "tensors": [_tensor(m) for m in found.tensors],
        "vocabulary": [_words(name, d) for name, d in zip(names[1:], apart, strict=True)],
        "verdicts": [asdict(v) for v in verdicts(found, apart)],
    }


def _model(found: Comparison, i: int) -> dict[str, Any]:
    side, specs = found.sides[i], found.sides[i].checkpoint.specs
    return {
        "name": side.name,
        "model": side.called,
        "architecture": (side.checkpoint.config.get("architectures") or [None])[0],
        "parameters": sum(spec.numel for spec in specs.values()),
        "tensors": len(specs),
        "dtypes": list(dict.fromkeys(DTYPES[spec.dtype].name for spec in specs.values())),
        "layers": {module.name: module.count for module in side.arch.modules if module.count},
        "norm": real(found.total.size(i - 1) if i else found.total.norm),
    }


def _numbers(s: Sums) -> dict[str, Any]:
    """Lists have one value for each model but the first; `norm` is relative to the first one's."""
    others = range(s.models)
    return {
        "change": [real(s.change(i)) for i in others],
        "cosine": [real(s.cosine(i)) for i in others],
        "norm": [real(s.size(i) / s.norm) if s.norm else None for i in others],
        "unchanged": [real(s.unchanged(i)) for i in others],
        "largest": [real(x) for x in s.largest],
        "conflict": real(s.conflict_share()),
    }


def _tensor(m: Measured) -> dict[str, Any]:
    return {
        "name": m.pair.name,
        "module": m.module,
        "layer": m.layer,
        "kind": m.kind,
        "rows": m.pair.rows,
        "columns": m.pair.columns,
        **(_numbers(m.sums) if m.sums.finite else {}),
        "ranks": [
            None
            if s is None
            else {
                "effective": real(s.effective),
                "directions": s.directions,
                "explained": real(s.explained),
                "rounding": real(s.noise),
                "from": "a sketch of 256 rows" if s.sketched else "all of it",
            }
            for s in m.spectra
        ],
    }


def _rank(found: Comparison, i: int) -> float | None:
    """The median effective rank of the changed matrices."""
    known = [s.effective for m in found.tensors if (s := m.spectra[i])]
    return real(median(known)) if known else None


def _words(name: str, d: WordsDiffer) -> dict[str, Any]:
    counts = ("same_id", "other_id", "only_in_the_first", "only_in_this")
    return {
        "model": name,
        "tokens": dict(zip(counts, d.tokens, strict=True)) if d.tokens else None,
        "cuts_alike": d.cutting,
        "special_tokens": {key: list(pair) for key, pair in d.special.items()},
        "chat_template": d.template,
        "settings": {key: list(pair) for key, pair in d.settings.items()},
    }


def real(value: float | None) -> float | None:
    """A number that JSON has, with the digits that mean something."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.6g}")


def largest_changes(data: dict[str, Any], count: int) -> Iterable[dict[str, Any]]:
    """The tensors of `facts` that changed the most in any model."""
    known = [t for t in data["tensors"] if any(t.get("change") or ())]
    return sorted(known, key=lambda t: -max(x or 0.0 for x in t["change"]))[:count]

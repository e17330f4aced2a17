"""The scores of one model out of an evaluation, in the form that its card keeps (`plait_scores.json`).

{"parents": ["base"], "scores": [{"task": …, "metric": …, "value": …, "against": {"base": {"difference": …}}}]}
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plait.checkpoint.directory import read_json
from plait.errors import ModelError


def of_model(evaluation: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The scores of the model `name` in what `plait eval --json` prints, with its differences to each parent."""
    model = next(model for model in evaluation["models"] if model["name"] == name)
    mine = [d for d in evaluation["differences"] if d["model"] == name]
    parents = list(dict.fromkeys(d["parent"] for d in mine))
    scores = [
        {
            **score,
            "against": {
                parent: next((_difference(d) for d in mine if _place(d) == (parent, *_what(score))), None)
                for parent in parents
            },
        }
        for score in model["scores"]
    ]
    return {"parents": parents, "scores": scores, "fingerprint": model["fingerprint"]}


def _what(row: Mapping[str, Any]) -> tuple[str, str]:
    return row["task"], row["metric"]


def _place(difference: Mapping[str, Any]) -> tuple[str, str, str]:
    return difference["parent"], *_what(difference)


def _difference(d: Mapping[str, Any]) -> dict[str, Any]:
    keys = ("difference", "low", "high", "verdict")
    return {"value": d["parent_value"], **{key: d[key] for key in keys}}


def chosen(file: Path, out: Path) -> dict[str, Any]:
    """The scores of the merge in `out` from a file that `plait eval --json` printed; raises `ModelError` without any."""
    evaluation = read_json(file)
    try:
        paths = {model["name"]: model["path"] for model in evaluation["models"]}
        for name, path in paths.items():
            if path and Path(path).resolve() == out.resolve():
                return of_model(evaluation, name)
    except (KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"{file} holds no scores",
            wanted="what `plait eval --json` prints",
            found=f"no {error}" if isinstance(error, KeyError) else str(error),
            do="make it: plait eval BASE OUT … --json > FILE",
        ) from error
    raise ModelError(
        f"{file} has no scores of {out}",
        wanted=f"a model in {out.resolve()}",
        found=", ".join(filter(None, paths.values())) or "none",
        do="score it: plait eval BASE OUT --card …",
    )

"""The model card: README.md, rendered from the provenance, and from the scores that were measured.

The template is `card.md.jinja` beside this file. A template of the user's sees the same facts, may extend ours
(`{% extends "card.md.jinja" %}`) and replace its blocks, and runs in Jinja's sandbox.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from plait.checkpoint.directory import read_json
from plait.errors import ModelError, OutputError
from plait.output.depths import sparkline
from plait.output.parents import agreed
from plait.output.textfile import write_text
from plait.output.whole import PROVENANCE, read_provenance

TEMPLATE = "card.md.jinja"
SCORES = "plait_scores.json"
_SEAL = re.compile(r"<!-- plait card ([0-9a-f]{16}) -->\n\Z")


def card(
    facts: Mapping[str, Any], name: str, *, scores: Mapping[str, Any] | None = None, template: Path | None = None
) -> str:
    """The text of README.md for a merge that is called `name`, from its provenance, and `plait_scores.json` if there is one.

    The last line holds a hash of the lines before it, which tells whether somebody has changed the card since. Raises
    `ModelError` for facts that are not a provenance, `OutputError` for a template that cannot be rendered.
    """
    from jinja2 import TemplateError

    try:
        seen = {
            **facts,
            "name": name,
            "front": front_matter(facts, name, scores),
            "conflict": conflict(facts),
            "scores": scores if scores and scores.get("scores") else None,
        }
        environment = _environment()
        text: str = (
            environment.from_string(template.read_text("utf-8")) if template else environment.get_template(TEMPLATE)
        ).render(seen)
    except (OSError, UnicodeDecodeError) as error:
        what, do = f"{template} cannot be read", "check the path, and that the file is saved as UTF-8"
        raise OutputError(what, wanted="a Jinja template", found=str(error), do=do) from error
    except (
        TemplateError,
        ArithmeticError,
        AttributeError,
        LookupError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        if template is None:
            raise _not_provenance(error) from error
        number = getattr(error, "lineno", None)
        line = f", line {number}" if number else ""
        raise OutputError(
            f"{template}{line} cannot be rendered", found=str(error), do="docs/card.md lists the facts and filters"
        ) from error
    text = re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n"
    return text + f"\n<!-- plait card {_hash(text)} -->\n"


def read_facts(out: Path) -> dict[str, Any]:
    """The provenance of the merge in `out`; raises `ModelError` when there is none that a card can be made of."""
    if not (out / PROVENANCE).is_file():
        raise ModelError(
            f"{out} is no merge of plait",
            wanted="a folder with plait_provenance.json, as `plait merge` writes it",
            found="no such file" if out.is_dir() else "no such folder",
            do="name the OUT of a merge",
        )
    facts = read_provenance(out)
    missing = [key for key in ("plait", "recipe", "models", "output", "settings") if key not in facts]
    if missing:
        raise _not_provenance(f"no {', no '.join(missing)}")
    return facts


def rewrite(
    out: Path,
    *,
    name: str | None = None,
    template: Path | None = None,
    scores: Mapping[str, Any] | None = None,
    force: bool = False,
) -> str:
    """Write the card of the merge in `out` anew, and return it. `name`: what to call it, the folder's name by default.

    `scores` are kept in `plait_scores.json` for the next time; without them, those that are there are used. A card that
    somebody changed by hand is left alone without `force`; raises `OutputError` then.
    """
    check_card(out, force)
    facts = read_facts(out)
    kept = out / SCORES
    known = scores if scores is not None else read_json(kept) if kept.is_file() else None
    text = card(facts, name or title(out), scores=known, template=template)
    if scores is not None:
        write_text(kept, json.dumps(scores, indent=2, ensure_ascii=False) + "\n")
    write_text(out / "README.md", text)
    return text


def check_card(out: Path, force: bool = False) -> None:
    """Raise `OutputError` when the card in `out` has words of somebody's own, which writing it anew would lose."""
    path = out / "README.md"
    if force or not path.is_file():
        return
    text = path.read_text("utf-8", errors="replace")
    seal = _SEAL.search(text)
    if not seal or _hash(text[: seal.start()].removesuffix("\n")) != seal[1]:
        raise OutputError(
            f"{path} has been changed by hand",
            wanted="the card as plait wrote it",
            found="other words",
            do="keep your words in a template (--template), or write over them with --force",
        )


def front_matter(facts: Mapping[str, Any], name: str, scores: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The keys that the Hub reads; a key on which the parents do not agree is left out."""
    stated = [model.get("stated") or {} for model in facts["models"]]
    hub = list(dict.fromkeys(ref for model in facts["models"] for ref in model.get("hub") or []))
    front: dict[str, Any] = {"base_model": hub, "base_model_relation": "merge"} if hub else {}
    if not conflict(facts) and all("license" in model for model in stated):
        front["license"] = stated[0]["license"]
        if name_of := agreed(stated, "license_name"):
            front["license_name"] = name_of
    for key in ("language", "pipeline_tag"):
        if value := agreed(stated, key):
            front[key] = value
    front |= {"library_name": "transformers", "tags": ["merge", "plait", facts["method"]]}
    if results := [_result(score) for score in (scores or {}).get("scores", [])]:
        front["model-index"] = [{"name": name, "results": results}]
    return front


def _result(score: Mapping[str, Any]) -> dict[str, Any]:
    """One score as the Hub's model-index has it."""
    return {
        "task": {"type": "text-generation"},
        "dataset": {"name": score["task"], "type": score["task"]},
        "metrics": [{"type": score["metric"], "value": round(score["value"], 6), "name": score["metric"]}],
        "source": {"name": "plait eval", "url": "https://pypi.org/project/plait/"},
    }


def conflict(facts: Mapping[str, Any]) -> str | None:
    """What the parents state about their licences, if that is not one licence; None if it is."""
    by_licence: dict[str, list[str]] = {}
    for model in facts["models"]:
        stated = model.get("stated") or {}
        licence = " ".join(filter(None, (stated.get("license"), stated.get("license_name")))) or "states none"
        by_licence.setdefault(licence, []).append(model["model"])
    if len(by_licence) == 1 and "states none" not in by_licence:
        return None
    if list(by_licence) == ["states none"]:
        return "none of the models states one"
    return "; ".join(f"{', '.join(models)}: {licence}" for licence, models in by_licence.items())


def title(out: Path) -> str:
    """What to call a merge that is written to `out`."""
    return out.resolve().name


def _not_provenance(found: object) -> ModelError:
    return ModelError(
        "plait_provenance.json does not hold what a card is made of",
        found=str(found),
        do="it may be from an older plait: run the merge again, from plait_config.yml",
    )


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# -- the template's filters


def _environment() -> Any:
    from jinja2 import FileSystemLoader, StrictUndefined
    from jinja2.sandbox import SandboxedEnvironment

    loader = FileSystemLoader(Path(__file__).parent)
    made = SandboxedEnvironment(
        loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    filters = (cell, code, count, fence, figure, interval, link, number, signed, span, sparkline)
    made.filters.update({function.__name__: function for function in filters}, yaml=_yaml)
    return made


def _yaml(data: object) -> str:
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=120)


def cell(value: object) -> str:
    """Text that breaks neither a table nor the page."""
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", re.sub(r"\s+", " ", str(value))).replace("<", "&lt;")


def code(value: object) -> str:
    """Text as code on one line, fit for a table."""
    return "`" + re.sub(r"\s+", " ", str(value)).replace("`", "'").replace("|", r"\|") + "`"


def fence(text: str, language: str = "") -> str:
    """A block of code whose fence is longer than any run of backticks inside."""
    ticks = "`" * max(3, 1 + max(map(len, re.findall(r"`+", text)), default=0))
    return f"{ticks}{language}\n{text.strip()}\n{ticks}"


def link(model: Mapping[str, Any]) -> str:
    """A model's name, linked if it is on the Hub."""
    return (
        f"[{cell(model['model'])}](https://huggingface.co/{model['hub'][0]})"
        if model.get("hub")
        else code(model["model"])
    )


def count(n: int) -> str:
    """1.24B, 853.12K."""
    for unit, scale in (("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if n >= scale:
            return f"{n / scale:.2f}{unit}"
    return str(n)


def number(value: object) -> str:
    """At most four digits of a number; true and false as YAML has them."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.4g}" if isinstance(value, float) else cell(value)


def figure(value: float) -> str:
    """A score: 0.500, 234.6."""
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.1f}"


def signed(value: float) -> str:
    return ("+" if value >= 0 else "-") + figure(abs(value))


def interval(score: Mapping[str, Any]) -> str:
    """` [0.410, 0.450]`, or nothing for a score without one."""
    low, high = score.get("low"), score.get("high")
    return "" if low is None or high is None else f" [{figure(low)}, {figure(high)}]"


def span(values: list[Any]) -> str:
    """`0 … 1`: the lowest and the highest of several numbers; texts one after the other."""
    known = [value for value in values if value is not None]
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in known):
        return f"{number(min(known))} … {number(max(known))}"
    return ", ".join(number(value) for value in dict.fromkeys(known))

"""The model card: README.md with front matter for the Hub, what was merged and how, and how to run and repeat it."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from plait.checkpoint.source import local_path
from plait.methods import registry
from plait.output.sidefiles import licences
from plait.plan import Plan
from plait.types import DTYPES

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def card(plan: Plan, name: str) -> str:
    """The text of README.md for a merge that is called `name`."""
    method = registry()[plan.recipe.method]
    hub = [m.ref.path for m in plan.models if _HUB_ID.fullmatch(m.ref.path) and not local_path(m.ref.path)]
    licence = licences(plan)
    front: dict[str, object] = {"base_model": hub} if hub else {}
    if hub:
        front["base_model_relation"] = "merge"
    front |= {"library_name": "transformers", "tags": ["merge", "plait", method.name]}
    if len(licence) == 1 and licence[0] != "unknown":
        front["license"] = licence[0]
    dtypes = sorted({DTYPES[step.spec.dtype].name for step in plan.steps})
    size = sum(step.spec.numel for step in plan.steps)
    lines = [
        "---",
        yaml.safe_dump(front, sort_keys=False, allow_unicode=True).rstrip(),
        "---",
        "",
        f"# {name}",
        "",
        f"A merge of {len(plan.models)} models by [plait](https://pypi.org/project/plait/), "
        f"made with `{method.name}`: {method.summary[0].lower()}{method.summary[1:]}",
        "",
        f"{_count(size)} parameters, {', '.join(dtypes)}.",
        "",
        "## What was merged",
        "",
        "| model | revision | part |",
        "|---|---|---|",
    ]
    for i, model in enumerate(plan.models):
        parts = (["base"] if model.ref == plan.recipe.base else []) + (["config, tokenizer"] if i == plan.donor else [])
        shown = f"[{model.ref}](https://huggingface.co/{model.ref.path})" if model.ref.path in hub else f"`{model.ref}`"
        lines.append(f"| {shown} | {model.opened.revision or 'local'} | {', '.join(parts) or 'merged'} |")
    lines += ["", "Method: " + method.reference, ""]
    if len(licence) > 1 or licence == ["unknown"]:
        lines += [f"Licence: the parents state {', '.join(licence)}; check what holds for the merge.", ""]
    lines += [
        "## Run it",
        "",
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f'model = AutoModelForCausalLM.from_pretrained("{name}")',
        f'tokenizer = AutoTokenizer.from_pretrained("{name}")',
        "```",
        "",
        "## The recipe",
        "",
        "```yaml",
        plan.recipe.text.strip().replace("```", "'''"),
        "```",
        "",
        f"`plait merge plait_config.yml OUT --random-seed {plan.seed}` makes the same weights again, byte for byte.",
        "Fingerprints of the inputs and the versions used are in `plait_provenance.json`.",
        "",
    ]
    return "\n".join(lines)


def _count(n: int) -> str:
    for unit, scale in (("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if n >= scale:
            return f"{n / scale:.2f}{unit}"
    return str(n)


def title(out: Path) -> str:
    """What to call a merge that is written to `out`."""
    return out.resolve().name

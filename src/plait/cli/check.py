"""`plait check`: every mistake at once, before the work."""

from __future__ import annotations

from typing import Any

import click

from plait.cli import _show
from plait.cli._options import planning, prepared

#: what runs a kind of file that is no merge
RUN = {"moe": "plait moe", "multi": "plait multi or plait merge", "raw": "plait raw"}


@click.command()
@click.argument("recipes", nargs=-1, required=True, type=click.Path())
@planning
@click.option("--no-models", is_flag=True, help="Syntax, keys and parameters only; no model is looked at.")
@click.option("--json", "as_json", is_flag=True, help="The findings as JSON.")
def command(recipes: tuple[str, ...], no_models: bool, as_json: bool, **options: Any) -> None:
    """Find every problem of RECIPES from headers only. Exit 0 when there is none, else 2."""
    from plait import fit
    from plait.errors import PlaitError, Problems, raise_all
    from plait.methods import load
    from plait.recipe import kinds

    for file in options.pop("files"):
        load(file)
    reports: list[dict[str, Any]] = []
    for path in recipes:
        report: dict[str, Any] = {"recipe": path, "ok": True, "kind": "merge", "problems": [], "warnings": []}
        try:
            checked = kinds.check(path, lenient=options["lenient"])
            report |= {"kind": checked.kind, "warnings": list(checked.warnings)}
            for part in checked.recipes:
                found, warnings = fit.problems(part, lenient=options["lenient"])
                raise_all(found)
                report["warnings"] += warnings
            if checked.recipe and not no_models:
                plan = prepared(checked.recipe, {**options, "files": ()})
            elif checked.kind == "moe" and not no_models:
                plan = _mixture(path, options)
            else:
                plan = None
            if plan:
                report["warnings"] = list(plan.notes)
                report["output"] = {"tensors": len(plan.steps), "bytes": plan.nbytes, "shards": len(plan.shards)}
        except PlaitError as error:
            found = error.problems if isinstance(error, Problems) else [error]
            report |= {"ok": False, "problems": [p.as_json() for p in found]}
            if not as_json:
                for problem in found:
                    where = "" if problem.where else f"{path}: "
                    click.echo(f"error: {where}{problem}", err=True)
        if report["ok"] and not as_json:
            _show.notes(report["warnings"])
            output = report.get("output")
            more = f", {output['tensors']} tensors, {_show.size(output['bytes'])}" if output else ""
            kind = report["kind"]
            runs = "" if kind == "merge" else f" (a {kind} file: {RUN.get(kind, 'nothing')} runs it)"
            click.echo(f"{path}: no problems{more}{runs}")
        reports.append(report)
    if as_json:
        _show.emit_json(reports if len(reports) > 1 else reports[0])
    elif len(reports) > 1:
        bad = sum(not r["ok"] for r in reports)
        click.echo(f"{len(reports)} files: {len(reports) - bad} fine, {bad} with problems")
    click.get_current_context().exit(0 if all(r["ok"] for r in reports) else 2)


def _mixture(path: str, options: dict[str, Any]) -> Any:
    from plait.moe import prepare

    named = ("lenient", "expert_layout", "cache", "lora_merge_dtype")
    return prepare(path, seed=options["random_seed"], **{name: options[name] for name in named}).plan

"""Write the pages that come from the code: docs/methods.md, docs/methods/*.md, docs/bricks/*.md, docs/cli.md, docs/messages.md.

python docs/generate.py            writes them
python docs/generate.py --check    exits with 1 and names the pages that are not what it would write
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import yaml

import messages
from plait.brick import Brick
from plait.bricks import bricks
from plait.cli import cli
from plait.cli._show import number
from plait.method import Declared, Method, Parameter
from plait.methods import registry

DOCS = Path(__file__).parent
NOTE = "<!-- written by docs/generate.py; change the code that it is made of instead -->"
#: values of the minimal recipes: of a parameter, or of one method's
EXAMPLES: dict[str, float] = {"weight": 0.5, "density": 0.5, "t": 0.5, "nearswap.t": 0.001, "select_topk": 0.1}
EXAMPLES |= {"scale.factor": 0.7}
MODELS = ("demo/models/add", "demo/models/rev", "demo/models/src")


def pages() -> dict[str, str]:
    """Path below docs/ -> text, of every generated page."""
    methods = {name: m for name, m in registry().items() if _ours(m)}
    return {
        "methods.md": _list(methods.values()),
        **{f"methods/{name}.md": _page(method) for name, method in methods.items()},
        **{f"bricks/{name}.md": _brick(brick) for name, brick in bricks().items() if _ours(brick)},
        "cli.md": _cli(),
        "messages.md": f"{NOTE}\n{messages.page()}",
    }


def _ours(part: Declared) -> bool:
    """Whether it is not of another package."""
    return part.function.__module__.startswith("plait.")


def stale() -> list[str]:
    """The generated pages that are missing, out of date, or of a method that is no more."""
    wanted = pages()
    old = [f"{folder}/{path.name}" for folder in ("methods", "bricks") for path in (DOCS / folder).glob("*.md")]
    wrong = [name for name, text in wanted.items() if not _holds(DOCS / name, text)]
    return wrong + [name for name in old if name not in wanted]


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text("utf-8") == text


# -- methods


def _list(methods: Any) -> str:
    rows = "".join(f"| [{m.name}](methods/{m.name}.md) | {m.summary} | {_models(m)} | {m.base} |\n" for m in methods)
    return (
        f"{NOTE}\n\n# Methods\n\n"
        "`merge_method` in a [recipe](recipes.md) is one of these. `plait methods NAME` prints the same pages in a terminal. "
        "To add one, see [From a paper to a method](extend.md).\n\n"
        "| method | what it does | models | base_model |\n|---|---|---|---|\n" + rows + "\n"
        "Models are counted without the base. Where the base is *ignored*, a `base_model` that is not listed under `models` "
        "is merged in as one more model, as mergekit does; plait says so.\n\n"
        "## Bricks\n\n"
        "Steps before a method (`pre:`, on each model's difference to the base) and after it (`post:`, on the merged one). They "
        "stand around any method; see [Recipes](recipes.md#before-and-after-a-method).\n\n"
        "| brick | stands | what it does |\n|---|---|---|\n"
        + "".join(f"| [{b.name}](bricks/{b.name}.md) | {b.at} | {b.summary} |\n" for b in bricks().values() if _ours(b))
    )


def _page(method: Method) -> str:
    parts = _head(method)
    parts.append(
        f"Models: {_models(method)}{'' if method.base == 'ignored' else ', besides the base'}. Base: {method.base}."
    )
    parts.append(f"```yaml\n{yaml.safe_dump(recipe(method), sort_keys=False)}```")
    parts += ["## Parameters", _table(method.parameters) if method.parameters else "None."]
    if method.idle:
        parts.append(f"Accepted without effect: {', '.join(f'`{name}`' for name in method.idle)}.")
    return _joined([*parts, *_foot(method)])


def _brick(brick: Brick) -> str:
    values = {p.name: EXAMPLES.get(f"{brick.name}.{p.name}") for p in brick.parameters if p.required}
    example = {**recipe(registry()["task_arithmetic"]), brick.at: [{brick.name: values} if values else brick.name]}
    place = "before a method" if brick.at == "pre" else "after a method"
    parts = [*_head(brick), f"Stands {place}, under `{brick.at}:`; needs a base."]
    parts += [f"```yaml\n{yaml.safe_dump(example, sort_keys=False)}```", "## Parameters", _table(brick.parameters)]
    return _joined([*parts, *_foot(brick)])


def _head(part: Declared) -> list[str]:
    doc = re.sub(r"\n*^Reference:.*\Z", "", part.doc, flags=re.M | re.S).strip()
    summary, _, rest = doc.partition("\n")
    return [NOTE, f"# {part.name}", summary, rest.strip()]


def _foot(part: Declared) -> list[str]:
    return ["## Reference", re.sub(r"(https?://\S+)", r"<\1>", part.reference)]


def _joined(parts: list[str]) -> str:
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(parameters: tuple[Parameter, ...]) -> str:
    rows = "".join(
        f"| `{p.name}` | {p.doc} | {p.range} | {'each model' if p.per_model else 'all'} | {_default(p)} |\n"
        for p in parameters
    )
    return "| name | meaning | value | for | default |\n|---|---|---|---|---|\n" + rows.rstrip()


def _default(p: Parameter) -> str:
    return "required" if p.required else "none" if p.default is None else f"`{number(p.default)}`"


def _models(method: Method) -> str:
    fewest, most = method.inputs
    return str(fewest) if fewest == most else f"{fewest} or more" if most is None else f"{fewest} to {most}"


def recipe(method: Method) -> dict[str, Any]:
    """A small recipe for a method, on the models that `plait demo` lays out."""
    fewest, most = method.inputs
    count = max(fewest, min(2, most or 2))
    values = {
        p.name: EXAMPLES.get(f"{method.name}.{p.name}", EXAMPLES.get(p.name))
        for p in method.parameters
        if p.required or p.name in EXAMPLES
    }
    own = {p.name: values[p.name] for p in method.parameters if p.name in values and p.per_model}
    shared = {name: value for name, value in values.items() if name not in own}
    return {
        "merge_method": method.name,
        **({"base_model": "demo/models/base"} if method.base == "required" else {}),
        "models": [{"model": model, **({"parameters": dict(own)} if own else {})} for model in MODELS[:count]],
        **({"parameters": shared} if shared else {}),
        "dtype": "bfloat16",
    }


# -- the command line


def _cli() -> str:
    context = click.Context(cli, info_name="plait")
    verbs = dict(_verbs(cli, context))
    head = (
        f"{NOTE}\n\n# Command line\n\n"
        "`plait VERB --help` prints what stands here. Facts go to standard output, everything else to standard error. "
        "Exit codes: 0 done, 2 there is something for you to [mend](errors.md), 1 a bug in plait.\n"
    )
    rows = "".join(
        f"| [plait {n}](#plait-{n.replace(' ', '-')}) | {_text(c).split('. ')[0].rstrip('.')} |\n"
        for n, c in verbs.items()
    )
    return "\n".join([head, "| verb | |\n|---|---|\n" + rows, *(_verb(name, c) for name, c in verbs.items())])


def _verbs(group: click.Group, context: click.Context, prefix: str = "") -> Iterator[tuple[str, click.Command]]:
    """Every verb, and the operations of a verb that has some."""
    for name in group.list_commands(context):
        if command := group.get_command(context, name):
            if isinstance(command, click.Group):
                yield from _verbs(command, context, f"{prefix}{name} ")
            else:
                yield f"{prefix}{name}", command


def _text(command: click.Command) -> str:
    return re.sub(r"\s+", " ", command.help or "").strip()


def _verb(name: str, command: click.Command) -> str:
    usage = " ".join(_argument(p) for p in command.params if isinstance(p, click.Argument))
    help_ = re.sub(r"\n\s*\n", "\n\n", re.sub(r"[ ]*\n[ ]*(?!\n)", "\n", command.help or "")).strip()
    rows, idle = [], []
    for p in command.params:
        if isinstance(p, click.Option):
            if p.help == "Nothing to do.":
                idle.append(f"`{p.opts[0]}`")
            else:
                rows.append(f"| {_spelling(p)} | {_meaning(p)} |\n")
    text = f"## plait {name}\n\n```text\nplait {name} [OPTIONS] {usage}".rstrip() + f"\n```\n\n{help_}\n"
    if rows:
        text += "\n| option | |\n|---|---|\n" + "".join(rows)
    if idle:
        text += f"\nAccepted because mergekit has them, with nothing to do here: {', '.join(idle)}.\n"
    return text


def _argument(p: click.Argument) -> str:
    word = (p.name or "").upper()
    return f"{word}..." if p.nargs == -1 else word if p.required else f"[{word}]"


def _spelling(p: click.Option) -> str:
    kind = "" if p.is_flag or p.count else f" {_metavar(p)}"
    return ", ".join(f"`{word}{kind}`" for word in [*p.opts, *p.secondary_opts])


def _metavar(p: click.Option) -> str:
    if p.metavar:
        return p.metavar
    name = p.type.name.upper().split()[0]
    return {"INTEGER": "N", "PATH": "PATH"}.get(name, name)


def _meaning(p: click.Option) -> str:
    text = re.sub(r"\s*\[default: (.+?)\]", r" Default: \1.", p.help or "")
    return f"{text} Default: {p.default}." if p.show_default is True else text


def write() -> None:
    """Write every generated page, and remove those of methods that are no more."""
    wanted = pages()
    for name, text in wanted.items():
        (DOCS / name).parent.mkdir(exist_ok=True)
        (DOCS / name).write_text(text, "utf-8")
    for name in stale():
        (DOCS / name).unlink()


if __name__ == "__main__":
    found, check = stale(), "--check" in sys.argv
    for page in found:
        print(f"docs/{page} {'is out of date: run python docs/generate.py' if check else 'written'}")
    if check:
        sys.exit(1 if found else 0)
    write()

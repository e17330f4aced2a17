"""Run the code blocks of a page, in order, in a new folder that holds the demo's models in `demo/`.

yaml      a recipe is checked and merged (only checked if its models are not there); parameters alone are tried in a recipe
python    is run; the blocks of a page share their names
text      titled "prints": what the python block before it prints
console   lines that begin with `$ plait` are run, the other lines are what they print; a line `…` stands for any lines
sh        lines that begin with `plait` are run

A title makes a block a file for the blocks after it (of python: instead of running it). A comment on the line before a block
changes what is wanted: `<!-- wrong: WHY -->` a recipe with problems, `<!-- not run: WHY -->` nothing.

python docs/run.py [PAGE...]   writes into the pages what the commands print now
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

import plait
from plait import cli, fit, moe
from plait.demo.story import unpack
from plait.merged import Merge
from plait.methods import registry
from plait.recipe import load

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r'(?:^<!-- (wrong|not run): .+? -->\n)?^```(\w+)(?: title="(.+?)")?\n(.*?)^```$', re.M | re.S)
#: what differs from run to run: times, rates, and what depends on the number of cores
VARYING = re.compile(r"\b\d[\d.]* (?:s|[KMG]?B/s)(?!\w)|(?<=on )\d+(?= threads)|(?<=holds )\S+ \w+")
#: recipes in which parameters are tried that stand alone in a block
AROUND = {
    "ties": "base_model: demo/models/base\nmodels: [{model: demo/models/add}, {model: demo/models/rev}]\n",
    "slerp": "base_model: demo/models/add\nmodels: [{model: demo/models/rev}]\n",
    "passthrough": "models: [{model: demo/models/base}]\n",
}


def pages() -> list[Path]:
    """README.md and every page of docs/."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def rerun(text: str) -> str:
    """The text of a page with what its commands print now; raises `AssertionError` for a block that does not hold."""
    names: dict[str, Any] = {"__name__": "page"}
    printed = ""

    def run(match: re.Match[str]) -> str:
        nonlocal printed
        mark, language, title, body = match.groups()
        result = body
        try:
            if mark == "not run":
                pass
            elif language == "yaml":
                _recipe(body, mark == "wrong")
            elif language == "python" and not title:
                with contextlib.redirect_stdout(io.StringIO()) as out:
                    exec(compile(body, "page", "exec"), names)
                printed = out.getvalue()
            elif language == "text" and title == "prints":
                result = body if _alike(body, printed) else printed
            elif language in ("console", "sh"):
                result = "".join(_commands(body, "$ " if language == "console" else ""))
        except Exception as error:
            line = text.count("\n", 0, match.start(4)) + 1
            raise AssertionError(f"the block on line {line}: {type(error).__name__}: {error}") from error
        if title and language in ("yaml", "python"):
            Path(title).write_text(body, "utf-8")
        start, end = match.start(4) - match.start(), match.end(4) - match.start()
        return match[0][:start] + result + match[0][end:]

    with _folder():
        return BLOCK.sub(run, text)


@contextlib.contextmanager
def _folder() -> Iterator[None]:
    before, path, modules, cache = Path.cwd(), list(sys.path), set(sys.modules), os.environ.get("XDG_CACHE_HOME")
    with tempfile.TemporaryDirectory() as folder:
        unpack(Path(folder, "demo"))
        os.chdir(folder)
        os.environ["XDG_CACHE_HOME"] = folder  # where `plait eval` keeps answers
        sys.path.insert(0, folder)
        try:
            yield
        finally:
            os.chdir(before)
            os.environ.pop("XDG_CACHE_HOME")
            os.environ.update({"XDG_CACHE_HOME": cache} if cache else {})
            sys.path[:] = path
            for name in set(sys.modules) - modules:
                if str(getattr(sys.modules[name], "__file__", "")).startswith(folder):
                    del sys.modules[name]


def _recipe(text: str, wrong: bool) -> None:
    *stages, parameters = yaml.safe_load_all(text)
    if "experts" in parameters and not wrong:
        with tempfile.TemporaryDirectory() as out:
            Merge(moe.prepare(text).plan).save(out)
        return
    if "merge_method" not in parameters and not wrong:
        fitting = (m for m in AROUND if parameters.keys() <= {p.name for p in registry()[m].parameters})
        method = next(fitting)
        weight = "  weight: 1\n" if method == "ties" and "weight" not in parameters else ""
        body = "".join(f"  {line}" for line in text.splitlines(keepends=True))
        text = f"merge_method: {method}\n{AROUND[method]}parameters:\n{weight}{body}"
    if wrong:
        assert plait.check(text), "nothing is wrong with it"
        return
    recipe = text if stages else load(text)
    if not stages and any(not ref.recipe and not Path(ref.path).exists() for ref in recipe.references()):
        problems, warnings = fit.problems(recipe)
        assert (problems, warnings) == ([], []), [*problems, *warnings]
        return
    with tempfile.TemporaryDirectory() as out:
        plait.merge(recipe).save(out)


def _commands(body: str, prompt: str) -> Iterator[str]:
    """The lines of a console: commands as they are, what they print as it is now, unless that is alike."""
    wanted = re.split(rf"^(?={re.escape(prompt)}\w)", body, flags=re.M)
    code = 0
    for part in wanted:
        command, _, output = part.partition("\n")
        words = shlex.split(command.removeprefix(prompt), comments=True)
        if words[:1] == ["plait"]:
            code, now = _plait(words[1:])
            assert prompt or code == 0, now
        elif words == ["echo", "$?"]:
            now = f"{code}\n"
        else:
            assert not prompt or not words, f"cannot run {command}"
            yield part
            continue
        yield f"{command}\n{output if not prompt or _alike(output, now) else now}"


def _plait(words: list[str]) -> tuple[int, str]:
    """(exit code, what it prints) of the command line."""
    code: object = 0
    with io.StringIO() as out, contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            cli.main(words)
        except SystemExit as done:
            code = done.code
        return int(str(code or 0)), out.getvalue().replace(os.getcwd(), "/home/you")


def _alike(shown: str, now: str) -> bool:
    """Whether a page may show `shown` for the output `now`: equal but for what varies, `…` standing for any lines."""
    parts = [re.escape(VARYING.sub("#", part)) for part in re.split(r"^…\n", shown, flags=re.M)]
    return re.fullmatch("(?:.*\n)*".join(parts), VARYING.sub("#", now)) is not None


if __name__ == "__main__":
    for page in [Path(name).resolve() for name in sys.argv[1:]] or pages():
        old = page.read_text("utf-8")
        new = rerun(old)
        if new != old:
            page.write_text(new, "utf-8")
            print(f"{page.relative_to(ROOT)} written")

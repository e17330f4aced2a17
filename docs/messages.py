"""Every message of plait's errors, out of the source's syntax tree: the page docs/messages.md."""

from __future__ import annotations

import ast
import functools
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import plait

HOUSE = Path(plait.__file__).parent
DOCS = Path(__file__).parent
HEAD = """
# Every message

What plait can say when there is something for you to mend: the sentence, what was wanted, what to do. Words in *italics*
are filled in; … stands for words that are put together elsewhere, / for one or the other. What was found is told with it.
[Errors](errors.md) says how errors read, and shows common ones.
"""
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Site:
    """A place in the source that makes an error."""

    path: str  # below src/plait
    line: int
    last: int  # of the lines of its call
    indent: int  # of its statement
    error: str  # the class
    parts: dict[str, ast.expr]  # what, wanted, found, do, where: those that are given
    within: Function | None
    module: ast.Module


@functools.cache
def sites() -> list[Site]:
    """Every construction of a `PlaitError` or of a class made of it in plait, in the order of the source."""
    return read({path.relative_to(HOUSE).as_posix(): path.read_text("utf-8") for path in HOUSE.rglob("*.py")})


def read(sources: dict[str, str]) -> list[Site]:
    """The same of any sources: path -> text."""
    trees = {path: ast.parse(text) for path, text in sources.items()}
    classes = [node for tree in trees.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    errors = {"PlaitError"}
    while more := {c.name for c in classes if errors & {_name(base) for base in c.bases}} - errors:
        errors |= more
    own = {c.name for c in classes if any(isinstance(f, Function) and f.name == "__init__" for f in c.body)}
    own.discard("PlaitError")
    found = []
    for path, tree in sorted(trees.items()):
        for call, within, owner, indent in _calls(tree):
            above = ast.unparse(call.func) == "super().__init__"
            name = owner if above else _name(call.func)
            if name in (errors & own if above else errors - own):  # a class that words its error itself does so once
                parts = {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg}
                parts |= {"what": call.args[0]} if call.args else {}
                found.append(Site(path, call.lineno, call.end_lineno or 0, indent, name, parts, within, tree))
    return found


def _calls(
    node: ast.AST, within: Function | None = None, owner: str = "", indent: int = 0
) -> Iterator[tuple[ast.Call, Function | None, str, int]]:
    """Every call with the function and the class around it, and the column of its statement."""
    for child in ast.iter_child_nodes(node):
        column = child.col_offset if isinstance(child, ast.stmt) else indent
        if isinstance(child, ast.Call):
            yield child, within, owner, column
        inside = child if isinstance(child, Function) else within
        yield from _calls(child, inside, child.name if isinstance(child, ast.ClassDef) else owner, column)


Part = tuple[ast.expr | None, Site]  # an expression, and the place where it stands


def _apart(site: Site) -> list[dict[str, Part]]:
    """The parts of a site; when its sentence is a parameter of the function around, once for each call of that."""
    parts: dict[str, Part] = {part: (node, site) for part, node in site.parts.items()}
    function, parameters = site.within, _parameters(site.within)
    names = {part: _name(node) for part, node in site.parts.items()}
    passed = {part for part, name in names.items() if name in parameters and not _before(name, site)}
    if function is None or "what" not in passed:
        return [parts]
    apart = []
    for call, within, _, indent in _calls(site.module):
        if _name(call.func) == function.name:
            at = replace(site, line=call.lineno, indent=indent, within=within)
            values = {part: _passed(call, names[part], parameters) for part in passed}
            given: dict[str, Part] = {part: (found[0], at) for part, found in values.items() if found}
            apart.append({part: node for part, node in parts.items() if part not in passed} | given)
    return apart or [parts]


def _parameters(function: Function | None) -> list[str]:
    return [a.arg for a in function.args.args] if function else []


def _name(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


@functools.cache
def page() -> str:
    """The page: a table for each room, in the order of the README's tree of the house."""
    readme = (DOCS.parent / "README.md").read_text("utf-8")
    tree = re.findall(r"^  (\w+)(?:\.py|/) +(.+)$", readme.split("\nsrc/plait/\n", 1)[1].split("```")[0], re.M)
    rooms: dict[str, set[tuple[str, ...]]] = {room: set() for room, _ in tree}
    for site in sites():
        room = site.path.split("/")[0].removesuffix(".py")
        if room in rooms and site.path != "errors.py":
            rooms[room].update(rows(site))
    text = HEAD
    for room, words in tree:
        if rooms[room]:
            table = sorted(
                rooms[room], key=lambda row: [re.sub(r"[\\*…'\"]", "", part).strip().lower() for part in row]
            )
            text += f"\n## {words[0].upper()}{words[1:]}\n\nIn `{room}`.\n\n| the message says | wanted | do |\n|---|---|---|\n"
            text += "".join(f"| {' | '.join(row)} |\n".replace("**", "* *") for row in table)
    return text


def rows(site: Site) -> Iterator[tuple[str, ...]]:
    """What a site may say: sentence, wanted, do."""
    for parts in _apart(site):
        whats, wanted, do = (texts(*parts.get(part, (None, site))) for part in ("what", "wanted", "do"))
        yield from ((what, " / ".join(wanted), " / ".join(do)) for what in whats if re.search(r"[^\W_]", what))


def texts(node: ast.expr | None, site: Site, depth: int = 0) -> list[str]:
    """What an expression may read as, in Markdown: one text for each way through the code, … for what is not known."""
    match node:
        case None | ast.Constant(value=None):
            return []
        case ast.Constant(value=str(word)):
            return [_plain(word)]
        case ast.JoinedStr(values=values):
            return ["".join(_plain(v.value) if isinstance(v, ast.Constant) else _field(v) for v in values)]  # type: ignore[arg-type]
        case ast.IfExp(body=one, orelse=other) | ast.BoolOp(values=[one, other]):
            return _once([*texts(one, site, depth), *texts(other, site, depth)])
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _once([a + b for a in texts(left, site, depth) for b in texts(right, site, depth)])
        case ast.Name(id=name) if depth < 4:
            known = _values(name, site)
            return _once([text for value in known for text in texts(value, site, depth + 1)]) or ["…"]
    return [_field(node)] if isinstance(node, ast.Call) else ["…"]


def _values(name: str, site: Site) -> list[ast.expr]:
    """What a name may hold: by the lines before, by the calls of the function, or by the top of the file."""
    function, parameters = site.within, _parameters(site.within)
    if found := _before(name, site):
        return found
    if function is None or name not in parameters:
        return _given(name, site.module)
    calls = [n for n in ast.walk(site.module) if isinstance(n, ast.Call) and _name(n.func) == function.name]
    return [value for call in calls for value in _passed(call, name, parameters)]


def _before(name: str, site: Site) -> list[ast.expr]:
    return _given(name, site.within, site.line, site.indent) if site.within else []


def _passed(call: ast.Call, name: str, parameters: list[str]) -> list[ast.expr]:
    """What a call passes for a parameter: one expression, or none."""
    place = parameters.index(name) - (parameters[0] in ("self", "cls"))
    return [k.value for k in call.keywords if k.arg == name] or call.args[place : place + 1]


def _given(name: str, scope: ast.AST, before: int = sys.maxsize, indent: int = 0) -> list[ast.expr]:
    """The values of a name at a line: back to the first that every way to the line goes through."""
    found: list[tuple[ast.Assign, ast.expr]] = []
    for node in ast.walk(scope):
        if isinstance(node, ast.Assign) and node.lineno < before:
            for target in node.targets:
                together = isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple)
                pairs = zip(target.elts, node.value.elts, strict=False) if together else [(target, node.value)]  # type: ignore[attr-defined]
                found += [(node, value) for one, value in pairs if isinstance(one, ast.Name) and one.id == name]
    values = []
    for node, value in sorted(found, key=lambda pair: -pair[0].lineno):
        values.append(value)
        if node.col_offset <= indent:
            break
    return values[::-1]


def _field(node: ast.AST) -> str:
    """The name of what is filled in: the first that is no function's."""
    match node:
        case ast.FormattedValue(value=value) | ast.Subscript(value=value) | ast.Starred(value=value):
            return _field(value)
        case ast.Name(id=name) | ast.Attribute(attr=name) if name not in ("str", "repr"):
            return f"*{(name.lower() if name.isupper() else name).strip('_').replace('_', ' ')}*"
        case ast.Call(func=ast.Name(id="len")):
            return "*number*"
        case ast.Call(func=ast.Attribute(value=value), args=[]):
            return _field(value)
        case ast.Call(args=inner) | ast.BoolOp(values=inner):
            return next((word for word in map(_field, inner) if word != "…"), "…")
        case ast.GeneratorExp(generators=[ast.comprehension(iter=source), *_]):
            return _field(source)
    return "…"


def _plain(text: str) -> str:
    """A text with the marks of Markdown and HTML as themselves, on one line."""
    return re.sub(r"([\\`*\[\]<>|]|\b_|_\b)", r"\\\1", re.sub(r"\s*\n\s*", " ", text))


def _once(found: list[str]) -> list[str]:
    return list(dict.fromkeys(found))

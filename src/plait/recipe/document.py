"""YAML text to a tree of maps, lists and scalars that knows the line and column of everything in it.

The language is YAML 1.1 as PyYAML's safe loader reads it, without tags, and with limits on size and depth, so that any
text gives a tree or a `RecipeError` in bounded time. The tree's maps and lists are ordinary ones (`Map` is a dict,
`Seq` a list) that carry places beside their items.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from plait.errors import RecipeError, Where, raise_all
from plait.recipe.damage import damage, short

MAX_BYTES = 1 << 20
MAX_ITEMS = 100_000
MAX_DEPTH = 64
MAX_DIGITS = 100

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TAG = "tag:yaml.org,2002:"
_SCALARS = {_TAG + kind for kind in ("null", "bool", "int", "float", "str", "timestamp")}


class Map(dict[str, Any]):
    """A mapping; `keys_at` and `places` give the place of each key and of each value."""

    __slots__ = ("keys_at", "places", "where")

    def __init__(self, where: Where | None) -> None:
        super().__init__()
        self.where = where
        self.keys_at: dict[str, Where] = {}
        self.places: dict[str, Where] = {}


class Seq(list[Any]):
    """A list; `places` gives the place of each item."""

    __slots__ = ("places", "where")

    def __init__(self, where: Where | None) -> None:
        super().__init__()
        self.where = where
        self.places: list[Where] = []


def place(tree: object, *path: str | int) -> Where | None:
    """Where the value at `path` begins, or the nearest known place on the way to it; None in a tree made of no text."""
    where: Where | None = getattr(tree, "where", None)
    for step in path:
        if isinstance(tree, Map) and step in tree:
            where, tree = tree.places[str(step)], tree[str(step)]
        elif isinstance(tree, Seq) and isinstance(step, int) and step < len(tree):
            where, tree = tree.places[step], tree[step]
        else:
            break
    return where


def key_place(tree: object, key: str) -> Where | None:
    """Where the key `key` of a map stands, None in a tree made of no text."""
    return tree.keys_at.get(key) if isinstance(tree, Map) else None


def read(path: str | os.PathLike[str]) -> str:
    """The text of a recipe file; raises `RecipeError` when it cannot be read as text."""
    name = os.fspath(path)
    try:
        with open(name, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise RecipeError(f"there is no recipe {name}", wanted="a YAML file", do="check the path") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise RecipeError(
            f"the recipe {name!r} cannot be read", found=reason, do="give the path of a YAML file"
        ) from None
    if len(data) > MAX_BYTES:
        raise _too_large(Where(name))
    try:
        return data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError as error:
        where = Where(name, data.count(b"\n", 0, error.start) + 1)
        raise RecipeError(
            "the recipe is not text",
            wanted="UTF-8",
            found=f"the byte 0x{data[error.start]:02x}" if error.start < len(data) else "an incomplete character",
            do="save the file as UTF-8, and check that it is a recipe and not a model",
            where=where,
        ) from None


def parse(text: str, path: str) -> list[Any]:
    """The documents of a YAML text, without empty ones; `path` names the text in messages.

    Raises `RecipeError`, or `Problems` for several.
    """
    if len(text) > MAX_BYTES:
        raise _too_large(Where(path))
    try:
        text.encode()
        _measure(text, path)
        tree = _Tree(path)
        roots = [tree.build(node)[0] for node in yaml.compose_all(text, _Loader)]
    except UnicodeEncodeError as error:
        where = Where(path, text.count("\n", 0, error.start) + 1)
        found = "half a character (a lone surrogate)"
        raise RecipeError("the recipe is not text", wanted="UTF-8", found=found, do="delete it", where=where) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        found = f"the control character {error.character!r}"
        raise RecipeError("the recipe is not text", found=found, do="delete it", where=Where(path, line)) from None
    except yaml.YAMLError as error:
        if "maximum nesting depth" in str(error):
            raise _too_large(Where(path)) from None
        raise damage(error, text, path) from None
    raise_all(tree.problems)
    return [root for root in roots if root is not None]


def plain(tree: object, depth: int = 0) -> Any:
    """A tree given as Python objects, copied: mappings, sequences, text, numbers, booleans, None, and paths as text."""
    if depth > MAX_DEPTH:
        raise RecipeError(
            f"the recipe is nested more than {MAX_DEPTH} levels deep",
            wanted=f"at most {MAX_DEPTH}",
            do="check that it does not contain itself",
        )
    if isinstance(tree, Mapping):
        for key in tree:
            if not isinstance(key, str):
                raise RecipeError(
                    f"the key {key!r} is not text", wanted="text", found=type(key).__name__, do="quote it"
                )
        return {str(key): plain(value, depth + 1) for key, value in tree.items()}
    if isinstance(tree, Sequence) and not isinstance(tree, str | bytes):
        return [plain(value, depth + 1) for value in tree]
    if isinstance(tree, os.PathLike):
        return os.fspath(tree)
    if tree is None or isinstance(tree, str | bool | int | float):
        return tree
    raise RecipeError(
        "a recipe holds mappings, lists, text, numbers, true, false and null",
        found=f"a {type(tree).__name__}",
        do="convert it",
    )


@dataclass(frozen=True)
class _Size:
    items: int
    depth: int


class _Tree:
    """Builds each composed node once; an alias is the same object again, counted as often as it stands."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.problems: list[RecipeError] = []
        self.built: dict[int, tuple[Any, _Size, yaml.Node]] = {}
        self.open: set[int] = set()
        self.scalars = yaml.SafeLoader("")

    def where(self, node: Any) -> Where:
        return Where(self.path, node.start_mark.line + 1, node.start_mark.column + 1)

    def build(self, node: yaml.Node) -> tuple[Any, _Size]:
        if id(node) in self.built:
            return self.built[id(node)][:2]
        if id(node) in self.open:
            found, do = "an alias of what it stands in", "write the entry out"
            raise RecipeError("an anchor contains itself", found=found, do=do, where=self.where(node))
        self.open.add(id(node))
        value, sizes = self._value(node)
        self.open.remove(id(node))
        size = _Size(1 + sum(s.items for s in sizes), 1 + max((s.depth for s in sizes), default=0))
        if size.items > MAX_ITEMS or size.depth > MAX_DEPTH:
            raise _too_large(self.where(node))
        self.built[id(node)] = value, size, node  # the node is kept so that its id stays its own
        return value, size

    def _value(self, node: yaml.Node) -> tuple[Any, list[_Size]]:
        if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
            return self._map(node)
        if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
            seq, sizes = Seq(self.where(node)), []
            quoted = node.flow_style and any(getattr(item, "style", None) == '"' for item in node.value)
            for item in node.value:
                if quoted and isinstance(item, yaml.ScalarNode) and not item.style and item.value.endswith('"'):
                    self._problem(
                        item,
                        f"{short(item.value)} has a quote at its end only",
                        "none at its start",
                        "add the missing quote",
                    )
                value, size = self.build(item)
                seq.append(value)
                seq.places.append(self.where(item))
                sizes.append(size)
            return seq, sizes
        if isinstance(node, yaml.ScalarNode) and node.tag in _SCALARS:
            return self._scalar(node), []
        if isinstance(node, yaml.ScalarNode) and node.tag in (_TAG + "value", _TAG + "merge"):
            return node.value, []
        self._problem(node, f"the tag {node.tag!r} is not understood in a recipe", "a tag of YAML", "delete the tag")
        return None, []

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        try:
            if node.tag in (_TAG + "int", _TAG + "float") and len(node.value) > MAX_DIGITS:
                raise ValueError  # it would take long to read, and longer to print
            return self.scalars.yaml_constructors[node.tag](self.scalars, node)
        except (ValueError, yaml.YAMLError, KeyError, OverflowError):
            kind = node.tag.split(":")[-1]
            self._problem(
                node, f"{short(node.value)} cannot be read as a {kind}", f"a value that looks like a {kind}", "quote it"
            )
            return None

    def _map(self, node: yaml.MappingNode) -> tuple[Map, list[_Size]]:
        result, sizes, merged = Map(self.where(node)), [], []
        for key_node, value_node in node.value:
            value, size = self.build(value_node)
            sizes.append(size)
            if key_node.tag == _TAG + "merge":
                merged += value if isinstance(value, list) else [value]
                continue
            key = self._key(key_node)
            if key is None:
                continue
            if key in result:
                first = result.keys_at[key]
                self._problem(
                    key_node, f"{key!r} is written twice", f"first on line {first.line}", "keep one of the two"
                )
            result[key] = value
            result.keys_at[key], result.places[key] = self.where(key_node), self.where(value_node)
        for other in merged:
            if not isinstance(other, Map):
                self._problem(node, "'<<' merges mappings only", "something else", "give it an anchor of a mapping")
                continue
            for key in [key for key in other if key not in result]:
                result[key] = other[key]
                result.keys_at[key], result.places[key] = other.keys_at[key], other.places[key]
        return result, sizes

    def _key(self, node: yaml.Node) -> str | None:
        key = self._scalar(node) if isinstance(node, yaml.ScalarNode) and node.tag in _SCALARS else node.value
        if isinstance(node, yaml.ScalarNode) and isinstance(key, str):
            return key
        if isinstance(node, yaml.ScalarNode):
            what = f"the key {short(node.value)} is read as a {type(key).__name__}"
            self._problem(node, what, "a key without quotes", "quote it")
        else:
            self._problem(node, "a key is a word", "a list or a mapping", "fill in the placeholder, or quote the text")
        return None

    def _problem(self, node: yaml.Node, what: str, found: str, do: str) -> None:
        self.problems.append(RecipeError(what, found=found, do=do, where=self.where(node)))


def _measure(text: str, path: str) -> None:
    # events come one by one, without recursion: nothing deep or long ever gets as far as the recursive composer
    depth = 0
    event: Any
    for count, event in enumerate(yaml.parse(text, _Loader)):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH or count > 2 * MAX_ITEMS:
            raise _too_large(Where(path, event.start_mark.line + 1, event.start_mark.column + 1))


def _too_large(where: Where) -> RecipeError:
    return RecipeError(
        "the recipe is too large or too deep",
        wanted=f"at most {MAX_BYTES >> 20} MiB, {MAX_ITEMS:,} entries (an alias counts in full) and {MAX_DEPTH} levels",
        do="check that the file is a recipe",
        where=where,
    )

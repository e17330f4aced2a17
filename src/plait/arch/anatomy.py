"""The anatomy of a model, inferred from tensor names, shapes and config.json; no template of any architecture.

The first number between dots in a name is the layer; a prefix whose numbers run 0..n-1 is a stack; the rest is loose.
Lists of plain Linear or convolution layers, prediction heads and the like are not stacks: their tensors are loose.
One stack: one module, `default`. Several: one module each, and one more, `multi_modal_projector`, for what joins them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

from plait.arch import names
from plait.arch.names import MODALITIES, Kind
from plait.arch.quirks import EXTRA_LAYERS
from plait.arch.ties import find_ties
from plait.errors import PlanError, Where, nearest
from plait.types import TensorSpec

Position = Literal["before", "layer", "after"]
Path = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Stack:
    """Numbered layers under one prefix; `layers[i]` has the suffixes of layer i in file order (a layer may have none)."""

    prefix: str  #: text before the layer's number: `model.layers.`
    layers: tuple[tuple[str, ...], ...]
    layer_key: Path | None = None  #: path of the config key that counts the layers
    extra: int = 0  #: layers at the end that `layer_key` does not count (multi-token prediction)

    @property
    def count(self) -> int:
        return len(self.layers)

    def name(self, layer: int, suffix: str) -> str:
        return f"{self.prefix}{layer}.{suffix}"


@dataclass(frozen=True, slots=True)
class Module:
    """A part that a recipe can address: at most one stack, and the loose tensors before and after it, in file order."""

    name: str
    stack: Stack | None
    before: tuple[str, ...]
    after: tuple[str, ...]

    @property
    def count(self) -> int:
        """Number of layers, 0 without a stack."""
        return self.stack.count if self.stack else 0

    def names(self) -> Iterator[str]:
        """Every tensor of the module: before the layers, layer by layer, after them."""
        yield from self.before
        if self.stack:
            for i, suffixes in enumerate(self.stack.layers):
                yield from (self.stack.name(i, suffix) for suffix in suffixes)
        yield from self.after


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor stands. `layer` is None and `suffix` the whole name for a loose tensor."""

    module: str
    layer: int | None
    suffix: str
    position: Position


@dataclass(frozen=True)
class Architecture:
    """Modules, vocabulary axes, ties and buffers of one model. Made by `infer`; compare the parts, not the whole."""

    modules: tuple[Module, ...]
    specs: Mapping[str, TensorSpec]
    vocabularies: frozenset[int]  #: every `vocab_size` of the config
    sizes: frozenset[int]  #: other sizes of the config, which a side may equal by chance
    embedding: str | None  #: the token embedding that the output head belongs to
    head: str | None  #: the output head over the vocabulary, in the file or, when tied, not
    tied: Mapping[str, str]  #: head (or second embedding, or bias) -> the tensor that it is one with
    buffers: frozenset[str]  #: tensors that the model's code makes anew; an input may lack them

    @cached_property
    def _stacks(self) -> dict[str, Module]:
        return {module.stack.prefix: module for module in self.modules if module.stack}

    @cached_property
    def senses(self) -> frozenset[str]:
        """What the model takes in besides text, by its tensors' names: vision, audio."""
        return frozenset(sense for name in self.specs for sense in names.senses(name))

    @cached_property
    def _loose(self) -> dict[str, Place]:
        sides: tuple[Position, Position] = ("before", "after")
        return {
            name: Place(module.name, None, name, side)
            for module in self.modules
            for side, loose in zip(sides, (module.before, module.after), strict=True)
            for name in loose
        }

    def place(self, name: str) -> Place:
        """The one place of a tensor, also in a layer beyond the last. Raises `KeyError` for an unknown loose name."""
        parts = names.numbered(name)
        if parts and (module := self._stacks.get(parts[0])):
            return Place(module.name, parts[1], parts[2], "layer")
        return self._loose[name]

    def module(self, name: str, where: Where | None = None) -> Module:
        """The module of that name or stack prefix (`model.layers`); `default` also means what no stack owns.

        Raises `PlanError` for an unknown name.
        """
        known = {module.stack.prefix.rstrip("."): module for module in reversed(self.modules) if module.stack}
        known |= dict.fromkeys(["default"], self.modules[-1]) if not self.modules[-1].stack else {}
        known |= {module.name: module for module in self.modules}
        if name in known:
            return known[name]
        guess = nearest(name, known)
        raise PlanError(
            f"the model has no module {name!r}",
            wanted="one of " + ", ".join(known),
            found=name,
            do=f"write {guess!r}" if guess else "name a module that `plait inspect` shows",
            where=where,
        )

    def vocab_axis(self, name: str) -> int | None:
        """The axis that spans the vocabulary, of token embeddings and output heads; None for other tensors.

        A token embedding has one whatever its rows (they may be padded). A tensor of unknown name has one when it is
        outside the layers and exactly one of its sides has the vocabulary's size, which no other size in the config equals.
        """
        shape = self.specs[name].shape
        axes = [axis for axis, size in enumerate(shape) if size in self.vocabularies]
        if names.TOKENS.search(name) and len(shape) == 2:
            return 0 if 0 in axes or not axes else axes[0]
        if names.HEAD.search(name):
            rows = {self.specs[n].shape[0] for n in self._token_embeddings}
            return axes[0] if axes else next((axis for axis, size in enumerate(shape) if size in rows), None)
        known = bool(names.numbered(name)) or len(axes) != 1 or shape[axes[0]] in self.sizes
        return None if known else axes[0]

    @cached_property
    def _token_embeddings(self) -> tuple[str, ...]:
        return tuple(n for n, spec in self.specs.items() if len(spec.shape) == 2 and names.TOKENS.search(n))

    def kind(self, name: str) -> Kind:
        """attention, mlp, norm, embedding, head, expert, router or other."""
        return names.kind_of(name)


def infer(specs: Mapping[str, TensorSpec], config: Mapping[str, Any]) -> Architecture:
    """The anatomy of the model with these tensors and this config.json (may be empty), in time linear in the names."""
    numbers: defaultdict[str, defaultdict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    size: Counter[str] = Counter()
    prefixes: dict[str, str | None] = {}
    for name, spec in specs.items():
        prefix, layer, suffix = names.numbered(name) or (None, 0, name)
        prefixes[name] = prefix
        if prefix is not None:
            numbers[prefix][layer].append(suffix)
            size[prefix] += spec.numel
    stacks = _main([s for prefix, found in numbers.items() if (s := _stack(prefix, found, config))], size)
    kept = {stack.prefix for stack in stacks}
    loose = [name for name, prefix in prefixes.items() if prefix not in kept]
    embedding, head, tied = find_ties(specs, config)
    return Architecture(
        modules=_modules(stacks, loose, size),
        specs=specs,
        vocabularies=frozenset(v for path, v in integers(config) if path[-1] == "vocab_size"),
        sizes=frozenset(v for path, v in integers(config) if "vocab" not in path[-1] and not path[-1].endswith("_id")),
        embedding=embedding,
        head=head,
        tied=tied,
        buffers=frozenset(n for n, spec in specs.items() if names.is_buffer(n, len(spec.shape), spec.floating)),
    )


def like(own: Architecture, reference: Architecture, *, depth: bool = False) -> Architecture:
    """`own` with the modules of `reference`, by tensor names: a text model then has a vision tower, without tensors in it.

    What `reference` has no module for stays in modules of its own. With `depth`, stacks are as deep as the reference's: layers
    are left out at the end, or are there without tensors; else that is done only for multi-token prediction layers.
    """
    shape = [(m.name, m.stack.prefix if m.stack else None, m.count) for m in own.modules]
    if shape == [(m.name, m.stack.prefix if m.stack else None, m.count) for m in reference.modules]:
        return own
    stacks = {m.stack.prefix: m.stack for m in own.modules if m.stack}
    known = {name for m in reference.modules for name in (*m.before, *m.after)}
    prefixes = {m.stack.prefix for m in reference.modules if m.stack}
    modules = []
    for module in reference.modules:
        before, after = ([n for n in side if n in own.specs] for side in (module.before, module.after))
        stack = module.stack and _as_deep(stacks.get(module.stack.prefix), module.stack, own.specs, depth)
        for mine in own.modules:
            if mine.stack and stack and mine.stack.prefix == stack.prefix:
                before += [n for n in mine.before if n not in known]
                after += [n for n in mine.after if n not in known]
        modules.append(Module(module.name, stack, tuple(before), tuple(after)))
    taken = {name for module in modules for name in module.names()}
    titles = {module.name for module in modules}
    for mine in own.modules:
        before, after = ([n for n in side if n not in taken] for side in (mine.before, mine.after))
        stack = mine.stack if mine.stack and mine.stack.prefix not in prefixes else None
        if before or after or stack:
            title = mine.name if mine.name not in titles else f"{mine.name} of its own"
            modules.append(Module(title, stack, tuple(before), tuple(after)))
    return replace(own, modules=tuple(modules))


def _as_deep(own: Stack | None, reference: Stack, specs: Mapping[str, TensorSpec], depth: bool) -> Stack:
    """The model's own stack, or an empty one of the reference's depth; cut or filled up to that where it may be."""
    if own is None:
        found: defaultdict[int, list[str]] = defaultdict(list)
        for name in specs:
            if (parts := names.numbered(name)) and parts[0] == reference.prefix:
                found[parts[1]].append(parts[2])
        own = Stack(reference.prefix, tuple(tuple(found.get(i, ())) for i in range(reference.count)))
    counts = {(own.count - own.extra), own.count} & {reference.count - reference.extra, reference.count}
    if own.count == reference.count or not (depth or counts):
        return own
    layers = (own.layers + ((),) * reference.count)[: reference.count]
    return replace(own, layers=layers, extra=reference.extra)


def integers(config: Mapping[str, Any], path: Path = ()) -> Iterator[tuple[Path, int]]:
    """Every integer of the config with its path, outermost first."""
    inner = []
    for key, value in config.items():
        if isinstance(value, Mapping):
            inner.append((key, value))
        elif isinstance(value, int) and not isinstance(value, bool):
            yield (*path, key), value
    for key, value in inner:
        yield from integers(value, (*path, key))


def _stack(prefix: str, found: Mapping[int, list[str]], config: Mapping[str, Any]) -> Stack | None:
    """The stack of a prefix, or None when it is a list of something else."""
    suffixes = {suffix for layer in found.values() for suffix in layer}
    if names.NOT_STACK.search(prefix) or len(suffixes) < 3 or not any("." in suffix for suffix in suffixes):
        return None
    count = max(found) + 1
    key, extra = _layer_key(prefix, count, config)
    # A gap is a layer that pruning left without weights, if the config counts it.
    if len(found) < count and (key is None or 2 * len(found) < count):
        return None
    return Stack(prefix, tuple(tuple(found.get(i, ())) for i in range(count)), key, extra)


def _layer_key(prefix: str, count: int, config: Mapping[str, Any]) -> tuple[Path | None, int]:
    """The config key that counts this stack's layers, by value and by the words that it shares with the prefix."""
    mine = names.words(prefix)
    keys = [
        (path, value, names.words(".".join(path)))
        for path, value in integers(config)
        if names.LAYERS.search(path[-1]) and not names.NOT_LAYERS.search(path[-1])
    ]
    modality = mine & MODALITIES
    if modality and any(modality & theirs for _, _, theirs in keys):
        keys = [key for key in keys if modality & key[2]]
    fits: list[tuple[int, Path, int]] = []
    for path, value, theirs in keys:
        parent = _at(config, path[:-1])
        extra = next((n for key in EXTRA_LAYERS if isinstance(n := parent.get(key), int)), 0)
        clash = (theirs & MODALITIES) - mine or (modality and "text" in theirs)
        clash = clash or any(
            {a} <= theirs - mine and b in mine for a, b in (("encoder", "decoder"), ("decoder", "encoder"))
        )
        if not clash and value in (count, count - extra):
            fits.append((2 * len(theirs & mine) - len(theirs - mine - {"text"}), path, count - value))
    if fits:
        # equal scores: the outermost, then the first in the config
        _, path, extra = max(fits, key=lambda fit: (fit[0], -len(fit[1])))
        return path, extra
    return _unwritten(mine, config), 0


def _unwritten(mine: frozenset[str], config: Mapping[str, Any]) -> Path | None:
    """The key that a part's config leaves to its class's default, as older files do (text_config of LLaVA)."""
    for key, value in config.items():
        theirs = names.words(key)
        if isinstance(value, Mapping) and theirs and theirs <= mine and theirs & (MODALITIES | {"text"}):
            return None if any(names.LAYERS.search(k) for k in value) else (key, "num_hidden_layers")
    return None


def _at(config: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
    for key in path:
        config = config[key]
    return config


def _main(stacks: list[Stack], size: Mapping[str, int]) -> list[Stack]:
    """The real stacks: counted by the config, or a modality's or coder's own, or a tenth of the largest at least.

    Of the stacks that one key counts, those with less than a fifth of the largest one's entries are something else.
    """
    largest = max((size[s.prefix] for s in stacks), default=0)
    claim = {s.layer_key: max(size[t.prefix] for t in stacks if t.layer_key == s.layer_key) for s in stacks}
    real = []
    for stack in stacks:
        entries = size[stack.prefix]
        if 5 * entries >= claim[stack.layer_key] if stack.layer_key else 10 * entries >= largest:
            real.append(stack)
    return real


def _modules(stacks: list[Stack], loose: list[str], size: Mapping[str, int]) -> tuple[Module, ...]:
    if len(stacks) < 2:
        before = tuple(name for name in loose if not names.after_layers(name))
        after = tuple(name for name in loose if names.after_layers(name))
        return (Module("default", stacks[0] if stacks else None, before, after),)
    title = _titles(stacks, size)
    roots = {_root(stack.prefix, [s.prefix for s in stacks]): stack.prefix for stack in stacks}
    entry, exit_ = _ends(stacks, size)
    sides: defaultdict[str, tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
    for name in loose:
        late = names.after_layers(name)
        owner = next((roots[root] for root in _prefixes(name) if root in roots), None)
        if owner is None:
            owner = "" if names.JOINT.search(name) else exit_ if late else entry
        sides[owner][late].append(name)
    modules = [Module(title[s.prefix], s, tuple(sides[s.prefix][0]), tuple(sides[s.prefix][1])) for s in stacks]
    if "" in sides:
        modules.append(Module("multi_modal_projector", None, tuple(sides[""][0] + sides[""][1]), ()))
    return tuple(modules)


def _prefixes(name: str) -> Iterator[str]:
    for i, letter in enumerate(name):
        if letter == ".":
            yield name[: i + 1]


def _root(prefix: str, others: list[str]) -> str:
    """The shortest dotted start of a stack's prefix that no other stack has."""
    return next(root for root in _prefixes(prefix) if sum(other.startswith(root) for other in others) == 1)


def _titles(stacks: list[Stack], size: Mapping[str, int]) -> dict[str, str]:
    """The usual name of each stack's module; the smaller of two with one name has its prefix, without the last dot."""
    titles: dict[str, str] = {}
    for stack in sorted(stacks, key=lambda s: -size[s.prefix]):
        found = names.words(stack.prefix)
        coder = "encoder" if "encoder" in found else "decoder"
        if special := found & {"qformer", "talker", "predictor"}:
            title = min(special)
        elif modality := found & MODALITIES:
            title = f"{min(modality)}_tower"
        elif "text" in found:
            title = f"text_{coder}"
        elif found & {"encoder", "decoder"}:
            title = coder
        else:
            title = "text_decoder"
        titles[stack.prefix] = title if title not in titles.values() else stack.prefix.rstrip(".")
    return titles


def _ends(stacks: list[Stack], size: Mapping[str, int]) -> tuple[str, str]:
    """Prefixes of the stacks that the token embeddings feed and that the heads follow."""
    found = {s.prefix: names.words(s.prefix) for s in stacks}
    text = [s.prefix for s in stacks if not found[s.prefix] & (MODALITIES | {"qformer", "talker"})] or list(found)
    main = max(text, key=lambda prefix: size[prefix])
    entry = next((p for p in text if "encoder" in found[p]), main)
    return entry, next((p for p in text if "decoder" in found[p]), main)

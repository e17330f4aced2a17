"""An adapter bound to a base: what happens to which tensor. Everything that does not fit is found here, from headers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from plait.checkpoint.adapter.files import Adapter, Factors
from plait.checkpoint.adapter.names import Names
from plait.errors import ModelError
from plait.types import MERGEABLE, TensorSpec

#: model types that store packed experts as [experts, in, out]; needed where in = out
_IN_OUT = ("gpt_oss", "llama4", "llama4_text", "aria", "aria_text")
_TABLES = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")
_HEADS = ("lm_head.weight", "embed_out.weight")


@dataclass(frozen=True)
class LowRank:
    """`left @ right` that is added: of `[groups, rows, rank]` and `[groups, rank, columns]`, made of A and B."""

    factors: Factors
    turned: bool = False  # the weight is stored as [in, out]
    experts: int = 1
    expert: int | None = None  # only this one
    rows: tuple[int, int] | None = None  # only these outputs


@dataclass(frozen=True)
class Change:
    """What an adapter does to one tensor: replace it, add to it, set rows of it, in this order. `source`: in the base."""

    source: str | None
    replaced: str | None = None
    low: LowRank | None = None
    bias: tuple[str, float] | None = None  # the adapter's tensor, and its factor
    rows: tuple[str, tuple[int, ...]] | None = None

    def added(self) -> Iterator[str]:
        """The adapter's tensors that are read besides the whole one."""
        factors = self.low.factors if self.low else None
        names = (factors.a, factors.b, factors.magnitude) if factors else ()
        yield from (name for name in (*names, self.bias and self.bias[0], self.rows and self.rows[0]) if name)


def bind(
    adapter: Adapter, specs: Mapping[str, TensorSpec], config: Mapping[str, Any]
) -> tuple[dict[str, Change], bool, int | None]:
    """name of the output -> change; whether a tied head has become a tensor of its own; how many tokens, if not the base's.

    Raises `ModelError`.
    """
    binder = _Binder(adapter, specs, config)
    for own, name in adapter.replaced.items():
        binder.add(binder.target(own, f"the whole tensor {own}"), replaced=name)
    for factors in sorted(adapter.factors, key=lambda f: not binder.plain(f)):
        for target, low in binder.low(factors):
            binder.add(target, low=low)
        if factors.bias:
            target = binder.target(f"{factors.module}.bias", f"a change of the bias of {factors.module}")
            binder.add(target, bias=(factors.bias, factors.scale))
    for module, name in adapter.tokens.items():
        binder.add(binder.target(f"{module}.weight", f"rows of {module}"), rows=(name, binder.tokens(module, name)))
    return *binder.finish(), binder.rows()


class _Binder:
    def __init__(self, adapter: Adapter, specs: Mapping[str, TensorSpec], config: Mapping[str, Any]) -> None:
        self.adapter, self.specs, self.config = adapter, specs, config
        self.names = Names(specs)
        self.changes: dict[str, Change] = {}
        self.turned = adapter.settings.transposed
        text = config.get("text_config")
        inner = text if isinstance(text, dict) else {}
        self.tied = config.get("tie_word_embeddings", inner.get("tie_word_embeddings", False)) is True
        table = next((name for name in specs if name.endswith(_TABLES[:2])), None) if self.tied else None
        self.table = None if "lm_head.weight" in specs else table
        self.kinds = (config.get("model_type"), inner.get("model_type"))

    def add(self, target: str, **more: Any) -> None:
        source = target if target in self.specs else self.table
        self.changes[target] = replace(self.changes.get(target) or Change(source), **more)
        self._check(target)

    def target(self, name: str, what: str) -> str:
        if name == "lm_head.weight" and self.table:
            return name
        found = self.names.find(name)
        if found is None:
            raise ModelError(
                f"the adapter {self.adapter.folder} has {what}, and its base has no such tensor",
                wanted=f"{name} in the base",
                found=f"{len(self.specs)} tensors, none or several that could be meant",
                do="name the base that the adapter was trained on, with the same head",
            )
        return found

    def plain(self, factors: Factors) -> bool:
        """Whether shapes alone tell how the weight is stored; these modules come first and decide for the others."""
        spec = self.specs.get(f"{factors.module}.weight")
        return spec is None or len(spec.shape) != 2 or spec.shape[0] != spec.shape[1]

    def low(self, factors: Factors) -> Iterator[tuple[str, LowRank]]:
        """The tensors of the base that a pair of factors changes."""
        a, b = self._shapes(factors)
        found = self.names.find(f"{factors.module}.weight")
        if factors.embedding:
            yield (
                self.target(f"{factors.module}.weight", f"factors for {factors.module}"),
                LowRank(factors, turned=True),
            )
        elif factors.inner is not None and found is None:
            yield from self._parameter(factors, a, b)
        else:
            target = self.target(f"{factors.module}.weight", f"factors for {factors.module}")
            factors = self._ranked(factors, "weight", 1)
            shape = self._spec(target).shape
            out, inside = b[0], math.prod(a[1:])
            if len(shape) == 2 and shape == (inside, out) and shape != (out, inside):
                self.turned = True
            turned = len(shape) == 2 and shape == (inside, out) and self.turned
            yield target, LowRank(factors, turned)

    def _parameter(self, factors: Factors, a: tuple[int, ...], b: tuple[int, ...]) -> Iterator[tuple[str, LowRank]]:
        """Experts that transformers holds packed: packed in the base too, or one matrix each."""
        held = [
            (name, self.names.packed(factors.module, name), self.names.experts(factors.module, name))
            for name in sorted(self.adapter.settings.parameters, key=_order)
        ]
        held = [each for each in held if each[1] or each[2]]
        if factors.inner is None or factors.inner >= len(held):
            self.target(f"{factors.module}.weight", f"factors for {factors.module}")
            raise AssertionError  # `target` has raised
        name, packed, single = held[factors.inner]
        spec = self._spec(packed or single[0][0])
        experts = spec.shape[0] if packed and spec.shape else len(single)
        factors = self._ranked(factors, name, experts)
        if packed:
            fits = {False: (experts, b[0], a[1]), True: (experts, a[1], b[0])}
            turned = [t for t, shape in fits.items() if shape == spec.shape]
            if len(turned) == 2:
                turned = [any(kind in _IN_OUT for kind in self.kinds)]
            yield packed, LowRank(factors, turned[0] if turned else False, experts)
            return
        for expert, parts in enumerate(single):
            start = 0
            for part in parts:
                stop = start + self._spec(part).shape[0]
                yield part, LowRank(factors, False, experts, expert, (start, stop))
                start = stop
            if start != b[0]:
                raise self._unfit(parts[0], f"{start} outputs of {name}", f"{b[0]} in the adapter")

    def _ranked(self, factors: Factors, name: str, experts: int) -> Factors:
        """The factors with the rank and scale of a parameter, which patterns may name with the module or by itself."""
        rows, _ = self._shapes(factors)
        if factors.inner is None:
            return factors
        settings, keys = self.adapter.settings, (f"{factors.module}.{name}", factors.module)
        key = next((key for key in keys if rows[0] == experts * settings.rank_of(key)), None)
        if key is None:
            wanted = f"{experts} x {settings.rank_of(keys[0])} rows of A, as {settings.path.name} says"
            raise self._unfit(f"{factors.module}.{name}", wanted, f"A {list(rows)}")
        return replace(factors, rank=settings.rank_of(key), scale=settings.scale_of(key))

    def tokens(self, module: str, name: str) -> tuple[int, ...]:
        ids, rows = self.adapter.settings.tokens_of(module), self.adapter.checkpoint.specs[name].shape
        target = self._spec(self.target(f"{module}.weight", f"rows of {module}"))
        if len(rows) != 2 or rows != (len(ids), target.shape[-1]) or any(i >= target.shape[0] for i in ids):
            raise self._unfit(f"{module}.weight", f"{len(ids)} rows out of {list(target.shape)}", str(list(rows)))
        return ids

    def _shapes(self, factors: Factors) -> tuple[tuple[int, ...], tuple[int, ...]]:
        specs = self.adapter.checkpoint.specs
        return specs[factors.a].shape, specs[factors.b].shape

    def _spec(self, target: str) -> TensorSpec:
        """The tensor as the adapter knew it: an embedding that it holds whole may have more or fewer rows than the base's."""
        spec = self.specs[target if target in self.specs else str(self.table)]
        change = self.changes.get(target)
        if change and change.replaced and target.endswith((*_TABLES, *_HEADS)):
            held = self.adapter.checkpoint.specs[change.replaced].shape
            if len(held) == len(spec.shape) == 2 and held[1] == spec.shape[1]:
                return TensorSpec(spec.dtype, held)
        return spec

    def _check(self, target: str) -> None:
        change, spec = self.changes[target], self._spec(target)
        if spec.dtype not in MERGEABLE:
            raise self._unfit(target, "floating numbers of 16 bits or more", str(spec))
        held = self.adapter.checkpoint.specs
        if change.replaced and held[change.replaced].shape != spec.shape:
            found = str(list(held[change.replaced].shape))
            raise self._unfit(target, f"{list(spec.shape)}, as in the base", f"{found} in the adapter")
        if change.replaced and held[change.replaced].dtype not in MERGEABLE:
            raise self._unfit(target, "floating numbers of 16 bits or more", str(held[change.replaced]))
        if change.bias and held[change.bias[0]].shape != spec.shape:
            raise self._unfit(target, str(list(spec.shape)), str(list(held[change.bias[0]].shape)))
        if change.low:
            a, b = self._shapes(change.low.factors)
            low = change.low
            inside, out = math.prod(a[1:]), low.rows[1] - low.rows[0] if low.rows else b[0]
            groups = 1 if low.expert is not None else low.experts
            rows, columns = (inside, out) if low.turned else (out, inside)
            head = math.prod(spec.shape[:2]) if groups > 1 else spec.shape[0] if spec.shape else 0
            fits = (groups * rows, columns) == (head, spec.numel // max(1, head)) and math.prod(b[2:]) == 1
            if not fits:
                raise self._unfit(target, f"{list(spec.shape)}, as in the base", f"A {list(a)}, B {list(b)}")
            if low.factors.magnitude:
                length = held[low.factors.magnitude].numel
                if length != (columns if low.turned else rows):
                    raise self._unfit(target, f"{rows} magnitudes", f"{length}")

    def _unfit(self, target: str, wanted: str, found: str) -> ModelError:
        return ModelError(
            f"the adapter {self.adapter.folder} does not fit its base at {target}",
            wanted=wanted,
            found=found,
            do="name the base that the adapter was trained on",
        )

    def finish(self) -> tuple[dict[str, Change], bool]:
        """Head and embedding that were one tensor are two, if the adapter changes only one of them, as PEFT runs it."""
        if self.table is None or self.adapter.settings.tying:
            if self.table and "lm_head.weight" in self.changes:
                head = self.changes.pop("lm_head.weight")
                self.changes.setdefault(self.table, replace(head, source=self.table))
            return self.changes, False
        table = self.changes.get(self.table)
        resized = self._spec(self.table).shape != self.specs[self.table].shape
        if "lm_head.weight" not in self.changes and table is not None and table.rows is None:
            if not resized:
                self.changes["lm_head.weight"] = Change(self.table)
            elif table.low:  # over a table that was saved to have the new rows, for both
                self.changes["lm_head.weight"] = Change(self.table, table.replaced)
        return self.changes, "lm_head.weight" in self.changes

    def rows(self) -> int | None:
        """How many tokens the adapter was trained with, where that is not the base's number. All tables must agree in it."""
        words = [name for name in (*self.specs, *self.changes) if name.endswith((*_TABLES, *_HEADS))]
        counts = {name: self._spec(name).shape[0] for name in words if len(self._spec(name).shape) == 2}
        if all(self._spec(name).shape == self.specs.get(name, self._spec(name)).shape for name in words):
            return None
        if len(set(counts.values())) > 1:
            raise self._unfit(
                next(name for name in words if name in self.changes),
                "as many rows in the embedding as in the head",
                ", ".join(f"{name}: {rows}" for name, rows in counts.items()),
            )
        return next(iter(counts.values()))


def _order(parameter: str) -> tuple[bool, str]:
    """The order in which a module of experts declares its parameters."""
    return (not parameter.startswith(("gate", "up")), parameter)

"""The changes of several adapters in coordinates that all of them share, where a merge method is cheap and loses nothing.

Of each module let Δ1 … Δn be the adapters' changes, of ranks r1 … rn. U are the left singular vectors of [Δ1 … Δn], V the right
ones of the Δ stacked on each other: at most R = r1 + … + rn directions each. Then Δi = U (Uᵀ Δi V) Vᵀ exactly, and a merge of
the cores Uᵀ Δi V, at most R × R, is a merge of the changes. What a method sees depends on the changes alone: not on how
an adapter shares a change out between its A and B, nor on the order of the adapters.

References: KnOTS, https://arxiv.org/abs/2410.19735; Core Space, https://arxiv.org/abs/2509.17786
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from plait.checkpoint import Rows, cut
from plait.checkpoint.adapter import Adapter, Factors
from plait.errors import ModelError
from plait.ops import spectral
from plait.types import TensorSpec

KEPT = 8  # modules whose shared directions are remembered


@dataclass(frozen=True)
class Site:
    """A module that at least one adapter changes: its factors in each adapter, and the sizes `[groups, out, rank] @ [.., in]`."""

    name: str
    factors: tuple[Factors | None, ...]
    ranks: tuple[int, ...]
    groups: int  # experts that are packed in one tensor, else 1
    out: int
    inside: int
    tail: tuple[int, ...]  # of a convolution: the kernel's shape

    @property
    def spec(self) -> TensorSpec:
        """Of the core."""
        rank = sum(self.ranks)
        shape = min(rank, self.out), min(rank, self.inside)
        return TensorSpec("F64", (self.groups, *shape) if self.groups > 1 else shape)

    @property
    def sample(self) -> Factors:
        return next(f for f in self.factors if f)


@dataclass(frozen=True)
class Shared:
    """The directions of one site: U `[groups, out, k]`, V `[groups, in, l]`, and the core of each adapter `[groups, k, l]`."""

    u: Tensor
    v: Tensor
    cores: tuple[Tensor, ...]


@dataclass
class Bases:
    """The sites of several adapters, and their shared directions, found when they are asked for."""

    adapters: Sequence[Adapter]
    sites: Mapping[str, Site] = field(init=False)
    biases: Mapping[str, tuple[Factors | None, ...]] = field(init=False)  # name of the bias -> in each adapter

    def __post_init__(self) -> None:
        self._held: OrderedDict[str, Shared] = OrderedDict()
        self._lock = threading.Lock()
        found: dict[str, list[Factors | None]] = {}
        for i, adapter in enumerate(self.adapters):
            for factors in adapter.factors:
                inner = f".{factors.inner}" if factors.inner else ""
                found.setdefault(f"{factors.module}{inner}", [None] * len(self.adapters))[i] = factors
        self.sites = {name: self._site(name, each) for name, each in found.items()}
        self.biases = {
            f"{name}.bias": tuple(f if f and f.bias else None for f in site.factors)
            for name, site in self.sites.items()
            if any(f and f.bias for f in site.factors)
        }

    def _site(self, name: str, factors: Sequence[Factors | None]) -> Site:
        seen: dict[tuple[Any, ...], str] = {}
        ranks = []
        for adapter, own in zip(self.adapters, factors, strict=True):
            ranks.append(own.rank if own else 0)
            if own:
                a, b = (adapter.checkpoint.specs[n].shape for n in (own.a, own.b))
                groups = a[0] // own.rank
                seen[(groups, b[0], TensorSpec("F32", a[1:]).numel, a[2:], own.embedding)] = str(adapter.folder)
        if len(seen) > 1:
            found = "; ".join(f"{where}: out {k[1]}, in {k[2]}" for k, where in seen.items())
            raise ModelError(
                f"the adapters differ in the shape of {name}",
                wanted="adapters of one base",
                found=found,
                do="merge adapters that were trained on the same model",
            )
        groups, out, inside, tail, _ = next(iter(seen))
        return Site(name, tuple(factors), tuple(ranks), groups, out, inside, tail)

    def sides(self, site: Site, number: int) -> tuple[Tensor, Tensor]:
        """(left, right) of one adapter's change, `[groups, out, rank]` and `[groups, rank, in]` in float64, scaled."""
        own = site.factors[number]
        if own is None:
            return torch.zeros(site.groups, site.out, 0).double(), torch.zeros(site.groups, 0, site.inside).double()
        a, b = (x.double() for x in self.adapters[number].read(own))
        a = a.reshape(site.groups, own.rank, site.inside)
        b = b.reshape(site.out, own.rank, site.groups).permute(2, 0, 1)
        return b * own.scale, a

    def shared(self, site: Site) -> Shared:
        with self._lock:
            if site.name not in self._held:
                self._held[site.name] = self._shared(site)
                while len(self._held) > KEPT:
                    self._held.popitem(last=False)
            self._held.move_to_end(site.name)
            return self._held[site.name]

    def _shared(self, site: Site) -> Shared:
        sides = [self.sides(site, i) for i in range(len(self.adapters))]
        k, m = site.spec.shape[-2:]
        us, vs = [], []
        for group in range(site.groups):
            pairs = [(left[group], right[group]) for left, right in sides]
            us.append(_directions([left @ _triangle(right.mT).mT for left, right in pairs], k))
            vs.append(_directions([right.mT @ _triangle(left).mT for left, right in pairs], m))
        u, v = torch.stack(us), torch.stack(vs)
        return Shared(u, v, tuple((u.mT @ left) @ (right @ v) for left, right in sides))

    def bias(self, name: str, number: int) -> Tensor | None:
        """One adapter's change of a bias, in float64."""
        own = self.biases[name][number]
        return self.adapters[number].checkpoint.read(own.bias).double() * own.scale if own and own.bias else None


def _triangle(x: Tensor) -> Tensor:
    """R of x = Q R."""
    r: Tensor = torch.linalg.qr(x, mode="r").R
    return r


def _directions(parts: Sequence[Tensor], count: int) -> Tensor:
    """The left singular vectors of the parts side by side, as columns; filled up with zeros to `count`."""
    u, _, _ = spectral.svd(torch.cat(list(parts), dim=1))
    return torch.nn.functional.pad(u, (0, count - u.shape[1]))


class Cores:
    """One adapter's changes as a `Checkpoint`: the cores, named as the weights, and the biases; zeros where it has none.

    `number` None: the base, all zeros.
    """

    def __init__(self, bases: Bases, number: int | None) -> None:
        self._bases, self._number = bases, number
        self.config: Mapping[str, Any] = {}
        specs = {f"{name}.weight": site.spec for name, site in bases.sites.items()}
        specs |= {name: TensorSpec("F64", (bases.sites[name.removesuffix(".bias")].out,)) for name in bases.biases}
        self.specs: Mapping[str, TensorSpec] = specs

    def read(self, name: str, rows: Rows | None = None) -> Tensor:
        whole = torch.zeros(self.specs[name].shape, dtype=torch.float64)
        if self._number is not None and name in self._bases.biases:
            found = self._bases.bias(name, self._number)
            whole = whole if found is None else found
        elif self._number is not None:
            site = self._bases.sites[name.removesuffix(".weight")]
            whole = self._bases.shared(site).cores[self._number].reshape(whole.shape)
        return cut(whole, rows)

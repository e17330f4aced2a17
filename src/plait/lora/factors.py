"""A module of the merged adapter: its A and B, exactly where the merge is a sum, else of its core; and how PEFT stores them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod, sqrt

import torch
from torch import Tensor

from plait.lora.core import Bases, Site
from plait.lora.limit import Limit, Narrow, narrow
from plait.lora.report import Row
from plait.plan import Plan, Step
from plait.run import tensor


def factored(
    plan: Plan,
    step: Step,
    bases: Bases,
    site: Site,
    numbers: Sequence[int | None],
    limit: Limit | None,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Row]:
    """B `[groups, out, rank]` and A `[groups, rank, in]`, rounded to `dtype`, and what is left out.

    `numbers`: which adapter each model of the plan is, None for a base of zeros. Without a `limit` nothing is left out.
    """
    shares = coefficients(step) if limit is None else None
    if shares is not None:
        sides = [(bases.sides(site, number), share) for i, share in shares if (number := numbers[i]) is not None]
        left = torch.cat([b * share for (b, _), share in sides], dim=2)
        right = torch.cat([a for (_, a), _ in sides], dim=1)
        b, a = left.to(dtype), right.to(dtype)
    else:
        shared = bases.shared(site)
        core = tensor(plan, step).double().reshape(site.groups, *site.spec.shape[-2:])
        found = [narrow(x, limit or Limit(), site.name, plan.seed) for x in core]
        rank = max(each.rank for each in found)
        pairs = [_filled(each, rank) for each in found]
        b = (shared.u @ torch.stack([pair[0] for pair in pairs])).to(dtype)
        a = (torch.stack([pair[1] for pair in pairs]) @ shared.v.mT).to(dtype)
        left, right = shared.u @ core, shared.v.mT
    over, norm = _distance(left, right, b.double(), a.double())
    row = Row(site.sample.module, (site.out, site.inside), b.shape[2], over, norm)
    return b, a, row


def coefficients(step: Step) -> list[tuple[int, float]] | None:
    """(model, number) for each input of a step that is a sum of its inputs, each times a number; None for other steps."""
    models = [source.model for source in step.inputs]
    method = step.method
    if method is None:
        return [(models[0], 1.0)]
    if method.gives != "coefficients" or method.first is not None or not isinstance(step.params, method.params):
        return None
    found = list(zip(models, method(step.params, None), strict=True))
    if step.base and method.space == "delta":
        found.append((step.base.model, 1.0 - sum(number for _, number in found)))
    return found


def _filled(found: Narrow, rank: int) -> tuple[Tensor, Tensor]:
    """B and A with so many ranks: of experts in one tensor each has as many as the one with the most."""
    b, a = found.sides()
    more = rank - found.rank
    return torch.nn.functional.pad(b, (0, more)), torch.nn.functional.pad(a, (0, 0, 0, more))


def _distance(left: Tensor, right: Tensor, b: Tensor, a: Tensor) -> tuple[float, float]:
    """Frobenius norms of `left @ right - b @ a` and of `left @ right`, summed over the groups; never as whole matrices."""
    x, y = torch.cat([left, -b], dim=2), torch.cat([right, a], dim=1)
    return sqrt(_squared(x, y)), sqrt(_squared(left, right))


def _squared(x: Tensor, y: Tensor) -> float:
    """The squared norm of x @ y, through the triangles of both."""
    inner = torch.linalg.qr(x, mode="r").R @ torch.linalg.qr(y.mT, mode="r").R.mT
    return float(inner.square().sum())


def names(site: Site) -> tuple[str, str]:
    """What A and B are called in the file."""
    own = site.sample
    return own.a.replace(".default", ""), own.b.replace(".default", "")


def bias_name(site: Site) -> str:
    return names(site)[1].replace("lora_B.weight", "lora_B.bias")


def as_stored(site: Site, b: Tensor, a: Tensor) -> Iterator[Tensor]:
    """A, then B, in the shapes of PEFT's files."""
    rank = a.shape[1]
    yield a.reshape(site.groups * rank, site.inside).reshape(-1, *_inner(site)).contiguous()
    flat = b.permute(1, 2, 0).reshape(site.out, rank * site.groups).contiguous()
    yield flat.reshape(*flat.shape, *(1 for _ in site.tail))


def _inner(site: Site) -> tuple[int, ...]:
    return (site.inside // prod(site.tail), *site.tail)

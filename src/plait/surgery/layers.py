"""Orders of layers. A layer is (which model, its number)."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence

from plait.errors import PlaitError
from plait.recipe.write import Layer
from plait.strands import Model


def depth(models: Sequence[Model]) -> int:
    """How many layers each of the models has; raises `PlaitError` for no stack of layers, several, or another depth."""
    counts = []
    for model in models:
        stacks = [module.stack for module in model.arch.modules if module.stack]
        if len(stacks) != 1:
            raise PlaitError(
                f"{model.ref} has {len(stacks) or 'no'} stacks of layers",
                wanted="a model with one stack",
                found=", ".join(stack.prefix for stack in stacks) or "no numbered layers",
                do="write a recipe with modules:, and slices for each",
            )
        counts.append(stacks[0].count)
    if len(set(counts)) > 1:
        found = ", ".join(f"{model.ref}: {count}" for model, count in zip(models, counts, strict=True))
        what, do = "the models differ in depth", "choose models of one depth, or write a recipe with slices"
        raise PlaitError(what, wanted="the same number of layers", found=found, do=do)
    return counts[0]


def numbers(text: str, count: int) -> list[int]:
    """`3,8-11` -> [3, 8, 9, 10, 11], in the order given; both ends are meant.

    Raises `PlaitError` for a text that is not of this form, or a layer that is not among `count`.
    """
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        ends = [int(end) for end in match.groups() if end is not None] if match else []
        if not ends or not all(0 <= end < count for end in ends) or ends[0] > ends[-1]:
            raise PlaitError(
                f"{part.strip() or text!r} names no layers",
                wanted=f"numbers from 0 to {count - 1}, such as 3,8-11",
                found=text,
                do="both ends of a range are meant, and the smaller comes first",
            )
        found += range(ends[0], ends[-1] + 1)
    return found


def drop(count: int, gone: Iterable[int]) -> list[Layer]:
    """All layers but some; raises `PlaitError` when none is left."""
    lost = set(gone)
    kept = [(0, i) for i in range(count) if i not in lost]
    if not kept:
        what, do = "no layer is left", "name fewer, so that at least one stays"
        raise PlaitError(what, wanted="fewer layers to drop", found=f"all {count}", do=do)
    return kept


def repeat(count: int, again: Sequence[int], times: int) -> list[Layer]:
    """All layers, and after the last of `again` these once more, until they are there `times` times."""
    last = max(again)
    extra = [(0, i) for _ in range(times - 1) for i in again]
    return [*((0, i) for i in range(last + 1)), *extra, *((0, i) for i in range(last + 1, count))]


def upscale(count: int, overlap: int) -> list[Layer]:
    """Depth up-scaling: the model without its last layers, then the model without its first ones, 2 (count - m) layers.

    m is such that `overlap` = count - 2m layers are there twice. Raises `PlaitError` where m is no whole number.

    Reference: Kim et al., SOLAR 10.7B: Scaling Large Language Models with Simple yet Effective Depth Up-Scaling,
    https://arxiv.org/abs/2312.15166
    """
    m, odd = divmod(count - overlap, 2)
    if odd or not 0 < overlap < count:
        fitting = [n for n in range(1, count) if (count - n) % 2 == 0]
        raise PlaitError(
            f"{overlap} layers in the middle of {count} cannot be doubled",
            wanted=f"an overlap of {', '.join(map(str, fitting[:3]))} … {fitting[-1]}" if fitting else "more layers",
            found=str(overlap),
            do=f"pass --overlap {min(fitting, key=lambda n: abs(n - overlap))}" if fitting else "choose a deeper model",
        )
    return [*((0, i) for i in range(count - m)), *((0, i) for i in range(m, count))]


def shuffle(count: int, weights: Sequence[float], seed: int, everywhere: bool) -> list[Layer]:
    """Each layer from one of the models, drawn with these weights; with `everywhere` their order is random, too."""
    if min(weights) < 0 or not sum(weights):
        what, do = "the weights cannot be probabilities", "change the -w, or leave them out for equal ones"
        raise PlaitError(what, wanted="0 or more, not all 0", found=str(list(weights)), do=do)
    dice = random.Random(seed)
    order = list(range(count))
    if everywhere:
        dice.shuffle(order)
    return [(dice.choices(range(len(weights)), weights)[0], i) for i in order]

"""Which layers a model can best do without: by its weights alone, or by what its layers do to a text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plait.arch import Stack, infer
from plait.checkpoint import Checkpoint, Rows
from plait.diff import compare
from plait.diff.sides import Side
from plait.diff.sums import add
from plait.errors import PlaitError
from plait.evaluate.network import load, one_thread
from plait.types import TensorSpec

WINDOW = 512  # tokens that are run together


class Neighbours:
    """The layers of a checkpoint from number `start` on, all but one of them, numbered from 0."""

    def __init__(self, inner: Checkpoint, stack: Stack, start: int) -> None:
        pairs = [(i, suffix) for i in range(stack.count - 1) for suffix in stack.layers[start + i]]
        self._own = {stack.name(i, suffix): stack.name(start + i, suffix) for i, suffix in pairs}
        self._inner = inner
        self.config: Mapping[str, Any] = inner.config
        self.specs: Mapping[str, TensorSpec] = {name: inner.specs[own] for name, own in self._own.items()}

    def read(self, name: str, rows: Rows | None = None) -> Tensor:
        return self._inner.read(self._own[name], rows)


def by_weights(checkpoint: Checkpoint, stack: Stack) -> list[float]:
    """For each layer from the second on, the angle between its matrices and those of the layer before, / pi: 0 for a copy.

    It finds layers that were repeated. Of layers that were trained apart it says little, for they are all near 0.5.
    """
    sides = []
    for start in (0, 1):
        layers = Neighbours(checkpoint, stack, start)
        sides.append(Side("layers", "layers", layers, infer(layers.specs, layers.config), None))
    measured = compare(*sides, ranks=False).tensors
    found = []
    for layer in range(stack.count - 1):
        of_layer = (m.sums for m in measured if m.pair.columns > 1 and _number(m.pair.name, stack) == layer)
        sums = add(of_layer)
        found.append(math.acos(sums.cosine(0)) / math.pi if sums else 0.5)
    return found


def _number(name: str, stack: Stack) -> int:
    return int(name.removeprefix(stack.prefix).split(".")[0])


def least(angles: Sequence[float], count: int) -> list[int]:
    """The `count` layers that are most like the layer before, in their order; `angles` as `by_weights` gives them."""
    ranked = sorted(range(len(angles)), key=lambda i: (angles[i], i))
    return sorted(i + 1 for i in ranked[:count])


def by_text(folder: Path, text: str, gone: int) -> list[float]:
    """For each layer from which `gone` layers in a row could go, the angle between what enters it and what leaves the last
    of them, / pi, averaged over the tokens of a text.

    Reference: Gromov et al., The Unreasonable Ineffectiveness of the Deeper Layers, https://arxiv.org/abs/2403.17887. Raises what
    transformers has to say of a model that it cannot run, `PlaitError` for a text without tokens.
    """
    network, tokenizer = load(folder)
    ids = tokenizer(text, return_tensors="pt", verbose=False).input_ids
    if not ids.shape[1]:
        do = "write some into the file of --text, or leave --text out"
        raise PlaitError("the text has no tokens", wanted="some sentences", found="none", do=do)
    with torch.inference_mode(), one_thread():
        parts = [_angles(network, part, gone) for part in ids.split(WINDOW, dim=1)]
    weights = [part.shape[1] for part in ids.split(WINDOW, dim=1)]
    means = zip(*([a * w for a in part] for part, w in zip(parts, weights, strict=True)), strict=True)
    return [math.fsum(column) / sum(weights) for column in means]


def _angles(network: Any, ids: Tensor, gone: int) -> list[float]:
    """Mean angles of one window, / pi. The last state is taken before the final norm, which no layer does."""
    states: list[Tensor] = []
    stack = next(m for m in network.modules() if isinstance(m, torch.nn.ModuleList) and len(m) > 1)
    hooks = [layer.register_forward_pre_hook(lambda _, args: states.append(args[0])) for layer in stack]
    hooks.append(
        stack[-1].register_forward_hook(lambda _, __, out: states.append(out if torch.is_tensor(out) else out[0]))
    )
    try:
        network(ids)
    finally:
        for hook in hooks:
            hook.remove()
    wide = [state[0].double() for state in states]
    cosines = (torch.nn.functional.cosine_similarity(a, b, dim=-1) for a, b in zip(wide, wide[gone:], strict=False))
    return [float((torch.arccos(c.clamp(-1, 1)) / math.pi).mean()) for c in cosines]

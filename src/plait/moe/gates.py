"""The rows of a mixture's routers: for each expert what its prompts look like to the model, or random numbers.

    row = normed(v(positive prompts) - v(negative prompts))

With `cheap_embed`, v is the normed sum of the embeddings of all tokens of all prompts, in every layer the same. With `hidden` and
`hidden_last` it is the state that enters the layer at the last token of a prompt, with `hidden_avg` the mean over its tokens,
averaged over the prompts. `random` draws from the normal distribution, `uniform_random` between -1 and 1 over the root of the
hidden size; both are functions of seed, tensor, expert and entry.

Reference: mergekit's MoE configs, https://github.com/arcee-ai/mergekit/blob/main/docs/moe.md
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from plait.arch import Stack
from plait.checkpoint import Rows, cut, home
from plait.errors import ModelError, PlanError
from plait.evaluate.network import require_transformers
from plait.lazy import Tensor, torch
from plait.moe.states import Network, token_ids
from plait.ops.random import normal, uniform
from plait.recipe import kinds
from plait.recipe.kinds import ExpertKeys
from plait.strands import Model
from plait.types import TensorSpec
from plait.vocabulary.realign import Matrix

SMALL = 1e-8  # of a norm
NEAR = 0.999  # cosine from which on two rows say the same

Ids = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Gate:
    """Rows of a layer that are to be found, one an expert."""

    name: str
    layer: int
    experts: tuple[ExpertKeys, ...]


class Gates:
    """The routers as a checkpoint of float32 matrices [experts, hidden]; computed once, when the first row is read.

    `seed` may be set until then. Raises `PlaitError` at once for prompts and models that cannot be used.
    """

    def __init__(
        self,
        asked: kinds.Mixture,
        base: Model,
        stack: Stack,
        gates: tuple[Gate, ...],
        zeros: Mapping[str, tuple[int, ...]],
    ) -> None:
        self.seed = 0
        self.mode = asked.keys.gate_mode
        self._base, self._stack, self._gates = base, stack, gates
        first = stack.layers[0][0]
        self._embedding = _embedding(base, asked)
        self._hidden = base.opened.checkpoint.specs[self._embedding].shape[1]
        self.specs: Mapping[str, TensorSpec] = {
            **{gate.name: TensorSpec("F32", (len(gate.experts), self._hidden)) for gate in gates},
            **{name: TensorSpec("F32", shape) for name, shape in zeros.items()},
        }
        code = home(base.opened.checkpoint, stack.name(0, first))
        self.home: Mapping[str, str] = dict.fromkeys(self.specs, code)
        self.config: Mapping[str, Any] = {}
        self._rows: dict[str, Tensor] = {}
        self._lock = threading.Lock()
        self._prompts: dict[int, tuple[Ids, Ids]] = {}
        self._network: Network | None = None
        if "random" not in self.mode:
            self._read(asked)
            if self.mode != "cheap_embed":
                require_transformers()
                self._network = Network(base.opened, stack, asked.at("base_model"))

    def _read(self, asked: kinds.Mixture) -> None:
        """Every prompt as tokens, by expert."""
        entries = {id(e): e for gate in self._gates for e in gate.experts}
        texts = [t for e in entries.values() for t in (*e.positive_prompts, *e.negative_prompts)]
        found = dict(zip(texts, token_ids(self._base.opened, texts, asked.at("base_model")), strict=True))
        held = self._base.opened.checkpoint.specs[self._embedding].shape[0]
        for key, entry in entries.items():
            for text in (*entry.positive_prompts, *entry.negative_prompts):
                ids = found[text]
                if not ids or max(ids) >= held:
                    what = (
                        "a prompt has no tokens"
                        if not ids
                        else f"a prompt has a token without a row in {self._base.ref}"
                    )
                    wanted = "some words" if not ids else f"ids below {held}"
                    do = "write a text" if not ids else "use a base whose tokenizer fits its weights"
                    raise PlanError(what, wanted=wanted, found=repr(text[:60]), do=do, where=entry.where)
            positive, negative = (
                [found[t] for t in texts] for texts in (entry.positive_prompts, entry.negative_prompts)
            )
            self._prompts[key] = tuple(positive), tuple(negative)

    def compute(self) -> None:
        """Find all rows, now."""
        with self._lock:
            if not self._rows:
                rows = {name: torch.zeros(spec.shape) for name, spec in self.specs.items()}
                rows.update(self._drawn() if "random" in self.mode else self._from_prompts())
                self._rows = rows

    def read(self, name: str, rows: Rows | None = None) -> Tensor:
        self.compute()
        return cut(self._rows[name], rows)

    def _drawn(self) -> dict[str, Tensor]:
        size, root = self._hidden, math.sqrt(self._hidden)
        found = {}
        for gate in self._gates:
            if self.mode == "random":
                rows = [normal(self.seed, gate.name, e, 0, size) for e in range(len(gate.experts))]
            else:
                rows = [(2 * uniform(self.seed, gate.name, e, 0, size) - 1) / root for e in range(len(gate.experts))]
            found[gate.name] = torch.stack(rows)
        return found

    def _from_prompts(self) -> dict[str, Tensor]:
        parts = [ids for positive, negative in self._prompts.values() for ids in (*positive, *negative)]
        prompts = list(dict.fromkeys(parts))
        number = {ids: i for i, ids in enumerate(prompts)}
        embedding = Matrix(self._base.opened.checkpoint, self._embedding)
        if self.mode == "cheap_embed":
            sums = torch.stack([_embedded(embedding, ids).sum(0) for ids in prompts])
            same = {gate.name: self._row(gate, sums, number, summed=True) for gate in self._gates}
            return same
        assert self._network
        found, by_layer = {}, {gate.layer: [g for g in self._gates if g.layer == gate.layer] for gate in self._gates}
        states = [_embedded(embedding, ids).float() for ids in prompts]
        for layer, entered in self._network.entering(states, max(by_layer)):
            pick = [s.double().mean(0) if self.mode == "hidden_avg" else s[-1].double() for s in entered]
            for gate in by_layer[layer]:
                found[gate.name] = self._row(gate, torch.stack(pick), number, summed=False)
        return found

    def _row(self, gate: Gate, vectors: Tensor, number: Mapping[tuple[int, ...], int], summed: bool) -> Tensor:
        """The rows of a gate; `vectors` [prompts, hidden], float64."""

        def side(prompts: Ids) -> Tensor:
            if not prompts:
                return torch.zeros(self._hidden, dtype=torch.float64)
            chosen = vectors[[number[ids] for ids in prompts]]
            return _normed(chosen.sum(0)) if summed else chosen.mean(0)

        rows = []
        for entry in gate.experts:
            positive, negative = self._prompts[id(entry)]
            rows.append(_normed(side(positive) - side(negative)))
        return torch.stack(rows).float()

    def near(self) -> list[str]:
        """Sentences on rows of a router that are nearly the same, so that it cannot tell their experts apart."""
        self.compute()
        pairs: dict[tuple[int, int], list[int]] = {}
        for gate in self._gates:
            rows = torch.nn.functional.normalize(self._rows[gate.name].double(), dim=1)
            cosine = (rows @ rows.T).numpy()
            for a, b in zip(*np.nonzero(np.triu(cosine, 1) > NEAR), strict=True):
                pairs.setdefault((int(a), int(b)), []).append(gate.layer)
        count = self._stack.count
        return [
            f"the router can hardly tell experts {a} and {b} apart in {len(layers)} of {count} layers: other prompts may help"
            for (a, b), layers in pairs.items()
        ]


def _embedding(base: Model, asked: kinds.Mixture) -> str:
    if base.arch.embedding is None:
        raise ModelError(
            f"{base.ref} has no token embedding",
            wanted="a language model",
            found=f"a {base.opened.config.get('model_type')} without one",
            do="choose another base_model",
            where=asked.at("base_model"),
        )
    return base.arch.embedding


def _embedded(embedding: Matrix, ids: Sequence[int]) -> Tensor:
    """The embeddings of a prompt's tokens, float64 [tokens, hidden]."""
    return embedding.rows(np.array(ids, np.int64)).double()


def _normed(vector: Tensor) -> Tensor:
    return vector / max(float(vector.norm()), SMALL)

"""What enters each layer of a model when it reads some prompts: one layer's weights are in memory at a time.

transformers gives the code of the layers; the weights are read from the checkpoint, whatever it is. Prompts go side by side,
shorter ones filled up behind their end, which a decoder does not look back from. Arithmetic is float32 on one thread, so that
the bits do not depend on the number of cores.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from plait.arch import Stack
from plait.checkpoint.source import Opened
from plait.errors import ModelError, PlanError, Where
from plait.evaluate.network import one_thread, tokenizer, transformers
from plait.lazy import Tensor, torch
from plait.vocabulary.read import read_tokens
from plait.vocabulary.unite import encoded

TOGETHER = 1 << 13  # tokens that go through a layer at once


def token_ids(opened: Opened, texts: Sequence[str], where: Where | None = None) -> list[tuple[int, ...]]:
    """The ids of each text after the tokenizer's beginning-of-text token, if it has one."""
    tokens = read_tokens(opened.folder)
    if tokens is None:
        raise ModelError(
            f"{opened.ref} has no tokenizer, and prompts are to be read",
            wanted="tokenizer.json or another tokenizer file in its folder",
            found=f"none in {opened.folder}",
            do="copy the tokenizer there, or write 'gate_mode: random'",
            where=where,
        )
    begin = [n for n in (tokens.ids.get(tokens.named.get("bos", "")),) if n is not None]
    if tokens.data is not None:
        return [(*begin, *e.ids) for e in encoded(tokens, texts)]
    older = tokenizer(tokens.path.parent)
    return [(*begin, *older(text, add_special_tokens=False).input_ids) for text in texts]


class _Enough(Exception):  # noqa: N818
    """Every layer was called: the rest of the model has nothing to do."""


class Network:
    """The layers of a model as transformers has them, without weights.

    Raises `PlanError` for a model that transformers has no class of its own for, or whose layers it knows otherwise.
    """

    def __init__(self, opened: Opened, stack: Stack, where: Where | None = None) -> None:
        self._opened, self._stack = opened, stack
        with transformers() as library:
            kind, known = opened.config.get("model_type"), library.models.auto.configuration_auto.CONFIG_MAPPING
            do = "mend its config.json, or write 'gate_mode: cheap_embed' or 'random'"
            try:
                config = known[kind].from_dict(
                    {k: v for k, v in opened.config.items() if k not in ("dtype", "torch_dtype")}
                )
                with torch.device("meta"):
                    network = library.AutoModel.from_config(config, attn_implementation="eager", dtype=torch.float32)
            except Exception as error:  # a config can be odd in any way
                what = f"transformers cannot make the layers of {opened.ref}, whose hidden states are asked for"
                found = " ".join(f"{type(error).__name__}: {error}".split())[:200]
                wanted = f"a config.json of the type {kind} that it knows"
                raise PlanError(what, wanted=wanted, found=found, do=do, where=where) from error
        self._network = network.eval()
        self._layers = getattr(network, stack.prefix.removeprefix("model.").strip("."), ())
        shapes = {
            stack.name(i, name): tuple(tensor.shape)
            for i, layer in enumerate(self._layers)
            for name, tensor in layer.state_dict().items()
        }
        specs = opened.checkpoint.specs
        odd = next((name for name, shape in shapes.items() if name not in specs or specs[name].shape != shape), None)
        if odd or len(self._layers) != stack.count:
            what = f"the layers of {opened.ref} are not those that transformers wants"
            wanted, found = f"those of {type(network).__name__}", f"{stack.count} layers"
            if odd:
                wanted += f": {odd} of {list(shapes[odd])}"
                found = f"{odd} of {list(specs[odd].shape)}" if odd in specs else f"no {odd}"
            raise PlanError(what, wanted=wanted, found=found, do=do, where=where)
        for parent in list(network.modules()):
            for name, child in list(parent.named_children()):
                if name.endswith("rotary_emb"):  # tables that are made, not read
                    setattr(parent, name, type(child)(child.config))

    def entering(self, prompts: Sequence[Tensor], last: int) -> Iterator[tuple[int, list[Tensor]]]:
        """(layer, what enters it for each prompt) up to layer `last`; a prompt is its embeddings, float32 [tokens, hidden]."""
        groups = list(_groups(prompts))
        with torch.inference_mode(), one_thread():
            states = [
                torch.nn.utils.rnn.pad_sequence([prompts[i] for i in group], batch_first=True) for group in groups
            ]
            calls = [self._calls(state) for state in states]
            for i in range(last + 1):
                entered: list[Tensor] = [torch.empty(0)] * len(prompts)
                for group, state in zip(groups, states, strict=True):
                    for row, prompt in enumerate(group):
                        entered[prompt] = state[row, : len(prompts[prompt])]
                yield i, entered
                if i < last:
                    layer = self._filled(i)
                    for g, state in enumerate(states):
                        out = layer(state, **calls[g][i])
                        states[g] = out if torch.is_tensor(out) else out[0]
                    layer.to("meta")

    def _calls(self, states: Tensor) -> list[dict[str, Any]]:
        """With what else each layer is called when the model is given these embeddings: masks, positions."""
        found: list[dict[str, Any]] = []

        def noted(state: Tensor, *args: Any, **more: Any) -> Tensor:
            found.append(more)
            if len(found) == len(self._layers):
                raise _Enough
            return state

        for layer in self._layers:
            layer.forward = noted
        try:
            self._network(inputs_embeds=states, use_cache=False)
        except _Enough:
            pass
        finally:
            for layer in self._layers:
                del layer.forward
        return found

    def _filled(self, number: int) -> Any:
        """A layer with its weights, in float32."""
        layer, read = self._layers[number].to_empty(device="cpu"), self._opened.checkpoint.read
        wanted = {name: read(self._stack.name(number, name)).float() for name in layer.state_dict()}
        layer.load_state_dict(wanted, assign=True)
        return layer


def _groups(prompts: Sequence[Tensor]) -> Iterator[list[int]]:
    """Prompts of similar length, so many that they are at most `TOGETHER` tokens."""
    group: list[int] = []
    for i in sorted(range(len(prompts)), key=lambda i: len(prompts[i])):
        if group and (len(group) + 1) * len(prompts[i]) > TOGETHER:
            yield group
            group = []
        group.append(i)
    if group:
        yield group

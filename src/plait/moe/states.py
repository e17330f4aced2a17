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
from plait.vocabulary.unite import loaded

TOGETHER = 1 << 13  # tokens that go through a layer at once


def token_ids(opened: Opened, texts: Sequence[str]) -> list[tuple[int, ...]]:
    """The ids of each text after the tokenizer's beginning-of-text token, if it has one."""
    tokens = read_tokens(opened.folder)
    if tokens is None:
        raise ModelError(
            f"{opened.ref} has no tokenizer, and prompts are to be read",
            wanted="tokenizer.json or another tokenizer file in its folder",
            found=f"none in {opened.folder}",
            do="copy the tokenizer there, or write 'gate_mode: random'",
        )
    begin = tokens.named.get("bos", "")
    if tokens.data is not None:
        made = loaded(tokens)
        return [tuple(e.ids) for e in made.encode_batch([begin + t for t in texts], add_special_tokens=False)]
    older = tokenizer(tokens.path.parent)
    return [tuple(older(begin + text, add_special_tokens=False).input_ids) for text in texts]


def check_type(opened: Opened, where: Where | None) -> None:
    """Raise `PlanError` for a model that transformers has no class of its own for."""
    with transformers() as library:
        kind = opened.config.get("model_type")
        if kind not in library.models.auto.configuration_auto.CONFIG_MAPPING:
            raise PlanError(
                f"transformers has no class for {opened.ref}, whose hidden states are asked for",
                wanted="a model type that it knows",
                found=str(kind),
                do="write 'gate_mode: cheap_embed' or 'random'",
                where=where,
            )


class _Enough(Exception):  # noqa: N818
    """Every layer was called: the rest of the model has nothing to do."""


def entering(opened: Opened, stack: Stack, prompts: Sequence[Tensor], last: int) -> Iterator[tuple[int, list[Tensor]]]:
    """(layer, what enters it for each prompt) up to layer `last`; a prompt is its embeddings, float32 [tokens, hidden]."""
    with transformers() as library:
        config = library.models.auto.configuration_auto.CONFIG_MAPPING[opened.config["model_type"]]
        made = config.from_dict({k: v for k, v in opened.config.items() if k not in ("dtype", "torch_dtype")})
        with torch.device("meta"):
            network = library.AutoModel.from_config(made, attn_implementation="eager", dtype=torch.float32)
    network = network.eval()
    layers = getattr(network, stack.prefix.removeprefix("model.").strip("."), None)
    if layers is None or len(layers) < stack.count:
        raise ModelError(f"transformers knows other layers than {opened.ref} has", wanted=stack.prefix, found="none")
    _rotary(network)
    groups = list(_groups(prompts))
    states = [_side_by_side([prompts[i] for i in group]) for group in groups]
    with torch.inference_mode(), one_thread():
        calls = [_calls(network, layers, state) for state in states]
        for i in range(last + 1):
            entered: list[Tensor] = [torch.empty(0)] * len(prompts)
            for group, state in zip(groups, states, strict=True):
                for row, prompt in enumerate(group):
                    entered[prompt] = state[row, : len(prompts[prompt])]
            yield i, entered
            if i < last:
                layer = _filled(layers[i], opened, stack, i)
                for g, state in enumerate(states):
                    out = layer(state, **calls[g][i])
                    states[g] = out if torch.is_tensor(out) else out[0]
                layer.to("meta")


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


def _side_by_side(prompts: Sequence[Tensor]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(prompts), batch_first=True)


def _calls(network: Any, layers: Any, states: Tensor) -> list[dict[str, Any]]:
    """With what else each layer is called when the model is given these embeddings: masks, positions."""
    found: list[dict[str, Any]] = []

    def noted(state: Tensor, *args: Any, **more: Any) -> Tensor:
        found.append(more)
        if len(found) == len(layers):
            raise _Enough
        return state

    for layer in layers:
        layer.forward = noted
    try:
        network(inputs_embeds=states, use_cache=False)
    except _Enough:
        pass
    finally:
        for layer in layers:
            del layer.forward
    return found


def _rotary(network: Any) -> None:
    """Rotary embeddings have tables that are made, not read."""
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if name.endswith("rotary_emb"):
                setattr(parent, name, type(child)(child.config))


def _filled(layer: Any, opened: Opened, stack: Stack, number: int) -> Any:
    """The layer with its weights, in float32."""
    layer = layer.to_empty(device="cpu")
    wanted, specs = layer.state_dict(), opened.checkpoint.specs
    lacking = [name for name in wanted if stack.name(number, name) not in specs]
    if lacking:
        found = f"no {', no '.join(lacking[:3])}"
        raise ModelError(f"layer {number} of {opened.ref} is not what transformers wants", wanted="its tensors", found=found)
    layer.load_state_dict({name: opened.checkpoint.read(stack.name(number, name)).float() for name in wanted}, assign=True)
    return layer

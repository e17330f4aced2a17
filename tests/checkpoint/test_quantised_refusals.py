"""Quantised checkpoints that are broken, hostile, or of a kind that is not read are refused: named, before the work."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from checkpoint.test_quantised import CASES, Case, awq, fp8, gptq, mxfp4, opened, random
from plait.errors import ModelError


def without(case: Case, *names: str) -> Case:
    return {name: x for name, x in case[0].items() if name not in names}, case[1], case[2]


def changed(case: Case, **quantization: Any) -> Case:
    return case[0], case[1] | quantization, case[2]


def swapped(case: Case, name: str, x: torch.Tensor) -> Case:
    return case[0] | {name: x}, case[1], case[2]


WRONG: dict[str, Callable[[], Case]] = {
    "a kind that is not known": lambda: changed(gptq(), quant_method="aqlm"),
    "no kind": lambda: ({"a.weight": random(2, 2)}, {"bits": 4}, {}),
    "a list": lambda: ({"a.weight": random(2, 2)}, ["fp8"], {}),  # type: ignore[return-value, dict-item]
    "fp8 without a scale": lambda: without(fp8((8, 8), (4, 4)), "a.weight_scale_inv"),
    "fp8 with blocks of another size": lambda: changed(fp8((300, 300), (128, 128)), weight_block_size=[64, 64]),
    "fp8 with blocks as text": lambda: changed(fp8((300, 300), (100, 100)), weight_block_size="100"),
    "fp8 with a long scale": lambda: swapped(fp8((8, 8), (4, 4)), "a.weight_scale_inv", torch.ones(9)),
    "fp8 of a vector": lambda: swapped(fp8((8, 8), (4, 4)), "a.weight", torch.zeros(8).to(torch.float8_e4m3fn)),
    "mxfp4 without scales": lambda: without(mxfp4(), "m.gate_up_proj_scales"),
    "mxfp4 of another shape": lambda: swapped(mxfp4(), "m.gate_up_proj_scales", torch.zeros(3, 10, 3).byte()),
    "modelopt without its second scale": lambda: without(CASES["modelopt nvfp4"](), "a.weight_scale_2"),
    "modelopt with short scales": lambda: swapped(CASES["modelopt nvfp4"](), "a.weight_scale", torch.ones(6, 2)),
    "gptq of 5 bits": lambda: changed(gptq(), bits=5),
    "gptq bits as text": lambda: changed(gptq(), bits="4"),
    "gptq of another size": lambda: changed(gptq(), group_size=16),
    "gptq without scales": lambda: without(gptq(), "a.scales"),
    "gptq in marlin's order": lambda: changed(gptq(), checkpoint_format="marlin"),
    "gptq with a short order": lambda: swapped(gptq(), "a.g_idx", torch.zeros(3).int()),
    "awq of 8 bits": lambda: changed(awq(), bits=8),
    "awq gemv": lambda: changed(awq(), version="gemv"),
    "awq without zero points": lambda: changed(awq(), zero_point=False),
    "awq of another size": lambda: changed(awq(), group_size=16),
    "ct of another format": lambda: changed(CASES["ct w8a8"](), format="marlin-24"),
    "ct sparse": lambda: changed(CASES["ct w8a8"](), sparsity_config={"format": "sparse-24-bitmask"}),
    "ct without a shape": lambda: without(CASES["ct int4 groups"](), "a.weight_shape"),
    "ct with a wrong shape": lambda: swapped(CASES["ct int4 groups"](), "a.weight_shape", torch.tensor([24, 640])),
    "ct of 3 bits": lambda: changed(CASES["ct int4 groups"](), config_groups={"a": {"weights": {"num_bits": 3}}}),
    "ct with other scales": lambda: swapped(CASES["ct nvfp4"](), "a.weight_scale", torch.ones(24, 3)),
    "bnb without a table": lambda: without(bnb(), "nf4.weight.quant_map"),
    "bnb without blocks": lambda: without(bnb(), "nf4.weight.absmax"),
    "bnb with a state of noise": lambda: swapped(bnb(), NF4, torch.arange(9).byte()),
    "bnb with a large shape": lambda: swapped(bnb(), NF4, spelt('{"shape": [99999, 99999], "blocksize": 64}')),
    "bnb with a negative shape": lambda: swapped(bnb(), NF4, spelt('{"shape": [-1, 2], "blocksize": 64}')),
    "bnb with blocks of 0": lambda: swapped(bnb(), NF4, spelt('{"shape": [24, 64], "blocksize": 0}')),
    "bnb deep": lambda: swapped(bnb(), NF4, spelt("[" * 4000)),
}
NF4 = "nf4.weight.quant_state.bitsandbytes__nf4"


def bnb() -> Case:
    held = load_file(Path(__file__).parent / "data" / "bitsandbytes.safetensors")
    return {name: x for name, x in held.items() if name.startswith("nf4.")}, {"quant_method": "bitsandbytes"}, {}


def spelt(text: str) -> torch.Tensor:
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


@pytest.mark.parametrize("fault", WRONG)
def test_refused(fault: str, tmp_path: Path) -> None:
    """What cannot be read is refused by name before the work: the model, what was wanted, found, and what to do."""
    stored, quantization, _ = WRONG[fault]()
    with pytest.raises(ModelError) as caught:
        opened(tmp_path / "model", stored, quantization)
    assert str(tmp_path / "model") in caught.value.what
    assert caught.value.found
    assert caught.value.wanted
    assert caught.value.do


ODD: list[Any] = [
    None,
    True,
    0,
    -1,
    3.5,
    10**30,
    "",
    "4",
    [],
    [1],
    ["x"],
    {},
    {"a": 1},
    [None] * 2,
    [0, 0],
    [10**20, 1],
]
KEYS = ("bits", "group_size", "weight_block_size", "desc_act", "zero_point", "version", "config_groups", "format")
SPOILED: dict[str, Callable[[], Case]] = {
    "fp8": lambda: fp8((7, 5), (2, 3)),
    "mxfp4": mxfp4,
    "gptq": gptq,
    "awq": awq,
    "int4": CASES["ct int4 zero points"],
    "w8a8": CASES["ct w8a8"],
    "nvfp4": CASES["ct nvfp4"],
    "modelopt": CASES["modelopt nvfp4"],
    "bitsandbytes": lambda: bnb(),
}


@pytest.mark.parametrize("kind", SPOILED)
def test_odd_configurations(kind: str, tmp_path: Path) -> None:
    """Whatever a quantization_config says, the model is read, or refused by a `ModelError`."""
    stored, quantization, _ = SPOILED[kind]()
    for key in KEYS:
        for value in ODD:
            with contextlib.suppress(ModelError):
                view = opened(tmp_path / "model", stored, quantization | {key: value})
                for name in view.specs:
                    view.read(name)


@pytest.mark.parametrize("kind", SPOILED)
def test_odd_tensors(kind: str, tmp_path: Path) -> None:
    """Whatever one of the stored tensors is like, the model is read, or refused by a `ModelError`."""
    stored, quantization, _ = SPOILED[kind]()
    for name, good in stored.items():
        odd = (torch.ones(()), torch.ones(0), torch.ones(3, 0), torch.ones(1, 1), torch.ones(2, 3, 4), good.reshape(-1))
        for x in (*odd, torch.full_like(good, 7), good[..., None], good.to(torch.int16), good.to(torch.float64)):
            with contextlib.suppress(ModelError):
                view = opened(tmp_path / "model", stored | {name: x}, quantization)
                for own, spec in view.specs.items():
                    read = view.read(own)
                    assert (read.shape, read.dtype.is_floating_point) == (spec.shape, spec.floating)

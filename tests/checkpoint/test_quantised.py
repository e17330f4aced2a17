"""Each kind of quantised checkpoint gives the weights that an independent dequantiser gives."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import make
import plait
from loras import lora
from plait.estimate import memory
from plait.testing.checkpoints import check

Tensors = make.Tensors
#: stored tensors, quantization_config, the weights that they stand for
Case = tuple[Tensors, dict[str, Any], Tensors]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def integers(low: int, high: int, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, high, shape)


def opened(folder: Path, stored: Tensors, quantization: dict[str, Any], **config: Any) -> plait.Checkpoint:
    folder.mkdir(exist_ok=True)
    save_file({name: x.contiguous() for name, x in stored.items()}, folder / "model.safetensors")
    make.write_json(folder / "config.json", {"quantization_config": quantization, "dtype": "float16", **config})
    return plait.open(folder)


# ── 8-bit floats ──────────────────────────────────────────────────────────────────────────────────────────────────────


def fp8(shape: tuple[int, ...], block: tuple[int, int] | None, end: str = "_scale_inv") -> Case:
    """Codes and scales; the oracle multiplies entry by entry."""
    rows, columns = shape[-2:]
    high, wide = block or (rows, columns)
    grid = (*shape[:-2], -(-rows // high), -(-columns // wide))
    codes, scale = (random(*shape) * 50).to(torch.float8_e4m3fn), random(*grid, seed=1).abs() + 0.1
    at = np.ix_(*(np.arange(n) for n in shape[:-2]), np.arange(rows) // high, np.arange(columns) // wide)
    exact = codes.float().numpy() * scale.numpy()[at]
    quantization = {"quant_method": "fp8", **({"weight_block_size": list(block)} if block else {})}
    if not block and len(shape) == 2:
        scale = scale.reshape(())
    return (
        {"a.weight": codes, f"a.weight{end}": scale, "n": random(4)},
        quantization,
        {"a.weight": torch.from_numpy(exact)},
    )


def fp8_idle() -> Case:
    """Packed experts, and a projection, with scales for what is computed with them, which are no weights."""
    (experts, quantization, exact), (single, _, other) = fp8((3, 7, 5), (2, 3)), fp8((6, 5), None)
    stored = {f"a.gate_up_proj{end}": experts[f"a.weight{end}"] for end in ("", "_scale_inv")}
    stored |= {f"k.weight{end}": single[f"a.weight{end}"] for end in ("", "_scale_inv")}
    stored |= {
        name: torch.ones(()) for name in ("a.gate_up_proj_activation_scale", "k.k_scale", "kv_scale", "k.input_scale")
    }
    return stored, quantization, {"a.gate_up_proj": exact["a.weight"], "k.weight": other["a.weight"]}


def fbgemm() -> Case:
    stored, _, exact = fp8((10, 6), (1, 6), "_scale")
    return stored | {"a.input_scale_ub": torch.ones(1)}, {"quant_method": "fbgemm_fp8"}, exact


def modelopt() -> Case:
    """NVFP4 by its definition; the scales multiply."""
    codes, scale, whole = integers(0, 256, 6, 24), random(6, 3).abs().to(torch.float8_e4m3fn), torch.tensor(0.013)
    values = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
    exact = values[np.stack([codes & 15, codes >> 4], -1).reshape(6, 48)]
    exact = exact * (scale.float().numpy() * whole.numpy()).repeat(16, 1)
    stored = {"a.weight": torch.from_numpy(codes).byte(), "a.weight_scale": scale, "a.weight_scale_2": whole}
    stored |= {"a.input_scale": torch.ones(()), "a.k_scale": torch.ones(())}
    return stored, {"quant_method": "modelopt", "quant_algo": "NVFP4"}, {"a.weight": torch.from_numpy(exact)}


def modelopt_fp8() -> Case:
    stored, _, exact = fp8((10, 6), None, "_scale")
    return stored | {"a.input_scale": torch.ones(())}, {"quant_method": "modelopt", "quant_algo": "FP8"}, exact


# ── 4-bit floats of gpt-oss ───────────────────────────────────────────────────────────────────────────────────────────


def mxfp4() -> Case:
    """transformers' own dequantiser, which works in bfloat16: these numbers are exact there."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    blocks = torch.from_numpy(integers(0, 256, 3, 10, 2, 16)).byte()
    scales = torch.from_numpy(integers(118, 131, 3, 10, 2)).byte()
    exact = convert_moe_packed_tensors(blocks.clone(), scales.clone()).float()
    assert exact.shape == (3, 64, 10)
    stored = {"m.gate_up_proj_blocks": blocks, "m.gate_up_proj_scales": scales, "m.gate_up_proj_bias": random(3, 10)}
    return stored, {"quant_method": "mxfp4"}, {"m.gate_up_proj": exact}


# ── GPTQ and AWQ: plain numpy from the papers' code ───────────────────────────────────────────────────────────────────


def packed(codes: np.ndarray, bits: int) -> torch.Tensor:
    """Codes along the first axis as one long string of bits in int32 words, bit by bit."""
    string = ((codes[:, None] >> np.arange(bits)[:, None]) & 1).reshape(-1, codes.shape[1])
    words = (string.reshape(-1, 32, codes.shape[1]).astype(np.uint64) << np.arange(32, dtype=np.uint64)[:, None]).sum(1)
    return torch.from_numpy(words.astype(np.uint32).view(np.int32))


def gptq(bits: int = 4, size: int = 32, order: bool = False, newer: bool = False, seed: int = 0) -> Case:
    inside, out = 96, 64
    groups = inside // size if size > 0 else 1
    codes, zeros = integers(0, 2**bits, inside, out), integers(0, 2**bits, groups, out, seed=1)
    group = np.arange(inside) // (size if size > 0 else inside)
    if order:
        group = np.random.default_rng(2).permutation(group)
    scales = random(groups, out, seed=3).half()
    exact = scales.float().numpy()[group] * (codes - zeros[group])
    stored = {
        "a.qweight": packed(codes, bits),
        "a.qzeros": packed((zeros if newer else (zeros - 1) % 2**bits).T, bits).T,
        "a.scales": scales,
        "a.g_idx": torch.from_numpy(group).int(),
        "a.bias": random(out),
    }
    quantization = {"quant_method": "gptq", "bits": bits, "group_size": size, "desc_act": order, "sym": False}
    quantization |= {"checkpoint_format": "gptq_v2"} if newer else {}
    if size < 0:
        del stored["a.g_idx"]
    return stored, quantization, {"a.weight": torch.from_numpy(exact.T.astype(np.float32))}


def awq(size: int = 32) -> Case:
    """Packed as AutoAWQ packs: nibble i of a word holds output 8 w + (0, 2, 4, 6, 1, 3, 5, 7)[i]."""
    inside, out = 64, 24
    codes, zeros = integers(0, 16, inside, out), integers(0, 16, inside // size, out, seed=1)

    def words(x: np.ndarray) -> torch.Tensor:
        placed = x.reshape(len(x), -1, 8)[..., [0, 2, 4, 6, 1, 3, 5, 7]].astype(np.uint32)
        return torch.from_numpy(
            (placed << (4 * np.arange(8, dtype=np.uint32))).sum(-1).astype(np.uint32).view(np.int32)
        )

    scales, group = random(inside // size, out, seed=3).half(), np.arange(inside) // size
    exact = scales.float().numpy()[group] * (codes - zeros[group])
    quantization = {"quant_method": "awq", "bits": 4, "group_size": size, "version": "gemm", "zero_point": True}
    stored = {"a.qweight": words(codes), "a.qzeros": words(zeros), "a.scales": scales}
    return stored, quantization, {"a.weight": torch.from_numpy(exact.T.astype(np.float32))}


# ── compressed-tensors: its own compressors make the files, its own decompressors read them ───────────────────────────


def compressed(kind: str, shape: tuple[int, int] = (24, 64), **args: Any) -> Case:
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams

    module, name = {
        "pack-quantized": ("pack_quantized", "PackedQuantizationCompressor"),
        "int-quantized": ("naive_quantized", "IntQuantizationCompressor"),
        "float-quantized": ("naive_quantized", "FloatQuantizationCompressor"),
        "nvfp4-pack-quantized": ("nvfp4", "NVFP4PackedCompressor"),
        "mxfp4-pack-quantized": ("mxfp4", "MXFP4PackedCompressor"),
    }[kind]
    compressor = getattr(importlib.import_module(f"compressed_tensors.compressors.{module}"), name)
    arguments = QuantizationArgs(**args)
    scheme = QuantizationScheme(targets=["Linear"], weights=arguments)
    weight = random(*shape)
    rows, columns = shape
    size = args.get("group_size") or 0
    high, wide = args.get("block_structure") or ((1, size) if size > 0 else (1, columns))
    if args["strategy"] == "tensor":
        high, wide = shape
    padded = torch.nn.functional.pad(weight, (0, -columns % wide, 0, -rows % high))
    blocks = padded.unflatten(1, (-1, wide)).unflatten(0, (-1, high))
    low, top = blocks.amin((1, 3)), blocks.amax((1, 3))
    state: Tensors = {"weight": weight}
    if kind == "nvfp4-pack-quantized":
        state["weight_global_scale"] = torch.tensor([6 * 448 / float(weight.abs().max())])
        wanted = (blocks.abs().amax((1, 3)) / 6 * state["weight_global_scale"]).to(torch.float8_e4m3fn).float()
        state["weight_scale"] = wanted
    elif kind == "mxfp4-pack-quantized":
        state["weight_scale"] = torch.exp2(torch.floor(torch.log2(blocks.abs().amax((1, 3)))) - 2)
    else:
        scale, zero = calculate_qparams(low, top, arguments)
        state |= {"weight_scale": scale, "weight_zero_point": zero}
        if args["strategy"] == "tensor":
            state = {key: x.reshape(1) if key != "weight" else x for key, x in state.items()}
    made = compressor.compress(dict(state), scheme)
    exact = compressor.decompress(dict(made), scheme)["weight"].float()
    if kind == "nvfp4-pack-quantized":  # which the library computes in bfloat16: the same, and then by its definition
        codes = np.stack([made["weight_packed"].numpy() & 15, made["weight_packed"].numpy() >> 4], -1).reshape(shape)
        values = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)[codes & 7] * np.where(codes & 8, -1, 1).astype(
            np.float32
        )
        scales = made["weight_scale"].float().numpy() / made["weight_global_scale"].numpy()
        rounded, exact = exact, torch.from_numpy(values * scales.repeat(16, 1))
        assert torch.allclose(rounded, exact, rtol=2**-7, atol=0)
    quantization = {
        "quant_method": "compressed-tensors",
        "format": kind,
        "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": arguments.model_dump(mode="json")}},
    }
    stored = {f"a.{key}": torch.as_tensor(x.detach() if isinstance(x, torch.Tensor) else x) for key, x in made.items()}
    return stored | {"a.input_scale": torch.ones(1), "a.k_scale": torch.ones(1)}, quantization, {"a.weight": exact}


INT4: dict[str, Any] = {"num_bits": 4, "type": "int"}
FP4: dict[str, Any] = {"num_bits": 4, "type": "float"}
FP8: dict[str, Any] = {"num_bits": 8, "type": "float"}
CASES: dict[str, Callable[[], Case]] = {
    "fp8 blocks": lambda: fp8((256, 384), (128, 128)),
    "fp8 blocks, ragged": lambda: fp8((200, 131), (128, 128)),
    "fp8 small blocks, ragged": lambda: fp8((7, 5), (2, 3)),
    "fp8 experts": lambda: fp8((3, 7, 5), (2, 3)),
    "fp8 a tensor": lambda: fp8((6, 5), None),
    "fp8 an expert": lambda: fp8((3, 6, 5), None),
    "fp8 idle scales": fp8_idle,
    "fbgemm": fbgemm,
    "modelopt nvfp4": modelopt,
    "modelopt fp8": modelopt_fp8,
    "mxfp4": mxfp4,
    "gptq": gptq,
    "gptq 2 bits": lambda: gptq(2),
    "gptq 3 bits": lambda: gptq(3),
    "gptq 8 bits": lambda: gptq(8),
    "gptq one group": lambda: gptq(4, -1),
    "gptq act-order": lambda: gptq(4, 32, order=True),
    "gptq v2": lambda: gptq(4, 32, newer=True),
    "awq": awq,
    "awq one group": lambda: awq(64),
    "ct int4 groups": lambda: compressed("pack-quantized", **INT4, strategy="group", group_size=32, symmetric=True),
    "ct int4 zero points": lambda: compressed(
        "pack-quantized", **INT4, strategy="group", group_size=32, symmetric=False
    ),
    "ct int4 channels": lambda: compressed("pack-quantized", (10, 37), **INT4, strategy="channel", symmetric=True),
    "ct int8 channels": lambda: compressed(
        "pack-quantized", (10, 37), num_bits=8, type="int", strategy="channel", symmetric=False
    ),
    "ct w8a8": lambda: compressed("int-quantized", num_bits=8, type="int", strategy="channel", symmetric=False),
    "ct fp8 channels": lambda: compressed("float-quantized", **FP8, strategy="channel"),
    "ct fp8 tensor": lambda: compressed("float-quantized", **FP8, strategy="tensor"),
    "ct fp8 blocks": lambda: compressed("float-quantized", (20, 50), **FP8, strategy="block", block_structure=[8, 16]),
    "ct nvfp4": lambda: compressed("nvfp4-pack-quantized", **FP4, strategy="tensor_group", group_size=16),
    "ct mxfp4": lambda: compressed("mxfp4-pack-quantized", **FP4, strategy="group", group_size=32),
}


@pytest.mark.parametrize("case", CASES)
def test_as_dequantised_elsewhere(case: str, tmp_path: Path) -> None:
    """Each kind gives, bit for bit, what its own library or the published definition gives, in any cut; the rest is as stored."""
    stored, quantization, exact = CASES[case]()
    view = opened(tmp_path / "model", stored, quantization)
    for name, x in exact.items():
        assert torch.equal(view.read(name), x), case
    assert "quantization_config" not in view.config
    rest = {name for name in stored if name.rpartition(".")[2] in ("n", "bias", "gate_up_proj_bias")}
    assert set(view.specs) == set(exact) | rest
    assert {str(spec.dtype) for name, spec in view.specs.items() if name in exact} == {"F32"}
    assert all(torch.equal(view.read(name), stored[name]) for name in rest)
    assert check(view) == []


def test_as_bitsandbytes_reads(tmp_path: Path) -> None:
    """nf4, fp4 and int8 codes that bitsandbytes wrote become the weights that it reads from them."""
    held = load_file(Path(__file__).parent / "data" / "bitsandbytes.safetensors")
    exact = {name.removeprefix("exact."): held.pop(name) for name in list(held) if name.startswith("exact.")}
    view = opened(tmp_path / "model", held, {"load_in_4bit": True, "quant_method": "bitsandbytes"})
    assert set(view.specs) == set(exact)
    assert {name for name, x in exact.items() if not torch.equal(view.read(name), x)} == set()
    assert check(view) == []


def test_blocks(tmp_path: Path) -> None:
    """A weight of many blocks of rows is the same however it is cut."""
    for case in (fp8((900, 700), (128, 128)), gptq()):
        stored, quantization, exact = case
        assert torch.equal(
            opened(tmp_path / "a", stored, quantization).read("a.weight", (3, 60)), exact["a.weight"][3:60]
        )
    blocks = torch.from_numpy(integers(0, 256, 2, 1030, 10, 16)).byte()
    scales = torch.from_numpy(integers(118, 131, 2, 1030, 10)).byte()
    view = opened(tmp_path / "b", {"x_blocks": blocks, "x_scales": scales}, {"quant_method": "mxfp4"})
    assert check(view) == []


def test_merged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A quantised model merges with a plain one: the output has the dtype of its config, and no quantization_config."""
    made = make.tensors(dtype=torch.bfloat16)
    plain = make.write(tmp_path / "plain", made)
    stored: Tensors = {}
    for name, x in make.tensors(1, dtype=torch.bfloat16).items():
        if name.endswith("_proj.weight"):
            scale = x.float().abs().max() / 448
            stored |= {name: (x.float() / scale).to(torch.float8_e4m3fn), f"{name}_scale_inv": scale}
        else:
            stored[name] = x
    settings = make.config(made, quantization_config={"quant_method": "fp8", "activation_scheme": "dynamic"})
    quantised = make.write(tmp_path / "quantised", stored, settings=settings)
    merge = plait.merge(make.recipe("linear", plain, quantised))
    assert set(merge.specs) == set(made)
    assert {spec.dtype for spec in merge.specs.values()} == {"BF16"}
    assert "quantization_config" not in merge.config
    assert f"{quantised}: 14 weights are quantised (fp8), and dequantised as they are read" in merge.plan.notes
    assert memory(merge.plan, 2) > memory(plait.merge(make.recipe("linear", plain)).plan, 2) + 2 * (1 << 20)
    assert merge.plan.read_nbytes == sum(x.nbytes for x in (*made.values(), *stored.values()))
    name = "model.layers.1.mlp.up_proj.weight"
    exact = (made[name].double() + stored[name].double() * stored[f"{name}_scale_inv"].double()) / 2
    assert torch.allclose(merge.read(name).double(), exact, rtol=2**-8, atol=0)
    passed = plait.merge(make.recipe("passthrough", quantised, parameters={}))
    exact = stored[name].float() * stored[f"{name}_scale_inv"]
    assert torch.equal(passed.read(name), exact.bfloat16())
    passed.save(tmp_path / "out")
    assert not any("scale" in key for key in load_file(tmp_path / "out" / "model.safetensors"))


def test_an_adapter_over_a_quantised_base(tmp_path: Path) -> None:
    """Views stack: QLoRA's adapters go over the dequantised base."""
    stored, quantization, exact = gptq()
    view = opened(tmp_path / "base", {name.replace("a.", "a_proj."): x for name, x in stored.items()}, quantization)
    folder = lora(tmp_path / "lora", {"a_proj.weight": exact["a.weight"]})
    assert (set(view.specs), view.config["dtype"]) == ({"a_proj.weight", "a_proj.bias"}, "float16")
    adapted = plait.open(f"{tmp_path / 'base'}+{folder}")
    held = load_file(folder / "adapter_model.safetensors")
    b, a = (held[f"base_model.model.a_proj.lora_{part}.weight"].double() for part in "BA")
    assert torch.equal(adapted.read("a_proj.weight"), (exact["a.weight"].double() + 2 * b @ a).float())
    merge = plait.merge(
        make.recipe("passthrough", f"{tmp_path / 'base'}+{folder}", parameters={}), lora_merge_dtype=None
    )
    assert merge.specs["a_proj.weight"].dtype == "F16"

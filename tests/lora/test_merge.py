"""`plait lora merge` and `apply`: adapters made one, and put into their base."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import make
import plait
from plait.checkpoint.adapter import open_adapter
from plait.cli import main
from plait.errors import OutputError, PlaitError
from plait.lora import BaseNeededError, Limit, merge
from plait.lora.report import total
from plait.method import bind
from plait.methods import registry

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")

SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
}
LORA: dict[str, Any] = {"r": 3, "lora_alpha": 6, "target_modules": ["q_proj", "up_proj"]}


def llama() -> Any:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES))


def gpt2() -> Any:
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=40, n_embd=16, n_layer=2, n_head=4, n_positions=32, tie_word_embeddings=False
        )
    )


def moe() -> Any:
    more = {"num_experts": 4, "moe_intermediate_size": 12, "num_experts_per_tok": 2, "head_dim": 4}
    return transformers.Qwen3MoeForCausalLM(transformers.Qwen3MoeConfig(**SIZES, **more))


def trained(model: Any, folder: Path, seed: int, **config: Any) -> Path:
    """An adapter of the model with random factors, saved by PEFT."""
    wrapped = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **config))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, x in wrapped.named_parameters():
            if "lora_" in name:
                x.copy_(torch.randn(x.shape, generator=generator) * 0.2)
    wrapped.save_pretrained(folder)
    wrapped.unload()
    return folder


@pytest.fixture
def base(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    llama().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def adapters(base: Path, tmp_path: Path, *configs: dict[str, Any]) -> list[str]:
    names = []
    for i, config in enumerate(configs):
        model = transformers.AutoModelForCausalLM.from_pretrained(base)
        names.append(str(trained(model, tmp_path / f"lora{i}", i, **{**LORA, **config})))
    return names


def change(base: Path, *names: str, weights: Sequence[float] = ()) -> dict[str, np.ndarray[Any, Any]]:
    """The sum of what adapters change, as whole matrices in float64, by plait's own view of base + adapter."""
    plain, found = plait.open(base), {}
    for adapter, weight in zip(names, weights or [1.0] * len(names), strict=True):
        view = plait.open(f"{base}+{adapter}")
        for name in plain.specs:
            found[name] = found.get(name, 0) + weight * (view.read(name).double() - plain.read(name).double()).numpy()
    return found


def recipe(method: str, names: Sequence[str], each: Sequence[dict[str, Any]] = (), **rest: Any) -> dict[str, Any]:
    entries = [
        {"model": n, **({"parameters": p} if p else {})} for n, p in zip(names, each or [{}] * len(names), strict=True)
    ]
    return {"merge_method": method, "models": entries, **rest}


KINDS: dict[str, tuple[Any, list[dict[str, Any]]]] = {
    "same modules": (llama, [{}, {}]),
    "other modules, ranks and scales": (
        llama,
        [{"r": 2, "target_modules": ["q_proj", "v_proj"]}, {"use_rslora": True, "rank_pattern": {"1.mlp.up_proj": 4}}],
    ),
    "embeddings": (llama, [{"target_modules": ["embed_tokens", "q_proj"]}, {"target_modules": ["embed_tokens"]}]),
    "stored as [in, out]": (gpt2, [{"target_modules": ["c_attn", "c_proj"]}] * 2),
    "experts in one tensor": (
        moe,
        [{"target_modules": ["q_proj"], "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]}]
        * 2,
    ),
    "biases": (gpt2, [{"target_modules": ["c_attn"], "lora_bias": True}] * 2),
}


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_sum_is_exact(kind: str, tmp_path: Path) -> None:
    """The changes times their weights add up, for each kind of module, and PEFT runs the result so."""
    make_model, configs = KINDS[kind]
    torch.manual_seed(0)
    make_model().save_pretrained(tmp_path / "base")
    names = adapters(tmp_path / "base", tmp_path, *configs)
    weights = [0.7, -0.4]
    each = [{"weight": weight} for weight in weights]
    made = merge(recipe("task_arithmetic", names, each), tmp_path / "merged")
    assert total(made.rows) < 1e-6
    wanted = change(tmp_path / "base", *names, weights=weights)
    found = change(tmp_path / "base", str(tmp_path / "merged"))
    for name, x in wanted.items():
        np.testing.assert_allclose(found[name], x, atol=1e-6)
    if kind == "experts in one tensor":
        return  # the model's own names differ from those of its files; plait's view, which PEFT is the oracle of, is compared
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()
    with torch.no_grad():
        for name, x in reference.named_parameters():
            x += torch.from_numpy(wanted[name]).float()
    ran = peft.PeftModel.from_pretrained(
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "merged"
    ).eval()
    ids = torch.arange(12)[None]
    with torch.no_grad():
        torch.testing.assert_close(ran(input_ids=ids).logits, reference(input_ids=ids).logits, atol=2e-5, rtol=0)


def test_a_mean_is_the_mean_of_the_models(base: Path, tmp_path: Path) -> None:
    """linear with its weights normalised gives the adapter of the mean of the models base + adapter; gradients go by layers."""
    names = adapters(base, tmp_path, {}, {})
    merge(recipe("linear", names, [{"weight": [1, 3]}, {"weight": 1}]), tmp_path / "merged")
    found = change(base, str(tmp_path / "merged"))
    for layer, first in ((0, 1 / 2), (1, 3 / 4)):
        name = f"model.layers.{layer}.self_attn.q_proj.weight"
        wanted = change(base, *names, weights=[first, 1 - first])[name]
        np.testing.assert_allclose(found[name], wanted, atol=1e-6)


INVARIANT: dict[str, dict[str, Any]] = {"slerp": {"t": 0.3}, "karcher": {}, "model_stock": {}}


@pytest.mark.parametrize("name", sorted(INVARIANT))
def test_methods_that_do_not_look_at_single_entries_are_exact(name: str, base: Path, tmp_path: Path) -> None:
    """Of methods that a rotation of rows and columns does not change, the core gives what the whole changes give."""
    names = adapters(base, tmp_path, {}, {"r": 2}, *([] if name == "slerp" else [{}]))
    given = recipe(name, names, parameters=INVARIANT[name])
    if name == "slerp":
        given = {**recipe(name, names[1:], parameters=INVARIANT[name]), "base_model": names[0]}
    merge(given, tmp_path / "merged")
    found = change(base, str(tmp_path / "merged"))
    single = [change(base, adapter) for adapter in names]
    method = registry()[name]
    for tensor in ("model.layers.1.self_attn.q_proj.weight", "model.layers.0.mlp.up_proj.weight"):
        inputs = [torch.from_numpy(each[tensor]) for each in single]
        start = {"slerp": inputs[0], "karcher": None}.get(name, torch.zeros_like(inputs[0]))
        models = inputs[1:] if name == "slerp" else inputs
        wanted = plait.merge_tensors(method, bind(method, INVARIANT[name]), models, start)
        assert wanted.abs().max() > 0.001
        np.testing.assert_allclose(found[tensor], wanted.numpy(), atol=3e-6)


def test_a_merge_depends_on_the_changes_alone(base: Path, tmp_path: Path) -> None:
    """For TIES it is no matter how an adapter shares its change out between A and B, nor which adapter comes first."""
    names = adapters(base, tmp_path, {}, {"r": 2})
    turned = tmp_path / "turned"
    turned.mkdir()
    held = load_file(Path(names[0]) / "adapter_model.safetensors")
    generator = torch.Generator().manual_seed(3)
    for a in [name for name in held if "lora_A" in name]:
        b, g = a.replace("lora_A", "lora_B"), torch.randn(3, 3, generator=generator).double()
        held[a], held[b] = (g @ held[a].double()).float(), (held[b].double() @ torch.linalg.inv(g)).float()
    save_file(held, turned / "adapter_model.safetensors")
    (turned / "adapter_config.json").write_bytes((Path(names[0]) / "adapter_config.json").read_bytes())
    each = [{"weight": 1.0, "density": 0.5}, {"weight": 0.8, "density": 0.5}]
    merge(recipe("ties", names, each), tmp_path / "one")
    merge(recipe("ties", [str(turned), names[1]], each), tmp_path / "two")
    merge(recipe("ties", names[::-1], each[::-1]), tmp_path / "three")
    wanted = change(base, str(tmp_path / "one"))
    summed = change(base, *names)
    for other in ("two", "three"):
        found = change(base, str(tmp_path / other))
        for name, x in wanted.items():
            np.testing.assert_allclose(found[name], x, atol=2e-5)
    name = "model.layers.1.self_attn.q_proj.weight"
    assert np.abs(wanted[name] - summed[name]).max() > 0.01  # it has trimmed


def test_fewer_ranks_are_the_best_ranks(base: Path, tmp_path: Path) -> None:
    """With a limit the sum is truncated as well as can be, and the error told is the error."""
    names = adapters(base, tmp_path, {}, {})
    made = merge(recipe("task_arithmetic", names, [{"weight": 1}] * 2), tmp_path / "merged", Limit(rank=2))
    wanted, found = change(base, *names), change(base, str(tmp_path / "merged"))
    for row in made.rows:
        x = wanted[f"{row.module}.weight"]
        best = np.sqrt((np.linalg.svd(x, compute_uv=False)[2:] ** 2).sum())
        left = np.linalg.norm(x - found[f"{row.module}.weight"])
        assert row.rank == 2
        assert left == pytest.approx(best, rel=1e-4)
        assert row.error == pytest.approx(left / np.linalg.norm(x), rel=1e-4)
    rounded = merge(recipe("task_arithmetic", names, [{"weight": 0.3}] * 2), tmp_path / "bf16", dtype="bfloat16")
    assert 1e-4 < total(rounded.rows) < 1e-2


def test_command_line(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """merge by options or by a recipe, then apply: the model that a merge of base + adapter gives, in its bytes."""
    names = adapters(base, tmp_path, {}, {})

    def run(*words: str) -> str:
        with pytest.raises(SystemExit) as done:
            main(["lora", *words])
        assert done.value.code == 0
        return capsys.readouterr().out

    out = str(tmp_path / "merged")
    facts = json.loads(run("merge", *names, out, "-w", "0.5", "--json"))
    assert {module["rank"] for module in facts["modules"]} == {6}
    (tmp_path / "lora.yml").write_text(json.dumps(recipe("task_arithmetic", names, [{"weight": 0.5}] * 2)))
    run("merge", str(tmp_path / "lora.yml"), str(tmp_path / "again"))
    assert (tmp_path / "again" / "adapter_model.safetensors").read_bytes() == Path(
        out, "adapter_model.safetensors"
    ).read_bytes()
    run("merge", *names, str(tmp_path / "ties"), "--method", "ties", "-p", "density=0.4", "-p", "normalize=false")
    run("apply", str(base), out, str(tmp_path / "model"))
    wanted = plait.open(f"{base}+{out}")
    found = plait.open(tmp_path / "model")
    assert all(torch.equal(found.read(name), wanted.read(name)) for name in wanted.specs)
    run("apply", str(base), *names, str(tmp_path / "both"), "-w", "0.5")
    both = plait.open(tmp_path / "both")
    for name in wanted.specs:
        torch.testing.assert_close(both.read(name), wanted.read(name), atol=1e-6, rtol=0)


def test_adapters_that_need_their_base(base: Path, tmp_path: Path) -> None:
    """DoRA and whole tensors are refused without the base; with it the merged models' change is factored."""
    names = adapters(base, tmp_path, {"use_dora": True}, {"modules_to_save": ["lm_head"]})
    given = recipe("task_arithmetic", names, [{"weight": 0.5}] * 2)
    for one in names:
        with pytest.raises(BaseNeededError, match="by more than factors"):
            merge(recipe("task_arithmetic", [one], [{"weight": 1}]), tmp_path / "no")
    (tmp_path / "lora.yml").write_text(json.dumps(given))
    with pytest.raises(SystemExit) as done:
        main(
            [
                "lora",
                "merge",
                str(tmp_path / "lora.yml"),
                str(tmp_path / "merged"),
                "--base-model",
                str(base),
                "--error",
                "0",
            ]
        )
    assert done.value.code == 0
    wanted, found = change(base, *names, weights=[0.5, 0.5]), change(base, str(tmp_path / "merged"))
    for name, x in wanted.items():
        np.testing.assert_allclose(found[name], x, atol=1e-6)


def test_mistakes(base: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    """Adapters of different models, recipes with slices, weights that do not fit: told before the work."""
    names = adapters(base, tmp_path, {})
    other = transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**SIZES, "hidden_size": 24}))
    wide = str(trained(other, tmp_path / "wide", 0, **LORA))
    both = recipe("task_arithmetic", [*names, wide], [{"weight": 1}] * 2)
    with pytest.raises(PlaitError, match="differ in the shape"):
        merge(both, tmp_path / "out")
    sliced = {"merge_method": "passthrough", "slices": [{"sources": [{"model": names[0], "layer_range": [0, 1]}]}]}
    with pytest.raises(PlaitError, match="'slices' is for models"):
        merge(sliced, tmp_path / "out")
    with pytest.raises(PlaitError, match="is not an adapter"):
        merge(recipe("task_arithmetic", [str(base)], [{"weight": 1}]), tmp_path / "out")
    with pytest.raises(PlaitError, match="would overwrite an input"):
        merge(recipe("task_arithmetic", names, [{"weight": 1}]), names[0], force=True)
    with pytest.raises(SystemExit) as done:
        main(["lora", "merge", *names, wide, str(tmp_path / "out"), "-w", "1", "-w", "2", "-w", "3"])
    assert done.value.code == 2
    assert not (tmp_path / "out").exists()
    refused("the parameter 'density' has no value", "lora", "merge", *names, tmp_path / "out", "-p", "density")
    assert open_adapter(Path(names[0])).factors


def test_ranks_that_differ_within_a_module(tmp_path: Path, refused: Callable[..., str]) -> None:
    """Two tensors of one module that would get different ranks are refused with the bound that makes them one; no OUT is left."""
    make_model, configs = KINDS["experts in one tensor"]
    torch.manual_seed(0)
    make_model().save_pretrained(tmp_path / "base")
    names, out = adapters(tmp_path / "base", tmp_path, *configs), tmp_path / "new" / "out"
    told = refused("would have two ranks", "lora", "merge", *names, out, "--energy", "0.6", "--quiet")
    (bound,) = re.findall(r"pass (--max-rank \d+)", told)
    with pytest.raises(SystemExit) as done:
        main(["lora", "merge", *names, str(out), *bound.split(), "--quiet"])
    assert done.value.code == 0
    assert open_adapter(out).factors


def test_other_kinds(base: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    """Adapters whose factors are stored in different ways cannot be one."""
    names = adapters(base, tmp_path, {}, {})
    path = Path(names[1]) / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fan_in_fan_out": True}))
    refused("of different kinds", "lora", "merge", *names, tmp_path / "out")


@pytest.mark.parametrize("limit", [10, 2000])
def test_no_space(limit: int, base: Path, tmp_path: Path, small_files: Any, refused: Callable[..., str]) -> None:
    """A disk that does not take the adapter is told; nothing new is there, and an older adapter stays whole."""
    names, out = adapters(base, tmp_path, {}, {}), tmp_path / "new" / "out"
    refused("out failed", "lora", "merge", *names, out, "--quiet", during=lambda: small_files(limit))
    older = merge(recipe("task_arithmetic", names[:1], [{"weight": 1}]), tmp_path / "older").out
    before = make.hashes(older, "*")
    with small_files(limit), pytest.raises(OutputError, match="older failed"):
        merge(recipe("task_arithmetic", names, [{"weight": 1}] * 2), older, force=True)
    assert make.hashes(older, "*") == before

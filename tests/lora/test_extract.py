"""`plait lora extract`: the adapter between two models."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import make
import plait
from plait.cli import main
from plait.errors import PlaitError
from plait.lora import Choice, Limit, extract
from plait.lora.limit import narrow, residual
from plait.lora.report import total

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
FULL = Limit(error=0)


def llama(**more: Any) -> Any:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, **more))


def qwen2() -> Any:
    """Biases in some linear layers, and a tied head."""
    return transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**SIZES, tie_word_embeddings=True))


def gpt2() -> Any:
    """Weights stored as [in, out], biases everywhere, a table of positions, a tied head."""
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=4, n_positions=32)
    )


def opt() -> Any:
    """An architecture without a template in mergekit."""
    return transformers.OPTForCausalLM(
        transformers.OPTConfig(
            vocab_size=40,
            hidden_size=16,
            ffn_dim=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=32,
            word_embed_proj_dim=16,
        )
    )


MODELS: dict[str, Callable[[], Any]] = {"llama": llama, "qwen2": qwen2, "gpt2": gpt2, "opt": opt}


def pair(tmp_path: Path, kind: str, only: str = "") -> tuple[Path, Path, Any]:
    """(base folder, fine-tune's folder, the fine-tune): every tensor whose name has `only` in it is changed."""
    torch.manual_seed(0)
    base = MODELS[kind]().eval()
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        for name, x in tuned.named_parameters():
            if only in name:
                x += 0.05 * torch.randn_like(x)
    base.save_pretrained(tmp_path / "base")
    tuned.save_pretrained(tmp_path / "tuned")
    return tmp_path / "base", tmp_path / "tuned", tuned


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(12)[None]).logits  # type: ignore[no-any-return]


def with_peft(base: Path, adapter: Path) -> Any:
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return peft.PeftModel.from_pretrained(model, adapter).eval()


@pytest.mark.parametrize(
    ("kind", "embed"), [*((kind, False) for kind in sorted(MODELS)), ("llama", True), ("gpt2", True)]
)
def test_row_37_full_rank_reproduces_the_model(kind: str, embed: bool, tmp_path: Path) -> None:
    """At full rank PEFT runs base and adapter to the fine-tune's logits, and plait's view has its weights."""
    base, tuned, model = pair(tmp_path, kind)
    made = extract(str(tuned), str(base), tmp_path / "lora", FULL, Choice(embed=embed))
    assert made.left_out == ()
    assert bool(made.notes) == (kind == "gpt2" and embed)  # the embedding is held whole all the same
    assert total(made.rows) < 1e-6
    torch.testing.assert_close(logits(with_peft(base, tmp_path / "lora")), logits(model), atol=2e-5, rtol=0)
    seen, wanted = plait.open(f"{base}+{tmp_path / 'lora'}"), plait.open(tuned)
    for name in wanted.specs:
        torch.testing.assert_close(seen.read(name), wanted.read(name), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_error_told_is_the_error_left(kind: str, tmp_path: Path) -> None:
    """What is told of each module is the distance of its change from what base + adapter has, and no other adapter is nearer."""
    base, tuned, _ = pair(tmp_path, kind, "c_" if kind == "gpt2" else "proj")
    made = extract(str(tuned), str(base), tmp_path / "lora", Limit(rank=3))
    seen, before, after = plait.open(f"{base}+{tmp_path / 'lora'}"), plait.open(base), plait.open(tuned)
    rows = {row.module: row for row in made.rows}
    assert rows
    for module, row in rows.items():
        name = f"{module}.weight"
        change = (after.read(name).double() - before.read(name).double()).numpy()
        left = np.linalg.norm(after.read(name).double().numpy() - seen.read(name).double().numpy())
        best = np.sqrt((np.linalg.svd(change, compute_uv=False)[3:] ** 2).sum())
        assert row.rank == 3
        assert row.error == pytest.approx(left / np.linalg.norm(change), rel=1e-4)
        assert row.left == pytest.approx(best, rel=1e-4)


def test_what_did_not_change_is_not_written(tmp_path: Path) -> None:
    """The adapter holds nothing of modules that are equal in both models, and names only those that it holds."""
    base, tuned, model = pair(tmp_path, "llama", "1.self_attn.q_proj")
    extract(str(tuned), str(base), tmp_path / "lora", FULL)
    held = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    at = "base_model.model.model.layers.1.self_attn.q_proj"
    assert sorted(held) == [f"{at}.lora_A.weight", f"{at}.lora_B.weight"]
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert config["target_modules"] == ["model.layers.1.self_attn.q_proj"]
    torch.testing.assert_close(logits(with_peft(base, tmp_path / "lora")), logits(model), atol=1e-5, rtol=0)
    with pytest.raises(PlaitError, match="differs from"):
        extract(str(base), str(shutil.copytree(base, tmp_path / "copy")), tmp_path / "none", FULL)
    with pytest.raises(PlaitError, match="model and base are one"):
        extract(str(base), str(base), tmp_path / "none", FULL)
    assert not (tmp_path / "none" / "adapter_config.json").exists()


def test_ranks_differ_by_module(tmp_path: Path) -> None:
    """With an energy or an error each module has the fewest ranks that reach it; PEFT loads the ranks that differ."""
    base, tuned, _ = pair(tmp_path, "llama", "proj")
    before, after = plait.open(base), plait.open(tuned)
    for number, limit in enumerate([Limit(energy=0.7), Limit(error=0.5), Limit(rank=4, energy=0.99)]):
        out = tmp_path / str(number)
        made = extract(str(tuned), str(base), out, limit)
        for row in made.rows:
            name = f"{row.module}.weight"
            s = np.linalg.svd((after.read(name).double() - before.read(name).double()).numpy(), compute_uv=False) ** 2
            share = limit.energy if limit.energy else 1 - float(limit.error or 0) ** 2
            fewest = int((np.cumsum(s) < share * s.sum()).sum()) + 1
            assert row.rank == min(fewest, limit.rank or fewest)
        loaded = with_peft(base, out)
        ranks = {
            n.removeprefix("base_model.model."): m.r["default"]
            for n, m in loaded.named_modules()
            if hasattr(m, "lora_A")
        }
        assert ranks == {row.module: row.rank for row in made.rows}


def test_a_sketch_is_nearly_the_best(tmp_path: Path) -> None:
    """Few ranks of a large matrix come from a sketch, whose error is within 1 % of the smallest; twice the same bits."""
    generator = torch.Generator().manual_seed(0)
    u, v = (torch.linalg.qr(torch.randn(n, 200, generator=generator).double()).Q for n in (300, 260))
    s = torch.arange(1, 201).double() ** -0.7
    x = u * s @ v.mT
    found = narrow(x, Limit(rank=12), "x")
    left, norm = residual(x, found.left, found.right)
    assert found.rank == 12
    assert left <= 1.01**2 * float(s[12:].square().sum())
    assert norm == pytest.approx(float(s.square().sum()))
    again = narrow(x, Limit(rank=12), "x")
    assert torch.equal(found.left, again.left)
    for limit in (Limit(energy=0.6), Limit(error=0.8)):
        rank = narrow(x, limit, "x").rank
        kept = s.square().cumsum(0) / s.square().sum()
        assert kept[rank - 1] >= (limit.share() or 0) - 1e-3
        assert rank == 1 or kept[rank - 2] < (limit.share() or 0)


def test_the_same_bytes(tmp_path: Path) -> None:
    """The number of threads changes no byte."""
    base, tuned, _ = pair(tmp_path, "llama")
    found = set()
    for threads in (1, 3):
        extract(str(tuned), str(base), tmp_path / str(threads), Limit(rank=3), threads=threads)
        found.add((tmp_path / str(threads) / "adapter_model.safetensors").read_bytes())
    assert len(found) == 1


def test_choice_of_modules(tmp_path: Path) -> None:
    """Patterns, saved modules and --skip-undecomposable do what they say, in mergekit's spelling."""
    base, tuned, _ = pair(tmp_path, "llama")
    common = ["lora", "extract", "--model", str(tuned), "--base-model", str(base), "--max-rank", "2", "--quiet"]

    def held(*more: str) -> set[str]:
        out = tmp_path / f"lora {len(list(tmp_path.iterdir()))}"
        with pytest.raises(SystemExit) as done:
            main([*common, "--out-path", str(out), *more])
        assert done.value.code == 0
        return {name.removeprefix("base_model.model.") for name in load_file(out / "adapter_model.safetensors")}

    every = held()
    assert {"lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"} <= every
    assert "model.layers.0.input_layernorm.weight" not in held("--skip-undecomposable")
    assert "model.embed_tokens.weight" in held("--skip-undecomposable")
    factors = held("--embed-lora", "--skip-undecomposable")
    assert {"model.embed_tokens.lora_embedding_A", "lm_head.lora_A.weight"} <= factors
    only = held("-i", "self_attn", "-i", r"norm$", "-e", r"\.1\.", "--no-distribute-scale")
    assert {name.split(".lora_")[0] for name in only} == {
        *(f"model.layers.0.self_attn.{x}_proj" for x in "qkvo"),
        *(f"model.{x}.weight" for x in ("norm", "layers.0.input_layernorm", "layers.0.post_attention_layernorm")),
    }
    assert "model.layers.0.mlp.up_proj.weight" in held("--save-module", "up_proj")


def test_mistakes(tmp_path: Path) -> None:
    """Bounds, patterns, dtypes and vocabularies that cannot be are told before the work; nothing is left behind."""
    base, tuned, _ = pair(tmp_path, "llama")
    wide = make.model(tmp_path / "wide", vocab=48, hidden=8)
    narrower = make.model(tmp_path / "narrower", vocab=40, hidden=8)
    out = tmp_path / "lora"
    with pytest.raises(PlaitError, match="the energy cannot be 2"):
        Limit(energy=2)
    with pytest.raises(PlaitError, match="is no regular expression"):
        extract(str(tuned), str(base), out, FULL, Choice(include=["("]))
    with pytest.raises(PlaitError, match="cannot be written in 'int8'"):
        extract(str(tuned), str(base), out, FULL, dtype="int8")
    with pytest.raises(PlaitError, match="another number of rows"):
        extract(str(wide), str(narrower), out, FULL)
    assert not out.exists()
    extract(str(wide), str(narrower), out, FULL, Choice(exclude=["embed_tokens", "lm_head"]))
    with pytest.raises(PlaitError, match="is not empty"):
        extract(str(tuned), str(base), out, FULL)
    with pytest.raises(PlaitError, match="would overwrite an input"):
        extract(str(tuned), str(base), base, FULL, force=True)

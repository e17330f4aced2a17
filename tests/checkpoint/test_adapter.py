"""An adapter over a base is what PEFT makes of the two."""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import make
import plait
import vocabularies
from loras import lora
from plait.checkpoint import InMemory
from plait.checkpoint.adapter import Adapted, open_adapter
from plait.cli import main
from plait.errors import PlaitError
from plait.testing.checkpoints import check

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


def llama(**more: Any) -> Any:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**(SIZES | more)))


def gpt2() -> Any:
    config = transformers.GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=4, n_positions=32)
    config.tie_word_embeddings = False
    return transformers.GPT2LMHeadModel(config)


def moe(kind: str) -> Any:
    more = {"num_experts": 4, "moe_intermediate_size": 12, "num_experts_per_tok": 2, "head_dim": 4}
    if kind == "qwen":
        return transformers.Qwen3MoeForCausalLM(transformers.Qwen3MoeConfig(**SIZES, **more))
    if kind == "mixtral":
        return transformers.MixtralForCausalLM(
            transformers.MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2)
        )
    if kind == "granite":
        return transformers.GraniteMoeForCausalLM(
            transformers.GraniteMoeConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2)
        )
    sizes = SIZES | {"intermediate_size": 16}
    return transformers.GptOssForCausalLM(
        transformers.GptOssConfig(**sizes, num_local_experts=4, num_experts_per_tok=2, head_dim=4)
    )


class Conv(torch.nn.Module):
    """A model of convolutions, as towers for pictures and sound begin."""

    def __init__(self) -> None:
        super().__init__()
        self.config = {"model_type": "conv"}
        self.patch = torch.nn.Conv2d(3, 8, 4)
        self.point = torch.nn.Conv2d(8, 6, 1)
        self.sound = torch.nn.Conv1d(5, 7, 3)


BOTH = ["q_proj", "down_proj", "o_proj"]
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
EXPERTS_OF_GRANITE = [f"experts.{name}" for name in ("gate_up_proj", "down_proj")]
#: name -> (the base, the options of its LoRA)
KINDS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "plain": (llama, {"target_modules": BOTH}),
    "rslora": (llama, {"target_modules": BOTH, "use_rslora": True}),
    "patterns": (
        llama,
        {
            "target_modules": BOTH,
            "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.down_proj": 5},
            "alpha_pattern": {"^model.layers.0.self_attn.q_proj": 7, "o_proj": 1},
        },
    ),
    "dora": (llama, {"target_modules": BOTH, "use_dora": True}),
    "all linear": (llama, {"target_modules": "all-linear"}),
    "embeddings": (llama, {"target_modules": ["embed_tokens", "lm_head"]}),
    "dora of embeddings": (llama, {"target_modules": ["embed_tokens", "q_proj"], "use_dora": True}),
    "modules to save": (llama, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens", "norm"]}),
    "tokens": (llama, {"target_modules": ["q_proj"], "trainable_token_indices": [3, 0, 39]}),
    "bias all": (lambda: llama(attention_bias=True), {"target_modules": ["q_proj"], "bias": "all"}),
    "bias of lora": (lambda: llama(attention_bias=True), {"target_modules": ["q_proj", "o_proj"], "bias": "lora_only"}),
    "lora_bias": (lambda: llama(attention_bias=True), {"target_modules": ["q_proj"], "lora_bias": True}),
    "fan_in_fan_out": (gpt2, {"target_modules": ["c_attn", "c_proj", "lm_head"]}),
    "dora fan_in_fan_out": (gpt2, {"target_modules": ["c_attn", "c_proj"], "use_dora": True, "fan_in_fan_out": True}),
    "convolutions": (Conv, {"target_modules": ["patch", "point", "sound"]}),
    "dora of convolutions": (Conv, {"target_modules": ["patch", "point", "sound"], "use_dora": True}),
    "experts, one each": (lambda: moe("qwen"), {"target_modules": ["q_proj"], "target_parameters": EXPERTS}),
    "one parameter": (lambda: moe("qwen"), {"target_modules": [], "target_parameters": EXPERTS[1:]}),
    "experts of mixtral": (lambda: moe("mixtral"), {"target_modules": [], "target_parameters": EXPERTS}),
    "all linear of experts": (lambda: moe("qwen"), {"target_modules": "all-linear", "use_rslora": True}),
    "all linear of mixtral": (
        lambda: moe("mixtral"),
        {"target_modules": "all-linear", "alpha_pattern": {"down_proj": 9}},
    ),
    "experts of granite": (
        lambda: moe("granite"),
        {"target_modules": ["o_proj"], "target_parameters": EXPERTS_OF_GRANITE},
    ),
    "experts, packed": (lambda: moe("gpt-oss"), {"target_modules": [], "target_parameters": EXPERTS}),
}


def adapted(folder: Path, base: Callable[[], Any], options: dict[str, Any]) -> tuple[Path, Any]:
    """A base and an adapter with random weights, in `folder`; its reference, and the PEFT model."""
    torch.manual_seed(0)
    model = base()
    if isinstance(model, Conv):
        (folder / "base").mkdir()
        torch.save(model.state_dict(), folder / "base" / "pytorch_model.bin")
        make.write_json(folder / "base" / "config.json", model.config)
    else:
        model.save_pretrained(folder / "base")
    lora = peft.get_peft_model(model, peft.LoraConfig(**{"r": 3, "lora_alpha": 5, **options})).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, x in lora.named_parameters():
            if x.requires_grad and "magnitude" not in name:
                x += torch.randn(x.shape, generator=generator) * 0.2
            elif "magnitude" in name:
                x *= 1 + torch.rand(x.shape, generator=generator)
    lora.save_pretrained(folder / "lora")
    return folder / f"base+{folder / 'lora'}", lora


def merged(lora: Any, folder: Path) -> dict[str, torch.Tensor]:
    """PEFT's merge, with the names of files."""
    model = lora.merge_and_unload()
    if isinstance(model, Conv):
        return dict(model.state_dict())
    model.save_pretrained(folder / "merged")
    checkpoint = plait.open(folder / "merged")
    return {name: checkpoint.read(name) for name in checkpoint.specs}


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference, in units of the last place of the largest entry of its row."""
    scale = torch.maximum(a.abs(), b.abs()).reshape(len(a), -1).amax(1).clamp_min(1e-30).log2().floor().exp2() * 2**-23
    return float(((a - b).abs().reshape(len(a), -1).amax(1) / scale).max())


@pytest.mark.parametrize("kind", KINDS)
def test_as_peft_merges(kind: str, tmp_path: Path) -> None:
    """For each kind of LoRA every tensor is that of PEFT's merge_and_unload, to a few units of the last place of float32."""
    ref, lora = adapted(tmp_path, *KINDS[kind])
    ours, theirs = plait.open(ref), merged(lora, tmp_path)
    base = plait.open(tmp_path / "base")
    assert set(ours.specs) == set(theirs) == set(base.specs)
    assert {name: d for name, x in theirs.items() if (d := apart(ours.read(name), x)) > 4} == {}
    changed = [name for name in theirs if not torch.equal(ours.read(name), base.read(name))]
    assert len(changed) > 1
    assert check(ours) == []


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(12)[None]).logits


TIED: dict[str, dict[str, Any]] = {
    "the embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "the head": {"target_modules": ["lm_head", "q_proj"]},
    "both": {"target_modules": ["lm_head", "embed_tokens"]},
    "a saved embedding": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "a saved head": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "neither": {"target_modules": ["q_proj"]},
    "tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [3, 0, 39]},
}


@pytest.mark.parametrize("kind", TIED)
def test_as_peft_runs_a_tied_base(kind: str, tmp_path: Path) -> None:
    """Over a base that ties head and embedding, the merge is the model that PEFT runs: untied if the adapter parts the two."""
    ref, lora = adapted(tmp_path, lambda: llama(tie_word_embeddings=True), TIED[kind])
    expected = logits(lora)
    merge = plait.merge(make.recipe("passthrough", ref, parameters={}))
    untied = kind not in ("neither", "tokens")
    told = next(note for note in merge.plan.notes if "the adapter changes" in note)
    assert ("the head is a tensor of its own" in told) == untied
    assert ("lm_head.weight" in merge.specs, merge.config["tie_word_embeddings"]) == (untied, not untied)
    found = logits(merge.to_transformers().eval())
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


RESIZED: dict[str, dict[str, Any]] = {
    "saved": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    "saved beside it": {"target_modules": ["q_proj"]},
    "adapted": {"target_modules": ["q_proj", "embed_tokens"]},
}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", RESIZED)
def test_other_tokens(kind: str, tied: bool, tmp_path: Path) -> None:
    """An adapter that was trained with more or fewer tokens gives the model that PEFT runs, with the adapter's tokenizer."""
    made = vocabularies.tokenizer("byte-level", vocabularies.PLAIN, 90)
    count = made.get_vocab_size()
    model = llama(tie_word_embeddings=tied, vocab_size=count)
    model.save_pretrained(tmp_path / "base")
    made.save(str(tmp_path / "base" / "tokenizer.json"))
    made.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    model.resize_token_embeddings(count + 2)
    tuned = peft.get_peft_model(model, peft.LoraConfig(r=3, **RESIZED[kind])).eval()
    with torch.no_grad():
        for x in tuned.parameters():
            if x.requires_grad:
                x += torch.randn(x.shape) * 0.2
    tuned.save_pretrained(tmp_path / "lora", save_embedding_layers=True)
    made.save(str(tmp_path / "lora" / "tokenizer.json"))
    ref = f"{tmp_path / 'base'}+{tmp_path / 'lora'}"
    if kind == "adapted" and not tied:  # the file does not have the head's new rows
        with pytest.raises(PlaitError, match="does not fit its base"):
            plait.open(ref)
        return
    merge = plait.merge(make.recipe("passthrough", ref, parameters={}))
    out = merge.save(tmp_path / "out").out
    network = transformers.AutoModelForCausalLM.from_pretrained(out).eval()
    assert (logits(network) - logits(tuned)).abs().max() < 1e-5 * logits(tuned).abs().max()
    assert merge.config["vocab_size"] == count + 2
    assert (out / "tokenizer.json").read_bytes() == (tmp_path / "lora" / "tokenizer.json").read_bytes()
    assert any(f"trained with {count + 2} tokens" in note for note in merge.plan.notes)
    recipe = make.recipe("task_arithmetic", ref, base=tmp_path / "base", tokenizer={"source": "union"})
    united, both = plait.merge(recipe), plait.open(ref)
    assert torch.allclose(united.read("model.embed_tokens.weight"), both.read("model.embed_tokens.weight"), atol=2e-7)


def test_blocks_change_no_bit(tmp_path: Path) -> None:
    """A tensor of many blocks has the same bits however it is read, and they are those of float64 rounded once."""
    base = {"x_proj.weight": torch.randn(700, 900, generator=torch.Generator().manual_seed(3)).bfloat16()}
    adapter = open_adapter(lora(tmp_path / "lora", base))
    view = Adapted(InMemory(base), adapter)
    assert check(view) == []
    a, b = (x.double() for x in adapter.read(adapter.factors[0]))
    exact = base["x_proj.weight"].double() + b @ a * adapter.factors[0].scale
    assert (adapter.factors[0].rank, adapter.factors[0].scale) == (4, 2.0)
    assert torch.equal(view.read("x_proj.weight"), exact.float())


def test_dtypes(tmp_path: Path) -> None:
    """Over bfloat16 the weights are exact until the merge rounds them, to bfloat16 again; --lora-merge-dtype rounds before."""
    base = make.model(tmp_path / "base", dtype=torch.bfloat16)
    ref = f"{base}+{lora(tmp_path / 'lora', make.tensors())}"
    recipe = make.recipe("linear", ref)
    name = "model.layers.0.mlp.up_proj.weight"
    exact = plait.merge({**recipe, "dtype": "float32"}).read(name)
    merge, rounded = plait.merge(recipe), plait.merge({**recipe, "dtype": "float32"}, lora_merge_dtype="bfloat16")
    assert {spec.dtype for spec in merge.specs.values()} == {"BF16"}
    assert torch.equal(plait.open(ref).read(name), exact)
    assert torch.equal(merge.read(name), exact.bfloat16())
    assert torch.equal(rounded.read(name), exact.bfloat16().float())
    assert not torch.equal(rounded.read(name), exact)
    passed = plait.merge(make.recipe("passthrough", ref, parameters={}), lora_merge_dtype="float32")
    assert {spec.dtype for spec in passed.specs.values()} == {"F32"}
    with pytest.raises(PlaitError, match="rounded"):
        plait.merge(recipe, lora_merge_dtype="int8")


def test_adapters_of_one_base(tmp_path: Path) -> None:
    """Adapters merge among themselves over their base: with task arithmetic their changes add up."""
    made = make.tensors()
    base = make.write(tmp_path / "base", made)
    one, two = (lora(tmp_path / name, made, rank, rank) for name, rank in (("one", 2), ("two", 3)))
    merge = plait.merge(make.recipe("task_arithmetic", f"{base}+{one}", f"{base}+{two}", base=base))
    held = [load_file(folder / "adapter_model.safetensors") for folder in (one, two)]
    assert merge.plan.read_nbytes == sum(x.nbytes for part in (made, made, made, *held) for x in part.values())
    name = "model.layers.1.self_attn.q_proj.weight"
    exact = made[name].double()
    for folder in (one, two):
        adapter = open_adapter(folder)
        factors = next(f for f in adapter.factors if f"{f.module}.weight" == name)
        a, b = adapter.read(factors)
        exact = exact + factors.scale * (b.double() @ a.double())
    assert torch.allclose(merge.read(name).double(), exact, rtol=0, atol=2e-7)


def test_same_bytes(tmp_path: Path) -> None:
    """A merge with adapters has the same bytes on one thread and on several."""
    base = make.model(tmp_path / "base", hidden=64, dtype=torch.bfloat16)
    folder = lora(tmp_path / "lora", make.tensors(hidden=64))
    merge = plait.merge(
        make.recipe("dare_ties", f"{base}+{folder}", base=base, parameters={"weight": 1, "density": 0.5})
    )
    for threads in (1, 3):
        merge.save(tmp_path / str(threads), threads=threads)
    assert make.hashes(tmp_path / "1") == make.hashes(tmp_path / "3")


@pytest.mark.parametrize("method", ["passthrough", "linear", "ties", "slerp", "ortho_merge"])
def test_one_thread_for_each(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a merge reads through an adapter, each of its threads keeps torch to itself: torch's own would only wait."""
    made = make.tensors()
    base, seen = make.write(tmp_path / "base", made), []
    read = Adapted.read

    def spied(view: Adapted, name: str, rows: Any = None) -> torch.Tensor:
        seen.append(torch.get_num_threads())
        return read(view, name, rows)

    monkeypatch.setattr(Adapted, "read", spied)
    ref, values = f"{base}+{lora(tmp_path / 'lora', made)}", {"t": 0.3} if method == "slerp" else {"weight": 1.0}
    recipe = make.recipe(method, ref, base=None if method in ("passthrough", "linear") else base, parameters=values)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        plait.merge({**recipe, "parameters": {} if method == "passthrough" else values}).save(tmp_path / "out")
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {1}


def run(*args: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(list(args))
    assert ended.value.code == 0


def test_told(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """An adapter is inspected like a model, merges from the command line, and is in the record of what was merged."""
    monkeypatch.chdir(tmp_path)
    make.model(Path("base"))
    lora(Path("lora"), make.tensors())
    run("inspect", "base+lora")
    assert capsys.readouterr().out.startswith("base+lora: LlamaForCausalLM")
    make.write_json(Path("merge.yml"), make.recipe("linear", "base+lora", "base"))
    run("merge", "merge.yml", "out", "--lora-merge-cache", "x", "--lora-merge-dtype", "bfloat16")
    facts = json.loads(Path("out/plait_provenance.json").read_text())["models"][0]
    assert (facts["model"], facts["adapter_revision"]) == ("base+lora", None)
    names = [file["name"] for file in facts["files"]]
    assert names == ["model.safetensors", "adapter_model.safetensors", "adapter_config.json"]
    assert all(file["fingerprint"] for file in facts["files"])
    assert not Path("x").exists()


def test_row_18_lora_cache(tmp_path: Path) -> None:
    """An adapter that was changed is merged as it is now, whatever lies in the folder that is given for a cache."""
    made = make.tensors()
    base = make.write(tmp_path / "base", made)
    name = "model.layers.0.mlp.up_proj.weight"
    make.write_json(tmp_path / "merge.yml", make.recipe("linear", f"{base}+{tmp_path / 'lora'}"))
    (tmp_path / "cache" / f"base_{zlib.crc32(str(base).encode())}").mkdir(parents=True)
    seen = []
    for seed in (1, 2):
        shutil.rmtree(tmp_path / "lora", ignore_errors=True)
        folder, out = lora(tmp_path / "lora", made, seed=seed), tmp_path / f"out{seed}"
        run("merge", str(tmp_path / "merge.yml"), str(out), "--lora-merge-cache", str(tmp_path / "cache"), "--quiet")
        held = load_file(folder / "adapter_model.safetensors")
        b, a = (held[f"base_model.model.{name.removesuffix('weight')}lora_{part}.weight"].double() for part in "BA")
        seen.append(load_file(out / "model.safetensors")[name])
        assert torch.equal(seen[-1], (made[name].double() + 2 * b @ a).float())
    assert not torch.equal(*seen)
    assert [*(tmp_path / "cache").rglob("*.safetensors")] == []


@pytest.mark.parametrize("prefix", ["", "model.language_model.", "language_model.model."])
def test_other_prefixes(prefix: str, tmp_path: Path) -> None:
    """An adapter that was trained on a model with other prefixes finds the tensors by the ends of their names."""
    made = make.tensors()
    renamed = {f"{prefix}{name.removeprefix('model.')}": x for name, x in made.items()}
    renamed |= {
        f"vision_tower.{name.removeprefix('model.')}": x for name, x in made.items() if prefix and "layers" in name
    }
    view = Adapted(InMemory(renamed), open_adapter(lora(tmp_path / "lora", made)))
    plain = Adapted(InMemory(made), open_adapter(tmp_path / "lora"))
    for name in made:
        assert torch.equal(plain.read(name), view.read(f"{prefix}{name.removeprefix('model.')}"))
    for name in renamed:
        if name.startswith("vision_tower"):
            assert torch.equal(view.read(name), renamed[name])


def test_adapters_named_alone(tmp_path: Path) -> None:
    """An adapter without a base is read over the recipe's base, else over the one that it names; the plan says which."""
    made = make.tensors()
    base, other = make.write(tmp_path / "base", made), make.model(tmp_path / "other", seed=4)
    one, two = (lora(tmp_path / n, made, seed=i, base_model_name_or_path=str(base)) for i, n in enumerate("ab"))
    name = "model.layers.1.self_attn.q_proj.weight"
    over = {str(one): f"{base}+{one}", str(two): f"{base}+{two}"}
    rules = [{"when": {"name": "/q_proj/"}, "copy": str(one)}]
    for more in ({"base": base}, {}):
        method = "task_arithmetic" if more else "linear"
        alone = plait.merge({**make.recipe(method, *over, **more), "rules": rules})
        spelt = plait.merge(
            {**make.recipe(method, *over.values(), **more), "rules": [{**rules[0], "copy": over[str(one)]}]}
        )
        assert [str(m.ref) for m in alone.plan.models] == [str(m.ref) for m in spelt.plan.models]
        assert all(torch.equal(alone.read(n), spelt.read(n)) for n in spelt.specs)
        assert torch.equal(alone.read(name), plait.open(over[str(one)]).read(name))
        assert f"{one} is an adapter, and is read over {base}; its adapter_config.json names {base}" in alone.plan.notes
    moved = plait.merge(make.recipe("task_arithmetic", one, base=other))
    assert [str(m.ref) for m in moved.plan.models] == [f"{other}+{one}", str(other)]
    nameless = lora(tmp_path / "c", made)
    with pytest.raises(PlaitError, match="a LoRA adapter"):
        plait.merge(make.recipe("linear", nameless, one))
    with pytest.raises(PlaitError, match=f"name it as {base}"):
        plait.open(one)

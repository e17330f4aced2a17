"""`plait moe`: what is in a mixture, how its routers are made, and what is found before the work."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import make
from loras import lora
from moe.bases import base, logits
from plait.checkpoint import Checkpoint
from plait.checkpoint.directory import read_json
from plait.cli import main
from plait.errors import PlaitError, Problems
from plait.journal import NAME
from plait.merged import Merge
from plait.moe import prepare
from plait.ops.random import normal
from plait.testing.checkpoints import check

PROMPTS = (["w5 w9 w11", "w7"], ["w20 w21"], ["w30 w31 w32 w33 w34"])


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("models")
    return [base(folder / f"m{i}", "llama", i) for i in range(4)]


def asked(models: list[Path], **more: Any) -> dict[str, Any]:
    experts = [{"source_model": str(m), "positive_prompts": p} for m, p in zip(models[1:], PROMPTS, strict=True)]
    experts[1]["negative_prompts"] = ["w40 w41"]
    return {"base_model": str(models[0]), "gate_mode": "cheap_embed", "experts": experts, **more}


def made(recipe: dict[str, Any], out: Path, **options: Any) -> dict[str, torch.Tensor]:
    Merge(prepare(recipe, **options).plan).save(out)
    return load_file(out / "model.safetensors")


def test_what_is_in_it(models: list[Path], tmp_path: Path) -> None:
    """Experts are the mlps of their models, byte for byte, under the names of published Mixtral; all else is the base's."""
    found = made(asked(models), tmp_path / "out")
    sources = [load_file(m / "model.safetensors") for m in models]
    words = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}
    for name, x in found.items():
        if match := re.fullmatch(r"(model\.layers\.\d\.)block_sparse_moe\.experts\.(\d)\.(w\d)\.weight", name):
            layer, expert, word = match.groups()
            assert torch.equal(x, sources[1 + int(expert)][f"{layer}mlp.{words[word]}.weight"])
        elif "block_sparse_moe" not in name:
            assert torch.equal(x, sources[0].pop(name))
    assert {name.split(".", 3)[-1].split(".")[0] for name in sources[0]} == {"mlp"}
    config = read_json(tmp_path / "out" / "config.json")
    assert (config["num_local_experts"], config["num_experts_per_tok"], config["model_type"]) == (3, 2, "mixtral")
    assert (tmp_path / "out" / "tokenizer.json").is_file()


def words(text: str) -> list[int]:
    """The tokens of a prompt: the beginning, then each word's number."""
    return [1, *(int(word[1:]) for word in text.split())]


def row(vectors: list[np.ndarray], against: list[np.ndarray], summed: bool) -> np.ndarray:
    def unit(v: np.ndarray) -> np.ndarray:
        return v / max(np.linalg.norm(v), 1e-8)

    def side(found: list[np.ndarray]) -> np.ndarray | float:
        if not found:
            return 0.0
        return unit(np.sum(found, 0)) if summed else np.mean(found, 0)

    return unit(side(vectors) - side(against))


@pytest.mark.parametrize("mode", ["cheap_embed", "hidden", "hidden_last", "hidden_avg"])
def test_rows_follow_the_prompts(models: list[Path], mode: str, tmp_path: Path) -> None:
    """Router rows are what transformers gives for the whole base, a prompt at a time: in each layer what enters it."""
    network = AutoModelForCausalLM.from_pretrained(models[0]).eval()
    table = load_file(models[0] / "model.safetensors")["model.embed_tokens.weight"].double().numpy()

    def vector(text: str, layer: int) -> np.ndarray:
        ids = words(text)
        if mode == "cheap_embed":
            return table[ids].sum(0)
        with torch.inference_mode():
            states = network(torch.tensor([ids]), output_hidden_states=True).hidden_states[layer][0].double().numpy()
        return states.mean(0) if mode == "hidden_avg" else states[-1]

    recipe = asked(models, gate_mode=mode)
    found = made(recipe, tmp_path / "out")
    for layer in range(2):
        rows = [
            row(
                [vector(t, layer) for t in e["positive_prompts"]],
                [vector(t, layer) for t in e.get("negative_prompts", ())],
                mode == "cheap_embed",
            )
            for e in recipe["experts"]
        ]
        gate = found[f"model.layers.{layer}.block_sparse_moe.gate.weight"].numpy()
        np.testing.assert_allclose(gate, rows, atol=2e-5)


def test_one_layer_at_a_time(models: list[Path]) -> None:
    """While hidden states are computed, no more than one layer of the base has weights in memory, and each is read once."""
    prepared = prepare(asked(models, gate_mode="hidden"))
    network = prepared.gates._network
    assert network
    read: list[str] = []
    inner: Checkpoint = network._opened.checkpoint

    class Watched:
        config, specs = inner.config, inner.specs

        def read(self, name: str, rows: tuple[int, int] | None = None) -> torch.Tensor:
            real = [i for i, layer in enumerate(network._layers) if next(layer.parameters()).device.type != "meta"]
            assert len(real) <= 1
            read.append(name)
            return inner.read(name, rows)

    object.__setattr__(network._opened, "checkpoint", Watched())
    try:
        prepared.gates.compute()
    finally:
        object.__setattr__(network._opened, "checkpoint", inner)
    layers = [name for name in read if "layers.0." in name]
    assert len(layers) == len(set(layers)) == 9  # the last layer is entered, not run
    assert all(p.device.type == "meta" for layer in network._layers for p in layer.parameters())


@pytest.mark.parametrize("mode", ["random", "uniform_random"])
def test_random_rows(models: list[Path], mode: str, tmp_path: Path) -> None:
    """Random rows are the same on every run of a seed, others for another, unlike in each layer and expert, and of their law."""
    recipe = asked(models, gate_mode=mode)
    first, again, other = (made(recipe, tmp_path / str(i), seed=s) for i, s in enumerate((1, 1, 2)))
    name = "model.layers.{}.block_sparse_moe.gate.weight"
    assert torch.equal(first[name.format(0)], again[name.format(0)])
    rows = torch.cat([x[name.format(i)] for x in (first, other) for i in range(2)])
    assert len({tuple(r.tolist()) for r in rows}) == len(rows) == 12
    if mode == "uniform_random":
        assert 0.9 / 32**0.5 < float(rows.abs().max()) <= 1 / 32**0.5
    else:
        assert 0.8 < float(rows.std()) < 1.2


def test_normal_numbers() -> None:
    """The normal numbers have the moments and quantiles of their distribution, and depend on no cut."""
    x = normal(3, "t", 0, 0, 200_000).double()
    assert abs(float(x.mean())) < 0.01
    assert abs(float(x.std()) - 1) < 0.01
    assert abs(float((x**4).mean()) - 3) < 0.1
    assert abs(float((x < -1.959964).double().mean()) - 0.025) < 0.002
    assert torch.equal(normal(3, "t", 0, 777, 100).double(), x[777:877])


def test_noise_and_scale(models: list[Path], tmp_path: Path) -> None:
    """An expert has w + noise_scale n, and its down projection that times residual_scale; the bytes do not depend on threads."""
    recipe = asked(models)
    recipe["experts"][0] |= {"noise_scale": 0.25, "residual_scale": 0.5}
    plan = prepare(recipe, seed=4).plan
    for threads in (1, 3):
        Merge(plan).save(tmp_path / str(threads), threads=threads)
    assert make.hashes(tmp_path / "1") == make.hashes(tmp_path / "3")
    found, source = load_file(tmp_path / "1" / "model.safetensors"), load_file(models[1] / "model.safetensors")
    for word, ours, scale in (("up_proj", "w3", 1.0), ("down_proj", "w2", 0.5)):
        name = f"model.layers.1.block_sparse_moe.experts.0.{ours}.weight"
        x = source[f"model.layers.1.mlp.{word}.weight"]
        noise = normal(4, name, 0, 0, x.numel()).reshape(x.shape)
        torch.testing.assert_close(found[name], (x + 0.25 * noise) * scale)
    told = read_json(tmp_path / "1" / "plait_provenance.json")["settings"]
    assert {(row["parameter"], row.get("value")) for row in told} == {("noise_scale", 0.25), ("residual_scale", 0.5)}


def test_fused(models: list[Path], tmp_path: Path) -> None:
    """--expert-layout fused writes transformers' own layout, which says the same."""
    recipe = asked(models, dtype="float32")
    split, fused = (made(recipe, tmp_path / str(kind), expert_layout=kind) for kind in (None, "fused"))
    assert fused["model.layers.0.mlp.experts.gate_up_proj"].shape == (3, 96, 32)
    assert torch.equal(
        fused["model.layers.1.mlp.experts.down_proj"][2], split["model.layers.1.block_sparse_moe.experts.2.w2.weight"]
    )
    assert torch.equal(logits(tmp_path / "None"), logits(tmp_path / "fused"))


def test_experts_of_any_kind(models: list[Path], tmp_path: Path) -> None:
    """An expert may be a model with an adapter, or a recipe that is merged as it is read."""
    weights = load_file(models[1] / "model.safetensors")
    adapter = lora(tmp_path / "lora", {n: x for n, x in weights.items() if "layers" in n})
    nested = make.recipe("linear", *models[2:4])
    recipe = asked(models)
    recipe["experts"][0]["source_model"] = f"{models[1]}+{adapter}"
    recipe["experts"][1]["source_model"] = nested
    found = made(recipe, tmp_path / "out")
    two, three = (load_file(m / "model.safetensors")["model.layers.0.mlp.up_proj.weight"] for m in models[2:4])
    torch.testing.assert_close(found["model.layers.0.block_sparse_moe.experts.1.w3.weight"], (two + three) / 2)
    got = load_file(adapter / "adapter_model.safetensors")
    at = "base_model.model.model.layers.0.mlp.up_proj"
    delta = got[f"{at}.lora_B.weight"] @ got[f"{at}.lora_A.weight"] * 2  # alpha 8, rank 4
    expected = weights["model.layers.0.mlp.up_proj.weight"] + delta
    torch.testing.assert_close(found["model.layers.0.block_sparse_moe.experts.0.w3.weight"], expected)


def test_row_36_moe_variants(models: list[Path], tmp_path: Path) -> None:
    """A Qwen2-MoE's shared expert need not be a routed one; an unknown gate_mode is told with its line and the nearest word."""
    recipe = asked(models, architecture="qwen")
    recipe["experts"] = recipe["experts"][:2]
    recipe["shared_experts"] = [{"source_model": str(models[3]), "positive_prompts": ["w50"], "residual_scale": 0.1}]
    found = made(recipe, tmp_path / "out")
    source = load_file(models[3] / "model.safetensors")["model.layers.0.mlp.down_proj.weight"]
    torch.testing.assert_close(found["model.layers.0.mlp.shared_expert.down_proj.weight"], source * 0.1)
    assert found["model.layers.0.mlp.shared_expert_gate.weight"].norm() == pytest.approx(1, abs=1e-5)
    assert logits(tmp_path / "out").isfinite().all()
    with pytest.raises(PlaitError, match="'hiden' is unknown") as error:
        prepare(yaml.safe_dump({**recipe, "gate_mode": "hiden"}))
    assert error.value.do == "write hidden"
    assert error.value.where is not None


def test_checkpoint(models: list[Path]) -> None:
    """Routers, and a fused mixture that is not written, keep the contract of a checkpoint."""
    made = prepare(asked(models), expert_layout="fused")
    assert check(made.gates) == check(Merge(made.plan)) == []


def told(recipe: dict[str, Any], **options: Any) -> list[str]:
    with pytest.raises(PlaitError) as error:
        prepare(yaml.safe_dump(recipe, sort_keys=False), **options)
    found = error.value.problems if isinstance(error.value, Problems) else [error.value]
    assert all(problem.where and problem.where.line for problem in found), str(error.value)
    return [str(problem) for problem in found]


def test_mistakes_before_the_work(models: list[Path], tmp_path: Path) -> None:
    """What does not fit is told with its line before a weight is read."""
    wide, gpt = (
        base(tmp_path / "wide", "llama", intermediate_size=64),
        base(tmp_path / "gpt", "gpt2", n_embd=32, n_head=4),
    )
    gelu = base(tmp_path / "gelu", "llama", hidden_act="gelu")
    bias = base(tmp_path / "bias", "llama", attention_bias=True)

    def changed(**more: Any) -> dict[str, Any]:
        recipe = asked(models, **more)
        return json.loads(json.dumps(recipe))

    recipe = changed()
    recipe["experts"][1]["source_model"], recipe["experts"][2]["source_model"] = str(wide), str(gelu)
    first, second = told(recipe)
    assert re.search("an mlp 48 wide.*an mlp 64 wide", first, re.S)
    assert re.search("activation silu.*activation gelu", second, re.S)
    assert "no mixture can be made" in told(changed(base_model=str(gpt)))[0]
    assert "has no place for tensors" in told(changed(base_model=str(bias)))[0]
    assert "is called 'phi'" in told(changed(architecture="phi"))[0]
    assert (
        "Mixtral: it has no place for a shared expert"
        in told(changed(architecture="mixtral", shared_experts=[{"source_model": str(models[1])}]))[0]
    )
    assert "it needs one shared expert" in told(changed(architecture="qwen"))[0]
    assert "too few experts" in told(changed(experts_per_token=9))[0]
    recipe = changed()
    for expert in recipe["experts"]:
        expert["source_model"] = str(models[1])
    assert "all experts are the same model" in told(recipe)[0]
    prepare(recipe, alike=True)
    recipe = changed()
    recipe["experts"][0]["source_model"] = "nowhere"
    assert "nowhere" in told(recipe)[0]


def no_bos(folder: Path) -> None:
    make.write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})


def more_tokens(folder: Path) -> None:
    make.write_json(folder / "tokenizer.json", make.tokenizer(80))


def no_unknown(folder: Path) -> None:
    data = make.tokenizer(64)
    del data["model"]["vocab"]["<unk>"]
    make.write_json(folder / "tokenizer.json", data)


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def tensors(**changes: torch.Tensor | None) -> Callable[[Path], None]:
    """Put these tensors of the second layer, or the embedding, in place of the base's; None takes one away."""

    def change(folder: Path) -> None:
        held = load_file(folder / "model.safetensors")
        for word, tensor in changes.items():
            name = next(n for n in held if f"{word}." in n and ".0." not in n)
            held[name] = held[name] if tensor is None else tensor
            if tensor is None:
                del held[name]
        save_file(held, folder / "model.safetensors", {"format": "pt"})

    return change


def config(**keys: Any) -> Callable[[Path], None]:
    return lambda folder: (
        make.write_json(folder / "config.json", {**read_json(folder / "config.json"), **keys}) and None
    )


HIDDEN = {"gate_mode": "hidden"}
UNFIT: dict[str, tuple[Callable[[Path], None], dict[str, Any], str, str]] = {
    "no words": (no_bos, {"prompt": " "}, "a prompt has no tokens", "some words"),
    "no row": (more_tokens, {"prompt": "w70"}, "has a token without a row", "ids below 64"),
    "an unknown word": (no_unknown, {"prompt": "new"}, "cannot read a text", "[UNK]"),
    "no tokenizer": (no_tokenizer, {}, "has no tokenizer, and prompts are to be read", "another tokenizer file"),
    "no embedding": (tensors(embed_tokens=None), {}, "has no token embedding", "a language model"),
    "nor for random rows": (tensors(embed_tokens=None), {"gate_mode": "random"}, "has no token embedding", "a llama"),
    "no mlp": (tensors(up_proj=None), {}, "has no mlp that can be an expert", "gate, up and down"),
    "quantised": (tensors(q_proj=torch.zeros(32, 32).to(torch.float8_e4m3fn)), {}, "tensors in float8_e4m3fn", "q_proj"),
    "heads": (config(head_dim=None, num_attention_heads="x"), {}, "does not say how wide its heads are", "'x'"),
    "more layers": (config(num_hidden_layers=3), HIDDEN, "not those that transformers wants", "no model.layers.2."),
    "fewer layers": (config(num_hidden_layers=1), HIDDEN, "not those that transformers wants", "2 layers"),
    "other shapes": (config(num_key_value_heads=1), HIDDEN, "not those that transformers wants", "k_proj.weight of [16, 32]"),
    "odd positions": (config(rope_parameters={"rope_type": "odd"}), HIDDEN, "transformers cannot make the layers", "odd"),
    "a number of heads": (config(num_attention_heads=7), HIDDEN, "transformers cannot make the layers", "(7)"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNFIT)
def test_a_base_that_does_not_do(case: str, models: list[Path], tmp_path: Path, refused: Callable[..., str]) -> None:
    """What is wrong with the base, its tokenizer or its config is told before the work, with its line; nothing is written."""
    change, keys, said, found = UNFIT[case]
    change(shutil.copytree(models[0], tmp_path / "base"))
    recipe = asked([tmp_path / "base", *models[1:]])
    if "prompt" in keys:
        recipe["experts"][2]["positive_prompts"] = [keys["prompt"]]
    recipe |= {key: value for key, value in keys.items() if key != "prompt"}
    (tmp_path / "moe.yml").write_text(yaml.safe_dump(recipe, sort_keys=False), "utf-8")
    told = refused(said, "moe", tmp_path / "moe.yml", tmp_path / "out", "--quiet")
    assert found in told
    assert "moe.yml:" in told or case in ("quantised", "an unknown word")


def test_experts_that_are_packed(models: list[Path], tmp_path: Path, refused: Callable[..., str]) -> None:
    """A class whose experts are one tensor cannot have them apart; a recipe without experts is no mixture."""
    path = make.write_json(tmp_path / "moe.yml", asked(models, architecture="granite"))
    refused("they cannot be written split", "moe", path, tmp_path / "out", "--expert-layout", "split")
    path = make.write_json(tmp_path / "r.yml", make.recipe("linear", *models))
    refused("this file lists no experts", "moe", path, tmp_path / "out")


def test_command(models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command takes mergekit-moe's options, tells the class, and leaves a card that says how to do it again."""
    config = tmp_path / "moe.yml"
    config.write_text(yaml.safe_dump(asked(models)), "utf-8")
    with pytest.raises(SystemExit) as code:
        main(["moe", str(config), str(tmp_path / "out"), "--load-in-4bit", "--no-cuda", "--json"])
    assert code.value.code == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["architecture"] == "MixtralForCausalLM"
    assert "--load-in-4bit has nothing to do here" in said.err
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert "`plait moe plait_config.yml OUT --random-seed 0`" in card
    assert str(models[3]) in card
    with pytest.raises(SystemExit) as code:
        main(["reproduce", str(tmp_path / "out")])
    assert code.value.code == 2
    assert "run: plait moe plait_config.yml OUT" in capsys.readouterr().err
    assert "router" not in card.split("## How")[0]


def test_check(models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`plait check` looks at a mixture's models, too; `plait merge` names the verb that runs it."""
    config = tmp_path / "moe.yml"
    recipe = asked(models)
    config.write_text(yaml.safe_dump(recipe), "utf-8")
    with pytest.raises(SystemExit) as code:
        main(["check", str(config)])
    assert code.value.code == 0
    assert "no problems, 35 tensors" in capsys.readouterr().out
    with pytest.raises(SystemExit) as code:
        main(["merge", str(config), str(tmp_path / "out")])
    assert "run it with 'plait moe'" in capsys.readouterr().err
    recipe["experts"][0]["source_model"] = str(base(tmp_path / "wide", "llama", intermediate_size=64))
    config.write_text(yaml.safe_dump(recipe), "utf-8")
    with pytest.raises(SystemExit) as code:
        main(["check", str(config)])
    assert code.value.code == 2
    assert "cannot be an expert" in capsys.readouterr().err


def test_resume(models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that stops goes on with resume, and gives the bytes of one that was not disturbed."""
    recipe = asked(models, gate_mode="hidden")
    recipe["experts"][0]["noise_scale"] = 0.1
    plan = prepare(recipe).plan
    Merge(plan).save(tmp_path / "whole")
    monkeypatch.setattr("plait.journal.INTERVAL", 0.0)
    done = 0

    def stop(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        if done > plan.nbytes * 0.7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Merge(plan).save(tmp_path / "out", progress=stop, threads=1)
    assert (tmp_path / "out" / NAME).exists()
    assert Merge(prepare(recipe).plan).save(tmp_path / "out", resume=True).resumed > 0
    assert make.hashes(tmp_path / "out") == make.hashes(tmp_path / "whole")

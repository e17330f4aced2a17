"""What `plait export gguf` writes, read back by the gguf package, by plait and by transformers. llama.cpp: test_llamacpp.py."""

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
from safetensors.torch import load_file, save_file

import gguf_models
import make
import plait
from plait import cli
from plait.errors import MergeError, ModelError, OutputError, PlaitError
from plait.export import write as writing
from plait.export.gguf import Export, export
from plait.export.layout import blocks
from plait.export.write import Exported, write
from plait.prepare import prepare

YARN = gguf_models.YARN

gguf = pytest.importorskip("gguf")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")


def ready(recipe: Any, out: Path, **options: Any) -> Export:
    """An export of a recipe or a folder."""
    plan = prepare(make.recipe("passthrough", recipe, parameters={}) if isinstance(recipe, Path) else recipe)
    return export(plan, out, **{"name": "small", **options})


def exported(recipe: Any, out: Path, **options: Any) -> Exported:
    return write(ready(recipe, out, **options))


def keys(path: Path) -> dict[str, Any]:
    return {key: field.contents() for key, field in gguf.GGUFReader(path).fields.items() if not key.startswith("GGUF.")}


def tensors(path: Path) -> dict[str, Any]:
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


@pytest.mark.parametrize("name", gguf_models.FAMILIES)
def test_back_again(name: str, tmp_path: Path) -> None:
    """A float32 export, merged into a folder again, has the model's tensors bit for bit (Gemma's norms, to which 1 was added
    and taken again, to the last place), and gives the same logits."""
    folder = gguf_models.write(name, tmp_path / "model")
    path = exported(folder, tmp_path / "a.gguf").out
    back = plait.merge(make.recipe("passthrough", path, parameters={}))
    model = plait.open(folder)
    assert set(back.specs) == set(model.specs)
    for own in model.specs:
        raised = name.startswith("gemma") and own.endswith("norm.weight")
        assert torch.allclose(back.read(own), model.read(own), rtol=0, atol=2.4e-7 if raised else 0), own
    if name in ("qwen2 moe", "gemma3", "gemma3 stacked", "phi4 mini"):
        return  # not all that the file says of these goes into a config
    back.save(tmp_path / "out")
    found = []
    for made in (folder, tmp_path / "out"):
        network = transformers.AutoModelForCausalLM.from_pretrained(made, dtype=torch.float32).eval()
        with torch.no_grad():
            found.append(network(torch.arange(3, 43)[None]).logits)
    assert (found[0] - found[1]).abs().max() <= 1e-5 * found[0].abs().max()


@pytest.mark.parametrize("name", ["llama 3.1", "mistral", "qwen2", "gemma2", "phi3"])
def test_in_transformers(name: str, tmp_path: Path) -> None:
    """transformers' own reader of GGUF makes the original model of the file (of Qwen3, it does not read the size of heads)."""
    folder = gguf_models.write(name, tmp_path / "model")
    exported(folder, tmp_path / "a.gguf")
    read = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="a.gguf", dtype=torch.float32)
    theirs, own = read.state_dict(), transformers.AutoModelForCausalLM.from_pretrained(folder).state_dict()
    assert set(theirs) == set(own)
    assert all(torch.allclose(theirs[key], x, rtol=0, atol=2.4e-7) for key, x in own.items())


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0", "MXFP4"])
def test_types(kind: str, tmp_path: Path) -> None:
    """Matrices have the type that is asked for, norms and biases float32; each number is off by at most half a step of it."""
    folder = gguf_models.write("llama biased", tmp_path / "model")
    model = plait.open(folder)
    done = exported(folder, tmp_path / "a.gguf", type=kind.lower())
    back = plait.open(done.out)
    assert done.type == kind
    delicate = {"F32": "F32", "F16": "F16", "BF16": "BF16"}.get(kind, "Q8_0")
    for name, tensor in tensors(done.out).items():
        one = name.endswith("norm.weight") or name.endswith(".bias")
        wanted = "F32" if one else delicate if name in ("output.weight", "token_embd.weight") else kind
        assert tensor.tensor_type.name == wanted, name
    #: half a step, in parts of the block's largest number, which is at most that of the tensor; its scale is a float16
    steps = {"Q8_0": 1 / 254, "Q5_0": 1 / 16, "Q5_1": 1 / 31, "Q4_0": 1 / 8, "Q4_1": 1 / 15, "MXFP4": 1 / 4}
    steps = {"F32": 0, "F16": 2**-11, "BF16": 2**-8} | {key: step + 2**-11 for key, step in steps.items()}
    for name, spec in model.specs.items():
        x, y = model.read(name), back.read(name).float()
        assert (x - y).abs().max() <= (steps[kind] if len(spec.shape) > 1 else 0) * x.abs().max(), name
    assert keys(done.out)["general.file_type"] == getattr(
        gguf.LlamaFileType, {"F32": "ALL_F32", "MXFP4": "MOSTLY_MXFP4_MOE"}.get(kind, f"MOSTLY_{kind}")
    )


def test_rounded_once(tmp_path: Path) -> None:
    """A bfloat16 model exported as it is has its own bytes; as Q8_0, those that gguf quantises of its numbers."""
    folder = gguf_models.write("qwen3", tmp_path / "model", torch.bfloat16)
    own = load_file(folder / "model.safetensors")
    for kind in (None, "Q8_0"):
        done = exported(folder, tmp_path / f"{kind}.gguf", type=kind)
        assert done.type == (kind or "BF16")
        data = tensors(done.out)["blk.1.ffn_up.weight"].data
        x = own["model.layers.1.mlp.up_proj.weight"]
        wanted = (
            x.view(torch.uint8).numpy()
            if kind is None
            else gguf.quants.quantize(x.float().numpy(), gguf.GGMLQuantizationType.Q8_0)
        )
        assert np.array_equal(data, wanted.reshape(data.shape))


RECIPE = """
merge_method: ties
base_model: {0}
models:
  - {{model: {1}, parameters: {{weight: 1, density: 0.4}}}}
  - {{model: {2}, parameters: {{weight: 0.5, density: 0.7}}}}
"""


def family(tmp_path: Path, name: str = "mistral") -> list[Path]:
    return [gguf_models.write(name, tmp_path / f"model {seed}", torch.bfloat16, seed) for seed in range(3)]


def test_a_merge_that_is_not_written(tmp_path: Path) -> None:
    """The export of a recipe is, but for the recipe's text, that of the folder that the recipe writes, byte for byte."""
    recipe = RECIPE.format(*family(tmp_path))
    plait.merge(recipe).save(tmp_path / "merged")
    one, two = exported(recipe, tmp_path / "one.gguf").out, exported(tmp_path / "merged", tmp_path / "two.gguf").out
    assert keys(one).pop("plait.recipe") == recipe
    assert {**keys(one), "plait.recipe": ""} == {**keys(two), "plait.recipe": ""}
    mine, theirs = tensors(one), tensors(two)
    assert list(mine) == list(theirs)
    assert all(np.array_equal(mine[name].data, theirs[name].data) for name in mine)


@pytest.mark.parametrize("name", ["llama biased", "gemma2", "mixtral"])
def test_same_bytes(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file's bytes do not depend on the number of threads nor on the size of the pieces."""
    folder = gguf_models.write(name, tmp_path / "model")
    made = []
    for threads, piece in ((1, 1 << 21), (3, 100), (2, 5000)):
        monkeypatch.setattr(writing, "PIECE", piece)
        made.append(write(ready(folder, tmp_path / f"{piece}.gguf", type="Q8_0"), threads).out.read_bytes())
    assert made[0] == made[1] == made[2]


def test_tokens(tmp_path: Path) -> None:
    """Tokens have the ids of the rows; added ones are control or user-defined, rows without a token are unused."""
    folder = gguf_models.write("llama 3.1", tmp_path / "model")
    found = keys(exported(folder, tmp_path / "a.gguf").out)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    texts, types = found["tokenizer.ggml.tokens"], found["tokenizer.ggml.token_type"]
    assert len(texts) == len(types) == plait.open(folder).config["vocab_size"] == found["llama.vocab_size"]
    assert texts[: len(tokenizer)] == tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    assert types[: len(tokenizer)] == [3] * 6 + [1] * (len(tokenizer) - 7) + [4]
    assert types[len(tokenizer) :] == [5] * (len(texts) - len(tokenizer))
    assert found["tokenizer.ggml.pre"] == "llama-bpe"
    assert [found[f"tokenizer.ggml.{key}_token_id"] for key in ("bos", "eos")] == [1, 2]
    assert [found[f"tokenizer.ggml.add_{key}_token"] for key in ("bos", "eos")] == [True, False]
    assert found["tokenizer.chat_template"] == gguf_models.TEMPLATE


def test_pieces(tmp_path: Path) -> None:
    """A tokenizer made from SentencePiece has bytes, and the scores have the order of the merges."""
    folder = gguf_models.write("phi3", tmp_path / "model")
    found = keys(exported(folder, tmp_path / "a.gguf", name="mine").out)
    types, scores = found["tokenizer.ggml.token_type"], found["tokenizer.ggml.scores"]
    assert types[:262] == [2, *[3] * 5, *[6] * 256]
    texts = found["tokenizer.ggml.tokens"]
    merges = json.loads((folder / "tokenizer.json").read_text("utf-8"))["model"]["merges"]
    ranks = [scores[texts.index(left + right)] for left, right in merges]
    assert ranks == sorted(ranks, reverse=True)
    assert found["tokenizer.ggml.add_space_prefix"] is True
    assert found["general.name"] == "mine (phi-3)"  # by which llama.cpp knows that its tokens swallow spaces
    assert (
        "phi-3"
        not in keys(exported(gguf_models.write("qwen2", tmp_path / "q"), tmp_path / "q.gguf", name="phi-3").out)[
            "general.name"
        ]
    )


def test_modelfile(tmp_path: Path) -> None:
    """The Modelfile names the file, the sampling that the model asks for and what ends an answer; in a folder, `Modelfile`."""
    folder = gguf_models.write("qwen2", tmp_path / "model")
    asked = {"do_sample": True, "temperature": 0.7, "top_k": 20, "repetition_penalty": 1.05, "eos_token_id": [5, 2]}
    (folder / "generation_config.json").write_text(json.dumps(asked))
    done = exported(folder, tmp_path / "out" / "in", name="org/My merge!")
    assert done.out == tmp_path / "out" / "in" / "org-My-merge-F32.gguf"
    assert done.modelfile == tmp_path / "out" / "in" / "Modelfile"
    lines = ["FROM ./org-My-merge-F32.gguf", "PARAMETER temperature 0.7", "PARAMETER top_k 20"]
    lines += ["PARAMETER repeat_penalty 1.05", 'PARAMETER stop "<|im_end|>"', 'PARAMETER stop "</s>"']
    assert done.modelfile.read_text().splitlines()[: len(lines)] == lines


def test_language_model_of_a_larger_one(tmp_path: Path) -> None:
    """Of a Gemma 3 that sees, the language model is exported: the same weights, and the rest is told."""
    folder = gguf_models.write("gemma3", tmp_path / "model")
    alone = exported(folder, tmp_path / "alone.gguf").out
    own = load_file(folder / "model.safetensors")
    moved = {key.replace("model.", "language_model.model.", 1): x for key, x in own.items()}
    save_file(moved | {"vision_tower.vision_model.embeddings.weight": torch.ones(3, 3)}, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    outer = {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "text_config": config}
    (folder / "config.json").write_text(json.dumps(outer))
    done = exported(folder, tmp_path / "part.gguf")
    mine, theirs = tensors(alone), tensors(done.out)
    assert all(np.array_equal(mine[name].data, theirs[name].data) for name in mine.keys() | theirs.keys())
    assert any("vision_tower" in note for note in done.notes)


def test_what_differs_is_told(tmp_path: Path) -> None:
    """Windows that llama.cpp does not keep, rows that do not fit a type's blocks, and tokens without a row are notes."""
    folder = gguf_models.write("mistral", tmp_path / "model")
    change(folder, "config.json", sliding_window=16)
    assert "last 16 tokens" in " ".join(ready(folder, tmp_path / "a.gguf").notes)
    assert "Q8_0 instead of TQ1_0" in " ".join(ready(folder, tmp_path / "a.gguf", type="TQ1_0").notes)
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    change(folder, "tokenizer.json", normalizer=None, pre_tokenizer=metaspace)
    assert "after each special token" in " ".join(ready(folder, tmp_path / "a.gguf").notes)
    own = load_file(folder / "model.safetensors")
    for key in ("model.embed_tokens.weight", "lm_head.weight"):
        own[key] = own[key][:600].clone()
    save_file(own, folder / "model.safetensors")
    change(folder, "config.json", vocab_size=600)
    assert "100 tokens have no row" in " ".join(ready(folder, tmp_path / "a.gguf").notes)


def change(folder: Path, name: str, **entries: Any) -> None:
    data = json.loads((folder / name).read_text("utf-8"))
    (folder / name).write_text(json.dumps(data | entries), "utf-8")


def unlike(folder: Path, **entries: Any) -> None:
    """Changes in the `model` of tokenizer.json."""
    data = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    change(folder, "tokenizer.json", model=data["model"] | entries)


def more(folder: Path) -> None:
    own = load_file(folder / "model.safetensors")
    save_file(own | {"model.layers.0.self_attn.sinks": torch.ones(4)}, folder / "model.safetensors")


def config(**entries: Any) -> Callable[[Path], Any]:
    return lambda folder: change(folder, "config.json", **entries)


def words(**entries: Any) -> Callable[[Path], Any]:
    return lambda folder: change(folder, "tokenizer.json", **entries)


def cut_expert(folder: Path) -> None:
    own = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.experts.2.up_proj.weight"
    save_file(own | {name: own[name][:-1].clone()}, folder / "model.safetensors")


def positions(folder: Path, **entries: Any) -> None:
    """Changes in the `rope_parameters` of config.json."""
    data = json.loads((folder / "config.json").read_text("utf-8"))
    change(folder, "config.json", rope_parameters=data["rope_parameters"] | entries)


LINEAR = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
SPLIT = {"type": "Split", "pattern": {"Regex": r"\w+"}, "behavior": "Isolated", "invert": False}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
STRIP = {"type": "Strip", "strip_left": True, "strip_right": True}
CUT = words(pre_tokenizer={"type": "Sequence", "pretokenizers": [SPLIT, BYTES]})
#: fault -> (family, what the message has, how it comes about)
WRONG: dict[str, tuple[str, str, Callable[[Path], Any]]] = {
    "another architecture": ("qwen2", "of this architecture", config(model_type="mamba")),
    "no tokenizer": ("qwen2", "has no tokenizer.json", lambda f: (f / "tokenizer.json").unlink()),
    "another pre-tokenizer": ("qwen2", "no name of llama.cpp's", CUT),
    "a normaliser": ("qwen2", "cannot put into", words(normalizer={"type": "Lowercase"})),
    "no bytes": ("llama", "cannot put into", lambda f: unlike(f, byte_fallback=False)),
    "strip": ("llama", "cannot put into", words(normalizer=STRIP)),
    "a tensor more": ("qwen2", "does not know in qwen2", more),
    "another activation": ("llama", "activation is fixed", config(hidden_act="relu")),
    "another scale": ("gemma2", "query_pre_attn_scalar is fixed", config(query_pre_attn_scalar=99)),
    "routing": ("qwen3 moe", "norm_topk_prob is fixed", config(norm_topk_prob=False)),
    "dynamic": ("llama", "scales its positions", config(rope_parameters={"rope_type": "dynamic", "factor": 2.0})),
    "a setting of yarn": ("qwen2 yarn", "scales its positions", config(rope_parameters={**YARN, "mscale": 2.0})),
    "other heads": ("llama", "q_proj.weight does not fit", config(num_attention_heads=3)),
    "an expert cut": ("qwen3 moe", "differ in shape", cut_expert),
    "factors cut": ("phi3 long", "do not fit the heads", lambda f: positions(f, long_factor=[1.0] * 7)),
    "sliding": ("gemma3", "a sliding window scale", lambda f: positions(f, sliding_attention=LINEAR)),
    "merges": ("qwen2", "that cannot be read", lambda f: unlike(f, merges=[["a", "b", "c"]])),
    "mixed merges": ("qwen2", "that cannot be read", lambda f: unlike(f, merges=["a b", ["c", "d"]])),
    "generation": ("qwen2", "^generation_config.json is not", lambda f: (f / "generation_config.json").write_text("[")),
    "no length": ("llama", "lacks what GGUF needs", config(max_position_embeddings=None)),
}


@pytest.mark.parametrize("fault", WRONG)
def test_refused(fault: str, tmp_path: Path) -> None:
    """What GGUF has no place for, or llama.cpp would compute otherwise, is refused by name before the work."""
    name, said, spoil = WRONG[fault]
    folder = gguf_models.write(name, tmp_path / "model")
    spoil(folder)
    with pytest.raises(ModelError, match=said) as caught:
        ready(folder, tmp_path / "out" / "a.gguf")
    assert caught.value.wanted or fault == "generation"
    assert caught.value.found
    assert caught.value.do
    assert not (tmp_path / "out").exists()


def test_pre(tmp_path: Path) -> None:
    """--pre names a pre-tokenizer that plait does not know; SentencePiece has none to name."""
    folder = gguf_models.write("qwen2", tmp_path / "model")
    CUT(folder)
    assert keys(exported(folder, tmp_path / "a.gguf", pre="gpt-2").out)["tokenizer.ggml.pre"] == "gpt-2"
    with pytest.raises(ModelError, match="has no pre-tokenizer") as caught:
        ready(gguf_models.write("llama", tmp_path / "pieces"), tmp_path / "b.gguf", pre="gpt-2")
    assert (caught.value.found, caught.value.do) == ("gpt-2", "leave --pre out")


def test_out(tmp_path: Path) -> None:
    """What is there is refused without --force, and an unknown type by name; then nothing is changed."""
    folder = gguf_models.write("llama", tmp_path / "model")
    (tmp_path / "a.gguf").write_text("mine")
    (tmp_path / "b.Modelfile").write_text("mine")
    for name in ("a", "b"):
        with pytest.raises(OutputError, match="is there already"):
            ready(folder, tmp_path / f"{name}.gguf")
    with pytest.raises(PlaitError, match="type Q4_K_M cannot be written"):
        ready(folder, tmp_path / "c.gguf", type="Q4_K_M")
    with pytest.raises(OutputError, match="no place for a file"):
        ready(folder, tmp_path / "a.gguf" / "c.gguf")
    assert (tmp_path / "a.gguf").read_text() == "mine"
    assert len(tensors(exported(folder, tmp_path / "a.gguf", force=True).out)) == 29


def test_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An export that fails or is interrupted leaves no file and no folder behind, and keeps the older file."""
    folder = gguf_models.write("qwen3", tmp_path / "model")
    own = load_file(folder / "model.safetensors")
    own["model.layers.1.mlp.up_proj.weight"][3, 4] = 1e6
    save_file(own, folder / "model.safetensors")
    with pytest.raises(MergeError, match="does not fit into float16") as caught:
        exported(folder, tmp_path / "out" / "in", type="F16")
    assert "mlp.up_proj" in caught.value.what
    assert not (tmp_path / "out").exists()
    older = exported(folder, tmp_path / "a.gguf").out.read_bytes()

    def interrupted(done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(ready(folder, tmp_path / "a.gguf", force=True, type="Q8_0"), 2, interrupted)
    assert (tmp_path / "a.gguf").read_bytes() == older
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.Modelfile", "a.gguf", "model"]


@pytest.mark.parametrize(("limit", "said"), [(100, "temporary files cannot be"), (100_000, "o.gguf failed")])
def test_no_space(limit: int, said: str, tmp_path: Path, small_files: Any, refused: Callable[..., str]) -> None:
    """A disk that does not take the file, or the temporary ones that it is made from, is told; nothing new is there."""
    folder, out = gguf_models.write("llama", tmp_path / "model"), tmp_path / "new" / "o.gguf"
    command = ["export", "gguf", folder, out, "--quiet"]
    refused(said, *command, during=lambda: small_files(limit))
    with pytest.raises(SystemExit) as ended:
        cli.main([*map(str, command)])
    assert ended.value.code == 0
    assert len(tensors(out)) == 29


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`plait export gguf` takes folders and recipes, and tells as JSON what it wrote; mistakes end with 2."""
    models = family(tmp_path, "qwen2")
    recipe = tmp_path / "mine.yml"
    recipe.write_text(RECIPE.format(*models))
    for model, name in ((recipe, "mine"), (models[0], "model 0")):
        with pytest.raises(SystemExit) as ended:
            cli.main(["export", "gguf", str(model), str(tmp_path / "out"), "--type", "Q8_0", "--json", "--force"])
        assert ended.value.code == 0
        facts = json.loads(capsys.readouterr().out)
        assert Path(facts["out"]).name == f"{re.sub(' ', '-', name)}-Q8_0.gguf"
        assert facts["bytes"] == Path(facts["out"]).stat().st_size
        assert keys(Path(facts["out"]))["general.name"] == name
    shutil.rmtree(models[2])
    with pytest.raises(SystemExit) as ended:
        cli.main(["export", "gguf", str(recipe), str(tmp_path / "other")])
    assert ended.value.code == 2
    assert "model 2" in capsys.readouterr().err


def test_experts_in_one_tensor(tmp_path: Path) -> None:
    """A model whose experts lie in one tensor of a layer gives the file that it gives with a tensor for each."""
    split = gguf_models.write("qwen3 moe", tmp_path / "split")
    plait.merge(make.recipe("passthrough", split, parameters={}), expert_layout="fused").save(tmp_path / "fused")
    assert any(name.endswith("experts.gate_up_proj") for name in plait.open(tmp_path / "fused").specs)
    for folder in ("split", "fused"):
        with pytest.raises(SystemExit) as ended:
            cli.main(["export", "gguf", str(tmp_path / folder), str(tmp_path / f"{folder}.gguf"), "--quiet"])
        assert ended.value.code == 0
    mine, theirs = tensors(tmp_path / "split.gguf"), tensors(tmp_path / "fused.gguf")
    assert all(np.array_equal(mine[name].data, theirs[name].data) for name in mine.keys() | theirs.keys())


def test_what_can_be_quantised() -> None:
    """The types are those that the gguf package writes."""
    assert {"F32", "F16", "BF16", "Q8_0", "Q5_0", "Q5_1", "Q4_0", "Q4_1"} <= set(blocks())
    assert not {name for name in blocks() if name.endswith("_K")}

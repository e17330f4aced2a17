"""What lies beside the weights: config, tokenizer, templates, card, provenance, the recipe itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import make
import plait
from plait.errors import PlanError
from plait.output.hashes import fingerprint
from plait.output.templates import NAMED

TEMPLATE = "{% for m in messages %}<<{{ m.content }}>>{% endfor %}"


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    """Three models that can be told apart by every file beside their weights."""
    folders = []
    for seed, name in enumerate("abc"):
        folder = make.model(tmp_path / name, seed, settings={"mark": name})
        make.write_json(folder / "generation_config.json", {"mark": name})
        make.write_json(
            folder / "tokenizer_config.json", {"mark": name, "chat_template": f"template of {name} {{{{ x }}}}"}
        )
        (folder / "vocab.json").write_text(name)
        (folder / "modeling_odd.py").write_text("raise SystemExit('code of a model was run')")
        folders.append(folder)
    return folders


def read(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def marks(out: Path) -> set[str]:
    """From which models the files beside the weights are."""
    files = ("config.json", "generation_config.json", "tokenizer_config.json")
    return {read(out / name)["mark"] for name in files} | {(out / "vocab.json").read_text()}


@pytest.mark.parametrize("hash_seed", ["2"])
def test_row_4_random_config(hash_seed: str, models: list[Path], tmp_path: Path) -> None:
    """Config, tokenizer and settings are the base's, else the first model's, under any PYTHONHASHSEED."""
    recipes = [make.recipe("linear", *models[::-1]), make.recipe("linear", *models, base=models[1])]
    code = f"import plait\nfor i, r in enumerate({recipes!r}): plait.merge(r).save(f'out{{i}}')"
    env = {**os.environ, "PYTHONHASHSEED": hash_seed}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, check=True)
    assert [marks(tmp_path / out) for out in ("out0", "out1")] == [{"c"}, {"b"}]


def test_sentence_transformers(models: list[Path], tmp_path: Path) -> None:
    """How a model embeds texts is carried along: its modules, with the folder of each; an older model's are removed."""
    base = models[1]
    make.write_json(base / "modules.json", {"1": {"path": "1_Pooling"}, "2": {"path": "2_Dense"}})
    make.write_json(base / "sentence_bert_config.json", {"max_seq_length": 7})
    for part in ("1_Pooling", "2_Dense"):
        (base / part).mkdir()
        make.write_json(base / part / "config.json", {"part": part})
    save_file({"linear.weight": torch.ones(2, 2)}, base / "2_Dense" / "model.safetensors")
    (base / "3_other").mkdir()
    (base / "3_other" / "notes.txt").write_text("")
    merge = plait.merge(make.recipe("linear", *models, base=base))
    out = merge.save(tmp_path / "out").out
    carried = ["modules.json", "sentence_bert_config.json", "1_Pooling/config.json", "2_Dense/config.json"]
    carried += ["2_Dense/model.safetensors"]
    assert all((out / name).read_bytes() == (base / name).read_bytes() for name in carried)
    assert not (out / "3_other").exists()
    assert any("2_Dense/model.safetensors" in note and "not merged" in note for note in merge.plan.notes)
    plait.merge(make.recipe("linear", *models)).save(out, force=True)
    assert not any((out / name).exists() for name in [*carried, "1_Pooling", "2_Dense"])


def test_no_code(models: list[Path], tmp_path: Path) -> None:
    """Python files of a model are neither run nor copied, and the plan says so where the config names them."""
    config = read(models[0] / "config.json") | {"auto_map": {"AutoModel": "modeling_odd.Odd"}}
    make.write_json(models[0] / "config.json", config)
    merge = plait.merge(make.recipe("linear", *models))
    out = merge.save(tmp_path / "out").out
    assert not list(out.glob("*.py"))
    assert any("auto_map" in note for note in merge.plan.notes)


def test_row_7_generation_config(models: list[Path], tmp_path: Path) -> None:
    """generation_config.json is kept, also without the tokenizer and with a template of the recipe's own."""
    merge = plait.merge(make.recipe("linear", *models, chat_template=TEMPLATE))
    out = merge.save(tmp_path / "out", copy_tokenizer=False).out
    assert read(out / "generation_config.json") == {"mark": "a"}
    assert not (out / "tokenizer.json").exists()


@pytest.mark.parametrize("name", [*NAMED, TEMPLATE])
def test_template(name: str, models: list[Path], tmp_path: Path) -> None:
    """A chat template by name or by text replaces the model's, of which no second copy stays."""
    out = plait.merge(make.recipe("linear", *models, chat_template=name)).save(tmp_path / "out").out
    assert (out / "chat_template.jinja").read_text("utf-8") == NAMED.get(name, name)
    assert read(out / "tokenizer_config.json") == {"mark": "a"}


def test_template_auto(models: list[Path], tmp_path: Path) -> None:
    """`auto` takes the template that most models have, the earliest of equals."""
    out = plait.merge(make.recipe("linear", *models, chat_template="auto")).save(tmp_path / "out").out
    assert (out / "chat_template.jinja").read_text("utf-8") == "template of a {{ x }}"
    for folder in models[1:]:
        (folder / "chat_template.jinja").write_text(TEMPLATE + "\n")
    out = plait.merge(make.recipe("linear", *models, chat_template="auto")).save(tmp_path / "out2").out
    assert (out / "chat_template.jinja").read_text("utf-8") == TEMPLATE


def test_named_templates_render() -> None:
    """Each named template is valid Jinja and keeps every message."""
    jinja2 = pytest.importorskip("jinja2")
    said = [{"role": "user", "content": "ask"}, {"role": "assistant", "content": "answer"}]
    for name, text in NAMED.items():
        environment = jinja2.Environment(undefined=jinja2.StrictUndefined)
        shown = environment.from_string(text).render(
            messages=said, add_generation_prompt=True, bos_token="<s>", eos_token="</s>"
        )
        assert "ask" in shown, name
        assert "answer" in shown, name


def test_broken_templates(models: list[Path], tmp_path: Path) -> None:
    """A template that is not Jinja is refused before the work, with its line and whose it is; none is ever rendered."""
    broken = "{% for m in messages %}\n{{ m.content }}\n{% endfo %}"
    (error,) = plait.check(make.recipe("linear", *models, chat_template=broken))
    assert "the chat template of the recipe cannot be parsed" in str(error)
    assert "line 3" in str(error)
    for folder in models:
        (folder / "chat_template.jinja").write_text(broken)
    (error,) = plait.check(make.recipe("linear", *models, chat_template="auto"))
    assert f"the chat template of {models[0]} cannot be parsed" in str(error)
    good = (
        "{% for m in messages %}{% generation %}{{ m.content }}{% break %}{% endgeneration %}{% endfor %}{{ 1 // 0 }}"
    )
    assert plait.check(make.recipe("linear", *models, chat_template=good)) == []


def test_origins(models: list[Path]) -> None:
    """Whose each file beside the weights is, is told in the notes where they are not all of one model."""
    (models[1] / "chat_template.jinja").write_text(TEMPLATE)
    for name in "ac":
        make.write_json(models["abc".index(name)] / "tokenizer_config.json", {})
    notes = plait.merge(make.recipe("linear", *models, chat_template="auto")).plan.notes
    assert f"of {models[1]}: chat_template.jinja" in notes
    assert any(note.startswith(f"of {models[0]}: tokenizer.json, ") for note in notes)
    assert not any(note.startswith("of ") for note in plait.merge(make.recipe("linear", *models)).plan.notes)


ODD = ["[1]", "3", "null", "{", '{"model": 3}', '{"model": {"vocab": 3}}', '{"model": {"vocab": [["a", 1], []]}}', ""]
ODD += [
    '{"added_tokens": 3}',
    '{"added_tokens": [3]}',
    '{"added_tokens": [{"id": "x"}]}',
    '{"chat_template": [3]}',
    "\xff",
]
ODD += ["---\n: : :\n- [\n---\n", "---\nlicense: [1]\n---\n", '---\nlicense: "a\\nb: `c`"\n---\n', "---\nlicense"]


@pytest.mark.parametrize(
    ("file", "extra"),
    [
        ("tokenizer.json", {"tokenizer_source": "union"}),
        ("tokenizer_config.json", {"chat_template": "chatml"}),
        ("tokenizer_config.json", {"chat_template": "auto"}),
        ("chat_template.jinja", {"chat_template": "auto"}),
        ("README.md", {}),
    ],
)
def test_odd_side_files(file: str, extra: dict[str, str], models: list[Path], tmp_path: Path) -> None:
    """Whatever a side file holds, the merge is made, or refused before the work by an error that names the model."""
    out = tmp_path / "out"
    for text in ODD:
        (models[0] / file).write_bytes(text.encode("latin-1"))
        errors = plait.check(recipe := make.recipe("linear", *models, **extra))
        assert all(str(models[0]) in str(error) for error in errors)
        if not errors:
            plait.merge(recipe).save(out, force=True)
            assert yaml.safe_load((out / "README.md").read_text("utf-8").split("---\n")[1])["tags"]


def test_card(models: list[Path], tmp_path: Path) -> None:
    """The card's front matter is YAML for the Hub, and its text holds recipe, method and models."""
    path = tmp_path / "recipe.yml"
    path.write_text("# my: note\n" + json.dumps(make.recipe("ties", *models[1:], base=models[0]), indent=1))
    (models[0] / "README.md").write_text("---\nlicense: mit\n---\n")
    text = (plait.merge(path).save(tmp_path / "my merge").out / "README.md").read_text("utf-8")
    _, front, body = text.split("---\n", 2)
    matter = yaml.safe_load(front)
    assert matter["library_name"] == "transformers"
    assert {"merge", "plait", "ties"} <= set(matter["tags"])
    assert "base_model" not in matter  # no model is from the Hub
    assert body.lstrip().startswith("# my merge\n")
    assert path.read_text().strip() in body
    assert all(f"`{model}`" in body for model in models)
    assert "arxiv.org/abs/2306.01708" in body
    assert str(tmp_path / "my merge") not in text


def test_card_with_odd_names(tmp_path: Path) -> None:
    """Names that mean something in YAML or Markdown do not break the card."""
    a = make.model(tmp_path / "a: [b] | `c` \U0001f9f6")
    out = plait.merge(make.recipe("passthrough", a, parameters={})).save(tmp_path / "x: y").out
    text = (out / "README.md").read_text("utf-8")
    assert yaml.safe_load(text.split("---\n")[1])["library_name"] == "transformers"
    assert "# x: y" in text


def test_provenance(models: list[Path], tmp_path: Path) -> None:
    """The provenance tells recipe, seed, versions, and for each input file size, fingerprint and, if asked, SHA-256."""
    merge = plait.merge(make.recipe("linear", models[0], models[1] / "model.safetensors"), seed=5, allow_crimes=True)
    out = merge.save(tmp_path / "out", hash_inputs=True).out
    facts = read(out / "plait_provenance.json")
    assert facts["seed"] == 5
    assert facts["plait"] == plait.__version__
    assert facts["recipe"] == (out / "plait_config.yml").read_text("utf-8")
    for model, folder in zip(facts["models"], models, strict=False):
        (file,) = model["files"]
        path = folder / "model.safetensors"
        assert file["bytes"] == path.stat().st_size
        assert file["fingerprint"] == fingerprint(path)
        assert file["sha256"] == make.hashes(folder)["model.safetensors"]


def test_fingerprint_tells_a_change(models: list[Path]) -> None:
    """A changed weight changes the fingerprint of a small file."""
    path = models[0] / "model.safetensors"
    before, made = fingerprint(path), load_file(path)
    made["lm_head.weight"][3, 3] += 1
    save_file(made, path)
    assert fingerprint(path) != before


def test_repeat(models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipe beside the weights, with the seed that the card names, makes the same bytes again."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yml").write_text(
        "# twice\nmerge_method: dare_linear\nbase_model: a\n"
        "models: [{model: b}, {model: c}]\nparameters: {weight: 5e-1, density: 0.5}\n"
    )
    plait.merge("recipe.yml", seed=11).save("out")
    assert Path("out/plait_config.yml").read_text() == Path("recipe.yml").read_text()
    card = Path("out/README.md").read_text("utf-8")
    assert "--random-seed 11`" in card
    plait.merge("out/plait_config.yml", seed=11).save("again")
    assert make.hashes(Path("again")) == make.hashes(Path("out"))


def test_single_files(models: list[Path], tmp_path: Path) -> None:
    """Single weight files merge too; there is no config and no tokenizer then, and a note says so."""
    files = [model / "model.safetensors" for model in models]
    merge = plait.merge(make.recipe("linear", *files))
    out = merge.save(tmp_path / "out").out
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md",
        "model.safetensors",
        "plait_config.yml",
        "plait_provenance.json",
    ]
    assert any("has no tokenizer files" in note for note in merge.plan.notes)


def test_loads_in_transformers(models: list[Path], tmp_path: Path) -> None:
    """transformers loads tokenizer and model of what was written, and finds nothing missing or left over."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    make.write_json(models[0] / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
    out = plait.merge(make.recipe("linear", *models, chat_template="chatml")).save(tmp_path / "out").out
    _, found = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(found.values())
    said = AutoTokenizer.from_pretrained(out).apply_chat_template([{"role": "user", "content": "w3"}], tokenize=False)
    assert said == "<|im_start|>user\nw3<|im_end|>\n"


def test_the_tokenizer_of_a_named_model(tmp_path: Path) -> None:
    """`tokenizer_source: MODEL` takes that model's tokenizer files where the vocabularies are the same."""
    paths = [make.model(tmp_path / name, seed) for seed, name in enumerate(("a", "b"))]
    make.write_json(paths[1] / "tokenizer_config.json", {"from": "b"})
    recipe = {**make.recipe("linear", *paths), "tokenizer_source": str(paths[1])}
    out = plait.merge(recipe).save(tmp_path / "out").out
    assert (out / "tokenizer_config.json").read_bytes() == (paths[1] / "tokenizer_config.json").read_bytes()


def test_vocabularies_that_cannot_be_compared(tmp_path: Path) -> None:
    """A tokenizer that is asked for of models without one is refused, not taken to be the same."""
    paths = [make.model(tmp_path / name, seed) for seed, name in enumerate(("a", "b"))]
    (paths[1] / "tokenizer.json").unlink()
    with pytest.raises(PlanError, match="without one that can be read"):
        plait.merge({**make.recipe("linear", *paths), "tokenizer_source": "union"})

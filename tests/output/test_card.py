"""The model card: what the Hub reads, what people read, and whose words are kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import EvalResult
from markdown_it import MarkdownIt

import make
import plait
from plait.errors import ModelError, OutputError
from plait.output.card import card, read_facts, rewrite
from plait.output.depths import sparkline
from plait.output.parents import front_matter, stated


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    return [make.model(tmp_path / name, seed) for seed, name in enumerate("abc")]


def merged(out: Path, *models: Path, **rest: Any) -> Path:
    return plait.merge(make.recipe("linear", *models, **rest)).save(out).out


def says(model: Path, **front: Any) -> None:
    (model / "README.md").write_text(f"---\n{yaml.safe_dump(front)}---\n# {model.name}\n")


SCORE: dict[str, Any] = {"task": "sums", "metric": "exact_match", "higher_is_better": True, "items": 500}
SCORE |= {"value": 0.54321, "low": 0.5, "high": 0.58}
SCORE["against"] = {"a": {"value": 0.43, "difference": 0.11321, "low": 0.08, "high": 0.15, "verdict": "better"}}
SCORES = {"parents": ["a"], "scores": [SCORE]}


def test_the_hub_reads_the_front_matter(models: list[Path], tmp_path: Path) -> None:
    """huggingface_hub's own card class finds parents, relation, licence, language, task, tags and measured scores."""
    for model in models:
        says(model, license="mit", language=["en", "no"], pipeline_tag="text-generation")
    out = merged(tmp_path / "out", *models)
    facts = read_facts(out)
    facts["models"][0]["hub"] = ["org/a"]
    data = ModelCard(card(facts, "mine", scores=SCORES)).data
    assert (data.base_model, data.base_model_relation, data.license) == (["org/a"], "merge", "mit")
    assert (data.language, data.pipeline_tag, data.library_name) == (["en", "no"], "text-generation", "transformers")
    assert data.tags == ["merge", "plait", "linear"]
    assert data.model_name == "mine"
    (result,) = data.eval_results
    assert isinstance(result, EvalResult)
    assert (result.dataset_name, result.metric_type, result.metric_value) == ("sums", "exact_match", 0.54321)


def test_parents_that_differ_in_licence(models: list[Path], tmp_path: Path) -> None:
    """Licences that differ, or that not all state, are no licence in the front matter, and are told model by model."""
    says(models[0], license="mit")
    says(models[1], license="llama3", language="en")
    text = (merged(tmp_path / "two", *models[:2]) / "README.md").read_text()
    assert "license" not in front_matter(tmp_path / "two" / "README.md")
    assert f"{models[0]}: mit; {models[1]}: llama3".replace("_", r"\_") in text
    merged(tmp_path / "silent", models[0], models[2])
    assert "license" not in front_matter(tmp_path / "silent" / "README.md")
    assert "states none" in (tmp_path / "silent" / "README.md").read_text()


def test_made_from(models: list[Path], tmp_path: Path) -> None:
    """What the parents are made from themselves is told once for those of which it is the same."""
    for model, base in zip(models, ("org/x", "org/x", "org/y"), strict=True):
        says(model, license="mit", base_model=base)
    text = (merged(tmp_path / "out", *models) / "README.md").read_text()
    assert f"`{models[0]}`, `{models[1]}` are themselves made from `org/x`." in text
    assert f"`{models[2]}` is itself made from `org/y`." in text


HOSTILE = {
    "alias bomb": "a: &a [x, x]\nb: &b [*a, *a]\nlicense: mit\n",
    "python object": "license: !!python/object/apply:os.system ['touch hacked']\n",
    "deep": "license: " + "[" * 5000 + "\n",
    "newline": 'license: "mit\\n---\\n# hacked"\n',
    "not text": "license: {a: 1}\nlanguage: [[1], {b: 2}]\n",
    "list": "- license\n",
    "long": f"license: {'x' * 1000}\n",
    "binary": "license: \udcff\udcfe\n",
    "endless": "x: " + "y" * 100_000,
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_front_matter(case: str, models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that a parent's card holds is run, breaks the card, or costs time; it counts as not stated."""
    monkeypatch.chdir(tmp_path)
    (models[0] / "README.md").write_bytes(f"---\n{HOSTILE[case]}---\n".encode(errors="surrogateescape"))
    assert "license" not in stated(models[0]) or case == "binary"
    text = (merged(tmp_path / "out", *models[:2]) / "README.md").read_text()
    assert "# hacked" not in text
    assert not (tmp_path / "hacked").exists()
    assert front_matter(tmp_path / "out" / "README.md")["library_name"] == "transformers"


def test_hostile_names(tmp_path: Path) -> None:
    """A model's path cannot end a table cell, a code span or the block of the recipe."""
    model = make.model(tmp_path / "a`|b```<script>", 0)
    text = (merged(tmp_path / "out", model) / "README.md").read_text()
    body = text.split("---\n", 2)[2]
    tokens = [inner for token in MarkdownIt().enable("table").parse(body) for inner in [token, *(token.children or [])]]
    assert [t.content for t in tokens if t.type.startswith("html") and "plait card" not in t.content] == []
    assert sum(t.type == "td_open" for t in tokens) == 5
    assert any(t.type == "fence" and t.info == "yaml" and "```<script>" in t.content for t in tokens)


def test_values_over_the_layers(models: list[Path], tmp_path: Path) -> None:
    """A gradient is a row with its range and a block for each layer; constants have one row; defaults have none."""
    weight = [{"filter": "self_attn", "value": [0, 1]}, {"filter": "q_proj", "value": 3}, {"value": 0.5}]
    recipe = make.recipe("linear", *models[:2], parameters={"normalize": False})
    recipe["models"][0]["parameters"] = {"weight": weight}
    recipe["models"][1]["parameters"] = {"weight": 2}
    plait.merge(recipe).save(tmp_path / "out")
    rows = read_facts(tmp_path / "out")["settings"]
    first, second = str(models[0]), str(models[1])
    assert {"parameter": "weight", "model": first, "tensors": "attention", "layers": [0.0, 1.0]} in rows
    assert {"parameter": "weight", "model": second, "tensors": "all", "value": 2.0} in rows
    assert {"parameter": "normalize", "model": None, "tensors": "all", "value": False} in rows
    others = [row for row in rows if row.get("value") == 0.5]
    assert [set(row["tensors"].split(", ")) for row in others] == [{"embedding", "mlp", "norm", "head"}]
    assert len(rows) == 4
    assert "| attention | 0 … 1 | ▁█ |" in (tmp_path / "out" / "README.md").read_text()


def test_stacked_layers(models: list[Path], tmp_path: Path) -> None:
    """A merge that moves layers says which are made of which; one that leaves them where they were says nothing."""
    a, b = map(str, models[:2])
    sources = [{"model": a, "layer_range": [0, 2]}], [{"model": b, "layer_range": [1, 2]}]
    recipe = {"merge_method": "passthrough", "slices": [{"sources": source} for source in sources]}
    plait.merge(recipe).save(tmp_path / "out")
    assert read_facts(tmp_path / "out")["stacking"] == [
        {"module": "default", "layers": [0, 2], "from": [{"model": a, "layers": [0, 2]}]},
        {"module": "default", "layers": [2, 3], "from": [{"model": b, "layers": [1, 2]}]},
    ]
    assert read_facts(merged(tmp_path / "plain", *models))["stacking"] == []


def test_sparkline() -> None:
    """The lowest number is the lowest block, the highest the highest; no number is a dot."""
    assert sparkline([0, 0.5, 1, None]) == "▁▅█·"
    assert sparkline([3, 3]) == "▁▁"
    assert sparkline([]) == ""


def test_a_card_made_anew_is_the_same(models: list[Path], tmp_path: Path) -> None:
    """The provenance holds all that the card is made of."""
    out = merged(tmp_path / "out", *models)
    before = (out / "README.md").read_text()
    assert rewrite(out) == before


def test_words_of_somebodys_own_are_kept(models: list[Path], tmp_path: Path) -> None:
    """A card that was changed by hand is refused, and written over with `force`."""
    out = merged(tmp_path / "out", *models)
    mine = (out / "README.md").read_text().replace("## How", "Mine.\n\n## How")
    (out / "README.md").write_text(mine)
    with pytest.raises(OutputError, match="changed by hand"):
        rewrite(out)
    assert (out / "README.md").read_text() == mine
    assert "Mine." not in rewrite(out, force=True)


def test_scores_stay_and_go(models: list[Path], tmp_path: Path) -> None:
    """Scores that were given once are in the next card too; a new merge in the same folder has none."""
    out = merged(tmp_path / "out", *models)
    assert "0.543" in rewrite(out, scores=SCORES)
    text = rewrite(out, name="org/mine")
    assert "| sums | exact\\_match ↑ | 500 | **0.543** [0.500, 0.580] | 0.430 (+0.113, better) |" in text
    assert 'from_pretrained("org/mine")' in text
    plait.merge(make.recipe("linear", models[0])).save(out, force=True)
    assert "0.543" not in (out / "README.md").read_text()
    assert not (out / "plait_scores.json").exists()


@pytest.mark.parametrize(
    ("told", "sentence", "found"),
    [
        ({"mdels": []}, "holds no scores", "no 'models'"),
        ({"models": [{"name": "x", "path": 3}]}, "holds no scores", "int"),
        ({"models": [{"name": "x", "path": "OUT"}]}, "holds no scores", "no 'differences'"),
        ({"models": [{"name": "x", "path": "/elsewhere"}]}, "has no scores of", "/elsewhere"),
        ({"models": []}, "has no scores of", "none"),
    ],
)
def test_scores_that_are_none(
    told: Any, sentence: str, found: str, models: list[Path], tmp_path: Path, refused: Callable[..., str]
) -> None:
    """A file without scores, or with those of other models, is told as such, and the card stays as it is."""
    out = merged(tmp_path / "out", *models)
    file = tmp_path / "scores.json"
    file.write_text(json.dumps(told).replace("OUT", str(out)))
    error = refused(sentence, "card", out, "--scores", file)
    assert found in error.split("found:")[1]


def test_a_card_that_cannot_be_written(models: list[Path], tmp_path: Path, refused: Callable[..., str]) -> None:
    """Where something else is in the place of the card, that is said."""
    out = merged(tmp_path / "out", *models)
    (out / "README.md").unlink()
    (out / "README.md").mkdir()
    refused("README.md cannot be written", "card", out, "--force")


def test_template(models: list[Path], tmp_path: Path) -> None:
    """A template may extend ours and replace a block, or be wholly its own; it sees the provenance."""
    out = merged(tmp_path / "out", *models)
    template = tmp_path / "mine.jinja"
    template.write_text('{% extends "card.md.jinja" %}{% block run %}\n## Hello {{ method }}\n{% endblock %}')
    text = rewrite(out, template=template)
    assert "## Hello linear" in text
    assert "from_pretrained" not in text
    assert "## What was merged" in text
    template.write_text("{{ models | length }} of {{ name }}")
    assert rewrite(out, template=template).splitlines()[0] == "3 of out"


@pytest.mark.parametrize(
    "text",
    [
        "{{ nothing }}",
        "{% if %}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ name.nothing() }}",
        "{% include '/etc/passwd' %}",
        "{{ 1 / 0 }}",
        "{{ range(10**12) | list }}",
    ],
)
def test_template_that_cannot_be_rendered(text: str, models: list[Path], tmp_path: Path) -> None:
    """A template with a mistake, or one that reaches out of the sandbox, is an error that names it; the card stays."""
    out = merged(tmp_path / "out", *models)
    before = (out / "README.md").read_text()
    template = tmp_path / "bad.jinja"
    template.write_text(text)
    with pytest.raises(OutputError, match=r"bad\.jinja"):
        rewrite(out, template=template)
    assert (out / "README.md").read_text() == before


def test_no_merge(models: list[Path], tmp_path: Path) -> None:
    """A folder that is no merge, and a provenance that is something else, are told as such."""
    with pytest.raises(ModelError, match="no merge of plait"):
        rewrite(models[0])
    facts = read_facts(merged(tmp_path / "out", *models))
    for damage in ({"models": 3}, {"settings": [1]}, {"output": None}, {"seed": {}, "versions": []}):
        make.write_json(tmp_path / "out" / "plait_provenance.json", {**facts, **damage})
        with pytest.raises(ModelError, match="cannot be what a merge wrote"):
            rewrite(tmp_path / "out")
    make.write_json(tmp_path / "out" / "plait_provenance.json", {**facts, "models": [{"model": 3}]})
    with pytest.raises(ModelError, match="what a card is made of"):
        rewrite(tmp_path / "out")

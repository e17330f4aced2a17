"""Kinds of files: told apart, and each checked."""

from __future__ import annotations

from pathlib import Path

import pytest

from plait.errors import PlaitError, Problems
from plait.recipe.kinds import check

MERGE = "merge_method: linear\nmodels:\n  - {model: a, parameters: {weight: 1}}\n"
RAW = "merge_method: linear\nmodels:\n  - {model: a.pt}\n  - {model: b.safetensors}\n"
MULTI = "name: one\n" + MERGE + "---\nmerge_method: passthrough\nmodels:\n  - {model: one}\n"
MOE = """\
base_model: a
gate_mode: cheap_embed
dtype: bfloat16
experts_per_token: 1
experts:
  - {source_model: a, positive_prompts: &math [sums], negative_prompts: &talk [chat], residual_scale: 0.1}
  - {source_model: b, positive_prompts: *talk, negative_prompts: *math, noise_scale: 1}
shared_experts:
  - {source_model: c}
"""
EVOLVE = """\
genome:
  models: [a, b+lora]
  merge_method: dare_ties
  base_model: {model: c}
  layer_granularity: 8
  filters: [mlp, self_attn]
tasks:
  - {name: t, weight: 0.5, metric: "em,none"}
limit: 20
"""


@pytest.mark.parametrize(
    ("text", "kind", "recipes"),
    [(MERGE, "merge", 1), (RAW, "raw", 1), (MULTI, "multi", 2), (MOE, "moe", 0), (EVOLVE, "evolve", 0)],
)
def test_kinds(text: str, kind: str, recipes: int, tmp_path: Path) -> None:
    """A well-formed file of each kind is known for what it is and accepted, strictly too."""
    (tmp_path / "f.yml").write_text(text)
    checked = check(tmp_path / "f.yml")
    assert (checked.kind, len(checked.recipes), checked.warnings) == (kind, recipes, ())
    assert (checked.recipe is not None) == (recipes == 1)


def test_empty_documents_do_not_count() -> None:
    """A leading or trailing `---` makes no second stage."""
    assert check("---\n" + MERGE + "---\n").kind == "merge"


def swap(text: str, old: str, new: str) -> str:
    assert old in text
    return text.replace(old, new, 1)


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        (swap(MOE, "base_model", "yamlbase_model"), 1, "'base_model' is missing"),
        (swap(MOE, "cheap_embed", "cheap"), 2, "write cheap_embed"),
        (swap(MOE, "bfloat16", "int8"), 3, "destroy"),
        (swap(MOE, "_token: 1", "_token: 3"), 6, "too few experts"),
        (swap(MOE, "positive_prompts: &math [sums], ", "x: &math [], "), 6, "no positive_prompts"),
        (swap(MOE, "positive_prompts: &math [sums]", "positive_prompts: &math sums"), 6, "a list"),
        (swap(MOE, "noise_scale: 1", "noise_scale: loud"), 7, "noise_scale"),
        ("merge_method: moe\n" + MOE, 1, "has no merge_method"),
        (MOE + "tokenizer_source: model:./x\n", 10, "old spelling"),
        ("base_model: a\ngate_mode: hidden\n", 1, "'experts' is missing"),
        (swap(EVOLVE, "dare_ties", "karcher"), 3, "unknown"),
        (swap(EVOLVE, "[a, b+lora]", "[]"), 2, "models"),
        (swap(EVOLVE, "  base_model: {model: c}\n", ""), 2, "needs a base_model"),
        (swap(EVOLVE, "name: t, ", ""), 8, "'name' is missing"),
        (swap(EVOLVE, "limit: 20", "limit: all"), 9, "limit"),
        (swap(MULTI, "---\n", "---\nname: one\n"), 6, "two stages are named 'one'"),
        (swap(MULTI, "name: one\n", ""), 5, "two stages have no name"),
        (swap(MULTI, "model: a,", "model: x,").replace("---\n", "---\nname: x\n"), 1, "need each other"),
        (swap(MULTI, "passthrough", "[]"), 6, "merge_method"),
    ],
)
def test_refuses(text: str, line: int, words: str) -> None:
    """A malformed file of a known kind is refused at its line, even in a lenient reading."""
    for lenient in (False, True):
        with pytest.raises(PlaitError) as caught:
            check(text, lenient=lenient)
        error = caught.value
        first = error.problems[0] if isinstance(error, Problems) else error
        assert words in str(first)
        assert first.where
        assert first.where.line == line


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (MOE + "tokenizer_source: a\n", "has no effect"),
        (MOE + "merge: 1\n", "not a key of a mixture of experts"),
        (swap(MOE, "negative_prompts: *math", "negatve_prompts: *math"), "did you mean 'negative_prompts'"),
        (swap(EVOLVE, "weight: 0.5", "wiehgt: 0.5"), "did you mean 'weight'"),
        (MULTI + "out_path: x\n", "not a key of a recipe"),
    ],
)
def test_unknown_keys(text: str, words: str) -> None:
    """What mergekit ignores is an error, and a warning in a lenient reading."""
    with pytest.raises(PlaitError, match=words):
        check(text)
    (warning,) = check(text, lenient=True).warnings
    assert words in warning


def test_prompts_that_are_all_the_same() -> None:
    """Experts that cannot be told apart are refused, unless the router is random or the reading lenient."""
    text = swap(MOE, "&math [sums], negative_prompts: &talk [chat]", "&math [x], negative_prompts: &talk [x]")
    with pytest.raises(PlaitError, match="same prompts"):
        check(text)
    assert check(text, lenient=True).kind == "moe"
    assert check(swap(text, "cheap_embed", "random")).kind == "moe"

"""The table of mixtures: each row says what is true of the class in transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from moe.bases import base, logits
from plait.merged import Merge
from plait.moe import prepare
from plait.moe.families import DENSE, FAMILIES, UNFIT

PAIRS = [(family, kind) for family in FAMILIES if family.loads for kind in family.dense]


def recipe(model: Path, family: str, shared: bool, gated: bool) -> dict[str, object]:
    entry = {"source_model": str(model)}
    # small rows: scores far below zero would vanish beside the epsilon that some models add before they divide by their sum
    asked = {"base_model": str(model), "gate_mode": "uniform_random", "architecture": family, "experts": [entry] * 3}
    return {**asked, "shared_experts": [{**entry, "residual_scale": 0.0}]} if shared else asked


@pytest.mark.parametrize(("family", "kind"), PAIRS, ids=[f"{f.model_type} of {k}" for f, k in PAIRS])
def test_the_parts_fit(family, kind, tmp_path: Path) -> None:
    """If every expert is the base's own mlp, and a shared one is silent, the mixture says what the base says."""
    model = base(tmp_path / "base", kind)
    asked = recipe(model, family.title, shared=family.shared is not None, gated=False)
    plan = prepare(asked, alike=True, seed=7).plan
    Merge(plan).save(tmp_path / "out")
    torch.testing.assert_close(logits(tmp_path / "out"), logits(model), rtol=1e-4, atol=1e-4)
    assert plan.config["architectures"] == [family.architecture]
    network, tokenizer = (c.from_pretrained(tmp_path / "out") for c in (AutoModelForCausalLM, AutoTokenizer))
    written = network.generate(**tokenizer("w5 w9", return_tensors="pt"), max_new_tokens=3, do_sample=False)
    assert written.shape[1] > 2


def test_names() -> None:
    """Every type in the tables is one of transformers', and no type is said both to fit and not to."""
    made = {family.model_type for family in FAMILIES}
    assert {*DENSE, *UNFIT, *made} - {*CONFIG_MAPPING, "nllb-moe"} == {"deepseek"}
    assert not made & UNFIT.keys()
    assert {kind for family in FAMILIES for kind in family.dense} == DENSE.keys()

"""Models that cannot be asked: told in words before the first question, whatever transformers raises."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import make

#: fault -> (what the message has, settings of the config, the tokenizer's file, options)
FAULTS: dict[str, tuple[str, dict[str, Any], str | None, list[str]]] = {
    "no class of transformers": ("transformers cannot load", {"model_type": "nonesuch"}, None, []),
    "no such activation": ("transformers cannot load", {"hidden_act": "nonesuch"}, None, []),
    "heads that do not divide": ("transformers cannot load", {"num_attention_heads": 3}, None, []),
    "no number": ("transformers cannot load", {"vocab_size": "many"}, None, []),
    "other shapes": ("transformers cannot load", {"hidden_size": 16}, None, []),
    "no tokenizer": ("no tokenizer that transformers can load", {}, "", []),
    "an empty tokenizer": ("no tokenizer that transformers can load", {}, "{}", []),
    "no template": ("a model has no chat template", {}, None, ["--chat"]),
}


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "q.jsonl"
    path.write_text('{"prompt": "w5 w6", "answer": "w7"}\n')
    return path


@pytest.mark.parametrize("fault", FAULTS)
def test_a_model_that_cannot_be_asked(fault: str, questions: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    """A config, weights or a tokenizer that transformers cannot make a model of is told by the model's name."""
    said, settings, tokenizer, options = FAULTS[fault]
    model = make.model(tmp_path / "a", settings=settings)
    if tokenizer is not None:
        for path in model.glob("tokenizer*"):
            path.unlink()
    if tokenizer:
        (model / "tokenizer.json").write_text(tokenizer)
    refused(said, "eval", model, "--questions", questions, *options)


def test_without_lm_eval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]) -> None:
    """Tasks of lm-eval, where it is not installed, say what to install."""
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    told = refused("lm_eval", "eval", make.model(tmp_path / "a"), "--tasks", "arc_easy")
    assert 'pip install "plait[eval]"' in told

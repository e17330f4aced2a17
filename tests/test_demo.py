"""The demo: its scores are the known ones, its recipes work, its table comes from real merges."""

from __future__ import annotations

import json

import pytest
import torch

from plait.demo.score import HERE, SKILLS, Score, load, one_thread, score, write

pytest.importorskip("transformers")

#: right answers of 500, counted when the models were made (add, rev, src)
KNOWN = {"base": (215, 316, 290), "add": (449, 288, 288), "rev": (206, 459, 287), "src": (126, 297, 345)}


@pytest.mark.parametrize("name", ["base", "src"])
def test_scores_are_the_known_ones(name: str) -> None:
    """A bundled model answers exactly as many questions as when it was made."""
    ticks: list[int] = []
    found = score(HERE / "models" / name, tick=ticks.append)
    assert tuple(found[skill.name].right for skill in SKILLS) == KNOWN[name]
    assert sum(ticks) == 1500


@pytest.mark.parametrize("name", ["add", "rev"])
def test_specialists_have_their_known_scores_at_their_own_skill(name: str) -> None:
    """A specialist answers exactly as many questions of its own skill as when it was made."""
    skills = [skill for skill in SKILLS if skill.name == name]
    index = [skill.name for skill in SKILLS].index(name)
    assert score(HERE / "models" / name, skills)[name].right == KNOWN[name][index]


def test_a_batch_writes_what_its_prompts_get_alone() -> None:
    """What a model writes for a prompt does not depend on the prompts beside it."""
    with one_thread(), torch.inference_mode():
        network, tokenizer = load(HERE / "models" / "rev")
        prompts = [item.prompt for item in SKILLS[1].items(60)]
        ids = [tokenizer(prompt).input_ids for prompt in prompts]
        alike = torch.tensor([row for row in ids if len(row) == 7])
        assert len(alike) > 5
        together = write(network, tokenizer, alike)
        assert together == [write(network, tokenizer, row[None])[0] for row in alike]


def test_written_answers_are_those_of_generate() -> None:
    """The greedy loop writes what transformers' own generate writes."""
    with one_thread(), torch.inference_mode():
        network, tokenizer = load(HERE / "models" / "add")
        for item in SKILLS[0].items(20):
            ids = torch.tensor([tokenizer(item.prompt).input_ids])
            mask = torch.ones_like(ids)
            whole = network.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=12)[0, ids.shape[1] :]
            text = tokenizer.decode(whole, skip_special_tokens=True).split("\n")[0].strip()
            assert write(network, tokenizer, ids) == [text]


def test_scoring_restores_the_number_of_threads() -> None:
    """Scoring uses one thread and gives torch its own number back."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with one_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_standard_error_is_binomial() -> None:
    """The ± of a score is the binomial standard error of its share."""
    assert Score(50, 100).error == pytest.approx(0.05)
    assert Score(0, 100).error == 0


def test_every_item_is_distinct_and_has_an_answer() -> None:
    """Each skill has 500 different questions, each with an answer, among the choices if there are any."""
    for skill in SKILLS:
        items = skill.items()
        assert len({item.prompt for item in items}) == len(items) == 500
        assert all(item.answer for item in items)
        assert {item.answer for item in items} == set(skill.choices) or not skill.choices


def test_models_share_tokenizer_and_config() -> None:
    """The four models differ in their weights only, so that they can be merged."""
    configs = [json.loads((HERE / "models" / name / "config.json").read_text()) for name in KNOWN]
    tokenizers = [(HERE / "models" / name / "tokenizer.json").read_bytes() for name in KNOWN]
    assert all(config == configs[0] for config in configs)
    assert all(tokenizer == tokenizers[0] for tokenizer in tokenizers)

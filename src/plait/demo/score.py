"""How good a small model is at the demo's three skills: exact answers to held-out items, in float32.

    add   "add 37+45="                    the model must go on with      82
    rev   "rev k d b a="                                                 a b d k
    src   "src <ten words of a text>="    which book is it from?         bible, gloss, moby or union

For `add` and `rev` the model writes greedily until the line or the text ends, at most 12 tokens; the answer without the
spaces around it must be the right one, to the letter. For `src` the most probable of the four names is the answer, told
by their first tokens, which differ. Prompts of one length are worked on together, so no prompt is ever padded.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from plait.evaluate.network import alike, load, one_thread
from plait.evaluate.network import write as network_write

HERE = Path(__file__).parent
MOST_TOKENS = 12  # an answer is at most 6 letters and 5 spaces, 7 tokens with the end of the text
BATCH = 256


@dataclass(frozen=True, slots=True)
class Item:
    """One question and its only right answer."""

    prompt: str
    answer: str


@dataclass(frozen=True, slots=True)
class Skill:
    """A kind of question; with `choices` the answer is one of them, without it is written freely."""

    name: str
    about: str
    choices: tuple[str, ...] = ()

    def items(self, count: int | None = None) -> list[Item]:
        """The first `count` of the 500 held-out items."""
        lines = (HERE / "items" / f"{self.name}.jsonl").read_text("utf-8").splitlines()
        return [Item(**json.loads(line)) for line in lines[:count]]


SKILLS = (
    Skill("add", "sums of two numbers below 100"),
    Skill("rev", "three to six letters, backwards"),
    Skill("src", "which of four texts a snippet is from", ("bible", "gloss", "moby", "union")),
)


@dataclass(frozen=True, slots=True)
class Score:
    """`right` answers out of `total` items."""

    right: int
    total: int

    @property
    def share(self) -> float:
        """In [0, 1]."""
        return self.right / self.total

    @property
    def error(self) -> float:
        """Binomial standard error of `share`."""
        return math.sqrt(self.share * (1 - self.share) / self.total)


Tick = Callable[[int], object]


def silent(_: object) -> None:
    """The `Tick` that nobody watches."""


def score(
    model: Path | str, skills: Sequence[Skill] = SKILLS, count: int | None = None, tick: Tick = silent
) -> dict[str, Score]:
    """Score the model directory `model` on the first `count` items of each skill.

    `tick` is called with the number of items done since its last call. One torch thread is used, so that scores do not
    depend on the machine's number of cores. Raises PlaitError without transformers, ModelError for an unreadable model.
    """
    with one_thread(), torch.inference_mode():
        network, tokenizer = load(model)
        return {skill.name: _score(network, tokenizer, skill, skill.items(count), tick) for skill in skills}


def _score(network: Any, tokenizer: Any, skill: Skill, items: list[Item], tick: Tick) -> Score:
    prompts = [tokenizer(item.prompt).input_ids for item in items]
    right = 0
    for batch in alike(prompts, BATCH):
        ids = torch.tensor([prompts[i] for i in batch])
        answers = choose(network, tokenizer, ids, skill.choices) if skill.choices else write(network, tokenizer, ids)
        right += sum(answer == items[i].answer for i, answer in zip(batch, answers, strict=True))
        tick(len(batch))
    return Score(right, len(items))


def write(network: Any, tokenizer: Any, ids: torch.Tensor) -> list[str]:
    """What the model writes after each prompt, greedily, up to the end of the line; ids: int64 [prompts, tokens]."""
    return network_write(network, tokenizer, ids.tolist(), MOST_TOKENS)


def choose(network: Any, tokenizer: Any, ids: torch.Tensor, choices: Sequence[str]) -> list[str]:
    """The most probable choice after each prompt, told by its first token; ids: int64 [prompts, tokens]."""
    firsts = torch.tensor([tokenizer(" " + choice).input_ids[0] for choice in choices])
    best = network(ids).logits[:, -1, firsts].argmax(-1)
    return [choices[i] for i in best.tolist()]

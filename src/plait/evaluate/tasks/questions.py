"""Exact answers to questions: a JSONL file of {"prompt": …, "answer": …}, optionally with "choices": […].

Without choices the model goes on after the prompt, greedily, up to the end of the line or of the text or --max-tokens tokens; the
line without the spaces around it must be the answer, to the letter. An answer may be a list, of which any is right. With
choices, the one that the model finds most probable after the prompt is its answer, the probability of a choice being the
product over its tokens; a space is put between prompt and choice where the prompt does not end with one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from plait.errors import Where
from plait.evaluate.cache import digest
from plait.evaluate.reading import TaskError, rows, text_at
from plait.evaluate.records import Measure, Sample, Settings, Subject, Task

OPTION = "--questions"
METAVAR = "FILE"
HELP = "Exact answers to a JSONL file of {prompt, answer[, choices]}."


@dataclass(frozen=True, slots=True)
class Question:
    prompt: str
    answers: tuple[str, ...]
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Questions:
    name: str
    questions: tuple[Question, ...]
    settings: Settings

    @cached_property
    def fingerprint(self) -> str:
        asked = [(q.prompt, q.answers, q.choices) for q in self.questions]
        return digest("questions 1", asked, self.settings.max_tokens, self.settings.chat)

    @property
    def keys(self) -> Sequence[str]:
        return [str(i) for i in range(len(self.questions))]

    def measure(self, subject: Subject, keys: Sequence[str]) -> Iterator[Sample]:
        from plait.evaluate.network import alike, choose, prompt_ids, write

        network, tokenizer = subject.loaded()
        asked = [int(key) for key in keys]
        for chosen in (False, True):
            mine = [i for i in asked if bool(self.questions[i].choices) == chosen]
            prompts = [prompt_ids(tokenizer, self.questions[i].prompt, self.settings.chat) for i in mine]
            for batch in alike(prompts, self.settings.batch):
                ids, which = [prompts[b] for b in batch], [mine[b] for b in batch]
                if chosen:
                    spaced = [_spaced(self.questions[i]) for i in which]
                    said = [choose(network, tokenizer, row, some) for row, some in zip(ids, spaced, strict=True)]
                else:
                    said = write(network, tokenizer, ids, self.settings.max_tokens)
                for i, text in zip(which, said, strict=True):
                    yield _sample(i, self.questions[i], text)


def _spaced(question: Question) -> list[str]:
    gap = "" if question.prompt[-1:].isspace() else " "
    return [gap + choice for choice in question.choices]


def _sample(i: int, question: Question, text: str) -> Sample:
    said = text.strip()
    right = said in question.answers
    return Sample(str(i), {"exact_match": Measure(float(right))}, question.prompt, question.answers[0], said)


def tasks(value: str, settings: Settings) -> list[Task]:
    """The questions in the file `value` as a task; raises `TaskError`."""
    path = Path(value)
    found = [_question(row, where) for where, row in rows(path)]
    return [Questions(path.stem, tuple(found[: settings.limit]), settings)]


def _question(row: dict[str, Any], where: Where) -> Question:
    answers = row.get("answer")
    prompt, answers = text_at(row, "prompt", where), answers if isinstance(answers, list) else [answers]
    choices = row.get("choices", [])
    if not answers or not all(isinstance(a, str) and a.strip() for a in answers):
        raise TaskError(
            "a line has no 'answer'",
            wanted="text, or a list of texts",
            found=str(row)[:60],
            do="write text at 'answer'",
            where=where,
        )
    if not isinstance(choices, list) or not all(isinstance(c, str) and c.strip() for c in choices):
        raise TaskError("choices are a list of texts", found=str(choices)[:60], do='write ["one", "two"]', where=where)
    answers, choices = [a.strip() for a in answers], [c.strip() for c in choices]
    if choices and not set(answers) & set(choices):
        raise TaskError(
            "the answer is not among the choices",
            wanted=", ".join(choices),
            found=answers[0],
            do="write the answer as one of the choices is written",
            where=where,
        )
    return Question(prompt, tuple(answers), tuple(choices))

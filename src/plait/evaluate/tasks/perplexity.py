"""Perplexity of a text: how surprised a model is by each token, given the tokens before it.

The text is cut into windows of L tokens, each S tokens after the last (L: --window, S: --stride). Every token t is counted
once, in the first window that holds it, with everything before it in that window as its context:

    perplexity     = exp( Σ −ln p(t | context) / number of tokens )
    bits_per_byte  =      Σ −log2 p(t | context) / number of bytes in UTF-8

A document's first token has no context and is left out, unless the tokenizer puts one before it. A token belongs to the
stretch of text, of about 500 characters, in which it begins: stretches are the items of the bootstrap, the same for all
tokenizers. Perplexities of different tokenizers count different tokens; compare their bits per byte.

A .jsonl file has a document a line ({"text": …}); any other file is one document.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from plait.evaluate.cache import digest
from plait.evaluate.reading import TaskError, rows, text_at, whole
from plait.evaluate.records import Measure, Sample, Settings, Subject, Task

OPTION = "--text"
METAVAR = "FILE"
HELP = "Perplexity on a text, or on a JSONL file of {text}."
STRETCH = 500  # characters
LONGEST = 2048  # tokens of a window, unless it is asked for


@dataclass(frozen=True)
class Perplexity:
    name: str
    documents: tuple[str, ...]
    stretches: tuple[tuple[int, int, int], ...]  # document, first and last character + 1
    settings: Settings

    @cached_property
    def fingerprint(self) -> str:
        return digest("perplexity 1", self.documents, self.stretches, self.settings.window, self.settings.stride)

    @property
    def keys(self) -> Sequence[str]:
        return [f"{d}:{start}" for d, start, _ in self.stretches]

    def measure(self, subject: Subject, keys: Sequence[str]) -> Iterator[Sample]:
        wanted = set(keys)
        for d, document in enumerate(self.documents):
            mine = [(start, stop) for at, start, stop in self.stretches if at == d]
            if any(f"{d}:{start}" in wanted for start, _ in mine):
                yield from (s for s in self._document(subject, d, document, mine) if s.key in wanted)

    def _document(self, subject: Subject, d: int, text: str, mine: list[tuple[int, int]]) -> Iterator[Sample]:
        from plait.evaluate.network import surprise, window_of

        network, tokenizer = subject.loaded()
        window = window_of(network, self.settings.window, LONGEST)
        stride = self.settings.stride or max(1, window // 2)
        _check(window, stride)
        text = text[: mine[-1][1]]
        found = surprise(network, tokenizer, text, window, stride)
        starts, stop = [start for start, _ in mine], mine[-1][1]
        sums, counts = [0.0] * len(mine), [0] * len(mine)
        first: list[int | None] = [None] * len(mine)
        for at, nats in found:
            i = bisect_right(starts, min(at, stop - 1)) - 1
            sums[i], counts[i] = sums[i] + nats, counts[i] + 1
            first[i] = at if first[i] is None else first[i]
        for i, (start, end) in enumerate(mine):
            # the first token of the document is not counted, nor are its bytes
            begin = max(start, first[0] or 0) if i == 0 else start
            size = len(text[begin:end].encode())
            key, shown = f"{d}:{start}", text[start : start + 60]
            if counts[i]:
                mean = sums[i] / counts[i]
                yield Sample(
                    key,
                    {
                        "perplexity": Measure(mean, counts[i], False, "exp"),
                        "bits_per_byte": Measure(sums[i] / math.log(2) / max(size, 1), max(size, 1), False),
                    },
                    shown,
                )
            else:
                yield Sample(key, {}, shown)


def tasks(value: str, settings: Settings) -> list[Task]:
    """The text in the file `value` as a task; raises `TaskError`."""
    path = Path(value)
    if settings.window and settings.stride:
        _check(settings.window, settings.stride)
    many = path.suffix == ".jsonl"
    documents = [text_at(row, "text", where) for where, row in rows(path)] if many else [whole(path)]
    stretches = [
        (d, start, min(start + STRETCH, len(text)))
        for d, text in enumerate(documents)
        for start in range(0, len(text), STRETCH)
    ]
    return [Perplexity(path.stem, tuple(documents), tuple(stretches[: settings.limit]), settings)]


def _check(window: int, stride: int) -> None:
    if stride >= window:
        raise TaskError(
            f"a stride of {stride} tokens leaves no context",
            wanted=f"less than the window of {window}",
            found=str(stride),
            do="pass a smaller --stride",
        )

"""Subjects × tasks → scores, and what differs from each parent."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plait.errors import nearest
from plait.evaluate.cache import Kept, folder, line
from plait.evaluate.intervals import difference_interval, interval, score
from plait.evaluate.reading import TaskError
from plait.evaluate.records import Measure, Sample, Subject, Task

Samples = Mapping[str, Sample]
Tell = Callable[[int], object]


@dataclass(frozen=True, slots=True)
class Score:
    """One metric of one model at one task; `low` and `high` bound its 95 % interval, None where there is none."""

    task: str
    metric: str
    higher_is_better: bool
    items: int
    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Difference:
    """How far `model` is from `parent`, on the items that both were asked.

    `verdict` is better, worse, or even where the interval holds zero; None without an interval. `won` and `lost` are the
    items that went better and worse.
    """

    model: str
    parent: str
    task: str
    metric: str
    parent_value: float
    difference: float
    low: float | None
    high: float | None
    verdict: str | None
    won: tuple[str, ...]
    lost: tuple[str, ...]


@dataclass(frozen=True)
class Evaluation:
    """The whole: subjects and tasks in their order, scores by subject, differences to each parent."""

    subjects: tuple[Subject, ...]
    tasks: tuple[str, ...]
    samples: Mapping[tuple[str, str], Samples]  # by (subject, task)
    scores: Mapping[str, tuple[Score, ...]]
    differences: tuple[Difference, ...]


def compare(
    subjects: Sequence[Subject],
    tasks: Sequence[Task],
    *,
    against: Sequence[str] = (),
    cache: Path | None = None,
    fresh: bool = False,
    progress: Callable[[int], Any] | None = None,
) -> Evaluation:
    """Score all subjects at all tasks. `against`: the parents' names, the first subject by default.

    What was asked before is taken from `cache` (a folder; the user's cache by default), unless `fresh`. `progress` is called
    with the number of items that are left, and gives a context whose value is told of each finished item.
    """
    parents = _parents(subjects, against)
    where = folder(cache)
    known: dict[tuple[str, str], dict[str, Sample]] = {}
    for subject in subjects:
        for task in tasks:
            kept = {} if fresh else Kept(where, subject.fingerprint, task.fingerprint).read()
            known[subject.name, task.name] = kept
    missing = {
        (s.name, t.name): [key for key in t.keys if key not in known[s.name, t.name]] for s in subjects for t in tasks
    }
    with (progress or _silent)(sum(map(len, missing.values()))) as tell:
        for subject in subjects:
            try:
                for task in tasks:
                    place = subject.name, task.name
                    if missing[place]:
                        kept_at = Kept(where, subject.fingerprint, task.fingerprint)
                        known[place] |= _ask(subject, task, missing[place], kept_at, tell)
            finally:
                subject.close()
    samples = {(s.name, t.name): _ordered(t, known[s.name, t.name]) for s in subjects for t in tasks}
    scores = {s.name: tuple(x for t in tasks for x in _scores(t.name, samples[s.name, t.name])) for s in subjects}
    differences = tuple(
        found
        for s in subjects
        for parent in parents
        if s.name != parent
        for t in tasks
        for found in _differences(s.name, parent, t.name, samples[s.name, t.name], samples[parent, t.name])
    )
    return Evaluation(tuple(subjects), tuple(t.name for t in tasks), samples, scores, differences)


@contextmanager
def _silent(_: int) -> Iterator[Tell]:
    yield lambda done: None


def _parents(subjects: Sequence[Subject], against: Sequence[str]) -> list[str]:
    names = [subject.name for subject in subjects]
    for name in against:
        if name not in names:
            guess = nearest(name, names)
            raise TaskError(
                f"{name} is not among the models",
                wanted=", ".join(names),
                found=name,
                do=f"did you mean {guess}?" if guess else "name it among the models too",
            )
    return list(dict.fromkeys(against)) or names[:1]


def _ask(subject: Subject, task: Task, keys: Sequence[str], kept: Kept, tell: Tell | None) -> dict[str, Sample]:
    found = {}
    with kept.writer() as file:
        for sample in task.measure(subject, keys):
            file.write(line(sample))
            found[sample.key] = sample
            if tell:
                tell(1)
    return found


def _ordered(task: Task, samples: Samples) -> dict[str, Sample]:
    """The task's items in their order, then those that only the answer names, in its order."""
    own = [key for key in task.keys if key in samples]
    more = sorted(samples.keys() - set(own), key=lambda key: (len(key), key))
    return {key: samples[key] for key in [*own, *more]}


def _scores(task: str, samples: Samples) -> Iterator[Score]:
    for metric, found in _by_metric(samples).items():
        measures = list(found.values())
        bounds = interval(measures) or (None, None)
        yield Score(task, metric, measures[0].higher_is_better, len(measures), score(measures), *bounds)


def _by_metric(samples: Samples) -> dict[str, dict[str, Measure]]:
    found: dict[str, dict[str, Measure]] = {}
    for key, sample in samples.items():
        for metric, measure in sample.measures.items():
            found.setdefault(metric, {})[key] = measure
    return found


def _differences(model: str, parent: str, task: str, mine: Samples, theirs: Samples) -> Iterator[Difference]:
    others = _by_metric(theirs)
    for metric, measures in _by_metric(mine).items():
        keys = [key for key in measures if key in others.get(metric, {})]
        if not keys:
            continue
        one, other = [measures[key] for key in keys], [others[metric][key] for key in keys]
        sign = 1 if one[0].higher_is_better else -1
        bounds = difference_interval(one, other)
        low, high = bounds or (None, None)
        better = {key: sign * (a.value - b.value) for key, a, b in zip(keys, one, other, strict=True)}
        yield Difference(
            model,
            parent,
            task,
            metric,
            score(other),
            score(one) - score(other),
            low,
            high,
            None if bounds is None else _verdict(sign * bounds[0], sign * bounds[1]),
            tuple(key for key, gain in better.items() if gain > 0),
            tuple(key for key, gain in better.items() if gain < 0),
        )


def _verdict(one: float, other: float) -> str:
    """Of the bounds of a gain."""
    return "better" if min(one, other) > 0 else "worse" if max(one, other) < 0 else "even"

"""Tasks of EleutherAI's lm-eval, by name, or as YAML files of your own in --task-folder. Needs plait[eval].

Prompts, few-shot examples, filters and metrics are lm-eval's; tasks without `num_fewshot` get no examples, as there. Items are
handed over some at a time, so that work that was stopped goes on where it was. Metrics that are no mean over items (BLEU, F1 over
a corpus, …) are left out. A folder of tasks may hold Python code, which is run.
"""

from __future__ import annotations

import json
import logging
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

from plait.errors import nearest
from plait.evaluate.cache import digest
from plait.evaluate.reading import TaskError
from plait.evaluate.records import Measure, Sample, Settings, Subject, Task

OPTION = "--tasks"
METAVAR = "T,T…"
HELP = "Tasks of lm-eval by name. Needs plait[eval]."
CHUNK, CHUNKS = 100, 20  # fewest items handed over at once; most times
FEWSHOT_SEED = 1234  # lm-eval's own default
#: aggregation of lm-eval -> ("mean" or "exp", factor on the logarithms that it aggregates)
MEANS = {
    "mean": ("mean", 1.0),
    "nanmean": ("mean", 1.0),
    "perplexity": ("exp", -1.0),
    "weighted_perplexity": ("exp", -1.0),
    "bits_per_byte": ("mean", -1 / math.log(2)),
}


@dataclass(frozen=True)
class Harness:
    name: str
    task: Any  # lm_eval.api.task.Task
    settings: Settings

    @cached_property
    def keys(self) -> Sequence[str]:
        count = len(self.task.eval_docs)
        return [str(i) for i in range(min(count, self.settings.limit or count))]

    @cached_property
    def fingerprint(self) -> str:
        config = json.dumps(self.task.dump_config(), sort_keys=True, default=str)
        docs = [json.dumps(dict(doc), sort_keys=True, default=str) for doc in self.task.eval_docs]
        return digest("lm-eval 1", version("lm_eval"), config, docs, self.settings.chat)

    def measure(self, subject: Subject, keys: Sequence[str]) -> Iterator[Sample]:
        with _quiet():
            network, tokenizer = subject.loaded()
            model = _quiet_model()(pretrained=network, tokenizer=tokenizer, batch_size=self.settings.batch)
        items = sorted(map(int, keys))
        chunk = max(CHUNK, len(items) // CHUNKS)  # for each, lm-eval goes through all items once
        for at in range(0, len(items), chunk):
            with _quiet():
                found = self._chunk(model, items[at : at + chunk])
            yield from found

    def _chunk(self, model: Any, items: list[int]) -> list[Sample]:
        """These items, by the steps of lm-eval's `evaluate` up to the single item's metrics."""
        task, chat = self.task, self.settings.chat
        task.build_all_requests(
            samples=items,
            rank=0,
            world_size=1,
            apply_chat_template=chat,
            chat_template=model.apply_chat_template if chat else None,
            tokenizer_name=model.tokenizer_name if chat else "",
        )
        by_kind: dict[str, list[Any]] = defaultdict(list)
        by_item: dict[int, list[Any]] = defaultdict(list)
        for request in task.instances:
            by_kind[request.request_type] += [request] * request.repeats
            by_item[request.doc_id].append(request)
        for kind, requests in by_kind.items():
            for request, answer in zip(requests, getattr(model, kind)(requests), strict=True):
                request.resps.append(answer)
        task.apply_filters()
        docs = list(task.doc_iterator(rank=0, limit=None, world_size=1, samples=items))
        return [
            self._sample(str(items[i]), doc, sorted(by_item[i], key=lambda request: int(request.idx)))
            for i, doc in docs
        ]

    def _sample(self, key: str, doc: Any, requests: Sequence[Any]) -> Sample:
        task, filters = self.task, list(requests[0].filtered_resps)
        better, aggregation = task.higher_is_better(), task.aggregation()
        measures = {}
        for name in filters:
            for metric, value in task.process_results(doc, [r.filtered_resps[name] for r in requests]).items():
                measure = _measure(
                    value, getattr(aggregation.get(metric), "__name__", ""), better.get(metric) is not False
                )
                if measure:
                    measures[metric if len(filters) == 1 else f"{metric} ({name})"] = measure
        wanted, said = str(task.doc_to_target(doc)), _said(requests, filters[0])
        return Sample(key, measures, str(requests[0].args[0])[-200:], wanted[:200], said[:200])


def _measure(value: Any, aggregation: str, higher: bool) -> Measure | None:
    """A metric of an item, which is a number, or for running text (log probability, length); None if it is no part of a mean."""
    total, weight = value if isinstance(value, tuple | list) and len(value) == 2 else (value, 1.0)
    if aggregation not in MEANS or not isinstance(total, int | float) or not math.isfinite(total):
        return None
    mean, factor = MEANS[aggregation]
    return Measure(factor * float(total) / float(weight or 1), float(weight), higher, mean)


def _said(requests: Sequence[Any], name: str) -> str:
    """What the model answered: its text, or the choice that it found most probable."""
    answers = [request.filtered_resps[name] for request in requests]
    if len(answers) > 1 and all(isinstance(answer, tuple | list) for answer in answers):
        best = max(range(len(answers)), key=lambda i: answers[i][0])
        return str(requests[best].args[-1]).strip()
    return answers[0] if isinstance(answers[0], str) else ""


def tasks(value: str, settings: Settings) -> list[Task]:
    """The tasks and groups named in `value`, loaded with their items; raises `TaskError`."""
    if lacking := [package for package in ("lm_eval", "accelerate") if find_spec(package) is None]:
        raise TaskError(
            f"{' and '.join(lacking)} is not installed", wanted="lm-eval[hf]", do='pip install "plait[eval]"'
        )
    manager: Any = import_module("lm_eval.tasks").TaskManager
    names = [name.strip() for name in value.split(",") if name.strip()]
    folders = [str(folder) for folder in settings.task_folders]
    for folder in settings.task_folders:
        if not folder.is_dir():
            raise TaskError(
                f"there is no folder {folder}", wanted="a folder of task YAML files", found="none", do="check the path"
            )
    with _quiet():
        known = manager(include_path=folders, include_defaults=False)
        if any(name not in known.all_tasks for name in names):  # lm-eval's own take ten seconds to list
            known = manager(include_path=folders or None)
        for name in names:
            if name not in known.all_tasks:
                guess = nearest(name, known.all_tasks)
                raise TaskError(
                    f"lm-eval has no task {name!r}",
                    wanted="a task, group or tag of lm-eval, or of --task-folder",
                    found=name,
                    do=f"did you mean {guess}?" if guess else "see the names with: lm-eval ls tasks",
                )
        try:
            loaded = known.load(names)["tasks"]
            found = [Harness(name, _ready(task), settings) for name, task in loaded.items()]
            for task in found:
                _ = task.keys
        except Exception as error:  # a task is code and data of somebody's: whatever it raises, the user must see
            said = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            do = "its data may have to be downloaded first, with a network"
            raise TaskError(f"lm-eval cannot load {value}", found=said, do=do) from error
    for task in found:
        if getattr(task.task, "UNSAFE_CODE", False):
            raise TaskError(
                f"{task.name} runs code that models write",
                wanted="a task that does not",
                found="UNSAFE_CODE",
                do="run it with lm-eval itself, in a sandbox",
            )
    return list(found)


def _ready(task: Any) -> Any:
    """The task with the settings that lm-eval's own command line gives it."""
    if task.get_config("num_fewshot") is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=FEWSHOT_SEED)
    return task


def _quiet_model() -> Any:
    """lm-eval's class of transformers models, without its progress bars."""
    base: Any = import_module("lm_eval.models.huggingface").HFLM

    class Quiet(base):  # type: ignore[misc]
        def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> Any:
            return super().loglikelihood(requests, disable_tqdm=True)

        def _loglikelihood_tokens(self, requests: Any, disable_tqdm: bool = True, **more: Any) -> Any:
            return super()._loglikelihood_tokens(requests, disable_tqdm=True, **more)

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = True) -> Any:
            return super().loglikelihood_rolling(requests, disable_tqdm=True)

        def generate_until(self, requests: Any, disable_tqdm: bool = True) -> Any:
            return super().generate_until(requests, disable_tqdm=True)

    return Quiet


@contextmanager
def _quiet() -> Iterator[None]:
    """lm-eval tells its progress as warnings."""
    logger = logging.getLogger("lm_eval")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)

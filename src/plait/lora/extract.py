"""The adapter between a model and its base: base + adapter is the model, as nearly as the ranks allow.

The two are planned like a merge, so that other prefixes, layouts and quantised files are no matter. Then one module after the
other is read, factored and written; a thread holds one matrix.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from math import sqrt
from pathlib import Path
from typing import Any

from torch import Tensor

from plait.checkpoint import home
from plait.checkpoint.dtypes import torch_dtype
from plait.errors import PlaitError
from plait.lora.limit import Limit, narrow, residual
from plait.lora.modules import Kind, fits, is_embedding, kind_of, listed, prefix, turned
from plait.lora.report import Row, options, texts
from plait.lora.write import AdapterWriter, configuration, factor_code
from plait.output.inputs import fetch
from plait.output.provenance import provenance
from plait.plan import Plan, Step
from plait.prepare import prepare
from plait.recipe import write
from plait.run import Progress, default_threads, workshop
from plait.types import DTYPES, ModelRef


@dataclass(frozen=True)
class Choice:
    """Which modules are factored: those that a pattern of `include` fits (all without one) and none of `exclude`, by the name.

    Embeddings and the head only with `embed`, otherwise they are held whole, as is what has no factors, unless `skip_whole`;
    modules that end in a name of `save` are held whole in any case.
    """

    embed: bool = False
    save: Sequence[str] = ()
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    skip_whole: bool = False


@dataclass(frozen=True)
class Extracted:
    """What was written: a row for each module, its ranks and what is left of its change; what could not be held."""

    out: Path
    rows: tuple[Row, ...]
    left_out: tuple[str, ...]
    nbytes: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Job:
    """A module: how its weight is factored (None: it is held whole), the steps of its tensors."""

    module: str
    kind: Kind | None
    steps: tuple[Step, ...]


@dataclass
class _Done:
    tensors: list[tuple[str, Tensor]] = field(default_factory=list)
    row: Row | None = None


def extract(
    model: str | Mapping[str, Any],
    base: str,
    out: str | Path,
    limit: Limit,
    choice: Choice | None = None,
    *,
    distribute: bool = True,
    dtype: str = "float32",
    threads: int | None = None,
    force: bool = False,
    progress: Callable[[int], Progress | Any] | None = None,
    **planning: Any,
) -> Extracted:
    """Write the adapter that turns `base` into `model`; both are references, or recipes that are not written.

    `distribute` the singular values over A and B, or have them all in A. `dtype` of the factors; what is held whole keeps the
    model's. `planning` is for `prepare`. `progress` gets the number of modules and gives a function that is told the finished.
    """
    code = factor_code(dtype)
    if isinstance(model, str) and ModelRef.parse(model) == ModelRef.parse(base):
        do = "pass the model that it was fine-tuned from as --base-model"
        raise PlaitError("model and base are one", wanted="a model and what it was made of", found=model, do=do)
    choice = choice or Choice()
    recipe = write.over(base, [model])
    plan = prepare(recipe, **{**planning, "truncate_embeddings": True})
    jobs, left_out, notes = _jobs(plan, choice)
    wide = prefix(plan.specs, plan.config)
    spec_bytes = DTYPES[code].bits // 8
    out = Path(out).expanduser()
    names = [n for job in jobs for n in _names(plan, wide, job)]
    inputs = [path for m in plan.models for path in (*m.opened.files, *([m.opened.folder] if m.opened.folder else []))]
    bound = sum(_bound(job, limit, spec_bytes) for job in jobs)
    plan = fetch(plan)
    rows: list[Row] = []
    written = 0
    with AdapterWriter(out, names, bound, inputs, force) as writer, workshop() as one_thread:
        tell = progress(len(jobs)) if progress else None

        def work(job: _Job) -> _Done:
            one_thread()
            return _work(plan, job, limit, wide, distribute, code, turned(plan.specs))

        for done in _in_order(work, jobs, threads or default_threads()):
            for name, tensor in done.tensors:
                writer.add(name, tensor)
                written += tensor.nbytes
            rows += [done.row] if done.row else []
            if tell:
                tell(1)
        if not rows:
            do = "name a model that was trained further, and check the patterns of modules"
            raise PlaitError(f"nothing that is looked at differs from {base}", found="no change", do=do)
        config = _config(base, plan, rows, wide)
        called = model if isinstance(model, str) else f"a merge by {model.get('merge_method')}"
        told = [f"The change from `{base}` to `{called}`, as factors."]
        facts = {
            "model": model,
            "base": base,
            "limit": options(limit),
            "choice": asdict(choice),
            "inputs": provenance(plan),
        }
        writer.finish(config, texts(out, told, base, rows, left_out, facts))
    return Extracted(out, tuple(rows), tuple(left_out), written, notes)


def _in_order(work: Callable[[_Job], _Done], jobs: Sequence[_Job], threads: int) -> Iterator[_Done]:
    """The results in the order of the jobs, of which a few more than `threads` are under way."""
    waiting: deque[Future[_Done]] = deque()
    with ThreadPoolExecutor(threads, "plait") as pool:
        try:
            for job in jobs:
                waiting.append(pool.submit(work, job))
                if len(waiting) > threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _jobs(plan: Plan, choice: Choice) -> tuple[list[_Job], list[str], tuple[str, ...]]:
    """What is done with which module, factored ones first; the tensors that an adapter cannot hold; and notes."""
    include, exclude = _compiled(choice.include), _compiled(choice.exclude)
    arch = plan.models[plan.donor].arch
    by_module: dict[str, list[Step]] = {}
    for step in plan.steps:
        if step.method is not None:
            by_module.setdefault(step.name.rpartition(".")[0], []).append(step)
    why = _no_tables(plan) if choice.embed else None
    notes: dict[str, None] = {}
    factored, whole, left = [], [], []
    for module, steps in by_module.items():
        if (include and not fits(module, include)) or fits(module, exclude):
            continue
        weight = next((s for s in steps if s.name == f"{module}.weight"), None)
        kind = kind_of(weight.name, weight.spec) if weight else None
        embedding = weight is not None and is_embedding(weight.name, kind, arch)
        saved = any(f".{module}".endswith(f".{name}") for name in choice.save)
        split = choice.embed and not (why and (kind == "table" or module in arch.tied))
        if embedding and choice.embed and not split and not saved:
            notes[f"{module} is held whole: {why}"] = None
        if kind and not saved and (not embedding or split) and len(steps) <= 2:
            factored.append(_Job(module, kind, tuple(steps)))
        elif saved or embedding or not choice.skip_whole:
            whole.append(_Job(module, None, tuple(steps)))
        for step in steps:
            if any(source.rows is not None for source in step.sources()):
                raise PlaitError(
                    f"{step.name} has another number of rows in the model than in the base",
                    wanted="one vocabulary",
                    found=", ".join(str(list(plan.spec_of(s).shape)) for s in step.sources()),
                    do=f"leave it out with --exclude-regex {module.rpartition('.')[2]}",
                )
    inside = {job.module for job in factored}
    for job in list(whole):
        if not job.module or any(other.startswith(f"{job.module}.") for other in inside):
            whole.remove(job)
            left += [step.name for step in job.steps]
    return factored + whole, left, tuple(notes)


def _no_tables(plan: Plan) -> str | None:
    """Why PEFT could not run factors of this model's embedding as they are meant, if so."""
    if plan.config.get("tie_word_embeddings") is True:
        return "the head is tied to it, and would stay the base's"
    specs = plan.specs
    biased = [n for name in specs if name.endswith(".bias") and (n := f"{name.removesuffix('bias')}weight") in specs]
    if any(kind_of(name, specs[name]) == "matrix" for name in biased):
        return "PEFT has no factors for embeddings in adapters that change biases"
    return None


def _compiled(patterns: Sequence[str]) -> list[re.Pattern[str]]:
    try:
        return [re.compile(pattern) for pattern in patterns]
    except re.error as error:
        raise PlaitError(
            "a pattern is no regular expression",
            wanted="a regular expression, such as [qv]_proj",
            found=f"{error.pattern!r}: {error}",
            do="mend it; a sign that is meant as it stands has a backslash before it",
        ) from error


def _names(plan: Plan, wide: str, job: _Job) -> list[str]:
    at = f"base_model.model.{wide}{job.module}"
    if job.kind is None:
        return [f"base_model.model.{wide}{name}" for step in job.steps for name in _stands_for(plan, step.name)]
    return [f"{at}.lora_embedding_A", f"{at}.lora_embedding_B", f"{at}.lora_B.bias"]


def _stands_for(plan: Plan, name: str) -> list[str]:
    """A tensor's name, and those of the tensors that are tied to it: PEFT looks for each."""
    arch = plan.models[plan.donor].arch
    return [name, *(head for head, table in arch.tied.items() if table == name and head not in plan.specs)]


def _bound(job: _Job, limit: Limit, size: int) -> int:
    """Bytes that a job writes at most."""
    if job.kind is None:
        return sum(step.spec.nbytes for step in job.steps)
    shape = next(s.spec.shape for s in job.steps if s.name.endswith(".weight"))
    out, inside = shape[0], next(s.spec.numel for s in job.steps if s.name.endswith(".weight")) // max(1, shape[0])
    return (out + inside) * min(out, inside, limit.rank or out) * size


def _work(plan: Plan, job: _Job, limit: Limit, wide: str, distribute: bool, code: str, turn: bool) -> _Done:
    at = f"base_model.model.{wide}{job.module}"
    new = {step.name: _read(plan, step, 0) for step in job.steps}
    changes = {step.name: new[step.name].double() - _read(plan, step, 1).double() for step in job.steps}
    done = _Done()
    if not any(bool(change.any()) for change in changes.values()):
        return done
    if job.kind is None:
        for step in job.steps:
            source = step.inputs[0]
            kept = home(plan.models[source.model].opened.checkpoint, source.name)
            for name in _stands_for(plan, step.name):
                done.tensors.append((f"base_model.model.{wide}{name}", new[step.name].to(torch_dtype(kept))))
        done.row = Row(wide + job.module, None, None, 0.0, 0.0, False)
        return done
    change = changes.pop(f"{job.module}.weight")
    shape = tuple(change.shape)
    table, across = job.kind == "table", job.kind == "matrix" and turn
    x = change.mT if table or across else change.flatten(1)
    found = narrow(x, limit, job.module, plan.seed)
    dtype = torch_dtype(code)
    b, a = (side.to(dtype) for side in found.sides(distribute))
    left_over, total = residual(x, b, a)
    bias = next(iter(changes.values()), None)
    if table:
        done.tensors += [(f"{at}.lora_embedding_A", a), (f"{at}.lora_embedding_B", b)]
    elif found.rank:
        if job.kind == "conv":
            a, b = a.reshape(-1, *shape[1:]), b[:, :, None, None]
        done.tensors += [(f"{at}.lora_A.weight", a), (f"{at}.lora_B.weight", b)]
    biased = bias is not None and bool(bias.any())
    if biased and found.rank:
        assert bias is not None
        done.tensors.append((f"{at}.lora_B.bias", bias.to(dtype)))
    if not found.rank:
        done.tensors.clear()
    done.row = Row(wide + job.module, shape, found.rank, sqrt(left_over), sqrt(total), biased, across)
    return done


def _read(plan: Plan, step: Step, which: int) -> Tensor:
    """The model's tensor (0) or the base's (1)."""
    source = step.base if which else step.inputs[0]
    assert source
    return plan.models[source.model].opened.checkpoint.read(source.name)


def _config(base: str, plan: Plan, rows: Sequence[Row], wide: str) -> dict[str, Any]:
    arch = plan.models[plan.donor].arch
    ranks = {row.module: row.rank for row in rows if row.rank}
    whole = [row.module for row in rows if row.rank is None]
    every = {wide + name.rpartition(".")[0] for name in plan.specs}
    tied = plan.config.get("tie_word_embeddings") is True and f"{arch.embedding}".removesuffix(".weight")
    changed = bool(tied) and any(row.module == f"{wide}{tied}" for row in rows)
    more: dict[str, Any] = {"fan_in_fan_out": any(row.across for row in rows)}
    more |= {"lora_bias": True} if any(row.bias for row in rows) else {}
    more |= {"ensure_weight_tying": True} if changed else {}
    targets = listed(ranks, every - set(ranks))
    saved = listed(whole, every - set(whole), dotted=False)
    return configuration(base, plan.config, ranks, targets, saved, more)

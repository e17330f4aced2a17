"""lm-eval's tasks, against lm-eval itself. Needs plait[eval]: `make test-eval`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from plait.demo.score import HERE, SKILLS, score
from plait.errors import PlaitError
from plait.evaluate.compare import compare
from plait.evaluate.records import Settings
from plait.evaluate.subjects import subjects
from plait.evaluate.tasks import harness

os.environ["HF_DATASETS_OFFLINE"] = "1"
lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed")
pytest.importorskip("accelerate")
pytestmark = pytest.mark.filterwarnings("ignore")
BASE = HERE / "models" / "base"

LOADER = """
import json, pathlib
import datasets
def load(name, **_):
    path = pathlib.Path(__file__).with_name(name + ".jsonl")
    return {"test": datasets.Dataset.from_list([json.loads(line) for line in path.open()])}
"""
TASK = """
task: small_{name}
custom_dataset: !function loader.load
dataset_kwargs: {{name: {name}}}
test_split: test
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "{{{{answer}}}}"
"""
KINDS = {
    "rev": """
        output_type: generate_until
        generation_kwargs: {until: ["\\n"], do_sample: false, max_gen_toks: 12}
        filter_list:
          - name: strip
            filter: [{function: remove_whitespace}, {function: take_first}]
        metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
        """,
    "src": """
        output_type: multiple_choice
        doc_to_choice: [bible, gloss, moby, union]
        metric_list:
          - {metric: acc, aggregation: mean, higher_is_better: true}
          - {metric: mcc, aggregation: matthews_corrcoef, higher_is_better: true}
        """,
    "text": """
        output_type: loglikelihood_rolling
        metric_list:
          - {metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}
          - {metric: word_perplexity, aggregation: weighted_perplexity, higher_is_better: false}
        """,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of tasks: one that writes, one that chooses, one of running text, and their group."""
    where = tmp_path_factory.mktemp("tasks")
    (where / "loader.py").write_text(LOADER)
    for name, more in KINDS.items():
        rows = (HERE / "items" / f"{'src' if name == 'text' else name}.jsonl").read_text().splitlines()[:130]
        (where / f"{name}.jsonl").write_text("\n".join(rows) + "\n")
        task = TASK.format(name=name) + textwrap.dedent(more)
        if name == "text":
            task = task.replace("{{prompt}}", "").replace("{{answer}}", "{{prompt}}")
        (where / f"{name}.yaml").write_text(task)
    (where / "small.yaml").write_text("group: small\ntask: [small_rev, small_src, small_text]\n")
    return where


def made(folder: Path, value: str = "small", **more: Any) -> list[Any]:
    return harness.tasks(value, Settings(task_folders=(folder,), **more))


def test_scores_are_lm_evals(folder: Path, tmp_path: Path) -> None:
    """Every metric has the value that lm-eval gives when it is asked directly, though the items are handed over in parts."""
    tasks = made(folder)
    done = compare(subjects([str(BASE)]), tasks, cache=tmp_path)
    manager = lm_eval.tasks.TaskManager(include_path=str(folder), include_defaults=False)
    args = f"pretrained={BASE},dtype=float32"
    wanted = lm_eval.simple_evaluate("hf", args, tasks=["small"], task_manager=manager, device="cpu", bootstrap_iters=0)
    found = {(s.task, s.metric): s.value for s in done.scores["base"]}
    expected = {
        (task, metric): wanted["results"][task][next(k for k in wanted["results"][task] if k.split(",")[0] == metric)]
        for task, metric in found
    }
    assert found == pytest.approx(expected, rel=1e-5)
    assert set(found) == {
        ("small_rev", "exact_match"),
        ("small_src", "acc"),
        ("small_text", "bits_per_byte"),
        ("small_text", "word_perplexity"),
    }
    assert {s.items for s in done.scores["base"]} == {130}
    right = found["small_rev", "exact_match"] * 130
    assert right == pytest.approx(score(BASE, SKILLS[1:2], 130)["rev"].right)


def test_a_merge_that_is_not_written(folder: Path, recipe: Callable[..., Path], tmp_path: Path) -> None:
    """A recipe is scored; what was asked is not asked again; limits take the first items; a changed item is another task."""
    found = subjects([str(BASE), str(recipe())])
    done = compare(found, made(folder, "small_rev,small_src", limit=10), cache=tmp_path / "cache")
    assert [d.model for d in done.differences] == ["mix"] * 2
    assert {s.items for s in done.scores["mix"]} == {10}
    left: list[int] = []

    def progress(total: int) -> Any:
        left.append(total)
        return nullcontext(lambda _: None)

    compare(found, made(folder, "small_rev,small_src", limit=10), cache=tmp_path / "cache", progress=progress)
    one, two = made(folder, "small_rev,small_src", limit=12)
    assert left == [0]
    before = one.fingerprint
    data = folder / "rev.jsonl"
    kept = data.read_text()
    try:
        data.write_text(kept.replace("rev ", "rev  ", 1))
        assert made(folder, "small_rev")[0].fingerprint != before
        assert made(folder, "small_src", limit=12)[0].fingerprint == two.fingerprint
    finally:
        data.write_text(kept)


def test_names(folder: Path) -> None:
    """An unknown task has the nearest name; a folder that is not there is told."""
    with pytest.raises(PlaitError) as caught:
        made(folder, "smal_rev")
    assert "did you mean small_rev" in str(caught.value)
    with pytest.raises(PlaitError, match="there is no folder"):
        made(folder / "nowhere", "small")


def test_data_that_is_not_there(folder: Path) -> None:
    """A task whose data cannot be had is an error of the task, before any model is run."""
    (folder / "gone.yaml").write_text(TASK.format(name="gone") + textwrap.dedent(KINDS["rev"]))
    try:
        with pytest.raises(PlaitError) as caught:
            made(folder, "small_gone")
        assert "gone.jsonl" in str(caught.value)
    finally:
        (folder / "gone.yaml").unlink()


def test_code_of_models(folder: Path) -> None:
    """A task that would run what models write is refused."""
    (folder / "unsafe.yaml").write_text(
        TASK.format(name="rev").replace("small_rev", "small_unsafe")
        + textwrap.dedent(KINDS["rev"])
        + "unsafe_code: true\n"
    )
    try:
        with pytest.raises(PlaitError, match="runs code that models write") as caught:
            made(folder, "small_unsafe")
        assert "sandbox" in str(caught.value.do)
    finally:
        (folder / "unsafe.yaml").unlink()


def test_the_command_line(folder: Path, tmp_path: Path) -> None:
    """`plait eval --tasks` prints what it measured, and nothing of lm-eval's own noise."""
    args = ["eval", str(BASE), "--tasks", "small", "--task-folder", str(folder), "--limit", "5", "--json", "--quiet"]
    command = [sys.executable, "-m", "plait", *args, "--cache", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    scores = json.loads(done.stdout)["models"][0]["scores"]
    assert [s["task"] for s in scores] == ["small_rev", "small_src", *["small_text"] * 2]

"""Models side by side: the same items, nothing asked twice, nothing lost."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import plait
from plait.cli import main
from plait.demo.score import HERE
from plait.errors import OutputError
from plait.evaluate.compare import Evaluation, compare
from plait.evaluate.records import Settings, Task
from plait.evaluate.subjects import subjects
from plait.evaluate.tasks import perplexity, questions

Make = Callable[..., Path]


def tasks(*files: Path) -> list[Task]:
    kinds = {".jsonl": questions, ".txt": perplexity}
    return [task for file in files for task in kinds[file.suffix].tasks(str(file), Settings())]


class Asked:
    """Counts the items that were left to ask, and those that were told as done."""

    left = -1
    done = 0

    @contextmanager
    def __call__(self, total: int) -> Iterator[Callable[[int], None]]:
        self.left = total
        yield self._tell

    def _tell(self, count: int) -> None:
        self.done += count


def evaluate(models: Sequence[Path], made: list[Task], cache: Path, **more: object) -> tuple[Evaluation, Asked]:
    asked = Asked()
    found = subjects([str(model) for model in models])
    return compare(found, made, cache=cache, progress=asked, **more), asked  # type: ignore[arg-type]


def test_nothing_is_asked_twice(model: Make, questions: Make, text: Path, tmp_path: Path) -> None:
    """The second time all answers come from the cache, and the evaluation is the same; --fresh asks again."""
    made = tasks(questions(), text)
    models, count = [model("base"), model("add")], 2 * sum(len(task.keys) for task in made)
    first, asked = evaluate(models, made, tmp_path / "cache")
    assert asked.left == asked.done == count
    second, asked = evaluate(models, made, tmp_path / "cache")
    assert (asked.left, asked.done) == (0, 0)
    assert (second.scores, second.differences, second.samples) == (first.scores, first.differences, first.samples)
    assert evaluate(models, made, tmp_path / "cache", fresh=True)[1].done == count


def test_a_changed_model_is_asked_anew(model: Make, questions: Make, tmp_path: Path) -> None:
    """One changed weight, config or tokenizer makes another model; a changed card does not, nor does another folder."""
    made, cache, base = tasks(questions(count=3)), tmp_path / "cache", model("base")
    assert evaluate([base], made, cache)[1].left == 3
    (base / "README.md").write_text("another card")
    moved = base.rename(tmp_path / "moved")
    assert evaluate([moved], made, cache)[1].left == 0
    tensors = load_file(moved / "model.safetensors")
    tensors["model.norm.weight"][7] += 1
    save_file(tensors, moved / "model.safetensors", {"format": "pt"})
    assert evaluate([moved], made, cache)[1].left == 3
    for name in ("config.json", "tokenizer.json"):
        (moved / name).write_text((moved / name).read_text() + "\n")
        assert evaluate([moved], made, cache)[1].left == 3


def test_a_changed_task_is_asked_anew(model: Make, questions: Make, tmp_path: Path) -> None:
    """One changed question makes another task; the settings that decide the answers count too."""
    base, cache, path = model("base"), tmp_path / "cache", questions(count=3)
    evaluate([base], tasks(path), cache)
    path.write_text(path.read_text().replace("add ", "add  ", 1))
    assert evaluate([base], tasks(path), cache)[1].left == 3
    from plait.evaluate.tasks import questions as kind

    assert evaluate([base], kind.tasks(str(path), Settings(max_tokens=3)), cache)[1].left == 3
    assert evaluate([base], kind.tasks(str(path), Settings(max_tokens=64, batch=1)), cache)[1].left == 0


def test_a_changed_recipe_is_asked_anew(recipe: Make, questions: Make, tmp_path: Path) -> None:
    """Another number makes another merge, a comment or a line moved does not."""
    made, cache = tasks(questions(count=3)), tmp_path / "cache"
    assert evaluate([recipe(0.7)], made, cache)[1].left == 3
    assert evaluate([recipe(0.7, "a comment\n\n# more")], made, cache)[1].left == 0
    assert evaluate([recipe(0.5)], made, cache)[1].left == 3


def test_a_recipe_of_recipes_is_asked_anew(recipe: Make, model: Make, questions: Make, tmp_path: Path) -> None:
    """A number that changes in a recipe which stands in a model's place makes another merge."""
    made, cache, outer = tasks(questions(count=2)), tmp_path / "cache", tmp_path / "outer.yml"
    recipe(0.7)
    outer.write_text(
        f"merge_method: linear\nmodels: [{{model: mix.yml}}, {{model: {model('base')}}}]\nparameters: {{weight: 1}}\n"
    )
    assert evaluate([outer], made, cache)[1].left == 2
    assert evaluate([outer], made, cache)[1].left == 0
    recipe(0.5)
    assert evaluate([outer], made, cache)[1].left == 2


def test_lines_that_were_cut_are_asked_again(model: Make, questions: Make, tmp_path: Path) -> None:
    """A cache that a kill or a stranger damaged costs the items that were hit, nothing else."""
    made, cache, base = tasks(questions(count=5)), tmp_path / "cache", model("base")
    first, _ = evaluate([base], made, cache)
    (file,) = cache.glob("*.jsonl")
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines[:3], "[1, 2]", '{"key": 1}', lines[3][: len(lines[3]) // 2]]))
    again, asked = evaluate([base], made, cache)
    assert asked.left == 2
    assert again.samples == first.samples
    assert evaluate([base], made, cache)[1].left == 0


def test_resume_after_a_kill(model: Make, questions: Make, tmp_path: Path) -> None:
    """An evaluation that was killed goes on where it was, and ends with the scores of an undisturbed one."""
    path, base, cache = questions("rev", 400), model("base"), tmp_path / "cache"
    command = [sys.executable, "-m", "plait", "eval", base, "--questions", path, "--cache", cache, "--batch", "1"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        until = time.monotonic() + 120
        while sum(f.read_text().count("\n") for f in cache.glob("*")) < 10 and time.monotonic() < until:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    done, asked = evaluate([base], tasks(path), cache)
    assert 0 < asked.left <= 390
    undisturbed, _ = evaluate([base], tasks(path), tmp_path / "other")
    assert done.scores == undisturbed.scores


def test_a_merge_that_is_not_written(recipe: Make, questions: Make, text: Path, tmp_path: Path) -> None:
    """A recipe scores as the model that it would write, item by item."""
    made = tasks(questions(), text)
    out = plait.merge(recipe()).save(tmp_path / "out").out
    found, _ = evaluate([recipe(), out], made, tmp_path / "cache")
    for task in made:
        assert found.samples["mix", task.name] == found.samples["out", task.name]
    assert found.subjects[0].path is None


def test_differences(model: Make, questions: Make, tmp_path: Path) -> None:
    """A difference is that of the scores, won and lost are the items that changed, for every parent that is named."""
    made = tasks(questions(count=100))
    models = [model(name) for name in ("base", "add", "rev")]
    found, _ = evaluate(models, made, tmp_path / "cache", against=["base", "rev"])
    value = {name: scores[0].value for name, scores in found.scores.items()}
    assert [(d.model, d.parent) for d in found.differences] == [
        ("base", "rev"),
        ("add", "base"),
        ("add", "rev"),
        ("rev", "base"),
    ]
    for d in found.differences:
        assert d.difference == pytest.approx(value[d.model] - value[d.parent])
        assert (len(d.won) - len(d.lost)) / 100 == pytest.approx(d.difference)
        for key in d.won:
            assert found.samples[d.model, "add"][key].said != found.samples[d.parent, "add"][key].said
    gain = next(d for d in found.differences if d.model == "add")
    assert gain.verdict == "better"
    assert gain.low is not None
    assert 0 < gain.low < gain.difference


def test_lower_is_better(model: Make, text: Path, tmp_path: Path) -> None:
    """A higher perplexity is worse."""
    found, _ = evaluate([model("base"), model("src")], tasks(text), tmp_path / "cache")
    d = next(d for d in found.differences if d.metric == "perplexity")
    assert (d.difference > 0) == (len(d.lost) > len(d.won))
    assert d.verdict in (("worse", "even") if d.difference > 0 else ("better", "even"))


# -- the command line


def run(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["eval", *map(str, args)])
    said = capsys.readouterr()
    return int(ended.value.code or 0), said.out, said.err


def test_the_three_outputs_agree(
    model: Make, questions: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The table, the Markdown and the JSON have the same scores, and all end with exit code 0."""
    args = model("base"), model("add"), "--questions", questions(), "--cache", tmp_path / "cache", "--quiet"
    code, plain, err = run(capsys, *args, "--items", 1)
    assert (code, err) == (0, "")
    facts = json.loads(run(capsys, *args, "--json")[1])
    markdown = run(capsys, *args, "--markdown")[1]
    for m in facts["models"]:
        (s,) = m["scores"]
        shown = f"{s['value']:.3f} [{s['low']:.3f}, {s['high']:.3f}]"
        assert re.search(rf"^  {m['name']} +{re.escape(shown)}", plain, re.M)
        assert f"| {m['name']} | {shown}" in markdown
    (d,) = facts["differences"]
    assert f"{len(d['won'])} up, {len(d['lost'])} down" in plain
    assert "wanted" in plain


def test_scores_into_the_card(
    recipe: Make, model: Make, questions: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """--card puts the scores into the cards of the merges, not of other models; a changed card is refused before the work."""
    out = plait.merge(recipe()).save(tmp_path / "out").out
    base, cards = model("base"), (model("base") / "README.md").read_text()
    args = base, out, "--questions", questions(), "--cache", tmp_path / "cache", "--card"
    code, _, err = run(capsys, *args)
    assert code == 0
    assert "scores are in" in err
    card, scores = (out / "README.md").read_text(), json.loads((out / "plait_scores.json").read_text())
    assert f"**{scores['scores'][0]['value']:.3f}**" in card
    assert "model-index:" in card
    assert scores["parents"] == ["base"]
    assert (base / "README.md").read_text() == cards
    facts = tmp_path / "scores.json"
    facts.write_text(run(capsys, *args[:-1], "--json", "--quiet")[1])
    with pytest.raises(SystemExit) as ended:
        main(["card", str(out), "--scores", str(facts)])
    assert not ended.value.code
    assert (out / "README.md").read_text() == card
    (out / "README.md").write_text(card + "mine")
    code, _, err = run(capsys, *args, "--fresh", "--cache", tmp_path / "another")
    assert (code, "changed by hand" in err) == (2, True)
    assert not (tmp_path / "another").exists()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "nothing to ask"),
        (["--questions", "{q}", "--against", "bse"], "did you mean base"),
        (["--questions", "{q}", "--questions", "{q}"], "two tasks are called"),
        (["--questions", "nowhere.jsonl"], "cannot be read"),
        (["--text", "{q}", "--window", "8", "--stride", "8"], "leaves no context"),
        (["--text", "{q}"], "no 'text'"),
    ],
)
def test_mistakes(
    args: list[str], words: str, model: Make, questions: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is wrong is said before any model is run, with exit code 2."""
    path = questions()
    given = [arg.replace("{q}", str(path)) for arg in args]
    code, out, err = run(capsys, model("base"), *given, "--cache", tmp_path / "cache")
    assert (code, out) == (2, "")
    assert words in err
    assert not (tmp_path / "cache").exists()


def test_two_models_of_one_name(model: Make, tmp_path: Path) -> None:
    """Models whose folders have one name are told apart by what was given."""
    base = model("base")
    found = subjects([str(base), str(HERE / "models" / "base"), str(HERE / "models" / "add")])
    assert [s.name for s in found] == [str(base), str(HERE / "models" / "base"), "add"]


def test_no_cache_folder(model: Make, questions: Make, tmp_path: Path) -> None:
    """A cache that cannot be written is an error with a mend."""
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        evaluate([model("base")], tasks(questions(count=1)), tmp_path / "file")


def test_a_recipe_with_a_mistake(tmp_path: Path, questions: Make, capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong recipe among the models is told as `plait check` tells it."""
    (tmp_path / "bad.yml").write_text("merge_method: linaer\nmodels: [{model: a}]\n")
    code, _, err = run(capsys, tmp_path / "bad.yml", "--questions", questions(count=1))
    assert code == 2
    assert "did you mean linear" in err

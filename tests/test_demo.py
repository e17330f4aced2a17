"""The demo: its scores are the known ones, its recipes work, its table comes from real merges."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from plait import fit
from plait.demo.score import HERE, SKILLS, Score, score, write
from plait.demo.story import Row, Story, play, unpack
from plait.demo.table import learnt, plain
from plait.errors import OutputError, PlaitError
from plait.evaluate.network import load, one_thread
from plait.recipe import load as load_recipe

pytest.importorskip("transformers")

KNOWN_SKILLS = ("add", "rev", "src")
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


def test_written_answers_are_the_most_probable_tokens_one_by_one() -> None:
    """What is written is what a plain loop writes that reads everything anew for each token."""
    with one_thread(), torch.inference_mode():
        network, tokenizer = load(HERE / "models" / "add")
        for item in SKILLS[0].items(20):
            ids = torch.tensor([tokenizer(item.prompt).input_ids])
            row: list[int] = []
            while len(row) < 12 and tokenizer.eos_token_id not in row:
                seen = torch.cat([ids, torch.tensor([row], dtype=torch.long)], dim=1)
                row.append(int(network(seen).logits[0, -1].argmax()))
            text = tokenizer.decode(row, skip_special_tokens=True).split("\n")[0].strip()
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


RECIPES = sorted((HERE / "recipes").glob("*.yml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_is_right_and_says_what_it_does(recipe: Path) -> None:
    """Each recipe of the demo passes every check without a warning, and its first line describes it."""
    loaded = load_recipe(recipe)
    assert fit.problems(loaded, lenient=False) == ([], [])
    assert loaded.warnings == ()
    assert loaded.method == recipe.stem
    assert recipe.read_text().startswith("# ")


def test_a_recipe_that_is_there_is_kept_and_the_models_are_made_whole(tmp_path: Path) -> None:
    """Playing again keeps the user's recipes and mends the models."""
    out = unpack(tmp_path / "demo")
    recipe, model = out / "recipes" / "ties.yml", out / "models" / "base" / "model.safetensors"
    recipe.write_text("# mine\n")
    model.write_bytes(b"cut")
    assert unpack(out) == out
    assert recipe.read_text() == "# mine\n"
    assert model.read_bytes() == (HERE / "models" / "base" / "model.safetensors").read_bytes()


def test_a_directory_with_something_else_is_refused(tmp_path: Path) -> None:
    """The demo does not write into a directory that holds other things, nor over a file."""
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(OutputError, match="not a directory of the demo"):
        unpack(tmp_path)
    with pytest.raises(OutputError):
        unpack(tmp_path / "thesis.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_mistake_in_a_recipe_is_located_and_the_working_directory_restored(tmp_path: Path) -> None:
    """A recipe that the user broke stops the demo with the file's full path, the line and the mend."""
    out, before = unpack(tmp_path / "demo"), Path.cwd()
    broken = out / "recipes" / "a.yml"
    broken.write_text("# mine\n" + RECIPES[0].read_text().replace("merge_method: ", "merge_method: x"))
    line = broken.read_text().splitlines().index("merge_method: xbreadcrumbs") + 1
    with pytest.raises(PlaitError, match="did you mean breadcrumbs") as caught:
        play(out)
    assert (caught.value.where.path, caught.value.where.line) == (str(broken), line)
    assert Path.cwd() == before


@pytest.mark.parametrize("place", ["no/numbers.json", ".", "n" * 300])
def test_numbers_that_cannot_be_written_are_refused_before_the_work(
    place: str, tmp_path: Path, refused: Callable[..., str]
) -> None:
    """A JSON file in a directory that does not exist, or of an impossible name, stops the demo before it writes anything."""
    refused("cannot be written", "demo", "--out", tmp_path / "demo", "--json", tmp_path / place)


@pytest.mark.parametrize("place", ["file/demo", "n" * 300])
def test_no_place_for_the_demo(place: str, tmp_path: Path, refused: Callable[..., str]) -> None:
    """A directory that cannot be made is told."""
    (tmp_path / "file").write_text("mine")
    refused("cannot write the demo to", "demo", "--out", tmp_path / place)


def test_without_transformers_the_error_tells_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without transformers the demo stops before it writes anything, and says what to install."""
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(PlaitError, match=re.escape('pip install "plait[run]"')):
        play(tmp_path / "demo")
    assert not (tmp_path / "demo").exists()


def told(merged: tuple[int, int, int], base: tuple[int, int, int] = (200, 200, 200)) -> Story:
    """A story with one merge, from right answers of 500; each specialist is best at its own skill."""
    rows = {"base": base, "add": (400, 200, 200), "rev": (200, 400, 200), "src": (200, 200, 400), "mix": merged}
    return Story(
        Path("out"),
        tuple(
            Row(
                name,
                "",
                name == "mix",
                Path(name),
                {k: Score(n, 500) for k, n in zip(KNOWN_SKILLS, right, strict=True)},
            )
            for name, right in rows.items()
        ),
    )


def test_gain_kept_runs_from_the_base_to_the_specialists_own_skills() -> None:
    """0 is the base, 1 a model as good as each specialist at its own skill, below 0 is worse than the base."""
    for right, kept in {(200, 200, 200): 0, (400, 400, 400): 1, (300, 300, 300): 0.5, (100, 200, 200): -1 / 6}.items():
        story = told(right)
        assert story.kept(story.best) == pytest.approx(kept)
    hopeless = told((300, 300, 300), base=(400, 400, 400))
    assert hopeless.kept(hopeless.best) is None
    assert " -  " in plain(hopeless)


@pytest.mark.parametrize(
    ("right", "words"),
    [
        ((350, 350, 350), ["70.0% of the time", "30.0 points more than the base", "16.7 points more than add"]),
        ((100, 100, 100), ["20.0 points less than the base", "above the base in 0 of 3 skills (none)"]),
        ((270, 265, 265), ["13.3 points more than the base", "0.0 points more (too little to tell) than add"]),
    ],
)
def test_what_was_learnt_follows_from_the_scores(right: tuple[int, int, int], words: list[str]) -> None:
    """The sentences under the table say more, less or too little to tell as the numbers have it."""
    text = " ".join(learnt(told(right)))
    assert [word for word in words if word not in text] == []


def test_the_demo_in_a_real_process(tmp_path: Path) -> None:
    """`plait demo --quick` merges, scores and prints a table whose numbers are those of its JSON file."""
    command = [sys.executable, "-m", "plait", "demo", "--quick", "--out", "demo", "--json", "numbers.json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    rows = {row["name"]: row for row in numbers["models"]}
    assert list(rows) == [*KNOWN, *(recipe.stem for recipe in RECIPES)]
    for name, row in rows.items():
        shown = next(line for line in done.stdout.splitlines() if re.match(rf"{name} +\d", line)).split()
        assert shown[1:5] == [
            *(f"{100 * row['scores'][s]['share']:.1f}" for s in KNOWN_SKILLS),
            f"{100 * row['mean']:.1f}",
        ]
    merges = [row for row in rows.values() if row["merge"]]
    assert numbers["best"] == max(merges, key=lambda row: row["mean"])["name"]
    weights = {(Path(row["path"]) / "model.safetensors").read_bytes() for row in rows.values()}
    assert len(weights) == len(rows)
    assert all((Path(row["path"]) / "README.md").read_text() for row in merges)
    best = score(tmp_path / "demo" / "merged" / numbers["best"], count=100)
    assert {k: v.right for k, v in best.items()} == {k: v["right"] for k, v in rows[numbers["best"]]["scores"].items()}

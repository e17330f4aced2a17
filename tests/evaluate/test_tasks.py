"""Tasks measure what they say, against transformers' own loss and plain numpy."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from plait.demo.score import HERE, SKILLS, score
from plait.errors import ModelError, PlaitError
from plait.evaluate.network import choose, load, surprise, write
from plait.evaluate.records import Sample, Settings, Task
from plait.evaluate.subjects import subjects
from plait.evaluate.tasks import command, kinds, perplexity, questions

BASE = HERE / "models" / "base"


@pytest.fixture(scope="module")
def network() -> tuple[Any, Any]:
    return load(BASE)


def asked(task: Task, model: Path | str = BASE) -> dict[str, Sample]:
    (subject,) = subjects([str(model)])
    try:
        return {sample.key: sample for sample in task.measure(subject, task.keys)}
    finally:
        subject.close()


def log_softmax(x: Any) -> Any:
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def test_one_window_is_transformers_loss(text: Path, network: tuple[Any, Any]) -> None:
    """The perplexity of a text that fits into one window is e to the loss that transformers computes for it."""
    model, tokenizer = network
    short = text.read_text("utf-8")[:400]
    ids = torch.tensor([tokenizer(short).input_ids])
    with torch.inference_mode():
        loss = float(model(ids, labels=ids).loss)
    nats = [n for _, n in surprise(model, tokenizer, short, 4096, 100)]
    assert len(nats) == ids.shape[1] - 1
    assert np.mean(nats) == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize(("window", "stride"), [(16, 8), (16, 15), (10, 1), (4096, 2048)])
def test_windows(window: int, stride: int, text: Path, network: tuple[Any, Any]) -> None:
    """Each token but the first is counted once, in the first window that holds it, with all of that before it as context."""
    model, tokenizer = network
    short = text.read_text("utf-8")[:200]
    made = tokenizer(short, return_offsets_mapping=True)
    ids, expected = made["input_ids"], []
    for t in range(1, len(ids)):
        begin = 0
        while begin + window <= t:
            begin += stride
        with torch.inference_mode():
            logits = model(torch.tensor([ids[begin:t]])).logits[0, -1].double().numpy()
        expected.append(-log_softmax(logits)[ids[t]])
    found = surprise(model, tokenizer, short, window, stride)
    np.testing.assert_allclose([n for _, n in found], expected, rtol=1e-4, atol=1e-5)
    assert [place for place, _ in found] == [start for start, _ in made["offset_mapping"]][1:]


def test_perplexity_of_a_file(text: Path, network: tuple[Any, Any]) -> None:
    """The stretches of a text add up: all tokens but the first, all bytes but the first token's, the mean of all surprises."""
    (task,) = perplexity.tasks(str(text), Settings(window=64, stride=32))
    samples = asked(task)
    model, tokenizer = network
    whole = text.read_text("utf-8")
    nats = [n for _, n in surprise(model, tokenizer, whole, 64, 32)]
    token = [s.measures["perplexity"] for s in samples.values()]
    byte = [s.measures["bits_per_byte"] for s in samples.values()]
    first = tokenizer(whole, return_offsets_mapping=True)["offset_mapping"][1][0]
    assert list(samples) == list(task.keys) == ["0:0", "0:500", "0:1000", "0:1500"][: len(samples)]
    assert len(samples) == -(-len(whole) // 500)
    assert sum(m.weight for m in token) == len(nats)
    assert sum(m.weight for m in byte) == len(whole.encode()) - len(whole[:first].encode())
    assert sum(m.value * m.weight for m in token) == pytest.approx(sum(nats))
    assert sum(m.value * m.weight for m in byte) == pytest.approx(sum(nats) / np.log(2))
    assert {m.mean for m in token} == {"exp"}
    assert not any(m.higher_is_better for m in (*token, *byte))


def test_documents_know_nothing_of_each_other(tmp_path: Path) -> None:
    """Each line of a JSONL is a document of its own: its surprises do not depend on the lines beside it."""
    rows = [{"text": "the whale and the sea"}, {"text": "darkness leaping out of light"}]
    (tmp_path / "both.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "second.jsonl").write_text(json.dumps(rows[1]) + "\n")
    both, second = (asked(perplexity.tasks(str(tmp_path / f"{n}.jsonl"), Settings())[0]) for n in ("both", "second"))
    assert both["1:0"].measures == second["0:0"].measures


def test_a_part_of_the_items(text: Path) -> None:
    """Asked for some items only, a task gives those, and they are as if it had been asked for all."""
    (task,) = perplexity.tasks(str(text), Settings())
    (subject,) = subjects([str(BASE)])
    some = {s.key: s for s in task.measure(subject, ["0:500"])}
    assert some == {"0:500": asked(task)["0:500"]}


def test_questions_are_the_demos(questions: Callable[..., Path]) -> None:
    """Written answers are judged as the demo judges them, on the same questions."""
    for skill in SKILLS[:2]:
        (task,) = _questions(questions(skill.name, 60))
        found = asked(task)
        right = sum(s.measures["exact_match"].value for s in found.values())
        assert right == score(BASE, [skill], 60)[skill.name].right
        assert all((s.said == s.wanted) == bool(s.measures["exact_match"].value) for s in found.values())


def _questions(path: Path, **settings: Any) -> list[Task]:
    return questions.tasks(str(path), Settings(**settings))


def test_the_most_probable_choice(network: tuple[Any, Any]) -> None:
    """A choice's probability is the product over its tokens, each given those before it, in plain numpy."""
    model, tokenizer = network
    prompt = tokenizer("src the whale and the sea and the=").input_ids
    choices = [" moby", " bible", " the king of the sea", " w", " union army"]
    sums = []
    for choice in choices:
        ids, total = list(prompt), 0.0
        for token in tokenizer(choice).input_ids:
            with torch.inference_mode():
                logits = model(torch.tensor([ids])).logits[0, -1].double().numpy()
            total, ids = total + float(log_softmax(logits)[token]), [*ids, token]
        sums.append(total)
    assert choose(model, tokenizer, prompt, choices) == choices[int(np.argmax(sums))]


def test_choices(tmp_path: Path) -> None:
    """With choices the answer is one of them, whether or not the model would write it; several answers may be right."""
    rows = [
        {"prompt": "src the whale=", "answer": "moby", "choices": ["moby", "bible", "gloss", "union"]},
        {"prompt": "src the whale=", "answer": ["moby", "bible", "gloss", "union"], "choices": ["moby", "bible"]},
    ]
    path = tmp_path / "q.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = asked(_questions(path)[0])
    assert {s.said for s in found.values()} <= {"moby", "bible", "gloss", "union"}
    assert found["1"].measures["exact_match"].value == 1.0


def test_a_models_own_way_of_sampling_does_not_count(network: tuple[Any, Any]) -> None:
    """Penalties and sampling in a model's generation config change no answer, and are there again afterwards."""
    model, tokenizer = network
    prompts = [tokenizer("add 37+45=").input_ids, tokenizer("add 11+22=").input_ids]
    plain = write(model, tokenizer, prompts, 12)
    own = model.generation_config
    try:
        model.generation_config = type(own)(do_sample=True, temperature=9.0, repetition_penalty=9.0, min_new_tokens=9)
        odd = model.generation_config
        assert write(model, tokenizer, prompts, 12) == plain
        assert model.generation_config is odd
    finally:
        model.generation_config = own


def test_a_broken_model(
    tmp_path: Path, model: Callable[[str], Path], text: Path, questions: Callable[..., Path]
) -> None:
    """Probabilities that are no numbers are an error that says so, never a score."""
    broken = model("base")
    tensors = load_file(broken / "model.safetensors")
    tensors["model.norm.weight"][0] = torch.nan
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    for task in (*perplexity.tasks(str(text), Settings()), *_questions(questions("add", 1, choices=["101", "7"]))):
        with pytest.raises(ModelError, match="not numbers"):
            asked(task, broken)


def test_a_window_beyond_the_model(text: Path) -> None:
    """A window longer than what the model was made for is refused, with that length."""
    (task,) = perplexity.tasks(str(text), Settings(window=100_000))
    with pytest.raises(ModelError) as caught:
        asked(task)
    assert caught.value.wanted == "at most 256"


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks the old name
def test_an_adapter(tmp_path: Path, text: Path) -> None:
    """A model with an adapter is scored with it, as PEFT merges it."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    model, tokenizer = load(BASE)
    settings = peft.LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    with_adapter = peft.get_peft_model(model, settings)
    with_adapter.save_pretrained(tmp_path / "adapter")
    (task,) = perplexity.tasks(str(text), Settings())
    found = asked(task, f"{BASE}+{tmp_path / 'adapter'}")
    merged = with_adapter.merge_and_unload()
    nats = [n for _, n in surprise(merged, tokenizer, text.read_text("utf-8"), 256, 128)]
    counted = [s.measures["perplexity"] for s in found.values()]
    assert sum(m.value * m.weight for m in counted) == pytest.approx(sum(nats), rel=1e-5)
    assert found != asked(task)


SCORER = """
import json, pathlib, sys
folder = pathlib.Path(sys.argv[1])
assert (folder / "model.safetensors").exists()
print("working …")
print(json.dumps({"size": [1, 2, 6], "loss": {"value": 0.5, "higher_is_better": False}}))
"""


def test_command(tmp_path: Path, recipe: Callable[..., Path]) -> None:
    """A program gets the model's folder, also of a merge that is not written, and its last line is the scores."""
    script = tmp_path / "scorer.py"
    script.write_text(SCORER)
    (task,) = command.tasks(f"{sys.executable} {script} {{model}}", Settings())
    assert task.name == "scorer"
    (subject,) = subjects([str(recipe())])
    found = {s.key: s for s in task.measure(subject, task.keys)}
    folder = subject.folder()
    assert folder.exists()
    subject.close()
    assert not folder.exists()
    assert [found[key].measures["size"].value for key in ("all", "1", "2")] == [1, 2, 6]
    assert found["all"].measures["loss"] == (0.5, 1.0, False, "mean")
    before = task.fingerprint
    script.write_text(SCORER + "# changed")
    assert command.tasks(f"{sys.executable} {script} {{model}}", Settings())[0].fingerprint != before


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("raise SystemExit('no luck')", "no luck"),
        ("print('0.5')", "did not print scores"),
        ("print('{}')", "did not print scores"),
        ('print(\'{"a": "b"}\')', "did not print scores"),
        ("print('{\"a\": NaN}')", "did not print scores"),
        ("pass", "nothing"),
    ],
)
def test_command_that_fails(code: str, words: str, tmp_path: Path) -> None:
    """A program that fails, or prints something else, is told with what it said."""
    script = tmp_path / "scorer.py"
    script.write_text(code)
    (task,) = command.tasks(f"{sys.executable} {script} {{model}}", Settings())
    with pytest.raises(PlaitError) as caught:
        asked(task)
    assert words in str(caught.value)


BAD = {
    "no such file": ("questions", None, "cannot be read"),
    "empty": ("questions", "\n", "is empty"),
    "not JSON": ("questions", '{"prompt": "a", "answer": "b"}\n{', ":2: a line is not JSON"),
    "list": ("questions", "[1]", "no JSON object"),
    "no prompt": ("questions", '{"answer": "b"}', "no 'prompt'"),
    "no answer": ("questions", '{"prompt": "a"}', "no 'answer'"),
    "blank answer": ("questions", '{"prompt": "a", "answer": " "}', "no 'answer'"),
    "wrong choices": ("questions", '{"prompt": "a", "answer": "b", "choices": "b"}', "choices are a list"),
    "answer not a choice": ("questions", '{"prompt": "a", "answer": "b", "choices": ["c"]}', "not among the choices"),
    "no text": ("text", '{"txt": "a"}', "no 'text'"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_wrong_file(case: str, tmp_path: Path) -> None:
    """A file with a mistake is refused with its line, before any model is run."""
    kind, content, words = BAD[case]
    path = tmp_path / "task.jsonl"
    if content is not None:
        path.write_text(content)
    (made,) = (k for k in kinds() if f"--{kind}" == k.OPTION)
    with pytest.raises(PlaitError) as caught:
        made.tasks(str(path), Settings())
    assert words in str(caught.value)


@pytest.mark.parametrize("text", ["score out", "no-such-program {model}", "'{model}"])
def test_a_wrong_command(text: str) -> None:
    """A command without {model}, without a program or with a lost quote is refused before any model is run."""
    with pytest.raises(PlaitError):
        command.tasks(text, Settings())


def test_binary_is_no_text(tmp_path: Path) -> None:
    """A file that is not UTF-8 is refused."""
    (tmp_path / "x.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(PlaitError, match="is not text"):
        perplexity.tasks(str(tmp_path / "x.txt"), Settings())

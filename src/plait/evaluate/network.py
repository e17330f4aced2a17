"""Running a model with transformers: what it writes after a prompt, which choice it prefers, how much a text surprises it."""

from __future__ import annotations

import signal
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from plait.errors import ModelError, PlaitError

TEMPLATE_SECONDS = 10.0  # that a chat template may take


def require_transformers() -> None:
    """Raise `PlaitError` if transformers is not installed; cheap, for it is not imported."""
    if find_spec("transformers") is None:
        raise PlaitError(
            "running a model needs transformers, which is not installed",
            wanted="transformers",
            do='pip install "plait[run]"',
        )


def load(model: Path | str) -> tuple[Any, Any]:
    """The model of a folder in float32, ready to run, and its tokenizer. No code of the model is run."""
    with transformers() as library:
        try:
            network = library.AutoModelForCausalLM.from_pretrained(model, local_files_only=True)
        except Exception as error:  # of a strange config or strange weights, transformers raises whatever comes up
            raise ModelError(
                f"transformers cannot load {model}",
                wanted="a model directory of a class that this transformers knows",
                found=_said(error),
                do="mend its config.json, install a newer transformers, or give another model",
            ) from error
    return network.float().eval(), tokenizer(model)


def tokenizer(model: Path | str) -> Any:
    """The tokenizer in a model's folder."""
    with transformers() as library:
        try:
            return library.AutoTokenizer.from_pretrained(model, local_files_only=True)
        except Exception as error:
            what, wanted = f"{model} has no tokenizer that transformers can load", "its files beside the weights"
            do = "copy the tokenizer files of the model that it was made from into its folder"
            raise ModelError(what, wanted=wanted, found=_said(error), do=do) from error


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]


@contextmanager
def transformers() -> Iterator[Any]:
    """The library, without its progress bars meanwhile."""
    require_transformers()
    library: Any = import_module("transformers")
    logging = library.utils.logging
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield library
    finally:
        if bars:
            logging.enable_progress_bar()


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread: a small model is faster so, and its results do not depend on the number of cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class _Late(BaseException):  # nothing that a template's code catches
    """A template took too long."""


@contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """Raise `_Late` in what takes longer, where the system has timers and this is the thread that they reach."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def late(number: int, frame: object) -> None:
        raise _Late(f"no end after {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def prompt_ids(tokenizer: Any, prompt: str, chat: bool = False) -> list[int]:
    """The tokens of a prompt; with `chat`, as the user's turn of a conversation, in the model's own template."""
    if not chat:
        return list(tokenizer(prompt).input_ids)
    if not getattr(tokenizer, "chat_template", None):
        raise ModelError("a model has no chat template", wanted="one in its tokenizer", do="leave out --chat")
    turns = [{"role": "user", "content": prompt}]
    from jinja2 import TemplateError

    try:
        with _at_most(TEMPLATE_SECONDS):
            text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    except (
        TemplateError,
        ArithmeticError,
        LookupError,
        MemoryError,
        RecursionError,
        TypeError,
        ValueError,
        _Late,
    ) as error:
        raise ModelError(
            "a model's chat template cannot be rendered",
            wanted=f"the text of a conversation of one turn, within {TEMPLATE_SECONDS} s",
            found=f"{type(error).__name__.strip('_')}: {error}"[:200],
            do="leave out --chat, or mend the template",
        ) from error
    return list(tokenizer(text, add_special_tokens=False).input_ids)


def alike(prompts: Sequence[Sequence[int]], most: int) -> Iterator[list[int]]:
    """Indices of prompts of one length, at most `most` together, short prompts first: nothing is ever padded."""
    lengths: dict[int, list[int]] = defaultdict(list)
    for i, prompt in enumerate(prompts):
        lengths[len(prompt)].append(i)
    for _, group in sorted(lengths.items()):
        yield from (group[i : i + most] for i in range(0, len(group), most))


@torch.inference_mode()
def write(network: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], most: int) -> list[str]:
    """What the model writes after each prompt, greedily, up to the end of the line, at most `most` tokens.

    The prompts are of one length. It ends at the tokenizer's end of text, or at one that the model's generation config
    names; nothing else of that config (penalties, sampling) counts.
    """
    config: Any = import_module("transformers").GenerationConfig
    ids = torch.tensor(prompts, device=network.device)
    ends = _ends(network, tokenizer)
    own = network.generation_config
    network.generation_config = config(
        do_sample=False, max_new_tokens=most, eos_token_id=ends or None, pad_token_id=ends[0] if ends else 0
    )
    try:
        rows = network.generate(ids, attention_mask=torch.ones_like(ids))[:, ids.shape[1] :].tolist()
    finally:
        network.generation_config = own
    stops = [next((i for i, token in enumerate(row) if token in ends), len(row)) for row in rows]
    texts = [tokenizer.decode(row[:stop]) for row, stop in zip(rows, stops, strict=True)]
    return [text.split("\n")[0].strip() for text in texts]


def _ends(network: Any, tokenizer: Any) -> list[int]:
    named = getattr(network.generation_config, "eos_token_id", None)
    listed = named if isinstance(named, list) else [named]
    return [end for end in dict.fromkeys([tokenizer.eos_token_id, *listed]) if end is not None]


@torch.inference_mode()
def choose(network: Any, tokenizer: Any, prompt: Sequence[int], choices: Sequence[str]) -> str:
    """The choice that is most probable after the prompt: the product of the probabilities of its tokens."""
    sums = []
    for choice in choices:
        tail = tokenizer(choice, add_special_tokens=False).input_ids
        ids = torch.tensor([[*prompt, *tail]], device=network.device)
        known = _known(network(ids).logits[0, len(prompt) - 1 : -1])
        sums.append(float(known.gather(1, ids[0, len(prompt) :, None]).sum()))
    return choices[sums.index(max(sums))]


@torch.inference_mode()
def surprise(network: Any, tokenizer: Any, text: str, window: int, stride: int) -> list[tuple[int, float]]:
    """(place of its first character, −ln of its probability) of every token that has one before it, in order.

    Windows of `window` tokens begin every `stride` tokens; a token is counted in the first window that holds it.
    """
    placed = bool(getattr(tokenizer, "is_fast", False))
    made = tokenizer(text, return_offsets_mapping=placed, verbose=False)
    ids = torch.tensor([made["input_ids"]], device=network.device)
    places = [start for start, _ in made["offset_mapping"]] if placed else [0] * ids.shape[1]
    found: list[tuple[int, float]] = []
    counted = 1  # the first token follows none
    for begin in range(0, ids.shape[1], stride):
        part = ids[:, begin : begin + window]
        new = begin + part.shape[1] - counted
        if new <= 0:
            break
        known = _known(network(part).logits[0, -new - 1 : -1])
        nats = -known.gather(1, part[0, -new:, None])[:, 0]
        found += zip(places[counted : counted + new], nats.tolist(), strict=True)
        counted += new
    return found


def window_of(network: Any, asked: int | None, longest: int) -> int:
    """Tokens of a window: what was asked for, else what the model was made for, at most `longest`."""
    made_for = getattr(network.config.get_text_config(), "max_position_embeddings", None) or asked or longest
    if asked and asked > made_for:
        raise ModelError(
            f"a window of {asked} tokens is longer than a model's",
            wanted=f"at most {made_for}",
            found=str(asked),
            do="pass a smaller --window, or leave it out",
        )
    return asked or min(made_for, longest)


def _known(logits: torch.Tensor) -> torch.Tensor:
    """Log probabilities; raises `ModelError` when they are no numbers."""
    found = logits.float().log_softmax(-1)
    if found.isnan().any():
        raise ModelError(
            "a model's probabilities are not numbers",
            found="NaN",
            do="its weights are broken, or too large for --dtype; leave it out, or mend the merge",
        )
    return found

"""llama.cpp runs what `plait export gguf` writes, and computes what transformers does."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gguf_models
import make
from plait.export.gguf import export
from plait.export.write import write
from plait.prepare import prepare

llama = pytest.importorskip("xllamacpp", reason="xllamacpp has no wheel for this machine")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")

#: rounding of a weight or an activation, in parts of the numbers' spread: half a step of the type over the square root of 3.
#: A block of Q8_0 has steps of 1/127 of its largest number, which is about 2.2 times the spread of 32 random ones.
ROUNDING = {"F16": 2**-11, "BF16": 2**-8, "Q8_0": 2.2 / 254}
#: of so many products in a row (4 in each of 3 layers, both factors rounded) the errors add up as the root of their number;
#: the largest of 5 x 700 logits is off by less than 6 times the spread of the errors
TOLERANCE = {"F32": 1e-5} | {kind: 6 * (2 * 12) ** 0.5 * step / 3**0.5 for kind, step in ROUNDING.items()}


@contextmanager
def running(path: Path, context: int = 128) -> Iterator[Any]:
    """llama.cpp with the file, exact where it can be: yields what sends a request to it."""
    given = llama.CommonParams()
    given.model.path = str(path)
    given.n_ctx, given.n_parallel, given.n_gpu_layers, given.verbosity = context, 1, 0, -1
    given.warmup = given.fit_params = False
    given.special = True
    given.cache_type_k = given.cache_type_v = llama.ggml_type.GGML_TYPE_F32
    given.flash_attn_type = llama.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = llama.Server(given)
    address = server.listening_address

    def ask(what: str, **data: Any) -> Any:
        head = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{address}/{what}", json.dumps(data).encode(), head)
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    yield ask
    del server


def next_tokens(ask: Any, ids: list[int], rows: int, plain: int) -> np.ndarray:
    """Logarithms of the probabilities of all tokens after `ids`. `plain`: a token that may be the answer."""
    answer = ask(
        "completion",
        prompt=ids,
        n_predict=1,
        n_probs=rows,
        temperature=0,
        logit_bias=[[plain, 1e3]],
        cache_prompt=False,
    )
    found = np.full(rows, np.nan)
    for entry in answer["completion_probabilities"][0]["top_logprobs"]:
        found[entry["id"]] = entry["logprob"]
    return found


def exported(folder: Path, out: Path, kind: str | None = None) -> Path:
    return write(export(prepare(make.recipe("passthrough", folder, parameters={})), out, name="small", type=kind)).out


CASES = [(name, "F32") for name in gguf_models.FAMILIES]
CASES += [(name, kind) for name in ("mistral", "llama 3.1", "qwen3", "gemma2", "phi3") for kind in ROUNDING]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_logits(name: str, kind: str, tmp_path: Path) -> None:
    """The probabilities of the next token are those of transformers, as far as the type's rounding goes."""
    folder = gguf_models.write(name, tmp_path / "model")
    network = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    rows, long = network.config.vocab_size, name == "phi3 long"
    path = exported(folder, tmp_path / "a.gguf", kind)
    plain = transformers.AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids("e")
    ids = torch.randint(10, rows - 7, (300,), generator=torch.Generator().manual_seed(1)).tolist()
    for context, lengths in ((256, (8, 24)), (512, (300,))) if long else ((128, (1, 2, 12, 25, 40)),):
        with running(path, context) as ask:
            for length in lengths:
                with torch.no_grad():
                    wanted = torch.log_softmax(network(torch.tensor([ids[:length]])).logits[0, -1].double(), -1).numpy()
                found = next_tokens(ask, ids[:length], rows, plain)
                # llama.cpp looks up Gemma's GELU in a table of float16
                tolerance = TOLERANCE["F16" if name.startswith("gemma") and kind == "F32" else kind]
                assert np.abs(found - wanted).max() <= tolerance * max(1, wanted.std()), (length, wanted.std())


WORDS = {words: name for name, (_, _, words) in gguf_models.FAMILIES.items()}


@pytest.mark.parametrize("name", WORDS.values())
def test_tokens(name: str, tmp_path: Path) -> None:
    """Texts have the same tokens as with the model's own tokenizer, special tokens in them too; so has a conversation."""
    folder = gguf_models.write(name, tmp_path / "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    special = ["<|im_start|>user\nhi<|im_end|> there</s>", "a <tool> b", "<s>twice"]
    said = [{"role": "user", "content": "How  are\nyou?"}]
    with running(exported(folder, tmp_path / "a.gguf")) as ask:
        for text in [*gguf_models.TEXTS, *special]:
            found = ask("tokenize", content=text, add_special=True, parse_special=True)["tokens"]
            assert tokenizer.convert_ids_to_tokens(found) == tokenizer.convert_ids_to_tokens(
                tokenizer(text)["input_ids"]
            )
        made = ask("apply-template", messages=said)["prompt"]
        wanted = tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
        assert made.removeprefix("<s>") == wanted.removeprefix(
            "<s>"
        )  # llama.cpp takes off what it puts before a text itself

"""Small tokenizers of each kind, trained in a moment, and models that have them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers import models as kinds
from tokenizers.trainers import BpeTrainer, UnigramTrainer, WordLevelTrainer, WordPieceTrainer

import make

PLAIN = [
    "the quick brown fox jumps over the lazy dog and the quick cat",
    "weights of the layer are the weights of a model",
] * 4
FOREIGN = [
    "жили были дед и баба и была у них курочка",
    "el niño comió piñas, ¡qué rápido! (x_1 = 42)",
    "the layer (x_1) weights 42",
] * 4
KINDS = (
    "byte-level",
    "byte-level with gaps",
    "sentencepiece",
    "sentencepiece with bytes",
    "unigram",
    "wordpiece",
    "wordlevel",
)


def tokenizer(
    kind: str, texts: list[str], size: int = 160, special: tuple[str, ...] = ("<unk>", "<s>", "</s>")
) -> Tokenizer:
    """A tokenizer of the kind, trained on the texts; special tokens have the first ids."""
    names: dict[str, Any] = {"special_tokens": list(special), "show_progress": False}
    if kind.startswith("byte-level"):
        made = Tokenizer(kinds.BPE(unk_token="<unk>"))
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        alphabet = [] if kind.endswith("gaps") else pre_tokenizers.ByteLevel.alphabet()
        trainer: Any = BpeTrainer(vocab_size=size + len(alphabet), initial_alphabet=alphabet, **names)
    elif kind.startswith("sentencepiece"):
        spelt = kind.endswith("bytes")
        made = Tokenizer(kinds.BPE(unk_token="<unk>", byte_fallback=spelt, fuse_unk=True))
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        made.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        names["special_tokens"] += [f"<0x{n:02X}>" for n in range(256)] if spelt else []
        trainer = BpeTrainer(vocab_size=size + 256 * spelt, **names)
    elif kind == "unigram":
        made = Tokenizer(kinds.Unigram())
        made.pre_tokenizer = pre_tokenizers.Metaspace()
        made.decoder = decoders.Metaspace()
        trainer = UnigramTrainer(vocab_size=size, unk_token="<unk>", **names)
    elif kind == "wordpiece":
        made = Tokenizer(kinds.WordPiece(unk_token="<unk>"))
        made.normalizer = normalizers.BertNormalizer(strip_accents=False)
        made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        made.decoder = decoders.WordPiece()
        trainer = WordPieceTrainer(vocab_size=size, **names)
    else:
        made = Tokenizer(kinds.WordLevel(unk_token="<unk>"))
        made.pre_tokenizer = pre_tokenizers.Whitespace()
        trainer = WordLevelTrainer(vocab_size=size, **names)
    made.train_from_iterator(texts, trainer)
    if kind == "sentencepiece with bytes":  # as in Llama's files: bytes are ordinary tokens
        data = json.loads(made.to_str())
        data["added_tokens"] = data["added_tokens"][: len(special)]
        made = Tokenizer.from_str(json.dumps(data))
    return made


def write(
    folder: Path,
    made: Tokenizer,
    seed: int = 0,
    *,
    rows: int | None = None,
    named: dict[str, str] | None = None,
    **more: Any,
) -> Path:
    """A model directory with this tokenizer, and so many rows, as many as the tokenizer has tokens by default."""
    make.model(folder, seed, vocab=made.get_vocab_size() if rows is None else rows, **more)
    made.save(str(folder / "tokenizer.json"))
    roles = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", **(named or {})}
    make.write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **roles})
    return folder


def rows_of(folder: Path, name: str = "model.embed_tokens.weight") -> dict[str, torch.Tensor]:
    """token -> its row in the weights of a model directory, read with the format's own library."""
    from safetensors.torch import load_file

    made, matrix = Tokenizer.from_file(str(folder / "tokenizer.json")), load_file(folder / "model.safetensors")[name]
    return {text: matrix[n] for text, n in made.get_vocab().items() if n < len(matrix)}

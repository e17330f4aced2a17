"""Small random models of the families that can be exported, with tokenizers like theirs, written by transformers."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch

TEXTS = [
    "Hello world! It's the weaver's loom, isn't it?",
    "  two spaces,   three   and a tab\tand\n\n\nnew lines \n",
    "1234567 numbers 3.14 and 2026-11-25",
    "Grüße, naïve café — “quotes” … Ελληνικά, русский, 日本語のテキスト, 한국어",
    "emoji 😀👩‍👩‍👧 and ▁ itself",
    "def f(x):\n    return {'a': x ** 2}  # code\r\n",
    "WE'LL SHOUT, THEY'VE SHOUTED; o'clock",
    "",
    " ",
]
CORPUS = [*TEXTS, *Path(__file__).parent.joinpath("gguf_models.py").read_text("utf-8").splitlines()]
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "attn_implementation": "eager",
}
WIDE = {"head_dim": 32}
GEMMA = {**WIDE, "tie_word_embeddings": True, "query_pre_attn_scalar": 32, "sliding_window": 8}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 10000.0}
LONG = {
    "rope_type": "longrope",
    "long_factor": [1.0 + i for i in range(8)],
    "short_factor": [1.0 + i / 8 for i in range(8)],
}
LOCAL = {"sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
#: name -> (class in transformers, more of its config, kind of tokenizer)
FAMILIES: dict[str, tuple[str, dict[str, Any], str]] = {
    "llama": ("Llama", {"tie_word_embeddings": True}, "llama"),
    "llama biased": ("Llama", {"attention_bias": True, "mlp_bias": True, **WIDE}, "smollm"),
    "llama 3.1": (
        "Llama",
        {"rope_parameters": {**LLAMA3, "original_max_position_embeddings": 8192, "rope_theta": 5e5}},
        "llama-bpe",
    ),
    "llama linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, "gpt-2"),
    "mistral": ("Mistral", {**WIDE, "sliding_window": None}, "llama"),
    "mistral nemo": ("Mistral", {**WIDE, "sliding_window": None}, "tekken"),
    "mixtral": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}, "llama"),
    "qwen2": ("Qwen2", {"rope_theta": 1e6}, "qwen2"),
    "qwen2 yarn": ("Qwen2", {"rope_parameters": YARN}, "qwen2"),
    "qwen2 moe": ("Qwen2Moe", {**EXPERTS, "shared_expert_intermediate_size": 64}, "qwen2"),
    "qwen3": ("Qwen3", WIDE, "qwen2"),
    "qwen3 tied": ("Qwen3", {**WIDE, "tie_word_embeddings": True}, "qwen2"),
    "qwen3 moe": ("Qwen3Moe", {**EXPERTS, **WIDE, "norm_topk_prob": True}, "qwen2"),
    "gemma": ("Gemma", {**WIDE, "tie_word_embeddings": True}, "gemma"),
    "gemma2": ("Gemma2", {**GEMMA, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0}, "gemma"),
    "gemma3": (
        "Gemma3",
        {
            **GEMMA,
            "num_hidden_layers": 7,
            "rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}, **LOCAL},
        },
        "gemma",
    ),
    "gemma3 stacked": (
        "Gemma3",
        {**GEMMA, "layer_types": ["full_attention", "sliding_attention", "full_attention"]},
        "gemma",
    ),
    "phi3": ("Phi3", {"pad_token_id": 0, "sliding_window": None}, "phi3"),
    "phi3 long": (
        "Phi3",
        {
            "pad_token_id": 0,
            "sliding_window": None,
            "rope_parameters": {**LONG, "rope_theta": 1e4},
            "original_max_position_embeddings": 256,
            "max_position_embeddings": 512,
        },
        "phi3",
    ),
    "phi4 mini": ("Phi3", {"pad_token_id": 0, "sliding_window": None, "partial_rotary_factor": 0.75}, "gpt-4o"),
}
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write(name: str, folder: Path, dtype: torch.dtype = torch.float32, seed: int = 0) -> Path:
    """A model of the family with its tokenizer, in `folder`."""
    import transformers

    kind, more, words = FAMILIES[name]
    made = json.loads(tokenizer(words))
    rows = len(made["model"]["vocab"]) + 6  # of which the last have no token
    config = getattr(transformers, f"{kind}TextConfig" if kind == "Gemma3" else f"{kind}Config")(
        **(SIZES | {"vocab_size": rows, "bos_token_id": 1, "eos_token_id": 2} | more)
    )
    torch.manual_seed(seed)
    network = getattr(transformers, f"{kind}ForCausalLM")(config)
    with torch.no_grad():
        for own, x in network.named_parameters():
            x += torch.randn(x.shape) * (0.3 if x.ndim < 2 or "embed" in own else 0.1)
    network.to(dtype).save_pretrained(folder)
    (folder / "tokenizer.json").write_text(tokenizer(words), "utf-8")
    settings = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    (folder / "chat_template.jinja").write_text(TEMPLATE, "utf-8")
    return folder


@cache
def tokenizer(kind: str) -> str:
    """A tokenizer.json of the kind of a family, learnt from this file."""
    return json.dumps(_pieces(kind) if kind in ("llama", "gemma", "phi3") else _bytes(kind))


ADDED = ["<unk>", "<s>", "</s>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def _added(row: int, text: str, **more: Any) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": row, "content": text, **flags, "special": True, **more}


def _start(data: dict[str, Any]) -> None:
    """A text begins with <s>."""
    bos = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    a, b = ({"Sequence": {"id": key, "type_id": n}} for n, key in enumerate("AB"))
    special = {"<s>": {"id": "<s>", "ids": [ADDED.index("<s>")], "tokens": ["<s>"]}}
    data["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [bos, a],
        "pair": [bos, a, bos, b],
        "special_tokens": special,
    }


def _bytes(kind: str) -> dict[str, Any]:
    """Byte-level BPE, cut into words as `kind` is."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

    from plait.export import splits

    (cuts, whole), _ = next(item for item in splits.NAMES.items() if item[1] == kind)
    steps: list[Any] = [
        pre_tokenizers.Digits(individual_digits=True)
        if cut == "digits"
        else pre_tokenizers.Split(Regex(cut), "isolated")
        for cut in cuts
    ]
    made = Tokenizer(models.BPE(ignore_merges=whole))
    if kind == "qwen2":
        made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel(False, use_regex=False)])
    made.train_from_iterator(
        CORPUS * 3,
        trainers.BpeTrainer(
            vocab_size=500,
            special_tokens=ADDED,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    data = json.loads(made.to_str())
    if kind in ("llama-bpe", "tekken"):
        _start(data)
    data["decoder"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    data["added_tokens"].append(_added(len(data["model"]["vocab"]), "<tool>", special=False))
    return data


def _pieces(kind: str) -> dict[str, Any]:
    """BPE made from SentencePiece as transformers does: a merge for each two tokens that make a third."""
    from tokenizers import Tokenizer, models, normalizers, trainers

    made = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    replace = normalizers.Replace(" ", "▁")
    made.normalizer = replace if kind == "gemma" else normalizers.Sequence([normalizers.Prepend("▁"), replace])
    special = [*ADDED, *(f"<0x{n:02X}>" for n in range(256))]
    corpus = [word for line in CORPUS for word in line.replace(" ", " \0").split("\0")]
    made.train_from_iterator(
        corpus * 3, trainers.BpeTrainer(vocab_size=700, special_tokens=special, limit_alphabet=90, show_progress=False)
    )
    data = json.loads(made.to_str())
    vocab: dict[str, int] = data["model"]["vocab"]
    data["model"]["merges"] = sorted(
        (
            [text[:i], text[i:]]
            for text in vocab
            if text not in special
            for i in range(1, len(text))
            if text[:i] in vocab and text[i:] in vocab
        ),
        key=lambda pair: (vocab[pair[0] + pair[1]], vocab[pair[0]], vocab[pair[1]]),
    )
    strip = {"rstrip": True} if kind == "phi3" else {}
    data["added_tokens"] = [
        _added(row, text, **(strip if row not in (0, 1, 3) else {})) for row, text in enumerate(ADDED)
    ]
    if kind == "gemma":
        data["pre_tokenizer"] = {
            "type": "Split",
            "pattern": {"String": " "},
            "behavior": "MergedWithPrevious",
            "invert": False,
        }
    _start(data)
    return data

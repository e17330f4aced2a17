"""What a tensor's name tells: its layer, its kind, which side of the layers it lies on, whether it is a buffer.

Patterns are over names as Hugging Face checkpoints have them; a component is what lies between two dots.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Literal

Kind = Literal["attention", "mlp", "norm", "embedding", "head", "expert", "router", "other"]

#: words of `words` that say that a part is not the text model
MODALITIES = frozenset({"vision", "audio"})
_NUMBER = re.compile(r"(?:^|\.)(\d+)\.")


@lru_cache(1 << 17)  # asked several times of each name
def numbered(name: str) -> tuple[str, int, str] | None:
    """`a.3.b.1.c` -> (`a.`, 3, `b.1.c`): text before the first number between dots, the number, text after; or None."""
    found = _NUMBER.search(name)
    return (name[: found.start(1)], int(found[1]), name[found.end() :]) if found else None


def _component(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"(?:^|\.)(?:{pattern})(?=\.|$)")


#: token embeddings: [vocabulary, hidden]
TOKENS = re.compile(
    r"(?:^|\.)(?:embed_tokens|wte|word_embeddings?|embed_in|shared|tok_embeddings|token_embedding|tokens_embed|encoder_embed_tokens"
    r"|(?:backbone|model|rwkv|transformer|language_model|decoder)\.embeddings?)\.weight$"
    r"|^(?:embeddings?|embedding\.word_embeddings|embeddings\.tok_embeddings)\.weight$"
)
#: output heads over the vocabulary: [vocabulary, hidden], and their biases
HEAD = re.compile(
    r"(?:^|\.)(?:lm_head(?:\.decoder)?|embed_out|proj_out|output_layer|lm_loss|vocab_projector|generator_lm_head|pred_layer\.proj"
    r"|predictions(?:\.decoder)?|shared_head\.head|final_logits_bias|cls\.seq_relationship)(?:\.weight|\.bias|$)"
    r"|^(?:output|head|decoder)\.(?:weight|bias)$"
)
_CLASSIFIER = _component(
    r"lm_head|\w*classifier\w*|classification_head|score|qa_outputs|cls|pooler|\w*pooling_head|predictions|lm_predictions|mask_predictions"
    r"|discriminator_predictions|generator_predictions|generator_lm_head|vocab_\w+|logits_proj|head|heads|codebook\w*_head|lm_heads"
    r"|pred_layer|lm_loss|embed_out|proj_out|output_layer|final_logits_bias|seq_relationship|v_head|value_head|reward_head|multi_choice_head"
)
#: loose tensors that come before the layers although their last words would put them after
BEFORE = re.compile(
    r"(?:embed|per_layer|wte|wpe|patch|(?:^|[._])pre(?:_|$|\.)|pre_?la?yr?norm|ln_pre|norm_pre|feature_(?:proj|extr)|(?:^|\.)conv|stem|_in(?:\.|_proj)|in_proj|pos_conv|tokens?(?:\.|$|_))"
)
#: loose tensors that come after the layers
AFTER = re.compile(
    _CLASSIFIER.pattern
    + r"|LayerNorm|(?:^|[._])(?:layer_?norm|norm|ln|rms|rmsnorm|post_\w*|final\w*|head|logits?)(?:[._]|$)"
    r"|(?:^|[._])(?:merger|project_out|proj_out|out_proj|output\w*|last\w*|prediction\w*|\w*adapter)(?:[._]|$)"
    r"|^(?:\w+\.)?(?:text_|visual_|vision_)?projection\."
)
#: what joins several stacks: projectors, connectors, resamplers
JOINT = re.compile(
    r"(?:^|[._])(?:\w*projector|projection|connector|aligner|adapter|resampler|perceiver|perceiver_resampler|newline|mlp1|mm|multi_?modal\w*"
    r"|embed_vision|embed_audio|logit_scale|logit_bias|abstractor|enc_to_dec_proj|modality_projection|image_newline|view_separator)(?:[._]|$)"
)
#: numbered lists that are not layers of a transformer, whatever their length
NOT_STACK = _component(
    r"convs?\d*|conv_layers|conv_stem|feature_extractor|\w*classifier\w*|\w*heads?|mtp|nextn|\w*adapters?|\w*merger\w*|\w*projector\w*|\w*embed\w*"
    r"|\w*predictions?|altup\w*|resampler|codebooks?|quantizers?|layer_?norms?|\w*downsample\w*|\w*upsample\w*|fusion\w*"
)
#: the last words of config keys that count layers ...
LAYERS = re.compile(r"(?:^|_)(?:n_?)?(?:layers?|depth|blocks|hidden_groups)$")
#: ... and words that say that they count something else
NOT_LAYERS = re.compile(
    r"conv|feat|predict|nextn|mtp|dense|window|shared|adapter|classif|head|sparse|mem|codebook|first|last|skip|expert|moe|attn|attention"
    r"|interval|extract|postnet|prenet|residual|embed|select|drop|norm|fusion|stage|query|queries|resampler|perceiver|mlp_depth|full"
)

_BUFFER = re.compile(
    r"(?:^|\.)(?:(?:original_)?inv_freq|cos_cached|sin_cached|freqs_cis|position_ids|causal_mask|attn_mask|relative_position_index|masked_bias"
    r"|rope\.freqs|_float_tensor)$"
)
_MASK = re.compile(r"(?:^|\.)(?:attn|attention|self_attn)\.bias$")

# In this order: the first that matches decides.
_KIND_PATTERNS: tuple[tuple[Kind, str], ...] = (
    ("router", r"(?:^|\.)(?:router(?!_norm)\w*|\w*shared_expert_gate|\w*expert_bias|\w*correction_bias)(?:\.|$)"),
    ("router", r"(?:^|\.)(?:mlp|moe|block_sparse_moe|feed_forward|ffn|mixer|sparse_moe)\.(?:gate|wg)\."),
    ("expert", r"(?:^|\.)(?:\w*experts?|(?:block_sparse_moe|moe)\.(?:input_linear|output_linear))(?:\.|$)"),
    ("norm", r"LayerNorm|layer_?norm|layrnorm"),
    ("norm", r"(?:^|[._])(?:norm\w*|rms\w*|ln(?:_\w+|\d)?|bn\d?)(?:\.\w+)?$"),
    ("norm", r"[a-z]norm\d?\.(?:weight|bias|scale)$"),
    ("attention", r"(?:^|\.)(?:relative_attention_bias|relative_position_bias_table|pos_bias_[uv]|r_[wrs]_bias)(?:\.|$)"),
    ("attention", r"(?:^|\.)rel_attn\."),
    ("other", r"(?:^|\.)(?:conv1d|A_log|dt_bias|dt_proj|x_proj|D)(?:\.|$)"),
    ("head", HEAD.pattern),
    ("head", _CLASSIFIER.pattern),
    ("embedding", TOKENS.pattern),
    ("embedding", r"(?:^|[._])\w*embed(?:dings?|s|_\w+)?(?:[._]|$)"),
    ("embedding", r"(?:^|\.)(?:wpe|cls_token|mask_token|tokens?)(?:\.|$)"),
    ("attention", r"(?:^|[._])(?:\w*attn\w*|\w*[aA]ttentions?\w*)(?:[._]|$)"),
    ("mlp", r"(?:^|[._])(?:mlp\w*|feed_forward\w*|ffn?\w*|DenseReluDense|intermediate\w*|channel_mix)(?:[._]|$)"),
    ("attention", r"(?:^|\.)(?:[qkvo]_proj|[qkv]_lin|out_lin|qkv\w*|Wqkv|query\w*|key|value|c_attn)\."),
    ("mlp", r"(?:^|\.)(?:fc\d|c_fc|w[123]|wi(?:_\d)?|wo|lin(?:ear)?\d|(?:gate|up|down|gate_up)_proj|output\w*\.dense)\."),
)  # fmt: skip
_KINDS = tuple((kind, re.compile(pattern)) for kind, pattern in _KIND_PATTERNS)


def kind_of(name: str) -> Kind:
    """The kind of layer part or loose tensor that a name speaks of; state-space mixers and projectors are `other`."""
    return next((kind for kind, pattern in _KINDS if pattern.search(name)), "other")


def is_buffer(name: str, ndim: int, floating: bool) -> bool:
    """Whether a tensor is recomputed by the model's code, not learned: rotary frequencies, causal masks, position ids.

    `attn.bias` is a mask when it is square in its last axes (GPT-2, GPT-NeoX: 4 axes), a weight when it is a vector.
    Running statistics of batch norms and router correction biases are state, not buffers in this sense.
    """
    return bool(_BUFFER.search(name)) or (bool(_MASK.search(name)) and (ndim > 2 or not floating))


def is_head(name: str) -> bool:
    """Whether a loose tensor is part of what a task puts on top of the model: a head, a classifier, a pooler."""
    return bool(HEAD.search(name) or _CLASSIFIER.search(name))


_SYNONYMS = {
    **dict.fromkeys(("visual", "image", "vit", "img"), "vision"),
    **dict.fromkeys(("speech", "sound"), "audio"),
    **dict.fromkeys(("language", "llm", "lm"), "text"),
}
_PLAIN = frozenset(
    (
        "model",
        "layer",
        "layers",
        "block",
        "blocks",
        "num",
        "n",
        "h",
        "hidden",
        "config",
        "depth",
        "tower",
        "transformer",
    )
)


def words(text: str) -> frozenset[str]:
    """The telling words of a prefix or a config path, synonyms folded: `visual.blocks.` -> {vision}."""
    parts = re.split(r"[._]", text.lower())
    return frozenset(_SYNONYMS.get(part, part) for part in parts if part and not part.isdigit()) - _PLAIN


_PICTURES = re.compile(r"(?:^|\.)(?:merger\.|video_tower\.|vqmodel\.|query_tokens$)")


def senses(name: str) -> frozenset[str]:
    """What a tensor's name says that it serves besides text: vision, audio; often nothing."""
    return frozenset({"vision"}) if _PICTURES.search(name) else words(name) & MODALITIES


def after_layers(name: str) -> bool:
    """Whether a loose tensor comes after the layers: final norms, heads, poolers; else before, as embeddings do."""
    if is_head(name) or name.endswith("embedding_norm.weight"):  # LFM2's final norm
        return True
    return bool(AFTER.search(name)) and not BEFORE.search(name)

"""What the rules of `arch` and `config` do not find by themselves, as data."""

from __future__ import annotations

#: Config keys that count the extra layers (multi-token prediction) stored after the layers that the layer count counts:
#: DeepSeek-V3, GLM-4-MoE, MiMo, … keep `model.layers.61` beside `num_hidden_layers: 61`.
EXTRA_LAYERS = ("num_nextn_predict_layers", "num_mtp_layers")

#: `model_type` -> name of the tied output head that is not in the file, where no neighbour gives it away.
ABSENT_HEADS = {
    "distilbert": "vocab_projector.weight",
    "electra": "generator_lm_head.weight",
    "flaubert": "pred_layer.proj.weight",
    "gpt_neox": "embed_out.weight",
    "modernbert": "decoder.weight",
    "whisper": "proj_out.weight",
    "xlm": "pred_layer.proj.weight",
    "xlnet": "lm_loss.weight",
}

#: A bias in the file -> the tied head weight that it belongs to.
HEAD_BESIDE = {
    "cls.predictions.bias": "cls.predictions.decoder.weight",
    "predictions.bias": "predictions.decoder.weight",
    "lm_head.layer_norm.weight": "lm_head.decoder.weight",
    "vocab_projector.bias": "vocab_projector.weight",
    "generator_lm_head.bias": "generator_lm_head.weight",
    "decoder.bias": "decoder.weight",
}

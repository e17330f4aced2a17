"""Which tensors a GGUF file holds, of what type, and what each is made of; from names and shapes alone."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from plait.checkpoint.gguf.names import Family, stored_name
from plait.errors import ModelError
from plait.types import TensorSpec

#: tensors that lose too much with fewer bits than Q8_0, as llama.cpp's own tool has it
_DELICATE = ("output.weight", "token_embd.weight")
#: tensors of a vision-language model that are no part of its language model
_OTHER = re.compile(r"(?:model\.)?(?:vision_tower|vision_model|visual|multi_modal_projector|embed_vision)\.")
_TEXT = re.compile(r"(?:model\.language_model\.|language_model\.model\.)")


@dataclass(frozen=True)
class Stored:
    """A tensor of the file: its type, shape, and the tensors of the model whose rows it has, one after the other."""

    name: str
    type: str
    shape: tuple[int, ...]
    sources: tuple[str, ...]
    heads: int = 0  # rows of so many heads are brought into the order of llama.cpp's rotary embedding
    raised: bool = False  # 1 is added to each entry

    @property
    def nbytes(self) -> int:
        size, nbytes = blocks()[self.type]
        return TensorSpec("F32", self.shape).numel // size * nbytes


@cache
def blocks() -> dict[str, tuple[int, int]]:
    """type -> (entries, bytes) of a block, for the types that can be written: the gguf package's, which has no K-quants."""
    import gguf
    import numpy as np

    found = {}
    for name in (*_FLOATS, *(kind.name for kind in gguf.quants._type_traits)):
        entries, nbytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
        try:
            gguf.quants.quantize(np.ones((1, entries), np.float32), gguf.GGMLQuantizationType[name])
        except NotImplementedError:
            continue
        found[name] = (int(entries), int(nbytes))
    return found


_FLOATS = ("F32", "F16", "BF16")


def layout(
    family: Family, specs: Mapping[str, TensorSpec], config: Mapping[str, Any], type: str
) -> tuple[list[Stored], list[str]]:
    """The tensors in the file's order, and notes of what is left out or has another type than `type`.

    Raises `ModelError` for a tensor that llama.cpp does not know in this architecture.
    """
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]} if family.rotated else {}
    tied = bool(config.get("tie_word_embeddings", family.model_type.startswith("gemma")))
    sources: dict[str, dict[int | None, str]] = {}
    left, strange = [], []
    for name in specs:
        plain = _TEXT.sub("model.", name).replace("language_model.lm_head", "lm_head")
        found = stored_name(family, plain)
        if _OTHER.match(name) or name.endswith(".inv_freq") or (tied and plain == "lm_head.weight"):
            left.append(name)
        elif found is None:
            strange.append(name)
        else:
            sources.setdefault(found[0], {})[found[1]] = name
    if strange or "token_embd.weight" not in sources:
        raise ModelError(
            f"the model has tensors that llama.cpp does not know in {family.model_type}",
            wanted="the tensors of " + family.kind,
            found=", ".join(map(ascii, strange[:4])) or "no embedding",
            do="leave them out of the merge, or convert it with llama.cpp's convert_hf_to_gguf.py",
        )
    made = []
    for name, of in sources.items():
        shape, ordered = _shape(name, [of[key] for key in sorted(of, key=lambda key: key or 0)], specs)
        own = name.split(".")[-2]
        norm = own.endswith("norm")
        kind = _type(name, own, shape, type)
        turned = heads.get(own, 0)
        if turned and shape[0] % (2 * turned):
            do = "mend num_attention_heads or num_key_value_heads in its config.json"
            raise ModelError(f"{ordered[0]} does not fit", wanted=f"rows of {turned} heads", found=str(shape), do=do)
        made.append(Stored(name, kind, shape, ordered, turned, family.raised and norm))
    return made, list(_told(made, type, left))


def _shape(name: str, sources: list[str], specs: Mapping[str, TensorSpec]) -> tuple[tuple[int, ...], tuple[str, ...]]:
    shapes = {specs[source].shape for source in sources}
    if len(shapes) > 1:
        what, do = f"the experts of {name} differ in shape", "fetch or make the model again"
        raise ModelError(what, wanted="one shape", found=str(sorted(shapes)), do=do)
    (shape,) = shapes
    if "_exps" in name:
        shape = (len(sources), *shape)
    elif "_shexp" in name and shape[0] == 1 and "gate_inp" in name:
        shape = shape[1:]
    return shape, tuple(sources)


def _type(name: str, own: str, shape: tuple[int, ...], wanted: str) -> str:
    if len(shape) < 2 or own.endswith("norm") or own.startswith("ffn_gate_inp"):
        return "F32"
    if wanted in _FLOATS:
        return wanted
    if name in _DELICATE and blocks()[wanted][1] / blocks()[wanted][0] < 1:
        wanted = "Q8_0"
    return next(kind for kind in (wanted, "Q8_0", "F16") if shape[-1] % blocks()[kind][0] == 0)


def _told(made: list[Stored], type: str, left: list[str]) -> Iterator[str]:
    if others := [one for one in made if one.type not in (type, "F32")]:
        kinds = ", ".join(sorted({one.type for one in others}))
        yield f"{kinds} instead of {type} for {', '.join(one.name for one in others[:3])}" + (
            f" and {len(others) - 3} more" if len(others) > 3 else ""
        )
    if left:
        yield f"{len(left)} tensors are not in the file, among them {', '.join(left[:3])}"

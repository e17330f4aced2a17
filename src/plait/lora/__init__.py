"""LoRA adapters made of models, merged with each other, and put into models.

`extract` finds the adapter between two models; `merge` makes one adapter of several; both write through `write`, one module after
the other. `limit` says how many ranks are worth keeping, `modules` what of a model an adapter can hold.
"""

from plait.lora.extract import Choice, Extracted, extract
from plait.lora.limit import Limit

__all__ = ["Choice", "Extracted", "Limit", "extract"]

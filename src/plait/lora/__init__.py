"""LoRA adapters made of models, merged with each other, and put into models.

`extract` finds the adapter between two models; `merge` makes one adapter of several, in the space that they share (`core`); both
write through `write`, one module after the other. `limit` says how many ranks are worth keeping, `modules` what of a model an
adapter can hold, `report` what is left out. An adapter in a model is a merge like any other.
"""

from plait.lora.extract import Choice, Extracted, extract
from plait.lora.limit import Limit
from plait.lora.merge import BaseNeededError, Merged, merge

__all__ = ["BaseNeededError", "Choice", "Extracted", "Limit", "Merged", "extract", "merge"]

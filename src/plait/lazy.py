"""PyTorch and numpy, loaded when they are first used: most merges do without one or both, and start in a moment.

`from plait.lazy import Tensor, np, torch` stands where `import torch` and `import numpy as np` would. `Tensor` is for
annotations and `isinstance`.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

__all__ = ["Tensor", "np", "torch"]

if TYPE_CHECKING:
    import numpy as np
    import torch as torch
    from torch import Tensor as Tensor
else:

    class _Torch:
        def __getattr__(self, name: str) -> Any:
            import torch

            return getattr(torch, name)

    class _Numpy:
        def __getattr__(self, name: str) -> Any:
            import numpy

            return getattr(numpy, name)

    class _AnyTensor(type):
        def __instancecheck__(cls, instance: object) -> bool:
            loaded = sys.modules.get("torch")
            return loaded is not None and isinstance(instance, loaded.Tensor)

    class Tensor(metaclass=_AnyTensor):
        """torch.Tensor, without loading it."""

    torch, np = _Torch(), _Numpy()

"""PyTorch, loaded when it is first used: planning, copying and most methods on the CPU do without it and start in a moment.

`from plait.lazy import Tensor, torch` stands where `import torch` would. `Tensor` is for annotations and `isinstance`.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch as torch
    from torch import Tensor as Tensor
else:

    class _Torch:
        def __getattr__(self, name: str) -> Any:
            import torch

            return getattr(torch, name)

    class _AnyTensor(type):
        def __instancecheck__(cls, instance: object) -> bool:
            loaded = sys.modules.get("torch")
            return loaded is not None and isinstance(instance, loaded.Tensor)

    class Tensor(metaclass=_AnyTensor):
        """torch.Tensor, without loading it."""

    torch = _Torch()

"""LoRA adapters in PEFT's format: a folder with adapter_config.json and adapter_model.safetensors.

`open_adapter` reads one, `Adapted` is a base with it applied. Reference: https://arxiv.org/abs/2106.09685; format:
https://huggingface.co/docs/peft/developer_guides/checkpoint
"""

from plait.checkpoint.adapter.files import Adapter, Factors, open_adapter
from plait.checkpoint.adapter.view import Adapted

__all__ = ["Adapted", "Adapter", "Factors", "open_adapter"]

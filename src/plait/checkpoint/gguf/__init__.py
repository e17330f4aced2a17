"""GGUF files of llama.cpp as checkpoints, with the names and the config that transformers has for the model.

Needs the `gguf` package. Reference: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from plait.checkpoint.gguf.file import open_gguf

__all__ = ["open_gguf"]

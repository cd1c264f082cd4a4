"""Stored bytes in, float32 out: importing this package registers the dequantizer of every scheme that Octavo reads."""

from octavo.quant import gguf, gguf_k, plain
from octavo.quant.scheme import DEQUANTIZERS, dequantize, dequantizer

__all__ = ["DEQUANTIZERS", "dequantize", "dequantizer", "gguf", "gguf_k", "plain"]

"""Stored bytes in, float32 out: importing this package registers the dequantizer of every scheme that Octavo reads."""

from octavo.quant import fp8, gguf, gguf_k, int4, int8, plain
from octavo.quant.matrix import MATRICES, as_plain, dequantize_matrix
from octavo.quant.scheme import DEQUANTIZERS, dequantize, dequantizer

__all__ = [
    "DEQUANTIZERS",
    "MATRICES",
    "as_plain",
    "dequantize",
    "dequantize_matrix",
    "dequantizer",
    "fp8",
    "gguf",
    "gguf_k",
    "int4",
    "int8",
    "plain",
]

"""Matrices that stay quantized on the device: one file a form."""

from octavo.backends.torch.quant.fp8 import join_fp8, quantize_fp8
from octavo.backends.torch.quant.matrix import Join, Matrix, Quantize, QuantizedMatrix

__all__ = ["JOINS", "ONLINE", "Join", "Matrix", "Quantize", "QuantizedMatrix"]

JOINS: dict[str, Join] = {"fp8": join_fp8}
"""MatrixScheme.layout -> from stored matrices to one on the device."""

ONLINE: dict[str, Quantize] = {"fp8": quantize_fp8}
"""ModelConfig.quantization -> what makes it of a plain matrix."""

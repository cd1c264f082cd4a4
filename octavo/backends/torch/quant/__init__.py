"""Matrices that stay quantized on the device: one file a form."""

from collections.abc import Callable

from torch import Tensor

from octavo.backends.torch.quant.fp8 import quantize_fp8
from octavo.backends.torch.quant.int4 import join_int4, quantize_int4
from octavo.backends.torch.quant.matrix import Join, Matrix, Quantize, QuantizedMatrix
from octavo.backends.torch.quant.scaled import join_scaled, quantize_int8
from octavo.base.types.tensor import MatrixScheme
from octavo.quant.int4 import LAYOUTS as INT4
from octavo.quant.int8 import LAYOUTS as INT8

__all__ = ["JOINS", "ONLINE", "REQUANTIZE", "Join", "Matrix", "Quantize", "QuantizedMatrix"]

JOINS: dict[str, Join] = {
    **dict.fromkeys(("fp8", *INT8), join_scaled),
    **dict.fromkeys(INT4, join_int4),
}
"""MatrixScheme.layout -> from stored matrices to one on the device."""

ONLINE: dict[str, Quantize] = {"fp8": quantize_fp8}
"""ModelConfig.quantization -> what makes it of a plain matrix."""

REQUANTIZE: dict[str, Callable[[Tensor, MatrixScheme], QuantizedMatrix]] = {
    "fp8": quantize_fp8,
    **dict.fromkeys(INT8, quantize_int8),
    **dict.fromkeys(INT4, quantize_int4),
}
"""MatrixScheme.layout -> what makes a matrix of random numbers such a one."""

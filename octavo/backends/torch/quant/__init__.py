"""Matrices that stay quantized on the device: one file a form."""

from collections.abc import Callable

from torch import Tensor

from octavo.backends.torch.quant.fp8 import join_fp8, quantize_fp8
from octavo.backends.torch.quant.int4 import join_int4, quantize_int4
from octavo.backends.torch.quant.matrix import Join, Matrix, Quantize, QuantizedMatrix
from octavo.base.types.tensor import MatrixScheme
from octavo.quant.int4 import LAYOUTS

__all__ = ["JOINS", "ONLINE", "REQUANTIZE", "Join", "Matrix", "Quantize", "QuantizedMatrix"]

JOINS: dict[str, Join] = {"fp8": join_fp8, **dict.fromkeys(LAYOUTS, join_int4)}
"""MatrixScheme.layout -> from stored matrices to one on the device."""

ONLINE: dict[str, Quantize] = {"fp8": quantize_fp8}
"""ModelConfig.quantization -> what makes it of a plain matrix."""

REQUANTIZE: dict[str, Callable[[Tensor, MatrixScheme], QuantizedMatrix]] = {
    "fp8": quantize_fp8,
    **dict.fromkeys(LAYOUTS, quantize_int4),
}
"""MatrixScheme.layout -> what makes a matrix of random numbers such a one."""

"""From a matrix in parts (QuantizedTensor) to float32: one function a layout, found by the layout's name."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from octavo.base.errors import UnsupportedError
from octavo.base.types.tensor import SCHEMES, QuantizedTensor, StoredTensor

MatrixDequantizer = Callable[[QuantizedTensor], np.ndarray]
"""float32 of tensor.shape, newly made."""

MATRICES: dict[str, MatrixDequantizer] = {}


def matrix_dequantizer(layout: str) -> Callable[[MatrixDequantizer], MatrixDequantizer]:
    """Register the function for matrices whose MatrixScheme has this layout."""

    def register(function: MatrixDequantizer) -> MatrixDequantizer:
        MATRICES[layout] = function
        return function

    return register


def dequantize_matrix(tensor: QuantizedTensor) -> np.ndarray:
    """float32 [out, in], newly made. Raises UnsupportedError for a layout without a dequantizer."""
    if tensor.scheme.layout not in MATRICES:
        raise UnsupportedError(f"tensor {tensor.name} is stored as {tensor.scheme.layout}, which has no dequantizer")
    return MATRICES[tensor.scheme.layout](tensor)


def as_plain(tensor: QuantizedTensor, scheme: str) -> StoredTensor:
    """The matrix in memory of its own, as F32 or rounded to BF16 (ties to even)."""
    values = dequantize_matrix(tensor)
    if scheme == "BF16":
        bits = values.view(np.uint32)
        odd = (bits >> 16) & 1
        rounded = ((bits + 0x7FFF + odd) >> 16).astype(np.uint16)
        values = np.where(np.isnan(values), np.uint16(0x7FC0), rounded)
    return StoredTensor(tensor.name, SCHEMES[scheme], tensor.shape, memoryview(values.tobytes()))

"""Some rows of a stored matrix in, a classifier's matrix made of them out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from octavo.base.errors import UnsupportedError
from octavo.base.types.tensor import SCHEMES, QuantizedTensor, StoredTensor
from octavo.quant.scheme import dequantize


def take_rows(matrix: StoredTensor | QuantizedTensor, rows: Sequence[int], *, difference: bool) -> StoredTensor:
    """float32 [rows, width]; with difference, of two rows, the second less the first, [1, width]."""
    if isinstance(matrix, QuantizedTensor):
        raise UnsupportedError(
            f"tensor {matrix.name} is quantized in parts, and a classifier cannot be made of its rows; take a model "
            "whose output layer is not quantized",
            param="hf_overrides",
        )
    height, width = matrix.shape
    size, data = matrix.nbytes // height, matrix.data.cast("B")
    taken = np.concatenate(
        [
            dequantize(StoredTensor(matrix.name, matrix.scheme, (1, width), data[row * size : (row + 1) * size]))
            for row in rows
        ]
    )
    if difference:
        taken = taken[1:] - taken[:1]
    return StoredTensor(matrix.name, SCHEMES["F32"], taken.shape, memoryview(taken.astype("<f4").tobytes()))

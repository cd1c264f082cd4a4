"""From stored bytes to numbers: one dequantizer a scheme, found by the scheme's name.

A format file (quant/<format>.py) registers its functions with `@dequantizer("Q4_0")`; `dequantize` runs them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from octavo.base.errors import UnsupportedError
from octavo.base.types.tensor import SCHEMES, StoredTensor

Dequantizer = Callable[[np.ndarray], np.ndarray]
"""uint8 [groups, group_bytes] -> float32 [groups, group]"""

DEQUANTIZERS: dict[str, Dequantizer] = {}


def dequantizer(name: str) -> Callable[[Dequantizer], Dequantizer]:
    """Register the function for a scheme of base.types.tensor.SCHEMES."""
    if name not in SCHEMES:
        raise KeyError(f"{name} is not listed in base.types.tensor.SCHEMES")

    def register(function: Dequantizer) -> Dequantizer:
        DEQUANTIZERS[name] = function
        return function

    return register


def dequantize(tensor: StoredTensor) -> np.ndarray:
    """float32 of tensor.shape, newly made. Raises UnsupportedError for a scheme without a dequantizer."""
    scheme = tensor.scheme
    if scheme.name not in DEQUANTIZERS:
        raise UnsupportedError(f"tensor {tensor.name} is stored as {scheme.name}, which has no dequantizer")
    raw = np.frombuffer(tensor.data, np.uint8).reshape(-1, scheme.group_bytes)
    return DEQUANTIZERS[scheme.name](raw).reshape(tensor.shape)

"""How block formats are written down: a packed record dtype and one function from records to float32, run in pieces."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from octavo.base.types.tensor import SCHEMES
from octavo.quant.scheme import dequantizer

Decoder = Callable[[np.ndarray, np.ndarray], None]
"""(records [n], out float32 [n, group]): fills out."""

# Elements of one piece: its float32 output and temporaries stay in a core's second-level cache.
PIECE = 64 * 1024


def block_format(name: str, layout: np.dtype) -> Callable[[Decoder], Decoder]:
    """Register a decoder for a scheme whose groups are records of `layout` (little-endian, packed).

    Raises ValueError if the layout's size is not the scheme's group_bytes.
    """
    scheme = SCHEMES[name]
    if layout.itemsize != scheme.group_bytes:
        raise ValueError(f"{name}: layout has {layout.itemsize} bytes, the scheme {scheme.group_bytes}")
    step = PIECE // scheme.group

    def register(decode: Decoder) -> Decoder:
        def run(raw: np.ndarray) -> np.ndarray:
            records = np.ascontiguousarray(raw).reshape(-1).view(layout)
            out = np.empty((len(records), scheme.group), np.float32)
            with np.errstate(all="ignore"):  # a NaN or infinite scale gives NaN weights, not a warning
                for start in range(0, len(records), step):
                    decode(records[start : start + step], out[start : start + step])
            return out

        dequantizer(name)(run)
        return decode

    return register


def scale(field: np.ndarray) -> np.ndarray:
    """float16 [n] of a record -> float32 [n, 1]."""
    return field.astype(np.float32)[:, None]

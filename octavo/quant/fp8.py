"""FP8: E4M3 elements times the float scale of their group.

E4M3 ("fn"): a sign, four bits of exponent with bias 7, three of mantissa; no infinities, 0x7F and 0xFF are NaN.
"""

from __future__ import annotations

import numpy as np

from octavo.base.types.tensor import QuantizedTensor
from octavo.quant.matrix import matrix_dequantizer
from octavo.quant.scheme import dequantize


def _values() -> np.ndarray:
    """float32 [256]: subnormals are mantissa / 8 * 2^-6, the others (1 + mantissa / 8) * 2^(exponent - 7)."""
    code = np.arange(256)
    exponent, mantissa = (code >> 3) & 15, code & 7
    size = np.where(exponent == 0, mantissa * 2.0**-9, (8 + mantissa) * 2.0 ** (exponent - 10.0))
    size[(code & 0x7F) == 0x7F] = np.nan
    return np.where(code >> 7, -size, size).astype(np.float32)


E4M3 = _values()


@matrix_dequantizer("fp8")
def _fp8(tensor: QuantizedTensor) -> np.ndarray:
    """weight * scale, the scale of scheme.scale_shape spread over its group."""
    weight, scale = tensor.parts["weight"], dequantize(tensor.parts["scale"])
    out = E4M3[np.frombuffer(weight.data, np.uint8)].reshape(tensor.shape)
    for axis, group in enumerate(tensor.scheme.group):
        if group > 1:
            scale = scale.repeat(group, axis)
    out *= scale[: tensor.shape[0], : tensor.shape[1]]
    return out

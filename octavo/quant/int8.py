"""8-bit integers times a scale: int-quantized and pack-quantized of compressed-tensors, and GPTQ, as stored.

An element is q * scale, q of -128 to 127, with a scale a matrix, a row, or a group of columns of a row.

int8: weight [out, in]; weight_scale [out, groups].
int8_packed: weight_packed [out, in / 4], four bytes q + 128 in a word, from its lowest up; weight_scale as int8's.
int8_gptq, int8_gptq_v2: qweight [in / 4, out], a word has four inputs, q + 128; scales [groups, out]. Zeros, which are
    stored beside them, are all the middle.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from octavo.base.types.tensor import QuantizedTensor
from octavo.quant.matrix import matrix_dequantizer
from octavo.quant.scheme import dequantize

LAYOUTS = ("int8", "int8_packed", "int8_gptq", "int8_gptq_v2")

TURNED = ("int8_gptq", "int8_gptq_v2")
"""Those whose scales are [groups, out]."""

Array = Any
"""NumPy's, or what has the same operators (a torch.Tensor)."""


def elements_of(layout: str) -> str:
    """The part that has a matrix's elements."""
    return "weight" if layout == "int8" else "words"


def unpack_int8(layout: str, raw: Array, out: int, width: int) -> Array:
    """uint8 [bytes] of the elements' part -> uint8 [out, in = width], whose bits are those of q."""
    if layout == "int8":
        return raw.reshape(out, width)
    if layout == "int8_packed":
        return raw.reshape(out, width) ^ 128
    return raw.reshape(width // 4, out, 4).swapaxes(0, 1).reshape(out, width) ^ 128


def int8_scale(tensor: QuantizedTensor) -> np.ndarray:
    """float32 [out or 1, groups]."""
    scale = dequantize(tensor.parts["scale"])
    return scale.T if tensor.scheme.layout in TURNED else scale


def int8_elements(tensor: QuantizedTensor) -> np.ndarray:
    """q: int8 [out, in]."""
    layout, (out, width) = tensor.scheme.layout, tensor.shape
    raw = np.frombuffer(tensor.parts[elements_of(layout)].data, np.uint8)
    q: np.ndarray = unpack_int8(layout, raw, out, width).view(np.int8)
    return q


def _int8(tensor: QuantizedTensor) -> np.ndarray:
    scale, (out, width) = int8_scale(tensor), tensor.shape
    values: np.ndarray = int8_elements(tensor).astype(np.float32).reshape(out, scale.shape[1], -1)
    values *= scale[:, :, None]
    return values.reshape(out, width)


for _layout in LAYOUTS:
    matrix_dequantizer(_layout)(_int8)

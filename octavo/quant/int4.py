"""4-bit integers, eight in a word: GPTQ, AWQ (version gemm) and compressed-tensors' pack-quantized, as stored.

An element is (q - zero) * scale, q of 0 to 15, with a scale and a zero for each group of columns of a row.

gptq, gptq_v2: qweight [in / 8, out], a word has the inputs 8 i to 8 i + 7 from its lowest bits up; qzeros [groups,
    out / 8], outputs alike, in gptq less 1; scales [groups, out].
awq: qweight [in, out / 8], a word has the outputs 8 i + (0, 2, 4, 6, 1, 3, 5, 7); qzeros and scales as gptq_v2's, but
    for that order.
packed: weight_packed [out, in / 8]; weight_zero_point [out / 8, groups]; weight_scale [out, groups]; in order.
Columns are grouped as they come, or as g_idx [in] says, the group of each. Zeros that are not stored are 8.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from octavo.base.types.tensor import QuantizedTensor
from octavo.quant.matrix import matrix_dequantizer
from octavo.quant.scheme import dequantize

LAYOUTS = ("gptq", "gptq_v2", "awq", "packed")
SYMMETRIC = 8
"""The zero where none is stored."""

_WORD = 8
"""Elements of an int32."""
_IN_ORDER = tuple(range(0, 32, 4))
_AWQ = (0, 16, 4, 20, 8, 24, 12, 28)
"""How far the nibble of output 0, 1, .. 7 of a word stands to the left."""

Array = Any
"""NumPy's, or what has the same operators (a torch.Tensor)."""

Stack = Callable[[list[Array], int], Array]
"""An array library's function of that name."""


class Int4Numbers(NamedTuple):
    """q: [out, in] of 0..15.  scale: [out, groups].  zero: [out, groups], 0 to 16; None: 8 throughout."""

    q: Array
    scale: Array
    zero: Array | None


def unpack_int4(layout: str, parts: Mapping[str, Array], out: int, stack: Stack) -> Any:
    """Int4Numbers of a matrix of `out` rows; integers are int32, the scale of its own type.

    parts: words, scale and, if there are any, zeros, of one array library; stack: its function of that name.
    """
    words, scale, zeros = parts["words"], parts["scale"], parts.get("zeros")
    zero = None if zeros is None else unpack_zeros(layout, zeros, out, stack)
    if layout == "packed":
        return Int4Numbers(_spread(words, 1, _IN_ORDER, stack), scale, zero)
    q = _spread(words, 1, _AWQ, stack) if layout == "awq" else _spread(words, 0, _IN_ORDER, stack)
    return Int4Numbers(q.T, scale.T, zero)


def unpack_zeros(layout: str, zeros: Array, out: int, stack: Stack) -> Array:
    """int32 [out, groups] of 0 to 16."""
    if layout == "packed":
        return _spread(zeros, 0, _IN_ORDER, stack)[:out]
    shifts = _AWQ if layout == "awq" else _IN_ORDER
    return _spread(zeros, 1, shifts, stack)[:, :out].T + (layout == "gptq")


def unpack_columns(words: np.ndarray) -> np.ndarray:
    """awq's qweight [in, out / 8] -> uint8 [out, in]."""
    width, across = words.shape
    q = np.empty((across, _WORD, width), np.uint8)
    for at, shift in enumerate(_AWQ):
        q[:, at] = (words >> shift).astype(np.uint8).T & 15
    return q.reshape(across * _WORD, width)


def _spread(words: Array, axis: int, shifts: tuple[int, ...], stack: Stack) -> Array:
    shape = list(words.shape)
    shape[axis] *= _WORD
    return stack([(words >> shift) & 15 for shift in shifts], axis + 1).reshape(shape)


def _int4(tensor: QuantizedTensor) -> np.ndarray:
    parts: dict[str, np.ndarray] = {
        name: dequantize(part) if name == "scale" else np.frombuffer(part.data, "<i4").reshape(part.shape)
        for name, part in tensor.parts.items()
    }
    out, width = tensor.shape
    numbers = unpack_int4(tensor.scheme.layout, parts, out, np.stack)
    groups = parts.get("g_idx")
    if groups is None:
        groups = np.arange(width) // (width // numbers.scale.shape[1])
    zero = SYMMETRIC if numbers.zero is None else numbers.zero[:, groups]
    values: np.ndarray = (numbers.q - zero).astype(np.float32)
    values *= numbers.scale[:, groups]
    return np.ascontiguousarray(values)


for _layout in LAYOUTS:
    matrix_dequantizer(_layout)(_int4)

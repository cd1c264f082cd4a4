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

_IN_ORDER = tuple(range(0, 32, 4))
_AWQ = (0, 16, 4, 20, 8, 24, 12, 28)
"""How far the nibble of output 0, 1, .. 7 of a word stands to the left."""

Array = Any
"""NumPy's, or what has the same operators (a torch.Tensor)."""


class Int4Numbers(NamedTuple):
    """q: [out, in] of 0..15.  scale: [out, groups].  zero: [out, groups], 0 to 16; None: 8 throughout."""

    q: Array
    scale: Array
    zero: Array | None


def unpack_int4(layout: str, parts: Mapping[str, Array], out: int, stack: Callable[[list[Array], int], Array]) -> Any:
    """Int4Numbers of a matrix of `out` rows; integers are int32, the scale of its own type.

    parts: words, scale and, if there are any, zeros, of one array library; stack: its function of that name.
    """

    def spread(words: Array, axis: int, shifts: tuple[int, ...] = _IN_ORDER) -> Array:
        shape = list(words.shape)
        shape[axis] *= 8
        return stack([(words >> shift) & 15 for shift in shifts], axis + 1).reshape(shape)

    words, scale, zeros = parts["words"], parts["scale"], parts.get("zeros")
    if layout == "packed":
        return Int4Numbers(spread(words, 1), scale, None if zeros is None else spread(zeros, 0)[:out])
    shifts = _AWQ if layout == "awq" else _IN_ORDER
    q = spread(words, 1 if layout == "awq" else 0, shifts)
    zero = None
    if zeros is not None:
        zero = spread(zeros, 1, shifts)[:, :out].T + (layout == "gptq")
    return Int4Numbers(q.T, scale.T, zero)


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

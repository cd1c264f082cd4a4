"""A matrix in parts (QuantizedTensor) in; its numbers as a format of blocks, which the CPU's kernels multiply, out.

Blocks of 32 elements have a scale in float16, and in Q4_1 what is added to all (ggml-common.h of llama.cpp): an
integer q stands for d * q in Q8_0, d * (q - 8) in Q4_0 and d * q + m in Q4_1. Larger groups repeat theirs.
"""

from __future__ import annotations

import numpy as np

from octavo.base.types.tensor import SCHEMES, QuantizedTensor, StoredTensor
from octavo.quant.int4 import LAYOUTS as INT4
from octavo.quant.int4 import SYMMETRIC, unpack_columns, unpack_zeros
from octavo.quant.int8 import LAYOUTS as INT8
from octavo.quant.int8 import int8_elements, int8_scale
from octavo.quant.matrix import as_plain
from octavo.quant.scheme import dequantize

AS_STORED_VERSION = b"1"
"""Counts the changes of what as_stored makes: files keep it."""

BLOCK = 32
_MOST_MOVED = 2.0**-11
"""By how much of a row's largest scale float16 may move another: as much as it moves the largest."""
_TOO_LARGE = 4096.0
"""Scales of which 16 are more than float16 has."""


def block_scheme(tensor: QuantizedTensor) -> str | None:
    """Q8_0 of 8-bit integers; of 4-bit ones Q4_0 where every zero is the middle, else Q4_1; None where no format of
    blocks has these numbers.

    Q8_0 and Q4_0 have them as they are where scales are float16. In Q4_1 m is rounded, by 0.4 % of d at most.
    """
    layout = tensor.scheme.layout
    if layout not in (*INT4, *INT8) or "g_idx" in tensor.parts or tensor.shape[1] % BLOCK:
        return None
    scale, zero = (int8_scale(tensor), None) if layout in INT8 else _scales(tensor)
    largest = np.abs(scale).max(1, keepdims=True)
    if not (largest < _TOO_LARGE).all():  # NaN is not, either
        return None
    moved = np.abs(scale.astype(np.float16).astype(np.float32) - scale)
    if (moved > _MOST_MOVED * largest).any():
        return None
    if layout in INT8:
        return "Q8_0"
    return "Q4_0" if zero is None else "Q4_1"


def as_stored(tensor: QuantizedTensor, scheme: str) -> StoredTensor:
    """The matrix in memory of its own: as block_scheme says, or plain, F32 or BF16."""
    (out, width), blocks = tensor.shape, tensor.shape[1] // BLOCK
    if scheme == "Q8_0":
        head = int8_scale(tensor)[..., None]
        elements = int8_elements(tensor).reshape(out, blocks, BLOCK).view(np.uint8)
    elif scheme in ("Q4_0", "Q4_1"):
        scale, zero = _scales(tensor)
        head = scale[..., None] if zero is None else np.stack((scale, -scale * zero), 2)
        elements = _nibbles(tensor)
    else:
        return as_plain(tensor, scheme)
    heads = head.astype(np.float16).repeat(blocks // head.shape[1], 1).repeat(out // len(head), 0)
    data: np.ndarray = np.concatenate((heads.view(np.uint8), elements), 2)
    return StoredTensor(tensor.name, SCHEMES[scheme], (out, width), data.reshape(-1).data)


def _scales(tensor: QuantizedTensor) -> tuple[np.ndarray, np.ndarray | None]:
    """Scales and zeros [out, groups], float32; no zeros where all are the middle."""
    layout, out = tensor.scheme.layout, tensor.shape[0]
    scale = dequantize(tensor.parts["scale"])
    zero = None
    if "zeros" in tensor.parts:
        zero = unpack_zeros(layout, _words(tensor, "zeros"), out, np.stack)
        if (zero == SYMMETRIC).all():
            zero = None
    return np.ascontiguousarray(scale if layout == "packed" else scale.T), zero


def _words(tensor: QuantizedTensor, part: str) -> np.ndarray:
    stored = tensor.parts[part]
    return np.frombuffer(stored.data, "<i4").reshape(stored.shape)


def _nibbles(tensor: QuantizedTensor) -> np.ndarray:
    """uint8 [out, blocks, 16]: byte j has element j of its block in its lower half and j + 16 in its upper one."""
    layout, (out, width) = tensor.scheme.layout, tensor.shape
    words = _words(tensor, "words")
    if layout == "awq":
        halves = unpack_columns(words).reshape(out, width // BLOCK, 2, 16)
        halves[:, :, 0] |= halves[:, :, 1] << 4
        return halves[:, :, 0]
    rows = words if layout == "packed" else np.ascontiguousarray(words.T)
    spread = rows.view("<u4").reshape(out, width // BLOCK, 4).astype("<u8")
    for shift, mask in ((16, 0x0000FFFF0000FFFF), (8, 0x00FF00FF00FF00FF), (4, 0x0F0F0F0F0F0F0F0F)):
        spread |= spread << np.uint64(shift)
        spread &= np.uint64(mask)  # a word's nibbles, each in a byte
    spread[..., :2] |= spread[..., 2:] << np.uint64(4)
    return np.ascontiguousarray(spread[..., :2]).view(np.uint8)

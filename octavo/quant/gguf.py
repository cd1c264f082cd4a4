"""GGUF's formats with groups of 32: Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 IQ4_NL, as ggml-common.h lays them out.

d is the group's scale and m its minimum. Element j < 16 is the low half of byte j of `q`, element j + 16 its high half.
"""

from __future__ import annotations

import numpy as np

from octavo.quant.blocks import block_format, scale

_D, _M = ("d", "<f2"), ("m", "<f2")
_NIBBLES = ("q", "u1", (16,))
_FIFTH = ("h", "u1", (4,))

# The 16 levels of IQ4_NL (kvalues_iq4nl), denser around zero.
IQ4_NL_LEVELS = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8)


def _nibbles(packed: np.ndarray) -> np.ndarray:
    """uint8 [n, 16] -> uint8 [n, 32], all low halves first."""
    out = np.empty((len(packed), 32), np.uint8)
    np.bitwise_and(packed, 15, out=out[:, :16])
    np.right_shift(packed, 4, out=out[:, 16:])
    return out


def _five_bits(records: np.ndarray) -> np.ndarray:
    """uint8 [n, 32] of 0..31: bit j of the little-endian word `h` is bit 4 of element j."""
    high = np.unpackbits(records["h"], axis=1, bitorder="little")
    high <<= 4
    high |= _nibbles(records["q"])
    return high


@block_format("Q4_0", np.dtype([_D, _NIBBLES]))
def _q4_0(records: np.ndarray, out: np.ndarray) -> None:
    """d * (q - 8)"""
    out[:] = _nibbles(records["q"])
    out -= 8
    out *= scale(records["d"])


@block_format("Q4_1", np.dtype([_D, _M, _NIBBLES]))
def _q4_1(records: np.ndarray, out: np.ndarray) -> None:
    """d * q + m"""
    out[:] = _nibbles(records["q"])
    out *= scale(records["d"])
    out += scale(records["m"])


@block_format("Q5_0", np.dtype([_D, _FIFTH, _NIBBLES]))
def _q5_0(records: np.ndarray, out: np.ndarray) -> None:
    """d * (q - 16)"""
    out[:] = _five_bits(records)
    out -= 16
    out *= scale(records["d"])


@block_format("Q5_1", np.dtype([_D, _M, _FIFTH, _NIBBLES]))
def _q5_1(records: np.ndarray, out: np.ndarray) -> None:
    """d * q + m"""
    out[:] = _five_bits(records)
    out *= scale(records["d"])
    out += scale(records["m"])


@block_format("Q8_0", np.dtype([_D, ("q", "i1", (32,))]))
def _q8_0(records: np.ndarray, out: np.ndarray) -> None:
    """d * q"""
    out[:] = records["q"]
    out *= scale(records["d"])


@block_format("IQ4_NL", np.dtype([_D, _NIBBLES]))
def _iq4_nl(records: np.ndarray, out: np.ndarray) -> None:
    """d * level[q]"""
    out[:] = IQ4_NL_LEVELS[_nibbles(records["q"])]
    out *= scale(records["d"])

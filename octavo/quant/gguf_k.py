"""GGUF's k-quants Q2_K Q3_K Q4_K Q5_K Q6_K: groups of 256 in sub-groups of 16 or 32, as ggml-common.h lays them out.

A sub-group's scale is an integer times the group's float16 d; its minimum (Q2_K, Q4_K, Q5_K) an integer times dmin.
"""

from __future__ import annotations

import numpy as np

from octavo.quant.blocks import block_format, scale

_D, _DMIN = ("d", "<f2"), ("dmin", "<f2")
_PAIRS = np.array([0, 2, 4, 6], np.uint8)[:, None]  # shifts of the four 2-bit values in a byte


def _two_bits(packed: np.ndarray) -> np.ndarray:
    """uint8 [n, 64] -> [n, 256] of 0..3: 32 bytes hold 128 elements, 32 in each pair of bits, lowest pair first."""
    return ((packed.reshape(-1, 2, 1, 32) >> _PAIRS) & 3).reshape(-1, 256)


def _halves(packed: np.ndarray, width: int) -> np.ndarray:
    """uint8 [n, 128] -> [n, 256] of 0..15: `width` low halves, then the same bytes' high halves, and so on."""
    packed = packed.reshape(-1, 128 // width, width)
    return np.stack([packed & 15, packed >> 4], axis=2).reshape(-1, 256)


def _six_bit_scales(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Q4_K's and Q5_K's 12 bytes -> 8 scales and 8 minima of 0..63, uint8 [n, 8] each.

    bytes 0-3: scales 0-3 in the low six bits; 4-7: minima 0-3; 8-11: low four bits of scales 4-7 (low half) and of
    minima 4-7 (high half), whose upper two bits are the top bits of bytes 0-3 and 4-7.
    """
    first, second, rest = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate([first & 63, (rest & 15) | ((first >> 6) << 4)], axis=1)
    minima = np.concatenate([second & 63, (rest >> 4) | ((second >> 6) << 4)], axis=1)
    return scales, minima


def _apply(out: np.ndarray, scales: np.ndarray, minima: np.ndarray | None = None) -> None:
    """out [n, 256] = out * scales - minima, with one scale and minimum (float32 [n, k]) for every 256 / k elements."""
    parts = out.reshape(len(out), scales.shape[1], -1)
    parts *= scales[:, :, None]
    if minima is not None:
        parts -= minima[:, :, None]


@block_format("Q2_K", np.dtype([("scales", "u1", (16,)), ("q", "u1", (64,)), _D, _DMIN]))
def _q2_k(records: np.ndarray, out: np.ndarray) -> None:
    """16 sub-groups of 16: d * (scale & 15) * q - dmin * (scale >> 4)"""
    out[:] = _two_bits(records["q"])
    packed = records["scales"]
    _apply(out, scale(records["d"]) * (packed & 15), scale(records["dmin"]) * (packed >> 4))


@block_format("Q3_K", np.dtype([("high", "u1", (32,)), ("q", "u1", (64,)), ("scales", "u1", (12,)), _D]))
def _q3_k(records: np.ndarray, out: np.ndarray) -> None:
    """16 sub-groups of 16: d * (scale - 32) * (q - 4), bit 2 of q from bit k of `high` for the k-th 32 elements.

    scales: low four bits in bytes 0-7 (scales 0-7 in the low halves, 8-15 in the high), upper two in bytes 8-11,
    four to a byte: scales j, j + 4, j + 8, j + 12 in byte 8 + j.
    """
    bits = np.arange(8, dtype=np.uint8)[:, None]
    high = (((records["high"][:, None, :] >> bits) & 1) << 2).reshape(-1, 256)
    high |= _two_bits(records["q"])
    out[:] = high
    out -= 4
    packed = records["scales"]
    low = np.concatenate([packed[:, :8] & 15, packed[:, :8] >> 4], axis=1)
    upper = ((packed[:, None, 8:] >> _PAIRS) & 3).reshape(-1, 16) << 4
    _apply(out, scale(records["d"]) * ((low | upper).astype(np.float32) - 32))


@block_format("Q4_K", np.dtype([_D, _DMIN, ("scales", "u1", (12,)), ("q", "u1", (128,))]))
def _q4_k(records: np.ndarray, out: np.ndarray) -> None:
    """8 sub-groups of 32: d * scale * q - dmin * minimum"""
    out[:] = _halves(records["q"], 32)
    scales, minima = _six_bit_scales(records["scales"])
    _apply(out, scale(records["d"]) * scales, scale(records["dmin"]) * minima)


@block_format("Q5_K", np.dtype([_D, _DMIN, ("scales", "u1", (12,)), ("high", "u1", (32,)), ("q", "u1", (128,))]))
def _q5_k(records: np.ndarray, out: np.ndarray) -> None:
    """As Q4_K, with bit 4 of q from bit k of `high` for the k-th sub-group."""
    bits = np.arange(8, dtype=np.uint8)[:, None]
    high = (((records["high"][:, None, :] >> bits) & 1) << 4).reshape(-1, 256)
    high |= _halves(records["q"], 32)
    out[:] = high
    scales, minima = _six_bit_scales(records["scales"])
    _apply(out, scale(records["d"]) * scales, scale(records["dmin"]) * minima)


@block_format("Q6_K", np.dtype([("q", "u1", (128,)), ("high", "u1", (64,)), ("scales", "i1", (16,)), _D]))
def _q6_k(records: np.ndarray, out: np.ndarray) -> None:
    """16 sub-groups of 16: d * scale * (q - 32); low four bits as 64-wide halves, upper two as in Q2_K."""
    upper = _two_bits(records["high"])
    upper <<= 4
    upper |= _halves(records["q"], 64)
    out[:] = upper
    out -= 32
    _apply(out, scale(records["d"]) * records["scales"])

"""Noise that depends on (seed, position, token) alone, as base/noise.py defines it, in wrapping int64 arithmetic."""

from __future__ import annotations

import torch
from torch import Tensor

from octavo.base.noise import GOLDEN, MIX, MIX_LAST

_SIGN = 1 << 64
_GOLDEN = GOLDEN - _SIGN
"""Above 2^63, as the factors of MIX are: written as the negative int64 of the same bits."""


def gumbel_noise(seeds: Tensor, positions: Tensor, vocab_size: int) -> Tensor:
    """seeds, positions: int64 [m] -> float32 [m, vocab] of the standard Gumbel distribution.

    argmax(logits + noise) is a draw from softmax(logits).
    """
    key = _mix(_mix(seeds + _GOLDEN) + positions * _GOLDEN)
    token = torch.arange(1, vocab_size + 1, device=seeds.device)
    bits = _mix(key[:, None] + token * _GOLDEN)
    # 52 bits to a float32 keep small numbers exact to 24 bits: the large values of the noise are not quantized
    uniform = (_shift(bits, 12).float() + 0.5) * 2.0**-52
    exponential = -torch.log1p(-uniform.clamp_(max=1 - 2.0**-24))
    return -torch.log(exponential)


def _mix(x: Tensor) -> Tensor:
    for shift, factor in MIX:
        x = (x ^ _shift(x, shift)) * (factor - _SIGN)
    return x ^ _shift(x, MIX_LAST)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)

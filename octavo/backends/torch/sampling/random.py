"""Noise that depends on (seed, position, token) alone: the same on every device, in every batch.

A counter-based generator: SplitMix64's finalizer (Steele, Lea, Flood 2014) over a key of seed and position plus the
token's number times the golden ratio, in wrapping int64 arithmetic.
"""

from __future__ import annotations

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX2 = 0x94D049BB133111EB - (1 << 64)


def gumbel_noise(seeds: Tensor, positions: Tensor, vocab_size: int) -> Tensor:
    """seeds, positions: int64 [m] -> float32 [m, vocab] of the standard Gumbel distribution.

    argmax(logits + noise) is a draw from softmax(logits).
    """
    key = _mix(_mix(seeds + _GOLDEN) + positions * _GOLDEN)
    token = torch.arange(1, vocab_size + 1, device=seeds.device)
    bits = _mix(key[:, None] + token * _GOLDEN)
    # 53 bits to a float32 keep small numbers exact to 24 bits: the large values of the noise are not quantized
    uniform = (_shift(bits, 11).float() + 0.5) * 2.0**-53
    exponential = -torch.log1p(-uniform.clamp_(max=1 - 2.0**-24))
    return -torch.log(exponential)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _MIX1
    x = (x ^ _shift(x, 27)) * _MIX2
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)

"""4-bit matrices for tests: numbers drawn, packed as Int4Matrix says, one element after the other, and in float64."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from octavo.backends.torch.quant.int4 import Int4Matrix


@dataclass(frozen=True)
class Case:
    """q: uint8 [n, k]; values: float64 [n, k], what the matrix means."""

    matrix: Int4Matrix
    q: torch.Tensor
    values: torch.Tensor


def draw(
    n: int, k: int, *, group: int, zeros: bool = False, scales: torch.dtype = torch.float16, device: str = "cpu"
) -> Case:
    """group: -1 for all of a row."""
    group = k if group == -1 else group
    q = torch.randint(0, 16, (n, k), dtype=torch.uint8)
    zero = torch.randint(0, 16, (k // group, n), dtype=torch.uint8) if zeros else None
    scale = (torch.rand(k // group, n) * 0.02 + 0.001).to(scales)
    by_weight = [t.T.double().repeat_interleave(group, 1) for t in (scale, 8 * torch.ones_like(scale))]
    less = by_weight[1] if zero is None else zero.T.double().repeat_interleave(group, 1)
    values = (q.double() - less) * by_weight[0]
    matrix = Int4Matrix(pack(q).to(device), scale.to(device), None if zero is None else zero.to(device))
    return Case(matrix, q, values.to(device))


def pack(q: torch.Tensor) -> torch.Tensor:
    """uint8 [n, k] of 0..15 -> Int4Matrix.words, by its definition."""
    n, k = q.shape
    chunks = q.long().view(n, k // 32, 32)
    words = torch.zeros(k // 32, n, 4, dtype=torch.int64)
    for p in range(4):
        for j in range(4):
            for h in range(2):
                words[:, :, j] |= chunks[:, :, 8 * p + 2 * j + h].T << 4 * (p + 4 * h)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).int()

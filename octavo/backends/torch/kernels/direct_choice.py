"""How kernels/direct_matmul.py computes a product of few tokens: its shape in, the sizes that were fastest out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import triton

from octavo.backends.torch.kernels.capability import capable

MAX_ROWS = 16
TILE = 16
"""Rows of weights that the matrix unit takes at once."""
CHUNK = 16
"""Bytes of a row that a thread loads at once; four threads have neighbours."""
_MULTIPROCESSORS = 132  # of an H100


@dataclass(frozen=True, slots=True)
class Direct:
    """How one product is computed.

    block_n: outputs a program makes of each token, TILE or twice that (gated: of twice as many weight rows).
    warps: of a program, between which K is dealt out, 64 bytes of a row at a time.
    stages: of these, that a warp has asked for ahead.
    registers: the most a thread takes, so that as many programs run at once as are meant to.
    """

    block_n: int
    warps: int
    stages: int
    registers: int
    form: ClassVar[str] = "direct"
    split: ClassVar[int] = 1


def choose_direct(m: int, n: int, k: int, *, bits: int, gated: bool) -> Direct | None:
    """For x [m, k] and a weight [n, k] of 4 or 8 bits an element; None where the kernel does not take the sizes or
    the GPU lacks its instruction.

    What follows was the fastest of about twenty, or within 5 % of it (14 % at most: 4096 x 4096 in 4 bits at 16
    tokens), on an H200 for the products of Llama-3.1-8B in 4 bits with groups of 128 and, as they are taken, in E4M3
    with scales by row, at 1, 8 and 16 tokens.
    """
    if not 1 <= m <= MAX_ROWS or k % (4 * CHUNK * 8 // bits) or not capable(8, 0):
        return None
    stages = 1 if bits == 4 else 2
    if gated:
        return Direct(TILE, 4, stages, 128)
    if n > 8192:
        return Direct(TILE if bits == 8 and m <= 8 else 2 * TILE, 4, stages, 128)
    tiles = triton.cdiv(n, TILE)
    if tiles <= 2 * _MULTIPROCESSORS:
        return Direct(TILE, _warps(16 if tiles <= _MULTIPROCESSORS else 8, k, bits), stages, 128)
    return Direct(TILE, _warps(8, k, bits), stages, 80) if m <= 8 else Direct(TILE, 4, stages, 128)


def _warps(most: int, k: int, bits: int) -> int:
    """So many that each has something to do."""
    while most > 1 and most * (4 * CHUNK * 8 // bits) > k:
        most //= 2
    return most

"""How kernels/skinny_matmul.py computes a product of few tokens: its shape in, the Variant that was fastest out."""

from __future__ import annotations

from dataclasses import dataclass, replace

import triton

MAX_ROWS = 64
NORM_ROWS = 1  # above this every program's own pass over x costs more than the launch it saves


@dataclass(frozen=True, slots=True)
class Variant:
    """How one product is computed.

    form "vector": weights go from memory through registers to float32 multiply-adds (for M <= 4; compiled for each M).
    form "dot": weights go through `stages` shared-memory buffers to the matrix unit, the tokens padded as by
    row_blocks.
    form "held": as "dot", of plain weights, without activation or swap. A program's K is one block of weights
    (block_k * split >= K), asked for while the kernel before is still at work.
    form "bytes": byte_matmul.py's, which is as "dot" with swap.
    block_n: outputs a program makes of each token (gated: of twice as many weight rows). split: programs that share an
    output's K.
    swap: weights are the tall side of the matrix unit's product (64 or more of them) rather than the tokens.
    """

    form: str
    block_n: int
    block_k: int
    warps: int
    stages: int = 1
    split: int = 1
    swap: bool = False


def row_blocks(m: int) -> tuple[int, int]:
    """Tokens of a program of form "dot", 16, 32, 64 or 128, and how many such blocks m tokens are."""
    block = min(max(16, triton.next_power_of_2(m)), 128)
    return block, triton.cdiv(m, block)


def choose(m: int, n: int, k: int, *, gated: bool = False) -> Variant | None:
    """The variant for x [m, k] and weight [n, k] in a 16-bit type; None: the library's product is at least as fast.

    gated: None also where the product without the activation (choose(..., gated=False)) and then the activation's own
    kernel are faster than the two in one.
    """
    if not 1 <= m <= MAX_ROWS or k % 8:
        return None
    if m <= 2:
        return _choose_vector(m, n, k)
    return _choose_gated(m, n) if gated else _choose_plain(m, n, k)


# What follows was measured on an H100 (132 multiprocessors, 50 MB L2, bfloat16, weights from memory, within a graph)
# for the four products of Qwen3-0.6B, Llama-3.2-1B and Llama-3.1-8B and their heads, at M = 1, 2, 4, 8, 16, 32, 48, 64
# (gated: to 32): each rule's variant is within 3 % of the best of about ten and of cuBLAS with the activation's own
# kernel; None stands where that is the best, or no variant gains 3 % over it. Above 64 rows no product alone does.
# _HELD was measured on an H200 within steps: of 0.6B's behind attention (2 to 5 %), of 1B's first two (3 to 5 %).
_WIDE = Variant("dot", 64, 128, 4, 4, swap=True)
_NARROW = Variant("dot", 32, 256, 4, 4)
_SHALLOW = Variant("dot", 32, 128, 4, 4)
_HELD = Variant("held", 32, 256, 4, split=8)
_MULTIPROCESSORS = 132


def _choose_vector(m: int, n: int, k: int) -> Variant:
    """All of K in one block gains up to 8 % where it is 2048 to 4096 wide; elsewhere blocks of 1024 are as good."""
    whole = triton.next_power_of_2(k)
    if not 1024 < whole <= 4096:
        return Variant("vector", 2, 1024, 4)
    one_row = n <= 4096 if m == 1 else n <= 1024 and k > 2048
    return Variant("vector", 1, whole, whole // 1024) if one_row else Variant("vector", 2, whole, 4)


def _choose_plain(m: int, n: int, k: int) -> Variant | None:
    if m <= 4 and n <= 2048 and k <= 4096:
        return Variant("vector", 2, 1024, 4)
    if m <= (32 if n <= 1024 else 16) and n < 4096 and 1024 < k <= 2048:
        return _HELD
    if m <= 16:
        return _NARROW if k <= 1024 and n < 6144 else split_k(_WIDE, n)
    if n <= 1024:
        return split_k(_SHALLOW, n)
    if m <= 32:
        if k <= 1024 and n < 6144:
            return _SHALLOW
        return split_k(_WIDE, n) if n >= 6144 or k >= 8192 else None
    if n >= 16384:
        return replace(_WIDE, stages=3)
    return _SHALLOW if m <= 48 and n >= 6144 and k > 1024 else None


def _choose_gated(m: int, n: int) -> Variant | None:
    """Beside the plain product the activation's own kernel takes 1.2 to 1.5 us."""
    if m <= 16:
        return _SHALLOW if n <= 16384 else None
    return Variant("dot", 64, 64, 4, 4, swap=True) if m <= 32 and 8192 <= n <= 16384 else None


def split_k(variant: Variant, n: int, *, programs: int = 1, blocks: int = 1) -> Variant:
    """The variant with K split as often as all programs still run at once, `programs` on a multiprocessor.

    blocks: of tokens, as of row_blocks.
    """
    tiles, split = blocks * triton.cdiv(n, variant.block_n), 1
    while split < 8 and tiles * split * 2 <= _MULTIPROCESSORS * programs:
        split *= 2
    return replace(variant, split=split)

"""The matrix unit by its registers: what a warp's 32 threads hold, one tensor element a thread.

In assembly, as Triton's own dot takes shared memory between memory and registers. A tensor [32 * warps] has one element
in each thread, in order. Elsewhere than on CUDA the same in plain Triton, of the same elements.
"""

# ruff: noqa: N803, N806 (in capitals: what a kernel is compiled for)
from __future__ import annotations

import triton
import triton.language as tl

from octavo.backends.torch.kernels.int4_unpack import ASSEMBLED, wide


@triton.jit
def multiply_add(a0, a1, a2, a3, b0, b1, sums, DTYPE: tl.constexpr):
    """A @ B + C of 16 x 16, 16 x 8 and 16 x 8, for each warp. All [32 * warps]: in the thread of lane 4 g + t,

    a0: A[g, 2t] and A[g, 2t + 1], two numbers of DTYPE in an int32; a1: the same of row g + 8; a2, a3: of 8 columns
    further. b0: B[2t, g] and B[2t + 1, g]; b1: of 8 rows further. sums: float32 C[g, 2t], C[g, 2t + 1] and those of
    row g + 8, four in a tuple, as are returned.
    The layout is that of PTX's mma.m16n8k16.
    """
    if ASSEMBLED:
        KIND: tl.constexpr = "bf16" if tl.bfloat16 == DTYPE else "f16"
        c0, c1, c2, c3 = tl.inline_asm_elementwise(
            "mma.sync.aligned.m16n8k16.row.col.f32." + KIND + "." + KIND + ".f32 "
            "{$0, $1, $2, $3}, {$4, $5, $6, $7}, {$8, $9}, {$10, $11, $12, $13};",
            "=f,=f,=f,=f,r,r,r,r,r,r,f,f,f,f",
            [a0, a1, a2, a3, b0, b1, sums[0], sums[1], sums[2], sums[3]],
            dtype=(tl.float32, tl.float32, tl.float32, tl.float32), is_pure=True, pack=1,
        )  # fmt: skip
    else:
        above = _side_by_side(_eighth(a0, DTYPE), _eighth(a2, DTYPE))
        below = _side_by_side(_eighth(a1, DTYPE), _eighth(a3, DTYPE))
        b = _side_by_side(_eighth(b0, DTYPE), _eighth(b1, DTYPE))[:, None, :, :]
        c0, c1 = _in_threads(tl.sum(above[:, :, None, :] * b, 3))
        c2, c3 = _in_threads(tl.sum(below[:, :, None, :] * b, 3))
        c0, c1, c2, c3 = sums[0] + c0, sums[1] + c1, sums[2] + c2, sums[3] + c3
    return c0, c1, c2, c3


@triton.jit
def _eighth(pairs, DTYPE: tl.constexpr):
    """int32 [32 * warps] -> float32 [warps, 8, 8]: [g, 2t] and [g, 2t + 1] of the thread of lane 4 g + t."""
    low, high = wide(pairs, DTYPE)
    return tl.reshape(tl.join(low, high), (pairs.shape[0] // 32, 8, 8))


@triton.jit
def _side_by_side(left, right):
    """[warps, 8, 8], twice -> [warps, 8, 16]"""
    return tl.reshape(tl.permute(tl.join(left, right), (0, 1, 3, 2)), (left.shape[0], 8, 16))


@triton.jit
def _in_threads(c):
    """[warps, 8, 8] -> [g, 2t] and [g, 2t + 1] in the thread of lane 4 g + t, [32 * warps] each"""
    return tl.split(tl.reshape(c, (c.shape[0] * 32, 2)))

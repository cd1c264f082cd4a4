"""How products of few tokens end: parts that meet, bias, gated activation, one rounding at a time."""

# ruff: noqa: N803, N806 (in capitals: what a kernel is compiled for)
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def activate(gate, ACT: tl.constexpr):
    """silu: g / (1 + e^-g); gelu: g * Phi(g); gelu_tanh: (g / 2)(1 + tanh z) = g * sigmoid(2 z). All in float32."""
    if ACT == "silu":
        share = tl.sigmoid(gate)
    elif ACT == "gelu":
        share = 0.5 * (1.0 + tl.erf(gate * 0.7071067811865476))
    else:
        tl.static_assert(ACT == "gelu_tanh")
        share = tl.sigmoid(1.5957691216057308 * (gate + 0.044715 * gate * gate * gate))
    return gate * share


@triton.jit
def finish(acc, up, out_ptr, bias_ptr, rows, cols, mask, N, out_stride, DTYPE: tl.constexpr,
            ACT: tl.constexpr):  # fmt: skip
    """acc (gated: and up), float32, -> out[rows, cols] under mask; rows, cols and mask broadcast to acc's shape."""
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + cols, mask=cols < N, other=0).to(tl.float32)
    if ACT != "":
        if bias_ptr is not None:
            up += tl.load(bias_ptr + N + cols, mask=cols < N, other=0).to(tl.float32)
        gate = activate(acc.to(DTYPE).to(tl.float32), ACT).to(DTYPE).to(tl.float32)
        acc = gate * up.to(DTYPE).to(tl.float32)
    tl.store(out_ptr + rows * out_stride + cols, acc.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def join_parts(
    acc, up, out_ptr, bias_ptr, partial_ptr, arrivals_ptr, tile, part, M, N, out_stride,
    DTYPE: tl.constexpr, ACT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """Finishes the tile; where it has several parts, the last to arrive does.

    partial: [tile, part, gate and up, BLOCK_M, BLOCK_N]; the parts are added in their order, whoever is last.
    """
    rows = tl.arange(0, BLOCK_M)[:, None]
    cols = (tile * BLOCK_N + tl.arange(0, BLOCK_N))[None, :]
    mask = (rows < M) & (cols < N)
    if SPLIT == 1:
        finish(acc, up, out_ptr, bias_ptr, rows, cols, mask, N, out_stride, DTYPE, ACT)
    else:
        PLANES: tl.constexpr = 1 if ACT == "" else 2
        inside = rows * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
        parts_ptr = partial_ptr + tile.to(tl.int64) * (SPLIT * PLANES * BLOCK_M * BLOCK_N) + inside
        here = parts_ptr + part * (PLANES * BLOCK_M * BLOCK_N)
        tl.store(here, acc, mask=rows < M)
        if ACT != "":
            tl.store(here + BLOCK_M * BLOCK_N, up, mask=rows < M)
        tl.debug_barrier()  # every thread's part is stored before one of them reports it
        arrived = tl.atomic_add(arrivals_ptr + tile, 1, sem="acq_rel", scope="gpu")
        if arrived == SPLIT - 1:
            acc, up = _add_parts(parts_ptr, rows < M, ACT, BLOCK_M, BLOCK_N, SPLIT)
            finish(acc, up, out_ptr, bias_ptr, rows, cols, mask, N, out_stride, DTYPE, ACT)
            tl.store(arrivals_ptr + tile, 0)


@triton.jit
def _add_parts(parts_ptr, mask, ACT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SPLIT: tl.constexpr):
    """(acc, up) from all parts; past L1 (.cg), which may hold an earlier launch's values."""
    PLANES: tl.constexpr = 1 if ACT == "" else 2
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    up = acc
    for part in tl.static_range(SPLIT):
        here = parts_ptr + part * (PLANES * BLOCK_M * BLOCK_N)
        acc += tl.load(here, mask=mask, other=0, cache_modifier=".cg")
        if ACT != "":
            up += tl.load(here + BLOCK_M * BLOCK_N, mask=mask, other=0, cache_modifier=".cg")
    return acc, up

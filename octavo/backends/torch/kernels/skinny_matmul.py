"""Few tokens times a big weight matrix: x [M, K], weight [N, K] -> out [M, N] or [M, N / 2], in one launch.

Around it, if asked: RMSNorm of x + delta before the product; bias, gated activation, float32 logits after it.
Weights are of x's type, or E4M3 or int8 with scales (Scaled): widened in registers, sums multiplied by the scales.
"""

# ruff: noqa: N803, N806, RUF005 (in capitals: what a kernel is compiled for; Triton knows no starred tuples)
from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.backends.torch.kernels import pdl
from octavo.backends.torch.kernels.direct_choice import CHUNK, Direct
from octavo.backends.torch.kernels.direct_matmul import Chunks, direct_matmul
from octavo.backends.torch.kernels.epilogue import finish, join_parts
from octavo.backends.torch.kernels.skinny_choice import Variant, row_blocks
from octavo.backends.torch.kernels.widening import load_scales, raw, scaled, widened

_INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)  # the interpreter's tl.dot takes bfloat16 for integers


class Scratch(NamedTuple):
    """Where the parts of a split product meet. One per stream: launches that may overlap must not share it.

    partial: float32 [any]; arrivals: int32 [any], zero before and after every launch.
    """

    partial: Tensor
    arrivals: Tensor


class Plan(NamedTuple):
    """variant: the inner form and its sizes; scratch: needed where variant.split > 1 (scratch_sizes says how large)."""

    variant: Variant | Direct
    scratch: Scratch | None = None


class Norm(NamedTuple):
    """RMSNorm before the product. weight: float32 [K]; delta: [M, K] is added to x first; x_out: [M, K] takes the sum.

    x_out must not overlap x or delta: programs still read them when it is written.
    """

    weight: Tensor
    eps: float
    delta: Tensor | None = None
    x_out: Tensor | None = None


class Scaled(NamedTuple):
    """A weight in bytes. weight: float8_e4m3fn or int8 [N, K].  scale: float32 [N, 1], group (1, 0); or by blocks of
    `group` rows and columns, [ceil(N / rows), ceil(K / columns)]. Rows of both are contiguous.

    With blocks a variant's block_k is a multiple of their columns ("vector") or divides them ("dot").
    """

    weight: Tensor
    scale: Tensor
    group: tuple[int, int]


def make_scratch(elements: int, tiles: int, device: torch.device | str) -> Scratch:
    """Scratch for split products of up to `elements` float32 partial sums and `tiles` output tiles (scratch_sizes)."""
    partial = torch.empty(elements, dtype=torch.float32, device=device)
    return Scratch(partial, torch.zeros(tiles, dtype=torch.int32, device=device))


def scratch_sizes(variant: Variant | Direct, m: int, n: int, *, gated: bool = False) -> tuple[int, int]:
    """(float32 elements, int32 counters) that `variant` needs for a weight of n rows; zeros where it does not split."""
    if variant.split == 1:
        return 0, 0
    block, blocks = row_blocks(m)
    tiles = blocks * triton.cdiv(n // 2 if gated else n, variant.block_n)
    return tiles * variant.split * (2 if gated else 1) * block * variant.block_n, tiles


def skinny_matmul(
    x: Tensor,
    weight: Tensor | Scaled,
    out: Tensor,
    plan: Plan,
    *,
    norm: Norm | None = None,
    bias: Tensor | None = None,
    act: str = "",
) -> Tensor:
    """out = f(x) @ weight.T, then what is asked for; returns out.

    x: [M, K] ("vector": M <= 4), rows contiguous; weight: [N, K], rows contiguous. norm: of "vector" alone.
    out: [M, N], or [M, N / 2] with `act` ("silu", "gelu", "gelu_tanh": act(first half) * second half); x's type or
    float32, rows contiguous. bias: [N].
    Every rounding is where separate kernels in x's type would round; a float32 out gets the sums unrounded.
    ValueError where the plan's variant does not do what is asked for, or its scratch is too small.
    """
    m, k = x.shape
    if m == 0:
        return out
    variant = plan.variant
    n = out.shape[1]
    matrix, scale, group = weight if isinstance(weight, Scaled) else (weight, None, (1, 0))
    matrix = raw(matrix)
    if isinstance(variant, Direct):
        if norm is not None or scale is None:
            raise ValueError(f"{variant} takes no norm and no plain weights")
        return direct_matmul(x, _chunks(matrix, scale, group), out, variant, bias=bias, act=act)
    strides = (x.stride(0), matrix.stride(0), 0 if scale is None else scale.stride(0), out.stride(0))
    groups = {"GROUP_N": group[0], "GROUP_K": group[1]}
    tiles = triton.cdiv(n, variant.block_n)
    if variant.form == "vector":
        norm_weight, eps, delta, x_out = (None, 0.0, None, None) if norm is None else norm
        _vector_kernel[(tiles,)](
            x, matrix, scale, out, norm_weight, delta, x_out, bias, n, eps, *strides,
            K=k, ROWS=m, ACT=act, BLOCK_N=variant.block_n, BLOCK_K=variant.block_k, **groups,
            num_warps=variant.warps, **pdl.options(),
        )  # fmt: skip
        return out
    held = variant.form == "held"
    if norm is not None or (held and (act or scale is not None or variant.swap)):
        raise ValueError(f"{variant} takes no norm and, held, plain weights, no activation and no swap")
    if held and variant.block_k * variant.split < k:
        raise ValueError(f"{variant} holds less than K, {k}, in one block")
    partial, arrivals = scratch_of(plan, m, len(matrix), gated=act != "")
    block, blocks = row_blocks(m)
    _dot_kernel[(blocks, tiles, variant.split)](
        x, matrix, scale, out, bias, partial, arrivals, m, n, *strides,
        K=k, ACT=act, BLOCK_M=block, BLOCK_N=variant.block_n, BLOCK_K=variant.block_k, SPLIT=variant.split,
        SWAP=variant.swap, HELD=held, **groups, num_warps=variant.warps, num_stages=variant.stages, **pdl.options(),
    )  # fmt: skip
    return out


def _chunks(matrix: Tensor, scale: Tensor, group: tuple[int, int]) -> Chunks:
    return Chunks(matrix, (matrix.stride(0) // CHUNK, 1), scale, group, (scale.stride(0), 1))


def scratch_of(plan: Plan, m: int, n: int, *, gated: bool) -> tuple[Tensor | None, Tensor | None]:
    """The plan's scratch, large enough; (None, None) where the product is not split."""
    elements, tiles = scratch_sizes(plan.variant, m, n, gated=gated)
    if tiles == 0:
        return None, None
    if plan.scratch is None or plan.scratch.partial.numel() < elements or plan.scratch.arrivals.numel() < tiles:
        raise ValueError(
            f"plan.scratch is missing or too small: this product needs make_scratch({elements}, {tiles}, ..)"
        )
    return plan.scratch


@triton.jit
def _load_once(at, mask):
    """Weights: read once, so the first to leave the L2 cache; 0 where masked off, mask None: all are inside."""
    if mask is None:
        values = tl.load(at, eviction_policy="evict_first")
    else:
        values = tl.load(at, mask=mask, other=0, eviction_policy="evict_first")
    return values


@triton.jit
def _load_x(x_ptr, delta_ptr, rows, ks, mask, x_stride, K: tl.constexpr):
    """x[rows, ks], delta added and the sum rounded to x's type; 0 where masked off."""
    x = tl.load(x_ptr + rows * x_stride + ks, mask=mask, other=0)
    if delta_ptr is not None:
        delta = tl.load(delta_ptr + rows * K + ks, mask=mask, other=0)
        x = (x.to(tl.float32) + delta.to(tl.float32)).to(x_ptr.dtype.element_ty)
    return x


@triton.jit
def _load_normed(x_ptr, norm_ptr, delta_ptr, rstd, rows, ks, mask, x_stride, K: tl.constexpr):
    """What the product multiplies: x[rows, ks] itself, or normalised (rstd broadcasts to it) and rounded."""
    x = _load_x(x_ptr, delta_ptr, rows, ks, mask, x_stride, K)
    if norm_ptr is not None:
        scale = tl.load(norm_ptr + ks, mask=ks < K, other=0)
        x = (x.to(tl.float32) * rstd * scale).to(x_ptr.dtype.element_ty)
    return x


@triton.jit
def _rstd(x_ptr, delta_ptr, x_out_ptr, M, eps, x_stride, first, K: tl.constexpr, ROWS: tl.constexpr):
    """[ROWS] float32: 1 / sqrt(mean((x + delta)^2) + eps). Where `first`, also stores x + delta."""
    STEP: tl.constexpr = 4096 // ROWS  # 32 values a thread of 4 warps
    rows = tl.arange(0, ROWS)[:, None]
    ks = tl.arange(0, STEP)[None, :]
    squares = tl.zeros((ROWS, STEP), tl.float32)
    for start in range(0, K, STEP):
        mask = (rows < M) & (start + ks < K)
        x = _load_x(x_ptr, delta_ptr, rows, start + ks, mask, x_stride, K)
        if x_out_ptr is not None:
            tl.store(x_out_ptr + rows * K + start + ks, x, mask=mask & first)
        squares += x.to(tl.float32) * x.to(tl.float32)
    return tl.rsqrt(tl.sum(squares, 1) / K + eps)


@triton.jit
def _vector_kernel(
    x_ptr, weight_ptr, scale_ptr, out_ptr, norm_ptr, delta_ptr, x_out_ptr, bias_ptr,
    N, eps, x_stride, weight_stride, scale_stride, out_stride,
    K: tl.constexpr, ROWS: tl.constexpr, ACT: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    GROUP_N: tl.constexpr, GROUP_K: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Program: BLOCK_N outputs of every row (M = ROWS <= 4)."""
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    cols = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    # Rows beyond the weight's end read its last row again; what comes of it is not stored.
    rows = tl.minimum(cols, N - 1)
    at = weight_ptr + rows.to(tl.int64)[:, None] * weight_stride + tl.arange(0, BLOCK_K)[None, :]
    if scale_ptr is not None:
        # said to be less aligned than they are, bytes lie with the thread that has the same elements of x
        at = tl.multiple_of(at, (1, 8))
    up_at = at + tl.cast(N, tl.int64) * weight_stride
    if K <= BLOCK_K:
        sums, up_sums = _whole_rows(
            x_ptr, at, up_at, scale_ptr, rows, N, norm_ptr, delta_ptr, x_out_ptr, eps, x_stride, scale_stride,
            K, ROWS, ACT, BLOCK_K, GROUP_N, GROUP_K, PDL,
        )  # fmt: skip
    else:
        sums, up_sums = _long_rows(
            x_ptr, at, up_at, scale_ptr, rows, N, norm_ptr, delta_ptr, x_out_ptr, eps, x_stride, scale_stride,
            K, ROWS, ACT, BLOCK_N, BLOCK_K, GROUP_N, GROUP_K, PDL,
        )  # fmt: skip
    for m in tl.static_range(ROWS):
        up = sums[m] if ACT == "" else up_sums[m]
        finish(sums[m], up, out_ptr, bias_ptr, m, cols, cols < N, N, out_stride, DTYPE, ACT)


@triton.jit
def _whole_rows(
    x_ptr, at, up_at, scale_ptr, rows, N, norm_ptr, delta_ptr, x_out_ptr, eps, x_stride, scale_stride,
    K: tl.constexpr, ROWS: tl.constexpr, ACT: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_N: tl.constexpr,
    GROUP_K: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Two tuples of ROWS sums [BLOCK_N]: all that a program reads is asked for before the first use of any of it."""
    ks = tl.arange(0, BLOCK_K)
    mask = None if K == BLOCK_K else ks[None, :] < K
    COUNT: tl.constexpr = BLOCK_K // GROUP_K if GROUP_K > 0 else 1
    weights = _load_once(at, mask)
    ups = weights
    if ACT != "":
        ups = _load_once(up_at, mask)
    scales = rows
    up_scales = rows
    if scale_ptr is not None:
        scales = load_scales(scale_ptr, rows, 0, scale_stride, K, COUNT, GROUP_N, GROUP_K)
        if ACT != "":
            up_scales = load_scales(scale_ptr, N + rows, 0, scale_stride, K, COUNT, GROUP_N, GROUP_K)
    if norm_ptr is not None:
        scale = tl.load(norm_ptr + ks, mask=ks < K, other=0)
    pdl.wait(PDL)
    inputs = ()
    for m in tl.static_range(ROWS):
        inputs = inputs + (_load_x(x_ptr, delta_ptr, m, ks, ks < K, x_stride, K),)
    sums = ()
    up_sums = ()
    for m in tl.static_range(ROWS):
        x = inputs[m].to(tl.float32)
        if norm_ptr is not None:
            if x_out_ptr is not None:
                tl.store(x_out_ptr + m * K + ks, inputs[m], mask=(ks < K) & (tl.program_id(0) == 0))
            x = (x * tl.rsqrt(tl.sum(x * x, 0) / K + eps) * scale).to(x_ptr.dtype.element_ty).to(tl.float32)
        sums = sums + (_of_rows(tl.sum(scaled(weights, scales, GROUP_K) * x[None, :], 1), scale_ptr, scales, GROUP_K),)
        if ACT != "":
            up = tl.sum(scaled(ups, up_scales, GROUP_K) * x[None, :], 1)
            up_sums = up_sums + (_of_rows(up, scale_ptr, up_scales, GROUP_K),)
    return sums, up_sums


@triton.jit
def _of_rows(sums, scale_ptr, scales, GROUP_K: tl.constexpr):
    """Sums [BLOCK_N] times the scales of their rows, if they have such."""
    if scale_ptr is not None and GROUP_K == 0:
        sums *= scales
    return sums


@triton.jit
def _long_rows(
    x_ptr, at, up_at, scale_ptr, rows, N, norm_ptr, delta_ptr, x_out_ptr, eps, x_stride, scale_stride,
    K: tl.constexpr, ROWS: tl.constexpr, ACT: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    GROUP_N: tl.constexpr, GROUP_K: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """As _whole_rows, K a block at a time: weights are loaded one block ahead of their use."""
    PADDED: tl.constexpr = triton.next_power_of_2(ROWS)
    COUNT: tl.constexpr = BLOCK_K // GROUP_K if GROUP_K > 0 else 1
    ks = tl.arange(0, BLOCK_K)
    weights = _load_once(at, None)
    ups = weights
    if ACT != "":
        ups = _load_once(up_at, None)
    scales = rows
    up_scales = rows
    if scale_ptr is not None:
        scales = load_scales(scale_ptr, rows, 0, scale_stride, K, COUNT, GROUP_N, GROUP_K)
        if ACT != "":
            up_scales = load_scales(scale_ptr, N + rows, 0, scale_stride, K, COUNT, GROUP_N, GROUP_K)
    pdl.wait(PDL)
    rstd = tl.zeros((PADDED,), tl.float32)
    if norm_ptr is not None:
        rstd = _rstd(x_ptr, delta_ptr, x_out_ptr, ROWS, eps, x_stride, tl.program_id(0) == 0, K, PADDED)
    acc = _zeros(ROWS, BLOCK_N, BLOCK_K)
    up = _zeros(ROWS if ACT != "" else 0, BLOCK_N, BLOCK_K)
    # Bytes that are carried from one turn to the next take a register each; unrolled, none are.
    STEPS: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    UNROLL: tl.constexpr = 1 if scale_ptr is None else (STEPS if STEPS <= 16 else 8)
    for turn in range(0, STEPS, UNROLL):
        for inner in tl.static_range(UNROLL):
            start = (turn + inner) * BLOCK_K
            wide = scaled(weights, scales, GROUP_K)
            up_wide = wide
            if ACT != "":
                up_wide = scaled(ups, up_scales, GROUP_K)
            ahead = start + BLOCK_K
            weights = _load_once(at + ahead, ahead + ks[None, :] < K)
            if ACT != "":
                ups = _load_once(up_at + ahead, ahead + ks[None, :] < K)
            if GROUP_K > 0:
                scales = load_scales(scale_ptr, rows, ahead, scale_stride, K, COUNT, GROUP_N, GROUP_K)
                if ACT != "":
                    up_scales = load_scales(scale_ptr, N + rows, ahead, scale_stride, K, COUNT, GROUP_N, GROUP_K)
            acc, up = _multiply(
                acc, up, wide, up_wide, x_ptr, norm_ptr, delta_ptr, rstd, start + ks, x_stride, K, ROWS, ACT
            )
    sums = ()
    up_sums = ()
    for m in tl.static_range(ROWS):
        sums = sums + (_of_rows(tl.sum(acc[m], 1), scale_ptr, scales, GROUP_K),)
        if ACT != "":
            up_sums = up_sums + (_of_rows(tl.sum(up[m], 1), scale_ptr, up_scales, GROUP_K),)
    return sums, up_sums


@triton.jit
def _zeros(COUNT: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    """A tuple of COUNT accumulators: sums stay with the thread that loads the weights until the very end."""
    acc = ()
    for _ in tl.static_range(COUNT):
        acc = acc + (tl.zeros((BLOCK_N, BLOCK_K), tl.float32),)
    return acc


@triton.jit
def _multiply(acc, up, weights, ups, x_ptr, norm_ptr, delta_ptr, rstd, ks, x_stride, K: tl.constexpr,
              ROWS: tl.constexpr, ACT: tl.constexpr):  # fmt: skip
    """The accumulators with weights * x[m, ks] added for each m; -> (acc, up)."""
    more = ()
    more_up = ()
    index = tl.arange(0, rstd.shape[0])
    for m in tl.static_range(ROWS):
        scale = tl.sum(tl.where(index == m, rstd, 0.0))
        x = _load_normed(x_ptr, norm_ptr, delta_ptr, scale, m, ks, ks < K, x_stride, K).to(tl.float32)[None, :]
        more = more + (acc[m] + weights * x,)
        if ACT != "":
            more_up = more_up + (up[m] + ups * x,)
    return more, more_up


@triton.jit(do_not_specialize=["M"])
def _dot_kernel(
    x_ptr, weight_ptr, scale_ptr, out_ptr, bias_ptr, partial_ptr, arrivals_ptr,
    M, N, x_stride, weight_stride, scale_stride, out_stride,
    K: tl.constexpr, ACT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    SPLIT: tl.constexpr, SWAP: tl.constexpr, HELD: tl.constexpr, GROUP_N: tl.constexpr, GROUP_K: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """Program (block, tile, part): BLOCK_N outputs of BLOCK_M rows, over the part-th of SPLIT runs of K.

    Blocks of rows are next to each other, so that weights are read from memory once.
    """
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    block = tl.program_id(0)
    tile = tl.program_id(1)
    part = tl.program_id(2)
    x_ptr += block * BLOCK_M * x_stride
    out_ptr += block * BLOCK_M * out_stride
    M -= block * BLOCK_M
    if HELD:
        acc = _held_run(
            x_ptr, weight_ptr, tile, part, M, N, x_stride, weight_stride, K, BLOCK_M, BLOCK_N, BLOCK_K, SPLIT, PDL
        )
        up = acc
    else:
        pdl.wait(PDL)
        acc, up = _dot_run(
            x_ptr, weight_ptr, scale_ptr, tile, part, M, N, x_stride, weight_stride, scale_stride,
            K, ACT, BLOCK_M, BLOCK_N, BLOCK_K, SPLIT, SWAP, GROUP_N, GROUP_K,
        )  # fmt: skip
    if SPLIT > 1:
        tiles = block * tl.num_programs(1)
        arrivals_ptr += tiles
        partial_ptr += tiles.to(tl.int64) * (SPLIT * (1 if ACT == "" else 2) * BLOCK_M * BLOCK_N)
    join_parts(
        acc, up, out_ptr, bias_ptr, partial_ptr, arrivals_ptr, tile, part, M, N, out_stride,
        DTYPE, ACT, BLOCK_M, BLOCK_N, SPLIT,
    )  # fmt: skip


@triton.jit
def _dot_run(
    x_ptr, weight_ptr, scale_ptr, tile, part, M, N, x_stride, weight_stride, scale_stride,
    K: tl.constexpr, ACT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    SPLIT: tl.constexpr, SWAP: tl.constexpr, GROUP_N: tl.constexpr, GROUP_K: tl.constexpr,
):  # fmt: skip
    """(acc, up): float32 [BLOCK_M, BLOCK_N], the sums over this part's run of K; up is acc where not gated."""
    STEPS: tl.constexpr = (K + BLOCK_K * SPLIT - 1) // (BLOCK_K * SPLIT)
    EVEN_K: tl.constexpr = K % (BLOCK_K * SPLIT) == 0
    rows = tl.arange(0, BLOCK_M)[:, None]
    ks = part * (STEPS * BLOCK_K) + tl.arange(0, BLOCK_K)[None, :]
    # Weight rows beyond the end read the last one again (no mask in the loop); what comes of them is not stored. Padded
    # tokens are masked: reading one again would cost L2 traffic, 16 x rows of it for one token.
    last = tl.minimum(tile * BLOCK_N + tl.arange(0, BLOCK_N), N - 1)
    at = weight_ptr + last.to(tl.int64)[:, None] * weight_stride + ks
    up_at = at + tl.cast(N, tl.int64) * weight_stride
    acc = tl.zeros((BLOCK_N, BLOCK_M) if SWAP else (BLOCK_M, BLOCK_N), tl.float32)
    up = acc
    # Scales of blocks are loaded two steps ahead, where that was found to gain: what is not the matrix unit's has no
    # copies that fill shared memory. (A loop that hands a value on untouched has none at all: hence + 0.0.)
    AHEAD: tl.constexpr = GROUP_K > 0 and SWAP
    first = part * (STEPS * BLOCK_K)
    now = _block_scales(scale_ptr, last, first, scale_stride, K, GROUP_N, GROUP_K) + 0.0
    then = _block_scales(scale_ptr, last, first + BLOCK_K, scale_stride, K, GROUP_N, GROUP_K)
    up_now, up_then = now, then
    if ACT != "":
        up_now = _block_scales(scale_ptr, N + last, first, scale_stride, K, GROUP_N, GROUP_K) + 0.0
        up_then = _block_scales(scale_ptr, N + last, first + BLOCK_K, scale_stride, K, GROUP_N, GROUP_K)
    for step in range(STEPS):
        here = ks + step * BLOCK_K
        mask = None if EVEN_K else here < K
        x_mask = rows < M if EVEN_K else (rows < M) & (here < K)
        x = tl.load(x_ptr + rows * x_stride + here, mask=x_mask, other=0)
        column = first + step * BLOCK_K
        if not AHEAD:
            now = _block_scales(scale_ptr, last, column, scale_stride, K, GROUP_N, GROUP_K)
            up_now = now
            if ACT != "":
                up_now = _block_scales(scale_ptr, N + last, column, scale_stride, K, GROUP_N, GROUP_K)
        acc = _add_block(acc, x, _load_once(at + step * BLOCK_K, mask), now, SWAP, GROUP_K)
        if ACT != "":
            up = _add_block(up, x, _load_once(up_at + step * BLOCK_K, mask), up_now, SWAP, GROUP_K)
        if AHEAD:
            column += 2 * BLOCK_K
            now = then + 0.0
            then = _block_scales(scale_ptr, last, column, scale_stride, K, GROUP_N, GROUP_K)
            if ACT != "":
                up_now = up_then + 0.0
                up_then = _block_scales(scale_ptr, N + last, column, scale_stride, K, GROUP_N, GROUP_K)
    if scale_ptr is not None and GROUP_K == 0:
        acc *= _beside(tl.load(scale_ptr + last), SWAP)
        if ACT != "":
            up *= _beside(tl.load(scale_ptr + N + last), SWAP)
    return _turned(acc, SWAP), _turned(up, SWAP)


@triton.jit
def _held_run(
    x_ptr, weight_ptr, tile, part, M, N, x_stride, weight_stride,
    K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SPLIT: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """acc as of _dot_run, of a run that is one block: its weights are asked for at once, and before the wait."""
    rows = tl.arange(0, BLOCK_M)[:, None]
    ks = part * BLOCK_K + tl.arange(0, BLOCK_K)[None, :]
    last = tl.minimum(tile * BLOCK_N + tl.arange(0, BLOCK_N), N - 1)
    at = weight_ptr + last.to(tl.int64)[:, None] * weight_stride + ks
    weights = _load_once(at, None if K == BLOCK_K * SPLIT else ks < K)
    pdl.wait(PDL)
    x = tl.load(x_ptr + rows * x_stride + ks, mask=(rows < M) & (ks < K), other=0)
    return _dot(x, weights, tl.zeros((BLOCK_M, BLOCK_N), tl.float32), False)


@triton.jit
def _block_scales(scale_ptr, rows, column, scale_stride, K: tl.constexpr, GROUP_N: tl.constexpr,
                  GROUP_K: tl.constexpr):  # fmt: skip
    """Of the block that begins at or before `column`, for each of `rows`; zeros beyond K, or where there are none."""
    if GROUP_K == 0:
        scales = tl.zeros(rows.shape, tl.float32)
    else:
        at = scale_ptr + rows // GROUP_N * scale_stride + column // GROUP_K
        scales = tl.load(at, mask=column < K, other=0)
    return scales


@triton.jit
def _add_block(acc, x, weights, scales, SWAP: tl.constexpr, GROUP_K: tl.constexpr):
    """acc + x @ weights.T, times the scales of the weights' block if there are such."""
    if GROUP_K == 0:
        acc = _dot(x, weights, acc, SWAP)
    else:
        acc += _dot(x, weights, tl.zeros_like(acc), SWAP) * _beside(scales, SWAP)
    return acc


@triton.jit
def _beside(scales, SWAP: tl.constexpr):
    """Of outputs, [BLOCK_N], in a form that broadcasts to the accumulator's."""
    if SWAP:
        wide = scales[:, None]
    else:
        wide = scales[None, :]
    return wide


@triton.jit
def _turned(acc, SWAP: tl.constexpr):
    """The accumulator as [BLOCK_M, BLOCK_N]."""
    if SWAP:
        turned = tl.trans(acc)
    else:
        turned = acc
    return turned


@triton.jit
def _dot(x, weights, acc, SWAP: tl.constexpr):
    """acc + x @ weights.T, or its transpose."""
    weights = widened(weights, x.dtype)
    if _INTERPRETED:
        x = x.to(tl.float32)
        weights = weights.to(tl.float32)
    if SWAP:
        acc = tl.dot(weights, tl.trans(x), acc, input_precision="ieee")
    else:
        acc = tl.dot(x, tl.trans(weights), acc, input_precision="ieee")
    return acc

"""Tokens times a matrix, both in bytes: E4M3 or 8-bit integers go from memory to the matrix unit as they are.

x [M, K], weight [N, K] -> out [M, N]. Nothing is widened, so that tens of tokens take the time of reading the weight.
Rows of x get a scale each, or one for 128 columns where the weight has scales for so many; scales of both sides
multiply the sums.
"""

# ruff: noqa: N803, N806 (in capitals: what a kernel is compiled for)
from __future__ import annotations

from dataclasses import replace
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.backends.torch.kernels import pdl
from octavo.backends.torch.kernels.capability import capable
from octavo.backends.torch.kernels.epilogue import join_parts
from octavo.backends.torch.kernels.fp8_matmul import quantize_rows
from octavo.backends.torch.kernels.skinny_choice import MAX_ROWS, Variant, row_blocks, split_k
from octavo.backends.torch.kernels.skinny_matmul import Plan, Scaled, scratch_of

FEWEST, MOST = 9, 256
"""Tokens between which choose_bytes is asked."""
GRANULE = 64
"""What K is a multiple of."""
_COLUMNS = 128
"""Of a scale, if rows have not one each: K is a multiple of it then."""
_TOKEN_BLOCKS = tl.constexpr(8)
"""Of tokens, whose programs follow each other: what they read stays in L2."""

_INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)  # its tl.dot has neither type
_SMALL = Variant("bytes", 64, 128, 4, 4, swap=True)
_LONG = Variant("bytes", 64, 256, 4, 3, swap=True)
_WIDE = Variant("bytes", 128, 128, 8, 4, swap=True)
_WIDER = Variant("bytes", 256, 128, 8, 3, swap=True)


def bytes_take(k: int, *, columns: int, integers: bool) -> bool:
    """Whether a weight of rows of k elements, E4M3 or integers, can be multiplied here.

    columns: that share a scale, 0: a row does.
    """
    least = (8, 0) if integers else (9, 0)  # E4M3: where it was measured
    return k % (columns or GRANULE) == 0 and columns in (0, _COLUMNS) and capable(*least)


# What follows was measured on an H200 for the products of Llama-3.1-8B, x rounded on the way, by
# benchmarks/gpu/byte_matmul.py: within 9 % of the fastest of some ten variants, and of the library's product in E4M3,
# at 16, 32, 48, 64, 128 and 256 tokens. With scales by block steps of 48 and 64 were as fast widened.
def choose_bytes(
    m: int, n: int, k: int, *, columns: int = 0, integers: bool = False, library: bool = False
) -> Variant | None:
    """The variant for m tokens and a weight [n, k]; None: another product is faster, or bytes_take says no.

    library: whether one has this product, too (fp8_matmul.scaled_matmul).
    """
    if not FEWEST <= m <= MOST or not bytes_take(k, columns=columns, integers=integers):
        return None
    long = k > 8192
    if columns and MAX_ROWS // 2 < m <= MAX_ROWS:
        return None
    if library and m > MAX_ROWS and (m > 2 * MAX_ROWS or n > 4096 or not long):
        return None
    if m <= 16 and not columns:
        return _split(replace(_LONG, stages=4), m, n, k, most=4)
    if m <= MAX_ROWS // 2:
        return _fitting(_WIDE, k) if n > 16384 and m > 16 else _split(_SMALL, m, n, k, most=8)
    return _split(_LONG if m <= MAX_ROWS else _SMALL, m, n, k, most=4 if long else 2)


def many_bytes(m: int, k: int, *, columns: int = 0) -> Variant:
    """The variant for any number of tokens, unsplit."""
    return _fitting(_WIDER if m >= 1024 and not columns and _roomy() else _SMALL, k)


def _split(variant: Variant, m: int, n: int, k: int, *, most: int) -> Variant:
    """The variant with K split until two programs run on a multiprocessor, or one has four blocks of K left."""
    variant = _fitting(variant, k)
    split = min(most, split_k(variant, n, programs=2, blocks=row_blocks(m)[1]).split)
    while split > 1 and k < 4 * split * variant.block_k:
        split //= 2
    return replace(variant, split=split)


def _fitting(variant: Variant, k: int) -> Variant:
    """The variant with blocks that K is a multiple of."""
    block_k = variant.block_k
    while k % block_k:
        block_k //= 2
    return replace(variant, block_k=block_k)


@cache
def _roomy() -> bool:
    """Whether a multiprocessor has the shared memory of _WIDER beside 128 tokens, 144 KiB."""
    if not torch.cuda.is_available():
        return True
    return bool(torch.cuda.get_device_properties().shared_memory_per_block_optin >= 150_000)


def byte_matmul(
    x: Tensor, weight: Scaled, out: Tensor, plan: Plan, *, bias: Tensor | None = None, act: str = ""
) -> Tensor:
    """out = x @ weight.T + bias, x rounded to what the weight's elements are; returns out.

    x: [M, K], contiguous, or with `act` [M, 2 * K], as quantize_rows takes it.  weight: [N, K], contiguous, one that
    bytes_take.  out: [M, N], rows contiguous.  bias: [N].  Sums of integers are exact, those of E4M3 what the matrix
    unit makes of them (on Hopper some 14 bits); rounded to out's type once. ValueError where the scratch is too small.
    """
    m, n, k = len(x), *weight.weight.shape
    if m == 0:
        return out
    variant, columns = plan.variant, weight.group[1]
    rows, row_scale = quantize_rows(x, act=act, dtype=weight.weight.dtype, columns=columns)
    partial, arrivals = scratch_of(plan, m, n, gated=False)
    block, blocks = row_blocks(m)
    _byte_kernel[(blocks, triton.cdiv(n, variant.block_n), variant.split)](
        rows, row_scale, weight.weight, weight.scale, out, bias, partial, arrivals, m, n, row_scale.stride(-1),
        weight.scale.stride(0), out.stride(0),
        K=k, GROUP_N=weight.group[0], GROUP_K=columns, BLOCK_M=block, BLOCK_N=variant.block_n,
        BLOCK_K=variant.block_k, SPLIT=variant.split, num_warps=variant.warps, num_stages=variant.stages,
        **pdl.options(),
    )  # fmt: skip
    return out


@triton.jit(do_not_specialize=["M", "row_scale_stride"])
def _byte_kernel(
    x_ptr, row_scale_ptr, weight_ptr, scale_ptr, out_ptr, bias_ptr, partial_ptr, arrivals_ptr, M, N,
    row_scale_stride, scale_stride, out_stride,
    K: tl.constexpr, GROUP_N: tl.constexpr, GROUP_K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, SPLIT: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Program: BLOCK_N outputs of BLOCK_M tokens, over the part-th of SPLIT runs of K. Weights are the tall side.

    Rows of weights beyond an end are the last one again. Tokens beyond it are not read: all programs would ask for one.
    """
    tiles = tl.num_programs(1)
    block, tile = _place(tl.num_programs(0), tiles)
    part = tl.program_id(2)
    first = block * BLOCK_M
    tokens = first + tl.arange(0, BLOCK_M)
    there = tokens < M
    rows = tl.minimum(tile * BLOCK_N + tl.arange(0, BLOCK_N), N - 1)
    STEPS: tl.constexpr = K // BLOCK_K
    RUN: tl.constexpr = (STEPS + SPLIT - 1) // SPLIT
    begin = part * RUN
    end = tl.minimum(begin + RUN, STEPS)
    KIND: tl.constexpr = tl.int32 if x_ptr.dtype.element_ty == tl.int8 and GROUP_K == 0 else tl.float32
    acc = tl.zeros((BLOCK_N, BLOCK_M), KIND)
    weight_at = weight_ptr + rows.to(tl.int64)[:, None] * K + tl.arange(0, BLOCK_K)[None, :]
    x_at = x_ptr + tokens.to(tl.int64)[:, None] * K + tl.arange(0, BLOCK_K)[None, :]
    scale_at = scale_ptr + rows // GROUP_N * scale_stride
    row_scale_at = row_scale_ptr + tokens
    pdl.wait(PDL)
    if GROUP_K > 0:
        GROUPS: tl.constexpr = STEPS * BLOCK_K // GROUP_K
        following = tl.minimum(begin, GROUPS - 1)
        by = tl.load(scale_at + following)
        by_token = tl.load(row_scale_at + following * row_scale_stride, mask=there, other=0)
    for step in range(begin, end):
        weights = tl.load(weight_at + step * BLOCK_K, eviction_policy="evict_first")
        x = tl.load(x_at + step * BLOCK_K, mask=there[:, None])
        if GROUP_K == 0:
            acc = _add_product(weights, x, acc)
        else:
            here = _add_product(weights, x, tl.zeros((BLOCK_N, BLOCK_M), tl.float32))
            acc += here * by[:, None] * by_token[None, :]
            following = tl.minimum(step + 1, GROUPS - 1)  # a step early: it takes as long to come as a step does
            by = tl.load(scale_at + following)
            by_token = tl.load(row_scale_at + following * row_scale_stride, mask=there, other=0)
    if GROUP_K == 0:
        by_token = tl.load(row_scale_at, mask=there, other=0)
        acc = acc.to(tl.float32) * tl.load(scale_at)[:, None] * by_token[None, :]
    if SPLIT > 1:
        arrivals_ptr += block * tiles
        partial_ptr += (block * tiles).to(tl.int64) * (SPLIT * BLOCK_M * BLOCK_N)
    sums = tl.trans(acc)
    join_parts(
        sums, sums, out_ptr + first.to(tl.int64) * out_stride, bias_ptr, partial_ptr, arrivals_ptr, tile, part,
        M - first, N, out_stride, out_ptr.dtype.element_ty, "", BLOCK_M, BLOCK_N, SPLIT,
    )  # fmt: skip


@triton.jit
def _place(blocks, tiles):
    """(block of tokens, tile of outputs): of _TOKEN_BLOCKS blocks all of a tile, then of the next tile."""
    at = tl.program_id(1) * blocks + tl.program_id(0)
    together = _TOKEN_BLOCKS * tiles
    first = at // together * _TOKEN_BLOCKS
    count = tl.minimum(blocks - first, _TOKEN_BLOCKS)
    return first + at % together % count, at % together // count


@triton.jit
def _add_product(weights, x, acc):
    """acc + weights @ x.T, in acc's type."""
    if _INTERPRETED:
        acc += tl.dot(weights.to(tl.float32), tl.trans(x).to(tl.float32), input_precision="ieee").to(acc.dtype)
    elif weights.dtype == tl.int8 and acc.dtype != tl.int32:
        acc += tl.dot(weights, tl.trans(x)).to(acc.dtype)
    else:
        acc = tl.dot(weights, tl.trans(x), acc, out_dtype=acc.dtype)
    return acc

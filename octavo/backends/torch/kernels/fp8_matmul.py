"""Products with E4M3 weights: of many tokens in FP8 on both sides; of few, which variant of skinny_matmul.py or
direct_matmul.py.

8-bit integers take the same variants, as they are as many bytes.

Rows of x get a scale each, or one for 128 columns where the weight has them for blocks of 128 x 128; x = scale * E4M3.
Scales of both sides multiply the product's sums.
"""

# ruff: noqa: N803, N806 (in capitals: what a kernel is compiled for)
from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.backends.torch.kernels import pdl
from octavo.backends.torch.kernels.capability import capable
from octavo.backends.torch.kernels.direct_choice import Direct, choose_direct
from octavo.backends.torch.kernels.gated import activate
from octavo.backends.torch.kernels.norm import row_shape
from octavo.backends.torch.kernels.skinny_choice import MAX_ROWS, Variant, row_blocks, split_k
from octavo.backends.torch.kernels.widening import raw, widest

WIDEN_ROWS, WIDEN_COLUMNS = 32, 128
"""Of a program; columns do not cross a block's border."""

_INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)

MOST_ROWS = 256
"""Tokens up to which weights are widened in registers."""
GRANULE = 16
"""Elements that rows of both sides must be a multiple of for torch._scaled_mm, and so must be the outputs."""
BLOCK, BLOCK_GRANULE, TOKEN_GRANULE = 128, 512, 4
"""With scales by block: a block's rows and columns, of what elements of rows must be a multiple then, and tokens."""


_NARROW = Variant("dot", 64, 128, 4, 4, swap=True)
_WIDE = Variant("dot", 128, 128, 8, 4, swap=True)
_BLOCKS = Variant("dot", 64, 128, 4, 3, swap=True)


def choose_fp8(m: int, n: int, k: int, *, columns: int, gated: bool = False) -> Variant | Direct | None:
    """As skinny_choice.choose, for a weight in E4M3, or of 8-bit integers. columns: of a block with a scale, 0 where
    rows have one each.

    Activations keep their 16 bits. None where the kernel cannot take the sizes, or where it is as fast to widen the
    weight in memory; gated: also where the product without the activation, and then the activation's own kernel, are
    faster than the two in one.
    """
    if not 1 <= m <= MOST_ROWS or k % GRANULE or (gated and m > MAX_ROWS):
        return None
    if m > MAX_ROWS:
        return split_k(_BLOCKS, n, programs=2, blocks=row_blocks(m)[1])
    direct = choose_direct(m, n, k, bits=8, gated=gated) if m > 1 and columns % 64 == 0 else None
    if direct is not None:
        return direct
    if m <= 2:
        return _choose_vector(m, n, k, gated=gated)
    return None if gated else _choose_plain(m, n)


# What follows was measured on an H200 by benchmarks/gpu/fp8_matmul.py, scales by row: the fastest of about ten, or
# within 5 % of it, for the products of Llama-3.1-8B at 1 to 64 rows (12 % for 4096 x 4096 at 64), before direct_matmul
# took 2 to 16. Scales by block take what is nearest. _BLOCKS, for 128 tokens a program, was the best of eight
# with scales by block: it takes 0.5 to 0.6 of the time of widening the weight in memory, 0.8 to 0.9 with 256 tokens;
# with 512 it is no faster.
def _choose_vector(m: int, n: int, k: int, *, gated: bool) -> Variant:
    whole = max(triton.next_power_of_2(k), 1024)
    if whole <= 4096:
        return Variant("vector", 2 if m == 2 or gated or n <= 4096 else 4, whole, 4)
    return Variant("vector", 2, 1024, 4) if m == 2 else Variant("vector", 2 if gated else 4, 2048, 8)


def _choose_plain(m: int, n: int) -> Variant:
    if m > 32:
        return split_k(_WIDE, n)
    return _NARROW if n >= 16384 else split_k(_NARROW, n, programs=2)


def scaled_matmul_takes(weight: Tensor, group: tuple[int, int]) -> bool:
    """Whether scaled_matmul can multiply bfloat16 with a weight like this on its device, group as of Scaled."""
    n, k = weight.shape
    if n % GRANULE or k % GRANULE or weight.dtype != torch.float8_e4m3fn:
        return False
    if group == (BLOCK, BLOCK):
        return k % BLOCK_GRANULE == 0 and _has_scaled_mm(weight.device) and _has_blocks(weight.device)
    return group == (1, 0) and _has_scaled_mm(weight.device)


def scaled_matmul(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, *, group: tuple[int, int] = (1, 0), act: str = ""
) -> Tensor | None:
    """x [M, K] @ (weight * scale).T + bias in x's type, x rounded to E4M3; None where x is not bfloat16, or the weight
    not one that scaled_matmul_takes.

    weight: float8_e4m3fn [N, K], scale: float32, both contiguous, group as of Scaled.  act: x is what quantize_rows
    takes with it.
    """
    if x.dtype != torch.bfloat16 or not scaled_matmul_takes(weight, group):
        return None
    rows, row_scale = quantize_rows(x, act=act, columns=group[1])
    out = torch._scaled_mm(
        rows, weight.t(), scale_a=row_scale, scale_b=scale.t(), out_dtype=torch.bfloat16, use_fast_accum=not group[1]
    )[: len(x)]
    return out if bias is None else out.add_(bias)


def _has_scaled_mm(device: torch.device) -> bool:
    return device.type == "cuda" and capable(8, 9)


@cache
def _has_blocks(device: torch.device) -> bool:
    """Whether scales by block go with the product: on some devices, from some releases of CUDA on."""
    x = torch.zeros(BLOCK, BLOCK_GRANULE, dtype=torch.float8_e4m3fn, device=device)
    rows = torch.ones(BLOCK_GRANULE // BLOCK, BLOCK, device=device).t()
    blocks = torch.ones(1, BLOCK_GRANULE // BLOCK, device=device)
    try:
        torch._scaled_mm(x, x.t(), scale_a=rows, scale_b=blocks.t(), out_dtype=torch.bfloat16)
    except RuntimeError:
        return False
    return True


def widen(weight: Tensor, scale: Tensor, group: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """weight * scale in dtype, newly made; all as of Scaled, the weight contiguous."""
    n, k = weight.shape
    out = torch.empty((n, k), dtype=dtype, device=weight.device)
    grid = (triton.cdiv(n, WIDEN_ROWS), triton.cdiv(k, WIDEN_COLUMNS))
    _widen[grid](
        raw(weight), scale, out, n, k, scale.stride(0), GROUP_N=group[0], GROUP_K=group[1] or k,
        BLOCK_N=WIDEN_ROWS, BLOCK_K=WIDEN_COLUMNS, num_warps=4, **pdl.options(),
    )  # fmt: skip
    return out


def quantize_rows(
    x: Tensor, *, act: str = "", dtype: torch.dtype = torch.float8_e4m3fn, columns: int = 0
) -> tuple[Tensor, Tensor]:
    """x: [M, K], contiguous -> E4M3 (or int8) [M, K] and float32 [M, 1], whose product is x. A row of zeros gets the
    scale 1.

    One that is not finite throughout gets NaN.  act: x is [M, 2 * K] and what kernels/gated.py makes of it is meant.
    columns: that share a scale, a power of two that divides K: float32 [M, K / columns], M its dense dimension. Rows of
    zeros are added then until M is a multiple of TOKEN_GRANULE.
    """
    m, k = x.shape
    k = k // 2 if act else k
    rows = triton.cdiv(m, TOKEN_GRANULE) * TOKEN_GRANULE if columns else m
    out = torch.empty((rows, k), dtype=dtype, device=x.device)
    scale = torch.empty((k // columns if columns else 1, rows), dtype=torch.float32, device=x.device)
    if m:
        block, warps = row_shape(k)
        _quantize_rows[(rows,)](
            x, out, scale, m, rows, K=k, ACT=act, COLUMNS=columns or block, BLOCK=block, num_warps=warps,
            **pdl.options(),
        )  # fmt: skip
    return out, scale.t() if columns else scale.view(m, 1)


@triton.jit
def _widen(
    weight, scale, out, N, K, scale_stride, GROUP_N: tl.constexpr, GROUP_K: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)[:, None]
    columns = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)[None, :]
    inside = (rows < N) & (columns < K)
    at = rows.to(tl.int64) * K + columns
    elements = widest(tl.load(weight + at, mask=inside, other=0))
    # of a program's columns all are of one group
    first = tl.program_id(1) * BLOCK_K // GROUP_K
    values = elements * tl.load(scale + rows // GROUP_N * scale_stride + first, mask=rows < N, other=0)
    pdl.wait(PDL)
    tl.store(out + at, values.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["M", "scale_stride"])
def _quantize_rows(
    x, out, scale, M, scale_stride, K: tl.constexpr, ACT: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = (column < K) & (row < M)
    pdl.wait(PDL)
    if ACT == "":
        values = tl.load(x + row * K + column, mask=inside, other=0.0).to(tl.float32)
    else:
        gate = tl.load(x + row * (2 * K) + column, mask=inside, other=0.0).to(tl.float32)
        up = tl.load(x + row * (2 * K) + K + column, mask=inside, other=0.0).to(tl.float32)
        kind: tl.constexpr = x.dtype.element_ty
        values = (activate(gate, ACT).to(kind).to(tl.float32) * up).to(kind).to(tl.float32)
    # the comparison is false of a NaN as well, which a maximum may pass over
    wild = tl.max(tl.where(tl.abs(values) < float("inf"), 0, 1), axis=0) > 0
    MOST: tl.constexpr = 127.0 if out.dtype.element_ty == tl.int8 else 448.0
    GROUPS: tl.constexpr = BLOCK // COLUMNS
    groups = tl.reshape(values, (GROUPS, COLUMNS))
    largest = tl.max(tl.abs(groups), axis=1)
    by = tl.where((largest == 0.0) | wild, 1.0, largest / MOST)
    values = tl.reshape(tl.where(wild, 0.0, groups / by[:, None]), (BLOCK,))
    if out.dtype.element_ty == tl.int8:
        values = (values + 12582912.0) - 12582912.0  # 1.5 * 2^23: a sum keeps whole ones, ties to even
    elif _INTERPRETED:
        values = _nearest(values)
    tl.store(out + row * K + column, values.to(out.dtype.element_ty), mask=column < K)
    group = tl.arange(0, GROUPS)
    tl.store(scale + group * scale_stride + row, tl.where(wild, float("nan"), by), mask=group * COLUMNS < K)


@triton.jit
def _nearest(values):
    """To what E4M3 has, ties to even: the interpreter's own conversion loses the carry from 127 to 128."""
    power = (values.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)
    middle = tl.maximum(power * 0.125, 0.001953125) * 12582912.0  # 1.5 * 2^23 steps: a sum keeps whole ones
    return tl.where(power > 448.0, values, (values + middle) - middle)

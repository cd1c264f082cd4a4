"""RMS norms of the residual stream, each fused with what comes before it: rows of any float type in, the same out.

norm(x) = x / sqrt(mean(x^2) + eps) * weight in float32, rounded to the type; weight: float32 [hidden], offset added.
Activations are contiguous [tokens, hidden], hidden at most 16384; one program takes one row.
"""

# ruff: noqa: N803 (in capitals: what a kernel is compiled for)
from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from octavo.backends.torch.kernels import pdl

ELEMENTS = 8
"""Of a row, a thread: one access of 16 bytes in bfloat16. One row alone is bound by latency, so its loads are spread
over as many threads as have any; more than 16 warps would make the sum over them the longer part."""


def row_shape(hidden: int, elements: int = ELEMENTS) -> tuple[int, int]:
    """Width of a program (a power of two) and its warps, of 32 threads, for rows of `hidden` elements."""
    block = 1 << (hidden - 1).bit_length()
    return block, min(max(block // (32 * elements), 1), 16)


def rms_norm(x: Tensor, weight: Tensor, eps: float, out: Tensor) -> None:
    """out = norm(x); both [tokens, hidden]."""
    tokens, hidden = x.shape
    if tokens:
        block, warps = row_shape(hidden)
        _rms_norm[(tokens,)](x, weight, eps, out, HIDDEN=hidden, BLOCK=block, num_warps=warps, **pdl.options())


def add_rms_norm(x: Tensor, delta: Tensor, weight: Tensor, eps: float, out: Tensor) -> None:
    """x += delta in place, rounded to the type; out = norm(x).  All [tokens, hidden]."""
    launch_add(x, delta, weight, eps, out, ELEMENTS)


def launch_add(x: Tensor, delta: Tensor, weight: Tensor, eps: float, out: Tensor, elements: int) -> None:
    """`add_rms_norm` with the elements of a row that a thread has given (benchmarks)."""
    tokens, hidden = x.shape
    if tokens:
        block, warps = row_shape(hidden, elements)
        _add_rms_norm[(tokens,)](
            x, delta, weight, eps, out, HIDDEN=hidden, BLOCK=block, num_warps=warps, **pdl.options()
        )


def finish_norm(
    x: Tensor, delta: Tensor, last: Tensor, weight: Tensor, eps: float, out: Tensor, finite: Tensor
) -> None:
    """y = x + delta rounded to the type, of the tokens `last` (int32 or int64 [n]) alone; out = norm(y), [n, hidden].

    finite: int32 [n], 1 where every element of y is finite, else 0.  x is left as it was.
    """
    rows, hidden = out.shape
    if rows:
        block, warps = row_shape(hidden)
        _finish_norm[(rows,)](
            x, delta, last, weight, eps, out, finite, HIDDEN=hidden, BLOCK=block, num_warps=warps, **pdl.options()
        )


@triton.jit
def _rms_norm(x, weight, eps, out, HIDDEN: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * HIDDEN
    column = tl.arange(0, BLOCK)
    w = _load(weight, column, HIDDEN)
    pdl.wait(PDL)
    y = _normalize(_load(x + row, column, HIDDEN), w, eps, HIDDEN)
    _store(out + row, column, y, HIDDEN)


@triton.jit
def _add_rms_norm(x, delta, weight, eps, out, HIDDEN: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * HIDDEN
    column = tl.arange(0, BLOCK)
    w = _load(weight, column, HIDDEN)
    pdl.wait(PDL)
    before = _load(x + row, column, HIDDEN)
    after = _rounded(before + _load(delta + row, column, HIDDEN), x)
    _store(x + row, column, after, HIDDEN)
    _store(out + row, column, _normalize(after, w, eps, HIDDEN), HIDDEN)


@triton.jit(do_not_specialize_on_alignment=["last", "finite"])
def _finish_norm(
    x, delta, last, weight, eps, out, finite, HIDDEN: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    w = _load(weight, column, HIDDEN)
    pdl.wait(PDL)
    source = tl.load(last + row).to(tl.int64) * HIDDEN
    y = _rounded(_load(x + source, column, HIDDEN) + _load(delta + source, column, HIDDEN), out)
    # the comparison is false of a NaN as well; a mean of squares would overflow on values that are finite
    wild = tl.max(tl.where(tl.abs(y) < float("inf"), 0, 1), axis=0)
    tl.store(finite + row, 1 - wild)
    _store(out + row * HIDDEN, column, _normalize(y, w, eps, HIDDEN), HIDDEN)


@triton.jit
def _normalize(x, weight, eps, HIDDEN: tl.constexpr):
    return x * tl.rsqrt(tl.sum(x * x, axis=0) / HIDDEN + eps) * weight


@triton.jit
def _load(row, column, HIDDEN: tl.constexpr):
    return tl.load(row + column, mask=column < HIDDEN, other=0.0).to(tl.float32)


@triton.jit
def _store(row, column, value, HIDDEN: tl.constexpr):
    tl.store(row + column, value.to(row.dtype.element_ty), mask=column < HIDDEN)


@triton.jit
def _rounded(value, like):
    """float32, with the values that the element type of the pointer `like` has."""
    return value.to(like.dtype.element_ty).to(tl.float32)

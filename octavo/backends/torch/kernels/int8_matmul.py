"""Products with 8-bit integers on both sides, of many tokens.

Rows of x get a scale each, x = row scale * integers; scales by row of both sides multiply the product's integers.
"""

# ruff: noqa: N803 (in capitals: what a kernel is compiled for)
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.backends.torch.kernels import pdl

GRANULE = 8
"""Of what the library's product takes, rows and columns of the weight are multiples."""
_FEWEST = 17
"""Tokens that it takes at least."""
_PIECE = 2048
"""Tokens at once: their integers are of 32 bits, twice as large as what is made of them."""
_BLOCK = 1024


def takes(x: Tensor, weight: Tensor) -> bool:
    """Whether integer_matmul can multiply x [M, K] with weight int8 [N, K] on their device; bfloat16, as of FP8."""
    n, k = weight.shape
    able = x.device.type == "cuda" and torch.version.hip is None and x.dtype == torch.bfloat16
    return able and len(x) >= _FEWEST and not n % GRANULE and not k % GRANULE


def integer_matmul(rows: Tensor, row_scale: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None,
                   dtype: torch.dtype) -> Tensor:  # fmt: skip
    """(rows @ weight.T) * row_scale * scale.T + bias, [M, N] in dtype: integers are summed exactly.

    rows: int8 [M, K], row_scale: float32 [M, 1], as of fp8_matmul.quantize_rows; weight: int8 [N, K], contiguous.
    scale: float32 [N, 1].
    """
    (m, _), n = rows.shape, len(weight)
    out = torch.empty((m, n), dtype=dtype, device=rows.device)
    step = triton.cdiv(m, triton.cdiv(m, _PIECE))
    for begin in range(0, m, step):
        piece = out[begin : begin + step]
        sums = torch._int_mm(rows[begin : begin + step], weight.t())
        _scale_sums[(len(piece), triton.cdiv(n, _BLOCK))](
            sums, row_scale[begin : begin + step], scale, bias, piece, n, BLOCK=_BLOCK, num_warps=4, **pdl.options()
        )
    return out


@triton.jit
def _scale_sums(sums, row_scale, scale, bias, out, N, BLOCK: tl.constexpr, PDL: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < N
    by = tl.load(scale + column, mask=inside, other=0.0)
    pdl.wait(PDL)
    values = tl.load(sums + row * N + column, mask=inside, other=0).to(tl.float32) * tl.load(row_scale + row) * by
    if bias is not None:
        values += tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * N + column, values.to(out.dtype.element_ty), mask=inside)

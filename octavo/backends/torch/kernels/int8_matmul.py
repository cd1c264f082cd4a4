"""Products with 8-bit integers on both sides, of many tokens; and 8-bit weights as float32, in registers.

Rows of x get a scale each, x = row scale * integers; scales by row of both sides multiply the product's integers.
"""

# ruff: noqa: N803 (in capitals: what a kernel is compiled for)
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.backends.torch.kernels import pdl
from octavo.backends.torch.kernels.int4_unpack import ASSEMBLED

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


@triton.jit
def bytes_as_float(q):
    """int8 in float32. On CUDA in assembly, four at a time: a byte is put into the mantissa of 2^23 + 128, which is
    taken away again. By conversions 28672 x 4096 take 40 us on an H200, so 29; the same in plain Triton takes 38."""
    if ASSEMBLED:
        values = tl.inline_asm_elementwise(
            "{ .reg .b32 u, a, b, c, d; xor.b32 u, $4, 0x80808080;"
            "prmt.b32 a, u, 0x4b000000, 0x7440; prmt.b32 b, u, 0x4b000000, 0x7441;"
            "prmt.b32 c, u, 0x4b000000, 0x7442; prmt.b32 d, u, 0x4b000000, 0x7443;"
            "sub.rn.f32 $0, a, 0f4B000080; sub.rn.f32 $1, b, 0f4B000080;"
            "sub.rn.f32 $2, c, 0f4B000080; sub.rn.f32 $3, d, 0f4B000080; }",
            "=&r,=&r,=&r,=&r,r", [q], dtype=tl.float32, is_pure=True, pack=4,
        )  # fmt: skip
    else:
        values = q.to(tl.float32)
    return values

"""Weights of a byte an element as numbers of 16 or 32 bits, in registers, and the scales beside them.

Rounded nowhere: E4M3 and 8-bit integers are numbers of bfloat16 and float16.
"""

# ruff: noqa: N803, N806 (in capitals: what a kernel is compiled for)
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.backends.torch.kernels.capability import capable
from octavo.backends.torch.kernels.int4_unpack import ASSEMBLED, packed

NATIVE = tl.constexpr(torch.version.hip is not None or capable(8, 9))
"""Whether the GPU has conversions from E4M3."""


def raw(weight: Tensor) -> Tensor:
    """E4M3 as uint8, of which the zeros beyond an end are zeros; others as they are."""
    return weight.view(torch.uint8) if weight.dtype == torch.float8_e4m3fn else weight


@triton.jit
def widened(weights, DTYPE: tl.constexpr):
    """Weights as they were loaded, in DTYPE, of 16 bits; uint8 are E4M3."""
    if weights.dtype == tl.uint8:
        # by way of float32: straight to bfloat16 takes an instruction of a quarter of the rate, one element at a time
        wide = e4m3_as_float(weights).to(DTYPE)
    elif weights.dtype == tl.int8:
        wide = weights.to(tl.float32).to(DTYPE)
    else:
        wide = weights.to(DTYPE)
    return wide


@triton.jit
def widest(weights):
    """The same in float32."""
    if weights.dtype == tl.uint8:
        wide = e4m3_as_float(weights)
    elif weights.dtype == tl.int8:
        wide = bytes_as_float(weights)
    else:
        wide = weights.to(tl.float32)
    return wide


@triton.jit
def e4m3_as_float(codes):
    """uint8 that are E4M3 in float32; NaN is 480 where the GPU does not know the type: exponent and mantissa where
    float32 has them, times 2 to the difference of the exponents' biases."""
    if NATIVE:
        values = codes.to(tl.float8e4nv, bitcast=True).to(tl.float32)
    else:
        bits = codes.to(tl.int32)
        magnitude = ((bits & 0x7F) << 20).to(tl.float32, bitcast=True) * 2.0**120
        values = tl.where(bits >= 0x80, -magnitude, magnitude)
    return values


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


@triton.jit
def pairs_of_bytes(word, E4M3: tl.constexpr, DTYPE: tl.constexpr):
    """A word's four bytes, E4M3 (NaN as 480) or integers, as two int32 that are two numbers of DTYPE each.

    E4M3: sign, exponent and mantissa where DTYPE has them, times 2 to the difference of the exponents' biases.
    Integers: their lower 7 bits in the mantissa of 128 (float16: 1024), less that and where negative 128 more.
    """
    if ASSEMBLED:
        HALF: tl.constexpr = tl.float16 == DTYPE
        if E4M3:
            WIDEN: tl.constexpr = (
                "shr.b32 m, v, 1; and.b32 m, m, 0x3F803F80;" if HALF else "shr.b32 m, v, 4; and.b32 m, m, 0x07F007F0;"
            ) + "lop3.b32 v, v, 0x80008000, m, 0xEA; mov.b32 m, 0x80008000;"
            BY: tl.constexpr = "0x5C005C00" if HALF else "0x7B807B80"
            LOW: tl.constexpr = "0x1404"
            HIGH: tl.constexpr = "0x3424"
        else:
            ONE: tl.constexpr = "0x64006400" if HALF else "0x43004300"
            WIDEN: tl.constexpr = (
                "lop3.b32 m, v, 0x007F007F, " + ONE + ", 0xEA; lop3.b32 v, v, 0x00800080, " + ONE + ", 0xEA;"
            )
            BY: tl.constexpr = "0xBC00BC00" if HALF else "0xBF80BF80"
            LOW: tl.constexpr = "0x4140"
            HIGH: tl.constexpr = "0x4342"
        FMA: tl.constexpr = "fma.rn.f16x2 " if HALF else "fma.rn.bf16x2 "
        a, b = tl.inline_asm_elementwise(
            "{ .reg .b32 v, m, by; mov.b32 by, " + BY + ";"
            "prmt.b32 v, $2, 0, " + LOW + "; " + WIDEN + FMA + "$0, v, by, m;"
            "prmt.b32 v, $2, 0, " + HIGH + "; " + WIDEN + FMA + "$1, v, by, m; }",
            "=&r,=r,r", [word], dtype=(tl.int32, tl.int32), is_pure=True, pack=1,
        )  # fmt: skip
    else:
        a = packed(_byte(word, E4M3, DTYPE), _byte(word >> 8, E4M3, DTYPE))
        b = packed(_byte(word >> 16, E4M3, DTYPE), _byte(word >> 24, E4M3, DTYPE))
    return a, b


@triton.jit
def _byte(word, E4M3: tl.constexpr, DTYPE: tl.constexpr):
    """The lowest byte in DTYPE."""
    byte = word.to(tl.int8)
    if E4M3:
        byte = byte.to(tl.float8e4nv, bitcast=True)
    return byte.to(tl.float32).to(DTYPE)


@triton.jit
def load_scales(scale_ptr, rows, column, scale_stride, K: tl.constexpr, COUNT: tl.constexpr, GROUP_N: tl.constexpr,
                GROUP_K: tl.constexpr):  # fmt: skip
    """Of weight rows [BLOCK_N]: [BLOCK_N], or where scales are by block [BLOCK_N, COUNT] from `column` on."""
    if GROUP_K == 0:
        scales = tl.load(scale_ptr + rows)
    else:
        blocks = column // GROUP_K + tl.arange(0, COUNT)[None, :]
        inside = blocks < (K + GROUP_K - 1) // GROUP_K
        scales = tl.load(scale_ptr + (rows // GROUP_N)[:, None] * scale_stride + blocks, mask=inside, other=0)
    return scales


@triton.jit
def scaled(weights, scales, GROUP_K: tl.constexpr):
    """Weights [BLOCK_N, BLOCK_K] in float32, times the scales of their blocks if they have such."""
    wide = widest(weights)
    if GROUP_K > 0:
        BLOCK_N: tl.constexpr = weights.shape[0]
        BLOCK_K: tl.constexpr = weights.shape[1]
        blocks = tl.reshape(wide, (BLOCK_N, BLOCK_K // GROUP_K, GROUP_K)) * scales[:, :, None]
        wide = tl.reshape(blocks, (BLOCK_N, BLOCK_K))
    return wide

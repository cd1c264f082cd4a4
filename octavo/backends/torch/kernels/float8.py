"""E4M3, the 8-bit float of a KV cache, within kernels: numbers rounded to it, and it widened for products.

4 bits of exponent, 3 of mantissa, no infinity: 2**-9 to 448, and NaN. float16 holds all of it, and is one instruction
away (bfloat16 is three), so that products with it are in float16. Triton's interpreter has no such conversions that
round or know NaN: integers do them there.
"""

# ruff: noqa: N803 (in capitals: what a kernel is compiled for)
from __future__ import annotations

import triton
import triton.language as tl

LARGEST = tl.constexpr(448.0)
_INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.constexpr_function
def is_e4m3(kind):
    """Of an element type."""
    return kind == tl.float8e4nv


@triton.constexpr_function
def headroom(kept):
    """Binary logarithm of the largest softmax weight beside a cache of this type, from float32's point of view.

    float16 weights of 2**15 and less keep those of distant keys that from 1 down would be lost: 2**-25 to 2**-40.
    """
    return 15.0 if kept == tl.float8e4nv else 0.0


@triton.jit
def narrow(x, KIND: tl.constexpr):
    """float32 x rounded to KIND. E4M3 saturates; NaN and infinities, which it has none of, are NaN: to be found."""
    if is_e4m3(KIND):
        x = tl.minimum(tl.maximum(x, -LARGEST), LARGEST) + (x - x)
        if _INTERPRETED:
            y = _encode(x)
        else:
            y = x.to(KIND)
    else:
        y = x.to(KIND)
    return y


@triton.jit
def widen(x, KIND: tl.constexpr):
    """x, of the cache's type, as KIND."""
    if is_e4m3(x.dtype):
        if _INTERPRETED:
            y = _decode(x).to(KIND)
        else:
            y = x.to(tl.float16).to(KIND)
    else:
        y = x.to(KIND)
    return y


@triton.jit
def halves(pairs, KIND: tl.constexpr):
    """Two neighbours of E4M3 in each int16 -> (the lower ones, the upper ones), as KIND.

    As second operand of a product, values lie with their neighbours along keys in one register, but along the head in
    memory: what moves 16 bits at a time then does in one instruction what takes four for bytes.
    """
    if _INTERPRETED:
        low = _decode((pairs & 0xFF).to(tl.uint8).to(tl.float8e4nv, bitcast=True))
        high = _decode(((pairs >> 8) & 0xFF).to(tl.uint8).to(tl.float8e4nv, bitcast=True))
    else:
        low, high = tl.inline_asm_elementwise(
            "{.reg .b32 both; .reg .b16 low, high;"
            " prmt.b32 both, $2, 0, 0x3120;"
            " mov.b32 {low, high}, both;"
            " cvt.rn.f16x2.e4m3x2 $0, low;"
            " cvt.rn.f16x2.e4m3x2 $1, high;}",
            "=r,=r,r",
            [pairs],
            dtype=(tl.float16, tl.float16),
            is_pure=True,
            pack=2,
        )
    return low.to(KIND), high.to(KIND)


@triton.jit
def products(q, scale, KEPT: tl.constexpr):
    """Queries [M, DIM] as their products with a cache of type KEPT take them, and the scale [M] of these products.

    Beside E4M3 bfloat16 becomes float16, each row divided by the power of two at its largest number: exact but for
    numbers 2**-17 of that and less (or 2**-57), and nothing overflows.
    """
    scales = tl.full([q.shape[0]], 1.0, tl.float32) * scale
    if is_e4m3(KEPT) and q.dtype == tl.bfloat16:
        wide = q.to(tl.float32)
        exponent = tl.max(tl.abs(wide), 1).to(tl.int32, bitcast=True) & 0x7F800000
        power = tl.maximum(exponent.to(tl.float32, bitcast=True), 2.0**-40)
        q = (wide / power[:, None]).to(tl.float16)
        scales *= power
    return q, scales


@triton.jit
def _encode(x):
    """Of float32 within the range: with 2**-120 of it the exponents of both types are the same, denormal ones too."""
    magnitude = (tl.abs(x) * 2.0**-120).to(tl.int32, bitcast=True)
    code = (magnitude + 0x7FFFF + ((magnitude >> 20) & 1)) >> 20  # to nearest, ties to even
    code = tl.where(x != x, 0x7F, code)
    sign = (x.to(tl.int32, bitcast=True) >> 24) & 0x80
    return (code | sign).to(tl.uint8).to(tl.float8e4nv, bitcast=True)


@triton.jit
def _decode(x):
    """float16: its exponents are 8 larger for the same bits."""
    bits = x.to(tl.uint8, bitcast=True).to(tl.int32)
    magnitude = ((bits & 0x7F) << 7).to(tl.int16).to(tl.float16, bitcast=True) * 256.0
    magnitude = tl.where((bits & 0x7F) == 0x7F, float("nan"), magnitude)
    return tl.where(bits >= 0x80, -magnitude, magnitude)

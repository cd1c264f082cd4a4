"""What kernels over 4-bit weights do to single words: loads of a whole chunk, nibbles in, numbers out.

On CUDA in assembly: a nibble put into the low bits of a number's mantissa is that number plus the nibble, so that one
three-input logic operation stands for mask and conversion; the compiler does not find it. Elsewhere in plain Triton.
"""

# ruff: noqa: N803, N806 (in capitals: what a kernel is compiled for)
from __future__ import annotations

import torch
import triton
import triton.language as tl

ASSEMBLED = tl.constexpr(not triton.knobs.runtime.interpret and torch.version.hip is None)


@triton.jit
def load_chunk(at, inside, ONCE: tl.constexpr):
    """Four int32 from where `at` points (16 bytes, aligned) in one access; 0 where not inside, None: all are.

    ONCE: not kept in L1.
    """
    LOAD: tl.constexpr = "ld.global.L1::no_allocate.v4.b32" if ONCE else "ld.global.v4.b32"
    if not ASSEMBLED:
        other = None if inside is None else 0
        a = tl.load(at, mask=inside, other=other)
        b = tl.load(at + 1, mask=inside, other=other)
        c = tl.load(at + 2, mask=inside, other=other)
        d = tl.load(at + 3, mask=inside, other=other)
    elif inside is None:
        a, b, c, d = tl.inline_asm_elementwise(
            LOAD + " {$0, $1, $2, $3}, [$4];",
            "=r,=r,=r,=r,l",
            [at],
            dtype=(tl.int32, tl.int32, tl.int32, tl.int32),
            is_pure=False,
            pack=1,
        )
    else:
        a, b, c, d = tl.inline_asm_elementwise(
            "{ .reg .pred p; setp.ne.s32 p, $5, 0; mov.b32 $0, 0; mov.b32 $1, 0; mov.b32 $2, 0; mov.b32 $3, 0; @p "
            + LOAD
            + " {$0, $1, $2, $3}, [$4]; }",
            "=&r,=&r,=&r,=&r,l,r",
            [at, inside.to(tl.int32)],
            dtype=(tl.int32, tl.int32, tl.int32, tl.int32),
            is_pure=False,
            pack=1,
        )
    return a, b, c, d


@triton.jit
def load_once(at, inside):
    """What no kernel writes, of 8 (integer), 16 or 32 bits; 0 where not inside.

    In assembly so that it comes in the layout of load_chunk: Triton would choose another and exchange it.
    """
    BITS: tl.constexpr = at.dtype.element_ty.primitive_bitwidth
    if not ASSEMBLED:
        value = tl.load(at, mask=inside, other=0)
    elif BITS == 32:
        value = tl.inline_asm_elementwise(
            "{ .reg .pred p; setp.ne.s32 p, $2, 0; mov.b32 $0, 0; @p ld.global.b32 $0, [$1]; }",
            "=&r,l,r", [at, inside.to(tl.int32)], dtype=at.dtype.element_ty, is_pure=False, pack=1,
        )  # fmt: skip
    elif BITS == 16:
        value = tl.inline_asm_elementwise(
            "{ .reg .pred p; setp.ne.s32 p, $2, 0; mov.b16 $0, 0; @p ld.global.b16 $0, [$1]; }",
            "=&h,l,r", [at, inside.to(tl.int32)], dtype=at.dtype.element_ty, is_pure=False, pack=1,
        )  # fmt: skip
    else:
        value = tl.inline_asm_elementwise(
            "{ .reg .pred p; setp.ne.s32 p, $2, 0; mov.b32 $0, 0; @p ld.global.u8 $0, [$1]; }",
            "=&r,l,r", [at, inside.to(tl.int32)], dtype=tl.int32, is_pure=False, pack=1,
        )  # fmt: skip
    return value


@triton.jit
def wide(pair, DTYPE: tl.constexpr):
    """float32 of the lower and of the upper half of an int32 that is two numbers of DTYPE, of 16 bits."""
    if tl.bfloat16 == DTYPE:
        low = (pair << 16).to(tl.float32, bitcast=True)
        high = (pair & -65536).to(tl.float32, bitcast=True)
    else:
        low = (pair & 0xFFFF).to(tl.int16).to(DTYPE, bitcast=True).to(tl.float32)
        high = (pair >> 16).to(tl.int16).to(DTYPE, bitcast=True).to(tl.float32)
    return low, high


@triton.jit
def nibble(word, B: tl.constexpr):
    """float32: 128 + q for the B-th nibble q, if B is odd 128 + q / 16; so two nibbles share a shift."""
    SHIFT: tl.constexpr = (12 if B % 2 else 16) - 4 * B
    if SHIFT > 0:
        word = word << SHIFT
    elif SHIFT < 0:
        word = word >> -SHIFT
    if ASSEMBLED:
        MASK: tl.constexpr = "0xF000" if B % 2 else "0xF0000"
        number = tl.inline_asm_elementwise(
            "lop3.b32 $0, $1, " + MASK + ", 0x43000000, 0xEA;", "=r,r", [word], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        number = ((word & (0xF000 if B % 2 else 0xF0000)) | 0x43000000).to(tl.float32, bitcast=True)
    return number


@triton.jit
def pair_of_nibbles(word, zero, p, zeros_ptr, DTYPE: tl.constexpr):
    """int32 that is two numbers of DTYPE: of a word the nibbles p and p + 4, less zero (without zeros_ptr: less 8).

    As unpack: 128 + q (float16: 1024 + q), less 128 + zero.
    """
    word = word >> (4 * p)
    if ASSEMBLED:
        HALF: tl.constexpr = tl.float16 == DTYPE
        if zeros_ptr is None:
            zero = tl.full(word.shape, 8, tl.int32)
        pair = tl.inline_asm_elementwise(
            "{ .reg .b32 v, one; mov.b32 one, " + ("0x3C003C00" if HALF else "0x3F803F80") + ";"
            "lop3.b32 v, $1, 0x000F000F, " + ("0x64006400" if HALF else "0x43004300") + ", 0xEA;"
            + ("fma.rn.f16x2" if HALF else "fma.rn.bf16x2") + " $0, v, one, $2; }",
            "=r,r,r", [word, zero | (zero << 16) | (-469703680 if HALF else -1023360256)], dtype=tl.int32,
            is_pure=True, pack=1,
        )  # fmt: skip
    else:
        less = 8
        if zeros_ptr is not None:
            less = zero.to(tl.int32)
        low = ((word & 15) - less).to(tl.float32).to(DTYPE)
        pair = packed(low, (((word >> 16) & 15) - less).to(tl.float32).to(DTYPE))
    return pair


@triton.jit
def packed(low, high):
    """int32 of two numbers of 16 bits."""
    return (low.to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF) | (high.to(tl.int16, bitcast=True).to(tl.int32) << 16)


@triton.jit
def unpack(words, zeros, DTYPE: tl.constexpr, N: tl.constexpr, CHUNKS: tl.constexpr):
    """Int4Matrix.words as int32 [N, 4 * CHUNKS], zeros int32 [N, 1] -> q - zero, DTYPE [N, 32 * CHUNKS], in order.

    The nibbles p and p + 4, at once: 128 + q (float16: 1024 + q) in each half, less 128 + zero, which is exact.
    """
    if ASSEMBLED:
        HALF: tl.constexpr = tl.float16 == DTYPE
        # of 128 (1024), 1 and, twice, -(128 + zero): the bits in DTYPE
        BITS: tl.constexpr = "0x64006400" if HALF else "0x43004300"
        ONE: tl.constexpr = "0x3C003C00" if HALF else "0x3F803F80"
        minus = zeros | (zeros << 16) | (-469703680 if HALF else -1023360256)
        FMA: tl.constexpr = "fma.rn.f16x2 v, v, one, $9; " if HALF else "fma.rn.bf16x2 v, v, one, $9; "
        NUMBERS: tl.constexpr = "lop3.b32 v, t, 0x000F000F, " + BITS + ", 0xEA; " + FMA
        n0, n4, n1, n5, n2, n6, n3, n7 = tl.inline_asm_elementwise(
            "{ .reg .b32 t, v, one; mov.b32 one, " + ONE + "; mov.b32 t, $8; "
            + NUMBERS + "mov.b32 {$0, $1}, v; shr.u32 t, $8, 4; "
            + NUMBERS + "mov.b32 {$2, $3}, v; shr.u32 t, $8, 8; "
            + NUMBERS + "mov.b32 {$4, $5}, v; shr.u32 t, $8, 12; "
            + NUMBERS + "mov.b32 {$6, $7}, v; }",
            "=&h,=&h,=&h,=&h,=&h,=&h,=&h,=&h,r,r", [words, minus],
            dtype=(tl.int16, tl.int16, tl.int16, tl.int16, tl.int16, tl.int16, tl.int16, tl.int16),
            is_pure=True, pack=1,
        )  # fmt: skip
    else:
        n0, n4 = _less(words, zeros, 0, DTYPE), _less(words, zeros, 4, DTYPE)
        n1, n5 = _less(words, zeros, 1, DTYPE), _less(words, zeros, 5, DTYPE)
        n2, n6 = _less(words, zeros, 2, DTYPE), _less(words, zeros, 6, DTYPE)
        n3, n7 = _less(words, zeros, 3, DTYPE), _less(words, zeros, 7, DTYPE)
    # A thread has whole chunks: what follows moves nothing, it names. [N, CHUNKS, 2 j + h], then p = 2 a + b behind.
    even = tl.join(_halves(n0, n4, N, CHUNKS), _halves(n2, n6, N, CHUNKS))
    odd = tl.join(_halves(n1, n5, N, CHUNKS), _halves(n3, n7, N, CHUNKS))
    numbers = tl.permute(tl.reshape(tl.join(even, odd), (N, CHUNKS, 8, 4)), (0, 1, 3, 2))
    numbers = tl.reshape(numbers, (N, CHUNKS * 32))
    if ASSEMBLED:
        numbers = numbers.to(DTYPE, bitcast=True)
    return numbers


@triton.jit
def _less(words, zeros, B: tl.constexpr, DTYPE: tl.constexpr):
    """The B-th nibble less the zero."""
    return (((words >> (4 * B)) & 15) - zeros).to(tl.float32).to(DTYPE)


@triton.jit
def _halves(low, high, N: tl.constexpr, CHUNKS: tl.constexpr):
    """[N, 4 * CHUNKS], each -> [N, CHUNKS, 2 j + h]"""
    return tl.reshape(tl.join(low, high), (N, CHUNKS, 8))

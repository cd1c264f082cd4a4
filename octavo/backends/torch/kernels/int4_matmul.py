"""Few tokens times a 4-bit matrix: x [M, K], Int4Matrix [N, K] -> out [M, N] or [M, N / 2], M <= 256, in one launch.

After the product, if asked: bias, gated activation. `dequantize` writes a matrix out whole. Up to 16 tokens and groups
of 128 are direct_matmul.py's.
"""

# ruff: noqa: N803, N806, RUF005 (in capitals: what a kernel is compiled for; Triton knows no starred tuples)
from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.backends.torch.kernels import pdl
from octavo.backends.torch.kernels.direct_choice import Direct, choose_direct
from octavo.backends.torch.kernels.direct_matmul import Chunks, direct_matmul
from octavo.backends.torch.kernels.epilogue import finish, join_parts
from octavo.backends.torch.kernels.int4_unpack import load_chunk, load_once, nibble, unpack, wide
from octavo.backends.torch.kernels.norm import row_shape
from octavo.backends.torch.kernels.skinny_choice import row_blocks
from octavo.backends.torch.kernels.skinny_matmul import Scratch
from octavo.backends.torch.quant.int4 import Int4Matrix

MAX_ROWS = 256
_FEW = 64
"""Tokens up to which the matrix unit has time to spare."""
_FEWER = tl.constexpr(_FEW)
_MULTIPROCESSORS = 132  # of an H100
_INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)  # the interpreter's tl.dot takes bfloat16 for integers


@dataclass(frozen=True, slots=True)
class Variant:
    """How one product is computed.

    form "vector": M = 1, float32 multiply-adds; a thread has `repeat` rows of weights (gated: half of them gates) and
    loads `stages` chunks of each ahead of their use. A program makes block_n * repeat products.
    form "dot": the matrix unit, tokens padded as by row_blocks; `stages` shared-memory buffers of `block_k` columns. A
    program makes block_n outputs (64 or 128) of a split-th of K.
    """

    form: str
    block_n: int
    warps: int
    stages: int
    repeat: int = 1
    block_k: int = 128
    split: int = 1


def scratch_sizes(variant: Variant | Direct, m: int, n: int, *, gated: bool = False) -> tuple[int, int]:
    """(float32 elements, int32 counters) that `variant` needs for a weight of n rows; zeros where it does not split."""
    if variant.split == 1:
        return 0, 0
    block, blocks = row_blocks(m)
    tiles = blocks * triton.cdiv(n // 2 if gated else n, variant.block_n)
    return tiles * variant.split * (2 if gated else 1) * block * variant.block_n, tiles


def choose(m: int, n: int, k: int, *, group: int, gated: bool = False) -> Variant | Direct | None:
    """The variant for x [m, k] and a matrix [n, k] in groups of so many columns; None: the library's product of it
    dequantized is as fast, gated: or the product without the activation and then the activation's own kernel.

    By an H100's figures for the four products of Llama-3.1-8B in groups of 128 (benchmarks/gpu/int4_matmul.py).
    """
    if not 1 <= m <= MAX_ROWS or (gated and m > _FEW):
        return None
    direct = choose_direct(m, n, k, bits=4, gated=gated) if group % 128 == 0 else None
    if direct is not None:
        return direct
    if m == 1:
        whole = n <= 4096 and k <= 4096
        return Variant("vector", 8, 8 if n <= 8192 else 4, 4 if whole else 2, repeat=2)
    variant = Variant("dot", 64, 4, 4 if m <= _FEW else 3)
    tiles, split = row_blocks(m)[1] * triton.cdiv(n // 2 if gated else n, variant.block_n), 1
    while split < 8 and tiles * split * 2 <= 2 * _MULTIPROCESSORS and k >= 4 * split * variant.block_k:
        split *= 2
    return replace(variant, split=split)


def int4_matmul(
    x: Tensor,
    weight: Int4Matrix,
    out: Tensor,
    variant: Variant | Direct,
    *,
    scratch: Scratch | None = None,
    bias: Tensor | None = None,
    act: str = "",
) -> Tensor:
    """out = x @ W.T, W as if its columns were in order, then what is asked for; returns out.

    x: float16 or bfloat16 [M, K], M <= 256 ("vector": 1), rows contiguous. out: [M, N], or [M, N / 2] with `act`
    ("silu", "gelu", "gelu_tanh": act(first half) * second half); x's type or float32, rows contiguous. bias: [N].
    Weights are not rounded; all else is rounded where separate kernels in x's type would round.
    scratch: needed where variant.split > 1 (scratch_sizes says how large).
    """
    m, k = x.shape
    if m == 0:
        return out
    n, group = out.shape[1], weight.group
    if isinstance(variant, Direct):
        return direct_matmul(x, _chunks(weight), out, variant, bias=bias, act=act)
    pointers = (weight.words, weight.scales, weight.zeros, out, bias)
    if variant.form == "vector":
        if x.data_ptr() % 16:
            x = x.clone()
        tiles = triton.cdiv(n, variant.block_n * variant.repeat // (2 if act else 1))
        _vector_kernel[(tiles,)](
            x, *pointers, n, out.stride(0),
            K=k, GROUP=group, ACT=act, BLOCK_N=variant.block_n, REPEAT=variant.repeat,
            STEP=variant.warps * 32 // variant.block_n, AHEAD=variant.stages, num_warps=variant.warps, **pdl.options(),
        )  # fmt: skip
        return out
    partial, arrivals = _checked(scratch, scratch_sizes(variant, m, weight.shape[0], gated=act != ""))
    block, blocks = row_blocks(m)
    block_k = variant.block_k if group == k else min(variant.block_k, group)
    sums = None if weight.zeros is None or block <= _FEW else _block_sums(x, block_k)
    _dot_kernel[(blocks, triton.cdiv(n, variant.block_n), variant.split)](
        x, sums, *pointers, partial, arrivals, m, n, x.stride(0), out.stride(0),
        K=k, GROUP=group, ACT=act, BLOCK_M=block, BLOCK_N=variant.block_n, BLOCK_K=block_k, SPLIT=variant.split,
        num_warps=variant.warps, num_stages=variant.stages, **pdl.options(),
    )  # fmt: skip
    return out


def _chunks(weight: Int4Matrix) -> Chunks:
    rows = weight.shape[0]
    return Chunks(weight.words, (1, rows), weight.scales, (1, weight.group), (1, rows), weight.zeros)


def _block_sums(x: Tensor, columns: int) -> Tensor:
    """float32 [ceil(K / columns), M]: sums of so many neighbouring columns of x [M, K]."""
    m, k = x.shape
    out = torch.empty(triton.cdiv(k, columns), m, dtype=torch.float32, device=x.device)
    block, warps = row_shape(k)
    _block_sums_kernel[(m,)](x, out, m, x.stride(0), K=k, COLUMNS=columns, BLOCK=max(block, columns),
                             num_warps=warps, **pdl.options())  # fmt: skip
    return out


@triton.jit(do_not_specialize=["M"])
def _block_sums_kernel(
    x_ptr, out_ptr, M, x_stride, K: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0)
    k = tl.arange(0, BLOCK)
    pdl.wait(PDL)
    values = tl.load(x_ptr + row.to(tl.int64) * x_stride + k, mask=k < K, other=0).to(tl.float32)
    sums = tl.sum(tl.reshape(values, (BLOCK // COLUMNS, COLUMNS)), 1)
    at = tl.arange(0, BLOCK // COLUMNS)
    tl.store(out_ptr + at * M + row, sums, mask=at * COLUMNS < K)


def _checked(scratch: Scratch | None, sizes: tuple[int, int]) -> tuple[Tensor | None, Tensor | None]:
    """The scratch, large enough; (None, None) where the product is not split."""
    elements, tiles = sizes
    if tiles == 0:
        return None, None
    if scratch is None or scratch.partial.numel() < elements or scratch.arrivals.numel() < tiles:
        raise ValueError(f"scratch is missing or too small: this product needs make_scratch({elements}, {tiles}, ..)")
    return scratch


@triton.jit
def _vector_kernel(
    x_ptr, words_ptr, scales_ptr, zeros_ptr, out_ptr, bias_ptr, N, out_stride,
    K: tl.constexpr, GROUP: tl.constexpr, ACT: tl.constexpr, BLOCK_N: tl.constexpr, REPEAT: tl.constexpr,
    STEP: tl.constexpr, AHEAD: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Program: REPEAT times BLOCK_N rows of weights; a thread takes every STEP-th chunk of K, of REPEAT rows."""
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    CHUNKS: tl.constexpr = K // 32
    OWN: tl.constexpr = REPEAT if ACT == "" else REPEAT // 2
    first = tl.program_id(0) * (BLOCK_N * OWN)
    chunks = tl.arange(0, STEP)[:, None] + tl.zeros((STEP, BLOCK_N), tl.int32)
    rows = ()
    for r in tl.static_range(REPEAT):
        row = tl.minimum(first + (r % OWN) * BLOCK_N + tl.arange(0, BLOCK_N), N - 1) + (r // OWN) * N
        rows = rows + (row[None, :],)
    width = N * (REPEAT // OWN)
    loaded = ()
    for d in tl.static_range(AHEAD):
        loaded = loaded + (
            _load_weights(words_ptr, scales_ptr, zeros_ptr, chunks + d * STEP, rows, width, CHUNKS, GROUP, REPEAT),
        )
    pdl.wait(PDL)
    sums = ()
    for _ in tl.static_range(REPEAT):
        sums = sums + (tl.zeros((STEP, BLOCK_N), tl.float32),)
    x_at = x_ptr.to(tl.pointer_type(tl.int32), bitcast=True)
    for start in range(0, CHUNKS, STEP * AHEAD):
        coming = ()
        for d in tl.static_range(AHEAD):
            here = chunks + (start + d * STEP)
            following = loaded[d]
            if CHUNKS > STEP * AHEAD:
                ahead = here + STEP * AHEAD
                following = _load_weights(words_ptr, scales_ptr, zeros_ptr, ahead, rows, width, CHUNKS, GROUP, REPEAT)
            sums = _multiply(sums, loaded[d], x_at + here * 16, here < CHUNKS, zeros_ptr, DTYPE, REPEAT)
            coming = coming + (following,)
        loaded = coming
    for r in tl.static_range(OWN):
        cols = first + r * BLOCK_N + tl.arange(0, BLOCK_N)
        acc = tl.sum(sums[r], 0)
        up = acc if ACT == "" else tl.sum(sums[REPEAT - OWN + r], 0)
        finish(acc, up, out_ptr, bias_ptr, 0, cols, cols < N, N, out_stride, DTYPE, ACT)


@triton.jit
def _load_weights(
    words_ptr, scales_ptr, zeros_ptr, chunks, rows, width,
    CHUNKS: tl.constexpr, GROUP: tl.constexpr, REPEAT: tl.constexpr,
):  # fmt: skip
    """For each of `rows`: a chunk's four words, scale and zero (without zeros_ptr: anything), [STEP, BLOCK_N] each."""
    inside = chunks < CHUNKS
    loaded = ()
    for r in tl.static_range(REPEAT):
        words = load_chunk(words_ptr + (chunks.to(tl.int64) * width + rows[r]) * 4, inside, True)
        group = chunks // (GROUP // 32) * width + rows[r]
        scale = load_once(scales_ptr + group, inside)
        zero = scale
        if zeros_ptr is not None:
            zero = load_once(zeros_ptr + group, inside)
        loaded = loaded + ((words, scale, zero),)
    return loaded


@triton.jit
def _multiply(sums, loaded, x_at, inside, zeros_ptr, DTYPE: tl.constexpr, REPEAT: tl.constexpr):
    """The sums with each row's chunk added: scale * (sum of nibble * x - offset * sum of x), apart for p even and odd.

    nibble is 128 + q for p even, 128 + q / 16 for p odd; 128 * 16 * x costs four of float32's bits.
    """
    none = tl.zeros(inside.shape, tl.float32)
    x_even = none
    x_odd = none
    even = ()
    odd = ()
    for _ in tl.static_range(REPEAT):
        even = even + (none,)
        odd = odd + (none,)
    for p in tl.static_range(0, 4, 2):
        x_even, even = _multiply_pairs(x_even, even, loaded, load_chunk(x_at + 4 * p, inside, False), p, DTYPE, REPEAT)
        after = load_chunk(x_at + 4 * p + 4, inside, False)
        x_odd, odd = _multiply_pairs(x_odd, odd, loaded, after, p + 1, DTYPE, REPEAT)
    x_sum = x_even + x_odd
    magic = 128.0 * x_even + 2048.0 * x_odd
    added = ()
    for r in tl.static_range(REPEAT):
        if zeros_ptr is None:
            offset = magic + 8.0 * x_sum
        else:
            offset = magic + loaded[r][2].to(tl.float32) * x_sum
        added = added + (sums[r] + loaded[r][1].to(tl.float32) * (even[r] + 16.0 * odd[r] - offset),)
    return added


@triton.jit
def _multiply_pairs(x_sum, sums, loaded, pairs, P: tl.constexpr, DTYPE: tl.constexpr, REPEAT: tl.constexpr):
    """pairs: x's four words of this p; -> the sums of x and of nibble * x for each row."""
    for j in tl.static_range(4):
        low, high = wide(pairs[j], DTYPE)
        x_sum += low + high
        added = ()
        for r in tl.static_range(REPEAT):
            word = loaded[r][0][j]
            added = added + (sums[r] + nibble(word, P) * low + nibble(word, P + 4) * high,)
        sums = added
    return x_sum, sums


@triton.jit(do_not_specialize=["M"])
def _dot_kernel(
    x_ptr, sums_ptr, words_ptr, scales_ptr, zeros_ptr, out_ptr, bias_ptr, partial_ptr, arrivals_ptr,
    M, N, x_stride, out_stride,
    K: tl.constexpr, GROUP: tl.constexpr, ACT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, SPLIT: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Program (block, tile, part): BLOCK_N outputs of BLOCK_M rows, over the part-th of SPLIT runs of K."""
    block = tl.program_id(0)  # next to each other, so that weights are read from memory once
    tile = tl.program_id(1)
    part = tl.program_id(2)
    sums_stride = M
    first = block * BLOCK_M
    x_ptr += first * x_stride
    out_ptr += first * out_stride
    M -= first
    STEPS: tl.constexpr = (K + BLOCK_K * SPLIT - 1) // (BLOCK_K * SPLIT)
    EVEN_K: tl.constexpr = K % (BLOCK_K * SPLIT) == 0
    begin = part * (STEPS * BLOCK_K)
    pdl.wait(PDL)
    rows = tl.arange(0, BLOCK_M)[:, None]
    cols = tl.minimum(tile * BLOCK_N + tl.arange(0, BLOCK_N), N - 1)
    width = N if ACT == "" else 2 * N
    acc = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    up = acc
    # Scales, zeros and sums of x are loaded two steps ahead: too narrow for the copies that fill shared memory. (A loop
    # that hands a value on untouched has none of these copies: hence _widen, and + 0.0, at the second step.)
    now = _widen(_load_group(scales_ptr, zeros_ptr, begin, cols, width, K, GROUP))
    then = _load_group(scales_ptr, zeros_ptr, begin + BLOCK_K, cols, width, K, GROUP)
    up_now, up_then = now, then
    tokens = tl.minimum(first + tl.arange(0, BLOCK_M), sums_stride - 1)
    sums = _load_sums(sums_ptr, begin, tokens, sums_stride, K, BLOCK_K) + 0.0
    sums_then = _load_sums(sums_ptr, begin + BLOCK_K, tokens, sums_stride, K, BLOCK_K)
    if ACT != "":
        up_now = _widen(_load_group(scales_ptr, zeros_ptr, begin, cols + N, width, K, GROUP))
        up_then = _load_group(scales_ptr, zeros_ptr, begin + BLOCK_K, cols + N, width, K, GROUP)
    for step in range(STEPS):
        start = begin + step * BLOCK_K
        ks = start + tl.arange(0, BLOCK_K)[None, :]
        x = tl.load(x_ptr + rows * x_stride + ks, mask=(rows < M) & (ks < K), other=0)
        acc = _dot_step(x, sums, words_ptr, zeros_ptr, now, acc, start, cols, width, K, EVEN_K, BLOCK_N, BLOCK_K)
        now = _widen(then)
        then = _load_group(scales_ptr, zeros_ptr, start + 2 * BLOCK_K, cols, width, K, GROUP)
        if ACT != "":
            above = cols + N
            up = _dot_step(x, sums, words_ptr, zeros_ptr, up_now, up, start, above, width, K, EVEN_K, BLOCK_N, BLOCK_K)
            up_now = _widen(up_then)
            up_then = _load_group(scales_ptr, zeros_ptr, start + 2 * BLOCK_K, above, width, K, GROUP)
        if sums_ptr is not None:
            sums = sums_then + 0.0
            sums_then = _load_sums(sums_ptr, start + 2 * BLOCK_K, tokens, sums_stride, K, BLOCK_K)
    if SPLIT > 1:
        tiles = tl.num_programs(1)
        arrivals_ptr += block * tiles
        partial_ptr += (block * tiles).to(tl.int64) * (SPLIT * (1 if ACT == "" else 2) * BLOCK_M * BLOCK_N)
    join_parts(
        tl.trans(acc), tl.trans(up), out_ptr, bias_ptr, partial_ptr, arrivals_ptr, tile, part, M, N, out_stride,
        x_ptr.dtype.element_ty, ACT, BLOCK_M, BLOCK_N, SPLIT,
    )  # fmt: skip


@triton.jit
def _load_group(scales_ptr, zeros_ptr, k, rows, width, K: tl.constexpr, GROUP: tl.constexpr):
    """Scale and zero of the group that k is in (beyond K: of the last), for each of `rows`."""
    at = tl.minimum(k // GROUP, K // GROUP - 1) * width + rows
    scale = tl.load(scales_ptr + at)
    if zeros_ptr is None:
        zero = tl.full(rows.shape, 8, tl.uint8)
    else:
        zero = tl.load(zeros_ptr + at)
    return scale, zero


@triton.jit
def _widen(group):
    """Scale and zero as they are computed with."""
    return group[0].to(tl.float32), group[1].to(tl.int32)


@triton.jit
def _load_sums(sums_ptr, k, tokens, stride, K: tl.constexpr, BLOCK_K: tl.constexpr):
    """Of each token's columns from k on, as of _block_sums; zeros beyond K, or where there are none."""
    if sums_ptr is None:
        sums = tl.zeros(tokens.shape, tl.float32)
    else:
        sums = tl.load(sums_ptr + k // BLOCK_K * stride + tokens, mask=k < K, other=0)
    return sums


@triton.jit
def _dot_step(x, sums, words_ptr, zeros_ptr, group, acc, start, rows, width, K: tl.constexpr, EVEN_K: tl.constexpr,
              BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):  # fmt: skip
    """acc + scale * (weights[rows, start :] @ x.T), of the weights without their scale. EVEN_K: no run ends beyond K.

    A zero other than 8 is multiplied by the sum of x: of few tokens this is made by the matrix unit too, where it is in
    the right place at once.
    """
    if K % BLOCK_K == 0 and not EVEN_K:
        start = tl.minimum(start, K - BLOCK_K)  # beyond K, where x is 0, any block will do: less than a mask costs
    word = start // 8 + tl.arange(0, BLOCK_K // 8)[None, :]
    at = words_ptr + ((word // 4).to(tl.int64) * width + rows[:, None]) * 4 + word % 4
    if K % BLOCK_K == 0:
        words = tl.load(at, eviction_policy="evict_first")
    else:
        words = tl.load(at, mask=word < K // 8, other=0, eviction_policy="evict_first")
    weights = unpack(words, tl.full((BLOCK_N, 1), 8, tl.int32), x.dtype, BLOCK_N, BLOCK_K // 32)
    if _INTERPRETED:
        weights = weights.to(tl.float32)
        x = x.to(tl.float32)
    product = tl.dot(weights, tl.trans(x), input_precision="ieee")
    if zeros_ptr is not None and x.shape[0] > _FEWER:
        product += (8.0 - group[1].to(tl.float32))[:, None] * sums[None, :]
    elif zeros_ptr is not None:
        ones = tl.full((BLOCK_N, BLOCK_K), 1.0, x.dtype)
        product += tl.dot(ones, tl.trans(x), input_precision="ieee") * (8.0 - group[1].to(tl.float32))[:, None]
    return acc + product * group[0][:, None]


def dequantize(weight: Int4Matrix, out: Tensor) -> Tensor:
    """out [N, K], float16 or bfloat16, contiguous: every weight, columns as they lie, rounded once. Returns out."""
    n, k = out.shape
    block_k = 128 if weight.group == k else min(128, weight.group)
    grid = (triton.cdiv(k, block_k), triton.cdiv(n, 64))
    _dequantize_kernel[grid](
        weight.words, weight.scales, weight.zeros, out, n,
        K=k, GROUP=weight.group, BLOCK_N=64, BLOCK_K=block_k, num_warps=4, **pdl.options(),
    )  # fmt: skip
    return out


@triton.jit
def _dequantize_kernel(
    words_ptr, scales_ptr, zeros_ptr, out_ptr, N,
    K: tl.constexpr, GROUP: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    start = tl.program_id(0) * BLOCK_K
    first = tl.program_id(1) * BLOCK_N
    rows = tl.minimum(first + tl.arange(0, BLOCK_N), N - 1)
    word = start // 8 + tl.arange(0, BLOCK_K // 8)[None, :]
    at = words_ptr + ((word // 4).to(tl.int64) * N + rows[:, None]) * 4 + word % 4
    words = tl.load(at, mask=word < K // 8, other=0, eviction_policy="evict_first")
    scale, zero = _widen(_load_group(scales_ptr, zeros_ptr, start, rows, N, K, GROUP))
    DTYPE: tl.constexpr = out_ptr.dtype.element_ty
    weights = unpack(words, zero[:, None], DTYPE, BLOCK_N, BLOCK_K // 32)
    weights = (weights.to(tl.float32) * scale[:, None]).to(DTYPE)
    rows = (first + tl.arange(0, BLOCK_N))[:, None]
    ks = start + tl.arange(0, BLOCK_K)[None, :]
    pdl.wait(PDL)
    tl.store(out_ptr + rows.to(tl.int64) * K + ks, weights, mask=(rows < N) & (ks < K))

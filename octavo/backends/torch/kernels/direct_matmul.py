"""Few tokens times a matrix whose weights go from memory straight into the matrix unit's registers.

x [M, K], M <= 16, weight [N, K] -> out [M, N] or [M, N / 2], in one launch. Warps of a program share K and add up in
the end, so that no program waits for another; nothing passes through shared memory on its way in. Weights are E4M3, or
integers of 8 or 4 bits: widened exactly, the sums multiplied by their scales.
"""

# ruff: noqa: N803, N806, RUF005 (in capitals: what a kernel is compiled for; Triton knows no starred tuples)
from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.backends.torch.kernels import pdl
from octavo.backends.torch.kernels.direct_choice import CHUNK, MAX_ROWS, TILE, Direct
from octavo.backends.torch.kernels.epilogue import finish
from octavo.backends.torch.kernels.int4_unpack import ASSEMBLED, load_chunk, load_once, pair_of_nibbles
from octavo.backends.torch.kernels.mma import multiply_add
from octavo.backends.torch.kernels.widening import pairs_of_bytes


class Chunks(NamedTuple):
    """A weight, [N, K], by chunks of 16 bytes, aligned so: K is a multiple of what four of them hold.

    data: uint8 (E4M3, NaN as 480), int8, or int32 (words as of Int4Matrix).
    strides: from a row to the next and from a chunk to the next, in chunks.
    scale: 16 or 32 bits. group: rows and columns that share one, (1, 0): a row does, unless data is int32. Columns are
    a multiple of what four chunks hold.  scale_strides: from a group of rows to the next, and of columns.
    zeros: uint8 as of Int4Matrix, laid out as scale; or None.
    """

    data: Tensor
    strides: tuple[int, int]
    scale: Tensor
    group: tuple[int, int]
    scale_strides: tuple[int, int]
    zeros: Tensor | None = None


def direct_matmul(
    x: Tensor, weight: Chunks, out: Tensor, variant: Direct, *, bias: Tensor | None = None, act: str = ""
) -> Tensor:
    """out = x @ weight.T, then what is asked for; returns out.

    x: float16 or bfloat16 [M, K], rows contiguous.  out: [M, N], or [M, N / 2] with `act` ("silu", "gelu", "gelu_tanh":
    act(first half) * second half); x's type or float32, rows contiguous.  bias: [N].
    All roundings are where separate kernels in x's type would round.  ValueError for more than 16 tokens or x of 32
    bits.
    """
    m, k = x.shape
    if m == 0:
        return out
    if m > MAX_ROWS or x.element_size() != 2:
        raise ValueError(f"a direct product takes {MAX_ROWS} tokens of 16 bits at most, not {m} of {x.dtype}")
    if x.data_ptr() % CHUNK or x.stride(0) * 2 % CHUNK:
        x = x.clone(memory_format=torch.contiguous_format)  # `contiguous` would give back a single row as it lies
    n = out.shape[1]
    tiles = variant.block_n // TILE * (2 if act else 1)
    _direct_kernel[(triton.cdiv(n, variant.block_n),)](
        x, weight.data, weight.scale, weight.zeros, out, bias, m, n, x.stride(0), *weight.strides,
        *weight.scale_strides, out.stride(0),
        K=k, GROUP_N=weight.group[0], GROUP_K=weight.group[1], ACT=act, TILES=tiles,
        TOKENS=1 if m <= 8 else 2, WARPS=variant.warps, AHEAD=variant.stages, EVEN=n % variant.block_n == 0,
        num_warps=variant.warps, **_registers(variant.registers), **pdl.options(),
    )  # fmt: skip
    return out


def _registers(most: int) -> dict[str, int]:
    """A launch's options, where the compiler knows them."""
    return {"maxnreg": most} if ASSEMBLED.value else {}


@triton.jit(do_not_specialize=["M"])
def _direct_kernel(
    x_ptr, weight_ptr, scale_ptr, zeros_ptr, out_ptr, bias_ptr, M, N, x_stride, row_stride, chunk_stride,
    scale_row_stride, scale_stride, out_stride,
    K: tl.constexpr, GROUP_N: tl.constexpr, GROUP_K: tl.constexpr, ACT: tl.constexpr, TILES: tl.constexpr,
    TOKENS: tl.constexpr, WARPS: tl.constexpr, AHEAD: tl.constexpr, EVEN: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Program: TILES times 16 rows of weights (gated: half of them gates), for TOKENS times 8 tokens.

    A step is four chunks of each row, one a thread: lane 4 g + t has chunk t of rows g and g + 8, and x's of token g.
    Which of its columns meet in one instruction does not matter, if both sides agree.  EVEN: no rows end beyond N.
    """
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    KIND: tl.constexpr = weight_ptr.dtype.element_ty
    BITS: tl.constexpr = 4 if tl.int32 == KIND else 8
    OWN: tl.constexpr = TILES if ACT == "" else TILES // 2
    STEPS: tl.constexpr = K * BITS // 512
    TURNS: tl.constexpr = (STEPS + WARPS - 1) // WARPS
    thread = tl.arange(0, 32 * WARPS)
    warp = thread // 32
    g = thread % 32 // 4
    t = thread % 4
    first = tl.program_id(0) * (16 * OWN)
    words_ptr = weight_ptr.to(tl.pointer_type(tl.int32), bitcast=True)
    tiles = _rows_of_tiles(first + g, N, TILES, OWN, EVEN)
    ahead = _load_ahead(
        words_ptr, scale_ptr, zeros_ptr, tiles, warp, t, row_stride, chunk_stride, scale_row_stride, scale_stride,
        STEPS, BITS, GROUP_N, GROUP_K, WARPS, AHEAD,
    )  # fmt: skip
    pdl.wait(PDL)
    tokens = _tokens(x_ptr, g, M, x_stride, TOKENS)
    x_ahead = ()
    for d in tl.static_range(AHEAD):
        x_ahead = x_ahead + (_load_x(tokens, d * WARPS + warp, t, STEPS, BITS, TOKENS),)
    sums = _no_sums(WARPS, TILES * TOKENS)
    for turn in range(0, TURNS, AHEAD):
        for d in tl.static_range(AHEAD):
            coming = (turn + d + AHEAD) * WARPS + warp
            x = x_ahead[0]
            following = x
            if TURNS > AHEAD:
                following = _load_x(tokens, coming, t, STEPS, BITS, TOKENS)
            x_ahead = x_ahead[1:] + (following,)
            added = ()
            for r in tl.static_range(TILES):
                added = added + _add_step(sums, r, ahead[0], x, t, zeros_ptr, KIND, GROUP_K, TOKENS, DTYPE)
                next_tile = ahead[0]
                if TURNS > AHEAD:
                    next_tile = _load_tile(
                        words_ptr, scale_ptr, zeros_ptr, tiles[r], coming, t, row_stride, chunk_stride,
                        scale_row_stride, scale_stride, STEPS, BITS, GROUP_N, GROUP_K, False,
                    )  # fmt: skip
                ahead = ahead[1:] + (next_tile,)
            sums = added
    for b in tl.static_range(TOKENS):
        for r in tl.static_range(OWN):
            up = sums[r * TOKENS + b] if ACT == "" else sums[(OWN + r) * TOKENS + b]
            _store(
                sums[r * TOKENS + b], up, out_ptr, bias_ptr, scale_ptr, b * 8, first + r * 16, M, N, out_stride,
                scale_row_stride, GROUP_K, ACT, WARPS, DTYPE,
            )  # fmt: skip


@triton.jit
def _rows_of_tiles(first, N, TILES: tl.constexpr, OWN: tl.constexpr, EVEN: tl.constexpr):
    """For each tile two rows of the weight, of which `first` is the first; beyond the end the last one again."""
    tiles = ()
    for r in tl.static_range(TILES):
        low = first + r % OWN * 16
        high = low + 8
        if not EVEN:
            low = tl.minimum(low, N - 1)
            high = tl.minimum(high, N - 1)
        tiles = tiles + ((low + r // OWN * N, high + r // OWN * N),)
    return tiles


@triton.jit
def _tokens(x_ptr, g, M, x_stride, TOKENS: tl.constexpr):
    """Where x of the g-th token begins, for each block of tokens; beyond the end of the last one again."""
    tokens = ()
    for b in tl.static_range(TOKENS):
        at = x_ptr + tl.minimum(b * 8 + g, M - 1) * x_stride
        tokens = tokens + (at.to(tl.pointer_type(tl.int32), bitcast=True),)
    return tokens


@triton.jit
def _no_sums(WARPS: tl.constexpr, COUNT: tl.constexpr):
    """As many as there are tiles, for each block of tokens, of what multiply_add adds to."""
    none = tl.zeros((32 * WARPS,), tl.float32)
    sums = ()
    for _ in tl.static_range(COUNT):
        sums = sums + ((none, none, none, none),)
    return sums


@triton.jit
def _store(
    sums, ups, out_ptr, bias_ptr, scale_ptr, token, column, M, N, out_stride, scale_row_stride,
    GROUP_K: tl.constexpr, ACT: tl.constexpr, WARPS: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """What multiply_add leaves of one tile and block of tokens, added over warps and finished."""
    lane = tl.arange(0, 32)
    acc = _over_warps(sums, WARPS)
    up = acc
    if ACT != "":
        up = _over_warps(ups, WARPS)
    for c in tl.static_range(4):
        tokens = token + lane % 4 * 2 + c % 2
        columns = column + c // 2 * 8 + lane // 4
        one, other = acc[c], up[c]
        if GROUP_K == 0:
            row = tl.minimum(columns, N - 1)
            one *= tl.load(scale_ptr + row * scale_row_stride)
            if ACT != "":
                other *= tl.load(scale_ptr + (N + row) * scale_row_stride)
        inside = (tokens < M) & (columns < N)
        finish(one, other, out_ptr, bias_ptr, tokens, columns, inside, N, out_stride, DTYPE, ACT)


@triton.jit
def _load_ahead(
    words_ptr, scale_ptr, zeros_ptr, tiles, warp, t, row_stride, chunk_stride, scale_row_stride, scale_stride,
    STEPS: tl.constexpr, BITS: tl.constexpr, GROUP_N: tl.constexpr, GROUP_K: tl.constexpr, WARPS: tl.constexpr,
    AHEAD: tl.constexpr,
):  # fmt: skip
    """A warp's first AHEAD steps of all tiles."""
    ahead = ()
    for d in tl.static_range(AHEAD):
        for r in tl.static_range(len(tiles)):
            tile = _load_tile(
                words_ptr, scale_ptr, zeros_ptr, tiles[r], d * WARPS + warp, t, row_stride, chunk_stride,
                scale_row_stride, scale_stride, STEPS, BITS, GROUP_N, GROUP_K, (d + 1) * WARPS <= STEPS,
            )  # fmt: skip
            ahead = ahead + (tile,)
    return ahead


@triton.jit
def _load_tile(
    words_ptr, scale_ptr, zeros_ptr, rows, step, t, row_stride, chunk_stride, scale_row_stride, scale_stride,
    STEPS: tl.constexpr, BITS: tl.constexpr, GROUP_N: tl.constexpr, GROUP_K: tl.constexpr, SURE: tl.constexpr,
):  # fmt: skip
    """Of both rows: a chunk's four words, scale and zero; what there is none of is anything. SURE: step < STEPS."""
    inside = None if SURE else step < STEPS
    loaded = ()
    for h in tl.static_range(2):
        row = rows[h]
        # in 64 bits from here: of 4-bit weights a chunk's neighbours in its row are far
        chunk = row.to(tl.int64) * row_stride + (step * 4 + t).to(tl.int64) * chunk_stride
        words = load_chunk(words_ptr + chunk * 4, inside, True)
        scale = row
        zero = row
        if GROUP_K > 0:
            group = row // GROUP_N * scale_row_stride + step * (512 // BITS) // GROUP_K * scale_stride
            scale = load_once(scale_ptr + group, step < STEPS)
            if zeros_ptr is not None:
                zero = load_once(zeros_ptr + group, step < STEPS)
        loaded = loaded + ((words, scale, zero),)
    return loaded


@triton.jit
def _load_x(tokens, step, t, STEPS: tl.constexpr, BITS: tl.constexpr, TOKENS: tl.constexpr):
    """For each block of tokens: what stands beside a chunk of weights, 16 bytes of x a piece.

    Of four pieces a thread has its t-th first, so that the pieces of four threads lie in different banks of L1.
    """
    PIECES: tl.constexpr = 16 // BITS
    x = ()
    for b in tl.static_range(TOKENS):
        pieces = ()
        for p in tl.static_range(PIECES):
            own = p ^ t if PIECES == 4 else p
            pieces = pieces + (load_chunk(tokens[b] + ((step * 4 + t) * PIECES + own) * 4, step < STEPS, False),)
        x = x + (pieces,)
    return x


@triton.jit
def _add_step(
    sums, r, loaded, x, t, zeros_ptr,
    KIND: tl.constexpr, GROUP_K: tl.constexpr, TOKENS: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """The r-th tile's sums for each block of tokens, with a step of weights times x added."""
    BITS: tl.constexpr = 4 if tl.int32 == KIND else 8
    low = loaded[0]
    high = loaded[1]
    none = tl.zeros(t.shape, tl.float32)
    here = ()
    for b in tl.static_range(TOKENS):
        here = here + (((none, none, none, none) if GROUP_K > 0 else sums[r * TOKENS + b]),)
    for i in tl.static_range(32 // BITS):
        if BITS == 4:
            own = _piece(i, BITS) ^ t
            a0 = pair_of_nibbles(low[0][_word(i, BITS)], low[2], own, zeros_ptr, DTYPE)
            a1 = pair_of_nibbles(high[0][_word(i, BITS)], high[2], own, zeros_ptr, DTYPE)
            a2 = pair_of_nibbles(low[0][_word(i, BITS) + 1], low[2], own, zeros_ptr, DTYPE)
            a3 = pair_of_nibbles(high[0][_word(i, BITS) + 1], high[2], own, zeros_ptr, DTYPE)
        else:
            a0, a2 = pairs_of_bytes(low[0][i], tl.uint8 == KIND, DTYPE)
            a1, a3 = pairs_of_bytes(high[0][i], tl.uint8 == KIND, DTYPE)
        added = ()
        for b in tl.static_range(TOKENS):
            piece = x[b][_piece(i, BITS)]
            b0, b1 = piece[_word(i, BITS)], piece[_word(i, BITS) + 1]
            added = added + (multiply_add(a0, a1, a2, a3, b0, b1, here[b], DTYPE),)
        here = added
    if GROUP_K > 0:
        added = ()
        for b in tl.static_range(TOKENS):
            was = sums[r * TOKENS + b]
            now = here[b]
            by = low[1].to(tl.float32)
            high_by = high[1].to(tl.float32)
            one = (was[0] + by * now[0], was[1] + by * now[1], was[2] + high_by * now[2], was[3] + high_by * now[3])
            added = added + (one,)
        here = added
    return here


@triton.constexpr_function
def _piece(i, bits):
    """Of x, the piece of four words that the i-th instruction of a step takes two of."""
    return i % 4 if bits == 4 else i // 2


@triton.constexpr_function
def _word(i, bits):
    """The first of the two, neighbours, so that no register is moved for them."""
    return 2 * (i // 4 if bits == 4 else i % 2)


@triton.jit
def _over_warps(sums, WARPS: tl.constexpr):
    """Four [32 * WARPS] -> four [32]."""
    a = tl.reshape(sums[0], (WARPS, 32))
    b = tl.reshape(sums[1], (WARPS, 32))
    c = tl.reshape(sums[2], (WARPS, 32))
    d = tl.reshape(sums[3], (WARPS, 32))
    return tl.reduce((a, b, c, d), 0, _add_each)


@triton.jit
def _add_each(a, b, c, d, e, f, g, h):
    return a + e, b + f, c + g, d + h

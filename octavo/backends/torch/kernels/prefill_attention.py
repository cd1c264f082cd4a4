"""Attention of many query tokens a sequence over the paged cache, causal: queries in by tiles, their outputs out.

The form of FlashAttention-2 (Dao 2023): one program holds a tile of queries and walks the keys with an online softmax.
"""

# ruff: noqa: N803, N806 (in capitals: what a kernel is compiled for)
from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from octavo.backends.torch.kernels import float8
from octavo.models.spec import Attention

LOG2E = tl.constexpr(1.4426950408889634)
_INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)  # the interpreter's tl.dot takes bfloat16 for integers


class Shape(NamedTuple):
    """How the work is cut. A program's block_m rows are (query, head) pairs, `pack` heads of one kv head a query."""

    block_m: int
    block_n: int  # keys a step
    pack: int
    warps: int
    stages: int
    descriptors: bool = False  # load K and V by the tensor memory accelerator where block_size >= block_n

    @property
    def queries(self) -> int:
        """The most queries that a tile may have."""
        return self.block_m // self.pack


@cache
def choose(
    heads: int, kv_heads: int, head_dim: int, itemsize: int, block_size: int = 64, kept: torch.dtype | None = None
) -> Shape:  # fmt: skip
    """Shape for these heads and activations of `itemsize` bytes; `queries` depends on the heads alone.

    kept: the cache's type, where that is not the activations'.

    All heads of a kv head are packed into the rows: they share K and V, few queries fill more rows, and the masked
    triangle at the diagonal is block_m / pack queries wide.  128 rows are two warp groups of 64, the height of one
    matrix instruction; for head_dim 128, two programs of one group each hide each other's waits better.  Keys a step:
    64, three steps in flight, as two would wait for the next tile after each; with head_dim 256 registers and shared
    memory (227 KiB) hold as much only where a tile lies in one block and comes by a descriptor, without addresses.
    E4M3 passes through registers on its way to the matrix unit, which takes from a descriptor its worth.
    """
    group = heads // kv_heads
    pack = max(n for n in range(1, min(group, 16) + 1) if group % n == 0)
    rows = 64 if 64 < head_dim <= 128 else 128
    warps = rows // 16
    # no matrix unit, or tiles that may be wider and pass through registers
    if itemsize > 2 or kept not in (None, torch.float8_e4m3fn):
        return Shape(rows, 16 if head_dim > 128 else 32, pack, warps=16 if itemsize > 2 else warps, stages=2)
    if head_dim <= 128:
        return Shape(rows, 64, pack, warps, stages=3, descriptors=block_size >= 64 and kept is None)
    if block_size >= 64 and head_dim == 256 and kept is None:
        return Shape(rows, 64, pack, warps, stages=2, descriptors=True)
    return Shape(rows, 32, pack, warps, stages=3)


def tile_queries(layer: Attention, dtype: torch.dtype) -> int:
    """`block_m` for make_tiles: the most queries a tile may have, whatever the types and the block size."""
    return choose(layer.heads, layer.kv_heads, layer.head_dim, dtype.itemsize).queries


def make_tiles(spans: Sequence[tuple[int, int, int, int]], block_m: int) -> list[tuple[int, int, int, int]]:
    """Cut spans (row, first, start, count) into tiles of the same form with count <= block_m, longest walk first.

    Queries first .. first + count - 1 are positions start .. start + count - 1 of the sequence in `row`. The order
    keeps a program that starts late from ending long after the others.
    """
    tiles = [
        (row, first + done, start + done, min(block_m, count - done))
        for row, first, start, count in spans
        for done in range(0, count, block_m)
    ]
    tiles.sort(key=lambda tile: -(tile[2] + tile[3]))
    return tiles


@triton.jit
def _keys(begin, low, last, WINDOW: tl.constexpr, BLOCK_N: tl.constexpr):
    """begin .. begin + BLOCK_N - 1, moved into low .. last: uint32, which divides by a shift.

    Past the sequence's own keys block numbers are garbage and memory may be NaN, which weights of zero do not silence;
    a key of its own stands in.
    """
    keys = tl.minimum(begin + tl.arange(0, BLOCK_N), last)
    if WINDOW:
        keys = tl.maximum(keys, low)
    return keys.to(tl.uint32)


@triton.jit
def _block_numbers(table, begin, low, last, WINDOW: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_SIZE: tl.constexpr):
    """Blocks of _keys: int32 [BLOCK_N], or one where all lie in one block."""
    if BLOCK_N <= BLOCK_SIZE:
        blocks = tl.load(table + tl.minimum(begin, last) // BLOCK_SIZE)
    else:
        blocks = tl.load(table + _keys(begin, low, last, WINDOW, BLOCK_N) // BLOCK_SIZE)
    return blocks


@triton.jit
def _load_tile(
    pages, descriptor, behind, blocks, begin, low, last, head,
    MASKED: tl.constexpr, WINDOW: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, DIM_P: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_SIZE: tl.constexpr, DESCRIPTORS: tl.constexpr,
):  # fmt: skip
    """K of _keys, or V with `behind` the slots of K: [BLOCK_N, DIM_P]."""
    if DESCRIPTORS and not MASKED:
        tile = descriptor.load([blocks * BLOCK_SIZE + begin % BLOCK_SIZE + behind, head * DIM])
    else:
        if MASKED:
            offsets = _keys(begin, low, last, WINDOW, BLOCK_N) % BLOCK_SIZE
        else:
            offsets = (begin + tl.arange(0, BLOCK_N)).to(tl.uint32) % BLOCK_SIZE
        slots = (blocks * BLOCK_SIZE + offsets.to(tl.int32) + behind).to(tl.int64)
        dims = tl.arange(0, DIM_P)[None, :]
        pointers = pages + head * DIM + (slots * (KV_HEADS * DIM))[:, None] + dims
        if DIM == DIM_P:
            tile = tl.load(pointers)
        else:
            tile = tl.load(pointers, mask=dims < DIM, other=0.0)
    return tile


@triton.jit
def _dot(a, b, c):
    """c + a @ b in float32, whatever b's type rounded to a's; float32 in full."""
    b = float8.widen(b, a.dtype)
    if _INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, c, input_precision="ieee")


@triton.jit
def _scores(q, k, scale, softcap, SOFTCAP: tl.constexpr):
    """q @ k, capped: float32 [BLOCK_M, BLOCK_N].  scale [BLOCK_M]: still to be multiplied by, but where capped."""
    scores = _dot(q, tl.trans(k), None)
    if SOFTCAP:  # tanh x = 1 - 2 / (e^2x + 1); scale: scale / softcap * 2 log2(e)
        scores = softcap * (1.0 - 2.0 / (tl.exp2(tl.minimum(scores * scale[:, None], 100.0)) + 1.0))
    return scores


@triton.jit
def _hide(scores, positions, begin, window, WINDOW: tl.constexpr, BLOCK_N: tl.constexpr):
    """Scores of the keys that a row must not see become -inf."""
    keys = begin + tl.arange(0, BLOCK_N)[None, :]
    seen = keys <= positions[:, None]
    if WINDOW:
        seen &= keys > positions[:, None] - window
    return tl.where(seen, scores, float("-inf"))


@triton.jit
def _weigh(scores, peak, total, scale, SOFTCAP: tl.constexpr, HEADROOM: tl.constexpr):
    """A step of the online softmax in units of log2: the scores' weights, the factor of older ones, sums, peaks."""
    if SOFTCAP:
        top = tl.maximum(peak, tl.max(scores, 1) - HEADROOM)
        weights = tl.exp2(scores - top[:, None])
    else:
        top = tl.maximum(peak, tl.max(scores, 1) * scale - HEADROOM)
        weights = tl.exp2(scores * scale[:, None] - top[:, None])
    shrink = tl.exp2(peak - top)
    return weights, shrink, total * shrink + tl.sum(weights, 1), top


@triton.jit
def _walk_masked(
    acc, total, peak, q, blocks, positions, begin, end, edge, jump, low, last, head,
    pages, values, table, scale, softcap, window,
    WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, DIM_P: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_SIZE: tl.constexpr,
):  # fmt: skip
    """Add the tiles of keys that some row must not see: begin .. end - 1, where what is past `edge` lies `jump` on.

    Block numbers are read one step ahead, so that the loads of K and V never wait for them; blocks: the first ones,
    where a tile has one.
    """
    HEADROOM: tl.constexpr = float8.headroom(pages.dtype.element_ty)
    if BLOCK_N > BLOCK_SIZE:
        blocks = _block_numbers(table, begin + tl.where(begin >= edge, jump, 0), low, last, WINDOW, BLOCK_N, BLOCK_SIZE)
    for i in tl.range(begin, end, BLOCK_N):
        n = i + tl.where(i >= edge, jump, 0)
        k = _load_tile(pages, None, 0, blocks, n, low, last, head,
                       True, WINDOW, KV_HEADS, DIM, DIM_P, BLOCK_N, BLOCK_SIZE, False)  # fmt: skip
        v = _load_tile(pages, None, values, blocks, n, low, last, head,
                       True, WINDOW, KV_HEADS, DIM, DIM_P, BLOCK_N, BLOCK_SIZE, False)  # fmt: skip
        after = i + BLOCK_N + tl.where(i + BLOCK_N >= edge, jump, 0)
        blocks = _block_numbers(table, after, low, last, WINDOW, BLOCK_N, BLOCK_SIZE)
        scores = _hide(_scores(q, k, scale, softcap, SOFTCAP), positions, n, window, WINDOW, BLOCK_N)
        weights, shrink, total, peak = _weigh(scores, peak, total, scale, SOFTCAP, HEADROOM)
        acc = _dot(weights.to(q.dtype), v, acc * shrink[:, None])
    return acc, total, peak


@triton.jit
def _walk_whole(
    acc, total, peak, q, blocks, begin, end, head, pages, values, descriptor, table, scale, softcap,
    SOFTCAP: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, DIM_P: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_SIZE: tl.constexpr, DESCRIPTORS: tl.constexpr,
):  # fmt: skip
    """Add the tiles begin .. end - 1 that all rows see in full.  blocks: of the first."""
    HEADROOM: tl.constexpr = float8.headroom(pages.dtype.element_ty)
    for n in tl.range(begin, end, BLOCK_N):
        k = _load_tile(pages, descriptor, 0, blocks, n, 0, 0, head,
                       False, False, KV_HEADS, DIM, DIM_P, BLOCK_N, BLOCK_SIZE, DESCRIPTORS)  # fmt: skip
        v = _load_tile(pages, descriptor, values, blocks, n, 0, 0, head,
                       False, False, KV_HEADS, DIM, DIM_P, BLOCK_N, BLOCK_SIZE, DESCRIPTORS)  # fmt: skip
        blocks = _block_numbers(table, n + BLOCK_N, 0, end - 1, False, BLOCK_N, BLOCK_SIZE)
        scores = _scores(q, k, scale, softcap, SOFTCAP)
        weights, shrink, total, peak = _weigh(scores, peak, total, scale, SOFTCAP, HEADROOM)
        acc = _dot(weights.to(q.dtype), v, acc * shrink[:, None])
    return acc, total, peak


@triton.jit(do_not_specialize=["window"])
def _prefill(
    q_ptr, pages, values, descriptor, tables, tiles, sinks, out_ptr,
    q_stride, out_stride, table_stride, scale, softcap, window,
    SINKS: tl.constexpr,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, PACK: tl.constexpr, DIM: tl.constexpr, DIM_P: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    WINDOW: tl.constexpr, SOFTCAP: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
):  # fmt: skip
    """Program (tile, pack of heads), heads fastest: those that run at a time read the same keys."""
    PACKS: tl.constexpr = HEADS // PACK
    program = tl.program_id(0)
    entry = tiles + program // PACKS * 4
    first_head = program % PACKS * PACK
    head = first_head // (HEADS // KV_HEADS)
    row, first, start, count = tl.load(entry), tl.load(entry + 1), tl.load(entry + 2), tl.load(entry + 3)
    table = tables + row.to(tl.int64) * table_stride

    # Keys low .. last: whole from `edge`, which the window ends, up to `plain`; masked there and at the diagonal.
    high = start + count
    last = tl.maximum(high - 1, 0)
    plain = (start + 1) // BLOCK_N * BLOCK_N
    low, edge = start * 0, start * 0
    if WINDOW:
        low = tl.maximum(start - window + 1, 0)
        edge = tl.minimum(tl.cdiv(tl.maximum(high - window, 0), BLOCK_N) * BLOCK_N, tl.cdiv(high, BLOCK_N) * BLOCK_N)
    jump = tl.maximum(plain - edge, 0)
    begin = low // BLOCK_N * BLOCK_N
    whole_blocks = _block_numbers(table, edge, 0, last, False, BLOCK_N, BLOCK_SIZE)
    masked_blocks = whole_blocks
    if BLOCK_N <= BLOCK_SIZE:  # read before the whole tiles, whose work hides the time it takes
        first_masked = begin + tl.where(begin >= edge, jump, 0)
        masked_blocks = _block_numbers(table, first_masked, low, last, WINDOW, BLOCK_N, BLOCK_SIZE)

    m, dims = tl.arange(0, BLOCK_M), tl.arange(0, DIM_P)
    heads = first_head + m % PACK
    tokens = (first + m // PACK).to(tl.int64)
    positions = start + m // PACK
    mask = (m // PACK < count)[:, None] & (dims < DIM)[None, :]
    q = tl.load(q_ptr + (tokens * q_stride + heads * DIM)[:, None] + dims[None, :], mask=mask, other=0.0)
    q, scale = float8.products(q, scale, pages.dtype.element_ty)
    # Finite, so that a row that has seen no key yet subtracts it from itself and from -inf without NaN.
    peak = tl.full([BLOCK_M], -1e30, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    if SINKS:
        peak = tl.load(sinks + heads) * LOG2E
        total += 1.0
    acc = tl.zeros([BLOCK_M, DIM_P], tl.float32)
    acc, total, peak = _walk_whole(
        acc, total, peak, q, whole_blocks, edge, plain, head, pages, values, descriptor, table, scale, softcap,
        SOFTCAP, KV_HEADS, DIM, DIM_P, BLOCK_N, BLOCK_SIZE, DESCRIPTORS)  # fmt: skip
    acc, total, peak = _walk_masked(
        acc, total, peak, q, masked_blocks, positions, begin, high - jump, edge, jump, low, last, head,
        pages, values, table, scale, softcap, window,
        WINDOW, SOFTCAP, KV_HEADS, DIM, DIM_P, BLOCK_N, BLOCK_SIZE)  # fmt: skip
    target = out_ptr + (tokens * out_stride + heads * DIM)[:, None] + dims[None, :]
    total = tl.where(total > 0, total, 1.0)  # a row without a query may have seen nothing
    tl.store(target, (acc / total[:, None]).to(out_ptr.dtype.element_ty), mask=mask)


def prefill_attention(
    q: Tensor, cache: Tensor, block_tables: Tensor, tiles: Tensor, out: Tensor,
    *, layer: Attention, sinks: Tensor | None = None,
) -> None:  # fmt: skip
    """Attend with the queries that `tiles` cover; a query at position p sees keys max(0, p - window + 1) .. p.

    q, out: [tokens, heads, head_dim], a token's heads contiguous.  cache: [2 (k, v), num_blocks, block_size,
    kv_heads, head_dim] contiguous, the queries' own keys in it; another type is rounded to q's (E4M3
    beside bfloat16: both to float16).  block_tables: int32 [rows, max_blocks].  tiles: int32 [n, 4], of make_tiles with
    tile_queries; all zero: nothing.  layer: its scale (> 0), window, softcap.  sinks: float32 [heads], logits that
    join the softmax's denominator only.
    """
    kept = None if cache.dtype == q.dtype else cache.dtype
    shape = choose(q.shape[1], cache.shape[3], q.shape[2], q.element_size(), cache.shape[2], kept)
    launch(shape, q, cache, block_tables, tiles, out, layer, sinks)


def launch(
    shape: Shape, q: Tensor, cache: Tensor, block_tables: Tensor, tiles: Tensor, out: Tensor,
    layer: Attention, sinks: Tensor | None = None,
) -> None:  # fmt: skip
    """prefill_attention cut as `shape` says; tiles of at most shape.queries."""
    (_, heads, dim), (_, blocks, block_size, kv_heads, _) = q.shape, cache.shape
    grid = (tiles.shape[0] * (heads // shape.pack), 1, 1)
    if not grid[0]:
        return
    window, cap, slots = layer.window, layer.softcap, blocks * block_size
    padded = triton.next_power_of_2(max(dim, 16))
    described = shape.descriptors and block_size >= shape.block_n and dim == padded
    width, descriptor = kv_heads * dim, None
    if described:  # of K and V as [2 * slots, width]
        descriptor = TensorDescriptor(cache, [2 * slots, width], [width, 1], [shape.block_n, dim])
    _prefill[grid](
        q, cache, slots, descriptor, block_tables, tiles, sinks, out,
        q.stride(0), out.stride(0), block_tables.stride(0),
        layer.scale * LOG2E.value if cap is None else layer.scale / cap * (2.0 * LOG2E.value),
        0.0 if cap is None else cap * LOG2E.value, window or 0, sinks is not None,
        heads, kv_heads, shape.pack, dim, padded, shape.block_m, shape.block_n, block_size,
        window is not None, cap is not None, described, num_warps=shape.warps, num_stages=shape.stages,
    )  # fmt: skip

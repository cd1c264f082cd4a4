"""Decode attention: one query token a sequence and its keys and values in the paged cache in, attention's output out.

One launch (and one CUDA graph) serves any lengths: many sequences lie in a row that programs share equally, few have a
grid of their own (_decode and _decode_few). Parts of a sequence are merged by the program that ends last.
"""

# ruff: noqa: N803, N806

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.backends.torch.kernels import float8, pdl
from octavo.backends.torch.kernels.decode_choice import FEW, FEW_PROGRAMS, Choice, choose, padded, places
from octavo.models.spec import Attention

ALIKE = 125
"""Percent of the mean of their tiles that the longest of sequences has at most, which are then taken for equal."""

PLAN_CHUNK = 1024
"""Sequences that the plan sums at once."""

LOG2E = tl.constexpr(1.4426950408889634)
"""exp(x) = exp2(x * LOG2E), and exp2 is what the hardware has."""


@dataclass(frozen=True)
class Plan:
    """What all layers of a step (of one window) share.

    Kernels read it before they wait for the one just before (pdl.py), so the last to write it was another.

    block_tables: int32 [rows, max_blocks], entries past a sequence's end are never used.
    rows: int32 [B], each sequence's row of block_tables.  seq_lens: int32 [B], tokens with their own; 0: padding.
    tiles: int32 [B + 2], from plan_tiles.
    """

    block_tables: Tensor
    rows: Tensor
    seq_lens: Tensor
    tiles: Tensor


@dataclass(frozen=True)
class Workspace:
    """Where programs that share a (sequence, kv head) meet. One serves all layers of a stream, one after another.

    A program of _decode has at most two parts of a (sequence, kv head) that others share: one that began in an earlier
    program (place 2 * program) and one that goes on in later ones (place 2 * program + 1). Those of _decode_few have
    one: place (sequence * kv_heads + kv head) * splits + part. All tensors are flat:
    processors: the device's multiprocessors, each of PROGRAMS programs at most, which have two places each.
    partial: float32 [places, group, head_dim], each a whole softmax of its keys (group and head_dim padded).
    lse: float32 [places, group], base-2 logarithm of its denominator.
    arrived: int32 [max_rows * kv_heads], parts stored so far; zero between launches.
    """

    processors: int
    partial: Tensor
    lse: Tensor
    arrived: Tensor


def make_workspace(
    *, max_rows: int, kv_heads: int, group: int, head_dim: int, processors: int, device: torch.device
) -> Workspace:
    """For up to max_rows sequences on a device of so many multiprocessors; group: query heads a kv head."""
    heads = places(processors) * triton.next_power_of_2(group)
    width = padded(head_dim)
    return Workspace(
        processors,
        torch.empty(heads * width, dtype=torch.float32, device=device),
        torch.empty(heads, dtype=torch.float32, device=device),
        torch.zeros(max_rows * kv_heads, dtype=torch.int32, device=device),
    )


def plan_tiles(seq_lens: Tensor, out: Tensor, *, window: int | None, tile: int) -> None:
    """out int32 [B + 2], of seq_lens int32 [B]: at i <= B tiles of keys of the sequences before i; window: Attention's.

    Tiles wholly before the window are not counted, and sequences of no tokens have none. Last comes the number of
    sequences that have any, if those are about as long as each other (ALIKE), else 0.
    """
    shape = (seq_lens.shape[0], window or 0, tile, PLAN_CHUNK, ALIKE)
    _plan_tiles[(1,)](seq_lens, out, *shape, num_warps=4, **pdl.options())


def decode_attention(
    q: Tensor,
    cache: Tensor,
    plan: Plan,
    out: Tensor,
    *,
    layer: Attention,
    workspace: Workspace,
    sinks: Tensor | None = None,
) -> None:
    """out [B, heads, head_dim] of q, of the same shape and dtype (which may have any stride between tokens).

    cache: [2 (k, v), num_blocks, block_size, kv_heads, head_dim] contiguous, of any float dtype. Sequence b sees its
    positions max(0, L - window) .. L - 1, L = seq_lens [b]; where L is 0, out is 0. Of layer, the scale, window and
    softcap matter. sinks: float32 [heads], logits that join the softmax's denominator only.
    """
    batch, heads, head_dim = q.shape
    kv_heads = cache.shape[3]
    pairs, group = batch * kv_heads, heads // kv_heads
    choice = choose(head_dim, cache.element_size(), group, batch=batch, pairs=pairs, processors=workspace.processors)
    launch(q, cache, plan, out, layer=layer, workspace=workspace, sinks=sinks, choice=choice)


def launch(
    q: Tensor,
    cache: Tensor,
    plan: Plan,
    out: Tensor,
    *,
    layer: Attention,
    workspace: Workspace,
    sinks: Tensor | None,
    choice: Choice,
) -> None:
    """decode_attention, cut as said; choice.tile must be plan_tiles', or splits given (at most FEW sequences)."""
    batch, heads, head_dim = q.shape
    _, num_blocks, block_size, kv_heads, _ = cache.shape
    group = heads // kv_heads
    if batch == 0:
        return
    # Alone, a sequence needs no more parts than programs that run at once; others may be longer than their share.
    programs = workspace.processors * FEW_PROGRAMS
    room = programs // kv_heads if batch == 1 else places(workspace.processors) // (batch * kv_heads)
    splits = min(choice.splits, room)
    shared = (
        q, cache, plan.block_tables, plan.rows, plan.seq_lens, plan.tiles, sinks, out,
        workspace.partial, workspace.lse, workspace.arrived,
        batch, q.stride(0), out.stride(0), plan.block_tables.stride(0),
        num_blocks * block_size * kv_heads * head_dim, layer.scale, layer.softcap or 0.0, choice.min_share,
    )  # fmt: skip
    constants = {
        "GROUP": group, "GROUP_PAD": triton.next_power_of_2(group), "KV_HEADS": kv_heads, "DIM": head_dim,
        "DIM_PAD": padded(head_dim), "BLOCK_SIZE": block_size, "WINDOW": layer.window or 0,
        "SOFTCAP": layer.softcap is not None, "TILE": choice.tile, "STAGES": choice.stages, "num_warps": choice.warps,
        **pdl.options(),
    }  # fmt: skip
    if splits and batch <= FEW:
        _decode_few[(kv_heads, batch, splits)](*shared, programs, ALONE=batch == 1, FEW=FEW, **constants)
    else:
        even = workspace.processors if choice.even else 0
        _decode[(workspace.processors * choice.each,)](*shared, choice.slack, even, **constants)


@triton.jit(do_not_specialize=["batch", "window"])
def _plan_tiles(
    seq_lens, out, batch, window, TILE: tl.constexpr, CHUNK: tl.constexpr, ALIKE: tl.constexpr, PDL: tl.constexpr
):
    pdl.wait(PDL)
    before = 0
    some = 0
    most = 0
    tl.store(out, before)
    for first in range(0, batch, CHUNK):
        index = first + tl.arange(0, CHUNK)
        length = tl.load(seq_lens + index, mask=index < batch, other=0)
        low = tl.where(window > 0, tl.maximum(length - window, 0), 0)
        count = (length + TILE - 1) // TILE - low // TILE
        tl.store(out + 1 + index, before + tl.cumsum(count, 0), mask=index < batch)
        before += tl.sum(count, 0)
        some += tl.sum((count > 0).to(tl.int32), 0)
        most = tl.maximum(most, tl.max(count, 0))
    tl.store(out + batch + 1, tl.where(most * some * 100 <= before * ALIKE, some, 0))


@triton.jit
def _even_share(total, pairs, programs, processors):
    """Tiles of whole (sequence, kv head)s of equal length, or of an even part of one; some programs go without."""
    each = tl.cdiv(total, pairs)
    return tl.where(
        pairs < processors, tl.cdiv(each, tl.maximum(processors // pairs, 1)), each * tl.cdiv(pairs, programs)
    )


@triton.jit
def _border(tiles, batch, at, slack, KV_HEADS: tl.constexpr, CHUNK: tl.constexpr):
    """(sequence of place `at` in the row, at): moved to an end of its (sequence, kv head) where one is within slack.

    The sequence is the number of those that end at or before it; its ends come with it. One load, where halving the
    range again and again needs ten, one after another.
    """
    NEVER: tl.constexpr = 2**30
    tile = at // KV_HEADS
    found = 0
    before = 0
    after = NEVER
    for start in range(0, batch, CHUNK):
        index = start + tl.arange(0, CHUNK)
        ends = tl.load(tiles + 1 + index, mask=index < batch, other=NEVER)
        past = ends <= tile
        found += tl.sum(past.to(tl.int32), 0)
        before = tl.maximum(before, tl.max(tl.where(past, ends, 0), 0))
        after = tl.minimum(after, tl.min(tl.where(past, NEVER, ends), 0))
    begin = before * KV_HEADS + (at - before * KV_HEADS) // (after - before) * (after - before)
    end = begin + after - before
    moved = tl.where(at - begin <= slack, begin, tl.where(end - at <= slack, end, at))
    return found, moved


@triton.jit
def _clear(seq_lens, out, batch, out_stride, WIDTH: tl.constexpr, CHUNK: tl.constexpr):
    """Zeros for sequences of no tokens; the last programs begin, for the first are those with work in small batches."""
    programs = tl.num_programs(0)
    for b in range(programs - 1 - tl.program_id(0), batch, programs):
        if tl.load(seq_lens + b) == 0:
            for start in range(0, WIDTH, CHUNK):
                index = start + tl.arange(0, CHUNK)
                zeros = tl.zeros([CHUNK], tl.float32).to(out.dtype.element_ty)
                tl.store(out + b * out_stride + index, zeros, mask=index < WIDTH)


@triton.jit
def _look_up(table, first, low, end, TILE: tl.constexpr, BLOCK_SIZE: tl.constexpr, WINDOW: tl.constexpr):
    """Block numbers of positions first .. first + TILE - 1, [TILE], or one for all where a block holds whole tiles.

    Positions outside low .. end - 1 get block 0, and their entries in the table are not read.
    """
    if BLOCK_SIZE >= TILE:
        at = first
        valid = first < end
    else:
        at = first + tl.arange(0, TILE)
        valid = _seen(at, low, end, WINDOW)
    return tl.load(table + at.to(tl.uint32) // BLOCK_SIZE, mask=valid, other=0)


@triton.jit
def _seen(position, low, end, WINDOW: tl.constexpr):
    return (position >= low) & (position < end) if WINDOW > 0 else position < end


@triton.jit
def _addresses(base, blocks, tile, within, ROW: tl.constexpr, TILE: tl.constexpr, BLOCK_SIZE: tl.constexpr):
    """Of a tile [TILE, columns], rows ROW apart, in the blocks of _look_up; within: from a block or tile on."""
    block = base + blocks.to(tl.int64) * (BLOCK_SIZE * ROW)
    if BLOCK_SIZE >= TILE:
        at = block + (tile * TILE & (BLOCK_SIZE - 1)) * ROW + within
    else:
        at = block[:, None] + within
    return at


@triton.jit
def _valid(seen, columns, WIDTH: tl.constexpr):
    """Of [TILE, columns]."""
    valid = seen[:, None]
    if columns.shape[0] != WIDTH:
        valid = valid & (columns < WIDTH)[None, :]
    return valid


@triton.jit
def _scores(q, k, seen, scale, softcap, SOFTCAP: tl.constexpr):
    """q.k in base-2 logarithm, [M, TILE]; scale [M]: of q.k, with LOG2E (with SOFTCAP, divided by the cap)."""
    scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale[:, None]
    if SOFTCAP:  # tanh(x) = 1 - 2 / (exp(2 x) + 1), right at both infinities
        scores = softcap * (1.0 - 2.0 / (tl.exp2(2.0 * scores) + 1.0)) * LOG2E
    return tl.where(seen[None, :], scores, float("-inf"))


@triton.jit
def _walk(
    q, keys, table, blocks, span, scale, softcap, value_offset,
    ROW: tl.constexpr, DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr,
    TILE: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Softmax of q [M, DIM_PAD] over a span of keys: (maximum [M], sum [M], output before division [M, DIM_PAD]).

    span: (first tile, tile after the last, first position seen, position after the last seen); each tile has one seen.
    keys: the kv head's first number; ROW: numbers from one slot to the next; blocks: of the first tile, by _look_up.
    The table is read one tile ahead of the keys, and both run ahead of the sums by the compiler's pipeline. Sums stay
    [M, TILE] until the end: a sum over keys crosses warps, and so costs a barrier. Short sequences wait more for
    instructions than for memory, so that addresses are a block's (64 bits) and a number within it that stays the same,
    where blocks are no larger than tiles.
    """
    M: tl.constexpr = q.shape[0]
    DIM_PAD: tl.constexpr = q.shape[1]
    KIND: tl.constexpr = keys.dtype.element_ty
    HEADROOM: tl.constexpr = float8.headroom(KIND)
    PAIRED: tl.constexpr = float8.is_e4m3(KIND)
    q, scale = float8.products(q, scale, KIND)
    begin, stop, low, end = span
    offsets = tl.arange(0, TILE)
    dims = tl.arange(0, DIM_PAD)
    highest = tl.full([M], float("-inf"), tl.float32)
    sums = tl.zeros([M, TILE], tl.float32)
    within = (offsets & (BLOCK_SIZE - 1))[:, None] * ROW + dims[None, :]
    if PAIRED:
        values = (keys + value_offset).to(tl.pointer_type(tl.int16))
        pairs = tl.arange(0, DIM_PAD // 2)
        within_values = (offsets & (BLOCK_SIZE - 1))[:, None] * (ROW // 2) + pairs[None, :]
        acc = tl.zeros([M, DIM_PAD // 2], tl.float32)
        odd = tl.zeros([M, DIM_PAD // 2], tl.float32)
    else:
        acc = tl.zeros([M, DIM_PAD], tl.float32)
    for tile in tl.range(begin, stop, num_stages=STAGES):
        position = tile * TILE + offsets
        seen = _seen(position, low, end, WINDOW)
        at = _addresses(keys, blocks, tile, within, ROW, TILE, BLOCK_SIZE)
        k = tl.load(at, mask=_valid(seen, dims, DIM), other=0.0)
        if PAIRED:
            at_values = _addresses(values, blocks, tile, within_values, ROW // 2, TILE, BLOCK_SIZE)
            v = tl.load(at_values, mask=_valid(seen, pairs, DIM // 2), other=0)
        else:
            v = tl.load(at + value_offset, mask=_valid(seen, dims, DIM), other=0.0)
        blocks = _look_up(table, (tile + 1) * TILE, low, end, TILE, BLOCK_SIZE, WINDOW)
        scores = _scores(q, float8.widen(k, q.dtype), seen, scale, softcap, SOFTCAP)
        raised = tl.maximum(highest, tl.max(scores, 1) - HEADROOM)
        keep = tl.exp2(highest - raised)
        p = tl.exp2(scores - raised[:, None])
        sums = sums * keep[:, None] + p
        p = p.to(q.dtype)
        if PAIRED:
            v, v_odd = float8.halves(v, q.dtype)
            odd = tl.dot(p, v_odd, odd * keep[:, None], input_precision="ieee")
        acc = tl.dot(p, v.to(q.dtype), acc * keep[:, None], input_precision="ieee")
        highest = raised
    if PAIRED:
        acc = tl.interleave(acc, odd)
    return highest, tl.sum(sums, 1), acc


@triton.jit
def _arrive(arrived, parts):
    """Whether this program is the last of `parts` to come here; what it and the others stored before is then seen."""
    tl.debug_barrier()  # the counter is raised by one thread, after all threads' stores
    last = tl.atomic_add(arrived, 1, sem="acq_rel", scope="gpu") == parts - 1
    if last:
        tl.store(arrived, 0)
    return last


@triton.jit
def _merge(partial, lse, base, step, parts, GROUP_PAD: tl.constexpr, DIM_PAD: tl.constexpr, HELD: tl.constexpr):
    """As _walk, over stored parts: ([GROUP_PAD], same, [GROUP_PAD, DIM_PAD]).

    Places base + step * part, but the first at base + step - 1. Sums are each thread's own, and the loads of UNROLL
    parts (HELD numbers of them in registers) wait for L2 together. Summed in order: always the same result.
    """
    UNROLL: tl.constexpr = max(1, min(16, HELD // (GROUP_PAD * DIM_PAD)))
    heads = tl.arange(0, GROUP_PAD)
    at = heads[:, None] * DIM_PAD + tl.arange(0, DIM_PAD)[None, :]
    highest = tl.full([GROUP_PAD], float("-inf"), tl.float32)
    total = tl.zeros([GROUP_PAD], tl.float32)
    acc = tl.zeros([GROUP_PAD, DIM_PAD], tl.float32)
    for start in range(0, parts, UNROLL):
        raised = highest
        logs = ()
        values = ()
        for i in tl.static_range(UNROLL):
            place = tl.maximum(base + step * (start + i), base + step - 1) * GROUP_PAD
            valid = start + i < parts
            log = tl.load(lse + place + heads, mask=valid, other=float("-inf"), cache_modifier=".cg")
            value = tl.load(partial + place * DIM_PAD + at, mask=valid, other=0.0, cache_modifier=".cg")
            logs = logs + (log,)  # noqa: RUF005
            values = values + (value,)  # noqa: RUF005
            raised = tl.maximum(raised, log)
        keep = tl.exp2(highest - raised)
        total *= keep
        acc *= keep[:, None]
        for i in tl.static_range(UNROLL):
            weight = tl.exp2(logs[i] - raised)
            total += weight
            acc += weight[:, None] * values[i]
        highest = raised
    return highest, total, acc


@triton.jit
def _write(out, sinks, heads, highest, total, acc, GROUP: tl.constexpr, DIM: tl.constexpr):
    """out [GROUP, DIM] of one sequence; heads: the first one's number; the rest as _walk's result."""
    row = tl.arange(0, acc.shape[0])
    dims = tl.arange(0, acc.shape[1])
    if sinks is not None:
        logits = tl.load(sinks + heads + row, mask=row < GROUP, other=0.0)
        total += tl.exp2(logits * LOG2E - highest)
    at = out + (heads + row)[:, None] * DIM + dims[None, :]
    result = (acc * (1.0 / total)[:, None]).to(out.dtype.element_ty)
    tl.store(at, result, mask=(row < GROUP)[:, None] & (dims < DIM)[None, :])


@triton.jit
def _store_part(partial, lse, place, highest, total, acc, GROUP_PAD: tl.constexpr):
    """_walk's result into the workspace's place."""
    DIM_PAD: tl.constexpr = acc.shape[1]
    row = tl.arange(0, acc.shape[0])
    dims = tl.arange(0, DIM_PAD)
    at = partial + (place * GROUP_PAD + row)[:, None] * DIM_PAD + dims[None, :]
    tl.store(at, acc * (1.0 / total)[:, None], mask=(row < GROUP_PAD)[:, None])
    tl.store(lse + place * GROUP_PAD + row, highest + tl.log2(total), mask=row < GROUP_PAD)


@triton.jit
def _queries(q, row, GROUP: tl.constexpr, DIM: tl.constexpr, DIM_PAD: tl.constexpr):
    """Query heads [rows, DIM_PAD] of a kv head, from its first; padded ones are zeros."""
    dims = tl.arange(0, DIM_PAD)
    return tl.load(
        q + row[:, None] * DIM + dims[None, :], mask=(row < GROUP)[:, None] & (dims < DIM)[None, :], other=0.0
    )


@triton.jit(
    do_not_specialize=["batch", "table_stride", "min_share", "slack", "processors"],
    do_not_specialize_on_alignment=["tables", "rows", "seq_lens", "tiles", "sinks"],
)
def _decode(
    q, cache, tables, rows, seq_lens, tiles, sinks, out, partial, lse, arrived,
    batch, q_stride, out_stride, table_stride, value_offset, scale, softcap, min_share, slack, processors,
    GROUP: tl.constexpr, GROUP_PAD: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, DIM_PAD: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr,
    TILE: tl.constexpr, STAGES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """A program's share [at, last) of the row of (sequence, kv head, tile), segment by segment of one kv head.

    Cuts at multiples of the share, but none within `slack` percent of it from a border between (sequence, kv head)s.
    Where sequences are alike, a share is _even_share (processors 0: it is not).
    A kv head's query heads are the rows of the products, padded to the 16 that tl.dot needs (more heads than that: to
    the next power of two). The padded ones are zeros, so that their numbers are finite; they are not written.
    """
    factor = scale / softcap * LOG2E if SOFTCAP else scale * LOG2E
    total = tl.load(tiles + batch) * KV_HEADS
    alike = tl.load(tiles + batch + 1) * KV_HEADS
    share = tl.maximum(tl.cdiv(total, tl.num_programs(0)), min_share)
    if (alike > 0) & (processors > 0):
        share = _even_share(total, alike, tl.num_programs(0), processors)
    slack = share * slack // 100
    program = tl.program_id(0)
    b, at = _border(tiles, batch, tl.minimum(program * share, total), slack, KV_HEADS, 512)
    _, last = _border(tiles, batch, tl.minimum(program * share + share, total), slack, KV_HEADS, 512)
    pdl.wait(PDL)
    _clear(seq_lens, out, batch, out_stride, KV_HEADS * GROUP * DIM, 1024)
    row = tl.arange(0, 16 if GROUP_PAD < 16 else GROUP_PAD)
    while at < last:
        while tl.load(tiles + b + 1) * KV_HEADS <= at:
            b += 1
        before = tl.load(tiles + b)
        count = tl.load(tiles + b + 1) - before
        head = (at - before * KV_HEADS) // count
        begin = before * KV_HEADS + head * count
        stop = tl.minimum(last, begin + count)
        end = tl.load(seq_lens + b)
        low = tl.maximum(end - WINDOW, 0) if WINDOW > 0 else 0
        table = tables + tl.load(rows + b).to(tl.int64) * table_stride
        skipped = low // TILE - begin
        heads = _queries(q + b * q_stride + head * GROUP * DIM, row, GROUP, DIM, DIM_PAD)
        first = _look_up(table, (at + skipped) * TILE, low, end, TILE, BLOCK_SIZE, WINDOW)
        highest, sums, acc = _walk(
            heads, cache + head * DIM, table, first, (at + skipped, stop + skipped, low, end), factor, softcap,
            value_offset, KV_HEADS * DIM, DIM, BLOCK_SIZE, WINDOW, SOFTCAP, TILE, STAGES,
        )  # fmt: skip
        target = out + b * out_stride
        if stop - at == count:
            _write(target, sinks, head * GROUP, highest, sums, acc, GROUP, DIM)
        else:
            _store_part(partial, lse, 2 * program + (at == begin).to(tl.int32), highest, sums, acc, GROUP_PAD)
            cut = (begin + slack) // share  # the first cut is where this program ends
            parts = (begin + count - slack - 1) // share - cut + 1
            if _arrive(arrived + b * KV_HEADS + head, parts):
                most, weight, merged = _merge(partial, lse, 2 * cut, 2, parts, GROUP_PAD, DIM_PAD, 4096)
                _write(target, sinks, head * GROUP, most, weight, merged, GROUP, DIM)
        at = stop


@triton.jit
def _count(length, WINDOW: tl.constexpr, TILE: tl.constexpr):
    """Tiles that sequences of these lengths see."""
    low = tl.maximum(length - WINDOW, 0) if WINDOW > 0 else 0
    return (length + TILE - 1) // TILE - low // TILE


@triton.jit(
    do_not_specialize=["batch", "table_stride", "min_share", "programs"],
    do_not_specialize_on_alignment=["tables", "rows", "seq_lens", "tiles", "sinks"],
)
def _decode_few(
    q, cache, tables, rows, seq_lens, tiles, sinks, out, partial, lse, arrived,
    batch, q_stride, out_stride, table_stride, value_offset, scale, softcap, min_share, programs,
    ALONE: tl.constexpr, FEW: tl.constexpr,
    GROUP: tl.constexpr, GROUP_PAD: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, DIM_PAD: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr,
    TILE: tl.constexpr, STAGES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """A part of one (sequence, kv head): grid (kv heads, sequences, parts), without the plan's tiles.

    Nothing is searched, since a program's time to its first key is what counts here. All have the share of tiles that
    keeps `programs` of them busy (ALONE: the grid has no more); those left without have nothing to do, and start last.
    """
    head, b, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    end = tl.load(seq_lens + b)
    table = tables + tl.load(rows + b).to(tl.int64) * table_stride
    row = tl.arange(0, 16 if GROUP_PAD < 16 else GROUP_PAD)
    count = _count(end, WINDOW, TILE)
    splits = tl.num_programs(2)
    share = tl.maximum(tl.cdiv(count, splits), min_share)
    if not ALONE:
        index = tl.arange(0, FEW)
        total = tl.sum(_count(tl.load(seq_lens + index, mask=index < batch, other=0), WINDOW, TILE), 0)
        share = tl.maximum(share, tl.cdiv(total * KV_HEADS, programs))
    low = tl.maximum(end - WINDOW, 0) if WINDOW > 0 else 0
    begin = low // TILE + part * share
    first = _look_up(table, begin * TILE, low, end, TILE, BLOCK_SIZE, WINDOW)
    pdl.wait(PDL)
    heads = _queries(q + b * q_stride + head * GROUP * DIM, row, GROUP, DIM, DIM_PAD)
    target = out + b * out_stride
    if part * share < count:
        parts = tl.cdiv(count, share)
        factor = scale / softcap * LOG2E if SOFTCAP else scale * LOG2E
        stop = tl.minimum(begin + share, low // TILE + count)
        highest, sums, acc = _walk(
            heads, cache + head * DIM, table, first, (begin, stop, low, end), factor, softcap, value_offset,
            KV_HEADS * DIM, DIM, BLOCK_SIZE, WINDOW, SOFTCAP, TILE, STAGES,
        )  # fmt: skip
        if parts == 1:
            _write(target, sinks, head * GROUP, highest, sums, acc, GROUP, DIM)
        else:
            pair = b * KV_HEADS + head
            _store_part(partial, lse, pair * splits + part, highest, sums, acc, GROUP_PAD)
            if _arrive(arrived + pair, parts):
                most, weight, merged = _merge(partial, lse, pair * splits, 1, parts, GROUP_PAD, DIM_PAD, 8192)
                _write(target, sinks, head * GROUP, most, weight, merged, GROUP, DIM)
    if (part == 0) & (count == 0):
        nothing = tl.zeros([GROUP_PAD, DIM_PAD], tl.float32)
        one = tl.full([GROUP_PAD], 1.0, tl.float32)
        _write(target, None, head * GROUP, one, one, nothing, GROUP, DIM)

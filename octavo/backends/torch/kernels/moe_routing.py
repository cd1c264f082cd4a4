"""Which experts a token goes through, and the rows (token, place) by expert: router's logits in, int32 arrays out.

Nothing is known to the host but the number of tokens: arrays have room for the worst case.
"""

# ruff: noqa: N803, N806 (in capitals: what a kernel is compiled for)
from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.backends.torch.kernels import pdl

GROUP = 4096
"""Rows that one program of the sort looks at; up to so many, one launch is enough."""


@dataclass(frozen=True)
class Runs:
    """Rows by expert. A row is token * top_k + place; an expert's rows are one run of whole blocks of block_m rows.

        order          int32 [max_blocks * block_m]   | 3 8 -1 -1 | 0 4 5 9 | 11 -1 -1 -1 | undefined ...
        block_experts  int32 [max_blocks]             |     2     |    7    |      7      | -1 ...

    Within a run rows ascend. -1 in order: no row. block_experts is -1 beyond the last run, where order is undefined.
    """

    order: Tensor
    block_experts: Tensor
    block_m: int


def max_blocks(rows: int, *, num_experts: int, block_m: int) -> int:
    """Blocks that rows fill at the most: each expert that has any begins its own block."""
    return min(rows, (rows + min(num_experts, rows) * (block_m - 1)) // block_m)


def route(logits: Tensor, *, top_k: int, renormalize: bool, experts: Tensor, shares: Tensor) -> None:
    """logits: [tokens, num_experts], any float type -> experts int32 and shares float32, both [tokens, top_k].

    Both contiguous. Experts ascend; shares are their p of the softmax. Of equal p the lowest experts are taken.
    """
    _launch_route(logits, top_k=top_k, renormalize=renormalize, experts=experts, shares=shares, runs=None)


def route_apart(logits: Tensor, *, top_k: int, renormalize: bool, shares: Tensor, block_m: int) -> Runs:
    """route() and, in the same launch, a block for every (token, place): no sort, for one token or a few.

    Experts that tokens have in common are then read once for each of them. shares: float32 [tokens, top_k], written.
    """
    rows = logits.shape[0] * top_k
    runs = Runs(
        order=torch.empty(rows * block_m, dtype=torch.int32, device=logits.device),
        block_experts=torch.empty(rows, dtype=torch.int32, device=logits.device),
        block_m=block_m,
    )
    _launch_route(logits, top_k=top_k, renormalize=renormalize, experts=runs.block_experts, shares=shares, runs=runs)
    return runs


def sort_by_expert(experts: Tensor, *, num_experts: int, block_m: int) -> Runs:
    """experts: int32 [tokens, top_k] contiguous, all in [0, num_experts) -> its rows grouped. block_m: a power of two.

    One launch for up to GROUP rows, two beyond. No atomics: the order is the same every time.
    """
    rows = experts.numel()
    blocks = max_blocks(rows, num_experts=num_experts, block_m=block_m)
    order = torch.empty(blocks * block_m, dtype=torch.int32, device=experts.device)
    block_experts = torch.empty(blocks, dtype=torch.int32, device=experts.device)
    runs = Runs(order, block_experts, block_m)
    if rows == 0:
        return runs
    groups, block = cut_sort(rows)
    bins = max(64, triton.next_power_of_2(num_experts))
    counts = block_experts  # not read with a single group
    if groups > 1:
        counts = torch.empty(groups, bins, dtype=torch.int32, device=experts.device)
        _count[(groups,)](experts, counts, rows, BLOCK=block, BINS=bins, num_warps=4, **pdl.options())
    _place[(num_experts, groups)](
        experts, counts, order, block_experts, rows, groups, blocks,
        SINGLE=groups == 1, BLOCK=block, BINS=bins, BLOCK_M=block_m, num_warps=4, **pdl.options(),
    )  # fmt: skip
    return runs


def cut_sort(rows: int) -> tuple[int, int]:
    """Groups of rows that are sorted side by side, and what a group is padded to: few variants, whatever tokens are."""
    return triton.cdiv(rows, GROUP), min(GROUP, 256 if rows <= 256 else 1024 if rows <= 1024 else GROUP)


def _launch_route(
    logits: Tensor, *, top_k: int, renormalize: bool, experts: Tensor, shares: Tensor, runs: Runs | None
) -> None:
    tokens, num_experts = logits.shape
    if tokens == 0:
        return
    # One warp a token: its reductions, top_k of them one after another, then need no barrier.
    _route[(tokens,)](
        logits, experts, shares, experts if runs is None else runs.order, logits.stride(0),
        EXPERTS=num_experts, TOP_K=top_k, RENORMALIZE=renormalize, BINS=triton.next_power_of_2(num_experts),
        BLOCK_M=0 if runs is None else runs.block_m, num_warps=1, **pdl.options(),
    )  # fmt: skip


@triton.jit
def _route(
    logits, experts, shares, order, stride,
    EXPERTS: tl.constexpr, TOP_K: tl.constexpr, RENORMALIZE: tl.constexpr, BINS: tl.constexpr, BLOCK_M: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """Program: one token. BLOCK_M: 0, or the size of the blocks to be written to order, one for each place."""
    row = tl.program_id(0).to(tl.int64)
    expert = tl.arange(0, BINS)
    pdl.wait(PDL)
    logit = tl.load(logits + row * stride + expert, mask=expert < EXPERTS, other=-float("inf")).to(tl.float32)
    p = tl.exp(logit - tl.max(logit, axis=0))
    p = p / tl.sum(p, axis=0)
    # NaN counts as the largest, as in torch.topk: always top_k are chosen, and what is written is a valid expert.
    key = tl.where(expert < EXPERTS, tl.where(p == p, p, 2.0), -2.0)
    for _ in range(TOP_K):
        key = tl.where(expert == tl.argmax(key, axis=0), -1.0, key)
    chosen = key == -1.0
    if RENORMALIZE:
        p = p / tl.sum(tl.where(chosen, p, 0.0), axis=0)
    at = row * TOP_K + tl.cumsum(chosen.to(tl.int32), axis=0) - 1
    tl.store(experts + at, expert, mask=chosen)
    tl.store(shares + at, p, mask=chosen)
    if BLOCK_M > 0:
        place = tl.arange(0, BLOCK_M)
        for i in range(TOP_K):
            pair = row * TOP_K + i
            tl.store(order + pair * BLOCK_M + place, tl.where(place == 0, pair, -1).to(tl.int32))


@triton.jit(do_not_specialize=["rows"])
def _count(experts, counts, rows, BLOCK: tl.constexpr, BINS: tl.constexpr, PDL: tl.constexpr):
    """Program: one group of BLOCK rows. counts: [groups, BINS], how many of a group's rows each expert has."""
    group = tl.program_id(0)
    row = group * BLOCK + tl.arange(0, BLOCK)
    pdl.wait(PDL)
    expert = tl.load(experts + row, mask=row < rows, other=0)
    tl.store(counts + group * BINS + tl.arange(0, BINS), tl.histogram(expert, BINS, mask=row < rows))


@triton.jit
def _sum_counts(counts, group, groups, BINS: tl.constexpr):
    """counts summed over all groups and over those before group: two int32 [BINS]."""
    STEP: tl.constexpr = 8
    expert = tl.arange(0, BINS)
    total = tl.zeros([BINS], tl.int32)
    before = tl.zeros([BINS], tl.int32)
    first = 0
    while first < groups:
        g = first + tl.arange(0, STEP)
        count = tl.load(counts + g[:, None] * BINS + expert[None, :], mask=g[:, None] < groups, other=0)
        total += tl.sum(count, axis=0)
        before += tl.sum(tl.where(g[:, None] < group, count, 0), axis=0)
        first += STEP
    return total, before


@triton.jit(do_not_specialize=["rows", "groups", "blocks"])
def _place(
    experts, counts, order, block_experts, rows, groups, blocks,
    SINGLE: tl.constexpr, BLOCK: tl.constexpr, BINS: tl.constexpr, BLOCK_M: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Program: one expert's rows among one group of BLOCK rows. SINGLE: there is one group, counted here."""
    me = tl.program_id(0)
    group = tl.program_id(1)
    row = group * BLOCK + tl.arange(0, BLOCK)
    pdl.wait(PDL)
    expert = tl.load(experts + row, mask=row < rows, other=-1)
    bins = tl.arange(0, BINS)
    if SINGLE:
        total = tl.histogram(tl.maximum(expert, 0), BINS, mask=row < rows)
        before = tl.zeros([BINS], tl.int32)
    else:
        total, before = _sum_counts(counts, group, groups, BINS)
    begin = tl.sum(tl.where(bins < me, (total + BLOCK_M - 1) // BLOCK_M, 0), axis=0)  # in blocks
    count = tl.sum(tl.where(bins == me, total, 0), axis=0)
    mine = expert == me
    at = begin * BLOCK_M + tl.sum(tl.where(bins == me, before, 0), axis=0) + tl.cumsum(mine.to(tl.int32), axis=0) - 1
    tl.store(order + at, row, mask=mine)
    if group == 0:
        _finish_run(order, block_experts, begin, count, blocks, BLOCK_M)


@triton.jit
def _finish_run(order, block_experts, begin, count, blocks, BLOCK_M: tl.constexpr):
    """-1 for the rows that this program's run lacks, its expert for each of its blocks; the last one: -1 to the end."""
    STEP: tl.constexpr = 128
    me = tl.program_id(0)
    end = begin + (count + BLOCK_M - 1) // BLOCK_M
    at = begin * BLOCK_M + count + tl.arange(0, BLOCK_M)
    tl.store(order + at, tl.full([BLOCK_M], -1, tl.int32), mask=at < end * BLOCK_M)
    block = tl.arange(0, STEP)
    first = begin
    while first < end:
        tl.store(block_experts + first + block, tl.zeros([STEP], tl.int32) + me, mask=first + block < end)
        first += STEP
    if me == tl.num_programs(0) - 1:
        first = end
        while first < blocks:
            tl.store(block_experts + first + block, tl.full([STEP], -1, tl.int32), mask=first + block < blocks)
            first += STEP

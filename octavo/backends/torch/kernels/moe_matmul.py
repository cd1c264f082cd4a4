"""A mixture's products: rows grouped by expert times their expert's matrix, and the sum of a token's rows.

Weights are read once for each block of rows; with few rows (decoding) that is all the time they take. Those of 8 or 4
bits are widened in registers, and the sums multiplied by their scales.
"""

# ruff: noqa: N803, N806 (in capitals: what a kernel is compiled for)
from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from octavo.backends.torch.kernels import pdl
from octavo.backends.torch.kernels.epilogue import activate
from octavo.backends.torch.kernels.int4_unpack import unpack
from octavo.backends.torch.kernels.moe_routing import Runs, cut_sort, route, route_apart, sort_by_expert
from octavo.backends.torch.kernels.widening import raw, widened
from octavo.backends.torch.layers.linear import linear
from octavo.backends.torch.layers.mlp import gated_mlp
from octavo.backends.torch.quant.experts import Experts
from octavo.backends.torch.quant.int4 import Int4Matrix
from octavo.backends.torch.weights import MoEWeights
from octavo.models.spec import MoE

_TALL = 64
"""Rows of weights that the matrix unit takes as its tall side, of quantized ones."""
_INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
"""The interpreter's tl.dot takes bfloat16 for integers."""


@dataclass(frozen=True)
class Blocks:
    """How expert_matmul cuts a product. m must be that of the rows' Runs.

    n: outputs of a program (the gated product has n gates and n ups).  k: inputs a step.  group: blocks of rows that
    are neighbours in the grid for the same outputs, so that the weights they share are in L2.
    descriptors: weights are loaded by the tensor memory accelerator, where their layout allows it.
    """

    m: int
    n: int
    k: int
    warps: int = 4
    stages: int = 3
    group: int = 1
    descriptors: bool = False


@dataclass(frozen=True)
class Tile:
    """What a program of down_apart reads at a time, n outputs by k inputs, and how many of them are under way."""

    n: int
    k: int
    warps: int = 4
    stages: int = 6


def choose_blocks(
    tokens: int, *, top_k: int, experts: int, gated: bool, element_size: int = 2, scaled: bool = False
) -> Blocks:
    """By the rows that an expert has on average; m is the same for both products, as they share the order.

    scaled: weights have scales by block, whose sums are kept apart.

    Few rows: small blocks, so that there are programs enough for all multiprocessors and several loads in flight on
    each. Many: as large as the accumulators' registers allow (gated ones have two), for the most work per byte read.
    float32 has no use for that: its products are not the tensor cores', and large ones take minutes to compile.
    """
    rows = tokens * top_k / experts
    if element_size > 2:
        return Blocks(m=16 if rows <= 12 else 32, n=32, k=64, group=4)
    if tokens * top_k <= 64:
        return Blocks(m=16, n=32 if gated else 64, k=128, stages=4)
    if rows <= 12:
        return Blocks(m=16, n=64, k=128, stages=3, group=2)
    if rows <= 48:
        return Blocks(m=32, n=64, k=128, stages=3, group=4)
    if rows <= 128:
        return Blocks(m=64, n=64 if gated else 128, k=64, stages=4, group=8)
    n = 64 if gated and scaled else 128
    return Blocks(m=128, n=n, k=64, warps=8, stages=4 if gated else 3, group=8, descriptors=True)


def choose_tile(inputs: int, *, element_size: int, columns: int = 0) -> Tile:
    """Narrow, as a program goes through all of a token's experts and there should be one for each multiprocessor.

    columns: that share a scale, 0: a row does.
    """
    k = 512 // max(element_size, 2)  # 512 bytes of a row
    while k > 32 and (inputs % k or columns % k):  # 768 = 3 * 256
        k //= 2
    return Tile(n=16, k=k)


def apart(tokens: int, *, top_k: int, experts: int) -> bool:
    """Are tokens so few that each of their experts is read for itself, unsorted: common ones are rare, launches not."""
    return tokens == 1 or tokens * top_k * 8 <= experts


def unlike_tokens(moe: MoE, most: int, *, element_size: int) -> list[int]:
    """Numbers of tokens from 32 to `most`, one for each set of kernels that `mixture` may take: those of prompts."""
    sizes = {"top_k": moe.top_k, "experts": moe.experts, "element_size": element_size}
    found: dict[object, int] = {}
    for tokens in range(32, most + 1, 8):  # with 8 experts and more, sets are wider than 8
        groups, block = cut_sort(tokens * moe.top_k)
        blocks = [choose_blocks(tokens, gated=gated, **sizes) for gated in (True, False)]
        found.setdefault((apart(tokens, top_k=moe.top_k, experts=moe.experts), groups > 1, block, *blocks), tokens)
    return list(found.values())


def mixture(x: Tensor, logits: Tensor, weights: MoEWeights, moe: MoE) -> Tensor:
    """x: [tokens, hidden] -> the same. As layers.moe.mixture, but rounded less often on the way.

    logits: the router's of x, [tokens, experts].
    """
    y = torch.empty_like(x)
    if apart(x.shape[0], top_k=moe.top_k, experts=moe.experts):
        _mix_apart(x, logits, weights, moe, out=y)
    else:
        _mix_sorted(x, logits, weights, moe, out=y)
    if weights.shared is not None and weights.shared_router is not None:
        y = y + linear(x, weights.shared_router, None).sigmoid() * gated_mlp(x, weights.shared, moe.act)
    return y


def _mix_apart(x: Tensor, logits: Tensor, weights: MoEWeights, moe: MoE, *, out: Tensor) -> None:
    tokens = x.shape[0]
    blocks = choose_blocks(
        tokens, top_k=moe.top_k, experts=moe.experts, gated=True, element_size=x.element_size()
    )  # fmt: skip
    shares = torch.empty(tokens, moe.top_k, dtype=torch.float32, device=x.device)
    runs = route_apart(logits, top_k=moe.top_k, renormalize=moe.renormalize, shares=shares, block_m=blocks.m)
    inner = x.new_empty(tokens * moe.top_k, moe.width)
    expert_matmul(x, weights.gate_up, runs=runs, out=inner, gather_top_k=moe.top_k, act=moe.act, blocks=blocks)
    down_apart(inner, weights.down, experts=runs.block_experts, shares=shares, out=out)


def _mix_sorted(x: Tensor, logits: Tensor, weights: MoEWeights, moe: MoE, *, out: Tensor) -> None:
    tokens, hidden = x.shape
    sizes = {"top_k": moe.top_k, "experts": moe.experts, "element_size": x.element_size()}
    scaled = _pointers(weights.gate_up).group[1] > 0
    blocks, down = (choose_blocks(tokens, gated=gated, scaled=scaled, **sizes) for gated in (True, False))
    experts = torch.empty(tokens, moe.top_k, dtype=torch.int32, device=x.device)
    shares = torch.empty(tokens, moe.top_k, dtype=torch.float32, device=x.device)
    route(logits, top_k=moe.top_k, renormalize=moe.renormalize, experts=experts, shares=shares)
    runs = sort_by_expert(experts, num_experts=moe.experts, block_m=blocks.m)
    inner = x.new_empty(tokens * moe.top_k, moe.width)
    expert_matmul(x, weights.gate_up, runs=runs, out=inner, gather_top_k=moe.top_k, act=moe.act, blocks=blocks)
    rows = x.new_empty(tokens * moe.top_k, hidden)
    expert_matmul(inner, weights.down, runs=runs, out=rows, shares=shares, blocks=down)
    combine(rows, out=out)


def expert_matmul(
    x: Tensor,
    weight: Experts,
    *,
    runs: Runs,
    out: Tensor,
    blocks: Blocks,
    gather_top_k: int = 1,
    shares: Tensor | None = None,
    act: str | None = None,
) -> None:
    """out[row] = weight[row's expert] @ x[row // gather_top_k] for all rows of runs, in float32, rounded once.

    x: [any, K], weight: [experts, N, K], last axes contiguous, of x's type or quantized. shares: float32, one a row,
    multiplies it.
    act: weight's first half are gates, out = act(gate) * up is [rows, N / 2]; otherwise [rows, N].
    """
    blocks_of_rows = runs.block_experts.shape[0]
    if blocks_of_rows == 0:
        return
    columns, inputs = out.shape[1], x.shape[1]
    matrices = _pointers(weight)
    together = 0 if matrices.group[1] == inputs else matrices.group[1]
    blocks = fit_blocks(blocks, inputs=inputs, element_size=x.element_size(), most=together)
    if matrices.scale is not None:
        blocks = replace(blocks, n=max(blocks.n, _TALL))
    descriptor = _describe(weight, blocks) if blocks.descriptors and isinstance(weight, Tensor) else None
    _expert_matmul[(blocks_of_rows * triton.cdiv(columns, blocks.n),)](
        x, *matrices[:3], descriptor, runs.order, runs.block_experts, runs.order if shares is None else shares, out,
        blocks_of_rows, blocks.group, x.stride(0), *matrices.strides, out.stride(0),
        N=columns, K=inputs, TOP_K=gather_top_k, SHARES=shares is not None, ACT=act or "",
        BLOCK_M=runs.block_m, BLOCK_N=blocks.n, BLOCK_K=blocks.k, GROUP_N=matrices.group[0], GROUP_K=matrices.group[1],
        DESCRIPTORS=descriptor is not None, num_warps=blocks.warps, num_stages=blocks.stages, **pdl.options(),
    )  # fmt: skip


class _Pointers(NamedTuple):
    """weight: numbers, bytes, or int32 words as of Int4Matrix.  scale, zeros: or None.

    strides: from an expert to the next, from a row of weights to the next, from a chunk of words to the next; of scales
    (and zeros) from a group of rows to the next, and of columns.  group: rows, over all experts, and columns that share
    a scale; (1, 0): a row does.
    """

    weight: Tensor
    scale: Tensor | None
    zeros: Tensor | None
    strides: tuple[int, int, int, int, int]
    group: tuple[int, int]


def _pointers(weight: Experts) -> _Pointers:
    if isinstance(weight, Tensor):
        return _Pointers(weight, None, None, (weight.stride(0), weight.stride(1), 0, 0, 0), (1, 0))
    (_, out, _), rows = weight.shape, weight.rows
    if isinstance(rows, Int4Matrix):
        every = rows.shape[0]
        return _Pointers(rows.words, rows.scales, rows.zeros, (4 * out, 4, 4 * every, 1, every), (1, rows.group))
    stride = rows.weight.stride(0)
    strides = (out * stride, stride, 0, rows.scale.stride(0), 1)
    return _Pointers(raw(rows.weight), rows.scale, None, strides, rows.group)


def _describe(weight: Tensor, blocks: Blocks) -> TensorDescriptor | None:
    """All experts' rows one below the other; None if they do not lie so, or not at multiples of 16 bytes."""
    experts, rows, inputs = weight.shape
    stride = weight.stride(1)
    if weight.stride(0) != rows * stride or stride * weight.element_size() % 16 or weight.data_ptr() % 16:
        return None
    return TensorDescriptor(weight, [experts * rows, inputs], [stride, 1], [blocks.n, blocks.k])


def fit_blocks(blocks: Blocks, *, inputs: int, element_size: int, most: int = 0) -> Blocks:
    """blocks with k for so many inputs of so many bytes: shared memory is sized for two bytes each.

    most: what k does not exceed; 0: any.
    """
    k = min(blocks.k * 2 // max(element_size, 2), max(16, triton.next_power_of_2(inputs)), most or inputs * 2)
    return blocks if k == blocks.k else replace(blocks, k=k)


def combine(rows: Tensor, *, out: Tensor) -> None:
    """rows: [tokens * top_k, width] -> out [tokens, width]: a token's rows added in float32, in order, rounded once."""
    tokens, width = out.shape
    if tokens == 0:
        return
    block = min(1024 if tokens > 64 else 256, triton.next_power_of_2(width))  # few tokens: more programs
    _combine[(tokens, triton.cdiv(width, block))](
        rows, out, rows.stride(0), out.stride(0), WIDTH=width, TOP_K=rows.shape[0] // tokens, BLOCK=block,
        num_warps=4 if block > 256 else 1, **pdl.options(),
    )  # fmt: skip


def down_apart(
    inner: Tensor, weight: Experts, *, experts: Tensor, shares: Tensor, out: Tensor, tile: Tile | None = None
) -> None:
    """out[token] = sum over its places of share * weight[expert] @ inner[row], in float32, rounded once; one launch.

    inner: [tokens * top_k, K], weight: [experts, N, K], of inner's type or quantized, experts: int32 and shares:
    float32, tokens * top_k contiguous, out: [tokens, N]. A token reads its experts' weights for itself: for few tokens.
    """
    tokens, columns = out.shape
    if tokens == 0:
        return
    matrices = _pointers(weight)
    size = inner.element_size() if isinstance(weight, Tensor) else 1
    tile = tile or choose_tile(inner.shape[1], element_size=size, columns=matrices.group[1])
    _down_apart[(triton.cdiv(columns, tile.n), tokens)](
        inner, *matrices[:3], experts, shares, out, inner.stride(0), *matrices.strides, out.stride(0),
        N=columns, K=inner.shape[1], TOP_K=inner.shape[0] // tokens, BLOCK_N=tile.n, BLOCK_K=tile.k,
        GROUP_N=matrices.group[0], GROUP_K=matrices.group[1], STAGES=tile.stages, num_warps=tile.warps, **pdl.options(),
    )  # fmt: skip


@triton.jit
def _dot(x, w, acc):
    """acc + x w^T, x [M, K], w [N, K], acc [M, N]."""
    if _INTERPRETED:
        x = x.to(tl.float32)
        w = w.to(tl.float32)
    return tl.dot(x, tl.trans(w), acc, input_precision="ieee")


@triton.jit
def _numbers(w, zeros, DTYPE: tl.constexpr):
    """Weights as they were loaded, [N, K] in DTYPE; of words [N, K / 8] less zeros [N]."""
    if w.dtype == tl.int32:
        KIND: tl.constexpr = DTYPE if DTYPE.primitive_bitwidth == 16 else tl.bfloat16
        numbers = unpack(w, zeros[:, None], KIND, w.shape[0], w.shape[1] // 4).to(DTYPE)
    else:
        numbers = widened(w, DTYPE)
    return numbers


@triton.jit
def _locate(blocks, group, N: tl.constexpr, BLOCK_N: tl.constexpr):
    """The program's block of rows and its block of outputs: blocks of rows vary fastest within group of them."""
    TILES: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    program = tl.program_id(0)
    first = program // (group * TILES) * group
    size = tl.minimum(blocks - first, group)
    rest = program % (group * TILES)
    return first + rest % size, rest // size


@triton.jit
def _load_weights(
    weight, descriptor, row, begin, stride_chunk,
    K: tl.constexpr, BLOCK_K: tl.constexpr, DESCRIPTORS: tl.constexpr,
):  # fmt: skip
    """[N, K] from input begin on: of the pointers weight [N, 1], or of the descriptor from its row on. Of words, which
    lie in chunks of four, [N, K / 8]."""
    WORDS: tl.constexpr = weight.dtype.element_ty == tl.int32
    if DESCRIPTORS:
        tile = descriptor.load([row, begin])
    elif WORDS:
        word = begin // 8 + tl.arange(0, BLOCK_K // 8)[None, :]
        at = weight + (word // 4).to(tl.int64) * stride_chunk + word % 4
        if K % BLOCK_K == 0:
            tile = tl.load(at)
        else:
            tile = tl.load(at, mask=word < K // 8, other=0)
    else:
        k = begin + tl.arange(0, BLOCK_K)[None, :]
        if K % BLOCK_K == 0:
            tile = tl.load(weight + k)
        else:
            tile = tl.load(weight + k, mask=k < K, other=0)
    return tile


@triton.jit
def _load_group(scale, zeros, at, begin, stride, K: tl.constexpr, GROUP_K: tl.constexpr):
    """Scales, float32, and zeros, int32, of the group that input `begin` (beyond the last: any) is in.

    at: those of the first group, [N].  Where rows have a scale each: 1; where no zeros are stored: 8.
    """
    by = tl.full(at.shape, 1.0, tl.float32)
    zero = tl.full(at.shape, 8, tl.int32)
    if GROUP_K > 0:
        here = at + tl.minimum(begin, K - 1) // GROUP_K * stride
        by = tl.load(scale + here).to(tl.float32)
        if zeros is not None:
            zero = tl.load(zeros + here).to(tl.int32)
    return by, zero


@triton.jit
def _add(a, w, acc, group, TALL: tl.constexpr, GROUP_K: tl.constexpr):
    """acc + a w^T, times the scales of the weights' group. TALL: acc is turned, [N, M]."""
    w = _numbers(w, group[1], a.dtype)
    if not TALL:
        acc = _dot(a, w, acc)
    elif GROUP_K == 0:
        acc = _dot(w, a, acc)
    else:
        acc += _dot(w, a, tl.zeros_like(acc)) * group[0][:, None]
    return acc


@triton.jit
def _products(
    x, present, weight, scale, zeros, descriptor, row, at, up, stride_w, stride_chunk, stride_scale, stride_group,
    K: tl.constexpr, GATED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    GROUP_N: tl.constexpr, GROUP_K: tl.constexpr, DESCRIPTORS: tl.constexpr,
):  # fmt: skip
    """x: pointers to rows [M, 1], those present; weights as in _load_weights, ups `up` rows on from their gates.
    at: the weights' rows in all experts', [N].

    Returns two float32 [M, N]: products with the gates (or all there is) and with the ups.
    """
    # what is widened in registers is the tall side of the matrix unit's product, which takes that from there
    TALL: tl.constexpr = scale is not None
    acc = tl.zeros([BLOCK_N, BLOCK_M] if TALL else [BLOCK_M, BLOCK_N], tl.float32)
    acc_up = acc
    ups = weight + up * stride_w
    at_up = (at + up) // GROUP_N * stride_scale
    at = at // GROUP_N * stride_scale
    # a step early, as they take about as long to come as a step does
    group = _load_group(scale, zeros, at, 0, stride_group, K, GROUP_K)
    group_up = group
    if GATED:
        group_up = _load_group(scale, zeros, at_up, 0, stride_group, K, GROUP_K)
    for begin in range(0, K, BLOCK_K):
        k = begin + tl.arange(0, BLOCK_K)[None, :]
        a = tl.load(x + k, mask=present if K % BLOCK_K == 0 else present & (k < K), other=0.0)
        w = _load_weights(weight, descriptor, row, begin, stride_chunk, K, BLOCK_K, DESCRIPTORS)
        acc = _add(a, w, acc, group, TALL, GROUP_K)
        if GATED:
            w = _load_weights(ups, descriptor, row + up, begin, stride_chunk, K, BLOCK_K, DESCRIPTORS)
            acc_up = _add(a, w, acc_up, group_up, TALL, GROUP_K)
        if GROUP_K > 0:
            group = _load_group(scale, zeros, at, begin + BLOCK_K, stride_group, K, GROUP_K)
            if GATED:
                group_up = _load_group(scale, zeros, at_up, begin + BLOCK_K, stride_group, K, GROUP_K)
    if TALL:
        if GROUP_K == 0:
            acc *= tl.load(scale + at)[:, None]
            if GATED:
                acc_up *= tl.load(scale + at_up)[:, None]
        acc = tl.trans(acc)
        acc_up = tl.trans(acc_up)
    return acc, acc_up


@triton.jit(do_not_specialize=["blocks", "group"])
def _expert_matmul(
    x, weight, scale, zeros, descriptor, order, block_experts, shares, out, blocks, group,
    stride_x, stride_expert, stride_w, stride_chunk, stride_scale, stride_group, stride_out,
    N: tl.constexpr, K: tl.constexpr, TOP_K: tl.constexpr, SHARES: tl.constexpr, ACT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_N: tl.constexpr, GROUP_K: tl.constexpr,
    DESCRIPTORS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Program: BLOCK_N outputs of one block of rows. N: columns of out. ACT: "" or that of the gates."""
    GATED: tl.constexpr = ACT != ""
    block, tile = _locate(blocks, group, N, BLOCK_N)
    pdl.wait(PDL)
    expert = tl.load(block_experts + block)
    if expert < 0:
        return
    row = tl.load(order + block * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    present = row >= 0
    column = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    # Outputs past the last are computed from the last one's weights (by a descriptor: from others') and not stored:
    # no mask in the loop.
    last = tl.minimum(column, N - 1)
    w = weight + expert.to(tl.int64) * stride_expert + last[:, None].to(tl.int64) * stride_w
    begin = expert * (2 * N if GATED else N)  # its rows' in all experts'
    acc, up = _products(
        x + (row // TOP_K)[:, None] * stride_x, present[:, None],
        w, scale, zeros, descriptor, begin + tile * BLOCK_N, begin + last, N,
        stride_w, stride_chunk, stride_scale, stride_group,
        K, GATED, BLOCK_M, BLOCK_N, BLOCK_K, GROUP_N, GROUP_K, DESCRIPTORS,
    )  # fmt: skip
    if GATED:
        acc = activate(acc, ACT) * up
    if SHARES:
        acc *= tl.load(shares + row, mask=present, other=0.0)[:, None]
    at = out + row[:, None] * stride_out + column[None, :]
    tl.store(at, acc.to(out.dtype.element_ty), mask=present[:, None] & (column < N)[None, :])


@triton.jit
def _down_apart(
    inner, weight, scale, zeros, experts, shares, out,
    stride_inner, stride_expert, stride_w, stride_chunk, stride_scale, stride_group, stride_out,
    N: tl.constexpr, K: tl.constexpr, TOP_K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    GROUP_N: tl.constexpr, GROUP_K: tl.constexpr, STAGES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Program: BLOCK_N outputs of one token. One loop over all its places' inputs, so that loads never pause."""
    STEPS: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K  # of one place
    token = tl.program_id(1).to(tl.int64)
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    last = tl.minimum(column, N - 1)
    at = last[:, None].to(tl.int64) * stride_w
    total = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    pdl.wait(PDL)
    for step in tl.range(0, TOP_K * STEPS, num_stages=STAGES):
        row = token * TOP_K + step // STEPS
        begin = step % STEPS * BLOCK_K
        k = begin + tl.arange(0, BLOCK_K)
        expert = tl.load(experts + row)
        own = weight + expert.to(tl.int64) * stride_expert + at
        w = _load_weights(own, None, 0, begin, stride_chunk, K, BLOCK_K, False)
        if K % BLOCK_K == 0:
            a = tl.load(inner + row * stride_inner + k)
        else:
            a = tl.load(inner + row * stride_inner + k, mask=k < K, other=0.0)
        scales = (expert * N + last) // GROUP_N * stride_scale
        group = _load_group(scale, zeros, scales, begin, stride_group, K, GROUP_K)
        products = _numbers(w, group[1], tl.float32) * (a.to(tl.float32) * tl.load(shares + row))[None, :]
        if GROUP_K > 0:
            products *= group[0][:, None]
        elif scale is not None:
            products *= tl.load(scale + scales)[:, None]
        total += products
    y = tl.sum(total, axis=1)
    tl.store(out + token * stride_out + column, y.to(out.dtype.element_ty), mask=column < N)


@triton.jit
def _combine(
    rows, out, stride_rows, stride_out,
    WIDTH: tl.constexpr, TOP_K: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Program: BLOCK columns of one token."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < WIDTH
    total = tl.zeros([BLOCK], tl.float32)
    pdl.wait(PDL)
    for place in tl.static_range(TOP_K):
        total += tl.load(rows + (token * TOP_K + place) * stride_rows + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + token * stride_out + column, total.to(out.dtype.element_ty), mask=inside)

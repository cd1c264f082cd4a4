"""Raw logits and the tokens drawn from them in; of rows that ask, log probabilities and ranks out.

The meaning is that of sampling/logprobs.py; among equal logits the lower token comes first.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from octavo.backends.torch.kernels.sampling import NOT_FINITE, RowArrays, Workspace, split_size
from octavo.backends.torch.sampling.group import INTEGERS
from octavo.backends.torch.sampling.logprobs import MOST, OWN, RANK, TOP, WIDTH

SCAN_WARPS, TOP_WARPS = 8, 16

_LOGPROBS = tl.constexpr(INTEGERS.index("logprobs"))
_NOT_FINITE = tl.constexpr(NOT_FINITE)
_RANK, _OWN, _TOP, _MOST = tl.constexpr(RANK), tl.constexpr(OWN), tl.constexpr(TOP), tl.constexpr(MOST)
_INF = tl.constexpr(float("inf"))
_NO_TOKEN = tl.constexpr(0x7FFFFFFF)

INDICES = ["rows", "out_tokens", "out_flags", "packed"]
"""Slices of larger tensors: their alignment must not make variants."""


def log_probabilities(
    logits: Tensor,
    rows: Tensor,
    arrays: RowArrays,
    out_tokens: Tensor,
    out_flags: Tensor,
    packed: Tensor,
    *,
    workspace: Workspace,
) -> None:
    """packed int32 [B, WIDTH] as sampling/logprobs.py draws it, of rows that ask; of others it is left as it is.

    logits: float32 [B, vocab], before any sampling parameter.  rows, out_tokens: int32 [B]; a negative row is padding.
    out_flags: int32 [B], where a row whose log probabilities are not finite gets NOT_FINITE unless it has a flag.
    workspace: of kernels/sampling.py, whose splits these are too; nobody else's meanwhile.
    """
    batch, vocab_size = logits.shape
    if batch == 0:
        return
    block, w = split_size(vocab_size), workspace
    splits = triton.cdiv(vocab_size, block)
    _scan_kernel[(splits, batch)](
        logits, rows, arrays.integers, out_tokens, w.best, w.weight, w.kept,
        logits.stride(0), arrays.integers.stride(0),
        vocab=vocab_size, splits=splits, block=block, num_warps=SCAN_WARPS,
    )  # fmt: skip
    _top_kernel[(batch,)](
        logits, rows, arrays.integers, out_tokens, out_flags, packed, w.best, w.weight, w.kept,
        logits.stride(0), arrays.integers.stride(0),
        vocab=vocab_size, splits=splits, lanes=triton.next_power_of_2(splits), block=block, width=WIDTH,
        num_warps=TOP_WARPS,
    )  # fmt: skip


@triton.jit(do_not_specialize_on_alignment=INDICES)
def _scan_kernel(
    logits, rows, integers, out_tokens, best, weight, larger, logits_stride, integers_stride,
    vocab: tl.constexpr, splits: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Program (split, b): the split's largest logit, sum exp(logit - largest), logits larger than the token's own."""
    split, b = tl.program_id(0), tl.program_id(1)
    row = tl.load(rows + b).to(tl.int64)
    if tl.load(integers + row * integers_stride + _LOGPROBS, mask=row >= 0, other=-1) >= 0:
        logits += b.to(tl.int64) * logits_stride
        own = tl.load(logits + tl.load(out_tokens + b))
        token = split * block + tl.arange(0, block)
        x = tl.load(logits + token, mask=token < vocab, other=-_INF)
        highest = tl.max(x, 0)
        at = b * splits + split
        tl.store(best + at, highest)
        tl.store(weight + at, tl.sum(tl.exp(x - tl.where(highest == -_INF, 0.0, highest)), 0))
        tl.store(larger + at, tl.sum((x > own).to(tl.int32), 0))


@triton.jit(do_not_specialize_on_alignment=INDICES)
def _top_kernel(
    logits, rows, integers, out_tokens, out_flags, packed, best, weight, larger, logits_stride, integers_stride,
    vocab: tl.constexpr, splits: tl.constexpr, lanes: tl.constexpr, block: tl.constexpr, width: tl.constexpr,
):  # fmt: skip
    """Program b: row b's entry. The most likely tokens come one by one off the heads of the splits; a split that gave
    one is read again for its next."""
    b = tl.program_id(0)
    row = tl.load(rows + b).to(tl.int64)
    wanted = tl.load(integers + row * integers_stride + _LOGPROBS, mask=row >= 0, other=-1).to(tl.int32)
    if wanted >= 0:
        logits += b.to(tl.int64) * logits_stride
        packed += b.to(tl.int64) * width
        numbers = packed.to(tl.pointer_type(tl.float32))
        split = tl.arange(0, lanes)
        at, there = b * splits + split, split < splits
        heads = tl.load(best + at, mask=there, other=-_INF)
        highest = tl.max(heads, 0)
        weights = tl.load(weight + at, mask=there, other=0.0)
        log_total = tl.log(tl.sum(weights * tl.exp(heads - highest), 0))
        own = tl.load(logits + tl.load(out_tokens + b)) - highest - log_total
        finite = tl.abs(own) < _INF
        tl.store(packed + _RANK, tl.sum(tl.load(larger + at, mask=there, other=0), 0) + 1)
        tl.store(numbers + _OWN, own)
        given = split * 0 - 1  # of a split whose head equals what it gave last, that token
        n = wanted * 0
        while n < wanted:
            value = tl.max(heads, 0)
            chosen = tl.minimum(tl.min(tl.where(heads == value, split, lanes), 0), splits - 1)
            before = tl.max(tl.where(split == chosen, given, -1), 0)
            token, head, equal = _take(logits, chosen, value, before, vocab, block)
            tl.store(packed + _TOP + n, token)
            tl.store(numbers + _TOP + _MOST + n, value - highest - log_total)
            finite = finite & (tl.abs(value) < _INF)
            heads = tl.where(split == chosen, head, heads)
            given = tl.where(split == chosen, tl.where(equal, token, -1), given)
            n += 1
        if (finite == 0) & (tl.load(out_flags + b) == 0):
            tl.store(out_flags + b, _NOT_FINITE)


@triton.jit
def _take(logits, split, value, before, vocab: tl.constexpr, block: tl.constexpr):
    """The split's first token behind `before` whose logit is `value`; the largest logit that comes after it in the
    order of (logit, token), and whether that is `value` again."""
    token = split * block + tl.arange(0, block)
    x = tl.load(logits + token, mask=token < vocab, other=-_INF)
    first = tl.minimum(tl.min(tl.where((x == value) & (token > before), token, _NO_TOKEN), 0), vocab - 1)
    head = tl.max(tl.where((x < value) | ((x == value) & (token > first)), x, -_INF), 0)
    return first, head, head == value

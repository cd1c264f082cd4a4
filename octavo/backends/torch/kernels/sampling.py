"""Logits and the rows' sampling parameters in, one token a row out, written to the row's known tokens as well.

The meaning is that of sampling/sampler.py (temperature, min_p, top_k, top_p, a draw), without a sort and without the
host: parameters are read on the device, so one captured graph serves them all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.backends.torch.sampling.group import FLOATS, INTEGERS
from octavo.base.noise import GOLDEN, MIX, MIX_LAST

FINE, NOT_FINITE, NONE_LEFT = 0, 1, 2
"""Flags of a row: a token was drawn; a logit is NaN or +inf; every logit is -inf. With the last two the token is 0."""

KEEP = 128
"""Candidates that a split hands on at most. top_k up to this, and a top_p that fewer tokens of each split reach, are
answered from them; other rows read their logits again."""
SCAN_WARPS, FINISH_WARPS = 8, 16
INDICES = ["rows", "positions", "out_tokens", "out_flags"]
"""Read and written one element a program: alignment gains nothing, and slices of them would compile more variants."""

_GREEDY_BELOW = tl.constexpr(1e-5)
_GOLDEN, _SHIFT_LAST = tl.constexpr(GOLDEN), tl.constexpr(MIX_LAST)
_SHIFT_0, _FACTOR_0 = tl.constexpr(MIX[0][0]), tl.constexpr(MIX[0][1])
_SHIFT_1, _FACTOR_1 = tl.constexpr(MIX[1][0]), tl.constexpr(MIX[1][1])
_TEMPERATURE = tl.constexpr(FLOATS.index("temperature"))
_TOP_P, _MIN_P = tl.constexpr(FLOATS.index("top_p")), tl.constexpr(FLOATS.index("min_p"))
_SEED, _TOP_K = tl.constexpr(INTEGERS.index("seed")), tl.constexpr(INTEGERS.index("top_k"))
_NOT_FINITE, _NONE_LEFT = tl.constexpr(NOT_FINITE), tl.constexpr(NONE_LEFT)
_INF = tl.constexpr(float("inf"))
_LARGEST = tl.constexpr(3.0e38)
_NO_TOKEN = tl.constexpr(0x7FFFFFFF)

# The noise lies within -2.9..36.8 (u within 2^-53..1 - 2^-24), so a token 39.7 below the largest is never drawn, and
# together they weigh less than a rounding of float32: filters may drop them. The rest is room for scores of 1e7, where
# float32 counts in ones.
_REACH = tl.constexpr(48.0)
_BISECTIONS = tl.constexpr(16)
_TRIES = tl.constexpr(32)


class RowArrays(Protocol):
    """Of backends/torch/rows.py: floats float32 [rows, len(FLOATS)], integers int64 [rows, len(INTEGERS)], tokens int32
    [rows, any]."""

    floats: Tensor
    integers: Tensor
    tokens: Tensor


@dataclass(frozen=True)
class Workspace:
    """What the splits of a row hand to the one that finishes it; B rows, S splits of the vocabulary.

    arrived: int32 [B], zero between calls.  best float32, best_token int32 [B, S]: of a split, the largest score (NaN
    where a logit is NaN or +inf) and its first token.  Of splits of filtered rows, best is the largest logit / T, and
    weight float32 [B, S] = sum exp(logit / T - best); every token with logit / T >= cut [B, S] is among the `kept`
    int32 [B, S] candidates: values float32, ids int32 [B, S * KEEP], ids ascending.
    """

    arrived: Tensor
    best: Tensor
    best_token: Tensor
    weight: Tensor
    cut: Tensor
    kept: Tensor
    values: Tensor
    ids: Tensor


def make_workspace(batch: int, vocab_size: int, device: torch.device | str) -> Workspace:
    """For up to `batch` rows. Calls that may run at the same time need one each; 10 MB for 256 rows of 152k tokens."""
    splits = triton.cdiv(vocab_size, split_size(vocab_size))

    def array(dtype: torch.dtype, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=device)

    return Workspace(
        arrived=array(torch.int32, batch),
        best=array(torch.float32, batch, splits),
        best_token=array(torch.int32, batch, splits),
        weight=array(torch.float32, batch, splits),
        cut=array(torch.float32, batch, splits),
        kept=array(torch.int32, batch, splits),
        values=array(torch.float32, batch, splits * KEEP),
        ids=array(torch.int32, batch, splits * KEEP),
    )


def split_size(vocab_size: int) -> int:
    """Tokens a program scans. 4096 keep a program's logits in registers (16 a thread) and give one row 30 to 40
    programs; twice that above 64 splits, so that candidates and splits fit the finishing program's registers."""
    return 4096 if vocab_size <= 64 * 4096 else 8192


def sample(
    logits: Tensor,
    rows: Tensor,
    positions: Tensor,
    arrays: RowArrays,
    out_tokens: Tensor,
    out_flags: Tensor,
    *,
    workspace: Workspace,
    filtered: bool,
) -> None:
    """Row b's token, drawn for positions[b], to arrays.tokens[rows[b], positions[b]] and out_tokens[b]; see the flags.

    logits: float32, bfloat16 or float16 [B, vocab], unchanged.  rows, positions, out_tokens, out_flags: int32 [B]; a
    negative row is padding (0, FINE).  filtered: False if no row draws with min_p, top_k or top_p (then not read).
    """
    batch, vocab_size = logits.shape
    if batch == 0:
        return
    block, w = split_size(vocab_size), workspace
    splits = triton.cdiv(vocab_size, block)
    _scan_kernel[(splits, batch)](
        logits, rows, positions, arrays.floats, arrays.integers, arrays.tokens, out_tokens, out_flags,
        w.arrived, w.best, w.best_token, w.weight, w.cut, w.kept, w.values, w.ids,
        logits.stride(0), arrays.floats.stride(0), arrays.integers.stride(0), *arrays.tokens.shape,
        vocab=vocab_size, splits=splits, filtered=filtered, block=block, lanes=triton.next_power_of_2(splits),
        keep=KEEP, num_warps=SCAN_WARPS,
    )  # fmt: skip
    if filtered:
        _finish_kernel[(batch,)](
            logits, rows, positions, arrays.floats, arrays.integers, arrays.tokens, out_tokens, out_flags,
            w.best, w.best_token, w.weight, w.cut, w.kept, w.values, w.ids,
            logits.stride(0), arrays.floats.stride(0), arrays.integers.stride(0), *arrays.tokens.shape,
            vocab=vocab_size, splits=splits, lanes=triton.next_power_of_2(splits), keep=KEEP, block=4096,
            num_warps=FINISH_WARPS,
        )  # fmt: skip


@triton.jit
def _mix(x):
    """base/noise.py's mix, of uint64."""
    x = (x ^ (x >> _SHIFT_0)) * _FACTOR_0
    x = (x ^ (x >> _SHIFT_1)) * _FACTOR_1
    return x ^ (x >> _SHIFT_LAST)


@triton.jit
def _draw_key(seed, position):
    """base/noise.py's draw_key, of an int64 and an int32."""
    return _mix(_mix(seed.to(tl.uint64) + _GOLDEN) + position.to(tl.uint64) * _GOLDEN)


@triton.jit
def _bits(key, token):
    """The 64 random bits of base/noise.py."""
    return _mix(key + (token + 1).to(tl.uint64) * _GOLDEN)


@triton.jit
def _gumbel(bits):
    """-log(e) of base/noise.py, float32: 52 bits are rounded to 24, so that a small u keeps its digits."""
    u = tl.minimum(((bits >> 12).to(tl.int64).to(tl.float32) + 0.5) * 2.2204460492503131e-16, 0.99999994)
    # -log(1 - u): the logarithm of the rounded 1 - u, times what rounding did to u; u where 1 - u rounds to 1
    rest = 1.0 - u
    rounds = rest == 1.0
    e = tl.where(rounds, u, -tl.log(rest) * (u / tl.where(rounds, 1.0, 1.0 - rest)))
    return -tl.log(e)


@triton.jit
def _gumbel_bound(bits):
    """At least _gumbel(bits), by up to 0.07 where u is small, in a tenth of its instructions: as e > u, -log(u) of the
    upper 31 bits, where log2 of a float32 is at least what its bits, read as an integer, give (exponent and mantissa:
    the chord of a concave function). 1e-3 is for what is rounded on the way."""
    high = (bits >> 33).to(tl.int32).to(tl.float32)
    return (158 * 0.6931471805599453 + 1e-3) - high.to(tl.int32, bitcast=True).to(tl.float32) * 8.262958294867817e-8


@triton.jit
def _warm(logits, temperature):
    """logits / temperature, kept finite above. Correctly rounded, as the division of the reference is, since the
    reciprocal is and the remainder, fused, is exact (Markstein: Computation of elementary functions, 1990)."""
    reciprocal = tl.div_rn(1.0, temperature)
    x = logits * reciprocal
    corrected = tl.fma(tl.fma(-x, temperature, logits), reciprocal, x)
    return tl.minimum(tl.where(tl.abs(x) < _INF, corrected, x), _LARGEST)


@triton.jit
def _first_best(score, token):
    """The largest score of a tile and the lowest token that has it; (-inf, some token) where there is none."""
    best = tl.max(score, 0)
    return best, tl.min(tl.where(score == best, token, _NO_TOKEN), 0)


@triton.jit
def _improve(x, token, key, best, best_token, best_x):
    """The best of (best, best_token, best_x) and of a tile: score x + noise, the lowest token that has it, its x.

    Only tokens whose bound could be the best take the noise, one after another: two or three as a rule, which cost less
    than a tile of logarithms. Where scores are too large to tell tokens apart, all do.
    """
    bound = x + _gumbel_bound(_bits(key, token))
    highest = tl.max(bound, 0)
    step = 0
    while (highest >= best) & (highest > -_INF) & (step < _TRIES):
        first = tl.min(tl.where(bound == highest, token, _NO_TOKEN), 0)
        chosen = token == first
        first_x = tl.max(tl.where(chosen, x, -_INF), 0)
        score = first_x + _gumbel(_bits(key, first))
        if (score > best) | ((score == best) & (first < best_token)):
            best, best_token, best_x = score, first, first_x
        bound = tl.where(chosen, -_INF, bound)
        highest = tl.max(bound, 0)
        step += 1
    if (highest >= best) & (step >= _TRIES):
        # adds 0, unknown to the compiler: the bits are made anew, not kept in registers for this rare case
        scores = x + _gumbel(_bits(key, token + (step - _TRIES)))
        score, first = _first_best(scores, token)
        if (score > best) | ((score == best) & (first < best_token)):
            best, best_token, best_x = score, first, tl.max(tl.where(token == first, x, -_INF), 0)
    return best, best_token, best_x


@triton.jit
def _parameters(floats, integers, vocab, filtered: tl.constexpr):
    """A row's temperature (1 if greedy), greedy, top_p, min_p, top_k (0: none), filters (does any of them apply)."""
    temperature = tl.load(floats + _TEMPERATURE)
    greedy = temperature < _GREEDY_BELOW
    temperature = tl.where(greedy, 1.0, temperature)
    top_p, min_p, top_k = 1.0, 0.0, 0
    filters = False
    if filtered:
        top_p, min_p = tl.load(floats + _TOP_P), tl.load(floats + _MIN_P)
        top_k = tl.load(integers + _TOP_K)
        top_k = tl.where((top_k > 0) & (top_k < vocab), top_k, 0).to(tl.int32)
        filters = (greedy == 0) & ((top_p < 1.0) | (min_p > 0.0) | (top_k > 0))
    return temperature, greedy, top_p, min_p, top_k, filters


@triton.jit
def _write(token, flag, b, row, position, tokens, rows_end, width, out_tokens, out_flags):
    """The row's outputs."""
    tl.store(out_tokens + b, token)
    tl.store(out_flags + b, flag)
    tl.store(tokens + row.to(tl.int64) * width + position, token, mask=(row < rows_end) & (position < width))


@triton.jit
def _unfiltered(best, best_token):
    """Splits' bests [lanes] -> (token, flag): the best of all, of the lowest token among equals."""
    bad = tl.max((best != best).to(tl.int32), 0) > 0
    highest, token = _first_best(tl.where(best == best, best, -_INF), best_token)
    flag = tl.where(bad, _NOT_FINITE, tl.where(highest == -_INF, _NONE_LEFT, 0))
    return tl.where(flag == 0, token, 0), flag, highest


@triton.jit(do_not_specialize_on_alignment=INDICES)
def _scan_kernel(
    logits, rows, positions, floats, integers, tokens, out_tokens, out_flags,
    arrived, best, best_token, weight, cut, kept, values, ids,
    logits_stride, floats_stride, integers_stride, rows_end, width, vocab: tl.constexpr, splits: tl.constexpr,
    filtered: tl.constexpr, block: tl.constexpr, lanes: tl.constexpr, keep: tl.constexpr,
):  # fmt: skip
    """Program (split, b): the split's best score and, of a row that filters, its candidates. If not `filtered`, the
    last of a row's programs to arrive writes the row's token as well."""
    split, b = tl.program_id(0), tl.program_id(1)
    row = tl.load(rows + b)
    if row >= 0:
        position = tl.load(positions + b)
        floats += row.to(tl.int64) * floats_stride
        integers += row.to(tl.int64) * integers_stride
        temperature, greedy, _top_p, min_p, top_k, filters = _parameters(floats, integers, vocab, filtered)
        token = split * block + tl.arange(0, block)
        logits += b.to(tl.int64) * logits_stride
        logit = tl.load(logits + token, mask=token < vocab, other=-_INF).to(tl.float32)
        bad = tl.max(((logit != logit) | (logit == _INF)).to(tl.int32), 0) > 0
        x = _warm(logit, temperature)
        at = b * splits + split
        if filters:
            score = tl.max(x, 0)
            _hand_on(x, token, score, min_p, top_k, at, weight, cut, kept, values, ids, keep)
        else:
            if greedy:
                score, first = _first_best(x, token)
            else:
                key = _draw_key(tl.load(integers + _SEED), position)
                lowest = tl.full((), -float("inf"), tl.float32)
                score, first, _x = _improve(x, token, key, lowest, tl.full((), 0, tl.int32), lowest)
            tl.store(best_token + at, first)
        tl.store(best + at, tl.where(bad, float("nan"), score))
        if not filtered:
            # what this program stored must be seen before its arrival is: the barrier orders its threads
            tl.debug_barrier()
            if tl.atomic_add(arrived + b, 1, sem="acq_rel") == splits - 1:
                tl.store(arrived + b, 0)
                all_splits = tl.arange(0, lanes)
                there = all_splits < splits
                scores = tl.load(best + b * splits + all_splits, mask=there, other=-_INF, cache_modifier=".cg")
                firsts = tl.load(best_token + b * splits + all_splits, mask=there, other=0, cache_modifier=".cg")
                chosen, flag, _highest = _unfiltered(scores, firsts)
                _write(chosen, flag, b, row, position, tokens, rows_end, width, out_tokens, out_flags)
    elif split == 0:
        tl.store(out_tokens + b, 0)
        tl.store(out_flags + b, 0)


@triton.jit
def _split_cut(x, highest, min_p, top_k, keep: tl.constexpr):
    """A value that at most `keep` of a split's x reach, and how many do; inf and 0 if ties stand in the way. At or
    below the row's _lowest where they fit, else by bisection: enough for top_k, or half of `keep` and more."""
    low = _lowest(highest, min_p)
    cut = low
    count = tl.sum((x >= cut).to(tl.int32), 0)
    if count > keep:
        high = highest
        cut = highest * 0.0 + _INF
        count = count * 0
        wanted = tl.where(top_k > 0, tl.minimum(top_k, keep), keep // 2)
        step = 0
        while (step < _BISECTIONS) & (count < wanted):
            middle = low + (high - low) * 0.5
            reach = tl.sum((x >= middle).to(tl.int32), 0)
            if reach > keep:
                low = middle
            else:
                high = middle
                cut = middle
                count = reach
            step += 1
    return cut, count


@triton.jit
def _lowest(highest, min_p):
    """What a token's logit / T must reach, of the largest one and min_p; see _REACH."""
    return highest + tl.maximum(tl.log(tl.maximum(min_p, 1e-30)), -_REACH)


@triton.jit
def _hand_on(x, token, highest, min_p, top_k, at, weight, cut, kept, values, ids, keep: tl.constexpr):
    """Writes split `at`'s weight and candidates. x: logits / T, -inf where the vocabulary ends."""
    # a split without any token allowed: nothing reaches its cut, which must not count as one
    empty = highest == -_INF
    highest = tl.where(empty, 0.0, highest)
    limit, count = _split_cut(x, highest, min_p, top_k, keep)
    tl.store(weight + at, tl.sum(tl.exp(x - highest), 0))
    tl.store(cut + at, tl.where(empty, -_INF, limit))
    tl.store(kept + at, count)
    chosen = x >= limit
    place = at.to(tl.int64) * keep + tl.cumsum(chosen.to(tl.int32), 0) - 1
    tl.store(values + place, x, mask=chosen)
    tl.store(ids + place, token, mask=chosen)


@triton.jit
def _load(source, ids, kept, temperature, slot, end, listed: tl.constexpr, keep: tl.constexpr):
    """Slots of a row's candidates (listed) or of all its logits -> logit / T (-inf: no token), token."""
    if listed:
        there = slot < end
        there = there & (slot % keep < tl.load(kept + slot // keep, mask=there, other=0))
        x = tl.load(source + slot, mask=there, other=-_INF)
        token = tl.load(ids + slot, mask=there, other=0)
    else:
        x = _warm(tl.load(source + slot, mask=slot < end, other=-_INF).to(tl.float32), temperature)
        token = slot
    return x, token


@triton.jit
def _before(x, token, floor, pivot, pivot_token):
    """Which tokens reach floor and stand before the pivot: have a larger x, or the same and a lower token."""
    return (x >= floor) & ((x > pivot) | ((x == pivot) & (token < pivot_token)))


@triton.jit
def _weigh(
    source, ids, kept, temperature, highest, floor, pivot, pivot_token,
    end: tl.constexpr, listed: tl.constexpr, keep: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Of tokens _before the pivot: sum exp(x - highest), and the number of those whose x is larger than the pivot."""
    weight = tl.zeros([block], tl.float32)
    larger = tl.zeros([block], tl.int32)
    for start in tl.range(0, end, block):
        x, token = _load(source, ids, kept, temperature, start + tl.arange(0, block), end, listed, keep)
        weight += tl.where(_before(x, token, floor, pivot, pivot_token), tl.exp(x - highest), 0.0)
        larger += ((x >= floor) & (x > pivot)).to(tl.int32)
    return tl.sum(weight, 0), tl.sum(larger, 0)


@triton.jit
def _best_before(
    source, ids, kept, temperature, key, floor, pivot, pivot_token,
    end: tl.constexpr, listed: tl.constexpr, keep: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Of tokens _before the pivot the best score, its token, its x; -inf, 0, -inf if there is none."""
    best = tl.full((), -float("inf"), tl.float32)
    best_x, best_token = best, tl.full((), 0, tl.int32)
    for start in tl.range(0, end, block):
        x, token = _load(source, ids, kept, temperature, start + tl.arange(0, block), end, listed, keep)
        x = tl.where(_before(x, token, floor, pivot, pivot_token), x, -_INF)
        best, best_token, best_x = _improve(x, token, key, best, best_token, best_x)
    return best, best_token, best_x


@triton.jit
def _ordered(x):
    """float32 -> int32 in the same order; its own inverse, but for the type."""
    bits = x.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _kth_largest(
    source, ids, kept, temperature, highest, floor, top_k,
    end: tl.constexpr, listed: tl.constexpr, keep: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """A value that exactly top_k x reach, or the top_k-th largest x; floor if fewer reach that."""
    low, high = _ordered(floor).to(tl.int64), _ordered(highest).to(tl.int64) + 1
    while high - low > 1:
        middle = (low + high) >> 1
        value = middle.to(tl.int32)
        count = tl.zeros([block], tl.int32)
        for start in tl.range(0, end, block):
            x, _token = _load(source, ids, kept, temperature, start + tl.arange(0, block), end, listed, keep)
            count += (_ordered(x) >= value).to(tl.int32)
        reach = tl.sum(count, 0)
        if reach >= top_k:
            low = middle
        else:
            high = middle
        if reach == top_k:
            high = low + 1
    kth = low.to(tl.int32)
    return (kth ^ ((kth >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _draw(
    source, ids, kept, temperature, key, highest, floor, top_p, top_k, total,
    end: tl.constexpr, listed: tl.constexpr, keep: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """The token of the best score among those that top_k and top_p leave of the x that reach floor.

    Takes the best score of all; what stands before its token tells if the filters leave it (fewer than top_k larger
    ones, which weigh less than top_p of the total). If not, they leave nothing behind it either: the next is the best
    score among those before it. Each refusal halves what is left, more or less. total: of floor, 0 if not known.
    """
    both = (top_k > 0) & (top_p < 1.0)
    if both:
        floor = _kth_largest(source, ids, kept, temperature, highest, floor, top_k, end, listed, keep, block)
    if both | ((top_p < 1.0) & (total <= 0.0)):
        total, _ = _weigh(source, ids, kept, temperature, highest, floor, -_INF, 0, end, listed, keep, block)
    chosen_x, chosen = tl.full((), -float("inf"), tl.float32), tl.full((), 0, tl.int32)
    searching = chosen == 0
    while searching:
        score, token, x = _best_before(
            source, ids, kept, temperature, key, floor, chosen_x, chosen, end, listed, keep, block
        )  # fmt: skip
        weight, larger = _weigh(source, ids, kept, temperature, highest, floor, x, token, end, listed, keep, block)
        fits = ((top_k == 0) | (larger < top_k)) & ((top_p >= 1.0) | (weight < total * top_p))
        # the first of all always fits: nothing left is for a top_p of 0 only
        searching = (fits == 0) & (score > -_INF)
        chosen = tl.where(score > -_INF, token, chosen)
        chosen_x = tl.where(score > -_INF, x, chosen_x)
    return chosen


@triton.jit
def _filtered(
    logits, best, weight, cut, kept, values, ids,
    temperature, key, highest, top_p, min_p, top_k, vocab: tl.constexpr, splits: tl.constexpr,
    lanes: tl.constexpr, keep: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """The token of a row that filters; the pointers are the row's. From the candidates where they are sure to hold
    every token that the filters leave, else from all logits."""
    split = tl.arange(0, lanes)
    there = split < splits
    cuts = tl.max(tl.load(cut + split, mask=there, other=-_INF), 0)
    bests = tl.load(best + split, mask=there, other=-_INF)
    total = tl.sum(tl.load(weight + split, mask=there, other=0.0) * tl.exp(bests - highest), 0)
    lowest, end = _lowest(highest, min_p), splits * keep
    # what reaches floor is listed: is it all that min_p leaves, or top_k tokens, or (without min_p) top_p of the total?
    floor = tl.maximum(lowest, cuts)
    inside, number = _weigh(values, ids, kept, 1.0, highest, floor, -_INF, 0, end, True, keep, block)
    whole = cuts <= lowest
    reached = (min_p <= 0.0) & (inside >= total * top_p)
    if whole | ((top_k > 0) & (number >= top_k)) | ((top_k == 0) & reached):
        total = tl.where(whole, inside, total)
        token = _draw(values, ids, kept, 1.0, key, highest, floor, top_p, top_k, total, end, True, keep, block)
    else:
        total = tl.where(min_p > 0.0, 0.0, total)
        token = _draw(
            logits, ids, kept, temperature, key, highest, lowest, top_p, top_k, total, vocab, False, keep, block
        )  # fmt: skip
    return token


@triton.jit(do_not_specialize_on_alignment=INDICES)
def _finish_kernel(
    logits, rows, positions, floats, integers, tokens, out_tokens, out_flags,
    best, best_token, weight, cut, kept, values, ids,
    logits_stride, floats_stride, integers_stride, rows_end, width, vocab: tl.constexpr, splits: tl.constexpr,
    lanes: tl.constexpr, keep: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Program b: row b's token, from what its splits handed on. Padding was answered by the scan."""
    b = tl.program_id(0)
    row = tl.load(rows + b)
    if row >= 0:
        position = tl.load(positions + b)
        floats += row.to(tl.int64) * floats_stride
        integers += row.to(tl.int64) * integers_stride
        temperature, _greedy, top_p, min_p, top_k, filters = _parameters(floats, integers, vocab, True)
        split = tl.arange(0, lanes)
        first = b * splits
        scores = tl.load(best + first + split, mask=split < splits, other=-_INF)
        firsts = tl.load(best_token + first + split, mask=split < splits, other=0)
        token, flag, highest = _unfiltered(scores, firsts)
        if filters & (flag == 0):
            key = _draw_key(tl.load(integers + _SEED), position)
            candidates = first.to(tl.int64) * keep
            token = _filtered(
                logits + b.to(tl.int64) * logits_stride,
                best + first, weight + first, cut + first, kept + first, values + candidates, ids + candidates,
                temperature, key, highest, top_p, min_p, top_k, vocab, splits, lanes, keep, block,
            )  # fmt: skip
        _write(token, flag, b, row, position, tokens, rows_end, width, out_tokens, out_flags)

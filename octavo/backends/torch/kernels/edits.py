"""Logits and the rows' token lists and penalties in, the logits that tokens are drawn from out, in place.

The meaning is that of sampling/masks.py and sampling/penalties.py, to the last bit, for rows that ask; all of it is
read on the device. Nothing is kept from step to step: what a row has seen are its tokens, wherever it resumes.
"""

from __future__ import annotations

from typing import Protocol

import triton
import triton.language as tl
from torch import Tensor

from octavo.backends.torch.kernels.sampling import RowArrays
from octavo.backends.torch.sampling.edits import FIELDS
from octavo.backends.torch.sampling.group import FLOATS, INTEGERS

_PRESENCE, _FREQUENCY = tl.constexpr(FLOATS.index("presence_penalty")), tl.constexpr(FLOATS.index("frequency_penalty"))
_REPETITION = tl.constexpr(FLOATS.index("repetition_penalty"))
_NUM_PROMPT, _NUM_EDITS = tl.constexpr(INTEGERS.index("num_prompt")), tl.constexpr(INTEGERS.index("num_edits"))
_LISTED = tl.constexpr(INTEGERS.index("listed"))
_TOKEN, _VALUE, _UNTIL = (tl.constexpr(FIELDS.index(name)) for name in ("token", "value", "until"))
_NUM_FIELDS = tl.constexpr(len(FIELDS))
_LENGTH, _PREFIX = tl.constexpr(FIELDS.index("length")), tl.constexpr(FIELDS.index("prefix"))
_INF = tl.constexpr(float("inf"))

# NaNs of odd payloads, which no logit is: a counter at zero in a logit's place, and "another place keeps this logit"
_COUNTER, _NOT_KEPT = tl.constexpr(0x7FD00000), tl.constexpr(0x7FC0ABCD)


class Tables(Protocol):
    """Of sampling/edits.py's EditTables."""

    edits: Tensor
    prefixes: Tensor
    allowed: Tensor


def edit(logits: Tensor, rows: Tensor, positions: Tensor, arrays: RowArrays, tables: Tables, saved: Tensor) -> None:
    """Changes logits float32 [B, vocab] as allowed_token_ids, bad_words, min_tokens, logit_bias and penalties say.

    rows, positions: int32 [B]; of a row, the tokens before its position are known; a negative row is padding.
    saved: float32 [B or more, tokens' width], scratch.
    """
    batch, vocab_size = logits.shape
    if batch == 0:
        return
    # a fused product and difference would round once where the definition rounds twice
    _edit_kernel[(batch,)](
        logits, rows, positions, arrays.floats, arrays.integers, arrays.tokens,
        tables.edits, tables.prefixes, tables.allowed, saved,
        logits.stride(0), arrays.floats.stride(0), arrays.integers.stride(0), arrays.tokens.stride(0), saved.stride(0),
        vocab=vocab_size, words=tables.allowed.shape[1], most=tables.edits.shape[2], block=2048, tile=256,
        num_warps=16, enable_fp_fusion=False,
    )  # fmt: skip


@triton.jit(do_not_specialize_on_alignment=["rows", "positions"])
def _edit_kernel(
    logits, rows, positions, floats, integers, tokens, edits, prefixes, allowed, saved,
    logits_stride, floats_stride, integers_stride, tokens_stride, saved_stride,
    vocab: tl.constexpr, words: tl.constexpr, most: tl.constexpr, block: tl.constexpr, tile: tl.constexpr,
):  # fmt: skip
    """Program b: row b. Biases are added before anything is refused: -inf stays what it is under all that follows."""
    b = tl.program_id(0)
    row = tl.load(rows + b).to(tl.int64)
    if row >= 0:
        integers += row * integers_stride
        tokens += row * tokens_stride
        logits += b.to(tl.int64) * logits_stride
        position = tl.load(positions + b)
        prompt = tl.load(integers + _NUM_PROMPT).to(tl.int32)
        number = tl.load(integers + _NUM_EDITS).to(tl.int32)
        if number > 0:
            edits += row * most * _NUM_FIELDS
            _add_biases(logits, edits, number, most, tile)
            tl.debug_barrier()
            _refuse(logits, edits, prefixes + row * most, tokens, number, prompt, position, most, tile)
        if tl.load(integers + _LISTED) > 0:
            _keep_only(logits, allowed + row * words, vocab, block)
        tl.debug_barrier()
        floats += row * floats_stride
        presence, frequency = tl.load(floats + _PRESENCE), tl.load(floats + _FREQUENCY)
        repetition = tl.load(floats + _REPETITION)
        if (presence != 0.0) | (frequency != 0.0) | (repetition != 1.0):
            saved += b.to(tl.int64) * saved_stride
            _penalize(logits, tokens, saved, prompt, position, presence, frequency, repetition, vocab, block)


@triton.jit
def _add_biases(logits, edits, number, most: tl.constexpr, tile: tl.constexpr):
    """Tokens that are biased are distinct."""
    start = number * 0
    while start < number:
        at = start + tl.arange(0, tile)
        value = tl.load(edits + _VALUE * most + at, mask=at < number, other=0).to(tl.float32, bitcast=True)
        biased = (at < number) & (value > -_INF)
        token = tl.load(edits + _TOKEN * most + at, mask=biased, other=0)
        tl.store(logits + token, tl.load(logits + token, mask=biased, other=0.0) + value, mask=biased)
        start += tile


@triton.jit
def _refuse(logits, edits, prefixes, tokens, number, prompt, position, most: tl.constexpr, tile: tl.constexpr):
    """Stop ids while they are not to be sampled, and last tokens of bad words whose others end the outputs."""
    start = number * 0
    while start < number:
        at = start + tl.arange(0, tile)
        there = at < number
        value = tl.load(edits + _VALUE * most + at, mask=there, other=0).to(tl.float32, bitcast=True)
        until = tl.load(edits + _UNTIL * most + at, mask=there, other=0)
        length = tl.load(edits + _LENGTH * most + at, mask=there, other=0)
        prefix = tl.load(edits + _PREFIX * most + at, mask=there, other=0)
        refused = there & (value == -_INF) & (position < until) & (position - length >= prompt)
        longest = tl.max(length, 0)
        i = longest * 0
        while i < longest:
            compared = refused & (i < length)
            wanted = tl.load(prefixes + prefix + i, mask=compared, other=0)
            found = tl.load(tokens + position - length + i, mask=compared, other=0)
            refused = refused & (wanted == found)
            i += 1
        token = tl.load(edits + _TOKEN * most + at, mask=refused, other=0)
        tl.store(logits + token, tl.full([tile], -float("inf"), tl.float32), mask=refused)
        start += tile


@triton.jit
def _keep_only(logits, allowed, vocab: tl.constexpr, block: tl.constexpr):
    """-inf where a token's bit is not set."""
    for start in tl.range(0, vocab, block):
        token = start + tl.arange(0, block)
        word = tl.load(allowed + token // 32, mask=token < vocab, other=-1)
        refused = (token < vocab) & (((word >> (token % 32)) & 1) == 0)
        tl.store(logits + token, tl.full([block], -float("inf"), tl.float32), mask=refused)


@triton.jit
def _penalize(
    logits, tokens, saved, prompt, end, presence, frequency, repetition, vocab: tl.constexpr, block: tl.constexpr
):
    """Three passes over a row's tokens before `end`. The logit of a token that was seen gives its place to a counter,
    and is kept by whoever exchanged it first; outputs count themselves; the keepers put it back, changed."""
    counters = logits.to(tl.pointer_type(tl.int32))
    start = end * 0
    while start < end:
        at, token, there = _known(tokens, start, end, vocab, block)
        old = tl.atomic_xchg(counters + token, at * 0 + _COUNTER, mask=there)
        tl.store(saved + at, tl.where(old == _COUNTER, _NOT_KEPT, old).to(tl.float32, bitcast=True), mask=there)
        start += block
    tl.debug_barrier()
    start = prompt
    while start < end:
        at, token, there = _known(tokens, start, end, vocab, block)
        tl.atomic_add(counters + token, at * 0 + 1, mask=there)
        start += block
    tl.debug_barrier()
    start = end * 0
    while start < end:
        at, token, there = _known(tokens, start, end, vocab, block)
        x = tl.load(saved + at, mask=there, other=0.0)
        kept = there & (x.to(tl.int32, bitcast=True) != _NOT_KEPT)
        count = tl.load(counters + token, mask=kept, other=0, cache_modifier=".cg") - _COUNTER
        x = tl.where(x > 0.0, tl.div_rn(x, repetition), x * repetition) - frequency * count.to(tl.float32)
        tl.store(logits + token, x - tl.where(count > 0, presence, 0.0), mask=kept)
        start += block


@triton.jit
def _known(tokens, start, end, vocab: tl.constexpr, block: tl.constexpr):
    """A block of a row's positions, their tokens, and which of them there are."""
    at = start + tl.arange(0, block)
    token = tl.load(tokens + at, mask=at < end, other=-1)
    return at, token, (token >= 0) & (token < vocab)

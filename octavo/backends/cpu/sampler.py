"""In: one row's logits, its tokens and sampling parameters. Out: a token id, and log probabilities.

Order (vLLM's): a mask, allowed ids, bad words, min_tokens, logit_bias, penalties make a Draw; then `choose`, here and
natively: the best token if greedy, else temperature, min_p, top_k, top_p and a draw. Log probabilities are those of the
logits as they come.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from octavo.base.noise import GOLDEN, MIX, MIX_LAST, draw_key
from octavo.base.types.plan import RowSampling, TokenLogprobs

GREEDY_BELOW = 1e-5
_TOP_P_FIRST = 1024


@dataclass(frozen=True)
class Draw:
    """What a row's next token depends on. scores [vocab] are not changed; key: of base/noise.py.

    temperature 0 is greedy; top_k 0 and top_p 1 keep all.
    """

    scores: np.ndarray
    key: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float


class RowSampler:
    """A row's RowSampling, with its lists as arrays. Raises ValueError naming a field with an id out of the vocabulary.

    plain: nothing but the largest logit counts.  plain_masked: but the largest that a mask leaves.
    """

    def __init__(self, sampling: RowSampling, *, vocab_size: int) -> None:
        self.sampling = sampling
        self.greedy = sampling.temperature < GREEDY_BELOW
        self.allowed = None
        if sampling.allowed_token_ids is not None:
            self.allowed = _ids("allowed_token_ids", sampling.allowed_token_ids, vocab_size)
        self.bias_ids = _ids("logit_bias", list(sampling.logit_bias), vocab_size)
        self.bias = np.array(list(sampling.logit_bias.values()), np.float32)
        self.bad_words = [_ids("bad_words_ids", word, vocab_size) for word in sampling.bad_words_ids if word]
        # ids past the vocabulary cannot be sampled anyway
        self.stop_ids = np.array([i for i in sampling.stop_token_ids if 0 <= i < vocab_size], np.int64)
        self.has_penalties = sampling.has_penalties
        self.edits = bool(
            self.allowed is not None or self.bad_words or len(self.bias) or self.has_penalties or sampling.min_tokens
        )
        self.plain = self.greedy and not self.edits and not sampling.masked
        self.plain_masked = self.greedy and not self.edits and sampling.masked

    def draw(self, logits: np.ndarray, tokens: np.ndarray, *, num_prompt: int, mask: bytes | None = None) -> Draw:
        """For the token after `tokens` (all of the row's, the first num_prompt of them the prompt).

        What comes of it is a function of logits [vocab], mask, seed and len(tokens) alone.
        """
        sampling = self.sampling
        scores = logits if mask is None else masked(logits, mask)
        return Draw(
            scores=self._edited(scores, tokens, tokens[num_prompt:]) if self.edits else scores,
            key=draw_key(sampling.seed, len(tokens)),
            temperature=0.0 if self.greedy else sampling.temperature,
            top_k=sampling.top_k if 0 < sampling.top_k < len(logits) else 0,
            top_p=sampling.top_p,
            min_p=sampling.min_p,
        )

    def _edited(self, logits: np.ndarray, tokens: np.ndarray, outputs: np.ndarray) -> np.ndarray:
        scores = logits.copy()
        if self.allowed is not None:
            keep_only(scores, self.allowed)
        for word in self.bad_words:
            ban_word(scores, word, outputs)
        if len(outputs) < self.sampling.min_tokens:
            scores[self.stop_ids] = -np.inf
        scores[self.bias_ids] += self.bias
        if self.has_penalties:
            penalize(scores, tokens, outputs, self.sampling)
        return scores


def _ids(field: str, ids: list[int], vocab_size: int) -> np.ndarray:
    found = np.array(ids, np.int64)
    if len(found) and (found.min() < 0 or found.max() >= vocab_size):
        raise ValueError(f"{field} holds a token id outside the vocabulary of {vocab_size}")
    return found


def masked(logits: np.ndarray, mask: bytes) -> np.ndarray:
    """A copy with -inf where a token's bit is not set. Raises ValueError for a mask of another size."""
    return np.where(_kept(_bits(mask, len(logits)), len(logits)), logits, np.float32(-np.inf))


def best_kept(logits: np.ndarray, mask: bytes, best: int) -> int:
    """The largest whose bit is set, -1 where none is; best: the largest of all, which mostly is the one."""
    bits = _bits(mask, len(logits))
    if bits[best >> 3] >> (best & 7) & 1:
        return best
    ids = np.flatnonzero(_kept(bits, len(logits)))
    found = int(ids[logits[ids].argmax()]) if len(ids) else -1
    return found if found >= 0 and math.isfinite(logits[found]) else -1


def _bits(mask: bytes, vocab_size: int) -> np.ndarray:
    bits = np.frombuffer(mask, np.uint8)
    if len(bits) != -(-vocab_size // 32) * 4:
        raise ValueError(f"a mask of {len(bits)} bytes is not one of {vocab_size} tokens")
    return bits


def _kept(bits: np.ndarray, vocab_size: int) -> np.ndarray:
    return np.unpackbits(bits, count=vocab_size, bitorder="little").view(np.bool_)


def keep_only(scores: np.ndarray, ids: np.ndarray) -> None:
    """-inf everywhere but at ids."""
    kept = scores[ids]
    scores.fill(-np.inf)
    scores[ids] = kept


def ban_word(scores: np.ndarray, word: np.ndarray, outputs: np.ndarray) -> None:
    """-inf at the word's last token if `outputs` ends with its others."""
    others = word[:-1]
    if len(others) <= len(outputs) and np.array_equal(outputs[len(outputs) - len(others) :], others):
        scores[word[-1]] = -np.inf


def penalize(scores: np.ndarray, tokens: np.ndarray, outputs: np.ndarray, sampling: RowSampling) -> None:
    """Repetition over all tokens (divides what is above 0, multiplies what is below), the others over outputs."""
    if sampling.repetition_penalty != 1.0:
        found = scores[tokens]  # one that is there twice is written twice, the same: to tell takes longer
        penalty = np.float32(sampling.repetition_penalty)
        scores[tokens] = np.where(found > 0, found / penalty, found * penalty)
    if sampling.frequency_penalty or sampling.presence_penalty:
        seen, counts = np.unique(outputs, return_counts=True)
        penalties = sampling.frequency_penalty * counts + sampling.presence_penalty
        scores[seen] -= penalties.astype(np.float32)


def choose(draw: Draw) -> int:
    """The token of a draw; -1 if none may be drawn. The definition of csrc/ops_sampling.inl, which gives the same."""
    best = int(draw.scores.argmax())
    if not math.isfinite(draw.scores[best]):
        return -1
    if draw.temperature == 0.0:
        return best
    scores = (draw.scores - draw.scores[best]) / np.float32(draw.temperature)
    if draw.min_p > 0:
        keep_min_p(scores, draw.min_p)
    if draw.top_k > 0:
        keep_top_k(scores, draw.top_k)
    if draw.top_p < 1:
        keep_top_p(scores, draw.top_p)
    return race(scores, draw.key)


def keep_min_p(scores: np.ndarray, min_p: float) -> None:
    """-inf where a token is less likely than min_p times the likeliest; the largest score is 0."""
    scores[scores < np.float32(math.log(min_p))] = -np.inf


def keep_top_k(scores: np.ndarray, k: int) -> None:
    """-inf below the k-th largest; those equal to it stay."""
    least = np.partition(scores, len(scores) - k)[len(scores) - k]
    scores[scores < least] = -np.inf


def keep_top_p(scores: np.ndarray, top_p: float) -> None:
    """-inf past the likeliest tokens that together reach top_p; at least one stays. The largest score is 0."""
    weights = np.exp(scores, dtype=np.float64)
    enough = top_p * weights.sum()
    count = min(_TOP_P_FIRST, len(scores))
    while True:
        order = likeliest(scores, count)
        before = np.cumsum(weights[order]) - weights[order]
        if count == len(scores) or before[-1] >= enough:
            break
        count = min(count * 16, len(scores))
    kept = order[: max(1, int((before < enough).sum()))]
    keep_only(scores, kept)


def likeliest(scores: np.ndarray, count: int) -> np.ndarray:
    """The ids of the `count` largest scores, largest first, equal ones by id; NaN is the least."""
    if count == 0:  # logprobs without alternatives: sorting the vocabulary for none takes 25 ms
        return np.empty(0, np.int64)
    values = -scores
    last = np.partition(values, count - 1)[count - 1] if count < len(scores) else np.float32(np.nan)
    if np.isnan(last):  # only here, as memory for so many ids takes as long as the rest
        ids = np.arange(len(scores))
    else:
        first, ties = np.flatnonzero(values < last), np.flatnonzero(values == last)
        ids = np.concatenate((first, ties[: count - len(first)]))
    found: np.ndarray = ids[np.lexsort((ids, values[ids]))][:count]
    return found


def race(scores: np.ndarray, key: int) -> int:
    """The token that wins the race of base/noise.py: one with probability softmax(scores)."""
    kept = np.flatnonzero(scores > -np.inf)
    bits = np.uint64(key) + (kept + 1).astype(np.uint64) * np.uint64(GOLDEN)
    for shift, factor in MIX:
        bits = (bits ^ bits >> np.uint64(shift)) * np.uint64(factor)
    bits ^= bits >> np.uint64(MIX_LAST)
    uniform = ((bits >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
    # float64, because a float32 draw is exactly 0 often enough to be seen; in logarithms nothing underflows
    return int(kept[(scores[kept] - np.log(-np.log1p(-uniform))).argmax()])


def token_logprobs(logits: np.ndarray, token: int, count: int) -> TokenLogprobs:
    """log_softmax(logits [vocab]) of `token`, then of the `count` likeliest (-1: of all; equal ones by id)."""
    peak = logits.max()
    total = np.log(np.exp(logits - peak).sum(dtype=np.float64))
    vocab = len(logits)
    ids = np.concatenate(([token], likeliest(logits, vocab if count < 0 else min(count, vocab))))
    values = logits[ids].astype(np.float64) - (peak + total)
    return TokenLogprobs(ids.tolist(), values.tolist(), 1 + int((logits > logits[token]).sum()))

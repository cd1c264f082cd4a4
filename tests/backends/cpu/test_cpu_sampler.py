"""The sampler: each parameter alone against a plain reference, reproducible draws, rightly distributed, logprobs."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import pytest

from octavo.backends.cpu import sampler
from octavo.backends.cpu.sampler import RowSampler, best_kept, likeliest, masked, token_logprobs
from octavo.base.noise import GOLDEN, draw_key, mix
from octavo.base.types.plan import RowSampling

VOCAB = 50
PROMPT = [3, 4, 4, 7]
OUTPUT = [7, 9, 9, 9]


def logits(seed: int = 0, size: int = VOCAB) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(size) * 2).astype(np.float32)


def choose(values: np.ndarray, *, prompt: list[int] = PROMPT, output: list[int] = OUTPUT, **fields: Any) -> int:
    row = RowSampler(RowSampling(**fields), vocab_size=len(values))
    return sampler.choose(row.draw(values, np.array(prompt + output, np.int64), num_prompt=len(prompt)))


def ranked(values: np.ndarray) -> list[int]:
    return sorted(range(len(values)), key=lambda i: -values[i])


def draws(values: np.ndarray, count: int, **fields: Any) -> np.ndarray:
    """Counts of tokens over `count` positions."""
    row = RowSampler(RowSampling(**{"temperature": 1.0, "seed": 11, **fields}), vocab_size=len(values))
    counts = np.zeros(len(values), int)
    for position in range(count):
        counts[sampler.choose(row.draw(values, np.zeros(position, np.int64), num_prompt=position))] += 1
    return counts


def fits(counts: np.ndarray, shares: np.ndarray) -> bool:
    """Chi-square under its mean plus five standard deviations; nothing where the share is 0.

    Cells of which fewer than five are expected are taken together: alone they make the statistic's tail heavy.
    """
    kept = shares > 0
    assert counts[~kept].sum() == 0
    expected = shares / shares.sum() * counts.sum()
    rare = expected < 5
    found, expected = (np.append(cells[~rare], cells[rare].sum()) for cells in (counts, expected))
    chi = ((found - expected) ** 2 / np.maximum(expected, 1.0)).sum()
    freedom = max(1, len(found) - 1 - (expected[-1] == 0))
    return bool(chi <= freedom + 5 * math.sqrt(2 * freedom))


def softmax(values: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    exact = values.astype(np.float64) / temperature
    weights = np.exp(exact - exact.max())
    return weights / weights.sum()


@pytest.mark.parametrize("temperature", [0.0, 9e-6])
def test_greedy(temperature: float) -> None:
    assert choose(logits(), temperature=temperature) == int(logits().argmax())


def test_plain_rows_need_no_more_than_the_best_token() -> None:
    assert RowSampler(RowSampling(logprobs=3, top_k=5, top_p=0.1, min_p=0.5, stop_token_ids=[2]), vocab_size=5).plain
    for fields in (
        {"temperature": 1.0},
        {"allowed_token_ids": [1]},
        {"bad_words_ids": [[1]]},
        {"logit_bias": {1: 1.0}},
        {"repetition_penalty": 1.1},
        {"presence_penalty": 0.1},
        {"frequency_penalty": -0.1},
        {"min_tokens": 1},
    ):
        assert not RowSampler(RowSampling(**fields), vocab_size=5).plain, fields


def test_allowed_token_ids() -> None:
    allowed = [5, 17, 17, 30]
    assert choose(logits(), allowed_token_ids=allowed) == max(allowed, key=lambda i: logits()[i])


def test_bad_words() -> None:
    best, second, third = ranked(logits())[:3]
    assert choose(logits(), bad_words_ids=[[best]]) == second
    assert choose(logits(), bad_words_ids=[[9, 9, best], [best, second]]) == second
    assert choose(logits(), bad_words_ids=[[9, best], [9, second]]) == third
    assert choose(logits(), bad_words_ids=[[7, 9, best]]) == best
    # only outputs count, and a word longer than they are is not complete
    assert choose(logits(), bad_words_ids=[[*PROMPT, *OUTPUT, best]]) == best
    assert choose(logits(), output=[], bad_words_ids=[[7, best]]) == best


def test_min_tokens_hold_stop_ids_back() -> None:
    best, second = ranked(logits())[:2]
    fields = {"stop_token_ids": [best, VOCAB + 5], "min_tokens": len(OUTPUT) + 1}
    assert choose(logits(), **fields) == second
    assert choose(logits(), output=[*OUTPUT, 1], **fields) == best


def test_logit_bias() -> None:
    last = ranked(logits())[-1]
    assert choose(logits(), logit_bias={last: 100.0}) == last
    best, second = ranked(logits())[:2]
    assert choose(logits(), logit_bias={best: -100.0}) == second


def test_bias_does_not_lift_a_ban() -> None:
    best, second = ranked(logits())[:2]
    assert choose(logits(), logit_bias={best: 100.0}, bad_words_ids=[[best]]) == second


@pytest.mark.parametrize(
    "fields",
    [
        {"repetition_penalty": 1.7},
        {"repetition_penalty": 0.3},
        {"frequency_penalty": 1.5},
        {"presence_penalty": -1.5},
        {"repetition_penalty": 1.3, "frequency_penalty": -0.7, "presence_penalty": 0.9},
    ],
)
def test_penalties(fields: dict[str, float]) -> None:
    for seed in range(20):
        values = logits(seed)
        expected = values.astype(np.float64)
        for token in set(PROMPT + OUTPUT):
            factor = fields.get("repetition_penalty", 1.0)
            expected[token] = expected[token] / factor if expected[token] > 0 else expected[token] * factor
            expected[token] -= fields.get("frequency_penalty", 0.0) * OUTPUT.count(token)
            expected[token] -= fields.get("presence_penalty", 0.0) * (token in OUTPUT)
        scores = values.copy()
        tokens = np.array(PROMPT + OUTPUT)
        sampler.penalize(scores, tokens, tokens[len(PROMPT) :], RowSampling(**fields))
        np.testing.assert_allclose(scores, expected, rtol=1e-5)
        assert choose(values, **fields) == int(expected.argmax())


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_draws_follow_the_distribution(temperature: float) -> None:
    values = logits(size=12)
    counts = draws(values, 4000, temperature=temperature)
    assert fits(counts, softmax(values, temperature))
    assert not fits(counts, softmax(values, temperature * 1.5))


@pytest.mark.parametrize("k", [1, 4, 12, 100])
def test_top_k(k: int) -> None:
    values = logits(size=12)
    kept = np.zeros(12)
    kept[ranked(values)[:k]] = 1
    assert fits(draws(values, 2000, top_k=k), softmax(values) * kept)


@pytest.mark.parametrize("top_p", [1e-6, 0.4, 0.8, 0.999])
def test_top_p(top_p: float) -> None:
    values = logits(size=12)
    shares = softmax(values, 1.5)
    kept, total = np.zeros(12), 0.0
    for token in ranked(values):
        if total < top_p:
            kept[token] = 1
        total += shares[token]
    assert fits(draws(values, 2000, top_p=top_p, temperature=1.5), shares * kept)


def test_top_p_looks_past_the_first_likeliest() -> None:
    """A flat distribution over more tokens than are sorted at first."""
    values = (logits(size=40_000) * 1e-3).astype(np.float32)
    scores = values - values.max()
    sampler.keep_top_p(scores, 0.7)
    order = np.argsort(-values, kind="stable")
    before = np.cumsum(softmax(values)[order]) - softmax(values)[order]
    expected = set(order[before < 0.7].tolist())
    assert set(np.flatnonzero(np.isfinite(scores)).tolist()) ^ expected <= set(order[27_900:28_100].tolist())
    assert abs(int(np.isfinite(scores).sum()) - len(expected)) <= 1


@pytest.mark.parametrize("min_p", [0.05, 0.5, 1.0])
def test_min_p(min_p: float) -> None:
    values = logits(size=12)
    shares = softmax(values, 2.0)
    assert fits(draws(values, 2000, min_p=min_p, temperature=2.0), shares * (shares >= min_p * shares.max()))


def test_filters_together() -> None:
    """min_p first, top_k of what is left, top_p of those, renormalized."""
    values = np.log(np.array([0.4, 0.2, 0.15, 0.1, 0.1, 0.05], np.float32))
    shares = np.array([0.4, 0.2, 0.15, 0, 0, 0])
    # of 0.4, 0.2, 0.15, 0.1, 0.1 the first three make 0.79
    assert fits(draws(values, 1500, min_p=0.2, top_p=0.75), shares)
    # of 0.4, 0.2, 0.15 the first two make 0.8
    assert fits(draws(values, 1500, min_p=0.2, top_k=3, top_p=0.75), shares * [1, 1, 0, 0, 0, 0])


def test_seeds() -> None:
    """The draw is a function of logits, seed and position; not of what else the tokens are."""
    values = logits(size=1000) * 0.1
    row = [choose(values, temperature=1.0, seed=5, output=[1] * n) for n in range(30)]
    assert row == [choose(values, temperature=1.0, seed=5, output=[2] * n) for n in range(30)]
    assert len(set(row)) > 20
    for seed in (6, -5, 2**63 - 1, -(2**63)):
        assert row != [choose(values, temperature=1.0, seed=seed, output=[1] * n) for n in range(30)]


def test_the_noise_is_that_of_its_definition() -> None:
    """Token by token, in Python's own integers and floats."""
    values = (logits(size=300) * 0.5).astype(np.float32)
    for seed in (0, 7, -1, 2**63 - 1, -(2**63)):
        for position in (0, 1, 4096):
            key = draw_key(seed, position)
            best = []
            for token, value in enumerate(values.tolist()):
                u = ((mix((key + (token + 1) * GOLDEN) % 2**64) >> 12) + 0.5) / 2**52
                best.append(value - math.log(-math.log1p(-u)))
            assert sampler.race(values, key) == best.index(max(best))


def test_the_noise_is_uniform_and_uncorrelated() -> None:
    """Of neighbouring seeds, positions and tokens: shares of 64 cells, and products of neighbours."""
    keys = np.array([[draw_key(seed, position) for position in range(40)] for seed in range(40)], np.uint64)
    bits = keys[:, :, None] + np.arange(1, 101, dtype=np.uint64) * np.uint64(GOLDEN)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        bits = (bits ^ bits >> np.uint64(shift)) * np.uint64(factor)
    bits ^= bits >> np.uint64(31)
    for shift in (58, 40, 12):
        cells = np.bincount((bits >> np.uint64(shift)).ravel() & np.uint64(63), minlength=64)
        assert fits(cells, np.full(64, 1 / 64))
    uniform = bits.astype(np.float64) / 2.0**64 - 0.5
    for axis in range(3):
        ahead, behind = (np.take(uniform, np.arange(low, uniform.shape[axis] - 1 + low), axis) for low in (1, 0))
        assert abs((ahead * behind).mean()) < 5 / 12 / math.sqrt(ahead.size)


def test_small_noise_in_logits_rarely_changes_the_draw() -> None:
    values = logits(size=5000)
    noise = (np.random.default_rng(1).standard_normal(5000) * 1e-5).astype(np.float32)
    fields = {"temperature": 1.0, "top_p": 0.9, "top_k": 500}
    pairs = [
        (choose(values, output=[1] * n, **fields), choose(values + noise, output=[1] * n, **fields)) for n in range(200)
    ]
    assert sum(a != b for a, b in pairs) <= 1


def test_logits_are_left_alone() -> None:
    values = logits()
    choose(values, temperature=1.0, top_k=3, top_p=0.5, logit_bias={1: 5.0}, repetition_penalty=2.0)
    np.testing.assert_array_equal(values, logits())


@pytest.mark.parametrize(
    "fields",
    [
        {"allowed_token_ids": [4], "bad_words_ids": [[4]]},
        {"allowed_token_ids": [4], "stop_token_ids": [4], "min_tokens": 100, "temperature": 1.0},
    ],
)
def test_nothing_left_to_sample(fields: dict[str, Any]) -> None:
    assert choose(logits(), **fields) == -1


@pytest.mark.parametrize(
    "fields", [{"allowed_token_ids": [VOCAB]}, {"logit_bias": {VOCAB: 1.0}}, {"bad_words_ids": [[1], [2, VOCAB]]}]
)
def test_ids_outside_the_vocabulary(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        RowSampler(RowSampling(**fields), vocab_size=VOCAB)


@pytest.mark.parametrize("count", [0, 1, 5, VOCAB, VOCAB + 9, -1])
def test_logprobs(count: int) -> None:
    values = logits() + 300
    exact = np.log(softmax(values))
    order = ranked(values)
    for rank in (0, 1, 20, VOCAB - 1):
        entry = token_logprobs(values, order[rank], count)
        expected = [order[rank], *(order if count < 0 else order[:count])]
        assert entry.token_ids == expected
        assert entry.rank == rank + 1
        np.testing.assert_allclose(entry.logprobs, exact[expected], atol=1e-4)
        assert all(type(value) is float for value in entry.logprobs)
        assert all(type(token) is int for token in entry.token_ids)


def test_logprobs_without_alternatives_take_no_longer_than_with_some() -> None:
    """The vocabulary was sorted for them: seven times as long."""
    values = logits(size=150_000)
    taken: dict[int, list[float]] = {0: [], 20: []}
    for count in (0, 20) * 7:
        begin = time.perf_counter()
        token_logprobs(values, 3, count)
        taken[count].append(time.perf_counter() - begin)
    assert min(taken[0]) < 2 * min(taken[20])


def test_a_penalty_over_a_long_context_takes_a_few_looks_at_each_token() -> None:
    """Telling the tokens apart took 50 ms of 128,000, a hundred times as long as one look at each."""
    tokens = np.random.default_rng(0).integers(0, 150_000, 128_000)
    sampling = RowSampling(repetition_penalty=1.1)
    taken: dict[str, list[float]] = {"look": [], "penalize": []}
    for name in ("look", "penalize") * 7:
        scores, begin = logits(size=150_000), time.perf_counter()
        if name == "look":
            scores[tokens] += 1
        else:
            sampler.penalize(scores, tokens, tokens, sampling)
        taken[name].append(time.perf_counter() - begin)
    assert min(taken["penalize"]) < 12 * min(taken["look"])


def test_logprobs_of_equal_logits() -> None:
    """Equal ones come by id, and share the best rank."""
    entry = token_logprobs(np.zeros(4, np.float32), 2, -1)
    assert (entry.token_ids, entry.rank) == ([2, 0, 1, 2, 3], 1)


@pytest.mark.parametrize("count", [0, 1, 4, 90, 1000, 5000])
@pytest.mark.parametrize("rest", [0.0, -np.inf, np.nan])
def test_the_likeliest_of_many_equal_ones_are_the_first(count: int, rest: float) -> None:
    scores = np.full(5000, rest, np.float32)
    scores[[7, 4000, 60]] = 2, 3, 2
    scores[100:200] = 1
    expected = [4000, 7, 60, *range(100, 200)]
    expected += [i for i in range(5000) if i not in expected]
    assert likeliest(scores, count).tolist() == expected[:count]


@pytest.mark.parametrize("density", [0.0, 0.01, 0.5, 1.0])
def test_the_largest_that_a_mask_leaves(density: float) -> None:
    rng = np.random.default_rng(5)
    for vocab in (1, 31, 257, 5000):
        for _ in range(20):
            logits = rng.integers(-9, 9, vocab).astype(np.float32)  # many are equal: the first wins
            logits[rng.random(vocab) < 0.1] = -np.inf
            kept = rng.random(vocab) < density
            bits = np.packbits(np.pad(kept, (0, -vocab % 32), constant_values=True), bitorder="little").tobytes()
            scores = masked(logits, bits)
            expected = int(scores.argmax()) if np.isfinite(scores.max()) else -1
            best = int(logits.argmax())
            assert best_kept(logits, bits, best) == (expected if np.isfinite(logits[best]) or not kept[best] else best)
    with pytest.raises(ValueError, match="a mask of 8 bytes"):
        best_kept(logits, bytes(8), 0)

"""Native draws against sampler.choose: the same token for every instruction set, filter, shape and thread."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import native_tiny
import numpy as np
import pytest

from octavo.backends.cpu import native
from octavo.backends.cpu.native import Pool
from octavo.backends.cpu.sampler import Draw, RowSampler, choose
from octavo.base.types.plan import RowSampling

FILTERS: dict[str, dict[str, Any]] = {
    "none": {},
    "greedy": {"temperature": 0.0},
    "cold": {"temperature": 1e-5},
    "hot": {"temperature": 30.0},
    "min_p": {"min_p": 0.02},
    "min_p of 1": {"min_p": 1.0},
    "top_k of 1": {"top_k": 1},
    "top_k": {"top_k": 40},
    "wide top_k": {"top_k": 3000},
    "top_k of all": {"top_k": 1 << 30},
    "small top_p": {"top_p": 1e-6},
    "top_p": {"top_p": 0.9},
    "top_p near 1": {"top_p": 0.99999},
    "together": {"top_p": 0.8, "top_k": 200, "min_p": 0.001},
    "min_p and top_p": {"top_p": 0.7, "min_p": 0.01},
    "min_p and top_k": {"top_k": 30, "min_p": 0.2},
}


@pytest.fixture(params=native_tiny.VARIANTS)
def pool(request: pytest.FixtureRequest) -> Iterator[Pool]:
    with native_tiny.variant(request.param):
        made = Pool(native.library(), 3)
        yield made
        made.close()


def logits(kind: str, size: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(size).astype(np.float32)
    if kind == "peaked":
        values *= 6
    if kind == "flat":
        values *= np.float32(1e-3)
    if kind == "equal":
        values[:] = 2.5
    if kind == "stepped":  # many equal to the k-th
        values = np.round(values * 2).astype(np.float32)
    if kind == "banned":
        values[rng.random(size) < 0.95] = -np.inf
        values[rng.integers(size)] = 1.0
    if kind == "wide":
        values *= np.float32(1e30)
    return values


def draws(kind: str, size: int, count: int, **fields: Any) -> list[Draw]:
    row = RowSampler(RowSampling(**{"temperature": 0.9, "seed": 5, **fields}), vocab_size=size)
    tokens = np.zeros(count, np.int64)
    return [row.draw(logits(kind, size, n), tokens[:n], num_prompt=0) for n in range(count)]


@pytest.mark.parametrize("fields", FILTERS.values(), ids=FILTERS)
def test_the_same_tokens(pool: Pool, fields: dict[str, Any]) -> None:
    for kind in ("usual", "peaked", "flat", "equal", "stepped", "banned", "wide"):
        for size, count in ((1, 2), (15, 4), (16, 4), (1000, 12), (49_153, 2)):
            asked = draws(kind, size, count, **fields)
            assert pool.draw(asked) == [choose(draw) for draw in asked], (kind, size)


@pytest.mark.parametrize("fields", [{}, {"top_k": 50}, {"top_p": 0.95}, {"min_p": 0.01}], ids=str)
def test_the_same_tokens_of_many_draws(pool: Pool, fields: dict[str, Any]) -> None:
    asked = draws("usual", 2000, 1500, **fields)
    assert pool.draw(asked) == [choose(draw) for draw in asked]


def test_the_same_tokens_where_top_p_cuts_equal_ones(pool: Pool) -> None:
    scores = np.full(5000, 0.5, np.float32)
    scores[[7, 3000]] = 1
    asked = [Draw(scores, key, 1.0, 0, 0.1, 0.0) for key in range(50)]
    assert pool.draw(asked) == [choose(draw) for draw in asked]


def test_nothing_may_be_drawn(pool: Pool) -> None:
    asked = [Draw(np.full(30, value, np.float32), 0, 1.0, 0, 1.0, 0.0) for value in (-np.inf, np.nan)]
    assert pool.draw(asked) == [-1, -1]


def test_logits_are_left_alone(pool: Pool) -> None:
    asked = draws("usual", 500, 3, top_k=9, top_p=0.5)
    before = [draw.scores.copy() for draw in asked]
    pool.draw(asked)
    for draw, scores in zip(asked, before, strict=True):
        np.testing.assert_array_equal(draw.scores, scores)


def test_a_draw_takes_time_by_the_vocabulary_however_much_of_it_is_equal(pool: Pool) -> None:
    """A mask that leaves a few tokens, and a vocabulary that is all alike; time by its square was 100 times as long."""
    usual = logits("usual", 150_000, 0)
    masked, last = np.full(150_000, -np.inf, np.float32), np.full(150_000, -np.inf, np.float32)
    masked[[3, 70_000]], last[-300:] = 1.0, usual[-300:]
    for scores in (masked, last, np.zeros(150_000, np.float32)):
        assert seconds(pool, scores) < 40 * seconds(pool, usual)


def seconds(pool: Pool, scores: np.ndarray) -> float:
    """The least of some draws by top_k."""
    taken = []
    for key in range(7):
        begin = time.perf_counter()
        pool.draw([Draw(scores, key, 0.7, 20, 0.95, 0.0)])
        taken.append(time.perf_counter() - begin)
    return min(taken)

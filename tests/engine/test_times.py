"""Where a sequence's time went: the parts are what happened to it, and add up to all of it."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
from simulation import VOCAB, Shape, make_engine, make_request
from test_grammars import ask, engine, grammars

from octavo.base.types.output import RequestTimes
from octavo.engine.engine import Engine
from octavo.engine.fake import ScriptedExecutor
from octavo.engine.grammar.compiler import Compiler

__all__ = ["grammars"]


def times(made: Engine) -> dict[str, RequestTimes]:
    """Run all; the last times told of each request."""
    found: dict[str, RequestTimes] = {}
    while made.has_work():
        for out in made.step():
            if out.times is not None:
                found[out.request_id] = out.times
    return found


def check(told: RequestTimes) -> dict[str, float]:
    parts = told.parts()
    assert min(parts.values()) >= 0, parts
    assert sum(parts.values()) == pytest.approx(told.last_token - told.arrival)
    return parts


def preempting(monkeypatch: pytest.MonkeyPatch, ahead: bool) -> Engine:
    """Two requests for whose tokens there is no room together; a clock that goes on whenever it is asked."""
    clock = iter(range(1, 100_000))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    shape = Shape(ahead=ahead, num_blocks=10, max_num_seqs=2, max_num_tokens=64)
    made = make_engine(shape, ScriptedExecutor(num_blocks=10, block_size=4, vocab_size=VOCAB))
    made.add(make_request("a", [1] * 16, max_tokens=20))
    made.add(make_request("b", [2] * 16, max_tokens=20))
    return made


@pytest.mark.parametrize("ahead", [False, True])
def test_queue_and_preemption(monkeypatch: pytest.MonkeyPatch, ahead: bool) -> None:
    made = preempting(monkeypatch, ahead)
    made.add(make_request("c", [3] * 3, max_tokens=2))
    told = times(made)
    parts = {name: check(one) for name, one in told.items()}
    assert parts["a"]["preempted"] == 0 == told["a"].num_preemptions
    assert told["b"].num_preemptions > 0
    assert 0 < parts["b"]["preempted"] < told["b"].last_token - told["b"].first_token
    assert parts["c"]["queue"] > parts["a"]["queue"]
    assert all(one["prefill"] > 0 and one["decode"] > 0 and one["grammar"] == 0 for one in parts.values())


def test_preempted_before_the_first_token(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(1, 100_000))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    shape = Shape(ahead=False, num_blocks=12, max_num_seqs=2, max_num_tokens=8)
    made = make_engine(shape, ScriptedExecutor(num_blocks=12, block_size=4, vocab_size=VOCAB))
    made.add(make_request("a", [1] * 8, max_tokens=30))
    for _ in range(12):
        made.step()
    made.add(make_request("b", [2] * 28, max_tokens=3))
    told = times(made)["b"]
    assert told.prefill_preempted == told.preempted > 0
    assert check(told)["prefill"] > 0


@pytest.mark.parametrize("ahead", [False, True])
def test_a_preemption_is_told_with_the_token_that_ends_it(monkeypatch: pytest.MonkeyPatch, ahead: bool) -> None:
    """And so to whoever ends a request by its text. It lasts from one token to the next, one under way included."""
    made = preempting(monkeypatch, ahead)
    told: list[RequestTimes | None] = []
    ends: list[float] = []
    while made.has_work():
        for out in made.step():
            if out.request_id == "b":
                told.append(out.times)
                assert told[0] is not None
                ends.append(told[0].last_token)
    gaps = [after - before for before, after in pairwise(ends)]
    assert [at for at, one in enumerate(told) if one is not None] == [0, 1 + gaps.index(max(gaps)), 19]
    assert told[0] is not None
    assert 0 <= max(gaps) - told[0].preempted <= (0 if ahead else 3)
    assert told[0].num_preemptions == made.stats().num_preemptions == 1


def test_a_token_under_way_is_not_waited_for() -> None:
    """RequestTimes by hand: preempted at 5, its late token came at 6, the next one at 9."""
    told = RequestTimes(1.0, 2.0, 3.0, 10.0, 1, 0.0, 3.0, 0.0)
    assert told.parts() == {"grammar": 0, "queue": 1, "prefill": 1, "decode": 4, "preempted": 3}
    assert sum(told.parts(end=11.0).values()) == 10
    with pytest.raises(ValueError, match="first token"):
        RequestTimes(arrival=1.0).parts()


def test_grammar(grammars: Compiler) -> None:
    made = engine(grammars)
    made.add(ask("a", "[ab]{3,9}", [1, 2, 3]))
    made.add(make_request("b", [1, 2, 3], max_tokens=4))
    told = times(made)
    assert check(told["a"])["grammar"] > 0
    assert check(told["b"])["grammar"] == 0

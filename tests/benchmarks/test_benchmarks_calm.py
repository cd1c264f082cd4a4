"""Which samples count: those with fast memory before and after them."""

from __future__ import annotations

import pytest
from peers import calm
from peers.calm import Calm


@pytest.fixture
def speeds(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the next looks at the memory find; 100 once there are no more."""
    found: list[float] = []
    monkeypatch.setattr(Calm, "_read", lambda _self: found.pop(0) if found else 100.0)
    monkeypatch.setattr(calm, "WORDS", 1)
    monkeypatch.setattr(calm, "PAUSE", 0.001)
    return found


def measured(quiet: Calm) -> float:
    values = iter(range(1, 10))
    return quiet.measure(lambda: float(next(values)))


def test_a_sample_between_two_fast_looks_counts(speeds: list[float]) -> None:
    quiet = Calm(1)
    speeds[:] = [76.0, 80.0]
    assert (measured(quiet), quiet.again) == (1.0, 0)


def test_one_waits_for_fast_memory(speeds: list[float]) -> None:
    quiet = Calm(1)
    speeds[:] = [50.0, 60.0, 74.0, 90.0]
    assert (measured(quiet), quiet.again) == (1.0, 0)
    assert quiet.waited > 0.002


def test_one_that_memory_was_slow_after_is_taken_again(speeds: list[float]) -> None:
    quiet = Calm(1)
    speeds[:] = [100.0, 50.0, 60.0, 100.0, 90.0]
    assert (measured(quiet), quiet.again) == (2.0, 1)


def test_the_last_of_three_counts_however_slow(speeds: list[float]) -> None:
    quiet = Calm(1)
    speeds[:] = [100.0, 50.0, 100.0, 50.0, 100.0, 50.0]
    assert (measured(quiet), quiet.again) == (3.0, 2)


def test_nobody_waits_for_ever(speeds: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    quiet = Calm(1)
    monkeypatch.setattr(calm, "PATIENCE", 0.002)
    speeds[:] = [50.0] * 100
    assert measured(quiet) == 3.0


def test_looks_are_held_against_what_is_usual(speeds: list[float]) -> None:
    quiet = Calm(1)
    speeds[:] = [900.0, 80.0]
    assert (measured(quiet), quiet.again) == (1.0, 0)  # one fast look changes nothing
    speeds[:] = [200.0] * 60
    for _ in range(30):
        measured(quiet)
    speeds[:] = [140.0, 149.0, 151.0, 149.0, 150.0, 160.0]
    assert (measured(quiet), quiet.again) == (2.0, 1)


def test_memory_is_read() -> None:
    assert Calm(2)._read() > 0

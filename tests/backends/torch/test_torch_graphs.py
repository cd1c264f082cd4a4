"""When graphs are recorded; the recording itself is a stand-in where there is no GPU."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from octavo.backends.torch.device.graph import TRIES, Graphs, Pool

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


class StandIn:
    """A Pool whose graphs count their replays; the first `failures` recordings fail."""

    def __init__(self, failures: int = 0) -> None:
        self.failures, self.recorded, self.replays = failures, 0, 0

    def record(self, work: Callable[[], Any]) -> tuple[Any, Any]:
        if self.failures:
            self.failures -= 1
            raise RuntimeError("not while a stream records")
        self.recorded += 1
        return SimpleNamespace(replay=self._replay), work()

    def _replay(self) -> None:
        self.replays += 1


def graphs(pool: Any) -> Graphs[Any]:
    return Graphs[Any](pool)


def test_a_key_is_recorded_once_and_replayed_from_the_first_time_on() -> None:
    pool, calls = StandIn(), []
    held = graphs(pool)
    for _ in range(3):
        assert held.run("a", lambda: calls.append("a") or "results") == "results"
    assert (calls, pool.recorded, pool.replays) == (["a"], 1, 3)


@pytest.mark.parametrize("failures", range(1, TRIES + 2))
def test_what_cannot_be_recorded_runs_as_it_is(failures: int, caplog: pytest.LogCaptureFixture) -> None:
    """The second time what it needs is loaded; after TRIES it is left alone."""
    pool, ran = StandIn(failures), []
    held = graphs(pool)
    for i in range(4):
        assert held.run("a", lambda i=i: ran.append(i) or i) in (i, failures)
    tried = min(failures, TRIES)
    assert len(caplog.records) == tried
    assert ran == ([0, 1] if failures == 1 else [0, 1, 2, 3])
    assert pool.recorded == (failures < TRIES)


def test_without_a_pool_nothing_is_recorded() -> None:
    held = graphs(None)
    assert [held.run("a", lambda i=i: i) for i in range(2)] == [0, 1]


# ---- on a device


@on_gpu
def test_a_recording_that_fails_leaves_the_pool_usable(caplog: pytest.LogCaptureFixture) -> None:
    """What waits for the device may not be recorded; the next graph is right, and so is the first tried again."""
    held = graphs(Pool(1 << 20))
    x = torch.zeros(8, device="cuda")

    def waits() -> torch.Tensor:
        if not waited:
            waited.append(True)
            torch.cuda.synchronize()
        return x + 1

    waited: list[bool] = []
    assert held.run("waits", waits).sum().item() == 8
    assert "without a graph" in caplog.text
    assert held.run("other", lambda: x + 2).sum().item() == 16
    x.fill_(1)
    assert held.run("waits", waits).sum().item() == 16
    assert held.run("other", lambda: x + 2).sum().item() == 24


@on_gpu
def test_a_kernel_that_is_not_loaded_yet() -> None:
    """Recorded or not, its results are right."""
    import triton
    import triton.language as tl

    @triton.jit
    def double(x, y, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
        at = tl.arange(0, BLOCK)
        tl.store(y + at, tl.load(x + at) * 2)

    x = torch.arange(32.0, device="cuda")

    def work() -> torch.Tensor:
        y = torch.empty_like(x)
        double[(1,)](x, y, BLOCK=32)
        return y

    held = graphs(Pool(1 << 20))
    for factor in (1, 3):
        x.copy_(torch.arange(32.0) * factor)
        assert torch.equal(held.run("a", work).cpu(), torch.arange(32.0) * 2 * factor)

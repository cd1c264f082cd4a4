"""SequenceQueue: the policy's order, and who is last."""

from __future__ import annotations

import pytest
from simulation import make_request

from octavo.engine.policy import POLICIES, SequenceQueue
from octavo.engine.sequence import Sequence, make_sequences


def sequences(*priorities: int, n: int = 1) -> list[Sequence]:
    found = []
    for order, priority in enumerate(priorities):
        found += make_sequences(make_request(f"r{order}", [1], priority=priority, n=n, temperature=1.0), order)
    return found


@pytest.mark.parametrize(
    ("policy", "order"), [("fcfs", ["r0", "r1", "r2", "r3"]), ("priority", ["r1", "r3", "r0", "r2"])]
)
def test_order(policy: str, order: list[str]) -> None:
    queue = SequenceQueue(POLICIES[policy])
    for seq in reversed(sequences(1, 0, 1, 0)):
        queue.add(seq)
    assert [seq.request.request_id for seq in queue] == order
    assert queue.last().request.request_id == order[-1]
    assert len(queue) == 4


def test_the_n_sequences_of_a_request_keep_their_order() -> None:
    queue = SequenceQueue(POLICIES["priority"])
    for seq in reversed(sequences(5, 5, n=3)):
        queue.add(seq)
    assert [(seq.order, seq.index) for seq in queue] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]


def test_remove_takes_out_that_one_and_refuses_strangers() -> None:
    queue = SequenceQueue(POLICIES["fcfs"])
    one, two = sequences(0, 0)
    queue.add(one)
    with pytest.raises(KeyError, match="r1:0 is not queued"):
        queue.remove(two)
    twin = make_sequences(one.request, 0)[0]
    with pytest.raises(KeyError, match="r0:0 is not queued"):
        queue.remove(twin)
    queue.remove(one)
    assert len(queue) == 0


def test_requests_are_counted_however_many_of_their_sequences_are_here() -> None:
    queue = SequenceQueue(POLICIES["fcfs"])
    seqs = sequences(0, 0, n=2)
    for left, seq in zip((1, 1, 2, 2), seqs, strict=True):
        queue.add(seq)
        assert queue.num_requests == left
    for left, seq in zip((2, 1, 1, 0), seqs, strict=True):
        queue.remove(seq)
        assert queue.num_requests == left

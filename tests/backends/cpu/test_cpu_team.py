"""A team does every item once, on its members, waits for all of them and passes errors on."""

from __future__ import annotations

import threading
import time
import warnings

import numpy as np
import pytest

from octavo.backends.cpu.team import WORTHWHILE, Team


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("count", [0, 1, 2, 50])
def test_every_item_once(size: int, count: int) -> None:
    team, done = Team(size), []
    team.each(lambda item, member: done.append((item, member)), list(range(count)))
    assert sorted(item for item, _ in done) == list(range(count))
    assert {member for _, member in done} <= set(range(size))
    team.close()


def test_members_work_at_the_same_time() -> None:
    team, meeting = Team(3), threading.Barrier(3)
    members: list[int] = []

    def work(_item: int, member: int) -> None:
        meeting.wait(20)
        members.append(member)

    team.each(work, [1, 2, 3])
    assert sorted(members) == [0, 1, 2]
    team.close()


@pytest.mark.parametrize("bad", [0, 1])
def test_errors_come_out_after_all_have_ended(bad: int) -> None:
    team, meeting, ended = Team(2), threading.Barrier(2), []

    def work(_item: int, member: int) -> None:
        meeting.wait(20)
        if member == bad:
            raise MemoryError("no room")
        time.sleep(0.05)
        ended.append(member)

    with pytest.raises(MemoryError, match="no room"):
        team.each(work, [1, 2])
    assert ended == [1 - bad]
    team.close()


def test_overflow_in_a_member_warns_nobody() -> None:
    team, meeting = Team(2), threading.Barrier(2)

    def work(_item: int, member: int) -> None:
        meeting.wait(20)
        if member:
            np.exp(np.full(4, 1e9, np.float32))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        team.each(work, [1, 2])
    team.close()


@pytest.mark.parametrize("length", [1, 3, 100])
def test_parts_cover_the_range(length: int) -> None:
    team = Team(3)
    for work in (0, WORTHWHILE - 1, WORTHWHILE, WORTHWHILE * 100):
        parts = team.parts(length, work=work)
        assert [i for part in parts for i in range(part.start, part.stop)] == list(range(length))
        assert len(parts) == 1 or work >= WORTHWHILE
    assert len(team.parts(100, work=WORTHWHILE)) == 3
    assert len(Team(1).parts(100, work=WORTHWHILE * 100)) == 1
    team.close()

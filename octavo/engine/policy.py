"""Who goes first: a scheduling policy is a sort key, and SequenceQueue keeps sequences in its order."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import Counter
from collections.abc import Callable, Iterator

from octavo.engine.sequence import Sequence

Key = tuple[int, ...]
Policy = Callable[[Sequence], Key]


def _fcfs(seq: Sequence) -> Key:
    return (seq.order, seq.index)


def _priority(seq: Sequence) -> Key:
    return (seq.request.priority, seq.order, seq.index)


POLICIES: dict[str, Policy] = {"fcfs": _fcfs, "priority": _priority}


class SequenceQueue:
    """Sequences sorted by the policy's key (which never changes while a sequence lives); first is most urgent."""

    def __init__(self, policy: Policy) -> None:
        self._key = policy
        self._items: list[Sequence] = []
        self._by_request: Counter[str] = Counter()

    def add(self, seq: Sequence) -> None:
        """Insert in order."""
        insort(self._items, seq, key=self._key)
        self._by_request[seq.request.request_id] += 1

    def remove(self, seq: Sequence) -> None:
        """Take out; KeyError if it is not here."""
        at = bisect_left(self._items, self._key(seq), key=self._key)
        if at == len(self._items) or self._items[at] is not seq:
            raise KeyError(f"sequence {seq.request.request_id}:{seq.index} is not queued")
        del self._items[at]
        self._by_request[seq.request.request_id] -= 1
        if not self._by_request[seq.request.request_id]:
            del self._by_request[seq.request.request_id]

    @property
    def num_requests(self) -> int:
        """Requests of which any sequence is here."""
        return len(self._by_request)

    def after(self, seq: Sequence) -> list[Sequence]:
        """Those that are less urgent; `seq` need not be here."""
        return self._items[bisect_right(self._items, self._key(seq), key=self._key) :]

    def last(self) -> Sequence:
        """The least urgent."""
        return self._items[-1]

    def __len__(self) -> int:
        return len(self._items)

    def __reversed__(self) -> Iterator[Sequence]:
        return reversed(self._items)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._items)

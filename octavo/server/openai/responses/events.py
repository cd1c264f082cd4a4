"""The events of responses made in the background in, kept by their numbers; those that a client has not seen out."""

from __future__ import annotations

import asyncio

from octavo.base.errors import InputError

MAX_BYTES = 64 << 20  # of all logs
OVERHEAD = 64  # bytes that Python takes for an event beside its own
_END = b"\n\n"


class EventRoom:
    """What bounds all logs together: the oldest log gives up its older half first."""

    def __init__(self) -> None:
        self._logs: dict[EventLog, None] = {}
        self.num_bytes = 0

    def take(self, log: EventLog, size: int) -> None:
        """A log has grown."""
        self._logs.setdefault(log)
        self.num_bytes += size
        while self.num_bytes > MAX_BYTES:
            oldest = next(iter(self._logs))
            self.num_bytes -= oldest.shorten()
            if not len(oldest):
                del self._logs[oldest]

    def forget(self, log: EventLog) -> None:
        """Nobody can ask for it any more."""
        while len(log):
            self.num_bytes -= log.shorten()
        self._logs.pop(log, None)


class EventLog:
    """One response's events. over: there will be no more.  An event's number is its sequence_number."""

    def __init__(self, room: EventRoom) -> None:
        self._room = room
        self._events: list[bytes] = []
        self._num_dropped = 0
        self._more = asyncio.Event()
        self.over = False

    def __len__(self) -> int:
        return len(self._events)

    def add(self, events: bytes, *, over: bool = False) -> None:
        """Keep what a builder returned."""
        pieces = [piece + _END for piece in events.split(_END)[:-1]]
        self._events += pieces
        self.over = over
        self._room.take(self, len(events) + OVERHEAD * len(pieces))
        self._more.set()

    def shorten(self) -> int:
        """Drop the older half, or the last one; how many bytes that gives."""
        cut = (len(self._events) + 1) // 2
        size = sum(map(len, self._events[:cut])) + OVERHEAD * cut
        del self._events[:cut]
        self._num_dropped += cut
        return size

    def since(self, number: int) -> list[bytes]:
        """The events from this number on. InputError where they are not kept any more."""
        if number < self._num_dropped:
            raise InputError(
                f"the events before number {self._num_dropped} are not kept any more; "
                f"send starting_after={self._num_dropped - 1} or more, or ask without stream for what has come",
                param="starting_after",
            )
        return self._events[number - self._num_dropped :]

    async def wait(self, seconds: float) -> bool:
        """True once there is more than now; False after so many seconds."""
        self._more.clear()
        try:
            async with asyncio.timeout(seconds):
                return await self._more.wait()
        except TimeoutError:
            return False

"""Finished and running responses, kept in memory for a while: bounded in number, in bytes and in time."""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from octavo.server.errors import HttpError
from octavo.server.openai.responses.events import EventLog, EventRoom
from octavo.server.openai.responses.replies import OutputItem, ResponseObject
from octavo.server.openai.types import Message

MAX_ENTRIES = 1024
MAX_BYTES = 64 << 20
KEEP_S = 3600.0


class Job(Protocol):
    """What makes a response in the background."""

    def update(self) -> None: ...
    async def cancel(self) -> None: ...


@dataclass
class Stored:
    """One response. owner: the key it came with.  messages: the conversation up to and with it, without instructions.

    job: what makes it in the background.  events: where it is streamed from there.  num_given: how many of messages
    were there before it.
    """

    owner: bytes
    response: ResponseObject
    messages: list[Message]
    job: Job | None = None
    events: EventLog | None = None
    size: int = 0
    expires_at: float = 0.0
    num_given: int = field(init=False)

    def __post_init__(self) -> None:
        self.num_given = len(self.messages)


class ResponseStore:
    """The oldest give way to new ones. Nobody sees what came with another key.

    jobs: those that run.  room: that of streamed ones' events.
    """

    def __init__(self) -> None:
        self._entries: OrderedDict[str, Stored] = OrderedDict()
        self._items: dict[str, str] = {}  # item -> response
        self.num_bytes = 0
        self.jobs: set[Job] = set()
        self.room = EventRoom()

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, entry: Stored) -> None:
        """Keep a response, or its next state, for KEEP_S seconds from now. One larger than all room is not kept."""
        self._take_out(entry.response.id)
        entry.size = len(msgspec.json.encode(entry.response)) + len(msgspec.json.encode(entry.messages))
        entry.expires_at = time.monotonic() + KEEP_S
        self._entries[entry.response.id] = entry
        self._items.update((item.id, entry.response.id) for item in entry.response.output)
        self.num_bytes += entry.size
        self._expire()
        while len(self._entries) > MAX_ENTRIES or self.num_bytes > MAX_BYTES:
            self._drop(next(iter(self._entries)))

    def get(self, name: str, owner: bytes, *, param: str | None = None) -> Stored:
        """The response; a 404 where there is none of this name for this owner."""
        self._expire()
        entry = self._entries.get(name)
        if entry is None or entry.owner != owner:
            raise HttpError(
                404,
                f"there is no response {name[:80]!r}; responses are kept for {KEEP_S:g} s while there is room",
                kind="NotFoundError",
                param=param,
            )
        return entry

    def item(self, name: str, owner: bytes, *, param: str) -> OutputItem:
        """An item of a response that has ended, by the item's id; a 404 as for `get`."""
        self._expire()
        entry = self._entries.get(self._items.get(name, ""))
        if entry is None or entry.owner != owner:
            raise HttpError(404, f"there is no item {name[:80]!r} any more", kind="NotFoundError", param=param)
        return next(item for item in entry.response.output if item.id == name)

    def delete(self, name: str, owner: bytes) -> None:
        """Forget a response; a 404 as for `get`."""
        self.get(name, owner)
        self._drop(name)

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def _expire(self) -> None:
        now = time.monotonic()
        while self._entries and next(iter(self._entries.values())).expires_at <= now:
            self._drop(next(iter(self._entries)))

    def _drop(self, name: str) -> None:
        entry = self._take_out(name)
        if entry is not None and entry.events is not None and entry.job is None:  # else at the job's end
            self.room.forget(entry.events)

    def _take_out(self, name: str) -> Stored | None:
        entry = self._entries.pop(name, None)
        if entry is not None:
            self.num_bytes -= entry.size
            for item in entry.response.output:
                self._items.pop(item.id, None)
        return entry

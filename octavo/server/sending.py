"""ASGI messages in, sent in their order and for many streams at once; whether a client takes them, out."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Generator, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]

STALL_S = 30.0  # a client that takes nothing for so long is given up


class Outbox:
    """What all streams send in a step, handed to the server back to back: its thread is woken for all, not for each."""

    def __init__(self) -> None:
        self._queue: list[tuple[Sender, Message]] = []

    def put(self, sender: Sender, message: Message) -> None:
        """Send it as soon as what runs now has run."""
        if not self._queue:
            asyncio.get_running_loop().call_soon(self.flush)
        self._queue.append((sender, message))

    def flush(self) -> None:
        """Send all, now."""
        queue, self._queue = self._queue, []
        for sender, message in queue:
            sender.begin(message)


class Sender:
    """One client's messages. task: what is cancelled where the client is given up.  stalled: it was."""

    def __init__(self, send: Send, outbox: Outbox, task: asyncio.Task[Any] | None = None) -> None:
        self.stalled = False
        self._send = send
        self._outbox = outbox
        self._task = task
        self._full: asyncio.Future[None] | None = None
        self._waiting: deque[Message] = deque()

    def push(self, message: Message) -> asyncio.Future[None] | None:
        """Send without waiting. Where the client's buffers are full, a future that is done when it has taken all."""
        if self._full is None:
            self._outbox.put(self, message)
        else:
            self._waiting.append(message)
        return self._full

    async def send(self, message: Message) -> None:
        """Send, after all that was pushed; waits while the client's buffers are full."""
        await self.drain()
        self.begin(message)
        await self.drain()

    async def drain(self) -> None:
        """Return once the client has taken what was pushed. Raises what sending it raised."""
        self._outbox.flush()
        while (full := self._full) is not None:
            await asyncio.wait([full])
            full.result()

    def begin(self, message: Message) -> None:
        """Outbox: hand it to the server."""
        if self._full is not None:
            self._waiting.append(message)
            return
        try:
            steps = self._send(message).__await__()
            first = next(steps)
        except StopIteration:
            return
        except Exception as error:  # told to who sends next: other streams' messages follow this one
            self._full = asyncio.get_running_loop().create_future()
            self._full.set_exception(error)
            return
        self._full = asyncio.ensure_future(self._empty(_Rest(first, steps)))

    async def _empty(self, rest: Awaitable[None]) -> None:
        """Send what waits, one after the other, as the client takes it."""
        try:
            await self._taken(rest)
            while self._waiting:
                await self._taken(self._send(self._waiting.popleft()))
        finally:
            self._full = None

    async def _taken(self, rest: Awaitable[None]) -> None:
        stall = asyncio.get_running_loop().call_later(STALL_S, self._give_up)
        try:
            await rest
        finally:
            stall.cancel()

    def _give_up(self) -> None:
        self.stalled = True
        if self._task is not None:
            self._task.cancel()

    def close(self) -> None:
        """Send nothing more of what waits."""
        if self._full is not None:
            self._full.cancel()


class _Rest:
    """An awaitable that was begun outside of a task, from the future on that it waits for."""

    def __init__(self, first: Any, steps: Generator[Any, Any, None]) -> None:
        self._first = first
        self._steps = steps

    def __await__(self) -> Generator[Any, Any, None]:
        yield self._first
        yield from self._steps

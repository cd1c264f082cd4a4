"""The engine in a child process: requests in, frames over its socket, Outputs and what becomes of the process out."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import msgspec

from octavo.api.engine_process import EngineProcess, spawn
from octavo.base import errors
from octavo.base.config.config import EngineConfig
from octavo.base.errors import EngineDeadError, ModelFormatError, OctavoError, OverloadedError, RequestFailedError
from octavo.base.types.messages import (
    Abort,
    Add,
    Call,
    Fatal,
    FromEngine,
    Loading,
    Outputs,
    Ready,
    Reply,
    Stop,
)
from octavo.base.types.request import Request
from octavo.engine.process import Decoder, encode, frame

logger = logging.getLogger(__name__)


def make_error(kind: str | None, message: str, *, retry_after: int = 0) -> OctavoError:
    """The error that crossed the socket by its class's name; RequestFailedError for a name that is none."""
    found = getattr(errors, kind or "", None)
    if found is OverloadedError:
        return OverloadedError(message, retry_after=max(retry_after, 1))
    if isinstance(found, type) and issubclass(found, OctavoError):
        return found(message)
    return RequestFailedError(message)


class News:
    """asyncio.Event for one that waits: cheaper, as every token of every stream passes through one."""

    def __init__(self) -> None:
        self._there = False
        self._waiting: asyncio.Future[None] | None = None

    def set(self) -> None:
        """There is something; wakes who waits."""
        self._there = True
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def clear(self) -> None:
        """It was taken."""
        self._there = False

    async def wait(self) -> None:
        """Until there is something."""
        if not self._there:
            self._waiting = asyncio.get_running_loop().create_future()
            await self._waiting


class SocketClient(asyncio.Protocol):
    """One life of one engine process: started once, and over once it is lost.

    on_message gets Loading and Outputs, and returns whether something is to go out before the next is handled; on_read
    is called after those of one read; on_lost gets the reason when the process ends without having been told to.
    """

    def __init__(
        self,
        *,
        on_message: Callable[[Loading | Outputs], bool],
        on_read: Callable[[], None],
        on_lost: Callable[[OctavoError], None],
    ) -> None:
        self.last_heard = time.monotonic()
        self._on_message = on_message
        self._on_read = on_read
        self._on_lost = on_lost
        self._decoder: Decoder[FromEngine] = Decoder(FromEngine)
        self._messages: Iterator[FromEngine] = iter(())  # that have come, and are not handled yet
        self._process: EngineProcess | None = None
        self._transport: asyncio.Transport | None = None
        self._ready: asyncio.Future[dict[str, Any]] | None = None
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._num_calls = 0
        self._closing = False
        self.lost = False
        self._fatal: OctavoError | None = None

    @property
    def pid(self) -> int | None:
        """The engine process's id."""
        return self._process.pid if self._process else None

    async def start(self, config: EngineConfig, process: EngineProcess | None = None) -> dict[str, Any]:
        """Spawn the process, or take one that waits for its config; its info when ready. Raises what stopped it."""
        loop = asyncio.get_running_loop()
        self._ready = loop.create_future()
        self._process = spawn(config.device.device) if process is None else process
        await loop.create_unix_connection(lambda: self, sock=self._process.sock)
        self._write(frame(msgspec.msgpack.encode(config)))
        return await self._ready

    def add(self, request: Request, emitted: list[list[int] | None] | None = None) -> None:
        """Send a request; a refusal comes back as its Output.  emitted: as in messages.Add."""
        self._write(encode(Add(request, emitted)))

    def abort(self, names: list[str]) -> None:
        """Forget requests or single sequences."""
        self._write(encode(Abort(names)))

    async def call(self, name: str, arguments: dict[str, Any]) -> Any:
        """A rare thing by name. RequestFailedError where the engine refuses, EngineDeadError where it is gone."""
        self._num_calls += 1
        number = self._num_calls
        future = self._calls[number] = asyncio.get_running_loop().create_future()
        try:
            self._write(encode(Call(number, name, arguments)))
            return await future
        finally:
            self._calls.pop(number, None)

    async def close(self, *, grace: float = 5.0) -> None:
        """Ask the process to end, kill it after `grace` seconds; idempotent."""
        self._closing = True
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(encode(Stop()))
        if self._process is not None:
            await asyncio.to_thread(self._process.end, grace)
        if self._transport is not None:
            self._transport.abort()
        self._lose(EngineDeadError("the engine was closed"))

    def kill(self) -> None:
        """End the process at once: it is lost."""
        if self._process is not None:
            self._process.process.kill()
        if self._transport is not None:  # a process that a device holds back may live on
            self._transport.abort()

    def _write(self, frame: bytes) -> None:
        if self._transport is None or self._transport.is_closing():
            raise EngineDeadError("the engine process is gone; try again")
        self._transport.write(frame)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: the socket is open."""
        if isinstance(transport, asyncio.Transport):
            self._transport = transport

    def data_received(self, data: bytes) -> None:
        """asyncio: bytes came."""
        self.last_heard = time.monotonic()
        self._messages = self._decoder.feed(data)
        self._take()

    def _take(self) -> None:
        """Handle what has come; first outputs go out before the others are so much as decoded."""
        try:
            for message in self._messages:
                if self._handle(message):
                    asyncio.get_running_loop().call_soon(self._take)
                    return
        except ModelFormatError:
            if self._transport is not None:
                self._transport.abort()
            raise
        self._on_read()

    def _handle(self, message: FromEngine) -> bool:
        if isinstance(message, Outputs | Loading):
            return self._on_message(message)
        if isinstance(message, Ready) and self._ready is not None and not self._ready.done():
            self._ready.set_result(message.info)
        elif isinstance(message, Fatal):
            self._fatal = make_error(message.kind, message.message)
        elif isinstance(message, Reply) and (future := self._calls.get(message.id)) and not future.done():
            if message.error is None:
                future.set_result(message.value)
            else:
                future.set_exception(RequestFailedError(message.error))
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio: the other side is gone."""
        with suppress(ModelFormatError):
            for message in self._messages:
                self._handle(message)
        if self._process is not None and not self._closing:
            given = (self._process, self._fatal is not None)
            threading.Thread(target=_reap, args=given, name="octavo-reap", daemon=True).start()
        self._lose(self._fatal or EngineDeadError("the engine process ended; try again"))

    def _lose(self, error: OctavoError) -> None:
        self.lost = True
        waiting, self._calls = list(self._calls.values()), {}
        starting = self._ready is not None and not self._ready.done()
        for future in [*waiting, *([self._ready] if starting and self._ready is not None else [])]:
            if not future.done():
                future.set_exception(error)
                future.exception()  # seen: a start that was cut off while it connected asks for nothing more
        if not self._closing and not starting:
            self._closing = True
            self._on_lost(error)


def _reap(process: EngineProcess, told: bool) -> None:
    """The socket closed: see the process ended, and say how, unless it has told why."""
    code = process.end(2.0)
    if not told:
        logger.error("the engine process %d ended with exit code %d", process.pid, code)

"""A request's body in, counted while it is read; bytes or a 4xx out. And what is in flight, for the drain."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Protocol

from octavo.base.errors import OctavoError, OverloadedError
from octavo.server.errors import HttpError
from octavo.server.exchange import Exchange
from octavo.server.turns import Turns

BODY_STALL_S = 30.0  # between two pieces of a body
BODIES_IN_MEMORY = 8  # bodies of the largest size that may be in memory at once


class Work(Protocol):
    """What is in flight: an exchange, or work that goes on after its answer.

    names: its X-Request-Id, and once they are known the client's request_id and the id of the answer.
    """

    names: set[str]

    def interrupt(self, error: OctavoError) -> None: ...


class Traffic:
    """The requests being answered. While `draining` or `paused`, no new ones are let in.

    max_at_work: how many may be past their body; one more is refused before it costs anything else.
    retry_after: seconds, as the engine told them last to a request that found its queue full.
    """

    def __init__(self, max_body_bytes: int) -> None:
        self.max_body_bytes = max_body_bytes
        self.max_at_work = sys.maxsize
        self.retry_after = 1
        self.draining = False
        self.paused = False
        self._exchanges: set[Work] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._resumed = asyncio.Event()
        self._body_bytes = 0
        self._at_work: set[Work] = set()
        self._turns = Turns()

    def __len__(self) -> int:
        return len(self._exchanges)

    @contextmanager
    def entered(self, exchange: Work) -> Iterator[None]:
        """Count it as in flight."""
        self._exchanges.add(exchange)
        self._idle.clear()
        try:
            yield
        finally:
            self._exchanges.discard(exchange)
            self._at_work.discard(exchange)
            if not self._exchanges:
                self._idle.set()

    def leave(self, exchange: Work) -> None:
        """It is no work any more: it shows its client what another work in flight makes."""
        self._exchanges.discard(exchange)
        self._at_work.discard(exchange)

    def interrupt(self, names: Collection[str], error: OctavoError) -> list[str]:
        """End the requests that have one of these names with `error`; those names that were found."""
        found = {work: work.names.intersection(names) for work in self._exchanges}
        for work, own in found.items():
            if own:
                work.interrupt(error)
        return sorted(set[str]().union(*found.values()))

    async def wait_idle(self) -> None:
        """Return once nothing is in flight."""
        await self._idle.wait()

    def pause(self) -> None:
        """Let no new ones in until `resume`."""
        self.paused = True
        self._resumed.clear()

    def resume(self) -> None:
        """Let new ones in again."""
        self.paused = False
        self._resumed.set()

    async def wait_paused(self) -> None:
        """Return once nothing is in flight, or once `resume` was called."""
        waits = [asyncio.ensure_future(event.wait()) for event in (self._idle, self._resumed)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    def interrupt_all(self, error: OctavoError) -> None:
        """End everything in flight with `error`."""
        for exchange in list(self._exchanges):
            exchange.interrupt(error)

    async def read_body(self, exchange: Exchange, *, kind: bytes = b"application/json") -> bytes:
        """The whole body. 413, 415, 408 or 503 as soon as one is due: never after having read more than allowed.

        kind: the content type that it must have.
        """
        kept = exchange.take_back()
        if kept is not None:
            return kept
        _check_head(exchange, self.max_body_bytes, kind)
        pieces: list[bytes] = []
        size, more = 0, True
        try:
            while more:
                piece, more = await _next_piece(exchange)
                size += len(piece)
                self._body_bytes += len(piece)
                if size > self.max_body_bytes:
                    raise _too_large(self.max_body_bytes)
                if self._body_bytes > self.max_body_bytes * BODIES_IN_MEMORY:
                    raise OverloadedError("too many large requests at once; try again", retry_after=1)
                pieces.append(piece)
        finally:
            self._body_bytes -= size
        if exchange in self._exchanges:
            self._begin_work(exchange)
            await self._turns.take()
        return b"".join(pieces)

    def _begin_work(self, exchange: Exchange) -> None:
        if len(self._at_work) >= self.max_at_work:
            raise OverloadedError(f"{len(self._at_work)} requests are under way", retry_after=self.retry_after)
        self._at_work.add(exchange)


async def _next_piece(exchange: Exchange) -> tuple[bytes, bool]:
    stall = asyncio.get_running_loop().call_later(BODY_STALL_S, _give_up, exchange)
    try:
        return await exchange.receive_body()
    finally:
        stall.cancel()


def _give_up(exchange: Exchange) -> None:
    what = f"the body did not arrive within {BODY_STALL_S:g} s"
    exchange.interrupt(HttpError(408, what, kind="RequestTimeoutError"))


def _check_head(exchange: Exchange, most: int, kind: bytes) -> None:
    if (exchange.header(b"content-type") or b"").partition(b";")[0].strip().lower() != kind:
        what = "JSON" if kind == b"application/json" else "a form"
        told = f"send {what}, with the header 'Content-Type: {kind.decode()}'"
        raise HttpError(415, told, kind="UnsupportedMediaType")
    if exchange.header(b"content-encoding") not in (None, b"identity"):
        raise HttpError(415, "Content-Encoding is not supported: send the body as it is", kind="UnsupportedMediaType")
    length = exchange.header(b"content-length") or b"0"
    if not length.isdigit() or len(length) > 18 or int(length) > most:
        raise _too_large(most)


def _too_large(most: int) -> HttpError:
    return HttpError(
        413, f"the body is larger than {most} bytes; send less, or start with --max-body-bytes", kind="PayloadTooLarge"
    )

"""Requests of a batch in; their results, as they come, out. Each goes to its route as a request over HTTP does."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

import msgspec

from octavo.server.batch.lines import BatchError, BatchLine, BatchResponse, BatchResult

PATIENCE_S = 600.0  # pauses of a request, in all, that is sent again while the server is full, loading or restarting
_BUSY = (429, 503, 529)


@dataclass(frozen=True)
class Answer:
    """What a route answered. retry_after: seconds, where it says so."""

    status: int
    body: bytes
    request_id: str
    retry_after: float = 1.0


Ask = Callable[[str, bytes], Awaitable[Answer]]


async def run_lines(
    ask: Ask,
    lines: Iterable[BatchLine],
    write: Callable[[BatchResult], None],
    *,
    urls: Collection[str],
    at_once: int,
) -> None:
    """Answer every line, `at_once` at a time; `write` gets the results in the order in which they come.

    urls: those that a line may name. What `ask` raises ends it all: lines under way are not written.
    """
    running: set[asyncio.Task[BatchResult]] = set()
    rest = iter(lines)
    try:
        while (line := await asyncio.to_thread(next, rest, None)) is not None:  # many may be passed over at once
            if len(running) >= at_once:
                running = await _next(running, write)
            running.add(asyncio.create_task(_answer(ask, line, urls)))
        while running:
            running = await _next(running, write)
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def _next(
    running: set[asyncio.Task[BatchResult]], write: Callable[[BatchResult], None]
) -> set[asyncio.Task[BatchResult]]:
    done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
    for task in sorted(done, key=lambda task: task.exception() is not None):  # an error ends it: results come first
        write(task.result())
    return running


def is_busy(result: BatchResult) -> bool:
    """Whether the server was full, loading or restarting to the last: later, the request may be answered."""
    return result.response is not None and result.response.status_code in _BUSY


class _Pending(msgspec.Struct):
    """What asks for an answer that is not there, whole, when the call returns."""

    stream: Any = None
    background: Any = None


class _Told(msgspec.Struct):
    message: str = ""


class _Failed(msgspec.Struct):
    error: _Told


async def _answer(ask: Ask, line: BatchLine, urls: Collection[str]) -> BatchResult:
    if line.url not in urls:
        return _result(line, None, BatchError("invalid_url", f"the url must be one of {', '.join(sorted(urls))}"))
    if name := _meaningless(line.body):
        return _result(line, None, BatchError("invalid_request", f"{name} has no meaning in a batch; leave it out"))
    patience = PATIENCE_S
    answer = await ask(line.url, bytes(line.body))
    while answer.status in _BUSY and patience > 0:
        patience -= answer.retry_after
        await asyncio.sleep(answer.retry_after)
        answer = await ask(line.url, bytes(line.body))
    response = BatchResponse(answer.status, answer.request_id, msgspec.Raw(answer.body))
    if answer.status < 400:
        return _result(line, response, None)
    told = msgspec.json.decode(answer.body, type=_Failed).error.message
    return _result(line, response, BatchError(str(answer.status), told))


def _meaningless(body: msgspec.Raw) -> str | None:
    try:
        asked = msgspec.json.decode(body, type=_Pending)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None  # the route says what is wrong
    return next((name for name in ("stream", "background") if getattr(asked, name)), None)


def _result(line: BatchLine, response: BatchResponse | None, error: BatchError | None) -> BatchResult:
    return BatchResult(id=f"batch_req_{uuid.uuid4().hex}", custom_id=line.custom_id, response=response, error=error)

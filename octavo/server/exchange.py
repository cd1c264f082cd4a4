"""One HTTP request over ASGI: its head and body in, a reply or a stream out, and notice when the client goes away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import msgspec

from octavo.base.errors import InputError, OctavoError
from octavo.server.errors import ClientGoneError, ErrorForm, OpenAIErrors
from octavo.server.openai.timing import Timing
from octavo.server.sending import Outbox, Send, Sender

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


@dataclass(frozen=True)
class Reply:
    """A whole answer."""

    body: bytes
    status: int = 200
    content_type: bytes = b"application/json"
    headers: Sequence[tuple[bytes, bytes]] = field(default=())


def json_reply(told: object) -> Reply:
    """A 200 with this as JSON."""
    return Reply(msgspec.json.encode(told))


class Exchange:
    """A request and the answer being given to it.

    `watch()` must be called before long work: servers do not fail a send to a client that is gone, so the closing is
    read from `receive`, and cancels the task that answers. `interrupt(error)` ends it from outside, with that error.
    names: those by which it can be ended: request_id, and what its answer adds.
    owner: a digest of the key it came with, empty where none is asked for: what is stored belongs to it.
    errors: how this route, or a stream that has begun, tells an error.  timing: of the one completion that answers it.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send, *, request_id: str, outbox: Outbox) -> None:
        self.request_id = request_id
        self.names = {request_id}
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self._query: bytes = scope.get("query_string", b"")
        self.path_params: dict[str, str] = {}
        self._values: dict[bytes, list[bytes]] = {}
        for key, value in scope["headers"]:
            self._values.setdefault(key.lower(), []).append(value)
        self.route = "unmatched"
        self.status = 0
        self.started_at = time.monotonic()
        self.reply_headers: list[tuple[bytes, bytes]] = [(b"x-request-id", request_id.encode("latin-1"))]
        self.streaming = False
        self.owner = b""
        self.errors: ErrorForm = OpenAIErrors()
        self.timing: Timing | None = None
        self._closed = False
        self.interruption: OctavoError | None = None
        self._receive = receive
        self._kept: bytes | None = None
        self._task = asyncio.current_task()
        self._sender = Sender(send, outbox, self._task)
        self._watcher: asyncio.Future[MutableMapping[str, Any]] | None = None

    @property
    def gone(self) -> bool:
        """The client closed the connection, or was given up."""
        return self._closed or self._sender.stalled

    def header_values(self, name: bytes) -> list[bytes]:
        """Every value of a header, in order; names are lower case."""
        return self._values.get(name, [])

    def header(self, name: bytes) -> bytes | None:
        """A header's first value."""
        values = self._values.get(name)
        return values[0] if values else None

    def query(self, *lists: str) -> dict[str, str | list[str]]:
        """The URL's query; InputError where a name comes twice. lists: names that may, also as `name[]`."""
        try:
            pairs = parse_qsl(self._query.decode("latin-1"), keep_blank_values=True, max_num_fields=16)
        except ValueError:
            raise InputError("the query has too many fields", param="query") from None
        found: dict[str, str | list[str]] = {}
        for name, value in pairs:
            if (plain := name.removesuffix("[]")) in lists:
                found[plain] = [*found.get(plain, []), value]
            elif name in found:
                raise InputError("the query names a field twice", param="query")
            else:
                found[name] = value
        return found

    def put_back(self, body: bytes) -> None:
        """The whole body was read; it is there for another reader."""
        self._kept = body

    def take_back(self) -> bytes | None:
        """A body that was put back, once."""
        body, self._kept = self._kept, None
        return body

    async def receive_body(self) -> tuple[bytes, bool]:
        """The next piece of the body, and whether more follows. ClientGoneError if it will never come."""
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self._closed = True
            raise ClientGoneError
        return message.get("body", b""), message.get("more_body", False)

    def watch(self) -> None:
        """From now on a closed connection cancels the task that answers. Call once the body is read."""
        if self._watcher is None:
            self._watcher = asyncio.ensure_future(self._receive())  # no task, where the server gives a future
            self._watcher.add_done_callback(self._heard)

    def _heard(self, message: asyncio.Future[MutableMapping[str, Any]]) -> None:
        if message is not self._watcher or message.cancelled():  # released
            return
        self._watcher = None
        if message.result()["type"] == "http.disconnect":
            self._closed = True
            self._cancel()
        else:
            self.watch()

    def interrupt(self, error: OctavoError) -> None:
        """End the answer with `error`, now."""
        if self.interruption is None and self._task is not None:
            self.interruption = error
            self._cancel()

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def reply(self, reply: Reply) -> None:
        """Send a whole answer."""
        self.release()
        headers = [*self.reply_headers, *reply.headers]
        if reply.status != 204:
            headers.append((b"content-type", reply.content_type))
        if reply.status not in (204, 304):  # of 304 it would be the length of what is not sent
            headers.append((b"content-length", str(len(reply.body)).encode()))
        self.status = reply.status
        await self._sender.send({"type": "http.response.start", "status": reply.status, "headers": headers})
        body = b"" if self.method == "HEAD" else reply.body
        await self._sender.send({"type": "http.response.body", "body": body, "more_body": False})

    async def send_file(self, path: Path, size: int) -> None:
        """Send a file's first `size` bytes as they are; waits while the client's buffers are full."""
        with path.open("rb") as file:
            self.status = 200
            headers = [(b"content-type", b"application/octet-stream"), (b"content-length", str(size).encode())]
            await self._sender.send(
                {"type": "http.response.start", "status": 200, "headers": headers + self.reply_headers}
            )
            left = 0 if self.method == "HEAD" else size
            while left:
                data = file.read(min(left, 1 << 18))
                left = left - len(data) if data else 0
                await self.send_events(data, last=not left)
            if not size or self.method == "HEAD":
                await self.send_events(b"", last=True)

    def begin_stream(self) -> None:
        """Send the head of an event stream without waiting."""
        self.streaming = True
        self.status = 200
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),
            *self.reply_headers,
        ]
        self._sender.push({"type": "http.response.start", "status": 200, "headers": headers})

    def push_events(self, data: bytes) -> asyncio.Future[None] | None:
        """Send a piece of the stream without waiting; as Sender.push."""
        return self._sender.push({"type": "http.response.body", "body": data, "more_body": True})

    async def send_events(self, data: bytes, *, last: bool = False) -> None:
        """Send a piece of the stream; waits while the client's buffers are full."""
        if last:
            await self._sender.drain()
            self.release()
        await self._sender.send({"type": "http.response.body", "body": data, "more_body": not last})

    def release(self) -> None:
        """Stop watching; idempotent. Before the last bytes, since a finished answer reads as a closed connection."""
        if self._watcher is not None:
            watcher, self._watcher = self._watcher, None  # else a cycle would be left to the collector
            watcher.cancel()
        self._sender.close()

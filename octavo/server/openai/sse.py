"""Choices as JSON in; server-sent events out. What all chunks of a stream share is rendered once."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from octavo.server.openai.replies import Usage
from octavo.server.openai.timing import RequestMetrics

KEEP_ALIVE = b": keep-alive\n\n"  # a comment: clients pass over it, proxies see that the stream lives


class Chunks:
    """One stream's chunks. with_usage: every chunk has a usage field, null where it tells nothing."""

    def __init__(self, *, id: str, object: str, created: int, model: str, with_usage: bool) -> None:
        head = msgspec.json.encode({"id": id, "object": object, "created": created, "model": model})
        self._head = b"data: " + head[:-1] + b',"choices":['
        self._tail = b'],"usage":null}\n\n' if with_usage else b"]}\n\n"

    def choice(self, choice: bytes, usage: Usage | None = None, more: tuple[str, Any] | None = None) -> bytes:
        """A chunk of one choice. more: a field beside it, and what it holds."""
        tail = self._tail if usage is None else b'],"usage":' + msgspec.json.encode(usage) + b"}\n\n"
        if more is not None:
            name, value = more
            tail = tail[:-3] + b',"%b":%b}\n\n' % (name.encode(), msgspec.json.encode(value))
        return self._head + choice + tail

    def end(self, usage: Usage | None, metrics: RequestMetrics | UnsetType) -> bytes:
        """The chunk without choices that tells the token counts and where the time went; nothing where neither is."""
        if metrics is UNSET:
            return self.choice(b"", usage) if usage is not None else b""
        return self.choice(b"", usage, ("metrics", metrics))

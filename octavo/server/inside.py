"""A path and a body in; the answer that a client would get out: a request that this process sends to itself."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from typing import Any

from octavo.server.exchange import Scope


class InsideCall:
    """One POST without a connection: what ASGI asks for, and what comes back."""

    def __init__(self, path: str, body: bytes) -> None:
        self.scope: Scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "headers": [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())],
            "query_string": b"",
        }
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self._body: bytes | None = body
        self._pieces: list[bytes] = []

    @property
    def answer(self) -> bytes:
        """The body that came back."""
        return b"".join(self._pieces)

    async def receive(self) -> MutableMapping[str, Any]:
        """The body; the caller stays until it is answered."""
        if self._body is None:
            await asyncio.get_running_loop().create_future()
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(self, message: MutableMapping[str, Any]) -> None:
        """Keep the answer."""
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], dict(message["headers"])
        else:
            self._pieces.append(message["body"])

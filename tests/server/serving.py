"""A real granian server on a free port, in a thread, over a FakeLLM or an AsyncLLM."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import httpx

from octavo.base.config.config import ServerConfig
from octavo.server.app import App
from octavo.server.listener import HttpServer, listen

if TYPE_CHECKING:
    import openai


class LiveServer:
    """`with LiveServer(llm) as server`: server.url, server.app, server.client (httpx) and raw sockets."""

    def __init__(self, llm: Any, **options: Any) -> None:
        self.llm = llm
        self.config = ServerConfig(**{"port": 0, **options})
        self.app: App
        self.loop: asyncio.AbstractEventLoop
        self._ready = threading.Event()
        self._http: HttpServer
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    async def _serve(self) -> None:
        listener = listen(self.config.host, 0)
        self.port: int = listener.getsockname()[1]
        self.app = App(self.llm, self.config)
        self.loop = asyncio.get_running_loop()
        self._http = HttpServer(self.app, listener)
        serving = asyncio.create_task(self._http.serve())
        await self.llm.start()
        self.app.batches.resume()
        self._ready.set()
        await serving
        await self.app.batches.close()
        await self.llm.close(0)
        self.app.batches.store.close()

    def __enter__(self) -> LiveServer:
        self._thread.start()
        if not self._ready.wait(60):
            raise TimeoutError("the server did not start")
        self.url = f"http://127.0.0.1:{self.port}"
        self.client = httpx.Client(base_url=self.url, timeout=60, trust_env=False)
        return self

    def __exit__(self, *_error: object) -> None:
        self.client.close()
        self.loop.call_soon_threadsafe(self._http.stop)
        self._thread.join(30)

    def run(self, make: Callable[[], Awaitable[Any]]) -> Any:
        """Run a coroutine in the server's loop."""
        return asyncio.run_coroutine_threadsafe(_call(make), self.loop).result(30)

    def post(self, path: str, body: Any, **headers: str) -> httpx.Response:
        """POST JSON, or bytes as they are."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.client.post(path, content=content, headers={"content-type": "application/json", **headers})

    def events(self, path: str, body: dict[str, Any]) -> list[Any]:
        """The events of a stream, parsed; the last is the text [DONE]."""
        response = self.post(path, {**body, "stream": True})
        assert response.headers["content-type"].startswith("text/event-stream"), response.text
        return parse_events(response.text)

    def openai(self, key: str = "none") -> openai.OpenAI:
        """The stock client, which asks once."""
        import openai  # here, as few tests want it

        return openai.OpenAI(base_url=self.url + "/v1", api_key=key, max_retries=0)

    def raw(self, data: bytes, *, wait: float = 5.0) -> bytes:
        """What comes back for these bytes, until the server closes or `wait` seconds pass."""
        with self.connect() as connection:
            connection.sendall(data)
            connection.settimeout(wait)
            pieces = []
            try:
                while piece := connection.recv(65536):
                    pieces.append(piece)
                    if b"content-length: 0" in piece or _complete(b"".join(pieces)):
                        break
            except (TimeoutError, ConnectionResetError):
                pass
            return b"".join(pieces)

    def connect(self) -> socket.socket:
        """An open connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=10)


async def _call(make: Callable[[], Awaitable[Any]]) -> Any:
    return await make()


def _complete(data: bytes) -> bool:
    head, found, body = data.partition(b"\r\n\r\n")
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    return bool(found and lengths) and len(body) >= int(lengths[0].split(b":")[1])


def parse_events(text: str) -> list[Any]:
    """Server-sent events to JSON values; comments are passed over."""
    found: list[Any] = []
    for line in text.split("\n"):
        if line.startswith("data: "):
            data = line.removeprefix("data: ")
            found.append(data if data == "[DONE]" else json.loads(data))
    return found


def wait_for(condition: Callable[[], bool], *, seconds: float = 10.0) -> None:
    """Return once `condition` holds; AssertionError if it does not within `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.005)

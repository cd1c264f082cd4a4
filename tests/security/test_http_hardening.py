"""The server as a process under hostile HTTP: heads and bodies without end, slow ones, bombs, many requests at once.

Each is refused or cut off, memory stays bounded, and others are answered meanwhile. OCTAVO_TEST_LORIS=1000: so many
slow connections in place of a few.
"""

from __future__ import annotations

import os
import select
import socket
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from fake_llm import FakeLLM
from serving import LiveServer
from test_launch import Process

from octavo.server import listener

MB = 1 << 20
LORIS = int(os.environ.get("OCTAVO_TEST_LORIS", "200"))
HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
CHUNKED = HEAD + b"transfer-encoding: chunked\r\n\r\n"
GOOD = b'{"prompt":"a","max_tokens":2}'


class Victim:
    """A served process, what memory it took at most, and a client that keeps asking it for something."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.port = int(process.url.rpartition(":")[2])
        self.answers: list[int] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def _ask(self) -> None:
        with httpx.Client(base_url=self.process.url, timeout=20, trust_env=False) as client:
            while not self._done.is_set():
                self.answers.append(client.post("/v1/completions", json={"prompt": "a", "max_tokens": 2}).status_code)
                self.answers.append(client.get("/health").status_code)
                time.sleep(0.01)

    def __enter__(self) -> Victim:
        self._thread.start()
        self.pid = self.process.process.pid
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")  # the peak begins anew
        self.before = self.memory("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def memory(self, name: str) -> int:
        status = Path(f"/proc/{self.pid}/status").read_text()
        return next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith(name + ":"))

    def check(self, most: int) -> None:
        """It lives, took no more than `most` bytes at any time, and answered all others."""
        count = len(self.answers)
        end = time.monotonic() + 20
        while len(self.answers) < count + 4 and time.monotonic() < end:
            time.sleep(0.01)
        assert len(self.answers) >= count + 4
        assert set(self.answers) == {200}
        assert self.process.process.poll() is None
        assert self.memory("VmHWM") - self.before < most

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def feed(self, start: bytes, piece: bytes, most: int) -> tuple[int, bytes]:
        """Send `start`, then `piece` up to `most` bytes or until it answers or closes: what was sent, what came."""
        with self.connect() as connection:
            sent = 0
            try:
                connection.sendall(start)
                while sent < most and not select.select([connection], [], [], 0)[0]:
                    connection.sendall(piece)
                    sent += len(piece)
                connection.settimeout(10)
                return sent, connection.recv(65536)
            except (ConnectionResetError, BrokenPipeError):
                return sent, b""


@pytest.fixture(scope="module")
def process() -> Iterator[Process]:
    with Process() as served:
        assert served.process.stderr is not None
        log = threading.Thread(target=served.process.stderr.read)  # a full pipe would hold the server up
        log.start()
        yield served
        served.process.kill()
        log.join()


@pytest.fixture
def victim(process: Process) -> Iterator[Victim]:
    with Victim(process) as victim:
        yield victim


# where no end of it is refused for its size, it is cut off while it is read: the sockets' buffers are all that was sent
HEADS = {
    "a header of 200 MB": (b"GET /health HTTP/1.1\r\nhost: localhost\r\nx: ", b"a" * MB),
    "a header's name of 200 MB": (b"GET /health HTTP/1.1\r\nhost: localhost\r\n", b"a" * MB),
    "two million headers": (b"GET /health HTTP/1.1\r\nhost: localhost\r\n", b"x: y\r\n" * 20_000),
    "a URL of 200 MB": (b"GET /health?", b"a" * MB),
    "a method of 200 MB": (b"", b"A" * MB),
    "empty lines": (b"", b"\r\n" * (MB // 2)),
    "a chunk size without end": (CHUNKED, b"1" * MB),
    "a chunk's extensions without end": (CHUNKED + b"1;", b"a" * MB),
    "trailers without end": (CHUNKED + b"1\r\n{\r\n0\r\n", b"x: y\r\n" * 20_000),
    "a body in chunks without end": (CHUNKED, b"10000\r\n" + b" " * 65536 + b"\r\n"),
}


@pytest.mark.parametrize("name", HEADS)
def test_what_does_not_end_is_cut_off(victim: Victim, name: str) -> None:
    start, piece = HEADS[name]
    sent, answer = victim.feed(start, piece, 200 * MB)
    assert answer == b"" or answer[9:12] in (b"400", b"413", b"414", b"431"), answer[:100]
    body = name.startswith("a body")
    assert sent < (48 if body else 16) * MB
    victim.check((96 if body else 24) * MB)


def test_a_body_above_the_cap(victim: Victim) -> None:
    announced = HEAD + b"content-length: %d\r\n\r\n" % (33 * MB)
    sent, answer = victim.feed(announced, b" " * 65536, 33 * MB)
    assert answer == b"" or answer[9:12] == b"413"
    assert sent < 16 * MB
    victim.check(24 * MB)


def test_bombs(victim: Victim) -> None:
    """Gzip is refused before it is read; JSON that is deep is an error like others."""
    bomb = zlib.compress(b" " * (30 * MB), 9, wbits=31)
    kinds = {"content-type": "application/json"}

    def status(path: str, content: bytes, **more: str) -> int:
        # a connection of its own: what is refused unread is closed
        url = victim.process.url + path
        return httpx.post(url, content=content, headers={**kinds, **more}, timeout=20, trust_env=False).status_code

    for encoding in ("gzip", "deflate", "br", "gzip, gzip"):
        assert status("/v1/completions", bomb, **{"content-encoding": encoding}) == 415
    for deep in (b"[" * 100_000 + b"]" * 100_000, b'{"a":' * 100_000 + b"1" + b"}" * 100_000, b"[" * 2_000_000):
        for content in (deep, b'{"prompt":' + deep, b'{"prompt":"a","metadata":' + deep + b"}"):
            for path in ("/v1/completions", "/v1/messages"):
                assert status(path, content) == 400
    victim.check(32 * MB)


def test_slow_connections_take_nothing_from_others(victim: Victim) -> None:
    starts = (b"", b"G", b"GET /health HTTP/1.1\r\nhost: loc", HEAD, HEAD + b"content-length: 999\r\n\r\n{", CHUNKED)
    with ExitStack() as stack:
        slow = [stack.enter_context(victim.connect()) for _ in range(LORIS)]
        for number, connection in enumerate(slow):
            connection.sendall(starts[number % len(starts)])
        for _ in range(3):
            for number, connection in enumerate(slow):
                connection.sendall((b"x", b"E", b"a", b"x", b" ", b"1")[number % len(starts)])
        victim.check(48 * MB)
    victim.check(48 * MB)


def test_slow_heads_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "HEADERS_TIMEOUT_MS", 300)
    with LiveServer(FakeLLM()) as live, live.connect() as connection:
        connection.settimeout(10)
        connection.sendall(b"GET /health HTTP/1.1\r\nhost: ")
        assert connection.recv(1000)[:12] in (b"", b"HTTP/1.1 408")
        assert live.client.get("/health").status_code == 200


def test_many_requests_in_one_go(victim: Victim) -> None:
    """Pipelined requests are answered one by one and in order, whether or not the client reads."""
    request = HEAD + b"content-length: %d\r\n\r\n" % len(GOOD) + GOOD
    last = b"GET /nope HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
    with victim.connect() as connection:
        connection.sendall(request * 100 + last)
        found = bytearray()
        while piece := connection.recv(65536):
            found += piece
    assert found.count(b"HTTP/1.1 200") == 100
    assert found.index(b"HTTP/1.1 404") > found.rindex(b"HTTP/1.1 200")
    with victim.connect() as connection:
        connection.setblocking(False)
        sent, end = 0, time.monotonic() + 1
        while sent < 64 * MB and time.monotonic() < end:
            if select.select([], [connection], [], 0.2)[1]:
                sent += connection.send(request * 500)
    assert sent < 64 * MB
    victim.check(32 * MB)


SMUGGLED = b"GET /smuggled HTTP/1.1\r\nhost: localhost\r\nx: "
AMBIGUOUS = {
    "two lengths": b"content-length: 2\r\ncontent-length: 60\r\n\r\n{}",
    "a list of lengths": b"content-length: 2, 60\r\n\r\n{}",
    "a length and chunks": b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks that are not last": b"transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "an unknown coding": b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
    "a signed length": b"content-length: +2\r\n\r\n{}",
    "a space before the colon": b"content-length : 2\r\n\r\n{}",
    "a folded header": b"x: a\r\n content-length: 2\r\n\r\n{}",
    "a bare line feed": b"x: a\ncontent-length: 2\r\n\r\n{}",
    "a null": b"x: a\0b\r\ncontent-length: 2\r\n\r\n{}",
    "a chunk size that is none": b"transfer-encoding: chunked\r\n\r\n-2\r\n{}\r\n0\r\n\r\n",
    "a chunk size that is huge": b"transfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\n{}\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_requests_that_end_in_two_ways(victim: Victim, name: str) -> None:
    """One answer, an error; or one for each request where there is one reading of both: never a request in a body."""
    with victim.connect() as connection:
        connection.sendall(HEAD + AMBIGUOUS[name] + SMUGGLED + b"y\r\nconnection: close\r\n\r\n")
        connection.shutdown(socket.SHUT_WR)
        connection.settimeout(5)
        found = bytearray()
        try:
            while piece := connection.recv(65536):
                found += piece
        except (TimeoutError, ConnectionResetError):
            pass
    statuses = [line.split(b" ")[1] for line in bytes(found).split(b"\r\n") if line.startswith(b"HTTP/1.1 ")]
    assert statuses == [] or statuses[0].startswith(b"4"), found[:300]
    assert len(statuses) <= 2
    victim.check(24 * MB)

"""Bodies, heads and content types: refused while they are read, never after."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest
from fake_llm import FakeLLM
from serving import LiveServer, wait_for

from octavo.server import limits

CAP = 4096
POST = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"


@pytest.fixture
def small() -> Iterator[LiveServer]:
    with LiveServer(FakeLLM(), max_body_bytes=CAP) as live:
        yield live


def body_of(size: int) -> bytes:
    frame = json.dumps({"prompt": "", "max_tokens": 2, "truncate_prompt_tokens": 3}).encode()
    return frame.replace(b'""', b'"' + b"a" * (size - len(frame)) + b'"')


def test_the_cap_is_exact(small: LiveServer) -> None:
    assert small.post("/v1/completions", body_of(CAP)).status_code == 200
    answer = small.post("/v1/completions", body_of(CAP + 1))
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == 413


def test_an_announced_size_is_refused_before_the_body(small: LiveServer) -> None:
    assert b" 413 " in small.raw(POST + b"content-length: 99999999\r\n\r\n")
    assert not small.llm.started


def test_chunks_are_counted(small: LiveServer) -> None:
    chunk = b"400\r\n" + b" " * 1024 + b"\r\n"
    answer = small.raw(POST + b"transfer-encoding: chunked\r\n\r\n" + chunk * 5 + b"0\r\n\r\n")
    assert b" 413 " in answer.partition(b"\r\n")[0]
    good = b'{"prompt":"a","max_tokens":2}'
    framed = b"%x\r\n%b\r\n0\r\n\r\n" % (len(good), good)
    assert b" 200 " in small.raw(POST + b"transfer-encoding: chunked\r\n\r\n" + framed)


@pytest.mark.parametrize("length", [b"-1", b"1e3", b"99999999999999999999999999", b"0x10", b"+5", b""])
def test_odd_lengths(small: LiveServer, length: bytes) -> None:
    answer = small.raw(POST + b"content-length: " + length + b"\r\n\r\n{}")
    assert answer[:12] in (b"HTTP/1.1 400", b"HTTP/1.1 413", b""), answer[:40]


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_content_types(small: LiveServer, kind: str) -> None:
    content = b'{"prompt":"a"}'
    for path in ("/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"):
        answer = small.client.post(path, content=content, headers={"content-type": kind})
        assert answer.status_code == 415
        told = answer.json()["error"]["message"]
        assert told == "send JSON, with the header 'Content-Type: application/json'"
    fine = {"content-type": "Application/JSON; charset=utf-8"}
    assert small.client.post("/v1/completions", content=content, headers=fine).status_code == 200


def test_compressed_bodies_are_refused(small: LiveServer) -> None:
    assert small.post("/v1/completions", b"\x1f\x8b", **{"content-encoding": "gzip"}).status_code == 415


def test_large_heads_are_refused(small: LiveServer) -> None:
    for size in (200_000, 5_000_000):
        try:
            answer = small.raw(b"GET /health HTTP/1.1\r\nhost: localhost\r\nx: " + b"a" * size + b"\r\n\r\n")
        except (BrokenPipeError, ConnectionResetError):
            continue  # refused while it was still being sent
        assert answer == b"" or answer.startswith(b"HTTP/1.1 431"), answer[:60]
    assert small.client.get("/health").status_code == 200


def test_a_stalled_body_times_out(small: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "BODY_STALL_S", 0.1)
    answer = small.raw(POST + b"content-length: 100\r\n\r\n{")
    assert answer.startswith(b"HTTP/1.1 408"), answer[:60]
    wait_for(lambda: len(small.app.traffic) == 0)


def test_an_answer_may_take_longer_than_a_body(
    server: LiveServer, llm: FakeLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "BODY_STALL_S", 0.2)
    llm.delay = 0.5
    assert server.post("/v1/completions", {"prompt": "a", "max_tokens": 1}).status_code == 200


def test_bodies_together_are_bounded(small: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "BODIES_IN_MEMORY", 2)
    open_ones = [small.connect() for _ in range(2)]
    for connection in open_ones:
        connection.sendall(POST + b"content-length: 4096\r\n\r\n" + b" " * 4000)
    wait_for(lambda: len(small.app.traffic) == 2)
    time.sleep(0.05)
    answer = small.post("/v1/completions", body_of(1000))
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
    for connection in open_ones:
        connection.close()
    wait_for(lambda: len(small.app.traffic) == 0)
    assert small.post("/v1/completions", body_of(1000)).status_code == 200


def test_what_is_more_than_can_wait_is_refused_at_once(small: LiveServer) -> None:
    llm = small.llm
    llm.delay, small.app.traffic.max_at_work = 0.05, 2
    llm.overloaded = True
    assert small.post("/v1/completions", body_of(100)).headers["retry-after"] == "7"  # as the engine says
    llm.overloaded = False
    connections = [small.connect() for _ in range(2)]
    for connection in connections:
        body = json.dumps({"prompt": "a", "max_tokens": 400}).encode()
        connection.sendall(POST + f"content-length: {len(body)}\r\n\r\n".encode() + body)
    wait_for(lambda: len(llm.running) == 2)
    refused = small.post("/v1/completions", b"{")
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "7")
    assert small.client.get("/livez").status_code == 200
    for connection in connections:
        connection.close()
    wait_for(lambda: len(small.app.traffic) == 0)
    assert small.post("/v1/completions", b"{").status_code == 400


def test_request_ids(small: LiveServer) -> None:
    assert small.client.get("/health", headers={"x-request-id": "abc-1"}).headers["x-request-id"] == "abc-1"
    for bad in ("a b", "x" * 129, "é", '"', "a\tb"):
        answer = small.client.get("/health", headers={"x-request-id": bad.encode("latin-1")})
        assert len(answer.headers["x-request-id"]) == 32
    reply = small.post("/v1/completions", {"prompt": "a"}, **{"x-request-id": "abc-2"}).json()
    assert reply["id"] == "cmpl-abc-2"
    assert "abc-2" not in small.llm.started[-1]

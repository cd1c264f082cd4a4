"""Streams and connections: who closes aborts, what fails is told and ended, what is slow holds nobody up."""

from __future__ import annotations

import json
import socket
import threading
from typing import Any

import httpx
import pytest
from fake_llm import ANSWER, FakeLLM
from serving import LiveServer, parse_events, wait_for

from octavo.base.errors import NOT_FINITE, EngineDeadError, RequestFailedError
from octavo.server import sending
from octavo.server.openai import generate

CHAT = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 400}
PATHS = ["/v1/completions", "/v1/chat/completions"]


def body(path: str, **more: Any) -> dict[str, Any]:
    return {**CHAT, **more} if "chat" in path else {"prompt": "hi", "max_tokens": 400, **more}


def head(path: str, content: bytes) -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        f"content-length: {len(content)}\r\n\r\n"
    ).encode()


def send(server: LiveServer, path: str, request: dict[str, Any]) -> socket.socket:
    content = json.dumps(request).encode()
    connection = server.connect()
    connection.sendall(head(path, content) + content)
    return connection


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("stream", [True, False])
def test_a_closed_connection_aborts(server: LiveServer, llm: FakeLLM, path: str, stream: bool) -> None:
    llm.delay = 0.01
    connection = send(server, path, body(path, stream=stream))
    if stream:
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
    wait_for(lambda: len(llm.running) == 1)
    connection.close()
    wait_for(lambda: not llm.running)
    assert len(llm.aborted) == 1
    assert not llm.finished
    wait_for(lambda: len(server.app.traffic) == 0)


def test_a_closed_connection_aborts_all_prompts(server: LiveServer, llm: FakeLLM) -> None:
    llm.delay = 0.01
    connection = send(server, "/v1/completions", {"prompt": ["a"] * 20, "max_tokens": 400, "stream": True})
    wait_for(lambda: len(llm.running) == 8)
    connection.close()
    wait_for(lambda: not llm.running)
    assert len(llm.aborted) == 8
    assert llm.most_running == 8


def test_others_go_on(server: LiveServer, llm: FakeLLM) -> None:
    llm.delay = 0.002
    texts: list[str] = []

    def other() -> None:
        texts.append(server.post("/v1/completions", {"prompt": "a", "max_tokens": 100}).json()["choices"][0]["text"])

    threads = [threading.Thread(target=other) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(20):
        send(server, "/v1/completions", body("/v1/completions", stream=True)).close()
    for thread in threads:
        thread.join()
    assert texts == [ANSWER[:100]] * 4
    wait_for(lambda: not llm.running)


def test_a_body_that_never_comes(server: LiveServer, llm: FakeLLM) -> None:
    connection = server.connect()
    connection.sendall(head("/v1/completions", b"x" * 100) + b'{"prompt"')
    wait_for(lambda: len(server.app.traffic) == 1)
    connection.close()
    wait_for(lambda: len(server.app.traffic) == 0)
    assert not llm.started


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("failure", "status"), [(EngineDeadError("the engine process ended"), 503), (RequestFailedError("bad row"), 500)]
)
def test_a_failure_in_a_stream_is_told_and_ends_it(
    server: LiveServer, llm: FakeLLM, path: str, failure: Exception, status: int
) -> None:
    llm.fail_at, llm.failure = 5, failure
    events = server.events(path, body(path))
    assert events[-1] == "[DONE]"
    assert events[-2]["error"]["code"] == status
    assert events[-2]["error"]["message"] == str(failure)
    assert all("error" not in event for event in events[:-2])
    assert len(server.app.traffic) == 0


@pytest.mark.parametrize("path", PATHS)
def test_a_failure_of_a_whole_reply(server: LiveServer, llm: FakeLLM, path: str) -> None:
    llm.fail_at = 5
    answer = server.post(path, body(path))
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) > 0
    llm.fail_at, llm.row_error = None, "non-finite logits"
    answer = server.post(path, body(path))
    assert answer.status_code == 500
    assert answer.json()["error"]["message"] == "non-finite logits"
    events = server.events(path, body(path))
    assert events[-2]["error"]["message"] == "non-finite logits"
    llm.row_error = NOT_FINITE
    answer = server.post(path, body(path))
    assert (answer.status_code, answer.json()["error"]["type"]) == (500, "numerical_error")


def test_one_failed_prompt_aborts_its_siblings(server: LiveServer, llm: FakeLLM) -> None:
    llm.delay = 0.001
    prompts = ["a", "b", "c" * 600, "d"]  # the third is too long
    answer = server.post("/v1/completions", {"prompt": prompts, "max_tokens": 400})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "prompt"
    wait_for(lambda: not llm.running)


def test_a_refusal_before_the_first_token_is_a_status(server: LiveServer, llm: FakeLLM) -> None:
    llm.overloaded = True
    answer = server.post("/v1/chat/completions", {**CHAT, "stream": True})
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "7"
    assert answer.headers["content-type"] == "application/json"


def test_a_slow_first_token_gets_its_head_and_keep_alives(
    server: LiveServer, llm: FakeLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate, "FIRST_WAIT_S", 0.05)
    monkeypatch.setattr(generate, "KEEP_ALIVE_S", 0.05)
    llm.delay = 0.3
    response = server.post("/v1/completions", {"prompt": "a", "max_tokens": 2, "stream": True})
    assert response.text.count(": keep-alive\n\n") >= 4
    assert "".join(event["choices"][0]["text"] for event in parse_events(response.text)[:-1]) == ANSWER[:2]


@pytest.mark.parametrize("path", [*PATHS, "/v1/responses", "/v1/messages"])
def test_a_stream_lives_while_what_comes_shows_nothing(
    server: LiveServer, llm: FakeLLM, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setattr(generate, "FIRST_WAIT_S", 0.05)
    monkeypatch.setattr(generate, "KEEP_ALIVE_S", 0.05)
    llm.delay, llm.silent_from = 0.02, 1
    asked: dict[str, Any] = {**CHAT, "max_tokens": 20}
    if path == "/v1/completions":
        asked = {"prompt": "hi", "max_tokens": 20}
    elif path == "/v1/responses":
        asked = {"input": "hi", "max_output_tokens": 20}
    text = server.post(path, {**asked, "model": "fake/model", "stream": True}).text
    assert text.count(": keep-alive\n\n") + text.count("event: ping\n") >= 4


def test_a_reader_that_stops_is_given_up(server: LiveServer, llm: FakeLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "STALL_S", 0.4)
    request = {"prompt": "x", "max_tokens": 400, "n": 128, "logprobs": 5, "stream": True}
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", server.port))
    content = json.dumps(request).encode()
    connection.sendall(head("/v1/completions", content) + content)
    wait_for(lambda: bool(llm.started))
    wait_for(lambda: bool(llm.aborted), seconds=20)
    wait_for(lambda: len(server.app.traffic) == 0)
    connection.close()
    assert server.post("/v1/completions", {"prompt": "a", "max_tokens": 2}).status_code == 200


def test_many_at_once(server: LiveServer, llm: FakeLLM) -> None:
    """64 streams, a third of them closed early: every other one is whole, and nothing is left."""
    llm.delay = 0.001
    texts: dict[int, str] = {}

    def one(number: int) -> None:
        request = {"prompt": str(number), "max_tokens": 50 + number, "stream": True}
        with (
            httpx.Client(trust_env=False) as client,
            client.stream("POST", server.url + "/v1/completions", json=request) as response,
        ):
            if number % 3 == 0:
                next(response.iter_raw())
                return
            texts[number] = "".join(
                event["choices"][0]["text"] for event in parse_events(response.read().decode())[:-1]
            )

    threads = [threading.Thread(target=one, args=(number,)) for number in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == {number: ANSWER[: 50 + number] for number in range(64) if number % 3}
    wait_for(lambda: not llm.running)
    wait_for(lambda: len(server.app.traffic) == 0)


def test_interruption_ends_everything_cleanly(server: LiveServer, llm: FakeLLM) -> None:
    llm.delay = 0.01
    streamed = send(server, "/v1/completions", body("/v1/completions", stream=True))
    whole = send(server, "/v1/completions", body("/v1/completions"))
    with streamed, whole:
        assert streamed.recv(100).startswith(b"HTTP/1.1 200")
        wait_for(lambda: len(llm.running) == 2)

        async def interrupt() -> None:
            server.app.traffic.interrupt_all(EngineDeadError("shutting down"))

        server.run(interrupt)
        wait_for(lambda: len(server.app.traffic) == 0)
        assert whole.recv(65536).startswith(b"HTTP/1.1 503")
        data = b""
        while b"[DONE]" not in data:
            data += streamed.recv(65536)
        assert b'"message":"shutting down"' in data
    assert llm.running == set()

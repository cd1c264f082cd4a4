"""include_metrics: where a request's wall time went, in replies, streams and log lines."""

from __future__ import annotations

import time
from typing import Any

import pytest
from fake_llm import FakeLLM
from log_lines import Lines
from serving import LiveServer, parse_events, wait_for

from octavo.server.openai.timing import PARTS

BODY = {"prompt": "abc", "max_tokens": 6, "include_metrics": True}
CHAT = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 6, "include_metrics": True}


def check(metrics: dict[str, Any], wall: float) -> None:
    parts = [metrics[f"{name}_time_ms"] for name in PARTS]
    assert min(parts) >= 0
    assert sum(parts) == pytest.approx(metrics["total_time_ms"], abs=0.01)
    assert metrics["total_time_ms"] <= 1000 * wall
    assert metrics["cached_tokens"] == 4


@pytest.mark.parametrize(("path", "body"), [("/v1/completions", BODY), ("/v1/chat/completions", CHAT)])
@pytest.mark.parametrize("usage", [False, True])
def test_the_parts_add_up(path: str, body: dict[str, Any], usage: bool) -> None:
    llm = FakeLLM()
    llm.delay = 0.002
    with LiveServer(llm) as server:
        began = time.monotonic()
        whole = server.post(path, body).json()
        check(whole["metrics"], time.monotonic() - began)
        options = {"stream_options": {"include_usage": True}} if usage else {}
        began = time.monotonic()
        events = parse_events(server.post(path, {**body, "stream": True, **options}).text)
        wall = time.monotonic() - began
        without = server.post(path, {**body, "include_metrics": False}).json()
    *chunks, last, done = events
    assert done == "[DONE]"
    check(last["metrics"], wall)
    assert last["choices"] == []
    assert bool(last.get("usage")) is usage
    assert not [chunk for chunk in chunks if "metrics" in chunk]
    assert "metrics" not in without


def test_a_stop_string_ends_it_too() -> None:
    with LiveServer(FakeLLM()) as server:
        reply = server.post("/v1/completions", {**BODY, "max_tokens": 60, "stop": "fox"}).json()
    assert reply["choices"][0]["stop_reason"] == "fox"
    assert reply["metrics"]["decode_time_ms"] >= 0


@pytest.mark.parametrize("more", [{"n": 2}, {"prompt": ["a", "b"]}])
def test_it_tells_of_one(shared: LiveServer, more: dict[str, Any]) -> None:
    answer = shared.post("/v1/completions", {**BODY, **more})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "include_metrics"


def test_log_lines_have_it(shared: LiveServer, lines: Lines) -> None:
    body = {"model": "fake/model", "max_tokens": 3, "messages": CHAT["messages"]}
    began = time.monotonic()
    shared.post("/v1/messages", body, **{"x-request-id": "mine"})
    wait_for(lambda: bool(lines.all(request_id="mine", route="/v1/messages")))
    (line,) = lines.all(request_id="mine", route="/v1/messages")
    check(line["metrics"], time.monotonic() - began)

"""The admin routes: behind their own key, and what each does to requests under way and to come."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from fake_llm import FakeLLM
from serving import LiveServer, wait_for
from test_bad_input import check_form
from test_real_engine import OPTIONS

from octavo.api.async_llm import AsyncLLM
from octavo.server.app import ADMIN

KEY = {"authorization": "Bearer admin"}
ASK = {"prompt": "Hi", "max_tokens": 4}
LONG = {"prompt": "Hi", "max_tokens": 400}


@pytest.fixture
def server(llm: FakeLLM) -> Iterator[LiveServer]:
    with LiveServer(llm, admin_api_key=["admin"]) as live:
        yield live


def do(server: LiveServer, path: str, **options: Any) -> Any:
    answer = server.client.request("GET" if "is_" in path else "POST", path, headers=KEY, **options)
    assert answer.status_code == 200, answer.text
    return answer.json()


def under_way(server: LiveServer, llm: FakeLLM, **headers: str) -> tuple[threading.Thread, list[httpx.Response]]:
    """A request that goes on until something ends it."""
    llm.delay = 0.05
    answers: list[httpx.Response] = []
    thread = threading.Thread(target=lambda: answers.append(server.post("/v1/completions", LONG, **headers)))
    thread.start()
    wait_for(lambda: bool(llm.running))
    return thread, answers


def test_they_are_not_there_without_a_key(shared: LiveServer) -> None:
    for method, path, _ in ADMIN:
        assert shared.client.request(method, path).status_code == 404
    assert "/sleep" not in shared.client.get("/openapi.json").json()["paths"]


def test_they_take_their_own_key_only() -> None:
    with LiveServer(FakeLLM(), api_key=["user"], admin_api_key=["admin"]) as server:
        for method, path, _ in ADMIN:
            for headers in ({}, {"authorization": "Bearer user"}, {"x-api-key": "user"}):
                assert server.client.request(method, path, headers=headers).status_code == 401
            assert server.client.request(method, path, headers=KEY).status_code != 401
            # a line's end behind the path is no other path, and slashes make none
            for other in (f"{path}%0A", f"{path}/", f"{server.url}/{path}"):
                assert server.client.request(method, other, headers={"x-api-key": "user"}).status_code == 401
            assert server.client.request(method, f"{path}/", headers=KEY).status_code != 401
        assert server.client.get("/v1/models", headers=KEY).status_code == 401
        assert "/sleep" in server.client.get("/openapi.json").json()["paths"]


def test_pausing(server: LiveServer, llm: FakeLLM) -> None:
    thread, answers = under_way(server, llm)
    assert do(server, "/is_paused") == {"is_paused": False}
    do(server, "/pause")
    thread.join(10)
    assert answers[0].status_code == 503
    assert llm.running == set()
    refused = server.post("/v1/completions", ASK)
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
    assert server.client.get("/readyz").json() == {"status": "paused"}
    assert server.client.get("/livez").status_code == 200
    assert do(server, "/is_paused") == {"is_paused": True}
    do(server, "/resume")
    assert server.post("/v1/completions", ASK).status_code == 200


def test_pausing_that_waits(server: LiveServer, llm: FakeLLM) -> None:
    thread, answers = under_way(server, llm)
    with ThreadPoolExecutor() as pool:
        pausing = pool.submit(do, server, "/pause?mode=wait")
        wait_for(lambda: server.app.traffic.paused)
        assert server.post("/v1/completions", ASK).status_code == 503
        assert not pausing.done()
        llm.delay = 0
        assert pausing.result(10) == {"success": True}
    thread.join(10)
    assert answers[0].status_code == 200


def test_resuming_ends_a_pause_that_waits(server: LiveServer, llm: FakeLLM) -> None:
    thread, answers = under_way(server, llm)
    with ThreadPoolExecutor() as pool:
        pausing = pool.submit(do, server, "/pause?mode=wait")
        wait_for(lambda: server.app.traffic.paused)
        do(server, "/resume")
        assert pausing.result(10) == {"success": True}
    assert thread.is_alive()
    llm.delay = 0
    thread.join(10)
    assert answers[0].status_code == 200


def test_ending_requests(server: LiveServer, llm: FakeLLM) -> None:
    thread, answers = under_way(server, llm, **{"x-request-id": "mine"})
    assert do(server, "/abort_requests", json={"request_ids": ["mine", "none"]}) == {"aborted": ["mine"]}
    thread.join(10)
    assert answers[0].status_code == 500
    assert answers[0].headers["x-should-retry"] == "false"
    assert "operator" in answers[0].json()["error"]["message"]
    wait_for(lambda: not llm.running)


CHAT = {"messages": [{"role": "user", "content": "Hi"}]}


@pytest.mark.parametrize(
    ("path", "asked", "name"),
    [
        ("/v1/completions", {"prompt": "Hi"}, None),
        ("/v1/completions", {"prompt": "Hi", "request_id": "own"}, "cmpl-own"),
        ("/v1/chat/completions", {**CHAT, "request_id": "own"}, "own"),
        ("/v1/responses", {"input": "Hi"}, None),
        ("/v1/messages", {**CHAT, "max_tokens": 9}, None),
    ],
)
def test_ending_requests_by_the_id_of_their_answer(
    server: LiveServer, llm: FakeLLM, path: str, asked: dict[str, Any], name: str | None
) -> None:
    llm.delay = 0.05
    with server.client.stream("POST", path, json={"model": "fake/model", "stream": True, **asked}) as reply:
        lines = (line for line in reply.iter_lines() if line.startswith("data: {"))
        first = json.loads(next(lines).removeprefix("data: "))
        name = name or first.get("response", first.get("message", first))["id"]
        assert do(server, "/abort_requests", json={"request_ids": [name, "none"]}) == {"aborted": [name]}
        assert "operator" in list(lines)[-1]
    wait_for(lambda: not llm.running)


@pytest.mark.parametrize("name", ["mine", None])
def test_aborting_what_is_made_in_the_background(server: LiveServer, llm: FakeLLM, name: str | None) -> None:
    llm.delay = 0.05
    asked = {"input": "Hi", "background": True}
    made = server.post("/v1/responses", asked, **{"x-request-id": "mine"}).json()
    name = name or made["id"]
    wait_for(lambda: bool(llm.running))
    assert do(server, "/abort_requests", json={"request_ids": [name]}) == {"aborted": [name]}
    wait_for(lambda: not llm.running)
    wait_for(lambda: len(server.app.traffic) == 0)
    told = server.client.get(f"/v1/responses/{made['id']}").json()
    assert told["status"] == "failed"
    assert "operator" in told["error"]["message"]


@pytest.mark.parametrize(
    ("path", "param"),
    [
        ("/pause?mode=keep", "mode"),
        ("/sleep?level=3", "level"),
        ("/wake_up?tags=weights", "tags"),
        ("/resume?x=1", "x"),
    ],
)
def test_refused(server: LiveServer, path: str, param: str) -> None:
    assert check_form(server.client.post(path, headers=KEY))["param"] == param


def test_what_abort_takes(server: LiveServer) -> None:
    for body, param in (({}, "request_ids"), ({"request_ids": []}, "request_ids"), ({"ids": ["x"]}, "ids")):
        assert check_form(server.post("/abort_requests", body, **KEY))["param"] == param


def test_sleep_and_wake(checkpoint: Callable[[str], Path]) -> None:
    llm = AsyncLLM(str(checkpoint("llama")), **OPTIONS)  # type: ignore[arg-type]
    asked = {"prompt": "The quick brown", "max_tokens": 8, "temperature": 0}
    with LiveServer(llm, admin_api_key=["admin"]) as server:
        before = server.post("/v1/completions", asked).json()["choices"]
        assert do(server, "/reset_prefix_cache") == {"success": True}
        with ThreadPoolExecutor(16) as pool:
            long = pool.submit(server.post, "/v1/completions", {**asked, "max_tokens": 200, "ignore_eos": True, "n": 8})
            wait_for(lambda: llm.stats.num_running > 0 or long.done())
            list(pool.map(lambda _: do(server, "/sleep?level=2"), range(8)))
            assert long.result().status_code in (200, 503)
            assert (do(server, "/is_sleeping"), llm.engine_pid) == ({"is_sleeping": True}, None)
            assert server.post("/v1/completions", asked).status_code == 503
            assert server.client.get("/readyz").json() == {"status": "sleeping"}
            assert server.client.get("/livez").status_code == 200
            list(pool.map(lambda _: do(server, "/wake_up"), range(8)))
        assert do(server, "/is_sleeping") == {"is_sleeping": False}
        assert server.post("/v1/completions", asked).json()["choices"] == before
        assert server.run(lambda: llm.call("check")) is True
        do(server, "/sleep")
    assert llm.state == "dead"

"""The server over a real AsyncLLM with a small model: same text by every way, faults that stay where they are."""

from __future__ import annotations

import gc
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from serving import LiveServer, parse_events, wait_for
from test_bad_input import VALUES, check_form, with_field

from octavo.api.async_llm import AsyncLLM
from octavo.api.streams import Stream
from octavo.base.types.sampling import SamplingParams
from octavo.server.exchange import Exchange
from octavo.server.openai.timing import PARTS
from octavo.server.openai.types import CompletionRequest

OPTIONS = {
    "device": "cpu",
    "threads": 1,
    "kv_cache_memory_bytes": 4 << 20,
    "max_num_seqs": 8,
    "max_num_queued_reqs": 16,
}
CONTROL = {"prompt": "The quick brown", "max_tokens": 24, "temperature": 0, "ignore_eos": True, "logprobs": 2}
MESSAGES = [{"role": "user", "content": "Hello"}]


def start(folder: Path, **more: Any) -> LiveServer:
    return LiveServer(AsyncLLM(str(folder), **{**OPTIONS, **more}))


@pytest.fixture(scope="module")
def real(checkpoint: Callable[[str], Path]) -> Iterator[LiveServer]:
    with start(checkpoint("llama")) as live:
        yield live


@pytest.fixture
def clean(real: LiveServer) -> Iterator[LiveServer]:
    """The server; afterwards nothing runs, blocks add up, and the engine is the same process with the same answers."""
    pid = real.llm.engine_pid
    before = control(real)
    yield real
    wait_for(lambda: len(real.app.traffic) == 0)
    wait_for(lambda: (real.llm.stats.num_running, real.llm.stats.num_waiting) == (0, 0))
    assert real.run(lambda: real.llm.call("check")) is True
    assert control(real) == before
    assert real.llm.engine_pid == pid


def control(server: LiveServer) -> dict[str, Any]:
    answer = server.post("/v1/completions", CONTROL)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]  # type: ignore[no-any-return]


def test_a_limit_of_the_operators_holds_for_every_request(checkpoint: Callable[[str], Path]) -> None:
    """max_new_tokens of override_generation_config; the model's own is what a request does not give."""
    with start(checkpoint("llama"), override_generation_config={"max_new_tokens": 3}) as live:
        model, messages = live.app.model, {"messages": MESSAGES}
        for path, name, body in (
            ("/v1/completions", "max_tokens", {"prompt": "The", "ignore_eos": True}),
            ("/v1/chat/completions", "max_tokens", {**messages, "ignore_eos": True}),
            ("/v1/chat/completions", "max_completion_tokens", {**messages, "ignore_eos": True}),
            ("/v1/responses", "max_output_tokens", {"input": "The", "store": False}),
            ("/v1/messages", "max_tokens", messages),
        ):
            for asked in (2, 3, 50):
                usage = live.post(path, {"model": model, "temperature": 0, **body, name: asked}).json()["usage"]
                told = usage.get("completion_tokens", usage.get("output_tokens"))
                assert told == min(asked, 3), (path, asked, usage)
        refusal = live.post("/v1/completions", {"prompt": "a", "max_tokens": 0}).json()["error"]
        assert refusal["param"] == "max_tokens"


def test_where_the_time_went_adds_up(clean: LiveServer) -> None:
    form = {"structured_outputs": {"regex": "[ab]{5,20}"}}
    for more, grammar in (({}, False), (form, True)):
        began = time.monotonic()
        told = clean.post("/v1/completions", {**CONTROL, "logprobs": None, "include_metrics": True, **more}).json()
        wall = 1000 * (time.monotonic() - began)
        metrics = told["metrics"]
        parts = {name: metrics[f"{name}_time_ms"] for name in PARTS}
        assert min(parts.values()) >= 0, parts
        assert sum(parts.values()) == pytest.approx(metrics["total_time_ms"], abs=0.01)
        assert metrics["total_time_ms"] <= wall
        assert parts["grammar"] > 0 or not grammar
        assert parts["prefill"] > 0 < parts["decode"]


@pytest.fixture
def uncollected(clean: LiveServer) -> Iterator[LiveServer]:
    """The server, without a collector; afterwards no more is held of requests than before."""

    def held() -> int:
        return sum(type(each) in (Exchange, Stream) for each in gc.get_objects())

    gc.collect()
    before = held()  # by other tests, may be
    gc.disable()
    try:
        yield clean
        wait_for(lambda: held() <= before)
    finally:
        gc.enable()


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages"])
@pytest.mark.parametrize("ending", ["whole", "streamed", "closed"])
def test_a_request_that_is_over_leaves_nothing_to_the_collector(
    uncollected: LiveServer, path: str, ending: str
) -> None:
    count = {"/v1/responses": "max_output_tokens"}.get(path, "max_tokens")
    what = {"/v1/completions": {"prompt": "a"}, "/v1/responses": {"input": "a", "store": False}}
    body = {**what.get(path, {"messages": MESSAGES}), count: 100, "stream": ending != "whole"}
    body |= {} if "messages" in path else {"ignore_eos": True}
    for _ in range(3):
        with uncollected.client.stream("POST", path, json={**body, "model": uncollected.app.model}) as response:
            assert response.status_code == 200
            next(response.iter_bytes()) if ending == "closed" else response.read()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": 3}),
        ("/v1/completions", {"prompt": ["a", [10**6]]}),
        ("/v1/completions", {"prompt": "a", "structured_outputs": {"regex": "(("}}),
        ("/v1/chat/completions", {"messages": MESSAGES, "chat_template": "{{ 1 / 0 }}"}),
        ("/v1/embeddings", {"input": ["a", "b"]}),
    ],
)
def test_an_error_leaves_nothing_to_the_collector(uncollected: LiveServer, path: str, body: dict[str, Any]) -> None:
    assert uncollected.post(path, body).status_code == 400


def test_the_canary_is_answered_the_same(clean: LiveServer) -> None:
    for _ in range(2):
        clean.run(clean.app.canary.check)
        assert clean.client.get("/readyz").json() == {"status": "ready"}
    outcomes = [
        line for line in clean.client.get("/metrics").text.splitlines() if "octavo:canary_checks_total{" in line
    ]
    assert [line.split()[-1] for line in outcomes if '"match"' in line] == ["2.0"]


def test_streamed_equals_whole(clean: LiveServer) -> None:
    with clean.openai() as client:
        check_stream(client)


def check_stream(client: openai.OpenAI) -> None:
    model = client.models.list().data[0].id
    ask: dict[str, Any] = {"model": model, "messages": MESSAGES, "max_tokens": 40, "temperature": 0, "logprobs": True}
    whole = client.chat.completions.create(**ask, top_logprobs=3).choices[0]
    text, logprobs = "", []
    for chunk in client.chat.completions.create(**ask, top_logprobs=3, stream=True):
        text += chunk.choices[0].delta.content or ""
        logprobs += (chunk.choices[0].logprobs and chunk.choices[0].logprobs.content) or []
    assert text == whole.message.content
    assert whole.logprobs is not None
    assert logprobs == whole.logprobs.content
    assert all(len(entry.top_logprobs) == 3 for entry in logprobs)
    assert all(entry.logprob == entry.top_logprobs[0].logprob for entry in logprobs)


def test_offsets_of_streamed_tokens_are_the_wholes(clean: LiveServer) -> None:
    """Also where text is held back, be it for a stop string or for the rest of a character."""
    for seed in range(4):
        for more in ({}, {"stop": ["zzzzzzzz", "qqq the"]}, {"echo": True, "n": 2}):
            body = {"prompt": "hello \u00e9", "max_tokens": 24, "temperature": 1, "seed": seed, "logprobs": 1, **more}
            whole = clean.post("/v1/completions", body | {"ignore_eos": True}).json()["choices"]
            found: dict[int, tuple[list[str], list[int]]] = {choice["index"]: ([], []) for choice in whole}
            for chunk in clean.events("/v1/completions", body | {"ignore_eos": True})[:-1]:
                for choice in chunk["choices"]:
                    if logprobs := choice["logprobs"]:
                        found[choice["index"]][0].extend(logprobs["tokens"])
                        found[choice["index"]][1].extend(logprobs["text_offset"])
            for choice in whole:
                told = choice["logprobs"]
                assert found[choice["index"]] == (told["tokens"], told["text_offset"])


def test_completion_ways_agree(clean: LiveServer) -> None:
    whole = control(clean)
    ids = clean.post("/tokenize", {"prompt": CONTROL["prompt"]}).json()["tokens"]
    assert clean.post("/v1/completions", {**CONTROL, "prompt": ids}).json()["choices"][0] == whole
    listed = clean.post("/v1/completions", {**CONTROL, "prompt": [ids, ids]}).json()["choices"]
    assert [choice["text"] for choice in listed] == [whole["text"]] * 2
    echoed = clean.post("/v1/completions", {**CONTROL, "echo": True}).json()["choices"][0]
    assert echoed["text"] == str(CONTROL["prompt"]) + whole["text"]
    assert echoed["logprobs"]["tokens"][len(ids) :] == whole["logprobs"]["tokens"]
    assert len(echoed["logprobs"]["tokens"]) == len(ids) + 24
    assert echoed["logprobs"]["token_logprobs"][0] is None


def test_tokens_that_are_parts_of_characters(clean: LiveServer) -> None:
    """Their bytes make the text, and what comes behind them stands where it does."""
    text = "aé日🚀b"
    ask = {"max_tokens": 40, "structured_outputs": {"regex": text}, "top_logprobs": 1, "temperature": 0}
    reply = clean.post("/v1/chat/completions", {"messages": MESSAGES, "logprobs": True, **ask}).json()
    content = reply["choices"][0]["logprobs"]["content"]
    assert "\ufffd" in [entry["token"] for entry in content]
    assert b"".join(bytes(entry["bytes"]) for entry in content).startswith(text.encode())
    include = ["message.output_text.logprobs"]
    body = {"input": "Hello", "include": include, "max_output_tokens": 40, "top_logprobs": 1, "temperature": 0}
    form = {"type": "json_schema", "name": "a", "schema": {"const": text}}
    response = clean.post("/v1/responses", {**body, "text": {"format": form}})
    told = response.json()["output"][0]["content"][0]
    assert b"".join(bytes(entry["bytes"]) for entry in told["logprobs"]) == told["text"].encode()
    body = {"prompt": [text, text + "🚀"], "max_tokens": 9, "temperature": 0, "echo": True, "logprobs": 1}
    choices = clean.post("/v1/completions", body).json()["choices"]
    for choice in choices:
        logprobs = choice["logprobs"]
        placed = [
            one for one in zip(logprobs["tokens"], logprobs["text_offset"], strict=True) if "\ufffd" not in one[0]
        ]
        assert placed.pop(0) == ("<s>", 0)  # which the text does not show
        assert all(choice["text"][offset:].startswith(token) for token, offset in placed)
    streamed = clean.events("/v1/completions", body)[:-1]
    for choice in choices:
        mine = [event["choices"][0] for event in streamed if event["choices"][0]["index"] == choice["index"]]
        offsets = [offset for one in mine for offset in one["logprobs"]["text_offset"]]
        assert offsets == choice["logprobs"]["text_offset"]


def test_stop_and_seed(clean: LiveServer) -> None:
    whole = control(clean)["text"]
    stop = whole[4:7]
    ask = {**CONTROL, "stop": stop}
    for stream in (False, True):
        if stream:
            events = clean.events("/v1/completions", ask)[:-1]
            text = "".join(event["choices"][0]["text"] for event in events)
            last = events[-1]["choices"][0]
        else:
            last = clean.post("/v1/completions", ask).json()["choices"][0]
            text = last["text"]
        assert text == whole[: whole.index(stop)]
        assert (last["finish_reason"], last["stop_reason"]) == ("stop", stop)
    seeded = {**CONTROL, "temperature": 1.5, "seed": 11, "n": 3}
    first, second = (clean.post("/v1/completions", seeded).json()["choices"] for _ in range(2))
    assert first == second
    assert len({choice["text"] for choice in first}) > 1


def test_cached_tokens_are_told(clean: LiveServer) -> None:
    ask = {"prompt": "over and over " * 8, "max_tokens": 2}
    clean.post("/v1/completions", ask)
    usage = clean.post("/v1/completions", ask).json()["usage"]
    assert 0 < usage["prompt_tokens_details"]["cached_tokens"] < usage["prompt_tokens"]


def test_bad_values_beside_a_victim(clean: LiveServer) -> None:
    """Every sampling field with every bad value, while a neighbour's greedy text stays what it is."""
    expected = control(clean)
    seen: list[Any] = []
    done = threading.Event()

    def neighbour() -> None:
        with httpx.Client(base_url=clean.url, trust_env=False, timeout=30) as client:
            while not done.is_set():
                seen.append(client.post("/v1/completions", json=CONTROL).json()["choices"][0])

    thread = threading.Thread(target=neighbour)
    thread.start()
    names = [name for name in SamplingParams.__struct_fields__ if name in CompletionRequest.__struct_fields__]
    try:
        for name in ("prompt", *names):
            for value in VALUES:
                answer = clean.post("/v1/completions", with_field({"prompt": "hi", "max_tokens": 2}, name, value))
                if answer.status_code != 200:
                    check_form(answer)
    finally:
        done.set()
        thread.join()
    assert len(seen) > 3
    for one in seen:
        assert one["text"] == expected["text"]
        # a batch's shape changes the order of additions: the last digits may differ, tokens may not
        assert one["logprobs"]["token_logprobs"] == pytest.approx(expected["logprobs"]["token_logprobs"], abs=1e-4)


def test_disconnects_leave_nothing(clean: LiveServer) -> None:
    content = json.dumps({**CONTROL, "max_tokens": 200, "n": 2, "stream": True}).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    head += b"content-length: %d\r\n\r\n" % len(content)
    for read in (0, 1, 200, 0, 2000) * 6:
        with clean.connect() as connection:
            connection.sendall(head + content)
            if read:
                connection.recv(read)


def test_a_full_queue_is_told(clean: LiveServer) -> None:
    answers: list[httpx.Response] = []

    def ask(number: int) -> None:
        answers.append(clean.post("/v1/completions", {**CONTROL, "prompt": f"{number}", "max_tokens": 200}))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(60)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    refused = [answer for answer in answers if answer.status_code != 200]
    assert refused
    for answer in refused:
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) > 0
    assert len(refused) <= 60 - 16


def test_the_urgent_get_a_place_in_a_full_queue(checkpoint: Callable[[str], Path]) -> None:
    """However many come: each of them drives one out that waits and is less urgent, and none that has begun."""
    told: dict[int, list[httpx.Response]] = {0: [], 5: []}
    limits: dict[str, Any] = {"max_num_seqs": 2, "max_num_queued_reqs": 6}
    # answers so long that the queue is full before the first two end, however busy the machine
    limits["hf_overrides"] = {"max_position_embeddings": 2048}
    with start(checkpoint("llama"), scheduling_policy="priority", **limits) as server:

        def ask(priority: int, number: int) -> None:
            body = {**CONTROL, "prompt": f"{number}", "max_tokens": 1500, "priority": priority}
            told[priority].append(server.post("/v1/completions", body))

        later = [threading.Thread(target=ask, args=(5, number)) for number in range(12)]
        for thread in later:
            thread.start()
        wait_for(lambda: server.llm.stats.num_waiting == 6 and len(told[5]) >= 4)
        before = len(told[5])
        urgent = [threading.Thread(target=ask, args=(0, number)) for number in range(5)]
        for thread in urgent:
            thread.start()
        for thread in [*urgent, *later]:
            thread.join()
        assert [answer.status_code for answer in told[0]] == [200] * 5
        assert server.run(lambda: server.llm.call("check")) is True
    gave_way = [answer for answer in told[5][before:] if answer.status_code == 503]
    assert len(gave_way) >= 3  # the two that ran may have ended meanwhile
    for answer in gave_way:
        assert "a more urgent one came" in answer.json()["error"]["message"]
        assert 1 <= int(answer.headers["retry-after"]) <= 60
    assert sum(answer.status_code == 200 for answer in told[5]) >= 2


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_streams_outlive_a_killed_engine(checkpoint: Callable[[str], Path], path: str) -> None:
    """Clients see a pause, and the same text and usage; one that meets a second crash is told so, its like later."""
    # a context so long that no stream ends before the last of them has begun, however busy the machine
    with start(checkpoint("llama"), hf_overrides={"max_position_embeddings": 4096}) as server:
        what = {"prompt": "The quick brown"} if path == "/v1/completions" else {"messages": MESSAGES}
        request = {**what, "max_tokens": 2400, "temperature": 0, "ignore_eos": True, "stream": True}
        request["stream_options"] = {"include_usage": True}
        expected = told(server.events(path, request))
        pid = server.llm.engine_pid
        for crashes in (1, 2):
            events: list[list[Any]] = []
            begun = threading.Barrier(4)
            threads = [threading.Thread(target=read, args=(server, path, request, begun, events)) for _ in range(3)]
            for thread in threads:
                thread.start()
            begun.wait(20)
            for _ in range(crashes):
                wait_for(lambda: server.llm.stats.num_running == 3, seconds=30)
                os.kill(server.llm.engine_pid, signal.SIGKILL)
                wait_for(lambda: server.llm.state == "restarting")
                wait_for(lambda: server.client.get("/readyz").status_code == 200, seconds=30)
                assert server.client.get("/livez").status_code == 200
            for thread in threads:
                thread.join()
            assert len(events) == 3
            for one in events:
                if crashes == 1:
                    assert told(one) == expected
                else:
                    assert one[-1] == "[DONE]"
                    assert one[-2]["error"]["code"] == 500
                    assert "not tried again" in one[-2]["error"]["message"]
        assert server.llm.engine_pid != pid
        again = server.post(path, request)
        assert again.status_code == 500
        assert "a request like this one" in again.json()["error"]["message"]
        assert server.events(path, {**request, "max_tokens": 5})[-1] == "[DONE]"


def read(server: LiveServer, path: str, request: Any, begun: threading.Barrier, events: list[list[Any]]) -> None:
    with (
        httpx.Client(base_url=server.url, trust_env=False, timeout=60) as client,
        client.stream("POST", path, json=request) as response,
    ):
        pieces = response.iter_text()
        first = next(pieces)
        begun.wait(20)
        events.append(parse_events(first + "".join(pieces)))


def told(events: list[Any]) -> tuple[str, Any, Any]:
    """A stream's text, how it ended, and its usage."""
    assert events[-1] == "[DONE]"
    choices = [choice for event in events[:-1] for choice in event["choices"]]
    text = "".join(c.get("text") or c.get("delta", {}).get("content") or "" for c in choices)
    usage = events[-2]["usage"]
    return text, choices[-1]["finish_reason"], (usage["prompt_tokens"], usage["completion_tokens"])

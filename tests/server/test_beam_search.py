"""use_beam_search on the server: the same beams as LLM.beam_search, whole, streamed and as chat; what is refused."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import LiveServer, parse_events, wait_for

from octavo import LLM, AsyncLLM, BeamSearchParams
from octavo.base.types.beam_search import BeamSearchSequence

OPTIONS: dict[str, Any] = {"device": "cpu", "threads": 1, "kv_cache_memory_bytes": 4 << 20, "max_num_seqs": 8}
PROMPT = list(range(40, 80))
BEAMS = {"prompt": PROMPT, "use_beam_search": True, "n": 3, "max_tokens": 8, "return_token_ids": True}


@pytest.fixture(scope="module")
def folder(checkpoint: Callable[[str], Path]) -> Path:
    return checkpoint("llama")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[LiveServer]:
    with LiveServer(AsyncLLM(str(folder), **OPTIONS)) as live:
        yield live


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[LLM]:
    with LLM(str(folder), **OPTIONS) as offline:
        yield offline


def offline(llm: LLM, prompt: list[int], **more: Any) -> list[BeamSearchSequence]:
    (found,) = llm.beam_search([prompt], BeamSearchParams(**{"beam_width": 3, "max_tokens": 8, **more}))
    return found.sequences


def test_choices_are_the_beams(server: LiveServer, llm: LLM) -> None:
    beams = offline(llm, PROMPT)
    told = server.post("/v1/completions", BEAMS).json()
    assert [choice["token_ids"] for choice in told["choices"]] == [beam.tokens[len(PROMPT) :] for beam in beams]
    assert [choice["finish_reason"] for choice in told["choices"]] == [beam.finish_reason for beam in beams]
    assert told["usage"]["completion_tokens"] == sum(len(beam.tokens) - len(PROMPT) for beam in beams)
    *events, done = parse_events(server.post("/v1/completions", {**BEAMS, "stream": True}).text)
    texts = {choice["index"]: choice["text"] for event in events for choice in event["choices"] if choice["text"]}
    assert done == "[DONE]"
    assert texts == {choice["index"]: choice["text"] for choice in told["choices"] if choice["text"]}
    other = server.post("/v1/completions", {**BEAMS, "length_penalty": -5.0, "max_tokens": 4}).json()
    beams = offline(llm, PROMPT, length_penalty=-5.0, max_tokens=4)
    assert [choice["token_ids"] for choice in other["choices"]] == [beam.tokens[len(PROMPT) :] for beam in beams]
    wait_for(lambda: (server.llm.stats.num_running, server.llm.stats.num_waiting) == (0, 0))
    assert server.run(lambda: server.llm.call("check")) is True


def test_logprobs_are_those_of_the_beam(server: LiveServer, llm: LLM) -> None:
    (best, *_) = offline(llm, PROMPT)
    told = server.post("/v1/completions", {**BEAMS, "logprobs": 2}).json()["choices"][0]["logprobs"]
    assert sum(told["token_logprobs"]) == pytest.approx(best.cum_logprob, abs=1e-3)
    assert {len(table) for table in told["top_logprobs"]} <= {2, 3}


def test_chat_and_where_its_time_went(server: LiveServer) -> None:
    body = {"messages": [{"role": "user", "content": "Hello"}], "use_beam_search": True, "max_tokens": 6}
    told = server.post("/v1/chat/completions", {**body, "include_metrics": True}).json()
    greedy = server.post("/v1/chat/completions", {**body, "use_beam_search": False, "temperature": 0}).json()
    assert told["choices"][0]["message"] == greedy["choices"][0]["message"]  # of a width of 1
    parts = [value for name, value in told["metrics"].items() if name.endswith("_time_ms")]
    assert min(parts) >= 0
    assert told["metrics"]["num_preemptions"] == 0


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"n": 11}, "n"),
        ({"top_p": 0.5}, "top_p"),
        ({"stop": "x"}, "stop"),
        ({"seed": 1}, "seed"),
        ({"thinking_token_budget": 0}, "thinking_token_budget"),
        ({"prompt_logprobs": 1}, "prompt_logprobs"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"structured_outputs": {"regex": "a"}}, "use_beam_search"),
        ({"length_penalty": 30}, "length_penalty"),
        ({"use_beam_search": False, "length_penalty": 0.5}, "length_penalty"),
    ],
)
def test_what_does_not_go_with_it(server: LiveServer, change: dict[str, Any], param: str) -> None:
    answer = server.post("/v1/completions", {**BEAMS, **change})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param


def test_what_asks_for_nothing_goes_with_it(server: LiveServer) -> None:
    usual = {
        "top_p": 1.0,
        "presence_penalty": 0,
        "stop": [],
        "logit_bias": {},
        "seed": None,
        "thinking_token_budget": -1,
    }
    assert server.post("/v1/completions", {**BEAMS, **usual}).status_code == 200


def test_a_search_outlives_its_engine(server: LiveServer) -> None:
    long = {**BEAMS, "max_tokens": 120, "ignore_eos": True}
    expected = server.post("/v1/completions", long).json()["choices"]
    pid = server.llm.engine_pid
    with ThreadPoolExecutor(1) as pool:
        under_way = pool.submit(server.post, "/v1/completions", long)
        wait_for(lambda: len(server.llm._supervisor.streams) > 1 or under_way.done())
        assert not under_way.done()
        os.kill(pid, signal.SIGKILL)
        assert under_way.result().json()["choices"] == expected
    assert server.llm.engine_pid != pid


def test_a_client_that_goes_away_ends_its_search(server: LiveServer) -> None:
    with pytest.raises(httpx.TimeoutException):
        server.client.post(
            "/v1/completions", json={**BEAMS, "n": 10, "max_tokens": 200, "ignore_eos": True}, timeout=0.05
        )
    wait_for(lambda: len(server.app.traffic) == 0)
    wait_for(lambda: (server.llm.stats.num_running, server.llm.stats.num_waiting) == (0, 0))
    assert server.run(lambda: server.llm.call("check")) is True

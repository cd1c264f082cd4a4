"""A greedy stream of a real model beside hostile neighbours is, token for token, the one it is alone.

OCTAVO_TEST_NEIGHBOURS=1000: so many of them, in place of a few.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from boundaries import Boundaries, Call
from serving import parse_events
from targets import JSON_HEAD, ask, judge

from octavo.api.async_llm import AsyncLLM
from octavo.base.config.config import ServerConfig
from octavo.server.app import App

NEIGHBOURS = int(os.environ.get("OCTAVO_TEST_NEIGHBOURS", "300"))
AT_ONCE = 7
ROUTES = [("POST", path) for path in ("/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages")]
STREAM = {
    "prompt": "The quick brown",
    "max_tokens": 48,
    "temperature": 0,
    "ignore_eos": True,
    "stream": True,
    "return_token_ids": True,
}


def post(path: str, body: Any) -> Call:
    return Call("POST", path, b"", JSON_HEAD, json.dumps(body).encode())


async def stream(app: App) -> list[tuple[str, Any]]:
    """Each event's text and tokens; the events' sizes are the engine's to choose, their sum is not."""
    _, _, body = await ask(app, post("/v1/completions", STREAM))
    choices = [event["choices"][0] for event in parse_events(body.decode())[:-1]]
    tokens = [token for choice in choices for token in choice["token_ids"]]
    return [("".join(choice["text"] for choice in choices), tokens), (choices[-1]["finish_reason"], len(tokens))]


async def beside(llm: AsyncLLM, calls: Iterator[Call]) -> tuple[list[Any], list[Any], list[str], list[int]]:
    """The stream alone; all that it was meanwhile; what was wrong with the neighbours' answers; their statuses."""
    app = App(llm, ServerConfig(served_model_name=["scripted"]))
    await llm.start()
    try:
        pid, alone = llm.engine_pid, await stream(app)
        found: list[Any] = []
        faults: list[str] = []
        statuses: list[int] = []

        async def neighbour() -> None:
            for call in calls:
                status, headers, body = await asyncio.wait_for(ask(app, call), 60)
                statuses.append(status)
                if fault := judge(call, status, headers, body):
                    faults.append(f"{fault}: {call.body[:300]!r} -> {body[:300]!r}")

        neighbours = asyncio.gather(*(neighbour() for _ in range(AT_ONCE)))
        while not neighbours.done():
            found.append(await stream(app))
        await neighbours
        found.append(await stream(app))
        assert llm.engine_pid == pid
        assert await llm.call("check") is True
        return alone, found, faults, statuses
    finally:
        await llm.close(0)


@pytest.fixture
def llm(checkpoint: Callable[[str], Path]) -> AsyncLLM:
    return AsyncLLM(
        str(checkpoint("llama")), device="cpu", threads=1, max_num_seqs=16, max_num_queued_reqs=4096, max_model_len=96
    )


def test_a_stream_beside_hostile_neighbours(llm: AsyncLLM) -> None:
    calls = Boundaries(11, ROUTES).calls(NEIGHBOURS)
    alone, found, faults, statuses = asyncio.run(beside(llm, calls))
    assert alone[1] == ("length", 48)
    assert faults == []
    assert len(statuses) == NEIGHBOURS
    assert len(found) > 3
    assert all(each == alone for each in found)


CONFLICTS = [
    {"response_format": {"type": "json_object"}, "allowed_token_ids": [20]},
    {"structured_outputs": {"choice": ["a"]}, "allowed_token_ids": [20, 21], "seed": 3, "temperature": 1.5},
    {"allowed_token_ids": [20], "bad_words": ["0"], "min_tokens": 1, "stop_token_ids": [20]},
]


@pytest.mark.parametrize("change", CONFLICTS)
def test_wishes_that_leave_no_token_are_the_clients_mistake(llm: AsyncLLM, change: dict[str, Any]) -> None:
    calls = [post("/v1/completions", {"prompt": "hi", "max_tokens": 2, **change, "stream": s}) for s in (False, True)]
    _, _, faults, statuses = asyncio.run(beside(llm, iter(calls)))
    assert faults == []
    assert statuses[0] == 400

"""Faults on purpose at the engine's phases: what fails is one request, or one step's, and what ends goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from test_api_async_llm import running, stream

from octavo import AsyncLLM, RequestOutput
from octavo.base import faults

PARAMS = {"max_tokens": 60, "ignore_eos": True, "temperature": 0, "logprobs": 1}
PROMPTS = [[number + 1] * (number + 3) for number in range(4)]


def with_faults(model: str, monkeypatch: pytest.MonkeyPatch, plan: str, test: Callable[[AsyncLLM], Any]) -> None:
    """Of the first engine process; those after it have none."""

    async def body() -> None:
        monkeypatch.setenv("OCTAVO_FAULTS", plan)
        async with running(model, watchdog_timeout=2.0) as llm, asyncio.timeout(60):
            monkeypatch.delenv("OCTAVO_FAULTS")
            await test(llm)

    asyncio.run(body())


async def whole(llm: AsyncLLM, prompt: list[int]) -> RequestOutput:
    async with stream(llm, prompt, **PARAMS) as outputs:
        return [output async for output in outputs][-1]


def everyone(llm: AsyncLLM) -> Awaitable[list[RequestOutput]]:
    return asyncio.gather(*(whole(llm, prompt) for prompt in PROMPTS))


def answers(outputs: list[RequestOutput]) -> list[Any]:
    return [(output.outputs[0].token_ids, output.outputs[0].logprobs) for output in outputs]


@pytest.mark.parametrize("plan", ["allocated:kill@30", "frame:truncate@30", "begun:raise@30", "begun:stop@30"])
def test_where_the_process_ends_does_not_matter(llama: str, monkeypatch: pytest.MonkeyPatch, plan: str) -> None:
    async def test(llm: AsyncLLM) -> None:
        outputs = await everyone(llm)
        assert llm.num_restarts == 1
        assert answers(outputs) == answers(await everyone(llm))
        assert await llm.call("check") is True

    with_faults(llama, monkeypatch, plan, test)


@pytest.mark.parametrize("plan", ["allocated:raise@30", "finish:raise@30"])
def test_a_step_that_raises_ends_its_own_requests(llama: str, monkeypatch: pytest.MonkeyPatch, plan: str) -> None:
    async def test(llm: AsyncLLM) -> None:
        for output in await everyone(llm):
            assert output.error == "the step failed (RuntimeError)"
        assert llm.num_restarts == 0
        assert await llm.call("check") is True
        assert [output.error for output in await everyone(llm)] == [None] * len(PROMPTS)

    with_faults(llama, monkeypatch, plan, test)


def test_a_row_that_is_not_finite_ends_alone(llama: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(llm: AsyncLLM) -> None:
        outputs = await everyone(llm)
        (bad,) = (number for number, output in enumerate(outputs) if output.error is not None)
        assert "not finite" in str(outputs[bad].error)
        assert llm.stats.numerical_errors == 1
        again = await everyone(llm)
        assert again[bad].num_cached_tokens == 0
        assert again[bad].error is None
        del outputs[bad], again[bad]
        assert answers(outputs) == answers(again)
        assert await llm.call("check") is True

    with_faults(llama, monkeypatch, "row:nan@50", test)


def test_nothing_is_planned_by_default_and_nonsense_is_refused() -> None:
    assert not faults.ON
    assert faults.parse("") == {}
    assert faults.parse("row:nan@2,row:raise@5") == {"row": [(2, "nan"), (5, "raise")]}
    for text in ("row", "row:nan", "nowhere:kill@1", "row:@1", "row:nan@x"):
        with pytest.raises(ValueError, match="POINT:ACTION@N"):
            faults.parse(text)

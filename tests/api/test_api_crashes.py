"""An engine process that is killed or hangs: what becomes of its requests, and that it comes back."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from test_api_async_llm import LONG, last, stream, until, with_llm

from octavo import AsyncLLM, RequestOutput, RequestOutputKind, SamplingParams, StructuredOutputsParams
from octavo.api import poison, supervisor
from octavo.api.engine_process import spawn
from octavo.api.socket_client import SocketClient
from octavo.base.config.config import EngineConfig, ModelConfig
from octavo.base.errors import ConfigError, EngineDeadError, OverloadedError, RequestFailedError
from octavo.base.types.messages import EngineStats
from octavo.base.types.request import Request

GREEDY = {**LONG, "max_tokens": 700}
LONGER = {"max_position_embeddings": 1024}
CRASHING: list[dict[str, Any]] = [
    {**GREEDY, "ignore_eos": False, "structured_outputs": StructuredOutputsParams(regex="([a-z ]{1,3}[0-9]){300}")},
    GREEDY,
    {**GREEDY, "logprobs": 2, "prompt_logprobs": 1},
    {**GREEDY, "temperature": 0.9, "seed": 7, "n": 3, "logprobs": 0},
    {**GREEDY, "temperature": 0.9, "repetition_penalty": 1.2, "frequency_penalty": 0.3, "min_tokens": 9, "seed": 1},
]


def kill(llm: AsyncLLM, how: signal.Signals = signal.SIGKILL) -> None:
    assert llm.engine_pid is not None
    os.kill(llm.engine_pid, how)


async def read(llm: AsyncLLM, kind: RequestOutputKind, **params: Any) -> list[RequestOutput]:
    async with stream(llm, output_kind=kind, **params) as outputs:
        return [output async for output in outputs]


CRASHED = {f"c{number}" for number in range(len(CRASHING))}


def begun(llm: AsyncLLM) -> set[str]:
    """Names of requests of which tokens have come, and more are to."""
    streams = [s.progress for s in llm._supervisor.streams.values() if s.going_on]
    return {p.request_id for p in streams if any(c.handed_out or c.token_ids for c in p._completions)}  # type: ignore[union-attr]


def joined(outputs: list[RequestOutput]) -> list[Any]:
    """All that a reader of deltas has in the end."""
    whole: dict[int, list[Any]] = {}
    for output in outputs:
        for one in output.outputs:
            known = whole.setdefault(one.index, ["", [], [], None])
            known[0] += one.text
            known[1] += one.token_ids
            known[2] += one.logprobs or []
            known[3] = one.finish_reason
    prompts = [output.prompt_logprobs for output in outputs if output.prompt_logprobs is not None]
    return [sorted(whole.items()), prompts, outputs[-1].prompt_token_ids, outputs[-1].num_cached_tokens]


@pytest.mark.parametrize("how", ["killed", "hung"])
def test_streams_go_on_as_if_nothing_had_happened(llama: str, how: str) -> None:
    deltas = RequestOutputKind.DELTA

    async def test(llm: AsyncLLM) -> None:
        expected = [joined(await read(llm, deltas, **params)) for params in CRASHING]
        tasks = []
        for number, params in enumerate(CRASHING):
            tasks.append(asyncio.create_task(read(llm, deltas, request_id=f"c{number}", **params)))
            if number == 0:  # its grammar has to be compiled
                await until(lambda: "c0" in begun(llm))
        await until(lambda: begun(llm) >= CRASHED)
        queued = [asyncio.create_task(last(llm, **GREEDY)) for _ in range(12)]
        whole = asyncio.create_task(last(llm, output_kind=RequestOutputKind.FINAL_ONLY, **GREEDY))
        await until(lambda: len(llm._supervisor.streams) == len(CRASHING) + 13)
        first = llm.engine_pid
        kill(llm, signal.SIGKILL if how == "killed" else signal.SIGSTOP)
        if how == "hung":
            await until(lambda: llm.hung)
        await until(lambda: llm.state == "restarting")
        assert begun(llm) >= CRASHED, "they must be under way"
        with pytest.raises(OverloadedError) as caught:
            await last(llm)
        assert caught.value.retry_after >= 1
        assert [joined(outputs) for outputs in await asyncio.gather(*tasks)] == expected
        tokens = expected[1][0][0][1][1]
        for output in await asyncio.gather(*queued, whole):
            assert output.outputs[0].token_ids == tokens
            assert output.metrics is not None
            assert output.metrics.arrival <= output.metrics.scheduled <= output.metrics.first_token
        assert llm.engine_pid != first
        assert llm.num_restarts == 1
        assert not llm.hung
        assert await llm.call("check") is True

    with_llm(llama, test, enable_prefix_caching=False, watchdog_timeout=2.0, hf_overrides=LONGER)


def test_a_request_that_meets_two_crashes_is_refused(llama: str) -> None:
    async def test(llm: AsyncLLM) -> None:
        for number in range(1, 3):
            prompt = f"Prompt {number}"
            drawn = {**LONG, "temperature": 0.5}
            task = asyncio.create_task(read(llm, RequestOutputKind.CUMULATIVE, prompt=prompt, **drawn))
            call = asyncio.create_task(llm.call("check"))
            for _ in range(2):
                await until(lambda: llm.stats.num_running > 0)
                kill(llm)
                await until(lambda: llm.state == "restarting")
                await until(lambda: llm.state == "ready")
            assert isinstance((await asyncio.gather(call, return_exceptions=True))[0], bool | EngineDeadError)
            with pytest.raises(RequestFailedError, match=r"ended 2 times .* not tried again") as caught:
                await task
            assert caught.value.status == 500
            for again in ({}, {"seed": 7}, {"output_kind": RequestOutputKind.DELTA}):
                with pytest.raises(RequestFailedError, match=r"ended twice .* not tried again for \d+ s"):
                    await last(llm, prompt, **drawn, **again)
            for other in ({"max_tokens": 3}, {"temperature": 0}):
                assert (await last(llm, prompt, **{**drawn, **other})).finished
            assert (await last(llm, **drawn)).finished
            assert llm.num_restarts == 2 * number
        for deaths in (1, 2):  # the second of a process that did nothing: the next one comes after a pause
            kill(llm)
            await until(lambda: llm.state == "restarting")
            await until(lambda: llm.state == "ready")
            assert llm._supervisor._deaths == deaths

    with_llm(llama, test)


def test_what_is_known_of_crashes_is_bounded_and_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(poison, "MAX_KNOWN", 3)
    now = 0.0
    known = poison.Poison(lambda: now)
    requests = [
        Request(request_id="r", prompt_token_ids=[number], params=SamplingParams(), max_tokens=1, seed=number)
        for number in range(5)
    ]
    for request in requests:
        known.add(request)
        now += 1
    for request in requests[:2]:
        known.check(request)
    for request in requests[2:]:
        with pytest.raises(RequestFailedError):
            known.check(msgspec.structs.replace(request, seed=9, request_id="s"))
    now = poison.KEEP_S + 3.5
    for request in requests[:4]:
        known.check(request)
    with pytest.raises(RequestFailedError, match="for 1 s"):
        known.check(requests[4])


def test_a_request_sent_while_the_connection_closes_is_answered_by_the_next_process(llama: str) -> None:
    async def test(llm: AsyncLLM) -> None:
        ids = [1, 2, 3]
        expected = (await last(llm, ids)).outputs[0].token_ids
        assert llm._supervisor.client is not None
        llm._supervisor.client.kill()  # what closes is told in the loop's next turn, and this one sends
        async with stream(llm, ids) as outputs:
            first = await anext(outputs)
            assert llm.num_restarts == 1
            (known,) = llm._supervisor.streams.values()
            assert known.num_crashes == 0
            whole = [first, *[output async for output in outputs]][-1]
        assert whole.outputs[0].token_ids == expected

    with_llm(llama, test, process=spawn("cpu"))  # ahead of the start, as octavo serve does


def test_what_a_process_counted_is_told_before_it_is_forgotten(llama: str) -> None:
    async def test(llm: AsyncLLM) -> None:
        told: list[int] = []
        llm.on_engine_end(lambda: told.append(llm.stats.generation_tokens))
        await last(llm, **LONG)
        kill(llm)
        await until(lambda: llm.num_restarts == 1)
        assert told == [LONG["max_tokens"]]
        assert llm.stats.generation_tokens == 0
        await last(llm, max_tokens=7, ignore_eos=True)
        for _ in range(2):  # it sleeps on
            await llm.sleep()
        assert told == [LONG["max_tokens"], 7]
        assert llm.stats.generation_tokens == 0

    with_llm(llama, test)


def test_what_goes_on_when_sleep_begins_is_counted_once(llama: str) -> None:
    async def test(llm: AsyncLLM) -> None:
        told: list[int] = []
        llm.on_engine_end(lambda: told.append(llm.stats.generation_tokens))
        task = asyncio.create_task(last(llm, **{**LONG, "max_tokens": 200}))
        await until(lambda: llm.stats.generation_tokens > 3)
        await llm.sleep()
        with pytest.raises(OverloadedError):
            await task
        await asyncio.sleep(0.1)
        assert len(told) == 1
        assert told[0] > 3
        assert llm.stats == EngineStats()

    with_llm(llama, test)


def test_a_drain_waits_for_streams_that_go_on(llama: str) -> None:
    async def test(llm: AsyncLLM) -> None:
        expected = (await last(llm, **LONG)).outputs[0].token_ids
        task = asyncio.create_task(last(llm, **LONG))
        await until(lambda: llm.stats.num_running > 0)
        closing = asyncio.create_task(llm.close(30))
        await asyncio.sleep(0)
        kill(llm)
        assert (await task).outputs[0].token_ids == expected
        await closing
        assert llm.state == "dead"

    with_llm(llama, test)


def test_an_engine_that_does_not_come_back_is_given_up(llama: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "LONGEST_PAUSE", 0.0)
    starts, others = [], {*threading.enumerate()}

    async def refuse(self: SocketClient, config: Any, process: Any) -> dict[str, Any]:
        starts.append(1)
        raise (OSError("no more processes") if len(starts) % 2 else ConfigError("no memory"))

    async def test(llm: AsyncLLM) -> None:
        await last(llm, structured_outputs=StructuredOutputsParams(regex="a"))
        task = asyncio.create_task(last(llm, **GREEDY))
        await until(lambda: llm.stats.num_running > 0)
        with monkeypatch.context() as patch:
            patch.setattr(SocketClient, "start", refuse)
            assert llm.engine_pid is not None
            os.kill(llm.engine_pid, signal.SIGKILL)
            await until(lambda: llm.state == "dead")
        assert len(starts) == supervisor.FAILED_STARTS
        with pytest.raises(EngineDeadError, match="does not start again"):
            await task
        with pytest.raises(EngineDeadError, match="ended"):
            await last(llm)
        checker = llm._limits.checker if llm._limits is not None else None
        assert checker is not None
        assert checker._process is not None
        await llm.close()
        assert checker._process is None
        own = ("octavo-text", "octavo-grammar")
        await until(lambda: not any(thread.name.startswith(own) for thread in {*threading.enumerate()} - others))

    with_llm(llama, test, hf_overrides=LONGER)


@pytest.mark.parametrize(
    ("deaths", "pauses"), [(1, [0.0, 0.2, 0.4, 0.8, 1.6]), (2, [0.2, 0.4, 0.8, 1.6, 3.2]), (12, [30.0] * 5)]
)
def test_pauses_before_new_starts_double(monkeypatch: pytest.MonkeyPatch, deaths: int, pauses: list[float]) -> None:
    slept: list[float] = []

    async def pause(seconds: float) -> None:
        slept.append(seconds)

    async def refuse() -> None:
        raise OSError("no more processes")

    one = supervisor.Supervisor(EngineConfig(model=ModelConfig(model="none")), None, watchdog_timeout=1)
    monkeypatch.setattr(supervisor, "asyncio", SimpleNamespace(sleep=pause))
    monkeypatch.setattr(one, "spawn", refuse)
    one._deaths = deaths
    asyncio.run(one._start_again())
    assert slept == pauses
    assert one.state == "dead"


def test_closing_while_it_restarts_leaves_no_process(llama: str) -> None:
    async def test(llm: AsyncLLM) -> None:
        assert llm.engine_pid is not None
        os.kill(llm.engine_pid, signal.SIGKILL)
        await until(lambda: llm.state == "restarting")
        await llm.close(0)
        assert llm.state == "dead"
        with pytest.raises(EngineDeadError, match="ended"):
            await last(llm)

    with_llm(llama, test)

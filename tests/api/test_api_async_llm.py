"""AsyncLLM: the same tokens as LLM, aborts, and an engine process that is killed and comes back."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest

from octavo import LLM, AsyncLLM, RequestOutput, RequestOutputKind, SamplingParams
from octavo.api.aside import in_pool
from octavo.api.engine_process import spawn
from octavo.api.socket_client import SocketClient, make_error
from octavo.base.errors import (
    ConfigError,
    EngineDeadError,
    InputError,
    OverloadedError,
    RequestFailedError,
    UnsupportedError,
)

OPTIONS: dict[str, Any] = {"max_num_seqs": 8, "kv_cache_memory_bytes": 4 << 20, "device": "cpu", "threads": 1}
PROMPT = "The quick brown fox"
LONG = {"max_tokens": 230, "ignore_eos": True, "temperature": 0}


@asynccontextmanager
async def running(model: str, **more: Any) -> AsyncIterator[AsyncLLM]:
    llm = AsyncLLM(model, **{**OPTIONS, **more})
    await llm.start()
    try:
        yield llm
    finally:
        await llm.close(0)


def with_llm(model: str, test: Callable[[AsyncLLM], Awaitable[None]], **more: Any) -> None:
    async def body() -> None:
        async with running(model, **more) as llm:
            async with asyncio.timeout(60):
                await test(llm)

    asyncio.run(body())


def stream(llm: AsyncLLM, prompt: Any = PROMPT, *, request_id: str = "r", **params: Any) -> Any:
    given = SamplingParams(**{"temperature": 0, "max_tokens": 12, **params})
    return aclosing(llm.generate(prompt, given, request_id=request_id))


async def last(llm: AsyncLLM, prompt: Any = PROMPT, **params: Any) -> RequestOutput:
    async with stream(llm, prompt, **params) as outputs:
        return [output async for output in outputs][-1]


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - what is waited for is in another process
        await asyncio.sleep(0.01)


def test_same_tokens_as_llm_alone_and_in_a_crowd(llama: str, llm: LLM) -> None:
    prompts: list[Any] = [PROMPT, "An octavo is", list(range(20, 60)), "x"]
    params = SamplingParams(temperature=0.8, seed=9, max_tokens=20, logprobs=1)
    expected = [output.outputs[0] for output in llm.generate(prompts, params, use_tqdm=False)]

    async def test(other: AsyncLLM) -> None:
        assert other.state == "ready"
        options = {"temperature": 0.8, "seed": 9, "max_tokens": 20, "logprobs": 1}
        for kind in RequestOutputKind:
            together = await asyncio.gather(*(last(other, p, output_kind=kind, **options) for p in prompts))
            if kind is not RequestOutputKind.DELTA:
                assert [output.outputs[0].token_ids for output in together] == [one.token_ids for one in expected]
                assert [output.outputs[0].text for output in together] == [one.text for one in expected]
                sums = [output.outputs[0].cumulative_logprob for output in together]
                assert sums == pytest.approx([one.cumulative_logprob for one in expected], abs=1e-4)
        pieces: list[int] = []
        async with stream(other, prompts[0], output_kind=RequestOutputKind.DELTA, **options) as outputs:
            async for output in outputs:
                pieces += output.outputs[0].token_ids
        assert pieces == expected[0].token_ids
        assert await other.call("check") is True

    with_llm(llama, test)


def test_text_helpers_and_chat(llama: str, llm: LLM) -> None:
    messages = [{"role": "user", "content": "Hello"}]

    async def test(other: AsyncLLM) -> None:
        ids = await other.encode(PROMPT)
        assert ids == llm.get_tokenizer().encode(PROMPT)
        assert await other.encode(PROMPT, add_special_tokens=False) == ids[1:]
        assert (await other.get_tokenizer()).encode(PROMPT) == ids
        assert await other.decode(ids[1:]) == PROMPT
        assert await other.render_chat(messages) == llm.render_chat(messages)
        assert other.default_sampling_params() == llm.get_default_sampling_params()
        assert other.info["max_model_len"] == 256

    with_llm(llama, test)


@pytest.mark.parametrize(
    ("prompt", "params", "field"),
    [
        ([], {}, "prompt"),
        ([9999], {}, "prompt"),
        ([1] * 300, {}, "prompt"),
        ([1], {"logit_bias": {999: 1}}, "logit_bias"),
    ],
)
def test_bad_requests_are_refused_and_hurt_nobody(llama_engine: Any, prompt: Any, params: Any, field: str) -> None:
    async def test(llm: AsyncLLM) -> None:
        with pytest.raises(InputError) as caught:
            await last(llm, prompt, **params)
        assert caught.value.param == field

    llama_engine(test)


def test_it_is_called_as_vllms(llama_engine: Any) -> None:
    async def test(llm: AsyncLLM) -> None:
        params = SamplingParams(temperature=0, max_tokens=3)
        calls = (
            llm.generate(prompt=PROMPT, sampling_params=params, request_id="named"),
            llm.generate({"prompt": PROMPT, "cache_salt": "a"}, params, "in order"),
        )
        ended = [[output async for output in call][-1] for call in calls]
        assert [output.request_id for output in ended] == ["named", "in order"]
        assert ended[0].outputs == ended[1].outputs

    llama_engine(test)


@pytest.mark.parametrize("params", [None, {"max_tokens": 3}])
def test_what_are_no_sampling_params_is_told(llama_engine: Any, params: Any) -> None:
    async def test(llm: AsyncLLM) -> None:
        with pytest.raises(InputError, match="must be SamplingParams"):
            await anext(llm.generate(PROMPT, params, request_id="r"))
        with pytest.raises(InputError, match="must be SamplingParams"):
            await llm.follow(PROMPT, params, lambda output: None, request_id="r")
        changed = SamplingParams()
        changed.structured_outputs = {"regex": "a"}  # type: ignore[assignment]
        with pytest.raises(InputError, match="structured_outputs must be"):
            await anext(llm.generate(PROMPT, changed, request_id="r"))

    llama_engine(test)


@pytest.fixture(scope="module")
def llama_engine(llama: str) -> Any:
    """Run a coroutine function on one AsyncLLM that the module's tests share."""
    with asyncio.Runner() as runner:
        llm = AsyncLLM(llama, **OPTIONS)
        runner.run(llm.start())
        yield lambda test: runner.run(test(llm))
        runner.run(llm.close(0))


def test_closing_the_iterator_aborts(llama_engine: Any) -> None:
    async def test(llm: AsyncLLM) -> None:
        async with stream(llm, **LONG) as outputs:
            async for _ in outputs:
                break
        # an abort comes at any of its ages, before the first token too
        for _ in range(5):
            task = asyncio.create_task(last(llm, **LONG))
            await asyncio.sleep(0.005)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert await llm.call("check") is True
        await until(lambda: llm.stats.num_running == llm.stats.num_waiting == llm.stats.kv_usage == 0)
        assert not llm._supervisor.streams

    llama_engine(test)


@pytest.mark.parametrize("kind", RequestOutputKind)
def test_requests_are_aborted_by_their_ids(llama_engine: Any, kind: RequestOutputKind) -> None:
    async def test(llm: AsyncLLM) -> None:
        names, before = ["a", "b", "b", "c"], llm.stats.generation_tokens
        options = {"n": 2, "output_kind": kind, **LONG}
        tasks = [asyncio.create_task(last(llm, request_id=name, **options)) for name in names]
        await until(lambda: len(llm._supervisor.streams) == len(names))
        await llm.abort(["b", "unknown"])
        await llm.abort("c")
        await llm.abort("c")
        ended = await asyncio.gather(*tasks)
        assert [output.request_id for output in ended] == names
        assert all(output.finished and output.error is None for output in ended)
        reasons = [[one.finish_reason for one in output.outputs] for output in ended]
        assert {*reasons[0]} == {"length"}
        assert reasons[1:] == [["abort"] * 2] * 3
        await until(lambda: llm.stats.num_running == 0)
        assert llm.stats.generation_tokens - before < 4 * LONG["max_tokens"]  # of a, and few of the six others
        assert await llm.call("check") is True

    llama_engine(test)


def test_a_stop_string_ends_the_work_for_it(llama_engine: Any) -> None:
    async def test(llm: AsyncLLM) -> None:
        text = (await last(llm, **LONG)).outputs[0].text
        before = llm.stats.generation_tokens
        output = await last(llm, stop=text[5:8], **LONG)
        assert output.outputs[0].finish_reason == "stop"
        await until(lambda: llm.stats.num_running == 0)
        assert llm.stats.generation_tokens - before < LONG["max_tokens"]

    llama_engine(test)


def test_slow_reader_gets_merged_deltas(llama_engine: Any) -> None:
    async def test(llm: AsyncLLM) -> None:
        whole = (await last(llm, **LONG)).outputs[0].token_ids
        seen: list[list[int]] = []
        async with stream(llm, output_kind=RequestOutputKind.DELTA, **LONG) as outputs:
            async for output in outputs:
                seen.append(output.outputs[0].token_ids)
                if len(seen) == 1:
                    await until(lambda: all(s.progress.finished for s in llm._supervisor.streams.values()))
        assert len(seen) == 2
        assert [token for tokens in seen for token in tokens] == whole

    llama_engine(test)


def test_follow_hands_over_what_generate_yields(llama_engine: Any) -> None:
    async def test(llm: AsyncLLM) -> None:
        params = SamplingParams(**LONG, output_kind=RequestOutputKind.DELTA)
        whole = (await last(llm, **LONG)).outputs[0]
        seen: list[RequestOutput] = []
        full: list[asyncio.Future[None]] = []

        def take(output: RequestOutput) -> asyncio.Future[None] | None:
            seen.append(output)
            if len(seen) != 1:
                return None
            full.append(asyncio.get_running_loop().create_future())
            return full[0]

        following = asyncio.create_task(llm.follow(PROMPT, params, take, request_id="r"))
        await until(lambda: any(s.progress.finished for s in llm._supervisor.streams.values()))
        assert (len(seen), following.done()) == (1, False)
        full[0].set_result(None)
        await following
        assert [output.finished for output in seen] == [False, True]
        assert "".join(output.outputs[0].text for output in seen) == whole.text
        assert [token for output in seen for token in output.outputs[0].token_ids] == whole.token_ids

        for age in range(3):
            following = asyncio.create_task(llm.follow(PROMPT, params, lambda output: None, request_id="r"))
            await asyncio.sleep(0.005 * age)
            following.cancel()
            with pytest.raises(asyncio.CancelledError):
                await following
        with pytest.raises(ZeroDivisionError):
            await llm.follow(PROMPT, params, lambda output: 1 / 0, request_id="r")  # type: ignore[arg-type,return-value]
        with pytest.raises(InputError):
            await llm.follow([10**9], params, lambda output: None, request_id="r")
        await until(lambda: llm.stats.num_running == 0 and llm.stats.num_waiting == 0)
        assert not llm._supervisor.streams

    llama_engine(test)


def test_calls_that_the_engine_refuses(llama_engine: Any) -> None:
    async def test(llm: AsyncLLM) -> None:
        for name in ("no_such_thing", "_private"):
            with pytest.raises(RequestFailedError):
                await llm.call(name)
        assert await llm.call("reset_prefix_cache") is True
        await asyncio.sleep(1.2)
        assert llm.heartbeat_age() < 1.5

    llama_engine(test)


def test_text_that_cannot_be_made_ends_its_own_request_only(llama_engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(llm: AsyncLLM) -> None:
        expected = (await last(llm, **LONG)).outputs[0].token_ids
        healthy = asyncio.create_task(last(llm, **LONG))
        async with stream(llm, request_id="bad", **LONG) as outputs:
            await anext(outputs)
            (bad,) = (s for s in llm._supervisor.streams.values() if s.progress.request_id == "bad")
            monkeypatch.setattr(bad.progress, "push", lambda output: 1 / 0)
            with pytest.raises(RequestFailedError, match="ZeroDivisionError"):
                _ = [output async for output in outputs]
        assert (await healthy).outputs[0].token_ids == expected
        await until(lambda: llm.stats.num_running == 0)

    llama_engine(test)


def test_a_full_queue_refuses_with_retry_after(llama: str) -> None:
    async def test(llm: AsyncLLM) -> None:
        tasks = [asyncio.create_task(last(llm, **LONG)) for _ in range(8)]
        results = await asyncio.gather(*tasks, return_exceptions=True)
        refused = [result for result in results if isinstance(result, OverloadedError)]
        assert refused
        assert all(error.status == 503 and error.retry_after >= 1 for error in refused)
        assert all(isinstance(result, RequestOutput | OverloadedError) for result in results)
        assert any(isinstance(result, RequestOutput) for result in results)

    with_llm(llama, test, max_num_seqs=1, max_num_queued_reqs=1)


def test_a_search_under_way_is_taken_by_a_full_queue_and_waited_for_by_a_drain(llama: str) -> None:
    params = SamplingParams(n=4, max_tokens=40, temperature=0, ignore_eos=True)

    async def searched(llm: AsyncLLM, name: str) -> RequestOutput:
        return [output async for output in llm.beam_search(f"{PROMPT} {name}", params, request_id=name)][-1]

    async def test(llm: AsyncLLM) -> None:
        alone = [await searched(llm, name) for name in "ab"]
        together = await asyncio.gather(*(searched(llm, name) for name in "ab"))
        for one, other in zip(alone, together, strict=True):
            assert [beam.token_ids for beam in one.outputs] == [beam.token_ids for beam in other.outputs]
        search = asyncio.create_task(searched(llm, "a"))
        await until(lambda: llm.stats.generation_tokens > 0 and bool(llm._supervisor.streams))
        await llm.close(30)
        assert [beam.token_ids for beam in (await search).outputs] == [beam.token_ids for beam in alone[0].outputs]

    with_llm(llama, test, max_num_seqs=2, max_num_queued_reqs=2)


def test_close_waits_for_running_requests(llama: str) -> None:
    async def test(llm: AsyncLLM) -> None:
        task = asyncio.create_task(last(llm, **LONG))
        await until(lambda: llm.stats.num_running > 0)
        closing = asyncio.create_task(llm.close(30))
        await asyncio.sleep(0)
        assert llm.state == "draining"
        with pytest.raises(OverloadedError, match="shutting down"):
            await last(llm)
        assert len((await task).outputs[0].token_ids) == LONG["max_tokens"]
        await closing
        assert llm.state == "dead"

    with_llm(llama, test)


def test_close_cuts_requests_off(llama: str) -> None:
    async def test(llm: AsyncLLM) -> None:
        task = asyncio.create_task(last(llm, **LONG))
        await until(lambda: llm.stats.num_running > 0)
        await llm.close(0)
        with pytest.raises(EngineDeadError, match="shutting down"):
            await task

    with_llm(llama, test)


def test_requests_while_loading_are_refused(llama: str) -> None:
    async def body() -> None:
        llm = AsyncLLM(llama, **OPTIONS)
        for ask in (last(llm), llm.get_tokenizer(), llm.render_chat([{"role": "user", "content": "Hi"}])):
            with pytest.raises(ConfigError, match=r"await its start\(\) first"):
                await ask
        starting = asyncio.create_task(llm.start())
        await asyncio.sleep(0)
        assert llm.state == "loading"
        with pytest.raises(OverloadedError, match="loading"):
            await last(llm)
        await starting
        assert len((await last(llm)).outputs[0].token_ids) > 0
        await llm.close(0)

    asyncio.run(body())


def test_requests_that_wait_for_a_thread_are_told_of_the_close(llama: str) -> None:
    async def test(llm: AsyncLLM) -> None:
        tasks = [asyncio.create_task(last(llm, "one two " * 2000)) for _ in range(200)]
        await asyncio.sleep(0)
        await llm.close(0)
        errors = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(error) for error in errors} == {EngineDeadError, InputError}  # some were read, and too long
        cancelled = asyncio.create_task(in_pool(ThreadPoolExecutor(1), time.sleep, 0.2))
        await asyncio.sleep(0)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled

    with_llm(llama, test)


def test_it_starts_once(llama: str) -> None:
    async def body() -> None:
        llm = AsyncLLM(llama, **OPTIONS)
        starting = asyncio.create_task(llm.start())
        await asyncio.sleep(0)
        with pytest.raises(ConfigError, match="started"):
            await llm.start()
        await starting
        pid = llm.engine_pid
        with pytest.raises(ConfigError, match="started"):
            await llm.start()
        assert (llm.state, llm.engine_pid) == ("ready", pid)
        await llm.close(0)
        with pytest.raises(ConfigError, match="closed"):
            await llm.start()

    asyncio.run(body())


def test_a_start_that_is_overtaken_by_close_leaves_no_process(llama: str) -> None:
    async def body() -> None:
        llm = AsyncLLM(llama, **OPTIONS)
        starting = asyncio.create_task(llm.start())
        await asyncio.sleep(0.05)
        await llm.close(0)
        with pytest.raises(EngineDeadError, match="closed"):
            await starting
        assert (llm.state, llm.engine_pid) == ("dead", None)

    asyncio.run(body())


def test_closing_before_the_start_ends_the_process_that_was_spawned_ahead(llama: str) -> None:
    process = spawn("cpu")
    asyncio.run(AsyncLLM(llama, process=process).close())
    assert process.process.poll() is not None


def test_close_does_not_wait_for_a_process_that_starts(llama: str) -> None:
    """The process stands still, as one that loads for minutes does for its parent."""

    async def body() -> None:
        process = spawn("cpu")
        llm = AsyncLLM(llama, process=process, **OPTIONS)
        starting = asyncio.create_task(llm.start())
        os.kill(process.pid, signal.SIGSTOP)
        await asyncio.sleep(1)
        async with asyncio.timeout(10):
            await llm.close(30)
            with pytest.raises(EngineDeadError, match="closed"):
                await starting
        assert (llm.state, process.process.poll()) == ("dead", -signal.SIGKILL)

    asyncio.run(body())


def test_a_start_that_is_cut_off_while_it_connects_leaves_no_word(llama: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    connected = SocketClient.connection_made

    def cut_off(client: SocketClient, transport: asyncio.BaseTransport) -> None:
        connected(client, transport)
        for task in tasks:
            task.cancel()

    async def body() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["message"]))
        tasks.append(asyncio.create_task(AsyncLLM(llama, **OPTIONS).start()))
        await asyncio.wait(tasks)
        assert tasks.pop().cancelled()
        gc.collect()

    tasks: list[asyncio.Task[None]] = []
    monkeypatch.setattr(SocketClient, "connection_made", cut_off)
    asyncio.run(body())
    assert told == []


def test_close_does_not_wait_for_a_download(llama: str, monkeypatch: pytest.MonkeyPatch) -> None:
    go = threading.Event()
    monkeypatch.setattr("octavo.api.async_llm.locate", lambda config, **_: go.wait(30) and config)

    async def body() -> None:
        llm = AsyncLLM(llama, **OPTIONS)
        starting = asyncio.create_task(llm.start())
        await asyncio.sleep(0.1)
        async with asyncio.timeout(10):
            await llm.close(30)
            with pytest.raises(EngineDeadError, match="closed"):
                await starting
        assert llm.state == "dead"

    asyncio.run(body())
    go.set()


def test_close_does_not_wait_for_one_that_wakes_up(llama: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(llm: AsyncLLM) -> None:
        await llm.sleep()
        process = spawn("cpu")
        os.kill(process.pid, signal.SIGSTOP)
        monkeypatch.setattr("octavo.api.socket_client.spawn", lambda device: process)
        waking = asyncio.create_task(llm.wake_up())
        await asyncio.sleep(0.1)
        async with asyncio.timeout(10):
            await llm.close(30)
            with pytest.raises(EngineDeadError, match="closed"):
                await waking
        assert (llm.state, process.process.poll()) == ("dead", -signal.SIGKILL)

    with_llm(llama, body)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"max_model_len": 5000}, ConfigError, "max_model_len=5000"),
        ({"kv_cache_memory_bytes": 100}, ConfigError, "KV cache"),
        ({"dtype": "bfloat16"}, UnsupportedError, "bfloat16"),
    ],
)
def test_what_stops_the_engine_from_starting_is_raised_by_its_class(
    llama: str, options: dict[str, Any], error: type[Exception], words: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def body() -> None:
        llm = AsyncLLM(llama, **{**OPTIONS, **options})
        with pytest.raises(error, match=words):
            await llm.start()
        assert llm.state == "dead"

    asyncio.run(body())
    for thread in threading.enumerate():
        if thread.name == "octavo-reap":
            thread.join(10)
    assert "exit code" not in caplog.text  # that it was killed then is no news, and reads as a crash


def test_errors_cross_by_name() -> None:
    overloaded = make_error("OverloadedError", "full", retry_after=7)
    assert isinstance(overloaded, OverloadedError)
    assert overloaded.retry_after == 7
    assert isinstance(make_error("InputError", "x"), InputError)
    for kind in ("KeyboardInterrupt", "annotations", "", None):
        assert type(make_error(kind, "x")) is RequestFailedError

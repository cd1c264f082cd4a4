"""The canary: silent corruption turns /readyz red, and only that does."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fake_llm import FakeLLM, FakeTokenizer
from serving import LiveServer, wait_for

from octavo.base.errors import EngineDeadError, InputError, RequestFailedError, UnsupportedError
from octavo.base.types.messages import EngineStats
from octavo.server.canary import PROMPT, TOKENS, Canary


def check(server: LiveServer) -> tuple[int, dict[str, Any]]:
    """One check; what /readyz says then."""
    server.run(server.app.canary.check)
    answer = server.client.get("/readyz")
    return answer.status_code, answer.json()


def counted(server: LiveServer) -> dict[str, int]:
    lines = [line for line in server.client.get("/metrics").text.splitlines() if "octavo:canary_checks_total{" in line]
    return {name: int(float(line.split()[-1])) for line in lines for name in OUTCOMES if f'"{name}"' in line}


OUTCOMES = ("match", "mismatch", "failed")
GOOD = (200, {"status": "ready"})


def test_a_backend_that_goes_wrong(server: LiveServer, llm: FakeLLM) -> None:
    right = llm.answer
    assert check(server) == check(server) == GOOD
    llm.answer = "Something else entirely"
    status, told = check(server)
    assert status == 503
    assert told["status"] == "corrupted"
    assert "canary prompt was answered by tokens [83," in told["reason"]
    assert server.client.get("/livez").status_code == 200
    assert server.post("/v1/completions", {"prompt": "a", "max_tokens": 2}).status_code == 200
    llm.answer = right  # what comes and goes in one process is still wrong
    assert check(server)[0] == 503
    llm.engine_pid = 2
    assert check(server) == GOOD
    assert counted(server) == {"match": 4, "mismatch": 1, "failed": 0}


def test_a_single_wrong_answer_is_asked_again(
    server: LiveServer, llm: FakeLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert check(server) == GOOD
    answers = iter(["Wrong", llm.answer])
    steps = llm._steps

    def other(*arguments: Any) -> Any:
        llm.answer = next(answers)
        return steps(*arguments)

    monkeypatch.setattr(llm, "_steps", other)
    assert check(server) == GOOD
    assert counted(server) == {"match": 2, "mismatch": 0, "failed": 0}


def test_a_first_answer_that_fails_once_is_no_fault(
    server: LiveServer, llm: FakeLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = iter([RequestFailedError("logits are not finite")])
    steps = llm._steps

    def first_fails(*arguments: Any) -> Any:
        llm.failure = next(failures, None)
        llm.fail_at = None if llm.failure is None else 0
        return steps(*arguments)

    monkeypatch.setattr(llm, "_steps", first_fails)
    assert check(server) == check(server) == GOOD
    assert counted(server) == {"match": 2, "mismatch": 0, "failed": 0}


def test_failures(server: LiveServer, llm: FakeLLM) -> None:
    llm.fail_at, llm.failure = 0, EngineDeadError("gone")
    assert check(server) == GOOD  # other checks tell of that
    llm.failure = RequestFailedError("logits are not finite")
    assert check(server) == (
        503,
        {"status": "corrupted", "reason": "the canary prompt failed: logits are not finite"},
    )
    assert counted(server) == {"match": 0, "mismatch": 0, "failed": 1}


def test_nothing_of_it_is_cached(server: LiveServer, llm: FakeLLM) -> None:
    check(server)
    check(server)
    salts = [salt for _, _, _, salt in llm.seen]
    assert len(set(salts)) == 2
    assert all(salts)
    assert all(params.max_tokens == 8 and params.temperature == 0 for _, params, _, _ in llm.seen)


def test_a_model_whose_context_is_too_short_for_it_is_well(server: LiveServer, llm: FakeLLM) -> None:
    llm.fail_at, llm.failure = 0, InputError("the prompt is longer than the context")
    seen: list[str] = []

    async def watch() -> str | None:
        canary = Canary(llm, idle=lambda: True, count=seen.append, interval=0.01)  # type: ignore[arg-type]
        canary.start()
        await asyncio.sleep(0.1)
        await canary.close()
        return canary.fault

    assert server.run(watch) is None
    assert (len(llm.started), seen) == (1, [])


def test_without_a_tokenizer_it_asks_by_tokens(
    server: LiveServer, llm: FakeLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(server)
    monkeypatch.setattr(llm, "tokenizer", None)
    check(server)
    assert [prompt for prompt, _, _, _ in llm.seen] == [FakeTokenizer().encode(PROMPT), [*TOKENS]]


def test_it_runs_when_idle_only(server: LiveServer, llm: FakeLLM) -> None:
    idle = False
    seen: list[str] = []

    async def watch() -> None:
        nonlocal idle
        thrice = asyncio.Event()

        def count(outcome: str) -> None:
            seen.append(outcome)
            if len(seen) == 3:
                thrice.set()

        canary = Canary(llm, idle=lambda: idle, count=count, interval=0.01)  # type: ignore[arg-type]
        canary.start()
        await asyncio.sleep(0.1)
        assert not seen
        idle = True
        await asyncio.wait_for(thrice.wait(), 20)
        await canary.close()

    server.run(watch)
    assert set(seen) == {"match"}
    llm.stats = EngineStats()
    assert server.app._services.idle
    llm.stats = EngineStats(num_waiting=1)
    assert not server.app._services.idle
    llm.stats = EngineStats()
    server.app.traffic.paused = True
    assert not server.app._services.idle


def test_off_and_models_that_pool(server: LiveServer, llm: FakeLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise UnsupportedError("it makes vectors")

    async def start(interval: float) -> None:
        canary = Canary(llm, idle=lambda: True, count=lambda outcome: None, interval=interval)  # type: ignore[arg-type]
        canary.start()
        await asyncio.sleep(0.05)
        await canary.close()

    server.run(lambda: start(0))
    monkeypatch.setattr(llm, "check_generates", refuse)
    server.run(lambda: start(0.01))
    assert not llm.seen
    wait_for(lambda: not llm.running)

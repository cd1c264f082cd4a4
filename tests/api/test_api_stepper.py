"""Stepper: what goes wrong in one call is that call's alone, whichever thread steps."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from octavo.api.llm import LLM
from octavo.api.outputs import RequestProgress
from octavo.base.types.output import RequestOutput
from octavo.base.types.sampling import SamplingParams

PARAMS = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)


def rows(llm: LLM, count: int) -> list[RequestProgress]:
    from octavo.api.prompts import Prompt

    return [llm._rows.generation(Prompt(None, [5, 6, 7 + number]), PARAMS) for number in range(count)]


@pytest.mark.parametrize("fails", ["on_end", "push"])
def test_one_calls_error_leaves_the_others_their_outputs(llm: LLM, monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    expected = [output.outputs[0].token_ids for output in llm.generate([[5, 6, 7], [5, 6, 8]], PARAMS, use_tqdm=False)]
    stream = llm._stepper.stream(rows(llm, 1)[0])
    next(stream)  # under way, and stepped by whoever comes next

    def fail(*_: Any) -> Any:
        raise OSError("stderr is a pipe that nobody reads")

    broken = rows(llm, 1)
    if fails == "push":
        monkeypatch.setattr(broken[0], "push", fail)
    with pytest.raises(OSError, match="nobody reads"):
        llm._stepper.run(broken, on_end=fail)
    *_, last = stream
    assert last.outputs[0].token_ids == expected[0]
    assert [output.outputs[0].token_ids for output in llm._stepper.run(rows(llm, 2))] == expected
    assert llm._stepper.idle


def test_an_error_that_another_thread_met_is_raised_by_its_own_call(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    (row,) = rows(llm, 1)
    stream = llm._stepper.stream(row)
    next(stream)

    def fail(*_: Any) -> Any:
        raise ValueError("no text")

    monkeypatch.setattr(row, "push", fail)
    assert len(llm._stepper.run(rows(llm, 2))) == 2
    with pytest.raises(ValueError, match="no text"):
        list(stream)
    assert llm._engine is not None
    assert llm._engine.stats().num_running == 0
    assert llm._stepper.idle


def test_a_row_that_another_thread_ends_before_its_own_steps_is_whole(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    (row,) = rows(llm, 1)
    (expected,) = llm._stepper.run(rows(llm, 1))
    stream = llm._stepper.stream(row)
    next(stream)
    take = row.take

    def overtaken() -> Any:
        result = take()
        if not row.finished:
            llm._stepper.run(rows(llm, 1))
        return result

    monkeypatch.setattr(row, "take", overtaken)
    *_, last = stream
    assert last.outputs[0].token_ids == expected.outputs[0].token_ids


def test_each_output_is_told_as_soon_as_it_is_whole(llm: LLM) -> None:
    told: list[RequestOutput] = []
    params = [SamplingParams(temperature=0, max_tokens=count, ignore_eos=True) for count in (6, 2, 4)]
    outputs = llm.generate([[5, 6, 7]] * 3, params, use_tqdm=False, on_output=told.append)
    assert [len(output.outputs[0].token_ids) for output in told] == [2, 4, 6]
    assert [told[index] for index in (2, 0, 1)] == outputs

    chats = [[{"role": "user", "content": text}] for text in ("a", "b")]
    del told[:]
    assert llm.chat(chats, PARAMS, use_tqdm=False, on_output=told.append) == told

    def full(output: RequestOutput) -> None:
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        llm.generate([[5, 6, 7]] * 3, params, use_tqdm=False, on_output=full)
    assert llm._stepper.idle


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_for_the_steps_end(number: signal.Signals, llm: LLM) -> None:
    class Ended(BaseException):
        pass

    def end(*_: Any) -> None:
        raise Ended

    told: list[RequestOutput] = []

    def tell(output: RequestOutput) -> None:
        signal.raise_signal(number)
        told.append(output)

    before = signal.signal(number, end)
    try:
        with pytest.raises(Ended):
            llm.generate([[5, 6, 7]] * 2, PARAMS, use_tqdm=False, on_output=tell)
        assert signal.getsignal(number) is end
    finally:
        signal.signal(number, before)
    assert len(told) == 2
    assert llm._stepper.idle

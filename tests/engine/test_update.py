"""Results to outputs: how sequences end, what each output carries, whom a failure reaches."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from simulation import EOS, VOCAB, Shape, World, make_engine, make_request

from octavo.base.errors import NOT_FINITE, NOTHING_TO_SAMPLE, RequestFailedError
from octavo.base.types.output import Output
from octavo.base.types.plan import RowStep, StepPlan, StepResult, TokenLogprobs
from octavo.engine.engine import Engine
from octavo.engine.fake import NextToken, ScriptedExecutor


def outputs(next_token: NextToken, *, prompt: int = 3, shape: Shape | None = None, **fields: Any) -> list[Output]:
    """All outputs of one request."""
    shape = shape or Shape()
    executor = ScriptedExecutor(
        num_blocks=shape.num_blocks, block_size=shape.block_size, vocab_size=VOCAB, next_token=next_token
    )
    made = make_engine(shape, executor)
    made.add(make_request("a", [1] * prompt, eos_token_ids=[EOS], **fields))
    found: list[Output] = []
    while made.has_work():
        found += made.step()
    return found


def count_up(tokens: list[int], _: int) -> int:
    """0, 1, 2 … after a prompt of three."""
    return len(tokens) - 3


def always_eos(tokens: list[int], _: int) -> int:
    return EOS


@pytest.mark.parametrize(
    ("fields", "tokens", "finish", "stop"),
    [
        ({"max_tokens": 4}, [0, 1, 2, 3], "length", None),
        ({"max_tokens": 1}, [0], "length", None),
        ({"max_tokens": 9}, [0, 1, 2, 3, 4, 5, 6], "stop", None),
        ({"max_tokens": 9, "ignore_eos": True}, [0, 1, 2, 3, 4, 5, 6, 7, 8], "length", None),
        ({"max_tokens": 9, "stop_token_ids": [5, 2]}, [0, 1, 2], "stop", 2),
        ({"max_tokens": 9, "stop_token_ids": [EOS], "ignore_eos": True}, [0, 1, 2, 3, 4, 5, 6], "stop", EOS),
        ({"max_tokens": 9, "stop_token_ids": [EOS]}, [0, 1, 2, 3, 4, 5, 6], "stop", None),
        ({"max_tokens": 9, "stop_token_ids": [2, 5], "min_tokens": 4}, [0, 1, 2, 3, 4, 5], "stop", 5),
        ({"max_tokens": 9, "stop_token_ids": [2], "min_tokens": 3}, [0, 1, 2], "stop", 2),
        ({"max_tokens": 9, "min_tokens": 8}, [0, 1, 2, 3, 4, 5, 6, 7, 8], "length", None),
        ({"max_tokens": 3, "stop_token_ids": [2]}, [0, 1, 2], "stop", 2),
    ],
)
@pytest.mark.parametrize("ahead", [True, False])
def test_how_a_sequence_ends(
    fields: dict[str, Any], tokens: list[int], finish: str, stop: int | None, ahead: bool
) -> None:
    found = outputs(count_up, shape=Shape(ahead=ahead), **fields)
    assert [token for out in found for token in out.token_ids] == tokens
    assert [out.finish_reason for out in found] == [None] * (len(found) - 1) + [finish]
    assert found[-1].stop_reason == stop


def test_end_of_text_before_min_tokens_is_an_ordinary_token() -> None:
    found = outputs(always_eos, max_tokens=5, min_tokens=3)
    assert [out.token_ids for out in found] == [[EOS]] * 3
    assert found[-1].finish_reason == "stop"


def test_what_the_backend_is_told_of_stops() -> None:
    shape = Shape()
    executor = ScriptedExecutor(num_blocks=16, block_size=4, vocab_size=VOCAB)
    made = make_engine(shape, executor)
    made.add(make_request("a", [1], eos_token_ids=[EOS], stop_token_ids=[2], min_tokens=2))
    made.add(make_request("b", [1], eos_token_ids=[EOS], stop_token_ids=[2], min_tokens=2, ignore_eos=True))
    made.add(make_request("c", [1], eos_token_ids=[EOS], stop_token_ids=[2]))
    made.step()
    told = [(begin.sampling.min_tokens, begin.sampling.stop_token_ids) for begin in executor.plans[0].begins]
    assert told == [(2, [2, EOS]), (2, [2]), (0, [])]


def test_a_token_sampled_after_the_end_is_thrown_away() -> None:
    executor = ScriptedExecutor(num_blocks=16, block_size=4, vocab_size=VOCAB, next_token=always_eos)
    made = make_engine(Shape(), executor)
    made.add(make_request("a", [1] * 3, eos_token_ids=[EOS], max_tokens=9))
    made.step()
    assert [out.finish_reason for out in made.step()] == ["stop"]
    assert len(executor.plans) == 2
    assert made.has_work()
    assert made.step() == []
    assert not made.has_work()
    made.check()
    assert made.stats().generation_tokens == 1


def test_times_come_with_the_first_and_the_last() -> None:
    found = outputs(count_up, max_tokens=4)
    assert [out.times is not None for out in found] == [True, False, False, True]
    last = found[-1].times
    assert last is not None
    assert 0 < last.arrival <= last.scheduled <= last.first_token <= last.last_token


def test_who_waits_for_a_first_token_is_told_before_the_others() -> None:
    shape = Shape(max_num_seqs=4)
    executor = ScriptedExecutor(
        num_blocks=shape.num_blocks, block_size=shape.block_size, vocab_size=VOCAB, next_token=count_up
    )
    made, order = make_engine(shape, executor), []
    for name in "abc":
        made.add(make_request(name, [1] * 3, max_tokens=9, ignore_eos=True))
        order += [[out.request_id for out in made.step()] for _ in range(2)]
    assert order == [[], ["a"], ["a"], ["b", "a"], ["a", "b"], ["c", "a", "b"]]


def test_first_tokens_are_told_before_others_are_taken() -> None:
    shape = Shape(max_num_seqs=4)
    executor = ScriptedExecutor(
        num_blocks=shape.num_blocks, block_size=shape.block_size, vocab_size=VOCAB, next_token=count_up
    )
    made, told = make_engine(shape, executor), []

    def tell(outputs: list[Output]) -> None:
        told.append(([out.request_id for out in outputs], made.stats().generation_tokens))

    for names in ("a", "bc"):
        for name in names:
            made.add(make_request(name, [1] * 3, max_tokens=9, ignore_eos=True))
        returned = [[out.request_id for out in made.step(tell)] for _ in range(2)]
    assert told == [(["b", "c"], 4)]  # two of a before, and these; a's third comes with the others
    assert returned == [["a"], ["a"]]


@pytest.mark.parametrize("shape", [Shape(max_num_tokens=4), Shape(), Shape(ahead=False, max_num_tokens=5)])
def test_logprobs_pass_through_and_prompt_logprobs_are_assembled(shape: Shape) -> None:
    """The World compares every entry; here is how many came, and when."""
    world = World(shape)
    world.add(make_request("a", [1, 0] * 9, max_tokens=3, logprobs=0, prompt_logprobs=0))
    found = []
    while world.engine.has_work():
        found += world.step()
    assert [len(out.logprobs or []) for out in found] == [1, 1, 1]
    assert [len(out.prompt_logprobs or []) for out in found] == [18, 0, 0]
    assert found[0].prompt_logprobs is not None
    assert found[0].prompt_logprobs[0] is None


def test_prompt_logprobs_survive_preemption_and_skip_no_prefix() -> None:
    """Three long prompts in a pool for one and a half: they are preempted in the middle of their prompts."""
    preempted = 0
    for budget in range(4, 16):
        world = World(Shape(num_blocks=11, max_num_tokens=budget))
        world.add(make_request("seen", [1] * 24, max_tokens=2))
        world.drain()
        for i in range(3):
            world.add(make_request(f"r{i}", [1] * (20 + i), max_tokens=14, prompt_logprobs=0))
        world.drain()
        assert world.num_cached == 0
        preempted += world.last_stats.num_preemptions
    assert preempted > 5


def test_prompt_logprobs_come_once_with_n() -> None:
    world = World(Shape())
    world.add(make_request("a", [1] * 6, max_tokens=2, n=3, temperature=1.0, prompt_logprobs=0))
    found = []
    while world.engine.has_work():
        found += world.step()
    assert [out.index for out in found if out.prompt_logprobs] == [0]


def test_a_failed_row_ends_its_own_request_only() -> None:
    world = World(Shape())
    for name in "abc":
        world.add(make_request(name, [1, 0] * 4, max_tokens=6))
    world.step()
    world.next_row = 1
    world.drain()
    assert {f.request.request_id: f.ended for f in world.followed.values()} == {
        "a": "length",
        "b": "error",
        "c": "length",
    }


@pytest.mark.parametrize("how", ["early", "late", "finish"])
@pytest.mark.parametrize("ahead", [True, False])
def test_a_failed_step_ends_those_in_it_only(how: str, ahead: bool) -> None:
    world = World(Shape(max_num_seqs=2, ahead=ahead))
    for name in "abc":
        world.add(make_request(name, [1, 0] * 4, max_tokens=6))
    world.step()
    world.next_step = how
    world.drain()
    assert [f.ended for f in world.followed.values()] == ["error", "error", "length"]


@pytest.mark.parametrize("ahead", [True, False])
@pytest.mark.parametrize("chunk", [4, 16])
def test_blocks_of_a_failed_row_never_enter_the_prefix_cache(ahead: bool, chunk: int) -> None:
    """Its prompt fails in the first or a later step; the next request of the same prompt finds nothing and is right."""
    for late in range(16 // chunk):
        world = World(Shape(ahead=ahead, max_num_tokens=chunk))
        world.add(make_request("a", [1] * 16, max_tokens=6))
        for _ in range(late):
            world.step()
        world.next_row = 0
        while world.engine.has_work():
            world.step()
        assert world.followed["a", 0].ended == "error"
        assert len(world.engine.cache.prefix) == 0
        world.add(make_request("b", [1] * 16, max_tokens=6))
        world.drain()
        assert world.num_cached == 0


@pytest.mark.parametrize(("reason", "cached"), [(NOTHING_TO_SAMPLE, 16), (NOT_FINITE, 0)])
def test_a_fault_of_the_request_itself_leaves_prefixes_that_others_share(reason: str, cached: int) -> None:
    def fail(plan: StepPlan, row: RowStep) -> str | None:
        return reason if plan.begins and plan.begins[0].token_ids[-1] == 2 else None

    executor = ScriptedExecutor(num_blocks=16, block_size=4, vocab_size=VOCAB, fail_row=fail)
    made = make_engine(Shape(ahead=False), executor)
    found: list[Output] = []
    for name, last in (("first", 0), ("at fault", 2), ("other", 1)):
        made.add(make_request(name, [1] * 16 + [last], max_tokens=1))
        while made.has_work():
            found += made.step()
    told = [(out.request_id, out.finish_reason, out.num_cached_tokens) for out in found]
    assert told == [("first", "length", 0), ("at fault", "error", 16), ("other", "length", cached)]
    made.check()


class Meddled(ScriptedExecutor):
    """Gives back what `change` makes of each result."""

    def __init__(self, change: Any) -> None:
        super().__init__(num_blocks=16, block_size=4, vocab_size=VOCAB)
        self.change = change

    def finish(self) -> StepResult:
        return self.change(super().finish())  # type: ignore[no-any-return]


def run_meddled(change: Any) -> tuple[Engine, list[Output]]:
    made = make_engine(Shape(), Meddled(change))
    for name in "ab":
        made.add(make_request(name, [1] * 3, max_tokens=3, prompt_logprobs=0 if name == "a" else None))
    found: list[Output] = []
    while made.has_work():
        found += made.step()
        made.check()
    return made, found


@pytest.mark.parametrize(
    "change",
    [
        lambda r: StepResult(step=r.step, tokens=r.tokens[:-1]),
        lambda r: StepResult(step=r.step, tokens=[*r.tokens, 1]),
        lambda r: StepResult(step=r.step + 1, tokens=r.tokens),
    ],
    ids=["too few tokens", "too many tokens", "another step's"],
)
def test_a_result_that_is_not_the_plans_ends_the_whole_step(change: Any) -> None:
    made, found = run_meddled(change)
    assert [(out.request_id, out.finish_reason, out.token_ids) for out in found] == [
        ("a", "error", []),
        ("b", "error", []),
    ]
    assert "step 1 samples 2 tokens" in (found[0].error or "")
    assert not made._requests


def test_a_row_whose_result_cannot_be_taken_ends_alone(caplog: pytest.LogCaptureFixture) -> None:
    def change(result: StepResult) -> StepResult:
        return StepResult(step=result.step, tokens=result.tokens, prompt_logprobs={0: (1, None)})  # type: ignore[dict-item]

    with caplog.at_level(logging.ERROR):
        _, found = run_meddled(change)
    assert [out.finish_reason for out in found if out.request_id == "a"] == ["error"]
    assert [out.finish_reason for out in found if out.request_id == "b"] == [None, None, "length"]
    assert "TypeError" in caplog.text


@pytest.mark.parametrize(
    ("error", "message"),
    [(RequestFailedError("out of paper"), "out of paper"), (MemoryError(), "the step failed (MemoryError)")],
)
def test_the_reason_of_a_failed_step(error: Exception, message: str) -> None:
    def change(_: StepResult) -> StepResult:
        raise error

    _, found = run_meddled(change)
    assert {out.error for out in found} == {message}
    assert {out.error_kind for out in found} == {"RequestFailedError"}


def test_a_failed_row_gives_its_reason() -> None:
    def fail(plan: StepPlan, row: RowStep) -> str | None:
        return "non-finite logits" if plan.step == 2 else None

    executor = ScriptedExecutor(num_blocks=16, block_size=4, vocab_size=VOCAB, fail_row=fail)
    made = make_engine(Shape(ahead=False), executor)
    made.add(make_request("a", [1] * 3, max_tokens=3))
    made.step()
    (out,) = made.step()
    assert (out.error, out.error_kind, out.token_ids) == ("non-finite logits", "RequestFailedError", [])
    assert out.times is not None
    assert not made.has_work()


def test_a_longer_list_of_alternatives_is_passed_on_as_it_is() -> None:
    entry = TokenLogprobs([3, 1, 2], [-0.1, -2.0, -3.0], 1)

    def change(result: StepResult) -> StepResult:
        return StepResult(step=result.step, tokens=result.tokens, logprobs=[entry] * len(result.tokens))

    _, found = run_meddled(change)
    assert all(out.logprobs == [entry] for out in found)

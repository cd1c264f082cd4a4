"""Scheduler, through an Engine: what the plans look like."""

from __future__ import annotations

from typing import Any

import pytest
from simulation import VOCAB, Shape, make_engine, make_request

from octavo.base.types.plan import RowStep, StepPlan
from octavo.engine.cache.block import BlockHasher
from octavo.engine.engine import Engine
from octavo.engine.fake import ScriptedExecutor


def engine(**shape: Any) -> tuple[Engine, list[StepPlan]]:
    """An engine that reads each step at once (unless ahead=True), and the list that its plans go to."""
    options = Shape(**{"ahead": False, "num_blocks": 32, "max_num_tokens": 64} | shape)
    executor = ScriptedExecutor(num_blocks=options.num_blocks, block_size=options.block_size, vocab_size=VOCAB)
    return make_engine(options, executor), executor.plans


def steps(plan: StepPlan) -> list[tuple[int, int, int, bool]]:
    return [(row.row, row.start, row.count, row.sample) for row in plan.rows]


def run(made: Engine, count: int) -> None:
    for _ in range(count):
        made.step()
        made.check()


def started(plans: list[StepPlan]) -> list[int]:
    """Prompt lengths in the order in which requests began: tests tell requests apart by them."""
    return [begin.num_prompt for plan in plans for begin in plan.begins]


def test_a_prompt_then_one_token_a_step() -> None:
    made, plans = engine()
    made.add(make_request("a", [1] * 5, max_tokens=3))
    run(made, 4)
    assert [steps(plan) for plan in plans] == [[(0, 0, 5, True)], [(0, 5, 1, True)], [(0, 6, 1, True)]]
    assert not made.has_work()


def test_a_decode_step_is_rows_and_nothing_else() -> None:
    made, plans = engine(block_size=16, num_blocks=8)
    made.add(make_request("a", [1] * 5, max_tokens=3))
    run(made, 2)
    assert plans[1] == StepPlan(step=2, rows=[RowStep(0, 5, 1, True)])


def test_prompts_beside_a_decode_take_less_of_a_step() -> None:
    """Alone they have the whole step."""
    made, plans = engine(max_num_tokens=16, max_mixed_tokens=6, prefix_caching=False)
    made.add(make_request("a", [1] * 12, max_tokens=4))
    run(made, 1)
    made.add(make_request("b", [1] * 14, max_tokens=2))
    run(made, 5)
    counts = [[count for _, _, count, _ in steps(plan)] for plan in plans]
    assert counts == [[12], [1, 5], [1, 5], [1, 4], [1]]


def test_a_plan_is_a_value() -> None:
    """Executors may read plans late: what began must not change under them."""
    made, plans = engine(block_size=2)
    made.add(make_request("a", [1] * 4, max_tokens=6))
    run(made, 1)
    begin = plans[0].begins[0]
    tokens, blocks = list(begin.token_ids), list(begin.blocks)
    run(made, 4)
    assert (begin.token_ids, begin.blocks) == (tokens, blocks)


def test_a_long_prompt_is_split_and_decoding_goes_on_beside_it() -> None:
    made, plans = engine(max_num_tokens=8)
    made.add(make_request("a", [1] * 3, max_tokens=9))
    run(made, 1)
    made.add(make_request("b", [0] * 18, max_tokens=2))
    run(made, 3)
    assert [steps(plan) for plan in plans[1:]] == [
        [(0, 3, 1, True), (1, 0, 7, False)],
        [(0, 4, 1, True), (1, 7, 7, False)],
        [(0, 5, 1, True), (1, 14, 4, True)],
    ]


def test_decoding_goes_on_beside_a_prompt_that_is_more_urgent() -> None:
    """It had every step to itself until its end."""
    made, plans = engine(max_num_tokens=8, policy="priority")
    for name in "ab":
        made.add(make_request(name, [1] * 3, max_tokens=9, priority=1))
    run(made, 1)
    made.add(make_request("c", [0] * 18, max_tokens=2))
    run(made, 3)
    assert [[(row.row, row.count) for row in plan.rows] for plan in plans[1:]] == [
        [(0, 1), (1, 1), (2, 6)],
        [(2, 6), (0, 1), (1, 1)],
        [(2, 6), (0, 1), (1, 1)],
    ]


def test_without_chunking_a_prompt_waits_until_it_fits_and_nobody_passes() -> None:
    made, plans = engine(chunked=False, max_num_tokens=40, prefix_caching=False)
    for name, length in (("a", 30), ("b", 20), ("c", 5)):
        made.add(make_request(name, [1] * length, max_tokens=4))
    run(made, 1)
    assert [steps(plan) for plan in plans] == [[(0, 0, 30, True)]]
    run(made, 1)
    assert steps(plans[1]) == [(0, 30, 1, True), (1, 0, 20, True), (2, 0, 5, True)]


def test_the_budget_is_shared_in_order() -> None:
    made, plans = engine(max_num_tokens=12)
    for name, length in (("a", 5), ("b", 5), ("c", 5)):
        made.add(make_request(name, [1] * length, max_tokens=4))
    run(made, 1)
    assert [row.count for row in plans[0].rows] == [5, 5, 2]


def test_rows_are_bounded_and_given_on() -> None:
    made, plans = engine(max_num_seqs=2)
    for i in range(3):
        made.add(make_request(f"r{i}", [1] * (i + 3), max_tokens=2 if i == 0 else 6))
    run(made, 2)
    assert started(plans) == [3, 4]
    run(made, 1)
    assert started(plans) == [3, 4, 5]
    assert plans[2].ended == [0]
    assert plans[2].begins[0].row == 0


@pytest.mark.parametrize(("policy", "order"), [("fcfs", [1, 2, 3, 4]), ("priority", [3, 1, 4, 2])])
def test_who_begins_first(policy: str, order: list[int]) -> None:
    made, plans = engine(policy=policy, max_num_seqs=1)
    for i, priority in enumerate((1, 2, 0, 1)):
        made.add(make_request(f"r{i}", [1] * (i + 1), max_tokens=2, priority=priority))
    while made.has_work():
        run(made, 1)
    assert started(plans) == order


@pytest.mark.parametrize(("policy", "victim"), [("fcfs", "b"), ("priority", "a")])
def test_the_least_urgent_is_preempted(policy: str, victim: str) -> None:
    made, _ = engine(policy=policy, num_blocks=10, max_num_seqs=2, prefix_caching=False)
    made.add(make_request("a", [1] * 18, max_tokens=12, priority=1))
    made.add(make_request("b", [0] * 18, max_tokens=12, priority=0))
    while not made.stats().num_preemptions:
        run(made, 1)
    assert [seq.request.request_id for seq in made.scheduler.waiting] == [victim]
    seq = next(iter(made.scheduler.waiting))
    assert (seq.row, seq.blocks, seq.num_computed, seq.times.num_preemptions) == (-1, [], 0, 1)


def test_a_preempted_sequence_is_resumed_from_its_tokens() -> None:
    made, plans = engine(num_blocks=10, max_num_seqs=2, prefix_caching=False)
    for name, token in (("a", 1), ("b", 0)):
        made.add(make_request(name, [token] * 18, max_tokens=12))
    while made.has_work():
        run(made, 1)
    resumed = [begin for plan in plans for begin in plan.begins if len(begin.token_ids) > begin.num_prompt]
    assert len(resumed) == made.stats().num_preemptions > 0
    row = next(row for plan in plans if resumed[0] in plan.begins for row in plan.rows if row.row == resumed[0].row)
    assert (row.start, row.count, row.sample) == (0, len(resumed[0].token_ids), True)


def test_a_preempted_sequence_finds_what_it_has_computed() -> None:
    made, plans = engine(num_blocks=11, max_num_seqs=2)
    for name, token in (("a", 1), ("b", 0)):
        made.add(make_request(name, [token] * 18, max_tokens=6 if name == "a" else 12))
    while made.has_work():
        run(made, 1)
    (resumed,) = [begin for plan in plans for begin in plan.begins if len(begin.token_ids) > begin.num_prompt]
    row = next(row for plan in plans if resumed in plan.begins for row in plan.rows if row.row == resumed.row)
    assert row.start >= 16


@pytest.mark.parametrize("prefix_caching", [False, True])
def test_log_probabilities_of_a_prompt_are_made_once(prefix_caching: bool) -> None:
    made, plans = engine(num_blocks=10, max_num_seqs=2, prefix_caching=prefix_caching)
    for name, token in (("a", 1), ("b", 0)):
        made.add(make_request(name, [token] * 18, max_tokens=12, prompt_logprobs=2))
    outputs = []
    while made.has_work():
        outputs += made.step()
    assert made.stats().num_preemptions > 0
    asked = [
        (len(begin.token_ids) == begin.num_prompt, begin.sampling.prompt_logprobs) for p in plans for begin in p.begins
    ]
    assert set(asked) == {(True, 2), (False, None)}
    assert [len(out.prompt_logprobs) for out in outputs if out.prompt_logprobs] == [18, 18]


def test_nobody_begins_in_a_step_that_preempts() -> None:
    made, plans = engine(num_blocks=10, max_num_seqs=3, prefix_caching=False)
    for name in "abc":
        made.add(make_request(name, [1] * 17, max_tokens=16))
    preempted = 0
    while made.has_work():
        run(made, 1)
        if made.stats().num_preemptions > preempted:
            preempted = made.stats().num_preemptions
            assert plans[-1].begins == []
    assert preempted


@pytest.mark.parametrize("prefix_caching", [False, True])
def test_a_prompt_of_which_only_chunks_have_room_waits_for_all_of_it(prefix_caching: bool) -> None:
    """Its chunks were run, and preempted, and run again for as long as the other decoded."""
    made, plans = engine(max_model_len=128, max_num_tokens=16, prefix_caching=prefix_caching)
    made.add(make_request("a", [1] * 24, max_tokens=60))
    run(made, 3)
    made.add(make_request("b", [0] * 110, max_tokens=2))
    while made.has_work():
        run(made, 1)
    assert sum(plan.num_tokens for plan in plans) == 24 + 59 + 110 + 1
    assert made.stats().num_preemptions == 0


def test_a_prompt_that_may_preempt_begins_where_its_first_chunk_has_room() -> None:
    made, plans = engine(max_model_len=128, max_num_tokens=16, policy="priority")
    made.add(make_request("a", [1] * 60, max_tokens=60, priority=1))
    run(made, 5)
    made.add(make_request("b", [0] * 110, max_tokens=2, priority=0))
    run(made, 1)
    assert started(plans) == [60, 110]
    while any(seq.request.request_id == "b" for seq in made.scheduler.running):
        run(made, 1)
    assert made.stats().num_preemptions == 1


def test_one_that_needs_every_block_begins_where_nobody_runs() -> None:
    """Beside others some blocks are left to them."""
    made, _ = engine(num_blocks=200, block_size=1, max_model_len=200, max_num_tokens=200)
    made.add(make_request("a", [1] * 199, max_tokens=1))
    assert [out.finish_reason for out in made.step()] == ["length"]


def test_a_prefix_hit_leaves_one_token() -> None:
    made, plans = engine()
    made.add(make_request("a", [1] * 16, max_tokens=1))
    run(made, 1)
    made.add(make_request("b", [1] * 16, max_tokens=1))
    made.add(make_request("c", [1] * 17, max_tokens=1))
    run(made, 1)
    assert [(row.start, row.count) for row in plans[1].rows] == [(12, 4), (16, 1)]


def test_a_fork_waits_until_the_parent_has_the_prompt() -> None:
    made, plans = engine(max_num_tokens=8)
    made.add(make_request("a", [1] * 11, max_tokens=4, n=3, temperature=1.0))
    run(made, 3)
    assert [len(plan.begins) for plan in plans] == [1, 0, 2]
    assert [(row.start, row.count) for row in plans[2].rows] == [(11, 1), (10, 1), (10, 1)]
    shared, partial = plans[0].begins[0].blocks, plans[1].updates[0].blocks[0]
    assert [begin.blocks[:2] for begin in plans[2].begins] == [shared, shared]
    assert plans[2].copies == [(partial, begin.blocks[2]) for begin in plans[2].begins]


def test_a_fork_waits_for_all_of_the_prompt_but_its_last_token() -> None:
    for length, begins in ((9, [1, 2]), (10, [1, 0, 2])):
        made, plans = engine(max_num_tokens=8)
        made.add(make_request("a", [1] * length, max_tokens=2, n=3, temperature=1.0))
        run(made, len(begins))
        assert [len(plan.begins) for plan in plans] == begins


def test_forks_take_the_hashes_of_the_prompt_from_their_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them reach their first full block in one step, which must not hash a long prompt n times."""
    hashed: list[list[int]] = []
    extend = BlockHasher.extend

    def noted(self: BlockHasher, previous: bytes, tokens: list[int]) -> bytes:
        hashed.append(list(tokens))
        return extend(self, previous, tokens)

    monkeypatch.setattr(BlockHasher, "extend", noted)
    made, _ = engine(num_blocks=64)
    made.add(make_request("a", [1] * 33, max_tokens=6, n=8, temperature=1.0))
    while made.has_work():
        run(made, 1)
    assert hashed.count([1] * 4) == 8
    made.add(make_request("b", [2] * 33, max_tokens=6, n=3, temperature=1.0))
    made.abort(["b:0"])  # its others run the prompt themselves
    while made.has_work():
        run(made, 1)
    assert hashed.count([2] * 4) <= 2 * 8


def test_a_fork_is_no_hit_of_the_prefix_cache() -> None:
    for caching, cached in ((False, [0, 0, 0]), (True, [8, 8, 8])):
        made, _ = engine(prefix_caching=caching)
        made.add(make_request("seen", [1] * 10, max_tokens=1))
        run(made, 1)
        made.add(make_request("a", [1] * 11, max_tokens=2, n=3, temperature=1.0))
        ended = [out for _ in range(4) for out in made.step() if out.finish_reason]
        assert [out.num_cached_tokens for out in ended] == cached


def test_what_one_of_n_has_left_behind_is_no_hit_of_the_next() -> None:
    made, _ = engine(max_num_seqs=1)
    made.add(make_request("a", [1] * 11, max_tokens=1, n=2, temperature=1.0))
    assert [out.num_cached_tokens for _ in range(4) for out in made.step()] == [0, 0]
    assert made.stats().prefix_hits == 0


def test_a_fork_ahead_of_the_results_waits_until_they_are_read() -> None:
    """Until then the parent's steps may yet fail, and nothing may stand on them."""
    made, plans = engine(ahead=True)
    made.add(make_request("a", [1] * 6, max_tokens=4, n=2, temperature=1.0))
    run(made, 3)
    assert [len(plan.begins) for plan in plans] == [1, 0, 1]


def test_a_fork_without_its_parent_runs_the_prompt_itself() -> None:
    made, plans = engine(prefix_caching=False)
    made.add(make_request("a", [1] * 6, max_tokens=2, n=2, temperature=1.0))
    made.abort(["a:0"])
    run(made, 1)
    assert steps(plans[0]) == [(0, 0, 6, True)]


def test_ahead_of_the_results_nothing_is_planned_past_max_tokens() -> None:
    made, plans = engine(ahead=True)
    made.add(make_request("a", [1] * 3, max_tokens=2))
    while made.has_work():
        run(made, 1)
    assert [steps(plan) for plan in plans] == [[(0, 0, 3, True)], [(0, 3, 1, True)]]


def test_rows_of_a_plan_that_could_not_begin_are_ended_by_the_next() -> None:
    made, plans = engine(max_num_seqs=2)
    made.add(make_request("a", [1] * 3, max_tokens=9))
    made.add(make_request("b", [1] * 4, max_tokens=9))
    run(made, 1)
    made.abort(["b"])
    begin = made.executor.begin

    def refuse(plan: StepPlan) -> None:
        raise RuntimeError("no")

    made.executor.begin = refuse  # type: ignore[method-assign]
    run(made, 1)
    made.executor.begin = begin  # type: ignore[method-assign]
    made.add(make_request("c", [1] * 5, max_tokens=2))
    run(made, 1)
    assert sorted(plans[-1].ended) == [0, 1]
    assert set(made.executor._rows) == {plans[-1].begins[0].row}  # type: ignore[attr-defined]


def test_a_device_that_begins_nothing_leaves_no_more_to_end_than_there_are_rows() -> None:
    made, plans = engine(max_num_seqs=2)
    begin = made.executor.begin

    def refuse(plan: StepPlan) -> None:
        raise RuntimeError("no")

    made.executor.begin = refuse  # type: ignore[method-assign]
    for i in range(20):
        made.add(make_request(f"r{i}", [1]))
        run(made, 1)
    made.executor.begin = begin  # type: ignore[method-assign]
    made.add(make_request("a", [1]))
    run(made, 1)
    assert plans[-1].ended == [0]


@pytest.mark.parametrize("damage", ["row", "waiting", "blocks"])
def test_check_sees_what_does_not_add_up(damage: str) -> None:
    made, _ = engine(max_num_seqs=1)
    made.add(make_request("a", [1] * 6, max_tokens=4))
    made.add(make_request("b", [1] * 6, max_tokens=4))
    run(made, 1)
    running, waiting = next(iter(made.scheduler.running)), next(iter(made.scheduler.waiting))
    if damage == "row":
        running.row = 7
    elif damage == "waiting":
        waiting.row = 0
    else:
        running.num_computed = 100
    with pytest.raises(ValueError, match=r"rows held|holds a row|lacks blocks"):
        made.check()

"""Engine: what it refuses, what it tells, how abort and faults leave it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from simulation import VOCAB, Shape, World, make_engine, make_request

from octavo.base.errors import ConfigError, InputError, OverloadedError, UnsupportedError
from octavo.base.types.output import Output
from octavo.engine.engine import Engine
from octavo.engine.fake import ScriptedExecutor
from octavo.engine.retry import LONGEST, QueueRate
from octavo.engine.sequence import make_sequences


def engine(**shape: Any) -> Engine:
    options = Shape(**shape)
    return make_engine(
        options, ScriptedExecutor(num_blocks=options.num_blocks, block_size=options.block_size, vocab_size=VOCAB)
    )


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "param", "message"),
    [
        ([], 4, "prompt", "empty"),
        ([-1, 3], 4, "prompt", "-1"),
        ([0, 2**63], 4, "prompt", str(2**63)),
        ([1] * 40, 1, "max_tokens", "40 tokens and max_tokens 1 do not fit the context of 40"),
        ([1] * 30, 11, "max_tokens", "shorten the prompt or lower max_tokens"),
        ([1], 2**62, "max_tokens", "do not fit"),
        ([1], 0, "max_tokens", "1 or above"),
        ([1], -5, "max_tokens", "-5"),
    ],
)
def test_what_can_never_run_is_refused(prompt: list[int], max_tokens: int, param: str, message: str) -> None:
    made = engine()
    request = msgspec.structs.replace(make_request("a", [1]), prompt_token_ids=prompt, max_tokens=max_tokens)
    with pytest.raises(InputError, match=message) as caught:
        made.add(request)
    assert caught.value.param == param
    assert not made.has_work()


def test_exactly_one_context_fits() -> None:
    world = World(Shape(num_blocks=10))
    world.add(make_request("a", [1] * 30, max_tokens=10))
    world.add(make_request("b", [1] * 39, max_tokens=1))
    world.add(make_request("c", [1], max_tokens=39))
    world.drain()
    assert {f.ended for f in world.followed.values()} == {"length"}


def test_an_id_in_use_is_refused_and_free_again_afterwards() -> None:
    made = engine()
    made.add(make_request("a", [1]))
    with pytest.raises(InputError, match="'a' is in use") as caught:
        made.add(make_request("a", [1]))
    assert caught.value.param == "request_id"
    made.step()
    made.abort(["a"])
    made.add(make_request("a", [1], n=2, temperature=1.0))
    made.abort(["a:0", "a:1"])
    made.add(make_request("a", [1], max_tokens=1))
    assert [out.finish_reason for out in run(made)] == ["length"]


def run(made: Engine) -> list[Any]:
    found = []
    while made.has_work():
        found += made.step()
        made.check()
    return found


@pytest.mark.parametrize("bound", [0, 1, 3])
def test_the_queue_is_bounded(bound: int) -> None:
    made = engine(max_queued=bound, max_num_seqs=1)
    for i in range(max(bound, 1)):
        made.add(make_request(f"r{i}", [1], n=2, temperature=1.0))
    with pytest.raises(OverloadedError, match=f"{max(bound, 1)} requests are waiting") as caught:
        made.add(make_request("late", [1]))
    assert caught.value.retry_after >= 1
    run(made)
    made.add(make_request("late", [1]))


def test_the_least_urgent_gives_way() -> None:
    made = engine(max_queued=2, max_num_seqs=1, policy="priority")
    made.add(make_request("runs", [1], priority=9))
    made.step()
    for name, priority in (("a", 1), ("b", 3)):
        made.add(make_request(name, [1], n=2, temperature=1.0, priority=priority), tell=refuse_all)
    told: list[Output] = []
    with pytest.raises(OverloadedError):
        made.add(make_request("same", [1], priority=3), tell=refuse_all)
    with pytest.raises(OverloadedError):  # nobody would hear of it
        made.add(make_request("offline", [1], priority=0))
    made.add(make_request("urgent", [1], priority=2), tell=told.extend)
    assert [(out.request_id, out.index, out.error_kind, out.retry_after) for out in told] == [
        ("b", 0, "OverloadedError", 2),
        ("b", 1, "OverloadedError", 2),
    ]
    assert made.num_waiting == 2
    assert told[0].error == "2 requests are waiting, and a more urgent one came"
    made.check()
    made.add(make_request("b", [1], priority=0), tell=told.extend)  # its name is free again
    assert [out.request_id for out in told[2:]] == ["urgent"]
    ended = [out.request_id for out in run(made) if out.finish_reason]
    assert ended == ["runs", "b", "a", "a"]


def test_what_has_begun_does_not_give_way() -> None:
    """One of n that runs, one that was preempted, and one that another engine had begun."""
    made = engine(max_queued=1, max_num_seqs=1, policy="priority")
    made.add(make_request("n", [1], n=2, temperature=1.0, priority=9))
    made.step()
    with pytest.raises(OverloadedError):
        made.add(make_request("urgent", [1], priority=0), tell=refuse_all)
    run(made)
    for emitted in ([[1]], [[]], [[1], None], [None, []]):
        request = make_request("before", [1], n=len(emitted), temperature=1.0, priority=9)
        made.add(request, emitted)
        with pytest.raises(OverloadedError):
            made.add(make_request("urgent", [1], priority=0), tell=refuse_all)
        run(made)


def test_by_arrival_nobody_gives_way() -> None:
    made = engine(max_queued=1)
    made.add(make_request("a", [1], priority=9))
    with pytest.raises(OverloadedError):
        made.add(make_request("b", [1], priority=0), tell=refuse_all)


def refuse_all(outputs: list[Output]) -> None:
    raise AssertionError(outputs)


def test_retry_after_grows_with_the_queue() -> None:
    made = engine(max_queued=100, max_num_seqs=1)
    for i in range(100):
        made.add(make_request(f"r{i}", [1]))
    with pytest.raises(OverloadedError) as caught:
        made.add(make_request("late", [1]))
    assert caught.value.retry_after == 26


def test_retry_after_is_what_waits_over_the_measured_rate() -> None:
    now = 100.0
    rate = QueueRate(lambda: now)
    assert rate.seconds(1000, 0) is None
    rate.note(0, empty=True)
    now += 0.5
    rate.note(100, empty=False)
    assert rate.seconds(1000, 100) is None, "half a second tells little"
    now += 1.5
    rate.note(400, empty=False)
    assert rate.seconds(1000, 400) == 5  # 200 a second
    assert rate.seconds(0, 400) == rate.seconds(1, 400) == 1
    assert rate.seconds(10**9, 400) == LONGEST
    for done in range(420, 2420, 20):  # ten times slower for longer than the window
        now += 1.0
        rate.note(done, empty=False)
    assert rate.seconds(1000, 2400) == 50
    for _ in range(100):
        now += 1.0
        rate.note(2400, empty=False)
    assert rate.seconds(1000, 2400) == LONGEST, "nothing has moved"
    rate.note(2400, empty=True)
    now += 2.0
    assert rate.seconds(1000, 2400) is None, "all places may be taken by long answers"
    assert rate.seconds(100, 2500) == 2, "from the time on at which a queue began"


def test_retry_after_is_measured_where_prompts_leave_further_apart_than_the_window() -> None:
    now = 0.0
    rate = QueueRate(lambda: now)
    rate.note(0, empty=True)
    for done in (1000, 2000, 3000):
        now += 40.0
        rate.note(done, empty=False)
        assert rate.seconds(500, done) == 20


def test_a_refusal_tells_the_measured_time() -> None:
    made = engine(max_queued=4, max_num_seqs=1)
    now = 0.0
    made._queue_rate = QueueRate(lambda: now)
    for i in range(4):
        made.add(make_request(f"r{i}", [1] * 10, max_tokens=1))
    while made.num_waiting > 2:
        made.step()
    now = 4.0  # two prompts of ten tokens in four seconds
    for i in range(2):
        made.add(make_request(f"s{i}", [1] * 10, max_tokens=1, n=2, temperature=1.0))  # of one prompt
    with pytest.raises(OverloadedError) as caught:
        made.add(make_request("late", [1]))
    assert caught.value.retry_after == 8


def test_without_a_bound_everyone_may_wait() -> None:
    made = engine(max_queued=None)
    for i in range(500):
        made.add(make_request(f"r{i}", [1]))
    assert made.num_waiting == made.stats().num_waiting == 500


@pytest.mark.parametrize(
    ("shape", "param", "message"),
    [
        ({"num_blocks": 9}, "max_model_len", "holds 36 tokens, less than one context of 40"),
        ({"chunked": False}, "max_num_batched_tokens", r"\(16\) must reach --max-model-len \(40\)"),
    ],
)
def test_sizes_that_could_stall_are_refused(shape: dict[str, Any], param: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        engine(**shape)
    assert caught.value.param == param


def test_any_salt_runs() -> None:
    world = World(Shape())
    for i, salt in enumerate(("", "\ud800", "\0", "x" * 5000)):
        world.add(make_request(f"r{i}", [1] * 9, max_tokens=2, cache_salt=salt))
        world.drain()
    assert world.num_cached == 0


@pytest.mark.parametrize("ahead", [True, False])
@pytest.mark.parametrize("steps", range(8))
@pytest.mark.parametrize("which", ["a", "a:0", "a:1"])
def test_abort_frees_at_once_in_every_state(steps: int, which: str, ahead: bool) -> None:
    """Waiting, in the prompt, forking, decoding, preempted, finished: whatever the state after `steps` is."""
    world = World(Shape(ahead=ahead, num_blocks=10, max_num_tokens=8, max_num_seqs=3))
    world.add(make_request("first", [0] * 5, max_tokens=20))
    world.add(make_request("a", [1] * 10, max_tokens=12, n=3, temperature=1.0))
    world.add(make_request("last", [1, 0] * 5, max_tokens=8))
    for _ in range(steps):
        world.step()
    world.abort(which)
    world.check()
    world.abort(which)
    world.drain()
    assert world.followed["first", 0].ended == world.followed["last", 0].ended == "length"
    assert [world.followed["a", i].ended for i in range(3)].count("abort") == (3 if which == "a" else 1)


def test_abort_of_everything_leaves_nothing() -> None:
    world = World(Shape())
    for i in range(6):
        world.add(make_request(f"r{i}", [1] * 9, max_tokens=9))
    for _ in range(3):
        world.step()
    for i in range(6):
        world.abort(f"r{i}")
    assert world.engine.cache.pool.num_free == 16
    assert world.engine.stats().num_running == world.engine.stats().num_waiting == 0
    world.drain()


@pytest.mark.parametrize("name", ["", ":", "nobody", "a:", "a:9", "a:-1", "a:00", "b:0", "a:0:0"])
def test_abort_of_what_is_not_known_is_passed_over(name: str) -> None:
    world = World(Shape())
    world.add(make_request("a", [1] * 3, max_tokens=3))
    world.step()
    world.abort(name)
    world.drain()
    assert world.followed["a", 0].ended == "length"


def test_a_request_id_may_look_like_a_sequences_name() -> None:
    made = engine()
    for name in ("a", "a:0"):
        made.add(make_request(name, [1] * 3, max_tokens=3))
    made.abort(["a:0"])
    assert {out.request_id for out in run(made)} == {"a"}


def test_stats_count() -> None:
    made = engine(ahead=False)
    made.add(make_request("a", [1] * 9, max_tokens=3))
    made.step()
    stats = made.stats()
    assert (stats.step, stats.num_running, stats.num_waiting) == (1, 1, 0)
    assert (stats.prompt_tokens, stats.generation_tokens, stats.iteration_tokens) == (9, 1, 9)
    assert stats.iterations == [0, 0, 1] + [0] * 11
    assert stats.kv_usage == 3 / 16
    run(made)
    made.add(make_request("b", [1] * 9, max_tokens=3, n=2, temperature=1.0))
    made.step()
    stats = made.stats()
    assert (stats.num_running, stats.num_waiting) == (2, 0)
    assert (stats.prefix_queries, stats.prefix_hits) == (18, 8)
    assert (stats.prompt_tokens, stats.generation_tokens, stats.iteration_tokens) == (18, 3 + 2, 9 + 2 + 2)
    assert stats.iterations == [2, 1, 1] + [0] * 11
    run(made)
    assert made.stats().kv_usage == 0.0
    assert made.stats().generation_tokens == 9
    made.add(make_request("c", [1] * 9, prompt_logprobs=0))
    run(made)
    stats = made.stats()
    assert (stats.prompt_tokens, stats.prefix_queries, stats.prefix_hits) == (27, 18, 8)  # c is not looked up


def test_num_read_counts_steps_that_are_done_and_what_was_cached() -> None:
    made = engine(max_num_tokens=8)
    made.add(make_request("a", [1] * 20, max_tokens=2))
    seen = []
    while made.has_work():
        made.step()
        seen.append(made.num_read("a"))
    assert seen == [0, 8, 16, 20, 0]
    made.add(make_request("b", [1] * 20, max_tokens=2))
    made.step()
    assert (made.num_read("b"), made.num_read("nobody")) == (16, 0)
    run(made)


def test_calls() -> None:
    made = engine()
    made.add(make_request("a", [1] * 9, max_tokens=3))
    run(made)
    assert len(made.cache.prefix) == 2
    assert made.call("reset_prefix_cache") is True
    assert len(made.cache.prefix) == 0
    assert made.call("check") is True
    assert made.info()["num_gpu_blocks"] == 16
    for name in ("nothing", "_read", "__init__"):
        with pytest.raises(UnsupportedError, match=name):
            made.call(name, {})


def test_check_sees_a_request_that_is_lost() -> None:
    made = engine()
    made.add(make_request("a", [1]))
    made._requests.clear()
    with pytest.raises(ValueError, match="0 live sequences are known, 1 are queued"):
        made.call("check")


def test_close_reaches_the_executor() -> None:
    made = engine()
    closed = []
    made.executor.close = lambda: closed.append(True)  # type: ignore[method-assign]
    made.close()
    assert closed


def test_seeds_of_n_differ_and_fit() -> None:
    for seed in (0, 1, -1, -(2**63), 2**63 - 1):
        seeds = [s.sampling.seed for s in make_sequences(make_request("a", [1], n=128, seed=seed), 0)]
        assert len(set(seeds)) == 128
        assert all(0 <= one < 2**63 for one in seeds)

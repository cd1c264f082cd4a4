"""The engine as a state machine: any interleaving of what callers, devices and faults do leaves every invariant whole.

Hypothesis searches for a short failing sequence; the seeded runs after it make the great number of steps.
"""

from __future__ import annotations

import random

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from simulation import EOS, VOCAB, Shape, World, make_request, simulate

from octavo.base.errors import InputError

MIN_STEPS = 20_000

shapes = st.builds(
    lambda block_size, contexts, max_model_len, spare, **rest: Shape(
        block_size=block_size,
        num_blocks=-(-max_model_len // block_size) * contexts,
        max_model_len=max_model_len,
        max_num_tokens=max(rest["max_num_seqs"], 0 if rest["chunked"] else max_model_len) + spare,
        **rest,
    ),
    block_size=st.sampled_from((2, 3, 4, 8)),
    contexts=st.sampled_from((1, 2, 5)),
    max_model_len=st.sampled_from((12, 24)),
    spare=st.sampled_from((0, 5, 20)),
    max_num_seqs=st.sampled_from((1, 2, 4)),
    policy=st.sampled_from(("fcfs", "priority")),
    chunked=st.booleans(),
    ahead=st.booleans(),
    prefix_caching=st.booleans(),
    max_queued=st.sampled_from((None, 2, 4)),
)


class EngineMachine(RuleBasedStateMachine):
    """World holds the oracle; the rules are its actions."""

    world: World

    @initialize(shape=shapes)
    def start(self, shape: Shape) -> None:
        self.world = World(shape)

    @rule(
        prompt=st.lists(st.integers(0, 1), min_size=1, max_size=11),
        max_tokens=st.integers(1, 12),
        n=st.sampled_from((1, 1, 1, 2, 4)),
        priority=st.integers(-1, 1),
        salt=st.sampled_from(("", "a")),
        ends=st.fixed_dictionaries(
            {},
            optional={
                "stop_token_ids": st.lists(st.integers(0, VOCAB - 1), max_size=2),
                "eos_token_ids": st.just([EOS]),
                "ignore_eos": st.booleans(),
                "min_tokens": st.integers(0, 6),
                "logprobs": st.just(0),
                "prompt_logprobs": st.just(0),
                "temperature": st.just(1.0),
            },
        ),
    )
    def add(
        self, prompt: list[int], max_tokens: int, n: int, priority: int, salt: str, ends: dict[str, object]
    ) -> None:
        max_tokens = min(max_tokens, self.world.shape.max_model_len - len(prompt))
        if "min_tokens" in ends:
            ends["min_tokens"] = min(int(str(ends["min_tokens"])), max_tokens)
        if n > 1:
            ends["temperature"] = 1.0
        name = f"r{len(self.world.names)}"
        self.world.add(
            make_request(name, prompt, max_tokens=max_tokens, n=n, priority=priority, cache_salt=salt, **ends)
        )

    @rule(count=st.integers(1, 6))
    def step(self, count: int) -> None:
        for _ in range(count):
            self.world.step()

    @precondition(lambda self: self.world.names)
    @rule(data=st.data(), index=st.sampled_from(("", ":0", ":1", ":9")))
    def abort(self, data: st.DataObject, index: str) -> None:
        self.world.abort(data.draw(st.sampled_from(self.world.names[-6:])) + index)

    @rule(name=st.sampled_from(("", ":", "nobody", "r0:x", "r0:0:0")))
    def abort_unknown(self, name: str) -> None:
        self.world.abort(name)

    @rule(row=st.integers(-1, 3))
    def fail_a_row(self, row: int) -> None:
        self.world.next_row = row

    @rule(how=st.sampled_from(("early", "late", "finish", "preempting")))
    def fail_a_step(self, how: str) -> None:
        self.world.next_step = how

    @rule()
    def reset_prefix_cache(self) -> None:
        self.world.reset()

    @precondition(lambda self: self.world.names)
    @rule()
    def add_an_id_in_use(self) -> None:
        self.world.add_again(self.world.names[-1])

    @precondition(lambda self: self.world.shape.max_queued is not None)
    @rule()
    def overload(self) -> None:
        for _ in range(self.world.shape.max_queued or 0):
            self.world.add(make_request(f"r{len(self.world.names)}", [0, 1, 1, 0, 1], max_tokens=4))
        assert not self.world.add(make_request("refused", [0], priority=9))

    @rule()
    def crash(self) -> None:
        self.world.crash()

    @rule()
    def drain(self) -> None:
        self.world.drain()

    @invariant()
    def accounted_for(self) -> None:
        if hasattr(self, "world"):
            self.world.check()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.next_row = self.world.next_step = None
            self.world.drain()


EngineMachine.TestCase.settings = settings(
    max_examples=250,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
TestEngineMachine = EngineMachine.TestCase


def test_long_run() -> None:
    """Seeded, so a failure names its seed; short of blocks and rows throughout, so preemption is the rule."""
    steps = preemptions = hits = errors = tokens = 0
    seed = 1000
    while steps < MIN_STEPS:
        seed += 1
        try:
            world = simulate(seed)
        except Exception as error:
            raise AssertionError(f"seed {seed}: {error}") from error
        steps += world.num_steps
        tokens += world.num_tokens
        preemptions += world.last_stats.num_preemptions
        hits += world.num_cached
        errors += world.num_errors
    assert steps >= MIN_STEPS
    assert min(preemptions, hits, errors) > 100, "the run did not meet what it is for"
    assert tokens > MIN_STEPS


@pytest.mark.parametrize("seed", range(20))
def test_another_engine_goes_on_from_what_callers_have(seed: int) -> None:
    """Lost every few steps, short of blocks; the World compares every token with those of a whole run."""
    rng = random.Random(seed)
    world = World(Shape(num_blocks=14, max_num_seqs=4, max_num_tokens=20, max_queued=2 * seed or None))
    for i in range(16):
        prompt = [rng.randint(0, 1) for _ in range(rng.randint(1, 20))]
        n, logprobs = rng.choice((1, 1, 3)), rng.choice((None, 0))
        world.add(
            make_request(
                f"r{i}", prompt, max_tokens=20, n=n, temperature=1.0, logprobs=logprobs, prompt_logprobs=logprobs
            )
        )
    for _ in range(10):
        for _ in range(rng.randint(1, 12)):
            world.step()
        world.crash()
    world.drain()


def test_what_cannot_be_gone_on_from_is_refused() -> None:
    world = World(Shape())
    request = make_request("a", [1], max_tokens=3, n=2, temperature=1.0)
    for emitted in ([], [[1]], [[1], [2], [3]], [None, None], [[1, 2, 3], [1]]):
        with pytest.raises(InputError):
            world.engine.add(request, emitted)
    assert not world.engine.has_work()


@pytest.mark.parametrize("ahead", [True, False])
def test_one_ahead_changes_no_token(ahead: bool) -> None:
    """The same callers, with and without stepping ahead; the World compares every token."""
    world = World(Shape(ahead=ahead, num_blocks=14, max_num_seqs=8, max_num_tokens=20))
    rng = random.Random(5)
    for i in range(32):
        prompt = [rng.randint(0, 1) for _ in range(rng.randint(1, 20))]
        world.add(make_request(f"r{i}", prompt, max_tokens=rng.randint(1, 20)))
    world.drain()
    assert world.last_stats.num_preemptions > 0

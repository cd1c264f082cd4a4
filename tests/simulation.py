"""Requests in, checked outputs out: a World runs the real Engine over a ScriptedExecutor and compares with an oracle.

Every step is audited: the plan's limits and order, the executor's rows and block tables against the engine's own,
each output against what the definition of ScriptedExecutor says. `simulate` drives a World by a seeded random.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import msgspec

from octavo.base.config.config import CacheConfig, SchedulerConfig
from octavo.base.errors import InputError, OverloadedError, RequestFailedError
from octavo.base.types.output import Output
from octavo.base.types.plan import RowStep, StepPlan, TokenLogprobs
from octavo.base.types.request import Request
from octavo.base.types.sampling import SamplingParams
from octavo.engine.engine import Engine
from octavo.engine.fake import ScriptedExecutor, continue_tokens, mix, score
from octavo.engine.grammar.grammar import Grammars
from octavo.engine.sequence import Sequence, Status, make_sequences

VOCAB = 7
EOS = 6


@dataclass(frozen=True)
class Shape:
    """The engine's options, as small as they may be."""

    block_size: int = 4
    num_blocks: int = 16
    max_model_len: int = 40
    max_num_seqs: int = 4
    max_num_tokens: int = 16
    max_mixed_tokens: int | None = None
    policy: str = "fcfs"
    chunked: bool = True
    ahead: bool = True
    prefix_caching: bool = True
    max_queued: int | None = None


def make_engine(shape: Shape, executor: ScriptedExecutor, grammars: Grammars | None = None) -> Engine:
    """The real engine. Block sizes below the smallest that a user may choose are meant: more happens in fewer steps."""
    return Engine(
        executor,
        scheduler=SchedulerConfig(
            max_num_seqs=shape.max_num_seqs,
            max_num_batched_tokens=shape.max_num_tokens,
            max_num_mixed_tokens=shape.max_mixed_tokens,
            enable_chunked_prefill=shape.chunked,
            scheduling_policy=shape.policy,  # type: ignore[arg-type]
            async_scheduling=shape.ahead,
            max_num_queued_reqs=shape.max_queued,
        ),
        cache=CacheConfig(block_size=shape.block_size, enable_prefix_caching=shape.prefix_caching),  # type: ignore[arg-type]
        num_blocks=shape.num_blocks,
        max_model_len=shape.max_model_len,
        grammars=grammars,
    )


def make_request(name: str, prompt: list[int], **fields: Any) -> Request:
    """A request; fields of Request or SamplingParams by name. Greedy unless it says otherwise."""
    own = {key: fields.pop(key) for key in ("eos_token_ids", "priority", "cache_salt") if key in fields}
    fields.setdefault("temperature", 0.0)
    fields.setdefault("max_tokens", 8)
    seed = fields.pop("seed", 1)
    params = SamplingParams(**fields)
    return Request(
        request_id=name, prompt_token_ids=prompt, params=params, max_tokens=params.max_tokens or 1, seed=seed, **own
    )


def oracle(request: Request, index: int) -> tuple[list[int], str, int | None]:
    """Tokens, finish_reason and stop_reason of one sequence, from the definitions alone."""
    params = request.params
    seed = None if params.temperature == 0 else make_sequences(request, 0)[index].sampling.seed
    tokens = continue_tokens(request.prompt_token_ids, request.max_tokens, vocab_size=VOCAB, seed=seed)
    for count, token in enumerate(tokens, 1):
        if count < params.min_tokens:
            continue
        if token in request.eos_token_ids and not params.ignore_eos:
            return tokens[:count], "stop", None
        if token in (params.stop_token_ids or []):
            return tokens[:count], "stop", token
    return tokens, "length", None


@dataclass
class Followed:
    """One sequence as the caller sees it, beside what it must come to."""

    request: Request
    index: int
    order: int
    tokens: list[int]
    finish: str
    stop: int | None
    scores: list[float]
    got: list[int] = field(default_factory=list)
    ended: str | None = None

    @property
    def key(self) -> tuple[str, int]:
        return self.request.request_id, self.index


class AuditedExecutor(ScriptedExecutor):
    """Shows each plan to the World before and after it is carried out, and fails where the World says so."""

    def __init__(self, world: World) -> None:
        shape = world.shape
        super().__init__(
            num_blocks=shape.num_blocks,
            block_size=shape.block_size,
            vocab_size=VOCAB,
            seeded=True,
            fail_row=world.row_fails,
            fail_step=world.step_fails,
        )
        self.world = world

    def begin(self, plan: StepPlan) -> None:
        fault = self.world.take_begin_fault(plan)
        self.world.audit(self.world.check_plan, plan)
        if fault == "early":
            raise RequestFailedError("scripted failure before the plan is carried out")
        super().begin(plan)
        self.plans.clear()
        self.world.audit(self.world.check_rows, plan)
        if fault == "late":
            self._results.pop()
            raise RequestFailedError("scripted failure after the plan is carried out")


class World:
    """An engine, its callers, and everything that must hold between them."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.executor = AuditedExecutor(self)
        self.engine = make_engine(shape, self.executor)
        self.followed: dict[tuple[str, int], Followed] = {}
        self.names: list[str] = []
        self.resumed: set[str] = set()
        self.prefixes: Counter[tuple[str, tuple[int, ...]]] = Counter()
        self.doomed: set[tuple[str, int]] = set()
        self.num_steps = self.num_tokens = self.num_errors = self.num_cached = self.quiet = 0
        self.next_row: int | None = None
        self.next_step: str | None = None
        self.broken: AssertionError | None = None
        self.before: dict[int, Status] = {}
        self.held: list[Sequence] = []
        self.last_stats = self.engine.stats()

    # ---- what callers do

    def add(self, request: Request) -> bool:
        """Queue it, unless the engine refuses: then it must have reason to."""
        waiting = len({seq.request.request_id for seq in self.engine.scheduler.waiting})
        bound = self.shape.max_queued
        full = bound is not None and waiting >= max(bound, 1)
        least = self._least_urgent(request) if full else None
        told: list[Output] = []
        try:
            self.engine.add(request, tell=told.extend)
        except OverloadedError:
            assert full, "refused though the queue has room"
            assert least is None, "refused though a less urgent one waits"
            return False
        assert not full or least is not None, "taken though the queue is full"
        for out in told:
            assert (out.request_id, out.error_kind, out.retry_after > 0) == (least, "OverloadedError", True)
            self.followed[out.request_id, out.index].ended = "refused"
        assert [f.ended for f in self.followed.values() if f.request.request_id == least] == ["refused"] * len(told)
        self.names.append(request.request_id)
        assert len({seq.sampling.seed for seq in make_sequences(request, 0)}) == request.params.n
        known: set[tuple[int, ...]] = set()
        for index in range(request.params.n):
            tokens, finish, stop = oracle(request, index)
            scores = _scores(request.prompt_token_ids + tokens)
            followed = Followed(request, index, len(self.names), tokens, finish, stop, scores)
            self.followed[followed.key] = followed
            whole, size = request.prompt_token_ids + tokens, self.shape.block_size
            known |= {tuple(whole[:end]) for end in range(size, len(whole) + 1, size)}
        self.prefixes.update((request.cache_salt, prefix) for prefix in known)
        return True

    def _least_urgent(self, request: Request) -> str | None:
        """Who has to give way to it: of those of whom nothing has begun, the last of all, if it is less urgent."""
        begun = {seq.request.request_id for seq in self.engine.scheduler.running} | self.resumed
        begun |= {f.request.request_id for f in self.followed.values() if f.got or f.ended is not None}
        begun |= {seq.request.request_id for seq in self.engine.scheduler.waiting if seq.times.scheduled}
        fresh = [seq for seq in self.engine.scheduler.waiting if seq.request.request_id not in begun]
        last = max(fresh, key=self._urgency, default=None)
        if last is None or self.shape.policy != "priority" or last.request.priority <= request.priority:
            return None
        return last.request.request_id

    def add_again(self, name: str) -> None:
        """A request id in use is refused and changes nothing."""
        live = [f for f in self.followed.values() if f.request.request_id == name and f.ended is None]
        if live:
            try:
                self.engine.add(make_request(name, [0]))
            except InputError:
                return
            raise AssertionError("a request id in use was taken")

    def abort(self, name: str) -> None:
        """Nothing more may come of it, and it holds nothing from now on."""
        self.engine.abort([name])
        for followed in self.followed.values():
            request_id = followed.request.request_id
            if followed.ended is None and name in (request_id, f"{request_id}:{followed.index}"):
                followed.ended = "abort"
        live = {_key(seq) for queue in self._queues() for seq in queue}
        assert live == {key for key, followed in self.followed.items() if followed.ended is None}, "abort was lost"

    def step(self) -> list[Output]:
        """One step of the engine, all its outputs checked, then every invariant."""
        self.held = [seq for queue in self._queues() for seq in queue]
        self.before = {id(seq): seq.status for seq in self.held}
        outputs = self.engine.step()
        if self.broken is not None:
            raise self.broken
        for out in outputs:
            self._take(out)
        self.quiet = 0 if outputs or not self.engine.has_work() else self.quiet + 1
        assert self.quiet <= self.shape.max_model_len + 8, "no progress"
        self.check()
        return outputs

    def drain(self) -> None:
        """Run until nothing is left; then everything is given back and everyone has had an answer."""
        while self.engine.has_work():
            self.step()
        assert not [followed.key for followed in self.followed.values() if followed.ended is None], "never answered"
        assert self.engine.cache.pool.num_free == self.shape.num_blocks
        assert self.engine.stats().kv_usage == 0.0
        assert self.engine.stats().num_running == self.engine.stats().num_waiting == 0
        assert not self.engine._requests
        assert not self.executor._results

    def reset(self) -> None:
        """Forget the prefix cache, and the finished with it."""
        assert self.engine.call("reset_prefix_cache") is True
        assert len(self.engine.cache.prefix) == 0

    def crash(self) -> None:
        """The engine is lost, with what it had not told yet; another one goes on from what callers have."""
        self.executor = AuditedExecutor(self)
        self.engine = make_engine(self.shape, self.executor)
        self.last_stats, self.num_tokens, self.quiet = self.engine.stats(), 0, 0
        self.doomed = {key for key in self.doomed if self.followed[key].ended is not None}
        going_on = {f.request.request_id: f.request for f in self.followed.values() if f.ended is None}
        self.resumed |= going_on.keys()
        for name, request in going_on.items():
            all_n = [self.followed[name, index] for index in range(request.params.n)]
            self.engine.add(request, [None if f.ended is not None else list(f.got) for f in all_n])
        self.check()

    # ---- faults to come

    def take_begin_fault(self, plan: StepPlan) -> str | None:
        self.num_steps += 1
        preempted = any(s.status is Status.WAITING and self.before[id(s)] is Status.RUNNING for s in self.held)
        if self.next_step == "preempting" and preempted:
            self.next_step = "early"
        if self.next_step not in ("early", "late"):
            return None
        fault, self.next_step = self.next_step, None
        self._doom(plan)
        return fault

    def step_fails(self, plan: StepPlan) -> bool:
        if self.next_step != "finish":
            return False
        self.next_step = None
        self._doom(plan)
        return True

    def row_fails(self, plan: StepPlan, row: RowStep) -> str | None:
        if self.next_row is None or plan.rows[self.next_row % len(plan.rows)] is not row:
            return None
        self.next_row = None
        self.doomed.add(_key(self._by_row()[row.row]))
        return "scripted failure of a row"

    def _doom(self, plan: StepPlan) -> None:
        rows = self._by_row()
        self.doomed |= {_key(rows[row.row]) for row in plan.rows}

    # ---- what must hold

    def audit(self, check: Any, plan: StepPlan) -> None:
        """The engine takes an executor's exception for a failed step, so violations are kept for `step` to raise."""
        try:
            check(plan)
        except AssertionError as error:
            self.broken = self.broken or error

    def check_plan(self, plan: StepPlan) -> None:
        """Limits, and who goes first."""
        rows = [row.row for row in plan.rows]
        assert rows
        assert len(set(rows)) == len(rows) <= self.shape.max_num_seqs
        assert plan.num_tokens <= self.shape.max_num_tokens, "over budget"
        assert all(row.count >= 1 for row in plan.rows)
        assert {begin.row for begin in plan.begins} <= set(rows)
        assert len({to for _, to in plan.copies}) == len(plan.copies)
        assert len(set(plan.ended)) == len(plan.ended)
        assert self.shape.chunked or all(row.sample for row in plan.rows), "a prompt was split"
        owner = self._by_row()
        assert not [s for row, s in owner.items() if row not in rows and s.num_remaining == 1], "one stands still"
        scheduled = [self._urgency(owner[row]) for row in rows]
        begun = [self._urgency(owner[begin.row]) for begin in plan.begins]
        waiting = [seq for seq in self.held if seq.status is Status.WAITING]
        preempted = [self._urgency(s) for s in waiting if self.before[id(s)] is Status.RUNNING]
        passed = [self._urgency(s) for s in waiting if self.before[id(s)] is Status.WAITING and _ready(s)]
        assert not preempted or max(scheduled) < min(preempted), "not the least urgent was preempted"
        assert not (preempted and begun), "begun while others are preempted"
        assert not (begun and passed) or max(begun) < min(passed), "a more urgent one was passed over"

    def check_rows(self, _: StepPlan) -> None:
        """The executor's rows and block tables are the engine's."""
        owner = self._by_row()
        assert set(self.executor._rows) == set(owner), "rows differ"
        for row, seq in owner.items():
            held = self.executor._rows[row]
            assert held.blocks == seq.blocks, f"row {row}: block tables differ"
            assert held.tokens[: seq.num_tokens] == seq.tokens, f"row {row}: tokens differ"

    def check(self) -> None:
        """Between steps."""
        self.engine.check()
        for queue in self._queues():
            for seq in queue:
                assert 0 <= seq.num_pending <= 2
                assert seq.num_computed == 0 or seq.status is Status.RUNNING
                assert seq.num_confirmed <= seq.num_computed <= seq.num_tokens + seq.num_pending
        now, last = self.engine.stats(), self.last_stats
        assert 0.0 <= now.kv_usage <= 1.0
        assert now.generation_tokens == self.num_tokens
        for name in ("step", "prefix_queries", "prefix_hits", "num_preemptions", "prompt_tokens"):
            assert getattr(now, name) >= getattr(last, name)
        self.last_stats = now

    def _take(self, out: Output) -> None:
        followed = self.followed[out.request_id, out.index]
        assert followed.ended is None, f"output after the end ({followed.ended})"
        at = len(followed.got)
        followed.got += out.token_ids
        self.num_tokens += len(out.token_ids)
        assert followed.got == followed.tokens[: len(followed.got)], "wrong tokens"
        if out.finish_reason == "error":
            assert followed.key in self.doomed, f"failed without a fault: {out.error}"
            assert not out.token_ids
            assert out.error
            assert out.error_kind == "RequestFailedError"
            self.num_errors += 1
        elif out.finish_reason is not None:
            assert followed.got == followed.tokens
            assert (out.finish_reason, out.stop_reason) == (followed.finish, followed.stop)
        else:
            assert out.token_ids
            assert len(followed.got) < len(followed.tokens), "not ended in time"
        followed.ended = out.finish_reason
        self._check_scores(followed, out, at)
        self._check_cached(followed, out)

    def _check_scores(self, followed: Followed, out: Output, at: int) -> None:
        params, prompt = followed.request.params, followed.request.prompt_token_ids
        asked = params.logprobs is not None and bool(out.token_ids)
        found = [(e.token_ids, e.logprobs) for e in out.logprobs or []]
        expected = [([token], [followed.scores[len(prompt) + at + i - 1]]) for i, token in enumerate(out.token_ids)]
        assert found == (expected if asked else [])
        first = at == 0 and bool(out.token_ids) and followed.index == 0 and params.prompt_logprobs is not None
        whole = [None] + [TokenLogprobs([prompt[p]], [followed.scores[p - 1]], 1) for p in range(1, len(prompt))]
        assert out.prompt_logprobs == (whole if first else None)

    def _check_cached(self, followed: Followed, out: Output) -> None:
        """Prefixes are found only where another request with the same salt has had them, or another of the n."""
        if not out.num_cached_tokens:
            return
        assert self.shape.prefix_caching
        prompt, size = followed.request.prompt_token_ids, self.shape.block_size
        assert out.num_cached_tokens % size == 0 or out.num_cached_tokens == len(prompt)
        prefix = tuple(prompt[: out.num_cached_tokens // size * size])
        others = 1 if followed.index else 2
        assert self.prefixes[followed.request.cache_salt, prefix] >= others, "a prefix was found that nobody else had"
        self.num_cached += 1

    def _queues(self) -> tuple[Any, Any]:
        return self.engine.scheduler.waiting, self.engine.scheduler.running

    def _by_row(self) -> dict[int, Sequence]:
        return {seq.row: seq for seq in self.engine.scheduler.running}

    def _urgency(self, seq: Sequence) -> tuple[int, int, int]:
        followed = self.followed[_key(seq)]
        return followed.request.priority if self.shape.policy == "priority" else 0, followed.order, followed.index


def _key(seq: Sequence) -> tuple[str, int]:
    return seq.request.request_id, seq.index


def _ready(seq: Sequence) -> bool:
    return not seq.num_pending and (seq.parent is None or seq.parent.status is Status.FINISHED)


def _scores(tokens: list[int]) -> list[float]:
    state, scores = 0, []
    for token in tokens:
        state = mix(state, token)
        scores.append(score(state))
    return scores


# ---- a seeded run


def random_shape(rng: random.Random) -> Shape:
    """Options at which blocks, rows and tokens are all short."""
    block_size = rng.choice((1, 2, 3, 4, 8))
    max_model_len = rng.choice((12, 24, 40))
    contexts = rng.choice((1.0, 1.5, 2.5, 6.0, 6.0))
    max_num_seqs = rng.choice((1, 2, 4, 8))
    chunked = rng.random() < 0.6
    least = max_num_seqs if chunked else max_model_len
    return Shape(
        block_size=block_size,
        num_blocks=int(-(-max_model_len // block_size) * contexts),
        max_model_len=max_model_len,
        max_num_seqs=max_num_seqs,
        max_num_tokens=least + rng.choice((0, 3, 20)),
        max_mixed_tokens=max_num_seqs + rng.choice((0, 3)) if chunked and rng.random() < 0.5 else None,
        policy=rng.choice(("fcfs", "priority")),
        chunked=chunked,
        ahead=rng.random() < 0.7,
        prefix_caching=rng.random() < 0.75,
        max_queued=rng.choice((None, None, 3, 6)),
    )


def random_request(rng: random.Random, name: str, shape: Shape) -> Request:
    """Prompts over two tokens and with common beginnings, so that prefixes meet."""
    longest = shape.max_model_len - 1
    stem = [0, 1, 0, 0, 1, 1, 0, 1, 0, 1] * 4
    kept = rng.randint(0, longest)
    prompt = (stem[:kept] + [rng.randint(0, 1) for _ in range(rng.randint(0, 3))])[:longest] or [0]
    room = shape.max_model_len - len(prompt)
    max_tokens = rng.randint(1, min(room, 12)) if rng.random() < 0.9 else room
    fields: dict[str, Any] = {"max_tokens": max_tokens, "ignore_eos": rng.random() < 0.2}
    if rng.random() < 0.4:
        fields |= {"temperature": 1.0, "n": rng.choice((1, 2, 3, 5)), "seed": rng.randint(0, 2**62)}
    if rng.random() < 0.3:
        fields["stop_token_ids"] = [rng.randrange(VOCAB)]
    if rng.random() < 0.2:
        fields["min_tokens"] = rng.randint(0, max_tokens)
    if rng.random() < 0.15:
        fields["prompt_logprobs"] = 0
    if rng.random() < 0.15:
        fields["logprobs"] = 0
    return make_request(
        name,
        prompt,
        eos_token_ids=[EOS] if rng.random() < 0.5 else [],
        priority=rng.randint(0, 2),
        cache_salt=rng.choice(("", "", "a", "b")),
        **fields,
    )


def fail_beside_twin(world: World, rng: random.Random) -> None:
    """A prompt's first step fails while another request of the same prompt begins: it must find nothing of it."""
    request = random_request(rng, f"r{len(world.names)}", world.shape)
    if not world.add(request):
        return
    if rng.random() < 0.5:
        world.next_row = -1  # the last row of a plan is the one just begun
    else:
        world.next_step = "finish"
    world.step()
    name = f"r{len(world.names)}"
    world.add(msgspec.structs.replace(request, request_id=name))
    world.step()


def simulate(seed: int, *, num_steps: int = 300, faults: bool = True) -> World:
    """A world of random options and callers, about so many steps long, drained at the end."""
    rng = random.Random(seed)
    world = World(random_shape(rng))
    crowd = rng.choice((0.2, 0.5, 0.9))
    while world.num_steps < num_steps:
        act = rng.random()
        if act < crowd * 0.5:
            world.add(random_request(rng, f"r{len(world.names)}" + rng.choice(("", ":0")), world.shape))
        elif act < crowd * 0.5 + 0.03 and world.names:
            name = rng.choice(world.names[-8:])
            world.abort(rng.choice((name, name + ":0", name + ":1", "nobody", ":", "")))
        elif act < crowd * 0.5 + 0.04 and faults:
            world.next_row = rng.randrange(8)
        elif act < crowd * 0.5 + 0.05 and faults:
            world.next_step = rng.choice(("early", "late", "finish", "preempting"))
        elif act < crowd * 0.5 + 0.07 and faults:
            fail_beside_twin(world, rng)
        elif act < crowd * 0.5 + 0.075:
            world.reset()
        elif act < crowd * 0.5 + 0.08 and world.names:
            world.add_again(world.names[-1])
        else:
            world.step()
            if not world.engine.has_work():
                world.add(random_request(rng, f"r{len(world.names)}", world.shape))
        world.check()
    world.next_row = world.next_step = None
    world.drain()
    return world

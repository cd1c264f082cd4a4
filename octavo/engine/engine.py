"""Engine: Requests in, Outputs out; the loop that plans, launches and reads steps, one step ahead of the results."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable
from typing import Any

from octavo.base import faults
from octavo.base.config.config import CacheConfig, SchedulerConfig
from octavo.base.config.resolve import DEFAULT_BLOCK_SIZE
from octavo.base.errors import ConfigError, InputError, NumericalError, OverloadedError
from octavo.base.types.messages import ITERATION_SIZES, EngineStats
from octavo.base.types.output import Output
from octavo.base.types.ports import Executor
from octavo.base.types.request import Request
from octavo.base.types.sampling import INT64
from octavo.engine.cache.manager import CacheManager
from octavo.engine.grammar.constraints import Constraints
from octavo.engine.grammar.grammar import Grammars
from octavo.engine.retry import QueueRate
from octavo.engine.scheduler import Limits, Scheduled, Scheduler
from octavo.engine.sequence import Sequence, Status, make_sequences
from octavo.engine.update import fail, fail_step, split_rows, take_rows

Tell = Callable[[list[Output]], None]


class Engine:
    """One model's requests. No threads, no text, no arrays: `step` is to be called while `has_work`.

    With async_scheduling a step is launched before the one before it is read, so a sequence found ended one step
    late has one token thrown away.
    """

    def __init__(
        self,
        executor: Executor,
        *,
        scheduler: SchedulerConfig,
        cache: CacheConfig,
        num_blocks: int,
        max_model_len: int,
        grammars: Grammars | None = None,
    ) -> None:
        """grammars: what compiles structured outputs; without it they are refused."""
        max_num_tokens = scheduler.max_num_batched_tokens or max(2048, max_model_len)
        block_size = cache.block_size or DEFAULT_BLOCK_SIZE
        _check_sizes(block_size, num_blocks, max_model_len, max_num_tokens, scheduler.enable_chunked_prefill)
        self.executor = executor
        self.max_model_len = max_model_len
        self.cache = CacheManager(
            num_blocks=num_blocks,
            block_size=block_size,
            enable_prefix_caching=cache.enable_prefix_caching,
        )
        limits = Limits(
            max_num_seqs=scheduler.max_num_seqs,
            max_num_tokens=max_num_tokens,
            max_mixed_tokens=min(scheduler.max_num_mixed_tokens or max_num_tokens, max_num_tokens),
            chunked=scheduler.enable_chunked_prefill,
            policy=scheduler.scheduling_policy,
        )
        self.scheduler = Scheduler(limits, self.cache)
        self._constraints = Constraints(self.scheduler, grammars)
        self._depth = 2 if scheduler.async_scheduling else 1
        self._max_queued = scheduler.max_num_queued_reqs
        self._queue_rate = QueueRate()
        self._in_flight: deque[Scheduled] = deque()
        self._requests: dict[str, list[Sequence]] = {}
        self._order = 0
        self._generation_tokens = self._iteration_tokens = self._numerical_errors = 0
        self._iterations = [0] * (len(ITERATION_SIZES) + 1)

    def add(self, request: Request, emitted: list[list[int] | None] | None = None, *, tell: Tell | None = None) -> None:
        """Queue a request. InputError: it can never run here. OverloadedError: the queue is full.

        emitted: as in messages.Add; such a request was let in before, and is let in however full the queue is.
        tell: gets the end of a less urgent one that gives way where the queue is full; without it none does.
        """
        if request.request_id in self._requests:
            raise InputError(f"request id {request.request_id!r} is in use", param="request_id")
        _check_request(request, self.max_model_len)
        if emitted is not None:
            _check_emitted(request, emitted)
        full = emitted is None and self._max_queued is not None and self.num_waiting >= max(self._max_queued, 1)
        least = self._least_urgent(request) if full and tell is not None else []
        if full and not least:
            raise OverloadedError(f"{self.num_waiting} requests are waiting", retry_after=self._retry_after())
        self._queue_rate.note(self.scheduler.num_prompt_tokens, empty=not len(self.scheduler.waiting))
        self._order += 1
        sequences = make_sequences(request, self._order, emitted)
        self._constraints.begin(sequences)
        if least and tell is not None:
            tell(self._refuse(least))
        self._requests[request.request_id] = sequences
        for seq in sequences:
            self.scheduler.add(seq)

    def _least_urgent(self, request: Request) -> list[Sequence]:
        """The least urgent that waits and has not begun; nothing where it is as urgent as this one."""
        if self.scheduler.limits.policy == "priority":
            for seq in reversed(self.scheduler.waiting):
                if seq.request.priority <= request.priority:
                    break
                group = self._requests[seq.request.request_id]
                if not any(map(_has_begun, group)):
                    return group
        return []

    def _refuse(self, group: list[Sequence]) -> list[Output]:
        """End a request that was queued, as one that comes too late ends."""
        reason, seconds = f"{self.num_waiting} requests are waiting, and a more urgent one came", self._retry_after()
        outputs = [fail(self.scheduler, seq, reason, kind=OverloadedError.__name__) for seq in group]
        for out in outputs:
            out.retry_after = seconds
        return self._account(outputs)

    def abort(self, request_ids: list[str]) -> None:
        """Forget requests ("id") or single sequences ("id:index") in any state; unknown ones are passed over."""
        for name in request_ids:
            if name in self._requests:
                for seq in self._requests[name]:
                    self.scheduler.finish(seq)
                del self._requests[name]
                continue
            request_id, _, index = name.rpartition(":")
            for seq in self._requests.get(request_id, []):
                if str(seq.index) == index:
                    self.scheduler.finish(seq)
                    self._drop_if_done(request_id)

    def has_work(self) -> bool:
        """True while a call of `step` can bring something."""
        return bool(self._in_flight or len(self.scheduler.waiting) or len(self.scheduler.running))

    def step(self, tell: Tell | None = None) -> list[Output]:
        """Launch the next step if there is one, then read the oldest where it is due.

        tell: gets first tokens as soon as they are known; they are not returned then.
        """
        outputs = self._account(self._constraints.settle())
        scheduled = self.scheduler.schedule()
        if scheduled is None:
            if not self._in_flight:
                self._constraints.pause()
                return outputs
            return outputs + self._read(tell)
        try:
            if faults.ON:
                faults.hit("allocated")
            self.executor.begin(scheduled.plan)
        except Exception as error:  # one step's fault ends its own requests, not the engine
            self.scheduler.undo(scheduled)
            return outputs + self._account(fail_step(self.scheduler, scheduled, error))
        self._in_flight.append(scheduled)
        if faults.ON:
            faults.hit("begun")
        num_tokens = scheduled.plan.num_tokens
        self._iteration_tokens += num_tokens
        self._iterations[bisect_left(ITERATION_SIZES, num_tokens)] += 1
        if len(self._in_flight) > 1:  # the step before
            outputs += self._read(tell)
        if scheduled.plan.masked:
            outputs += self._mask(scheduled)
        if self._depth == 1:
            outputs += self._read(tell)
        return outputs

    def _mask(self, scheduled: Scheduled) -> list[Output]:
        """Give the step that was begun last its masks: what came before it was read, so grammars are up to date."""
        outputs: list[Output] = []
        try:
            self.executor.mask(self._constraints.masks(scheduled, outputs))
        except Exception as error:  # as above; the step is read in its turn
            outputs += fail_step(self.scheduler, scheduled, error)
        return self._account(outputs)

    def _read(self, tell: Tell | None) -> list[Output]:
        scheduled = self._in_flight.popleft()
        try:
            result = self.executor.finish()
            if faults.ON:
                faults.hit("finish")
            first, others = split_rows(scheduled, result)
        except Exception as error:
            return self._account(fail_step(self.scheduler, scheduled, error))
        outputs = self._account(take_rows(self.scheduler, result, first))
        if tell is not None and outputs and others:
            tell(outputs)
            outputs = []
        return outputs + self._account(take_rows(self.scheduler, result, others))

    def _account(self, outputs: list[Output]) -> list[Output]:
        for out in outputs:
            self._generation_tokens += len(out.token_ids)
            if out.finish_reason is not None:
                self._numerical_errors += out.error_kind == NumericalError.__name__
                self._drop_if_done(out.request_id)
        return outputs

    def _drop_if_done(self, request_id: str) -> None:
        sequences = self._requests.get(request_id)
        if sequences is not None and all(seq.status is Status.FINISHED for seq in sequences):
            del self._requests[request_id]

    @property
    def num_waiting(self) -> int:
        """Requests of which any sequence waits, whatever runs of them; `stats` and the metrics count sequences."""
        return self.scheduler.waiting.num_requests

    def num_read(self, request_id: str) -> int:
        """Tokens of a request's first sequence that steps have run, or that were found cached; 0 where it has ended."""
        sequences = self._requests.get(request_id)
        return sequences[0].num_confirmed if sequences else 0

    def _retry_after(self) -> int:
        """Seconds until what waits now has begun, at the rate of late.

        Before there is one, a coarse guess of one second per four full batches that wait.
        """
        tokens = sum(seq.num_tokens for seq in self.scheduler.waiting if seq.parent is None)
        measured = self._queue_rate.seconds(tokens, self.scheduler.num_prompt_tokens)
        if measured is not None:
            return measured
        return 1 + len(self.scheduler.waiting) // (4 * self.scheduler.limits.max_num_seqs)

    def stats(self) -> EngineStats:
        """The engine at this moment."""
        return EngineStats(
            step=self.scheduler.num_steps,
            num_running=len(self.scheduler.running),
            num_waiting=len(self.scheduler.waiting),
            kv_usage=self.cache.usage,
            prefix_queries=self.cache.prefix_queries,
            prefix_hits=self.cache.prefix_hits,
            num_preemptions=self.scheduler.num_preemptions,
            prompt_tokens=self.scheduler.num_prompt_tokens,
            generation_tokens=self._generation_tokens,
            iteration_tokens=self._iteration_tokens,
            numerical_errors=self._numerical_errors,
            num_deferred=self._constraints.num_deferred,
            iterations=self._iterations.copy(),
        )

    def info(self) -> dict[str, Any]:
        """What does not change: sizes for callers and metrics."""
        return {
            "max_model_len": self.max_model_len,
            "block_size": self.cache.block_size,
            "num_gpu_blocks": self.cache.pool.num_blocks,
            "enable_prefix_caching": self.cache.enable_prefix_caching,
            "max_num_seqs": self.scheduler.limits.max_num_seqs,
            "max_num_batched_tokens": self.scheduler.limits.max_num_tokens,
        }

    def call(self, name: str, arguments: dict[str, Any] | None = None) -> Any:
        """Rare things by name: reset_prefix_cache, check; others go to the executor."""
        if name == "reset_prefix_cache":
            self.cache.reset_prefix_cache()
            return True
        if name == "check":
            self.check()
            return True
        return self.executor.call(name, **(arguments or {}))

    def check(self) -> None:
        """ValueError unless every block and row is accounted for and every request is queued, running or done."""
        self.scheduler.check()
        alive = {id(seq) for queue in (self.scheduler.waiting, self.scheduler.running) for seq in queue}
        known = {id(seq) for group in self._requests.values() for seq in group if seq.status is not Status.FINISHED}
        if alive != known:
            raise ValueError(f"{len(known)} live sequences are known, {len(alive)} are queued or running")

    def close(self) -> None:
        """End the executor; idempotent."""
        self._constraints.close()
        self.executor.close()


def _has_begun(seq: Sequence) -> bool:
    return seq.let_in_before or bool(seq.times.scheduled) or seq.status is Status.FINISHED


def _check_request(request: Request, max_model_len: int) -> None:
    """InputError for what could never run, or what no executor could take: ids that are no 64-bit naturals."""
    ids = request.prompt_token_ids
    if not ids:
        raise InputError("the prompt is empty; at least one token is needed", param="prompt")
    if min(ids) < 0 or max(ids) >= INT64:
        wrong = min(ids) if min(ids) < 0 else max(ids)
        raise InputError(f"the prompt holds {wrong}; token ids are integers from 0", param="prompt")
    if request.max_tokens < 1 and request.pooling is None:
        raise InputError(f"max_tokens must be 1 or above, got {request.max_tokens}", param="max_tokens")
    if len(ids) + request.max_tokens > max_model_len:
        raise InputError(
            f"a prompt of {len(ids)} tokens and max_tokens {request.max_tokens} do not fit the context of "
            f"{max_model_len} tokens; shorten the prompt or lower max_tokens",
            param="max_tokens",
        )


def _check_emitted(request: Request, emitted: list[list[int] | None]) -> None:
    """InputError unless there is something to go on from, of every sequence, and something to come."""
    going_on = [tokens for tokens in emitted if tokens is not None]
    if len(emitted) != request.params.n or not going_on or (request.pooling is not None and any(going_on)):
        raise InputError(f"the outputs of {request.params.n} sequences are needed, at least one of which goes on")
    if request.pooling is None and max(map(len, going_on)) >= request.max_tokens:
        raise InputError(f"a sequence has max_tokens={request.max_tokens} outputs already", param="max_tokens")


def _check_sizes(block_size: int, num_blocks: int, max_model_len: int, max_num_tokens: int, chunked: bool) -> None:
    if num_blocks * block_size < max_model_len:
        raise ConfigError(
            f"the cache holds {num_blocks * block_size} tokens, less than one context of {max_model_len}; "
            "lower --max-model-len or raise --kv-cache-memory-bytes",
            param="max_model_len",
        )
    if not chunked and max_num_tokens < max_model_len:
        raise ConfigError(
            f"without chunked prefill --max-num-batched-tokens ({max_num_tokens}) must reach --max-model-len "
            f"({max_model_len})",
            param="max_num_batched_tokens",
        )

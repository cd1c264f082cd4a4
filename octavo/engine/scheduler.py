"""Scheduler: waiting and running sequences in, one StepPlan out. No prefill phase, no decode phase: each step moves
every scheduled sequence's num_computed toward its number of tokens."""

from __future__ import annotations

import time
from dataclasses import dataclass

from octavo.base.types.plan import RowBegin, RowStep, StepPlan
from octavo.engine.cache.manager import CacheManager
from octavo.engine.policy import POLICIES, SequenceQueue
from octavo.engine.sequence import Sequence, Status

Chosen = list[tuple[Sequence, int, int]]
"""Sequences, how many tokens of each to run, and in which of their lives."""


@dataclass(frozen=True)
class Scheduled:
    """A plan, kept until its result is read, and parallel to its rows whom they belong to."""

    plan: StepPlan
    chosen: Chosen


@dataclass(frozen=True)
class Limits:
    """Resolved limits of a step. max_num_tokens: over all rows; max_mixed_tokens: where any of them decodes.
    chunked: a prompt may be split over steps."""

    max_num_seqs: int
    max_num_tokens: int
    max_mixed_tokens: int
    chunked: bool
    policy: str


class Scheduler:
    """Running sequences go first, in the policy's order; when blocks run out the least urgent is preempted (its
    blocks are freed and recomputed later), so the most urgent always moves. Of the step's tokens those that decode have
    one each, whatever prompts go before them. Then waiting ones are admitted.
    """

    def __init__(self, limits: Limits, cache: CacheManager) -> None:
        self.limits = limits
        self.cache = cache
        self.waiting = SequenceQueue(POLICIES[limits.policy])
        self.running = SequenceQueue(POLICIES[limits.policy])
        self.num_preemptions = 0
        self.num_steps = 0
        self.num_prompt_tokens = 0
        self._free_rows = list(range(limits.max_num_seqs - 1, -1, -1))
        self._ended_rows: set[int] = set()

    def add(self, seq: Sequence) -> None:
        """Queue a new sequence."""
        self.waiting.add(seq)

    def finish(self, seq: Sequence, *, failed: bool = False) -> None:
        """Take a sequence out in whatever state it is; its row and blocks are free at once. Idempotent."""
        if seq.status is Status.RUNNING:
            self._release(seq, failed=failed)
            self.running.remove(seq)
        elif seq.status is Status.WAITING:
            self.waiting.remove(seq)
        seq.status = Status.FINISHED

    def schedule(self) -> Scheduled | None:
        """The next step, or None where nothing can run before a result is read."""
        chosen: Chosen = []
        budget, preempted = self._schedule_running(chosen)
        begun = [] if preempted else self._admit_waiting(chosen, budget)
        if not chosen:
            return None
        updates, copies = self.cache.take_changes()
        # copies: a backend may read the plan later, on a thread of its own, while these lists grow
        begins = [
            RowBegin(s.row, s.tokens.copy(), s.num_prompt, s.blocks.copy(), s.row_sampling, s.request.pooling)
            for s in begun
        ]
        ended, self._ended_rows = list(self._ended_rows), set()
        self.num_steps += 1
        rows, masked = _advance(chosen)
        plan = StepPlan(
            step=self.num_steps,
            rows=rows,
            begins=begins,
            updates=updates,
            ended=ended,
            copies=copies,
            masked=masked,
        )
        return Scheduled(plan, chosen)

    def undo(self, scheduled: Scheduled) -> None:
        """The plan was not begun: rows that it was to end are ended by the next one."""
        self._ended_rows.update(scheduled.plan.ended)

    def _schedule_running(self, chosen: Chosen) -> tuple[int, bool]:
        """Fill `chosen` from the running ones; the token budget left, and whether any was preempted."""
        decoding = any(seq.num_computed >= seq.num_prompt for seq in self.running)
        budget = self.limits.max_mixed_tokens if decoding else self.limits.max_num_tokens
        num_preemptions, block_size = self.num_preemptions, self.cache.block_size
        running = list(self.running)
        for i, seq in enumerate(running):
            if seq.row == -1:
                continue  # preempted a moment ago
            count, most = seq.num_remaining, budget
            if count > 1:
                most -= sum(other.num_remaining == 1 for other in running[i + 1 :])
            if count > most:
                count = self._chunk(count, max(most, 0))
            if count == 0:
                continue
            # a decoding sequence has room in its last block, but for one step in block_size
            if seq.num_computed + count > len(seq.blocks) * block_size and not self._make_room(seq, count):
                continue
            chosen.append((seq, count, seq.life))
            budget -= count
        return budget, self.num_preemptions > num_preemptions

    def _make_room(self, seq: Sequence, count: int) -> bool:
        """Blocks for the next `count` tokens, if need be those of the least urgent; False if that is `seq` itself."""
        while not self.cache.grow(seq, count):
            victim = self.running.last()
            self._preempt(victim)
            if victim is seq:
                return False
        return True

    def _admit_waiting(self, chosen: Chosen, budget: int) -> list[Sequence]:
        """Let waiting sequences begin while rows, tokens and blocks last; those that began."""
        begun: list[Sequence] = []
        if not self._free_rows or budget == 0:
            return begun  # before the queue is copied: it may hold all prompts of a batch
        for seq in list(self.waiting):
            if not self._free_rows or budget == 0:
                break
            if seq.num_pending or seq.waits_for_grammar or _parent_is_busy(seq):
                continue  # its own result, its grammar or the shared prompt is still under way
            found, num_computed = self._starting_point(seq)
            count = self._chunk(seq.num_tokens - num_computed, budget)
            if count == 0 or not self._begin(seq, found, num_computed=num_computed, count=count):
                break
            chosen.append((seq, count, seq.life))
            budget -= count
            begun.append(seq)
        return begun

    def _starting_point(self, seq: Sequence) -> tuple[list[int], int]:
        """Blocks that hold the beginning already, and how many tokens of it."""
        if seq.parent is not None and not seq.block_hashes:  # its prompt is the parent's: it is not hashed anew
            seq.block_hashes = seq.parent.block_hashes[: seq.num_prompt // self.cache.block_size]
        parent = seq.parent
        if parent is not None and parent.status is Status.RUNNING:
            num_computed = seq.num_prompt - 1
            return parent.blocks[: self.cache.blocks_for(num_computed)], num_computed
        found = self.cache.match_prefix(seq)
        return found, len(found) * self.cache.block_size

    def _begin(self, seq: Sequence, found: list[int], *, num_computed: int, count: int) -> bool:
        reserve = self.cache.pool.num_blocks // 100 if len(self.running) else 0
        behind = sum(len(other.blocks) for other in self.running.after(seq))
        if not self.cache.admit(seq, found, num_computed=num_computed, count=count, reserve=reserve, behind=behind):
            return False
        seq.row = self._free_rows.pop()
        if not seq.times.scheduled:
            seq.times.scheduled = time.monotonic()
            # what one of n finds may be the parent's, of the same request
            seq.num_cached = min(num_computed, seq.num_prompt) if seq.parent is None else seq.parent.num_cached
            self._count_prompt(seq)
        seq.parent = None
        seq.status = Status.RUNNING
        self.waiting.remove(seq)
        self.running.add(seq)
        return True

    def _count_prompt(self, seq: Sequence) -> None:
        if seq.index == 0:  # the others share its prompt
            self.num_prompt_tokens += seq.num_prompt
            if self.cache.enable_prefix_caching and not seq.wants_prompt_logprobs:
                self.cache.prefix_queries += seq.num_prompt
                self.cache.prefix_hits += seq.num_cached

    def _chunk(self, remaining: int, budget: int) -> int:
        """Tokens of `remaining` to run now."""
        if remaining <= budget:
            return remaining
        return budget if self.limits.chunked else 0

    def _preempt(self, seq: Sequence) -> None:
        """Back to waiting; a token under way is still taken when its result is read."""
        self._release(seq, failed=False)
        self.running.remove(seq)
        seq.status = Status.WAITING
        seq.life += 1
        seq.preempted_at = seq.preempted_at or time.monotonic()
        seq.num_computed = seq.num_confirmed = seq.num_registered = 0
        seq.times.num_preemptions += 1
        self.num_preemptions += 1
        self.waiting.add(seq)

    def _release(self, seq: Sequence, *, failed: bool) -> None:
        self.cache.free(seq, failed=failed)
        self._ended_rows.add(seq.row)
        self._free_rows.append(seq.row)
        seq.row = -1

    def check(self) -> None:
        """ValueError unless rows and blocks add up and no waiting sequence holds any."""
        self.cache.check(self.running)
        rows = sorted([seq.row for seq in self.running] + self._free_rows)
        if rows != list(range(self.limits.max_num_seqs)):
            raise ValueError(f"rows held and free are not 0..{self.limits.max_num_seqs - 1}: {rows}")
        for seq in self.waiting:
            if seq.blocks or seq.row != -1 or seq.status is not Status.WAITING:
                raise ValueError(f"waiting sequence {seq.request.request_id}:{seq.index} holds a row or blocks")
        for seq in self.running:
            if seq.status is not Status.RUNNING or len(seq.blocks) < self.cache.blocks_for(seq.num_computed):
                raise ValueError(f"running sequence {seq.request.request_id}:{seq.index} lacks blocks")


def _advance(chosen: Chosen) -> tuple[list[RowStep], list[int]]:
    """The plan's rows, and which of them wait for a mask; only now, as within a plan nobody may rely on what the same
    plan computes, all move on."""
    rows: list[RowStep] = []
    masked: list[int] = []
    for seq, count, _ in chosen:
        start, end = seq.num_computed, seq.num_computed + count
        sample = end == len(seq.tokens) + seq.num_pending
        rows.append(RowStep(seq.row, start, count, sample))
        seq.num_computed = end
        seq.num_pending += sample
        if sample and seq.grammar is not None:
            masked.append(seq.row)
    return rows, masked


def _parent_is_busy(seq: Sequence) -> bool:
    """The parent (index 0) has not begun the prompt, or its steps are not all read: they might yet fail."""
    parent = seq.parent
    if parent is None or parent.status is Status.FINISHED:
        return False
    return parent.num_confirmed < seq.num_prompt - 1 or parent.status is Status.WAITING

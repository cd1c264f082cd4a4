"""In: a StepPlan. Out: its StepResult. Whatever goes wrong for one row ends in `failed` for that row alone."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from octavo.backends.cpu.machine import Heads, Machine
from octavo.backends.cpu.native_machine import NativeMachine
from octavo.backends.cpu.pooling import Pooler
from octavo.backends.cpu.rows import Row, RowError, Rows, Span
from octavo.backends.cpu.sampler import Draw, best_kept, choose, token_logprobs
from octavo.base import faults
from octavo.base.errors import NOT_FINITE, NOTHING_TO_SAMPLE
from octavo.base.types.plan import StepPlan, StepResult, TokenLogprobs

FEW = 8
"""Greedy draws that are made here: to wake the machine's threads costs more."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wish:
    """Logits wanted after batch token `index`: for the row's token at `position`, sampled or of the prompt."""

    span: Span
    row: Row
    index: int
    position: int
    sample: bool


@dataclass
class Outcome:
    """What has come of a step so far, by row."""

    tokens: dict[int, int] = field(default_factory=dict)
    logprobs: dict[int, TokenLogprobs] = field(default_factory=dict)
    prompts: dict[int, tuple[int, list[TokenLogprobs]]] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    pooled: dict[int, bytes] = field(default_factory=dict)


@dataclass
class Started:
    """A step up to its first logits, which stand in the machine. error: the whole step failed."""

    plan: StepPlan
    outcome: Outcome = field(default_factory=Outcome)
    wishes: list[Wish] = field(default_factory=list)
    heads: Heads | None = None
    error: Exception | None = None


class Steps:
    """Carries out plans, one after the other. pooler: makes vectors, in a model that pools."""

    def __init__(self, machine: Machine | NativeMachine, rows: Rows, pooler: Pooler | None = None) -> None:
        self.machine = machine
        self.rows = rows
        self.pooler = pooler
        self._started: Started | None = None
        self._masks: dict[int, bytes] = {}

    def run(self, plan: StepPlan) -> StepResult:
        """One step. Raises only if the whole step failed."""
        self.start(plan)
        return self.sample({})

    def start(self, plan: StepPlan) -> None:
        """The part of a step that needs no masks; `sample` is the rest, and raises what went wrong here."""
        self._started = started = Started(plan)
        try:
            self._apply(plan, started.outcome)
            spans = self._spans(plan, started.outcome)
            if spans and self.pooler is not None:
                self._pool(spans, self.pooler, started.outcome)
            elif spans:
                self._forward(spans, started)
        except Exception as error:
            started.error = error

    def sample(self, masks: dict[int, bytes]) -> StepResult:
        """What came of the step that was started. Raises only if the whole step failed."""
        started, self._started = self._started, None
        if started is None:
            raise RuntimeError("no step was started")
        if started.error is not None:
            raise started.error
        self._masks = masks
        plan, outcome = started.plan, started.outcome
        for row in plan.masked:
            if row not in masks:
                self._try(row, outcome, _no_mask)
        if started.heads is not None:
            self._grant_all(started.wishes, started.heads, outcome)
        sampled = [step.row for step in plan.rows if step.sample]
        return StepResult(
            step=plan.step,
            tokens=[outcome.tokens.get(row, 0) for row in sampled],
            logprobs=[outcome.logprobs.get(row) for row in sampled],
            prompt_logprobs={row: found for row, found in outcome.prompts.items() if row not in outcome.failed},
            failed=outcome.failed,
            pooled=outcome.pooled,
        )

    def _pool(self, spans: list[Span], pooler: Pooler, outcome: Outcome) -> None:
        batch = self.rows.batch(spans, [])
        self.machine.forward(batch)
        states = self.machine.states(batch.num_tokens)
        for span in spans:
            vector = self._try(span.row, outcome, self._pooled, span, states, pooler)
            if vector is not None:
                outcome.pooled[span.row] = vector

    def _pooled(self, span: Span, states: np.ndarray, pooler: Pooler) -> bytes:
        row = self.rows.get(span.row)
        if row.pooling is None or span.start or not span.sample:
            raise RowError("this model makes a vector of a whole prompt at once, and nothing else")
        vector = pooler(states[span.first : span.first + span.count], row.pooling)
        _check(np.isfinite(vector))
        return vector.astype("<f4").tobytes()

    def _apply(self, plan: StepPlan, outcome: Outcome) -> None:
        for row in plan.ended:
            self.rows.end(row)
        for begin in plan.begins:
            self._try(begin.row, outcome, self.rows.begin, begin)
        for update in plan.updates:
            self._try(update.row, outcome, self.rows.update, update)
        if plan.copies:
            self.machine.copy_blocks(plan.copies)

    def _spans(self, plan: StepPlan, outcome: Outcome) -> list[Span]:
        spans: list[Span] = []
        first = 0
        for step in plan.rows:
            span = self._try(step.row, outcome, self.rows.span, step, first)
            if span is not None:
                spans.append(span)
                first += span.count
        if first > self.machine.max_tokens:
            raise ValueError(f"the step has {first} tokens, max_num_batched_tokens is {self.machine.max_tokens}")
        return spans

    def _try(self, row: int, outcome: Outcome, action: Callable[..., Any], *arguments: Any) -> Any:
        """The action's value; None if it failed, and then the row has. A row that failed is not tried again."""
        if row in outcome.failed:
            return None
        try:
            return action(*arguments)
        except RowError as error:
            reason = str(error)
        except Exception as error:
            _log.exception("row %d failed", row)
            reason = f"{type(error).__name__}: {error}"
        outcome.failed[row] = reason
        self.rows.fail(row, reason)
        return None

    def _forward(self, spans: list[Span], started: Started) -> None:
        started.wishes = wishes = [wish for span in spans for wish in self._wishes(span)]
        first = wishes[: self.machine.tail_rows]
        batch = self.rows.batch(spans, [wish.index for wish in first], best_only=_best_only(first))
        finite, started.heads = self.machine.forward(batch)
        if finite is not None:
            for span in spans:
                hidden = finite[span.first : span.first + span.count]
                self._try(span.row, started.outcome, _check, hidden)

    def _grant_all(self, wishes: list[Wish], heads: Heads, outcome: Outcome) -> None:
        """heads: of the first wishes; of the others they are computed now, a batch at a time."""
        rows = self.machine.tail_rows
        first, others = wishes[:rows], wishes[rows:]
        self._grant(first, heads, outcome)
        for at in range(0, len(others), rows):
            some = others[at : at + rows]
            heads = self.machine.heads([wish.index for wish in some], best_only=_best_only(some))
            self._grant(some, heads, outcome)

    def _wishes(self, span: Span) -> Iterator[Wish]:
        row = self.rows.get(span.row)
        if row.sampler.sampling.prompt_logprobs is not None:
            # the state after position p - 1 tells of the prompt's token p
            for position in range(span.start + 1, min(span.start + span.count + 1, row.num_prompt)):
                yield Wish(span, row, span.first + position - 1 - span.start, position, False)
        if span.sample:
            yield Wish(span, row, span.first + span.count - 1, span.start + span.count, True)

    def _grant(self, wishes: list[Wish], heads: Heads, outcome: Outcome) -> None:
        tokens, drawing, draws = heads.best.tolist(), [], []
        for i, (wish, finite) in enumerate(zip(wishes, heads.finite.tolist(), strict=True)):
            if faults.ON and faults.hit("row") == "nan":
                heads.logits[i], heads.finite[i], finite = np.nan, False, False
            if not finite:
                self._try(wish.span.row, outcome, _check, heads.finite[i])
            elif wish.sample and wish.row.sampler.plain_masked:
                mask = self._masks.get(wish.span.row)
                if mask is not None:  # else the row has failed
                    token = self._try(wish.span.row, outcome, best_kept, heads.logits[i], mask, tokens[i])
                    tokens[i] = -1 if token is None else token
            elif wish.sample and not wish.row.sampler.plain:
                draw = self._try(wish.span.row, outcome, self._draw, wish, heads.logits[i])
                if draw is not None:
                    drawing.append(i)
                    draws.append(draw)
        if draws:
            rows = [wishes[i].span.row for i in drawing]
            for i, token in zip(drawing, self._drawn(draws, rows, outcome), strict=True):
                tokens[i] = token
        for i, (wish, token) in enumerate(zip(wishes, tokens, strict=True)):
            grant = self._sample if wish.sample else self._describe
            self._try(wish.span.row, outcome, grant, wish, heads.logits[i], token, outcome)

    def _draw(self, wish: Wish, logits: np.ndarray) -> Draw:
        row = wish.row
        tokens = self.rows.tokens[wish.span.row, : wish.position]
        return row.sampler.draw(logits, tokens, num_prompt=row.num_prompt, mask=self._masks.get(wish.span.row))

    def _drawn(self, draws: list[Draw], rows: list[int], outcome: Outcome) -> list[int]:
        """All at once; where that fails one by one, so that the one at fault fails alone."""
        if len(draws) <= FEW and all(draw.temperature == 0.0 for draw in draws):
            return [choose(draw) for draw in draws]
        try:
            return self.machine.draw(draws)
        except Exception:
            alone = [self._try(row, outcome, self.machine.draw, [draw]) for row, draw in zip(rows, draws, strict=True)]
            return [-1 if tokens is None else tokens[0] for tokens in alone]

    def _sample(self, wish: Wish, logits: np.ndarray, token: int, outcome: Outcome) -> None:
        index, position = wish.span.row, wish.position
        sampling = wish.row.sampler.sampling
        if token < 0:
            raise RowError(NOTHING_TO_SAMPLE)
        if sampling.logprobs is not None:
            outcome.logprobs[index] = token_logprobs(logits, token, sampling.logprobs)
        self.rows.append(index, position, token)
        outcome.tokens[index] = token

    def _describe(self, wish: Wish, logits: np.ndarray, _best: int, outcome: Outcome) -> None:
        index = wish.span.row
        count = wish.row.sampler.sampling.prompt_logprobs or 0
        entry = token_logprobs(logits, int(self.rows.tokens[index, wish.position]), count)
        outcome.prompts.setdefault(index, (wish.position, []))[1].append(entry)


def _best_only(wishes: list[Wish]) -> bool:
    """Whether nothing is asked of logits but the largest's place."""
    return all(wish.sample and wish.row.sampler.plain and wish.row.sampler.sampling.logprobs is None for wish in wishes)


def _no_mask() -> None:
    raise RowError("the row's mask is missing")


def _check(finite: np.ndarray) -> None:
    if not finite.all():
        raise RowError(NOT_FINITE)

"""In: a StepPlan. Out: its StepResult. Whatever goes wrong for one row ends in `failed` for that row alone."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from octavo.backends.cpu.machine import Machine
from octavo.backends.cpu.native_machine import NativeMachine
from octavo.backends.cpu.rows import RowError, Rows, Span
from octavo.backends.cpu.sampler import token_logprobs
from octavo.base.types.plan import StepPlan, StepResult, TokenLogprobs

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wish:
    """Logits wanted after batch token `index`: for the row's token at `position`, sampled or of the prompt."""

    span: Span
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


class Steps:
    """Carries out plans, one after the other."""

    def __init__(self, machine: Machine | NativeMachine, rows: Rows) -> None:
        self.machine = machine
        self.rows = rows

    def run(self, plan: StepPlan) -> StepResult:
        """One step. Raises only if the whole step failed."""
        outcome = Outcome()
        # what overflows becomes inf or NaN and is found where rows are checked
        with np.errstate(all="ignore"):
            self._apply(plan, outcome)
            spans = self._spans(plan, outcome)
            if spans:
                self._forward(spans, outcome)
        sampled = [step.row for step in plan.rows if step.sample]
        return StepResult(
            step=plan.step,
            tokens=[outcome.tokens.get(row, 0) for row in sampled],
            logprobs=[outcome.logprobs.get(row) for row in sampled],
            prompt_logprobs={row: found for row, found in outcome.prompts.items() if row not in outcome.failed},
            failed=outcome.failed,
        )

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

    def _forward(self, spans: list[Span], outcome: Outcome) -> None:
        hidden = self.machine.forward(self.rows.batch(spans))
        finite = np.isfinite(hidden).all(axis=1)
        if not finite.all():
            for span in spans:
                self._try(span.row, outcome, _check, finite[span.first : span.first + span.count], "hidden state")
        wishes = [wish for span in spans if span.row not in outcome.failed for wish in self._wishes(span)]
        for at in range(0, len(wishes), self.machine.tail_rows):
            some = wishes[at : at + self.machine.tail_rows]
            self._grant(some, self.machine.logits(hidden[[wish.index for wish in some]]), outcome)

    def _wishes(self, span: Span) -> Iterator[Wish]:
        row = self.rows.get(span.row)
        if row.sampler.sampling.prompt_logprobs is not None:
            # the state after position p - 1 tells of the prompt's token p
            for position in range(span.start + 1, min(span.start + span.count + 1, row.num_prompt)):
                yield Wish(span, span.first + position - 1 - span.start, position, False)
        if span.sample:
            yield Wish(span, span.first + span.count - 1, span.start + span.count, True)

    def _grant(self, wishes: list[Wish], logits: np.ndarray, outcome: Outcome) -> None:
        finite, best = self.machine.scan(logits)
        for i, wish in enumerate(wishes):
            grant = self._sample if wish.sample else self._describe
            self._try(wish.span.row, outcome, _check, finite[i], "logit")
            self._try(wish.span.row, outcome, grant, wish, logits[i], int(best[i]), outcome)

    def _sample(self, wish: Wish, logits: np.ndarray, best: int, outcome: Outcome) -> None:
        index, position = wish.span.row, wish.position
        row = self.rows.get(index)
        sampler = row.sampler
        token = best
        if not sampler.plain:
            token = sampler.choose(logits, self.rows.tokens[index, :position], num_prompt=row.num_prompt)
        if sampler.sampling.logprobs is not None:
            outcome.logprobs[index] = token_logprobs(logits, token, sampler.sampling.logprobs)
        self.rows.append(index, position, token)
        outcome.tokens[index] = token

    def _describe(self, wish: Wish, logits: np.ndarray, _best: int, outcome: Outcome) -> None:
        index = wish.span.row
        count = self.rows.get(index).sampler.sampling.prompt_logprobs or 0
        entry = token_logprobs(logits, int(self.rows.tokens[index, wish.position]), count)
        outcome.prompts.setdefault(index, (wish.position, []))[1].append(entry)


def _check(finite: np.ndarray, what: str) -> None:
    if not finite.all():
        raise RowError(f"the model computed a {what} that is not a finite number")

"""Results to Outputs: a StepResult and what was planned in, tokens appended and ended sequences out."""

from __future__ import annotations

import logging
import time

from octavo.base.errors import InputError, NumericalError, OctavoError, RequestFailedError, row_failure
from octavo.base.types.output import FinishReason, Output
from octavo.base.types.plan import RowStep, StepResult, TokenLogprobs
from octavo.engine.scheduler import Scheduled, Scheduler
from octavo.engine.sequence import Sequence, Status

_log = logging.getLogger(__name__)
_FINISHED = Status.FINISHED  # an enum's member is slow to look up


# a step, its sequence and the life that this was in, the token that was sampled and its logprobs
Row = tuple[RowStep, Sequence, int, int | None, TokenLogprobs | None]


def split_rows(scheduled: Scheduled, result: StepResult) -> tuple[list[Row], list[Row]]:
    """The rows of first tokens, which are waited for, and the others, for take_rows.

    RequestFailedError where the result is not the plan's.
    """
    plan = scheduled.plan
    sampled = [step.sample for step in plan.rows].count(True)
    if result.step != plan.step or len(result.tokens) != sampled:
        raise RequestFailedError(
            f"step {plan.step} samples {sampled} tokens, but the result is step {result.step}'s "
            f"with {len(result.tokens)}"
        )
    tokens, logprobs = iter(result.tokens), iter(result.logprobs)
    first: list[Row] = []
    others: list[Row] = []
    for step, (seq, _, life) in zip(plan.rows, scheduled.chosen, strict=True):
        if not step.sample:
            others.append((step, seq, life, None, None))
            continue
        rows = others if seq.times.first_token else first
        rows.append((step, seq, life, next(tokens), next(logprobs, None)))
    return first, others


def take_rows(scheduler: Scheduler, result: StepResult, rows: list[Row]) -> list[Output]:
    """Take rows' tokens in. A failed row ends its own sequence; a sequence that ended meanwhile takes nothing."""
    now = time.monotonic()
    taken = [_take_row(scheduler, result, row, now) for row in rows]
    return [out for out in taken if out is not None]


def _take_row(scheduler: Scheduler, result: StepResult, row: Row, now: float) -> Output | None:
    """One row's tokens, in; what there is to tell of it, out."""
    step, seq, life, token, entry = row
    if seq.status is _FINISHED:
        return None
    try:
        if step.row in result.failed:
            raise row_failure(result.failed[step.row])
        if step.row in result.prompt_logprobs:
            _take_prompt_logprobs(seq, *result.prompt_logprobs[step.row])
        if life == seq.life:  # the step's KV is clean; of an earlier life there is none left to confirm
            scheduler.cache.confirm(seq, step.start + step.count)
        if token is None:
            return None
        if seq.preempted_at:
            _end_preemption(seq, now, late=life != seq.life)
        if seq.request.pooling is None:
            return _take_token(scheduler, seq, token, entry, now)
        return _take_pooled(scheduler, seq, result.pooled[step.row], now)
    except Exception as error:  # one row's fault ends its own request
        known = next((kind for kind in (NumericalError, InputError) if isinstance(error, kind)), RequestFailedError)
        return fail(scheduler, seq, _reason(error), kind=known.__name__)


def fail_step(scheduler: Scheduler, scheduled: Scheduled, error: Exception) -> list[Output]:
    """The whole step failed: every sequence in it ends with the reason."""
    reason = _reason(error)
    alive = [seq for seq, _, _ in scheduled.chosen if seq.status is not Status.FINISHED]
    return [fail(scheduler, seq, reason, kind="RequestFailedError") for seq in alive]


def fail(scheduler: Scheduler, seq: Sequence, reason: str, *, kind: str) -> Output:
    """End a sequence with an error; none of its blocks stays cached, unless the error is in what it asks for.

    kind: a class of base.errors.  Else who asks for nothing that could be sampled would unlist what others share.
    """
    scheduler.finish(seq, failed=kind != InputError.__name__)
    out = _output(seq, [])
    out.finish_reason, out.error, out.error_kind, out.times = "error", reason, kind, seq.times
    return out


def end(scheduler: Scheduler, seq: Sequence) -> Output:
    """End a sequence as complete, without a token: none may follow."""
    scheduler.finish(seq)
    out = _output(seq, [])
    out.finish_reason, out.times = "stop", seq.times
    return out


def _reason(error: Exception) -> str:
    if isinstance(error, OctavoError):
        return error.message
    _log.error("a step failed", exc_info=error)
    return f"the step failed ({type(error).__name__})"


def _take_token(scheduler: Scheduler, seq: Sequence, token: int, entry: TokenLogprobs | None, now: float) -> Output:
    seq.num_pending -= 1
    seq.tokens.append(token)
    out = _output(seq, [token])
    if entry is not None:
        out.logprobs = [entry]
    times = seq.times
    times.last_token = now
    if seq.tells_times:
        out.times, seq.tells_times = times, False
    if not times.first_token:
        times.first_token = now
        out.times = times
        if seq.sampling.prompt_logprobs is not None:
            out.prompt_logprobs = seq.prompt_logprobs
    if token in seq.ending or len(seq.tokens) >= seq.max_length:
        out.finish_reason, out.stop_reason = _finished(seq, token)
        if out.finish_reason:
            out.times = times
            scheduler.finish(seq)
    return out


def _take_pooled(scheduler: Scheduler, seq: Sequence, pooled: bytes, now: float) -> Output:
    seq.times.first_token = seq.times.last_token = now
    out = _output(seq, [])
    out.finish_reason, out.pooled, out.times = "stop", pooled, seq.times
    scheduler.finish(seq)
    return out


def _finished(seq: Sequence, token: int) -> tuple[FinishReason | None, int | None]:
    request = seq.request
    count = seq.num_tokens - seq.num_prompt
    if count >= request.params.min_tokens:
        if not request.params.ignore_eos and token in request.eos_token_ids:
            return "stop", None
        if token in (request.params.stop_token_ids or ()):
            return "stop", token
    return ("length", None) if count >= request.max_tokens else (None, None)


def _take_prompt_logprobs(seq: Sequence, start: int, entries: list[TokenLogprobs]) -> None:
    seq.prompt_logprobs[start : start + len(entries)] = entries


def _end_preemption(seq: Sequence, now: float, *, late: bool) -> None:
    """late: the token was under way when it was preempted, so the wait for the next one begins now."""
    if late:
        seq.preempted_at = now
        return
    times, seconds = seq.times, now - seq.preempted_at
    times.preempted += seconds
    if not times.first_token:
        times.prefill_preempted += seconds
    seq.preempted_at, seq.tells_times = 0.0, True


def _output(seq: Sequence, token_ids: list[int]) -> Output:
    return Output(
        request_id=seq.request.request_id, index=seq.index, token_ids=token_ids, num_cached_tokens=seq.num_cached
    )

"""Results to Outputs: a StepResult and what was planned in, tokens appended and ended sequences out."""

from __future__ import annotations

import logging
import time

from octavo.base.errors import OctavoError, RequestFailedError
from octavo.base.types.output import FinishReason, Output
from octavo.base.types.plan import StepResult, TokenLogprobs
from octavo.engine.scheduler import Planned, Scheduled, Scheduler
from octavo.engine.sequence import Sequence, Status

_log = logging.getLogger(__name__)


def apply_result(scheduler: Scheduler, scheduled: Scheduled, result: StepResult) -> list[Output]:
    """Take a step's tokens in. A failed row ends its own sequence; a sequence that ended meanwhile takes nothing.

    Raises RequestFailedError, before anything is taken, where the result is not the plan's.
    """
    sampled = sum(planned.step.sample for planned in scheduled.rows)
    if result.step != scheduled.plan.step or len(result.tokens) != sampled:
        raise RequestFailedError(
            f"step {scheduled.plan.step} samples {sampled} tokens, but the result is step {result.step}'s "
            f"with {len(result.tokens)}"
        )
    outputs: list[Output] = []
    tokens = iter(result.tokens)
    logprobs = iter(result.logprobs)
    for planned in scheduled.rows:
        token = next(tokens) if planned.step.sample else None
        entry = next(logprobs, None) if planned.step.sample else None
        if planned.seq.status is Status.FINISHED:
            continue
        row = planned.step.row
        try:
            if row in result.failed:
                raise RequestFailedError(result.failed[row])
            if row in result.prompt_logprobs:
                _take_prompt_logprobs(planned.seq, *result.prompt_logprobs[row])
            if token is not None:
                outputs.append(_take_token(scheduler, planned, token, entry))
            else:
                _confirm(scheduler, planned)
        except Exception as error:  # one row's fault ends its own request
            outputs.append(fail(scheduler, planned.seq, _reason(error), kind="RequestFailedError"))
    return outputs


def fail_step(scheduler: Scheduler, scheduled: Scheduled, error: Exception) -> list[Output]:
    """The whole step failed: every sequence in it ends with the reason."""
    reason = _reason(error)
    alive = [planned.seq for planned in scheduled.rows if planned.seq.status is not Status.FINISHED]
    return [fail(scheduler, seq, reason, kind="RequestFailedError") for seq in alive]


def fail(scheduler: Scheduler, seq: Sequence, reason: str, *, kind: str) -> Output:
    """End a sequence with an error; none of its blocks stays cached."""
    scheduler.finish(seq, failed=True)
    return _output(seq, finish_reason="error", error=reason, error_kind=kind)


def _reason(error: Exception) -> str:
    if isinstance(error, OctavoError):
        return error.message
    _log.error("a step failed", exc_info=error)
    return f"the step failed ({type(error).__name__})"


def _take_token(scheduler: Scheduler, planned: Planned, token: int, entry: TokenLogprobs | None) -> Output:
    seq = planned.seq
    seq.num_pending -= 1
    seq.tokens.append(token)
    _confirm(scheduler, planned)
    now = time.monotonic()
    first = not seq.times.first_token
    if first:
        seq.times.first_token = now
    seq.times.last_token = now
    finish, reason = _finished(seq, token)
    if finish:
        scheduler.finish(seq)
    out = _output(seq, token_ids=[token], finish_reason=finish, stop_reason=reason)
    if entry is not None:
        out.logprobs = [entry]
    if first:
        out.times = seq.times
        if seq.sampling.prompt_logprobs is not None:
            out.prompt_logprobs = seq.prompt_logprobs
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


def _confirm(scheduler: Scheduler, planned: Planned) -> None:
    """The step's KV is clean; of an earlier life there is none left to confirm."""
    if planned.life == planned.seq.life:
        scheduler.cache.confirm(planned.seq, planned.step.start + planned.step.count)


def _take_prompt_logprobs(seq: Sequence, start: int, entries: list[TokenLogprobs]) -> None:
    seq.prompt_logprobs[start : start + len(entries)] = entries


def _output(
    seq: Sequence,
    *,
    token_ids: list[int] | None = None,
    finish_reason: FinishReason | None = None,
    stop_reason: int | None = None,
    error: str | None = None,
    error_kind: str | None = None,
) -> Output:
    return Output(
        request_id=seq.request.request_id,
        index=seq.index,
        token_ids=token_ids or [],
        finish_reason=finish_reason,
        stop_reason=stop_reason,
        error=error,
        error_kind=error_kind,
        num_cached_tokens=seq.num_cached,
        times=seq.times if finish_reason else None,
    )

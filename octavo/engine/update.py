"""Results to Outputs: a StepResult and what was planned in, tokens appended and ended sequences out."""

from __future__ import annotations

import logging
import time

from octavo.base.errors import InputError, NumericalError, OctavoError, RequestFailedError, row_failure
from octavo.base.types.output import FinishReason, Output
from octavo.base.types.plan import StepResult, TokenLogprobs
from octavo.engine.scheduler import Scheduled, Scheduler
from octavo.engine.sequence import Sequence, Status

_log = logging.getLogger(__name__)


def apply_result(scheduler: Scheduler, scheduled: Scheduled, result: StepResult) -> list[Output]:
    """Take a step's tokens in. A failed row ends its own sequence; a sequence that ended meanwhile takes nothing.

    Outputs that tell times, as first tokens do, come before the others: they are waited for.
    Raises RequestFailedError, before anything is taken, where the result is not the plan's.
    """
    plan, failed, prompts = scheduled.plan, result.failed, result.prompt_logprobs
    sampled = [step.sample for step in plan.rows].count(True)
    if result.step != plan.step or len(result.tokens) != sampled:
        raise RequestFailedError(
            f"step {plan.step} samples {sampled} tokens, but the result is step {result.step}'s "
            f"with {len(result.tokens)}"
        )
    outputs: list[Output] = []
    tokens = iter(result.tokens)
    logprobs = iter(result.logprobs)
    now, finished = time.monotonic(), Status.FINISHED  # an enum's member is slow to look up
    for step, (seq, _, life) in zip(plan.rows, scheduled.chosen, strict=True):
        token = next(tokens) if step.sample else None
        entry = next(logprobs, None) if step.sample else None
        if seq.status is finished:
            continue
        try:
            if step.row in failed:
                raise row_failure(failed[step.row])
            if step.row in prompts:
                _take_prompt_logprobs(seq, *prompts[step.row])
            if life == seq.life:  # the step's KV is clean; of an earlier life there is none left to confirm
                scheduler.cache.confirm(seq, step.start + step.count)
            if token is not None:
                if seq.preempted_at:
                    _end_preemption(seq, now, late=life != seq.life)
                if seq.request.pooling is None:
                    outputs.append(_take_token(scheduler, seq, token, entry, now))
                else:
                    outputs.append(_take_pooled(scheduler, seq, result.pooled[step.row], now))
        except Exception as error:  # one row's fault ends its own request
            known = next((kind for kind in (NumericalError, InputError) if isinstance(error, kind)), RequestFailedError)
            outputs.append(fail(scheduler, seq, _reason(error), kind=known.__name__))
    ahead = [out for out in outputs if out.times is not None]
    return ahead + [out for out in outputs if out.times is None] if ahead else outputs


def fail_step(scheduler: Scheduler, scheduled: Scheduled, error: Exception) -> list[Output]:
    """The whole step failed: every sequence in it ends with the reason."""
    reason = _reason(error)
    alive = [seq for seq, _, _ in scheduled.chosen if seq.status is not Status.FINISHED]
    return [fail(scheduler, seq, reason, kind="RequestFailedError") for seq in alive]


def fail(scheduler: Scheduler, seq: Sequence, reason: str, *, kind: str) -> Output:
    """End a sequence with an error; none of its blocks stays cached."""
    scheduler.finish(seq, failed=True)
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
    seq.num_pending -= 1
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

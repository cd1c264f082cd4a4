"""A request's moments in; where its wall time went out, as the `metrics` of replies and of log lines."""

from __future__ import annotations

import time

import msgspec

from octavo.base.types.output import RequestOutput, RequestTimes


class RequestMetrics(msgspec.Struct, frozen=True, kw_only=True):
    """Milliseconds. total_time_ms runs from the request's head to the making of this, and is the sum of its parts:

    preprocessing (body, template, tokenizing), grammar, queue, prefill, decode, preempted (to the next token, computing
    again included), postprocessing (the text after the last token).  time_to_first_token_ms: from the engine's arrival.
    generation_time_ms: first token to last.  mean_itl_ms: of the tokens after the first.
    """

    time_to_first_token_ms: float
    generation_time_ms: float
    queue_time_ms: float
    mean_itl_ms: float | None
    tokens_per_second: float | None
    total_time_ms: float
    preprocessing_time_ms: float
    grammar_time_ms: float
    prefill_time_ms: float
    decode_time_ms: float
    preempted_time_ms: float
    postprocessing_time_ms: float
    cached_tokens: int
    num_preemptions: int


PARTS = ("preprocessing", "grammar", "queue", "prefill", "decode", "preempted", "postprocessing")
"""They add up to total_time_ms."""


class Timing:
    """One completion's moments (time.monotonic()), gathered while it is made. started_at: its HTTP request's.

    num_prompt, num_tokens: tokens of the prompt, and those that came.
    """

    def __init__(self, started_at: float) -> None:
        self._started_at = started_at
        self._checked = 0.0
        self._times: RequestTimes | None = None
        self._end = 0.0
        self.num_prompt = self.num_tokens = self._num_cached = 0

    def checked(self, seconds: float) -> None:
        """The grammar was looked at for so long before the engine had the request."""
        self._checked += seconds

    def end(self, output: RequestOutput, num_tokens: int) -> None:
        """Note the last output, as it comes, and how many tokens there were in all."""
        self.num_tokens = num_tokens
        if output.metrics is not None and output.metrics.first_token:
            self._times, self._num_cached = output.metrics, output.num_cached_tokens
            self.num_prompt = len(output.prompt_token_ids)
            # a stop string ends a choice here, and the engine's own last time is then an earlier one
            by_text = any(isinstance(choice.stop_reason, str) for choice in output.outputs)
            self._end = time.monotonic() if by_text else output.metrics.last_token

    def metrics(self) -> RequestMetrics | None:
        """Until now; None before the last output."""
        times, now = self._times, time.monotonic()
        if times is None:
            return None
        parts = times.parts(self._end)
        parts["preprocessing"] = times.arrival - self._started_at - self._checked
        parts["grammar"] += self._checked
        parts["postprocessing"] = now - self._end
        generation = self._end - times.first_token
        return RequestMetrics(
            time_to_first_token_ms=_ms(times.first_token - times.arrival),
            generation_time_ms=_ms(generation),
            mean_itl_ms=_ms(generation / (self.num_tokens - 1)) if self.num_tokens > 1 else None,
            tokens_per_second=round((self.num_tokens - 1) / generation, 3) if generation > 0 else None,
            total_time_ms=_ms(now - self._started_at),
            cached_tokens=self._num_cached,
            num_preemptions=times.num_preemptions,
            **{f"{name}_time_ms": _ms(parts[name]) for name in PARTS},
        )


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 3)

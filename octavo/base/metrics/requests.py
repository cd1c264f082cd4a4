"""Finished requests in, what they took counted out: of a server or an LLM, for registry.py to show."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Sequence
from itertools import product
from typing import Any

from octavo.base.types.output import RequestOutput, RequestTimes
from octavo.base.types.pooled import PoolingRequestOutput
from octavo.base.types.sampling import RequestOutputKind, SamplingParams

FINISH_REASONS = ("stop", "length", "abort", "error")
TOOL_ROUTES = {"/v1/chat/completions": "chat_completions", "/v1/responses": "responses"}  # all others: other

_TTFT = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640)
_TOKEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 10, 20, 40)
SECONDS = (
    0.01,
    0.05,
    0.1,
    0.3,
    0.5,
    0.8,
    1,
    1.5,
    2,
    2.5,
    5,
    10,
    15,
    20,
    30,
    40,
    50,
    60,
    120,
    240,
    480,
    960,
    1920,
)
_COUNTS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000, 200_000)
_SMALL = (1, 2, 5, 10, 20, 50, 100)

_HISTOGRAMS: tuple[tuple[str, str, Sequence[float]], ...] = (
    ("time_to_first_token_seconds", "Arrival to first token.", _TTFT),
    ("inter_token_latency_seconds", "Between two tokens of a stream; the mean where a reply came whole.", _TOKEN),
    ("request_time_per_output_token_seconds", "A request's mean time a token after the first.", _TOKEN),
    ("e2e_request_latency_seconds", "Arrival to last token.", SECONDS),
    ("request_queue_time_seconds", "Arrival to first scheduled.", SECONDS),
    ("request_prefill_time_seconds", "First scheduled to first token.", SECONDS),
    ("request_decode_time_seconds", "First token to last.", SECONDS),
    ("request_inference_time_seconds", "First scheduled to last token.", SECONDS),
    ("request_prompt_tokens", "Prompt tokens of a request.", _COUNTS),
    ("request_generation_tokens", "Generated tokens of a request, over all its choices.", _COUNTS),
    ("request_max_num_generation_tokens", "Tokens of the longest choice of a request.", _COUNTS),
    ("request_params_n", "n of a request.", _SMALL),
    ("request_params_max_tokens", "max_tokens of a request that gave one.", _COUNTS),
    ("request_prefill_kv_computed_tokens", "Prompt tokens that were not found in the cache.", _COUNTS),
    ("request_num_preemptions", "Preemptions of a request.", _SMALL),
)


class Histogram:
    """counts: of the values up to each of `bounds`, and above the last; for one thread at a time."""

    def __init__(self, text: str, bounds: Sequence[float]) -> None:
        self.text = text
        self.bounds = tuple(map(float, bounds))
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count a value, once or `times` times."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times


class RequestCounts:
    """histograms: by name.  finished: choices, by FINISH_REASONS.

    tools: choices that were read for tool calls, by mode, outcome and kind of route.
    """

    def __init__(self) -> None:
        self.histograms = {name: Histogram(text, bounds) for name, text, bounds in _HISTOGRAMS}
        self.finished = dict.fromkeys(FINISH_REASONS, 0)
        modes, outcomes = ("streaming", "non_streaming"), ("tool_call", "no_tool_call")
        self.tools = dict.fromkeys(product(modes, outcomes, (*TOOL_ROUTES.values(), "other")), 0)

    def observe(self, name: str, value: float, times: int = 1) -> None:
        """A value of a histogram, once or `times` times."""
        self.histograms[name].observe(value, times)

    def end(self, reason: str) -> None:
        """A choice ended for one of FINISH_REASONS."""
        self.finished[reason if reason in self.finished else "error"] += 1

    def read_for_tools(self, route: str, *, streaming: bool, called: bool) -> None:
        """A choice ended whose text was searched for tool calls."""
        mode, outcome = "streaming" if streaming else "non_streaming", "tool_call" if called else "no_tool_call"
        self.tools[mode, outcome, TOOL_ROUTES.get(route, "other")] += 1

    def pooled(self, output: PoolingRequestOutput[Any]) -> None:
        """A prompt of a model that pools ended; it has no tokens, so no times of them."""
        self.end("stop" if output.error is None else "error")
        self.observe("request_prompt_tokens", len(output.prompt_token_ids))
        times = output.metrics
        if times is not None and times.last_token:
            self.observe("e2e_request_latency_seconds", times.last_token - times.arrival)
            self.observe("request_queue_time_seconds", times.scheduled - times.arrival)
            self.observe("request_prefill_time_seconds", times.last_token - times.scheduled)
            self.observe("request_inference_time_seconds", times.last_token - times.scheduled)


class RequestRecorder:
    """One prompt's way into the counts: call `take` with each RequestOutput as it comes.

    tools_of: the route, where the text is searched for tool calls.
    """

    def __init__(
        self, counts: RequestCounts, params: SamplingParams, *, streaming: bool, tools_of: str | None = None
    ) -> None:
        self._all = counts
        self._between = counts.histograms["inter_token_latency_seconds"].observe
        self._tools_of = tools_of
        self._deltas = params.output_kind is RequestOutputKind.DELTA
        self._called: set[int] = set()
        self._ended: set[int] = set()
        self._params = params
        self._streaming = streaming
        self._begun = False
        self._last = 0.0
        self._counts: dict[int, int] = {}

    @property
    def num_tokens(self) -> int:
        """Tokens so far, over all choices."""
        return sum(self._counts.values())

    def take(self, output: RequestOutput, *, now: float | None = None) -> None:
        """Count an output's tokens, the wait for the first one, and the whole request with its last.

        now: when it came, if that was before.
        """
        now = time.monotonic() if now is None else now
        tokens = 0  # that came to one choice: all wait for the same steps
        for completion in output.outputs:
            before, new = self._counts.get(completion.index, 0), len(completion.token_ids)
            new -= 0 if self._deltas else before
            tokens = max(tokens, new)
            self._counts[completion.index] = before + new
            if completion.tool_calls:
                self._called.add(completion.index)
            if completion.finish_reason is not None and completion.index not in self._ended:
                self._ended.add(completion.index)
                self._end_choice(completion.index, completion.finish_reason)
        times = output.metrics
        if not self._begun and times is not None and times.first_token:
            self._begun = True  # now, not with the last: streams may be long, or cut off
            self._all.observe("time_to_first_token_seconds", times.first_token - times.arrival)
        if self._streaming and tokens:
            if self._last:
                self._between((now - self._last) / tokens, tokens)
            self._last = now
        if output.finished:
            self._finish(output, now)

    def end(self, output: RequestOutput | None, *, now: float | None) -> None:
        """Nothing more comes: `output` is the whole request, as far as it came; what is missing was aborted."""
        if output is not None:
            self.take(output, now=now)
        self.cut_off("abort")

    def cut_off(self, reason: str) -> None:
        """The request ends before its last output: its choices that have not ended do, for one of FINISH_REASONS."""
        for _ in range(self._params.n - len(self._ended)):
            self._all.end(reason)

    def _end_choice(self, index: int, reason: str) -> None:
        self._all.end(reason)
        if self._tools_of is not None:
            called = index in self._called
            self._all.read_for_tools(self._tools_of, streaming=self._streaming, called=called)

    def _finish(self, output: RequestOutput, now: float) -> None:
        observe = self._all.observe
        prompt, generated = len(output.prompt_token_ids), self.num_tokens
        observe("request_prompt_tokens", prompt)
        observe("request_generation_tokens", generated)
        observe("request_max_num_generation_tokens", max(self._counts.values(), default=0))
        observe("request_params_n", self._params.n)
        if self._params.max_tokens is not None:
            observe("request_params_max_tokens", self._params.max_tokens)
        observe("request_prefill_kv_computed_tokens", max(0, prompt - output.num_cached_tokens))
        if output.metrics is not None and output.metrics.first_token:
            # a stop string ends a choice here, and the engine's own last time is then an earlier one
            by_text = any(isinstance(choice.stop_reason, str) for choice in output.outputs)
            self._times(output.metrics, now if by_text else output.metrics.last_token)

    def _times(self, times: RequestTimes, end: float) -> None:
        observe = self._all.observe
        most = max(self._counts.values(), default=0)
        observe("e2e_request_latency_seconds", end - times.arrival)
        observe("request_queue_time_seconds", times.scheduled - times.arrival)
        observe("request_prefill_time_seconds", times.first_token - times.scheduled)
        observe("request_decode_time_seconds", end - times.first_token)
        observe("request_inference_time_seconds", end - times.scheduled)
        observe("request_num_preemptions", times.num_preemptions)
        if most > 1:
            each = (end - times.first_token) / (most - 1)
            observe("request_time_per_output_token_seconds", each)
            if not self._streaming:
                observe("inter_token_latency_seconds", each, most - 1)

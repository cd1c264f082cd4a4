"""EngineStats, finished requests and HTTP answers in; a Prometheus registry, and the text of /metrics, out.

Names are vLLM's, once under `octavo:` and once under `vllm:`, so that its dashboards work; those that older dashboards
ask for are under `vllm:` alone. Label sets are closed: no label is ever made of what a client sent.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import product
from typing import Any, Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from octavo.base.metrics.counts import Counts
from octavo.base.types.messages import EngineStats
from octavo.base.types.output import RequestOutput, RequestTimes
from octavo.base.types.pooled import PoolingRequestOutput
from octavo.base.types.sampling import RequestOutputKind, SamplingParams

_OURS = "octavo:"
CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
METHODS = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "POST"})
FINISH_REASONS = ("stop", "length", "abort", "error")
Rejection = Literal["overloaded", "unavailable", "draining"]
Outcome = Literal["match", "mismatch", "failed"]  # of a check by the canary
TOOL_ROUTES = {"/v1/chat/completions": "chat_completions", "/v1/responses": "responses"}  # all others: other
OLDER_NAMES = {
    "kv_cache_usage_perc": "gpu_cache_usage_perc",
    "prefix_cache_queries": "gpu_prefix_cache_queries",
    "prefix_cache_hits": "gpu_prefix_cache_hits",
    "inter_token_latency_seconds": "time_per_output_token_seconds",
}
"""What vLLM called a metric before, by its name today."""
_PREFIX_CACHE = ("octavo:prefix_cache_queries", "octavo:prefix_cache_hits")

_TTFT = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640)
_TOKEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 10, 20, 40)
_REQUEST = (0.01, 0.05, 0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920)
_COUNTS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000, 200_000)
_SMALL = (1, 2, 5, 10, 20, 50, 100)

_HISTOGRAMS: tuple[tuple[str, str, Sequence[float]], ...] = (
    ("time_to_first_token_seconds", "Arrival to first token.", _TTFT),
    ("inter_token_latency_seconds", "Between two tokens of a stream; the mean where a reply came whole.", _TOKEN),
    ("request_time_per_output_token_seconds", "A request's mean time a token after the first.", _TOKEN),
    ("e2e_request_latency_seconds", "Arrival to last token.", _REQUEST),
    ("request_queue_time_seconds", "Arrival to first scheduled.", _REQUEST),
    ("request_prefill_time_seconds", "First scheduled to first token.", _REQUEST),
    ("request_decode_time_seconds", "First token to last.", _REQUEST),
    ("request_inference_time_seconds", "First scheduled to last token.", _REQUEST),
    ("request_prompt_tokens", "Prompt tokens of a request.", _COUNTS),
    ("request_generation_tokens", "Generated tokens of a request, over all its choices.", _COUNTS),
    ("request_max_num_generation_tokens", "Tokens of the longest choice of a request.", _COUNTS),
    ("request_params_n", "n of a request.", _SMALL),
    ("request_params_max_tokens", "max_tokens of a request that gave one.", _COUNTS),
    ("request_prefill_kv_computed_tokens", "Prompt tokens that were not found in the cache.", _COUNTS),
    ("request_num_preemptions", "Preemptions of a request.", _SMALL),
)


class Metrics:
    """A server's own registry, or an LLM's. `stats`, `info` and `asleep` are asked when somebody reads /metrics."""

    def __init__(
        self,
        model: str,
        *,
        stats: Callable[[], EngineStats],
        info: Callable[[], dict[str, object]],
        asleep: Callable[[], bool],
    ) -> None:
        self._labels = {"model_name": model, "engine": "0"}
        own = CollectorRegistry(auto_describe=False)
        self._engine = _EngineCollector(self._labels, stats, info, asleep)
        own.register(self._engine)
        self._histograms = {name: Counts(name, text, buckets, self._labels) for name, text, buckets in _HISTOGRAMS}
        for histogram in self._histograms.values():
            own.register(histogram)
        finished = Counter(
            "octavo:request_success", "Finished choices.", (*self._labels, "finished_reason"), registry=own
        )
        self._finished = {why: finished.labels(**self._labels, finished_reason=why) for why in FINISH_REASONS}
        rejected = Counter("octavo:admission_rejections", "Refused requests.", (*self._labels, "reason"), registry=own)
        self._rejected = {why: rejected.labels(**self._labels, reason=why) for why in get_args(Rejection)}
        self._tools = Counter(
            "octavo:tool_call_parser_invocations",
            "Finished choices that were read for tool calls.",
            (*self._labels, "mode", "outcome", "request_type"),
            registry=own,
        )
        for mode, outcome in product(("streaming", "non_streaming"), ("tool_call", "no_tool_call")):
            for kind in (*TOOL_ROUTES.values(), "other"):
                self._tools.labels(**self._labels, mode=mode, outcome=outcome, request_type=kind)
        canary = Counter("octavo:canary_checks", "Checks by the canary.", (*self._labels, "outcome"), registry=own)
        self._canary = {outcome: canary.labels(**self._labels, outcome=outcome) for outcome in get_args(Outcome)}
        labels = ("method", "handler", "status")
        self._http = Counter("http_requests", "HTTP answers by route.", labels, registry=own)
        self._http_time = Histogram(
            "http_request_duration_seconds",
            "Time to the end of an answer.",
            ("handler",),
            buckets=_REQUEST,
            registry=own,
        )
        ProcessCollector(registry=own)
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(_Aliased(own, self._labels))

    def render(self) -> bytes:
        """The text that Prometheus scrapes."""
        return generate_latest(self.registry)

    def settle(self) -> None:
        """The engine is about to end: what it has counted so far is kept."""
        self._engine.settle()

    def histogram(self, name: str) -> Counts:
        """A histogram by its name without prefix."""
        return self._histograms[name]

    def observe(self, name: str, value: float) -> None:
        """One value of a histogram."""
        self._histograms[name].observe(value)

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """An HTTP exchange ended. route: its template, or "unmatched"."""
        shown = f"{status // 100}xx" if status else "closed"
        self._http.labels(method if method in METHODS else "other", route, shown).inc()
        self._http_time.labels(route).observe(seconds)

    def rejected(self, reason: Rejection) -> None:
        """A request got a 503: the queue is full, the engine is not there, or the server is shutting down."""
        self._rejected[reason].inc()

    def checked(self, outcome: Outcome) -> None:
        """The canary asked its prompt."""
        self._canary[outcome].inc()

    def pooled(self, output: PoolingRequestOutput[Any]) -> None:
        """A prompt of a model that pools ended; it has no tokens, so no times of them."""
        self.finished("stop" if output.error is None else "error")
        self.observe("request_prompt_tokens", len(output.prompt_token_ids))
        times = output.metrics
        if times is not None and times.last_token:
            self.observe("e2e_request_latency_seconds", times.last_token - times.arrival)
            self.observe("request_queue_time_seconds", times.scheduled - times.arrival)
            self.observe("request_prefill_time_seconds", times.last_token - times.scheduled)
            self.observe("request_inference_time_seconds", times.last_token - times.scheduled)

    def read_for_tools(self, route: str, *, streaming: bool, called: bool) -> None:
        """A choice ended whose text was searched for tool calls."""
        self._tools.labels(
            **self._labels,
            mode="streaming" if streaming else "non_streaming",
            outcome="tool_call" if called else "no_tool_call",
            request_type=TOOL_ROUTES.get(route, "other"),
        ).inc()

    def finished(self, reason: str) -> None:
        """A choice ended for one of FINISH_REASONS."""
        self._finished.get(reason, self._finished["error"]).inc()


class RequestRecorder:
    """One prompt's way into the metrics: call `take` with each RequestOutput as it comes.

    tools_of: the route, where the text is searched for tool calls.
    """

    def __init__(
        self, metrics: Metrics, params: SamplingParams, *, streaming: bool, tools_of: str | None = None
    ) -> None:
        self._metrics = metrics
        self._between = metrics.histogram("inter_token_latency_seconds").observe
        self._tools_of = tools_of
        self._deltas = params.output_kind is RequestOutputKind.DELTA
        self._called: set[int] = set()
        self._ended: set[int] = set()
        self._params = params
        self._streaming = streaming
        self._last = 0.0
        self._counts: dict[int, int] = {}

    @property
    def num_tokens(self) -> int:
        """Tokens so far, over all choices."""
        return sum(self._counts.values())

    def take(self, output: RequestOutput) -> None:
        """Count an output's tokens, and the whole request with its last."""
        now = time.monotonic()
        tokens = 0
        for completion in output.outputs:
            before, new = self._counts.get(completion.index, 0), len(completion.token_ids)
            new -= 0 if self._deltas else before
            tokens += new
            self._counts[completion.index] = before + new
            if completion.tool_calls:
                self._called.add(completion.index)
            if completion.finish_reason is not None and completion.index not in self._ended:
                self._ended.add(completion.index)
                self._end_choice(completion.index, completion.finish_reason)
        if self._streaming and tokens:
            if self._last:
                self._between((now - self._last) / tokens)
            self._last = now
        if output.finished:
            self._finish(output, now)

    def _end_choice(self, index: int, reason: str) -> None:
        self._metrics.finished(reason)
        if self._tools_of is not None:
            called = index in self._called
            self._metrics.read_for_tools(self._tools_of, streaming=self._streaming, called=called)

    def _finish(self, output: RequestOutput, now: float) -> None:
        observe = self._metrics.observe
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
        observe = self._metrics.observe
        most = max(self._counts.values(), default=0)
        observe("time_to_first_token_seconds", times.first_token - times.arrival)
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
                for _ in range(most - 1):
                    observe("inter_token_latency_seconds", each)


class _EngineCollector(Collector):
    """EngineStats as metrics. Its counters begin anew with each engine process; ours go on."""

    def __init__(
        self,
        labels: dict[str, str],
        stats: Callable[[], EngineStats],
        info: Callable[[], dict[str, object]],
        asleep: Callable[[], bool],
    ) -> None:
        self._names, self._values = tuple(labels), tuple(labels.values())
        self._stats, self._info, self._asleep = stats, info, asleep
        self._seen: dict[str, tuple[int, int]] = {}  # name -> (total of earlier engines, last value)

    def settle(self) -> None:
        """The next engine counts from 0, however far it comes before anybody looks."""
        for _ in self.collect():  # takes note of what this one counted last
            pass
        self._seen = {name: (base + last, 0) for name, (base, last) in self._seen.items()}

    def collect(self) -> Iterable[Metric]:
        stats = self._stats()
        yield self._gauge("num_requests_running", "Sequences in steps.", stats.num_running)
        yield self._gauge("num_requests_waiting", "Sequences that wait.", stats.num_waiting)
        yield self._gauge("kv_cache_usage_perc", "Share of KV blocks in use, 0 to 1.", stats.kv_usage)
        waiting = {"capacity": stats.num_waiting - stats.num_deferred, "deferred": stats.num_deferred}
        yield self._labelled(
            "num_requests_waiting_by_reason",
            "Sequences that wait for room (capacity) or for their grammar (deferred).",
            "reason",
            waiting,
        )
        asleep = self._asleep()
        states = {"awake": not asleep, "weights_offloaded": 0, "discard_all": asleep}  # asleep there is no process
        yield self._labelled("engine_sleep_state", "1 for the state the engine is in.", "sleep_state", states)
        yield self._counter("prefix_cache_queries", "Prompt tokens looked up in the cache.", stats.prefix_queries)
        yield self._counter("prefix_cache_hits", "Prompt tokens found in the cache.", stats.prefix_hits)
        yield self._counter("num_preemptions", "Sequences put back for want of blocks.", stats.num_preemptions)
        yield self._counter("prompt_tokens", "Prompt tokens, computed or found in the cache.", stats.prompt_tokens)
        yield self._counter("prompt_tokens_cached", "Prompt tokens found in the cache.", stats.prefix_hits)
        yield self._sources(stats)
        yield self._counter("generation_tokens", "Tokens generated.", stats.generation_tokens)
        yield self._counter("numerical_errors", "Requests ended by NaN or infinity.", stats.numerical_errors)
        yield self._counter("engine_steps", "Steps of the engine.", stats.step)
        yield self._cache_config()
        yield self._lora()

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        family = GaugeMetricFamily(f"octavo:{name}", text, labels=self._names)
        family.add_metric(self._values, value)
        return family

    def _labelled(self, name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
        family = GaugeMetricFamily(f"octavo:{name}", text, labels=(*self._names, label))
        for value, number in values.items():
            family.add_metric((*self._values, value), number)
        return family

    def _counter(self, name: str, text: str, value: int) -> Metric:
        family = CounterMetricFamily(f"octavo:{name}", text, labels=self._names)
        family.add_metric(self._values, self._total(name, value))
        return family

    def _total(self, name: str, value: int) -> int:
        base, last = self._seen.get(name, (0, 0))
        base = base + last if value < last else base
        self._seen[name] = (base, value)
        return base + value

    def _sources(self, stats: EngineStats) -> Metric:
        name, text = "prompt_tokens_by_source", "Prompt tokens, computed here or found in the cache."
        cached = self._total("prompt_tokens_cached", stats.prefix_hits)
        computed = self._total("prompt_tokens", stats.prompt_tokens) - cached
        family = CounterMetricFamily(f"octavo:{name}", text, labels=(*self._names, "source"))
        family.add_metric((*self._values, "local_compute"), computed)
        family.add_metric((*self._values, "local_cache_hit"), cached)
        return family

    def _cache_config(self) -> Metric:
        info = self._info()
        names = ("block_size", "num_gpu_blocks", "enable_prefix_caching")
        family = GaugeMetricFamily("octavo:cache_config_info", "The KV cache.", labels=(*self._names, *names))
        family.add_metric((*self._values, *(str(info.get(name, "")) for name in names)), 1)
        return family

    def _lora(self) -> Metric:
        """None can be loaded; load balancers ask how many can, and take the latest value (a time) as the truth."""
        names = ("max_lora", "running_lora_adapters", "waiting_lora_adapters")
        family = GaugeMetricFamily("octavo:lora_requests_info", "LoRA adapters.", labels=(*self._names, *names))
        family.add_metric((*self._values, "0", "", ""), time.time())
        return family


class _Aliased(Collector):
    """Every metric of a registry; those of Octavo once more under vLLM's prefix. Creation times are left out."""

    def __init__(self, registry: CollectorRegistry, labels: dict[str, str]) -> None:
        self._registry, self._labels = registry, labels

    def collect(self) -> Iterator[Metric]:
        totals: dict[str, float] = {}
        for metric in self._registry.collect():
            if metric.name in _PREFIX_CACHE:
                totals[metric.name] = metric.samples[0].value
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            yield metric
            if metric.name.startswith(_OURS):
                name = metric.name.removeprefix(_OURS)
                for other in filter(None, (name, OLDER_NAMES.get(name))):
                    yield _renamed(metric, "vllm:" + other)
        for name in ("num_requests_swapped", "cpu_cache_usage_perc"):  # a preempted sequence is computed again
            yield self._gauge(name, "Always 0: nothing is swapped out.", 0)
        queries, hits = (totals.get(name, 0) for name in _PREFIX_CACHE)
        yield self._gauge("gpu_prefix_cache_hit_rate", "Share of looked up tokens found.", hits / max(queries, 1))

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        metric = Metric(f"vllm:{name}", text, "gauge")
        metric.add_sample(metric.name, dict(self._labels), value)
        return metric


def _renamed(metric: Metric, name: str) -> Metric:
    copy = Metric(name, metric.documentation, metric.type, metric.unit)
    copy.samples = [Sample(name + sample.name.removeprefix(metric.name), *sample[1:]) for sample in metric.samples]
    return copy

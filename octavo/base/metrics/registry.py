"""EngineStats, finished requests and HTTP answers in; a Prometheus registry, and the text of /metrics, out.

Names are vLLM's, once under `octavo:` and once under `vllm:`, so that its dashboards work; those that older dashboards
ask for are under `vllm:` alone. Label sets are closed: no label is ever made of what a client sent.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import accumulate
from typing import Any, Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample
from prometheus_client.utils import floatToGoString

from octavo.base.metrics.requests import SECONDS, RequestCounts
from octavo.base.types.messages import ITERATION_SIZES, EngineStats

_OURS = "octavo:"
CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
METHODS = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "POST"})
Rejection = Literal["overloaded", "unavailable", "draining"]
Outcome = Literal["match", "mismatch", "failed"]  # of a check by the canary
OLDER_NAMES = {
    "kv_cache_usage_perc": "gpu_cache_usage_perc",
    "prefix_cache_queries": "gpu_prefix_cache_queries",
    "prefix_cache_hits": "gpu_prefix_cache_hits",
    "inter_token_latency_seconds": "time_per_output_token_seconds",
}
"""What vLLM called a metric before, by its name today."""
_PREFIX_CACHE = ("octavo:prefix_cache_queries", "octavo:prefix_cache_hits")


class Metrics:
    """A server's own registry, or an LLM's. `stats`, `info` and `asleep` are asked when somebody reads /metrics."""

    def __init__(
        self,
        model: str,
        *,
        stats: Callable[[], EngineStats],
        info: Callable[[], dict[str, object]],
        asleep: Callable[[], bool],
        requests: RequestCounts | None = None,
    ) -> None:
        self.requests = RequestCounts() if requests is None else requests
        self._labels = {"model_name": model, "engine": "0"}
        own = CollectorRegistry(auto_describe=False)
        self._engine = _EngineCollector(self._labels, stats, info, asleep)
        own.register(self._engine)
        own.register(_RequestCollector(self._labels, self.requests))
        rejected = Counter("octavo:admission_rejections", "Refused requests.", (*self._labels, "reason"), registry=own)
        self._rejected = {why: rejected.labels(**self._labels, reason=why) for why in get_args(Rejection)}
        canary = Counter("octavo:canary_checks", "Checks by the canary.", (*self._labels, "outcome"), registry=own)
        self._canary = {outcome: canary.labels(**self._labels, outcome=outcome) for outcome in get_args(Outcome)}
        labels = ("method", "handler", "status")
        self._http = Counter("http_requests", "HTTP answers by route.", labels, registry=own)
        self._http_time = Histogram(
            "http_request_duration_seconds",
            "Time to the end of an answer.",
            ("handler",),
            buckets=SECONDS,
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


class _RequestCollector(Collector):
    """RequestCounts as metrics."""

    def __init__(self, labels: dict[str, str], requests: RequestCounts) -> None:
        self._names, self._values, self._requests = tuple(labels), tuple(labels.values()), requests

    def collect(self) -> Iterable[Metric]:
        for name, histogram in self._requests.histograms.items():
            family = HistogramMetricFamily(f"octavo:{name}", histogram.text, labels=self._names)
            edges = [*map(floatToGoString, histogram.bounds), "+Inf"]
            buckets = list(zip(edges, accumulate(histogram.counts), strict=True))
            family.add_metric(self._values, buckets, histogram.sum)
            yield family
        yield self._counter("request_success", "Finished choices.", ("finished_reason",), self._requests.finished)
        yield self._counter(
            "tool_call_parser_invocations",
            "Finished choices that were read for tool calls.",
            ("mode", "outcome", "request_type"),
            self._requests.tools,
        )

    def _counter(self, name: str, text: str, labels: tuple[str, ...], counts: Mapping[Any, int]) -> Metric:
        family = CounterMetricFamily(f"octavo:{name}", text, labels=(*self._names, *labels))
        for key, count in counts.items():
            family.add_metric((*self._values, *(key if isinstance(key, tuple) else (key,))), count)
        return family


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
        yield self._iterations(stats)
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

    def _iterations(self, stats: EngineStats) -> Metric:
        name, text = "iteration_tokens_total", "Tokens of a step of the engine, prompts' and generated ones."
        steps = stats.iterations or [0] * (len(ITERATION_SIZES) + 1)
        edges = [*map(floatToGoString, ITERATION_SIZES), "+Inf"]
        counts = accumulate(self._total(f"{name} {edge}", count) for edge, count in zip(edges, steps, strict=True))
        family = HistogramMetricFamily(f"octavo:{name}", text, labels=self._names)
        family.add_metric(
            self._values, list(zip(edges, counts, strict=True)), self._total(name, stats.iteration_tokens)
        )
        return family

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

"""Outcomes in; the fields of vLLM's serving result, and the table that its users know, out. Times in milliseconds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from octavo.base.errors import ConfigError
from octavo.cli.bench.client import Outcome
from octavo.cli.bench.figures import WIDTH, deviation, heading, mean, percentile, row
from octavo.cli.bench.options import ServeOptions

METRICS = {
    "ttft": ("TTFT", "Time to First Token"),
    "tpot": ("TPOT", "Time per Output Token (excl. 1st token)"),
    "itl": ("ITL", "Inter-token Latency"),
    "e2el": ("E2EL", "End-to-end Latency"),
}
GOODPUT = ("ttft", "tpot", "e2el")

Spans = Sequence[tuple[float, float]]  # (begin, end) of each request, in seconds after the run's start


@dataclass(frozen=True)
class Wanted:
    """Which metrics are printed, which percentiles of all are computed, and goodput's bounds in ms by metric."""

    metrics: list[str]
    percents: list[float]
    goodput: dict[str, float]


def parse_wanted(options: ServeOptions) -> Wanted:
    """ConfigError names the flag at fault."""
    metrics = [name.strip() for name in options.percentile_metrics.split(",") if name.strip()]
    if unknown := [name for name in metrics if name not in METRICS]:
        raise ConfigError(f"--percentile-metrics {unknown[0]!r} must be of {', '.join(METRICS)}")
    try:
        percents = [float(one) for one in options.metric_percentiles.split(",")]
    except ValueError:
        percents = [-1.0]
    if not all(0 <= one <= 100 for one in percents):
        raise ConfigError(f"--metric-percentiles {options.metric_percentiles!r} must be numbers of 0 to 100, as 50,99")
    return Wanted(metrics, percents, dict(_parse_bound(pair) for pair in options.goodput))


def _parse_bound(pair: str) -> tuple[str, float]:
    name, _, text = pair.partition(":")
    try:
        bound = float(text)
    except ValueError:
        bound = -1.0
    if name not in GOODPUT or not bound >= 0:
        raise ConfigError(f"--goodput {pair!r} must be NAME:MILLISECONDS, with a name of {', '.join(GOODPUT)}")
    return name, bound


class Timings:
    """Outcomes that ended well, with what is computed of each."""

    def __init__(self, outcomes: Sequence[Outcome], count_tokens: Callable[[str], int] | None) -> None:
        self.done = [outcome for outcome in outcomes if not outcome.error]
        self._count = count_tokens
        self.output_lens = [self._output_len(outcome) for outcome in self.done]

    def _output_len(self, outcome: Outcome) -> int:
        """The server's count, else the tokenizer's, else one a chunk."""
        if outcome.output_tokens is not None:
            return outcome.output_tokens
        return self._count(outcome.text) if self._count is not None else len(outcome.itl) + 1

    def seconds(self, metric: str) -> list[float]:
        """A metric's values: of every request, of every gap for itl, of requests with two tokens or more for tpot."""
        if metric == "tpot":
            return [value for value, count in zip(self.per_request("tpot"), self.output_lens, strict=True) if count > 1]
        return [gap for outcome in self.done for gap in outcome.itl] if metric == "itl" else self.per_request(metric)

    def per_request(self, metric: str) -> list[float]:
        """ttft, tpot (0 with less than two tokens) or e2el of each request."""
        if metric == "ttft":
            return [outcome.ttft for outcome in self.done]
        if metric == "e2el":
            return [outcome.latency for outcome in self.done]
        pairs = zip(self.done, self.output_lens, strict=True)
        return [(one.latency - one.ttft) / (count - 1) if count > 1 else 0.0 for one, count in pairs]

    def good(self, bounds: dict[str, float]) -> int:
        """Requests that keep every bound, in ms."""
        columns = [[value * 1000 <= bound for value in self.per_request(name)] for name, bound in bounds.items()]
        return sum(map(all, zip(*columns, strict=True)))

    def spans(self) -> list[tuple[float, float]]:
        """Begin and end of each request, in seconds after the first began."""
        first = min((outcome.start for outcome in self.done), default=0.0)
        return [(one.start - first, one.start - first + one.latency) for one in self.done]

    def token_times(self) -> list[tuple[float, float]]:
        """When output came, likewise, and how many tokens: a request's fall evenly on its chunks."""
        found = []
        for (begun, _), outcome, count in zip(self.spans(), self.done, self.output_lens, strict=True):
            at, share = begun + outcome.ttft, count / (len(outcome.itl) + 1)
            for gap in [0.0, *outcome.itl]:
                at += gap
                found.append((at, share))
        return found

    def peak_rate(self) -> float:
        """Most output tokens in one second, counted from the first request's beginning."""
        counts: dict[int, float] = {}
        for at, share in self.token_times():
            counts[int(at)] = counts.get(int(at), 0.0) + share
        return max(counts.values(), default=0.0)

    def peak_concurrency(self) -> int:
        """Most requests under way at once."""
        return max(running_over_time(self.spans())[1])


def running_over_time(spans: Spans) -> tuple[list[float], list[int]]:
    """When the number of open spans changes, and what it is from then on."""
    times, counts, running = [0.0], [0], 0
    # an end sorts before a beginning at the same time
    for at, change in sorted([(begun, 1) for begun, _ in spans] + [(end, -1) for _, end in spans]):
        running += change
        times.append(at)
        counts.append(running)
    return times, counts


def summarise(timings: Timings, outcomes: Sequence[Outcome], duration: float, wanted: Wanted) -> dict[str, Any]:
    """The result's fields, the short ones."""
    prompt, generated = sum(one.prompt_len for one in timings.done), sum(timings.output_lens)
    result: dict[str, Any] = {
        "duration": duration,
        "completed": len(timings.done),
        "failed": len(outcomes) - len(timings.done),
        "total_input_tokens": prompt,
        "total_output_tokens": generated,
        "request_throughput": len(timings.done) / duration,
        "request_goodput": timings.good(wanted.goodput) / duration if wanted.goodput else None,
        "output_throughput": generated / duration,
        "total_token_throughput": (prompt + generated) / duration,
        "max_output_tokens_per_s": timings.peak_rate(),
        "max_concurrent_requests": timings.peak_concurrency(),
    }
    for name in METRICS:
        values = [value * 1000 for value in timings.seconds(name)]
        result[f"mean_{name}_ms"] = mean(values)
        result[f"median_{name}_ms"] = percentile(values, 50)
        result[f"std_{name}_ms"] = deviation(values)
        result.update({f"p{percent:g}_{name}_ms": percentile(values, percent) for percent in wanted.percents})
    return result


def details(timings: Timings, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The result's long fields, of every request in order; start_times count from the first. Failed ones have 0s."""
    lens = iter(timings.output_lens)
    first = min((outcome.start for outcome in outcomes), default=0.0)
    return {
        "input_lens": [outcome.prompt_len for outcome in outcomes],
        "output_lens": [0 if outcome.error else next(lens) for outcome in outcomes],
        "ttfts": [outcome.ttft for outcome in outcomes],
        "itls": [outcome.itl for outcome in outcomes],
        "latencies": [outcome.latency for outcome in outcomes],
        "start_times": [outcome.start - first for outcome in outcomes],
        "queue_times": [outcome.queue_time for outcome in outcomes],
        "generated_texts": [outcome.text for outcome in outcomes],
        "errors": [outcome.error for outcome in outcomes],
    }


def print_table(result: dict[str, Any], options: ServeOptions, wanted: Wanted) -> None:
    """For people."""
    rows: list[tuple[str, Any]] = [
        ("Successful requests:", result["completed"]),
        ("Failed requests:", result["failed"]),
    ]
    if options.max_concurrency is not None:
        rows.append(("Maximum request concurrency:", options.max_concurrency))
    if options.request_rate != float("inf"):
        rows.append(("Request rate configured (RPS):", options.request_rate))
    rows += [
        ("Benchmark duration (s):", result["duration"]),
        ("Total input tokens:", result["total_input_tokens"]),
        ("Total generated tokens:", result["total_output_tokens"]),
        ("Request throughput (req/s):", result["request_throughput"]),
    ]
    if wanted.goodput:
        rows.append(("Request goodput (req/s):", result["request_goodput"]))
    rows += [
        ("Output token throughput (tok/s):", result["output_throughput"]),
        ("Peak output token throughput (tok/s):", result["max_output_tokens_per_s"]),
        ("Peak concurrent requests:", result["max_concurrent_requests"]),
        ("Total token throughput (tok/s):", result["total_token_throughput"]),
    ]
    print(heading("Serving Benchmark Result", "="))
    for label, value in rows:
        print(row(label, value))
    for name in (name for name in METRICS if name in wanted.metrics):
        short, long = METRICS[name]
        print(heading(long, "-"))
        print(row(f"Mean {short} (ms):", result[f"mean_{name}_ms"]))
        print(row(f"Median {short} (ms):", result[f"median_{name}_ms"]))
        for percent in wanted.percents:
            print(row(f"P{percent:g} {short} (ms):", result[f"p{percent:g}_{name}_ms"]))
    print("=" * WIDTH)

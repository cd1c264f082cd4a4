"""Figures in, a chart as .png, .svg or .pdf out. matplotlib (octavo[plot]) is imported only when one is drawn."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from octavo.base.errors import ConfigError
from octavo.cli.bench.figures import mean, percentile
from octavo.cli.bench.report import METRICS, Spans, Timings, running_over_time
from octavo.cli.output import check_writable, replacing

SUFFIXES = (".png", ".svg", ".pdf")
BLUE, ORANGE, GREY = "#2a6f97", "#e07a1f", "#8a8f98"
POINTS = 60  # intervals of a curve over time
BINS = 40

Events = Sequence[tuple[float, float]]  # (seconds after the run's start, tokens that came then)


def check(path: str | None) -> None:
    """ConfigError, before anything is measured, where no chart could be drawn."""
    if path is None:
        return
    if Path(path).suffix.lower() not in SUFFIXES:
        raise ConfigError(f"--plot {path} must end in {', '.join(SUFFIXES)}", param="--plot")
    check_writable("--plot", path)
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("--plot needs matplotlib: pip install 'octavo[plot]'", param="--plot")


def latency(path: str, latencies: Sequence[float], *, title: str) -> None:
    """Each run's seconds, and their distribution."""
    figure, (left, right) = _figure(title, 1, 2)
    middle = percentile(latencies, 50)
    left.plot(range(1, len(latencies) + 1), latencies, "o-", color=BLUE, markersize=4, linewidth=1)
    left.axhline(middle, color=ORANGE, linewidth=1, label=f"median {middle:.3f} s")
    left.set(xlabel="iteration", ylabel="seconds")
    left.set_ylim(bottom=0)
    left.legend()
    _share_below(right, latencies, "seconds")
    _save(figure, path)


def throughput(path: str, tokens: Events, spans: Spans, *, title: str) -> None:
    """Output tokens a second and requests under way over time, and how long requests took."""
    figure, (left, right) = _figure(title, 1, 2)
    _activity(left, tokens, spans)
    _histogram(right, [end - begun for begun, end in spans], "seconds from taking a request up to its end", 1.0)
    _save(figure, path)


def startup(path: str, phases: dict[str, list[tuple[float, float]]], *, title: str) -> None:
    """For each phase (ready, first token) of every start: means as bars, starts as dots."""
    figure, axes = _figure(title, 1, 1)
    for place, (phase, starts) in enumerate(phases.items()):
        ready, first = mean([start[0] for start in starts]), mean([start[1] for start in starts])
        axes.bar(place, ready, 0.5, color=BLUE, label="until ready" if place == 0 else None)
        axes.bar(
            place, first - ready, 0.5, bottom=ready, color=ORANGE, label="until first token" if place == 0 else None
        )
        axes.plot([place] * len(starts), [start[1] for start in starts], "o", color=GREY, markersize=4)
        axes.annotate(f"{first:.2f} s", (place + 0.28, first), va="center")
        axes.annotate(phase, (place, 0), xytext=(0, -14), textcoords="offset points", ha="center")
    axes.set(ylabel="seconds from the process's start", xlim=(-0.6, len(phases) - 0.2), xticks=[])
    axes.legend()
    _save(figure, path)


def serve(path: str, timings: Timings, *, title: str) -> None:
    """Tokens a second and concurrency over time; how TTFT, inter-token and end-to-end latency are distributed."""
    figure, ((activity, ttft), (itl, e2el)) = _figure(title, 2, 2)
    _activity(activity, timings.token_times(), timings.spans())
    _histogram(ttft, timings.seconds("ttft"), f"{METRICS['ttft'][1]}, ms", 1000.0)
    _histogram(itl, timings.seconds("itl"), f"{METRICS['itl'][1]}, ms (up to P99.5)", 1000.0, most=99.5)
    _share_below(e2el, timings.seconds("e2el"), f"{METRICS['e2el'][1]}, s")
    _save(figure, path)


def rate_over_time(tokens: Events) -> tuple[list[float], list[float]]:
    """The middles of POINTS equal intervals, and tokens a second in each."""
    width = max((at for at, _ in tokens), default=0.0) / POINTS
    if width <= 0:
        return [], []
    counts = [0.0] * POINTS
    for at, count in tokens:
        counts[min(int(at / width), POINTS - 1)] += count
    return [(place + 0.5) * width for place in range(POINTS)], [count / width for count in counts]


def _figure(title: str, rows: int, columns: int) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5 * columns, 3.8 * rows), layout="constrained")
    figure.suptitle(title, fontsize=11)
    axes = figure.subplots(rows, columns)
    for one in figure.axes:
        one.spines[["top", "right"]].set_visible(False)
        one.grid(visible=True, alpha=0.25)
    return figure, axes


def _activity(axes: Any, tokens: Events, spans: Spans) -> None:
    times, rates = rate_over_time(tokens)
    axes.fill_between(times, rates, color=BLUE, alpha=0.25, linewidth=0)
    axes.plot(times, rates, color=BLUE, linewidth=1.5)
    axes.set(xlabel="seconds")
    axes.set_ylabel("output tokens / s", color=BLUE)
    twin = axes.twinx()
    twin.step(*running_over_time(spans), where="post", color=ORANGE, linewidth=1)
    twin.set_ylabel("requests under way", color=ORANGE)
    twin.spines[["top", "right"]].set_visible(False)
    for one in (axes, twin):
        one.set_ylim(bottom=0)


def _histogram(axes: Any, seconds: Sequence[float], label: str, scale: float, *, most: float = 100.0) -> None:
    limit = percentile(seconds, most)
    axes.hist([value * scale for value in seconds if value <= limit], bins=BINS, color=BLUE, alpha=0.8)
    for percent, style in ((50, "-"), (99, "--")):
        value = percentile(seconds, percent) * scale
        axes.axvline(value, color=ORANGE, linestyle=style, linewidth=1.2, label=f"P{percent} {value:.4g}")
    axes.set(xlabel=label, ylabel="count")
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.legend()


def _share_below(axes: Any, seconds: Sequence[float], label: str) -> None:
    ordered = sorted(seconds)
    axes.step(ordered, [100 * (place + 1) / len(ordered) for place in range(len(ordered))], where="post", color=BLUE)
    for percent, style in ((50, "-"), (90, ":"), (99, "--")):
        value = percentile(ordered, percent)
        axes.axvline(value, color=ORANGE, linestyle=style, linewidth=1.2, label=f"P{percent} {value:.4g}")
    axes.set(xlabel=label, ylabel="% done by then", ylim=(0, 102))
    axes.legend(loc="lower right")


def _save(figure: Any, path: str) -> None:
    with replacing(path) as file:
        figure.savefig(file.buffer, format=Path(path).suffix[1:], dpi=130)

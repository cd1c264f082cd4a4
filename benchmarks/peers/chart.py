"""Results in (as they stand in the JSON files), PNG charts out."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from peers.compare import SIDES
from peers.rows import VLLM

INK, FAINT, GRID = "#22303c", "#66737f", "#e4e8ec"
COLOURS = {"octavo": "#0f766e", "llama.cpp": "#b4bec8"}
REFERENCES = {"vLLM BF16": "#d97706", "vLLM INT8": "#9333ea"}
NAMES = {"octavo": "Octavo", "llama.cpp": "llama.cpp"}
BAR = 0.36
# a white ground, so that no line runs through a figure
LABEL: dict[str, Any] = {
    "textcoords": "offset points", "ha": "center", "va": "bottom", "bbox": {"fc": "white", "ec": "none", "pad": 0.8},
}  # fmt: skip
STYLE = {
    "font.family": "DejaVu Sans", "font.size": 10, "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": GRID,
    "axes.grid": True, "axes.grid.axis": "y", "grid.color": GRID, "axes.axisbelow": True, "xtick.color": INK,
    "ytick.color": FAINT, "xtick.major.size": 0, "ytick.major.size": 0, "axes.spines.top": False,
    "axes.spines.right": False, "axes.spines.left": False, "figure.facecolor": "white", "axes.titlelocation": "left",
    "axes.titleweight": "bold", "axes.titlepad": 14, "axes.titlesize": 12,
}  # fmt: skip
FIRST, STREAMS = {"connections": 64, "step_ms": 8.0}, {"connections": 256, "step_ms": 0.0}
SHARES = {"p25": "25th", "p50": "middle", "p75": "75th", "p90": "90th"}
PANELS = {
    "prefill_512": "Reading a prompt of 512 tokens",
    "decode_1": "Writing, one sequence",
    "decode_32": "Writing, 32 sequences together",
}


def draw_rows(results: dict[str, Any], path: Path) -> None:
    """One panel a piece of work, one group of bars a model file."""
    rows = results["rows"]
    with mpl.rc_context(STYLE):
        works = [work for work in PANELS if work in rows[0]["works"]] or list(rows[0]["works"])
        size = max(8.0, 1.5 * len(rows) + 1.5), 1.7 + 3.7 * len(works)
        figure, axes = plt.subplots(len(works), 1, figsize=size, squeeze=False)
        for axis, work in zip(axes.flat, works, strict=True):
            _bars(axis, rows, work)
            axis.set_title(PANELS.get(work, work))
        _heading(figure, results, "Octavo and llama.cpp on the same files")
        keys = [Patch(color=COLOURS[side], label=NAMES[side]) for side in SIDES]
        keys.append(Line2D([], [], color=INK, lw=2.2, label="the machine's limit"))
        keys.append(Line2D([], [], color=INK, lw=0, marker=">", ms=5, label="Octavo's target"))

        used = {name for row in rows for name in VLLM.get(row["model"], {})}
        keys += [Line2D([], [], **_reference(name), label=f"{name} (constant)") for name in REFERENCES if name in used]
        figure.legend(handles=keys, loc="lower center", ncols=3, frameon=False)
        figure.savefig(path, dpi=130)
        plt.close(figure)


def _bars(axis: Axes, rows: list[dict[str, Any]], work: str) -> None:
    for x, row in enumerate(rows):
        figures = row["works"][work]
        for side, shift in zip(SIDES, (-BAR / 2, BAR / 2), strict=True):
            value = figures["medians"][side]
            axis.bar(x + shift, value, BAR * 0.94, color=COLOURS[side])
            axis.annotate(f"{value:,.0f}", (x + shift, value), (0, 3), fontsize=8, color=FAINT, **LABEL)
        ours = figures["medians"]["octavo"]
        ratio = f"{figures['ratio']:.1f}×"
        axis.annotate(ratio, (x - BAR / 2, ours), (0, 15), fontweight="bold", color=COLOURS["octavo"], **LABEL)
        axis.hlines(figures["floor"]["limit"], x - BAR, x + BAR, color=INK, lw=2.2)
        if figures["target_ratio"]:
            axis.plot(x - BAR - 0.03, figures["target_ratio"] * figures["medians"]["llama.cpp"], ">", color=INK, ms=5)
    _references(axis, rows, work)
    axis.set_xticks(range(len(rows)), [f"{row['format']}\n{row['model']}" for row in rows], fontsize=9)
    axis.set_ylabel("tokens a second")
    axis.margins(y=0.1)


def _references(axis: Axes, rows: list[dict[str, Any]], work: str) -> None:
    """vLLM's constants across the groups of the model that they are of."""
    for model, group in groupby(enumerate(rows), key=lambda pair: pair[1]["model"]):
        places = [x for x, _ in group]
        for name, speeds in VLLM.get(model, {}).items():
            ends = places[0] - 0.48, places[-1] + 0.48
            axis.hlines(speeds[work], *ends, zorder=0.8, **_reference(name))


def _reference(name: str) -> dict[str, Any]:
    return {"color": REFERENCES[name], "lw": 1.5, "ls": (0, (4, 2))}


def _heading(figure: Figure, results: dict[str, Any], title: str) -> None:
    machine, peaks = results["machine"], results["peaks"]
    height = figure.get_figheight()
    figure.text(0.02, 1 - 0.22 / height, title, fontsize=16, fontweight="bold", va="top")
    figure.text(
        0.02,
        1 - 0.58 / height,
        f"{machine['processor']}, {results['threads']} threads, {results['date']}; medians of {results['rounds']}. "
        f"Limit: {peaks['read_bytes_s'] / 1e9:.0f} GB/s read, {peaks['int8_ops_s'] / 1e9:,.0f} Gop/s int8, "
        f"{peaks['bf16_ops_s'] / 1e9:,.0f} bf16, as measured.",
        fontsize=9,
        color=FAINT,
        va="top",
    )
    figure.tight_layout(rect=(0.01, 0.65 / height, 0.99, 1 - 0.75 / height), h_pad=2.5, w_pad=3)


def draw_growth(results: dict[str, Any], path: Path) -> None:
    """Tokens a second over the batch, over what was read before, over the prompt's length."""
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(1, len(results["series"]), figsize=(14.5, 5.4))
        for axis, series in zip(axes, results["series"], strict=True):
            points = series["points"]
            x = [point["x"] for point in points]
            for side in SIDES:
                y = [point["medians"][side] for point in points]
                axis.plot(x, y, "o-", color=COLOURS[side], lw=2.2, ms=5, label=NAMES[side])
            axis.plot(x, [point["floor"]["limit"] for point in points], color=INK, lw=1, ls=":",
                      label="the machine's limit")  # fmt: skip
            axis.set_xscale("log", base=2)
            axis.set_xticks(x, [f"{value:,}" for value in x], fontsize=8.5)
            axis.minorticks_off()
            axis.set_ylim(bottom=0)
            axis.set_title(series["title"])
            axis.set_xlabel(series["xlabel"])
        axes[0].set_ylabel("tokens a second")
        _heading(figure, results, f"Cost as the work grows: {results['model']} {results['format']}")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="lower center", ncols=3, frameon=False)
        figure.savefig(path, dpi=130)
        plt.close(figure)


def draw_front(results: dict[str, Any], path: Path) -> None:
    """front.json's last section: what the serving process adds to first tokens, and how many tokens a second it sends.

    Medians of the turns, and from the least to the most.
    """
    latest = list(results.values())[-1]
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(11, 4.6), gridspec_kw={"width_ratios": [2, 1]})
        for side, shift in (("before", -BAR / 2), ("after", BAR / 2)):
            first, streams = ([line for line in latest[side] if of.items() <= line.items()] for of in (FIRST, STREAMS))
            added = [[line["first_added_ms"][share] for line in first] for share in SHARES]
            _turns(axes[0], added, side, shift, "{:.2g}")
            _turns(axes[1], [[line["tokens_a_second"] / 1e3 for line in streams]], side, shift, "{:.0f}")
        axes[0].axhline(1, color=REFERENCES["vLLM BF16"], linewidth=1, linestyle="--")
        axes[0].set_title("Added to a first token, milliseconds")
        axes[0].set_xticks(range(len(SHARES)), SHARES.values(), fontsize=9)
        axes[0].set_xlabel("percentile; 64 connections that ask each for itself, steps of 8 ms", fontsize=9)
        axes[1].set_title("Thousand tokens a second")
        axes[1].set_xticks([0], ["256 connections, steps of no time"], fontsize=9)
        height = figure.get_figheight()
        figure.text(0.02, 1 - 0.2 / height, "What the serving process takes", fontsize=16, fontweight="bold", va="top")
        figure.text(0.02, 1 - 0.56 / height, latest["machine"], fontsize=9, color=FAINT, va="top")
        figure.tight_layout(rect=(0.01, 0.4 / height, 0.99, 1 - 0.75 / height), w_pad=3)
        figure.legend(*axes[0].get_legend_handles_labels(), loc="lower center", ncols=2, frameon=False)
        figure.savefig(path, dpi=130)
        plt.close(figure)


def _turns(axis: Axes, samples: list[list[float]], side: str, shift: float, form: str) -> None:
    """A bar for each list, at its median, and a line from its least to its most."""
    colour = COLOURS["octavo" if side == "after" else "llama.cpp"]
    for x, values in enumerate(samples):
        middle = median(values)
        spread = [[middle - min(values)], [max(values) - middle]]
        axis.bar(x + shift, middle, BAR * 0.94, color=colour, label=side if not x else None, yerr=spread, ecolor=FAINT)
        axis.annotate(form.format(middle), (x + shift, max(values)), (0, 3), color=FAINT, **LABEL)
    axis.margins(y=0.15)

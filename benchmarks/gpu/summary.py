"""JSON lines of bench_engine.py from several engines in; medians, ratios, a table, JSON and a chart out.

    python benchmarks/gpu/summary.py LINES.jsonl ... --against vllm --out benchmarks/results/gpu.json [--chart gpu.png]
        [--note key=value ...]

Figures of one (engine, model, work) are medians over its lines. A ratio above 1 is in Octavo's favour.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

OURS = "octavo"
# work, field, what it is, whether more is better
FIGURES = (
    ("startup", "first_token_s", "process start to first token, s", False),
    ("latency", "tpot_ms", "one sequence, ms a token", False),
    ("throughput", "output_tokens_per_s", "256 prompts, output tokens/s", True),
    ("decode", "step_ms", "decode step, ms", False),
    ("prefill", "seconds", "prompt to first token, s", False),
)
Samples = dict[tuple[str, str, str], dict[str, list[float]]]
"""(model, what, size) -> engine -> figures"""


def read(paths: list[Path]) -> Samples:
    """All figures of the files."""
    samples: Samples = defaultdict(lambda: defaultdict(list))
    for path in paths:
        for line in path.read_text().splitlines():
            if not line.startswith("{"):
                continue
            row = json.loads(line)
            for work, field, title, _ in FIGURES:
                if row.get("work") == work:
                    size = str(row.get("batch") or (row["prompt_tokens"] if work == "prefill" else ""))
                    samples[row["model"], title, size][row["engine"]].append(row[field])
    return samples


def rows(samples: Samples, against: str) -> list[dict[str, Any]]:
    """One row a figure: medians of both, all samples, the ratio."""
    better = {title: more for _, _, title, more in FIGURES}
    made = []
    for (model, title, size), engines in samples.items():
        if not engines.get(OURS):
            continue
        middle = {engine: median(values) for engine, values in engines.items()}
        row: dict[str, Any] = {"model": model, "work": title, "size": size, "medians": middle, "samples": engines}
        if against in middle:
            ratio = middle[against] / middle[OURS]
            row["ratio"] = round(1 / ratio if better[title] else ratio, 3)
        made.append(row)
    return made


def shown(value: float) -> str:
    """Four digits, as people write them."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def table(made: list[dict[str, Any]], against: str) -> str:
    """Markdown."""
    lines = [f"| model | work | octavo | {against} | ratio |", "|---|---|---|---|---|"]
    for row in made:
        ours, theirs = row["medians"][OURS], row["medians"].get(against)
        cells = [row["model"], f"{row['work']} {row['size']}".strip(), shown(ours)]
        cells += [shown(theirs) if theirs else "", f"{row['ratio']:.2f}" if "ratio" in row else ""]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(made: list[dict[str, Any]], against: str, heading: str, path: Path) -> None:
    """Ratios as bars, one panel a model."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    compared = [row for row in made if "ratio" in row]
    models = list(dict.fromkeys(row["model"] for row in compared))
    heights = [sum(row["model"] == model for row in compared) for model in models]
    figure, axes = plt.subplots(
        len(models), 1, figsize=(10, 1.2 + 0.42 * sum(heights) + 0.5 * len(models)), squeeze=False, sharex=True,
        height_ratios=heights,
    )  # fmt: skip
    for axis, model in zip(axes.flat, models, strict=True):
        own = [row for row in compared if row["model"] == model][::-1]
        axis.barh(range(len(own)), [row["ratio"] for row in own], color="#0f766e", height=0.62)
        for y, row in enumerate(own):
            pair = f"{row['ratio']:.2f}×   {shown(row['medians'][OURS])} | {shown(row['medians'][against])}"
            axis.annotate(pair, (row["ratio"], y), (4, 0), textcoords="offset points", va="center", fontsize=8.5)
        axis.set_yticks(range(len(own)), [f"{row['work']} {row['size']}".strip() for row in own], fontsize=9)
        axis.axvline(1.0, color="#22303c", lw=1)
        axis.set_title(model, loc="left", fontweight="bold", fontsize=11)
        axis.spines[["top", "right"]].set_visible(False)
        axis.margins(x=0.3)
    figure.suptitle(heading, x=0.01, ha="left", fontsize=12, fontweight="bold")
    figure.tight_layout(rect=(0, 0, 1, 0.985))
    figure.savefig(path, dpi=120)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lines", type=Path, nargs="+")
    parser.add_argument("--against", default="vllm")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--chart", type=Path)
    parser.add_argument("--heading", default="Octavo beside vLLM (bars: how many times as fast; octavo | vLLM)")
    parser.add_argument("--note", action="append", default=[], help="key=value, kept in the file")
    args = parser.parse_args()
    made = rows(read(args.lines), args.against)
    notes = dict(note.split("=", 1) for note in args.note)
    args.out.write_text(json.dumps({"notes": notes, "against": args.against, "rows": made}, indent=1) + "\n")
    print(table(made, args.against))
    if args.chart:
        draw(made, args.against, args.heading, args.chart)


if __name__ == "__main__":
    main()

"""Cost as the work grows, for Octavo and llama.cpp: results/growth.json and a chart over batch, context and prompt."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cpu import arguments_parser, save
from peers import chart
from peers.calm import Calm
from peers.compare import Pair
from peers.floors import Shape, floor, read_shape
from peers.machine import Peaks, about_run, measure_peaks
from peers.models import model_file
from peers.results import figures
from peers.rows import SETTLE, Row, Work, pick_rows

BATCHES = (1, 2, 4, 8, 16, 32, 64)
LENGTHS = (128, 256, 512, 1024, 2048, 4096, 8192)
LIMIT = 8192  # positions of SmolLM2; the longest context leaves room for what is written after it
STEPS = 32


@dataclass(frozen=True)
class Series:
    """One panel: x and the work that it stands for."""

    title: str
    xlabel: str
    xs: tuple[int, ...]
    work: Callable[[int], Work]


SERIES = (
    Series(
        "Writing, all sequences together", "sequences (128 tokens read)", BATCHES,
        lambda x: Work("decode", 128, x, 64),
    ),
    Series(
        "Writing, one sequence", "tokens read before", LENGTHS,
        lambda x: Work("decode", min(x, LIMIT - SETTLE - STEPS), 1, STEPS),
    ),
    Series("Reading a prompt", "its tokens", LENGTHS, lambda x: Work("prefill", min(x, LIMIT - 1))),
)  # fmt: skip


def measure_series(series: Series, pair: Pair, row: Row, shape: Shape, peaks: Peaks, rounds: int) -> dict[str, Any]:
    """The points of one panel, printed as they come."""
    points = []
    for x in series.xs:
        work = series.work(x)
        point = figures(row, work, pair.measure(work, rounds), floor(shape, work, peaks, products=row.products))
        points.append({"x": x, **{name: point[name] for name in ("medians", "samples", "ratio", "floor", "reached")}})
        speeds = ", ".join(f"{side} {value:,.0f}" for side, value in point["medians"].items())
        print(f"{series.title}, {x:,} {series.xlabel}: {speeds}", flush=True)
    return {"title": series.title, "xlabel": series.xlabel, "points": points}


def measure(row: Row, arguments: Namespace) -> dict[str, Any]:
    """All panels of one model file."""
    peaks, calm = measure_peaks(arguments.threads), Calm(arguments.threads)
    path = model_file(row, arguments.models)
    with Pair(path, threads=arguments.threads, octavo_options=arguments.octavo_args, calm=calm) as pair:
        shape = read_shape(path)
        panels = [measure_series(series, pair, row, shape, peaks, arguments.rounds) for series in SERIES]
        about = pair.about()
    return {
        **about_run(arguments, peaks),
        "row": row.name,
        "model": row.model,
        "format": row.format,
        "about": about,
        "series": panels,
    }


def main() -> None:
    parser = arguments_parser(__doc__, out="growth.json")
    parser.add_argument("--row", default="smollm2-q4_1", help="which model file; SmolLM2 reads up to 8,192 tokens")
    arguments = parser.parse_args()
    arguments.rounds = arguments.rounds or (1 if arguments.quick else 3)
    (row,) = pick_rows(arguments.row)
    results = measure(row, arguments)
    save(results, arguments.out)
    chart.draw_growth(results, arguments.out.with_suffix(".png"))
    print(f"{arguments.out} and its chart are written.")


if __name__ == "__main__":
    main()

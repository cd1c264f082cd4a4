"""Octavo beside llama.cpp on this machine: results/cpu.json, results/cpu.png and a table, medians of turns A B A B."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from peers import chart
from peers.calm import Calm
from peers.compare import Pair
from peers.floors import floor, read_shape
from peers.machine import Peaks, about_run, measure_peaks
from peers.models import model_file
from peers.results import figures, lines, row_head, table
from peers.rows import VLLM, Row, pick_rows, pick_works

from octavo.backends.cpu.host import default_threads

HERE = Path(__file__).parent


def arguments_parser(description: str | None, *, out: str) -> argparse.ArgumentParser:
    """The options that every comparison has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="fewer rounds: to see that it works, not to quote")
    parser.add_argument("--rounds", type=int, help="samples of each engine (default 7, with --quick 2)")
    parser.add_argument("--threads", type=int, default=default_threads(), help="of each engine, pinned")
    parser.add_argument("--octavo-args", type=json.loads, default={}, metavar="JSON", help="further LLM arguments")
    parser.add_argument("--models", type=Path, default=HERE.parent / ".models", help="folder of the model files")
    parser.add_argument("--out", type=Path, default=HERE / "results" / out, help="the JSON; the chart lies beside it")
    return parser


def measure_row(row: Row, arguments: argparse.Namespace, peaks: Peaks, calm: Calm) -> dict[str, Any]:
    """One model file's figures, printed as they come."""
    path = model_file(row, arguments.models)
    shape = read_shape(path)
    result = row_head(row) | {"bytes": path.stat().st_size}
    with Pair(path, threads=arguments.threads, octavo_options=arguments.octavo_args, calm=calm) as pair:
        for work in arguments.works:
            samples = pair.measure(work, arguments.rounds)
            result["works"][work.name] = figures(row, work, samples, floor(shape, work, peaks, products=row.products))
            print("  ".join(lines(result)[-1]), flush=True)
        result["about"] = pair.about()
    return result


def save(results: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = arguments_parser(__doc__, out="cpu.json")
    parser.add_argument(
        "--rows", default="", help="comma separated, such as smollm2-q4_1,gemma3-bf16, or any .gguf; default all"
    )
    parser.add_argument("--works", default="", help="comma separated, such as prefill_512,decode_1; default all")
    arguments = parser.parse_args()
    rows, arguments.works = pick_rows(arguments.rows), pick_works(arguments.works)
    arguments.rounds = arguments.rounds or (2 if arguments.quick else 7)
    print("Measuring the machine's peaks ...", flush=True)
    peaks, calm = measure_peaks(arguments.threads), Calm(arguments.threads)
    results: dict[str, Any] = {
        **about_run(arguments, peaks),
        "vllm": {"note": "vLLM 0.32 CPU on the same processor; constants, not measured in this run", **VLLM},
        "rows": [],
    }
    for number, row in enumerate(rows, 1):
        print(f"[{number}/{len(rows)}] {row.model} {row.format}", flush=True)
        results["rows"].append(measure_row(row, arguments, peaks, calm))
        results["calm"] = {"waited_s": round(calm.waited, 1), "samples_taken_again": calm.again}
        save(results, arguments.out)
    print("\n" + table(results))
    chart.draw_rows(results, arguments.out.with_suffix(".png"))
    print(f"\n{arguments.out} and its chart are written.")


if __name__ == "__main__":
    main()

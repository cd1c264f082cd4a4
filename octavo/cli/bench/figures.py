"""Lists of seconds in; means, percentiles, tables for people and JSON files out."""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from octavo.cli.output import as_path, naming, replacing

WIDTH = 50
PERCENTAGES = (10, 25, 50, 75, 90, 99)
FAILED = 1  # exit code where a request failed


def percentile(values: Sequence[float], percent: float) -> float:
    """Between the two nearest values by distance, as numpy.percentile does by default; 0 of nothing."""
    if not values:
        return 0.0
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def percentiles(values: Sequence[float]) -> dict[int, float]:
    """Those that every offline benchmark reports."""
    return {percent: percentile(values, percent) for percent in PERCENTAGES}


def mean(values: Sequence[float]) -> float:
    """0 of nothing."""
    return statistics.fmean(values) if values else 0.0


def deviation(values: Sequence[float]) -> float:
    """Of the whole population; 0 of nothing."""
    return statistics.pstdev(values) if values else 0.0


def heading(text: str, line: str) -> str:
    """` text ` in the middle of a ruled line."""
    return f" {text} ".center(WIDTH, line) if line == "=" else text.center(WIDTH, line)


def row(label: str, value: float | str) -> str:
    """One line of a table: floats with two digits after the point."""
    return f"{label:<40} {value:<10.2f}" if isinstance(value, float) else f"{label:<40} {value:<10}"


def write_json(path: str | Path, result: dict[str, Any], *, append: bool = False) -> None:
    """The result as a JSON object; one a line where appended. OSErrors name the path."""
    if not append:
        with replacing(path) as file:
            json.dump(result, file, indent=4)
        return
    target = as_path(str(path))
    with naming(path), target.open("a", encoding="utf-8") as file:
        torn = file.tell() and not target.read_bytes().endswith(b"\n")
        file.write(("\n" if torn else "") + json.dumps(result) + "\n")


def note_interrupt(result: dict[str, Any], done: int, total: int, what: str) -> bool:
    """Whether less was measured than asked for: Ctrl-C. Told on stderr, and in the result as `interrupted`."""
    if done == total:
        return False
    result["interrupted"] = True
    print(f"interrupted: the figures are of {done} of {total} {what}", file=sys.stderr)
    return True


def report_errors(errors: Sequence[str]) -> int:
    """Tell on stderr what failed, each reason once with its number; the exit code."""
    counts: dict[str, int] = {}
    for error in errors:
        counts[error] = counts.get(error, 0) + 1
    for error, count in sorted(counts.items(), key=lambda item: -item[1]):
        print(f"{count} failed: {error}", file=sys.stderr)
    return FAILED if errors else 0


def progress(total: int, text: str, *, shown: bool = True) -> Any:
    """A tqdm bar on a terminal's stderr, elsewhere one that shows nothing: to iterate over, or to be told each step."""
    from tqdm import tqdm

    disable = not (shown and total and sys.stderr.isatty())
    return tqdm(range(total), desc=text, dynamic_ncols=True, disable=disable)

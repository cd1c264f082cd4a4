"""Samples in; the figures that are kept and shown out: medians, ratios, targets, floors, a table."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from peers.compare import SIDES, Samples, medians
from peers.floors import Floor
from peers.rows import VLLM, Row, Work

OURS, THEIRS = SIDES


def figures(row: Row, work: Work, samples: Samples, floor: Floor) -> dict[str, Any]:
    """One row's one piece of work: tokens a second throughout."""
    middle = medians(samples)
    ratio, target, least = middle[OURS] / middle[THEIRS], row.ratio(work), row.least.get(work.name)
    aims = [ratio >= target] if target else []
    aims += [middle[OURS] >= least] if least else []
    return {
        "medians": {side: round(value, 1) for side, value in middle.items()},
        "samples": {side: [round(value, 1) for value in values] for side, values in samples.items()},
        "ratio": round(ratio, 3),
        "target_ratio": target,
        "target_least": least,
        "met": all(aims) if aims else None,
        "floor": {**asdict(floor), "limit": round(floor.limit, 1)},
        "reached": {side: round(value / floor.limit, 3) for side, value in middle.items()},
    }


def row_head(row: Row) -> dict[str, Any]:
    return {"row": row.name, "model": row.model, "format": row.format, "file": Path(row.file).name, "works": {}}


COLUMNS = ("model", "work", "octavo", "llama.cpp", "ratio", "target", "met", "limit", "bound", "reached", "theirs")


def lines(row: dict[str, Any]) -> list[list[str]]:
    """The table's cells of one row of the results."""
    return [
        [
            f"{row['model'].partition('-')[0]} {row['format']}".strip(),
            name.replace("_", " "),
            *(f"{work['medians'][side]:,.0f}" for side in SIDES),
            f"{work['ratio']:.2f}",
            _target(work),
            {None: "", True: "yes", False: "no"}[work["met"]],
            f"{work['floor']['limit']:,.0f}",
            work["floor"]["bound"],
            *(f"{100 * work['reached'][side]:.0f} %" for side in SIDES),
        ]
        for name, work in row["works"].items()
    ]


def _target(work: dict[str, Any]) -> str:
    ratio = f"{work['target_ratio']:g}x" if work["target_ratio"] else ""
    return " ".join(part for part in (ratio, f"{work['target_least']:,.0f}" if work["target_least"] else "") if part)


def table(results: dict[str, Any]) -> str:
    """All rows as a Markdown table, with vLLM's constants below."""
    cells = [list(COLUMNS), *(line for row in results["rows"] for line in lines(row))]
    widths = [max(len(line[i]) for line in cells) for i in range(len(COLUMNS))]
    shown = [_line(line, widths) for line in cells]
    shown.insert(1, _line(["-" * width for width in widths], widths))
    models = list(dict.fromkeys(row["model"] for row in results["rows"]))
    shown += ["", "vLLM 0.32 on the same processor (constants, not measured in this run), tokens a second:"]
    shown += [
        f"  {model}, {name}: " + ", ".join(f"{work.replace('_', ' ')} {value:,}" for work, value in speeds.items())
        for model in models
        for name, speeds in VLLM.get(model, {}).items()
    ]
    return "\n".join(shown)


def _line(cells: list[str], widths: list[int]) -> str:
    words = [cell.ljust(width) for cell, width in zip(cells[:2], widths[:2], strict=True)]
    numbers = [cell.rjust(width) for cell, width in zip(cells[2:], widths[2:], strict=True)]
    return "| " + " | ".join(words + numbers) + " |"

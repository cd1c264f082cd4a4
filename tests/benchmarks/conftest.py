"""Puts benchmarks/ on the path; the results of a run that never was, for tables and charts."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from peers.floors import Shape, floor
from peers.machine import Peaks
from peers.results import figures, row_head
from peers.rows import ROWS, WORKS

PEAKS = Peaks(2, 25e9, 900e9, 440e9, "a product", "another product")
SHAPES = {"SmolLM2-135M": Shape(90_000_000, 106_000_000, 28_000_000, 30, 576, 192)}
SHAPES["Gemma-3-270M"] = Shape(240_000_000, 100_000_000, 168_000_000, 18, 1024, 256)
OURS = {"prefill_512": 1800.0, "decode_1": 190.0, "decode_8": 800.0, "decode_16": 950.0, "decode_32": 1200.0}
THEIRS = {"prefill_512": 320.0, "decode_1": 120.0, "decode_8": 200.0, "decode_16": 240.0, "decode_32": 260.0}


def heading() -> dict[str, Any]:
    return {
        "date": "2026-11-30",
        "machine": {"processor": "A Processor"},
        "threads": 2,
        "rounds": 3,
        "peaks": asdict(PEAKS),
    }


@pytest.fixture
def results() -> dict[str, Any]:
    """As benchmarks/cpu.py writes it."""
    rows = []
    for number, row in enumerate(ROWS):
        scale = 1 - 0.08 * number
        head = row_head(row)
        for work in WORKS:
            samples = {
                "octavo": [OURS[work.name] * scale * by for by in (0.9, 1, 1.1)],
                "llama.cpp": [THEIRS[work.name] * by for by in (1.2, 1, 0.7)],
            }
            limit = floor(SHAPES[row.model], work, PEAKS, products=row.products)
            head["works"][work.name] = figures(row, work, samples, limit)
        rows.append(head)
    return {**heading(), "rows": rows}


@pytest.fixture
def growth() -> dict[str, Any]:
    """As benchmarks/growth.py writes it."""
    points = [
        {"x": x, "medians": {"octavo": 100.0 + x, "llama.cpp": 80.0 + x / 2}, "floor": {"limit": 250.0 + x}}
        for x in (1, 2, 4, 8, 16, 32, 64)
    ]
    series = [{"title": f"Panel {i}", "xlabel": "things", "points": points} for i in range(3)]
    return {**heading(), "model": "A-Model", "format": "Q4_1", "series": series}

"""Charts are drawn from results as they stand in the files; peaks.cpp compiles for every kind of processor."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest

SOURCE = Path(__file__).parents[2] / "benchmarks" / "peers" / "peaks.cpp"
TARGETS = {
    "g++": ["-march=x86-64-v3", "-march=x86-64-v4", "-march=sapphirerapids"],
    "aarch64-linux-gnu-g++": ["-march=armv8.2-a+dotprod", "-march=armv8.6-a"],
}


def png_size(path: Path) -> tuple[int, int]:
    head = path.read_bytes()[:24]
    assert head.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", head[16:])
    return width, height


def as_read(results: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(results))


@pytest.mark.parametrize("rows", [1, 7])
def test_chart_of_rows(results: dict[str, Any], tmp_path: Path, rows: int) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib of the test group is not installed")
    from peers.chart import draw_rows

    results["rows"] = results["rows"][:rows]
    draw_rows(as_read(results), tmp_path / "cpu.png")
    assert min(png_size(tmp_path / "cpu.png")) > 900


@pytest.mark.parametrize("work", ["decode_1", "decode_16"])
def test_chart_of_some_work(results: dict[str, Any], tmp_path: Path, work: str) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib of the test group is not installed")
    from peers.chart import draw_rows

    for row in results["rows"]:
        row["works"] = {work: row["works"][work]}
    draw_rows(as_read(results), tmp_path / "cpu.png")
    width, height = png_size(tmp_path / "cpu.png")
    assert height < width


def test_chart_of_growth(growth: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib of the test group is not installed")
    from peers.chart import draw_growth

    draw_growth(as_read(growth), tmp_path / "growth.png")
    assert min(png_size(tmp_path / "growth.png")) > 600


def test_chart_of_the_front(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib of the test group is not installed")
    from peers.chart import draw_front

    stored = SOURCE.parents[1] / "results" / "front.json"
    draw_front(json.loads(stored.read_text()), tmp_path / "front.png")
    assert min(png_size(tmp_path / "front.png")) > 500


@pytest.mark.parametrize(
    ("compiler", "target"), [(compiler, target) for compiler, targets in TARGETS.items() for target in targets]
)
def test_peaks_compile(compiler: str, target: str) -> None:
    if not shutil.which(compiler) or (compiler == "g++" and "x86" not in _machine(compiler)):
        pytest.skip(f"no {compiler} for {target} here")
    command = [compiler, "-std=c++17", "-fsyntax-only", "-Wall", "-Wextra", "-Werror", target, str(SOURCE)]
    subprocess.run(command, check=True)


def _machine(compiler: str) -> str:
    return subprocess.run([compiler, "-dumpmachine"], check=True, capture_output=True, text=True).stdout

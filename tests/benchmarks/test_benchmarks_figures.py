"""The pure parts of the comparison with llama.cpp: turns, medians, targets, floors, the table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from peers.compare import SIDES, Worker, alternate, medians
from peers.floors import Floor, Shape, floor, read_shape
from peers.machine import Peaks
from peers.models import model_file
from peers.results import figures, row_head, table
from peers.rows import DECODES, PREFILL, ROWS, SETTLE, Work, pick_rows, pick_works
from weight_files import write_gguf

PEAKS = Peaks(2, 10e9, 1000e9, 100e9, "a", "b")
SHAPE = Shape(weight_bytes=10**8, body=10**8, head=2 * 10**7, layers=10, query_width=500, kv_width=100)
FLOOR = Floor(bytes=1.0, operations=1.0, limit=1000.0, bound="reading")


def test_sides_take_turns_after_a_warm_up() -> None:
    calls: list[str] = []

    def side(name: str, values: list[float]) -> Any:
        return lambda: (calls.append(name), values.pop(0))[1]

    samples = alternate({"a": side("a", [99, 1, 5, 3]), "b": side("b", [99, 2, 4, 9])}, 3)
    assert calls == ["a", "b"] * 4
    assert samples == {"a": [1, 5, 3], "b": [2, 4, 9]}
    assert medians(samples) == {"a": 3, "b": 4}


def test_names_and_tokens_of_work() -> None:
    assert (PREFILL.name, PREFILL.tokens, PREFILL.longest) == ("prefill_512", 512, 513)
    work = DECODES[8]
    assert (work.name, work.tokens, work.longest) == ("decode_8", 8 * 64, 128 + SETTLE + 64)


def test_rows_and_works_are_picked_by_name() -> None:
    assert [row.name for row in pick_rows("gemma3-bf16,smollm2-q4_1")] == ["gemma3-bf16", "smollm2-q4_1"]
    assert pick_rows("") == list(ROWS)
    assert pick_works("decode_8") == [DECODES[8]]
    with pytest.raises(SystemExit, match=r"nothing unknown; there are smollm2-q4_1"):
        pick_rows("nothing")


def test_any_file_is_a_row_without_targets_of_its_own(tmp_path: Path) -> None:
    file = tmp_path / "Some-Model.BF16.gguf"
    file.touch()
    named, row = pick_rows(f"smollm2-q4_1,{file}")
    assert named == ROWS[0]
    assert (row.products, row.ratio(PREFILL), model_file(row, tmp_path / "elsewhere")) == ("bf16", 0.0, file.resolve())
    made = {
        "rows": [
            row_head(row) | {"works": {PREFILL.name: figures(row, PREFILL, {side: [9.0] for side in SIDES}, FLOOR)}}
        ]
    }
    assert "| Some-Model.BF16" in table(made)
    with pytest.raises(SystemExit, match=r"no file none\.gguf"):
        pick_rows("none.gguf")


def test_figures_are_medians_against_both_targets() -> None:
    row = ROWS[0]
    samples = {"octavo": [1900.0, 2000.0, 10.0, 2100.0, 1950.0], "llama.cpp": [400.0, 300.0, 325.0, 1.0, 900.0]}
    made = figures(row, PREFILL, samples, FLOOR)
    assert made["medians"] == {"octavo": 1950.0, "llama.cpp": 325.0}
    assert (made["ratio"], made["target_ratio"], made["target_least"], made["met"]) == (6.0, 6.0, 1600.0, True)
    assert made["reached"] == {"octavo": 1.95, "llama.cpp": 0.325}
    slow = {"octavo": [1500.0], "llama.cpp": [100.0]}
    assert figures(row, PREFILL, slow, FLOOR)["met"] is False, "15x, but below the least"
    assert figures(row, DECODES[16], slow, FLOOR)["met"] is None, "nothing is aimed at"


def test_prefill_is_bound_by_products() -> None:
    made = floor(SHAPE, Work("prefill", 100), PEAKS, products="int8")
    operations = 2 * (100 * 10**8 + 2 * 10**7) + 100 * 50.5 * 10 * 4 * 500
    assert made.operations == operations
    assert made.bound == "computing"
    assert made.limit == pytest.approx(100 / (operations / 1000e9))
    assert floor(SHAPE, Work("prefill", 100), PEAKS, products="bf16").limit == pytest.approx(made.limit / 10)


def test_one_sequence_is_bound_by_reading() -> None:
    made = floor(SHAPE, Work("decode", 92, 1, 1), PEAKS, products="int8")
    seen = 92 + SETTLE + 1
    assert made.bytes == 10**8 + seen * 10 * 2 * 100 * 2
    assert made.bound == "reading"
    assert made.limit == pytest.approx(10e9 / made.bytes)


@pytest.mark.parametrize("tied", [True, False])
def test_shape_of_a_file(tmp_path: Path, tied: bool) -> None:
    tensors = write_gguf(tmp_path / "m.gguf", tied=tied)
    shape = read_shape(tmp_path / "m.gguf")
    matrices = {name: array.size for name, array in tensors.items() if array.ndim == 2}
    head = matrices["token_embd.weight" if tied else "output.weight"]
    whole = sum(array.nbytes for array in tensors.values())
    assert shape.head == head
    assert shape.body == sum(matrices.values()) - (head if tied else head + matrices["token_embd.weight"])
    assert shape.weight_bytes == (whole if tied else whole - tensors["token_embd.weight"].nbytes)
    assert (shape.query_width, shape.kv_width) == (
        tensors["blk.0.attn_q.weight"].shape[0],
        tensors["blk.0.attn_k.weight"].shape[0],
    )


def test_table_shows_every_row_and_names_constants(results: dict[str, Any]) -> None:
    shown = table(results).splitlines()
    assert len({len(line) for line in shown if line.startswith("|")}) == 1, "columns line up"
    assert len([line for line in shown if line.startswith("|")]) == 2 + 7 * 5
    (line,) = [line for line in shown if "SmolLM2 Q4_1" in line and "prefill 512" in line]
    assert [cell.strip() for cell in line.split("|")[3:8]] == ["1,800", "320", "5.62", "6x 1,600", "no"]
    assert any("constants, not measured in this run" in line for line in shown)


def test_a_missing_file_names_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="make bench-cpu"):
        model_file(ROWS[0], tmp_path)
    with pytest.raises(SystemExit, match=r"SmolLM2-135M-Instruct\.Q4_1\.gguf, which .* is made from, is missing"):
        model_file(ROWS[1], tmp_path)


@pytest.mark.real
def test_octavo_is_measured_in_a_process_of_its_own(real_model: Any) -> None:
    with Worker("octavo", real_model("smollm2"), threads=1, options={"max_model_len": 128}) as worker:
        assert worker.speed(Work("prefill", 32)) > 0
        assert worker.call("decode", 2, 16, 4) != 0
        assert set(worker.call("about")) == {"octavo", "options"}


def test_a_worker_that_dies_says_where(tmp_path: Path) -> None:
    with (
        Worker("octavo", tmp_path / "none.gguf", threads=1, options={}) as worker,
        pytest.raises(SystemExit, match="octavo ended with 1 at"),
    ):
        worker.call("prefill", 8)

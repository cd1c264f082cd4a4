"""benchmarks/streams.py: two rounds of a small server, and what is made of clients' times."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import processes
import pytest
import streams


@pytest.mark.skipif(not processes.KNOWN, reason="Linux")
def test_two_rounds(checkpoint: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--streams", "4", "--clients", "2", "--requests", "8", "--length", "12", "--serve=--device=cpu"]
    streams.main([str(checkpoint("llama")), *few])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert [line["round"] for line in lines] == [1, 2]
    for line in lines:
        assert line["completed"] == 8
        assert line["tokens_a_second"] > 0
        assert 0 < line["p50_ms"] <= line["p95_ms"] <= line["p99_ms"]


def test_gaps_of_all_clients_are_one_distribution() -> None:
    one = {"itls": [[0.008] * 90, []], "ttfts": [0.01, 0.02], "completed": 2, "output_throughput": 100.4}
    other = {"itls": [[0.016] * 10], "ttfts": [0.03], "completed": 1, "output_throughput": 20.0}
    assert streams.sum_up([one, other]) == {
        "completed": 3,
        "tokens_a_second": 120,
        "p50_ms": 8.0,
        "p95_ms": 16.0,
        "p99_ms": 16.0,
        "p99_ratio": 2.0,
        "first_ms": 20.0,
    }

"""benchmarks/soak.py, the short form: its figures are what they must be, with the engine process killed on the way."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import processes
import pytest
import soak


@pytest.mark.skipif(not processes.KNOWN, reason="Linux")
def test_a_short_soak(checkpoint: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    code = soak.main([str(checkpoint("llama")), "--minutes", "0.15", "--clients", "32", "--kills", "1"])
    out, errors = capsys.readouterr()
    assert code == 0, out + errors
    figures = json.loads(out)
    assert figures["kills"] == 1
    assert figures["compared"] > 10
    assert figures["preemptions"] > 10


def test_slope_and_percentile() -> None:
    assert soak.slope([(float(t), 7.0 + t) for t in range(40)]) == pytest.approx(3600)
    assert soak.p99([]) == 0
    assert soak.p99([0.001] * 98 + [1.0] * 2) == 1000

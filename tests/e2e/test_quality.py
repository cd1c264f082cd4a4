"""What a CPU rounds by default keeps the logits near float32 ones: the bound of docs/decisions/0002, on real text."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from octavo.backends.cpu.native import library

QUALITY = Path(__file__).parents[2] / "benchmarks" / "quality_cpu.py"


@pytest.mark.real
@pytest.mark.timeout(600)
def test_rounded_logits_are_near_exact_ones(real_model: Callable[[str], Path]) -> None:
    path = real_model("smollm2")
    run = subprocess.run(
        [sys.executable, str(QUALITY), str(path), "--tokens", "1000"], capture_output=True, text=True, check=True
    )
    figures = json.loads(run.stdout.splitlines()[-1])
    assert figures["tokens"] > 900
    assert figures["kl_mean"] < 1e-3
    assert abs(figures["perplexity_change_percent"]) < 0.5
    assert (figures["kl_mean"] > 1e-6) == (library() is not None)

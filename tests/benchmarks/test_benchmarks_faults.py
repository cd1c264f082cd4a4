"""benchmarks/faults.py, the short form of its modes: the figures are what they must be."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faults
import processes
import pytest

MODES: dict[str, tuple[str, dict[str, Any]]] = {
    "crashes": ("--count 2 --clients 8", {"restarts": 2}),
    "overload": ("--minutes 0.05 --warm-up 1", {}),
    "disconnects": ("--count 200", {"disconnects": 200, "warnings": 0}),
    "cycles": ("--count 30", {"cycles": 30}),
}


@pytest.mark.skipif(not processes.KNOWN, reason="Linux")
@pytest.mark.parametrize("mode", MODES)
def test_a_short_form(mode: str, checkpoint: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    flags, expected = MODES[mode]
    code = faults.main([mode, str(checkpoint("llama")), *flags.split()])
    out, errors = capsys.readouterr()
    assert code == 0, out + errors
    figures = json.loads(out)
    assert {name: figures[name] for name in expected} == expected
    assert figures.get("compared", 0) + figures.get("answered", 0) > 0 or mode == "cycles"

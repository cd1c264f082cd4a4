"""benchmarks/faults.py, the short form of its modes: the figures are what they must be."""

from __future__ import annotations

import json
import subprocess
import sys
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
def test_a_short_form(mode: str, checkpoint: Callable[[str], Path]) -> None:
    """In a process of its own: what it holds is counted."""
    flags, expected = MODES[mode]
    command = [sys.executable, faults.__file__, mode, str(checkpoint("llama")), *flags.split()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(done.stdout)
    assert {name: figures[name] for name in expected} == expected
    assert figures.get("compared", 0) + figures.get("answered", 0) > 0 or mode == "cycles"

"""An empty stdin, the small llama's folder, and a live server over a FakeLLM (tests/server): for tests of commands."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "server"))


@pytest.fixture(autouse=True)
def stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO())


@pytest.fixture(scope="session")
def llama(checkpoint: Callable[[str], Path]) -> str:
    return str(checkpoint("llama"))


@pytest.fixture
def server() -> Iterator[Any]:
    from fake_llm import FakeLLM
    from serving import LiveServer

    with LiveServer(FakeLLM(max_num_seqs=64)) as live:
        yield live

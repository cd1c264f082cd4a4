"""One small model in this process, shared by the tests of the Python interface."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from octavo import LLM

SMALL = {"max_num_seqs": 8, "kv_cache_memory_bytes": 4 << 20, "device": "cpu", "threads": 1}


@pytest.fixture(scope="session")
def llama(checkpoint: Callable[[str], Path]) -> str:
    """Folder of the small model."""
    return str(checkpoint("llama"))


@pytest.fixture(scope="session")
def llm(llama: str) -> Iterator[LLM]:
    """The small model, loaded once; a test leaves nothing behind in it."""
    with LLM(llama, **SMALL) as model:
        yield model


@pytest.fixture(autouse=True)
def _engine_is_clean(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "llm" in request.fixturenames:
        model = request.getfixturevalue("llm")
        model._engine.call("check")
        stats = model._engine.stats()
        assert (stats.num_running, stats.num_waiting) == (0, 0)

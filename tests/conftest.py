"""Fixtures that several test folders share: small checkpoints made once a session, the real model files."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

REAL = {"smollm2": "SmolLM2-135M-Instruct.Q4_1.gguf", "gemma3": "gemma-3-270m-q4_k_m.gguf"}


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """checkpoint(name) -> folder of the small random model `name` (tests/checkpoints.py), made on first use."""
    from checkpoints import make_checkpoint

    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            made[name] = make_checkpoint(name, tmp_path_factory.mktemp("models") / name)
        return made[name]

    return get


@pytest.fixture(scope="session")
def real_model() -> Callable[[str], Path]:
    """real_model("smollm2" | "gemma3") -> the GGUF file; skips where OCTAVO_TEST_MODELS is not set."""

    def get(name: str) -> Path:
        folder = os.environ.get("OCTAVO_TEST_MODELS")
        if not folder:
            pytest.skip("OCTAVO_TEST_MODELS is not set (make test sets it)")
        return Path(folder) / REAL[name]

    return get


@pytest.fixture
def hub() -> Iterator[Any]:
    """A small hub on localhost."""
    from fake_hub import FakeHub

    with FakeHub() as running:
        yield running


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """What a command sets up in this process goes after its test: caplog would be empty in all later ones."""
    logger = logging.getLogger("octavo")
    before = list(logger.handlers), logger.level, logger.propagate
    yield
    for handler in [handler for handler in logger.handlers if handler not in before[0]]:
        logger.removeHandler(handler)
        logging.getLogger().removeHandler(handler)
        handler.close()
    logger.setLevel(before[1])
    logger.propagate = before[2]


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a user without a home directory, and without OCTAVO_CACHE."""

    def unknown(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("OCTAVO_CACHE", raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)

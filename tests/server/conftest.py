"""A FakeLLM and a live server over it, for the tests of the HTTP side."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import openai
import pytest
from fake_llm import FakeLLM
from log_lines import Lines
from serving import LiveServer


@pytest.fixture
def llm() -> FakeLLM:
    return FakeLLM()


@pytest.fixture
def server(llm: FakeLLM) -> Iterator[LiveServer]:
    with LiveServer(llm) as live:
        yield live


@pytest.fixture(scope="module")
def shared() -> Iterator[LiveServer]:
    """One server for the tests of a module that change nothing in it."""
    with LiveServer(FakeLLM()) as live:
        yield live


@pytest.fixture(scope="module")
def client(shared: LiveServer) -> Iterator[openai.OpenAI]:
    """The stock client of that server."""
    with shared.openai() as talking:
        yield talking


@pytest.fixture
def lines() -> Iterator[Lines]:
    found, logger = Lines(), logging.getLogger("octavo")
    level = logger.level
    logger.addHandler(found.handler)
    logger.setLevel(logging.DEBUG)
    yield found
    logger.setLevel(level)
    logger.removeHandler(found.handler)

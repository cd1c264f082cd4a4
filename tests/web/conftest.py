"""One Chromium a session, one scripted server a test, and an empty browser storage each time."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "server"))

from browser import Browser, find
from chatting import fresh, visit
from scripted import ScriptedServer


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    if find() is None:
        pytest.skip("no Chromium with ChromeDriver on PATH (Debian: chromium, chromium-driver; .ci/install-browser)")
    with Browser() as browser:
        yield browser


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as live:
        yield live


@pytest.fixture
def page(chromium: Browser, server: ScriptedServer) -> Iterator[Browser]:
    """The page, just opened on a server of its own; its console must stay without errors (a test may take some off)."""
    fresh(chromium)
    visit(chromium, server.url)
    chromium.wait(lambda: chromium.text(".status") == "Ready")
    yield chromium
    assert not [error for error in chromium.errors() if "favicon" not in error]
    chromium.open("about:blank")

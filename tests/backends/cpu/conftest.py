"""Fixtures for kernels that run outside this process (native_remote.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from native_remote import Remote, remote


@pytest.fixture(scope="session")
def remotes(request: pytest.FixtureRequest) -> Iterator[Callable[[str], Remote]]:
    """remotes(place) -> its process, started on first use; skips where its tools are missing."""
    made: dict[str, Remote] = {}
    with ExitStack() as stack:

        def get(place: str) -> Remote:
            if place not in made:
                made[place] = stack.enter_context(remote(place, request.config.cache.mkdir("native")))
            return made[place]

        yield get

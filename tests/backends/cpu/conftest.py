"""Fixtures for kernels in this process (native_calls.py) and outside of it (native_remote.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import native_tiny
import numpy as np
import pytest
from native_calls import REMOTE, TARGETS, Native, kernels
from native_remote import Remote, remote

from octavo.backends.cpu.native import Pool


@pytest.fixture(autouse=True)
def as_in_the_worker() -> Iterator[None]:
    """NumPy's products read past a row's end at times, and mark as invalid what comes of it; the backend's own threads
    ignore such marks, and a test must not depend on what lies there.
    """
    with np.errstate(all="ignore"):
        yield


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


@pytest.fixture(params=native_tiny.TARGETS, ids=" ".join)
def pool(request: pytest.FixtureRequest, remotes: Callable[[str], Remote]) -> Iterator[Pool]:
    with native_tiny.target(*request.param, remotes) as made:
        yield made


@pytest.fixture(params=["here", *REMOTE])
def library(request: pytest.FixtureRequest, remotes: Callable[[str], Remote]) -> Native:
    return kernels(request.param, remotes)


@pytest.fixture(params=TARGETS, ids=" ".join)
def native(request: pytest.FixtureRequest, remotes: Callable[[str], Remote]) -> Iterator[Native]:
    place, variant = request.param
    library = kernels(place, remotes)
    if not library.choose(variant):
        pytest.skip(f"this processor does not run {variant}")
    yield library
    library.choose("auto")

"""The native threads: as many as asked for, only where the process may run, a core each where there is one for each."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np
import processes
import pytest

from octavo.backends.cpu import native
from octavo.backends.cpu.native import Pool
from octavo.backends.cpu.sampler import Draw

CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
NAME = "octavo-cpu-"

pytestmark = pytest.mark.skipif(not processes.KNOWN or native.library() is None, reason="Linux and compiled kernels")


@pytest.fixture(autouse=True)
def affinity() -> Iterator[None]:
    yield
    os.sched_setaffinity(0, CORES)


def made(threads: int) -> dict[str, set[int]]:
    """The cores of a pool's own threads, after a job; the caller's are as before."""
    before = os.sched_getaffinity(0)
    pool = Pool(native.library(), threads)
    draws = [Draw(np.arange(300, dtype=np.float32), n, 0.0, 0, 1.0, 0.0) for n in range(20)]
    assert pool.draw(draws) == [299] * 20
    found = processes.threads(os.getpid(), NAME)
    assert os.sched_getaffinity(0) == before
    pool.close()
    for _ in range(200):  # the system may list a thread for a moment after it was joined
        if not processes.threads(os.getpid(), NAME):
            return found
        time.sleep(0.01)
    raise AssertionError(processes.threads(os.getpid(), NAME))


def test_as_many_as_asked_for() -> None:
    for threads in (1, 2, 4):
        assert sorted(made(threads)) == [f"{NAME}{member}" for member in range(1, threads)]


def test_only_where_the_process_may_run() -> None:
    """Three on one core take turns; nothing is pinned elsewhere."""
    os.sched_setaffinity(0, CORES[-1:])
    assert list(made(3).values()) == [{CORES[-1]}] * 2


@pytest.mark.skipif(len(CORES) < 2, reason="one core")
def test_a_core_each_where_there_is_one_for_each() -> None:
    assert made(len(CORES)) == {f"{NAME}{member}": {CORES[member]} for member in range(1, len(CORES))}


@pytest.mark.skipif(len(CORES) < 3, reason="fewer than three cores")
def test_anywhere_where_cores_are_left_over() -> None:
    assert made(2) == {f"{NAME}1": set(CORES)}


REFUSED = """
import os, resource, time
from octavo.backends.cpu import native
from octavo.base.errors import ConfigError

loaded, before = native.library(), len(os.listdir("/proc/self/task"))
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + (64 << 20), resource.RLIM_INFINITY))  # a few stacks
try:
    native.Pool(loaded, 500)
except ConfigError as error:
    print(error.param, error, sep=": ")
for _ in range(200):  # the system may list a thread for a moment after it was joined
    if len(os.listdir("/proc/self/task")) == before:
        break
    time.sleep(0.01)
print(len(os.listdir("/proc/self/task")) - before)
native.Pool(loaded, 2).close()
"""


def test_threads_that_the_system_refuses_are_an_error() -> None:
    """Those that were begun have ended, and fewer can be had."""
    made = subprocess.run([sys.executable, "-c", REFUSED], capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    told, left = made.stdout.splitlines()
    assert told.startswith("threads: threads=500: ")
    assert "--threads" in told
    assert left == "0"

"""`octavo serve` as the system sees it: what it costs while nobody asks, and how many threads it has where."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import processes
import pytest

from octavo.backends.cpu import native

ROOT = Path(__file__).parent.parent.parent
CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
IDLE_SHARE = 0.01
WATCHED = 4.0

pytestmark = pytest.mark.skipif(not processes.KNOWN or native.library() is None, reason="Linux and compiled kernels")


@contextmanager
def serving(folder: Path, *flags: str, cores: list[int] = CORES) -> Iterator[int]:
    """A server that has answered once; its process id."""
    command = [sys.executable, "-m", "octavo.cli", "serve", str(folder), "--port", "0", "--device", "cpu", *flags]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment["PYTHONPATH"] = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    os.sched_setaffinity(0, cores)  # the child's from its first moment on, as under taskset
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    finally:
        os.sched_setaffinity(0, CORES)
    try:
        assert process.stdout is not None
        url = re.search(r"http://[^\s;]+", process.stdout.readline())
        assert url is not None
        ask(f"{url[0]}/v1/completions")
        yield process.pid
    finally:
        process.kill()
        process.communicate()


def ask(url: str) -> None:
    """Until it has loaded."""
    for _ in range(300):
        answer = httpx.post(url, json={"prompt": "a b", "max_tokens": 9}, trust_env=False, timeout=60)
        if answer.status_code != 503:
            break
        time.sleep(0.1)
    assert answer.status_code == 200, answer.text


def pool_cores(pid: int) -> list[set[int]]:
    """Where each of the engine's own threads may run; the thread that calls them is one more."""
    found = [processes.threads(each, "octavo-cpu-") for each in processes.tree(pid)]
    return [cores for each in found for cores in each.values()]


def test_an_idle_server_takes_less_than_a_hundredth_of_a_core(checkpoint: Callable[[str], Path]) -> None:
    """The least of three: beside other work a process that wakes takes several times as long for the same."""
    with serving(checkpoint("llama"), "--threads", "2") as pid:
        time.sleep(0.5)
        pids = processes.tree(pid)
        assert len(pids) > 1
        assert any(idle_share(pids) < IDLE_SHARE for _ in range(3))


def idle_share(pids: list[int]) -> float:
    """Of a core, that the processes took."""
    before, start = processes.cpu_seconds(pids), time.monotonic()
    time.sleep(WATCHED)
    return (processes.cpu_seconds(pids) - before) / (time.monotonic() - start)


def test_threads_are_as_many_as_the_flag_says(checkpoint: Callable[[str], Path]) -> None:
    with serving(checkpoint("llama"), "--threads", "3") as pid:
        assert len(pool_cores(pid)) == 2


def test_affinity_is_kept_to(checkpoint: Callable[[str], Path]) -> None:
    """As under `taskset`: one thread on one core; more, if they are asked for, share it."""
    with serving(checkpoint("llama"), cores=CORES[-1:]) as pid:
        assert pool_cores(pid) == []
    with serving(checkpoint("llama"), "--threads", "2", cores=CORES[-1:]) as pid:
        assert pool_cores(pid) == [{CORES[-1]}]

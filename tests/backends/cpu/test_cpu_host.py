"""What the operating system tells: cores, memory with and without a cgroup's limit, threads."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import pytest

from octavo.backends.cpu import host
from octavo.base.errors import ConfigError

MEMINFO = "MemTotal:       1000 kB\nMemFree: 10 kB\nMemAvailable:    600 kB\nHugePages_Total:  0\n"


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What reading a path gives, in place of the machine's files."""
    found: dict[str, str] = {}
    monkeypatch.setattr(host, "_read", lambda path: found.get(str(path), ""))
    return found


def test_this_machine() -> None:
    total, free = host.memory_bytes()
    assert 0 < free <= total
    assert 1 <= host.usable_cores() <= (os.cpu_count() or 1)


def test_memory_of_the_machine(files: dict[str, str]) -> None:
    files["/proc/meminfo"] = MEMINFO
    assert host.memory_bytes() == (1000 << 10, 600 << 10)


def test_memory_without_meminfo(files: dict[str, str]) -> None:
    total, free = host.memory_bytes()
    assert 0 < free <= total


@pytest.mark.parametrize("limited", ["a/b", "a", ""])
def test_memory_in_a_cgroup(files: dict[str, str], limited: str) -> None:
    """The least limit of the process's cgroup and those above it counts; its file cache can be given back."""
    files["/proc/meminfo"] = MEMINFO
    files["/proc/self/cgroup"] = "12:cpu:/x\n0::/a/b\n"
    folder = Path("/sys/fs/cgroup") / limited
    files[f"{folder}/memory.max"] = str(500 << 10)
    files[f"{folder}/memory.current"] = str(400 << 10)
    files[f"{folder}/memory.stat"] = f"anon 7\ninactive_file {60 << 10}\nactive_file {40 << 10}\n"
    assert host.memory_bytes() == (500 << 10, 200 << 10)
    files[f"{folder}/memory.max"] = "max"
    assert host.memory_bytes() == (1000 << 10, 600 << 10)


def test_cpu_quota(files: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)), raising=False)
    for text, cores in (("", 8), ("max 100000", 8), ("150000 100000", 2), ("1000 100000", 1), ("9900000 100000", 8)):
        files["/sys/fs/cgroup/cpu.max"] = text
        assert host.usable_cores() == cores


@pytest.mark.parametrize("limited", ["a.slice/b.service", "a.slice", ""])
def test_cpu_quota_of_the_own_cgroup(files: dict[str, str], monkeypatch: pytest.MonkeyPatch, limited: str) -> None:
    """The least of the process's cgroup and those above it counts."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)), raising=False)
    files["/proc/self/cgroup"] = "0::/a.slice/b.service\n"
    for folder in ("a.slice/b.service", "a.slice", ""):
        files[str(Path("/sys/fs/cgroup") / folder / "cpu.max")] = "600000 100000"
    assert host.usable_cores() == 6
    files[str(Path("/sys/fs/cgroup") / limited / "cpu.max")] = "100000 100000"
    assert host.usable_cores() == 1


SIBLINGS = {cpu: f"{cpu % 4},{cpu % 4 + 4}" for cpu in range(8)}  # four cores of two threads each


@pytest.mark.parametrize(
    ("allowed", "told", "chosen"),
    [
        (range(8), {}, [0, 1, 2, 3, 4, 5, 6, 7]),
        (range(8), {f"cpu{cpu}/topology/thread_siblings_list": text for cpu, text in SIBLINGS.items()}, [0, 1, 2, 3]),
        ((4, 5, 1), {f"cpu{cpu}/topology/thread_siblings_list": text for cpu, text in SIBLINGS.items()}, [1, 4]),
        (
            range(8),
            {f"cpu{cpu}/topology/thread_siblings_list": f"{cpu & 6}-{cpu | 1}" for cpu in range(8)},
            [0, 2, 4, 6],
        ),
        (range(6), {f"cpu{cpu}/cpu_capacity": "1024" if cpu > 3 else "400" for cpu in range(6)}, [4, 5]),
        (range(6), {f"cpu{cpu}/cpu_capacity": str(900 + cpu) for cpu in range(6)}, [0, 1, 2, 3, 4, 5]),
        (range(8), {"/sys/devices/cpu_core/cpus": "0-1,3"}, [0, 1, 3]),
        ((4, 5), {"/sys/devices/cpu_core/cpus": "0-3"}, [4, 5]),
    ],
)
def test_threads_have_a_fast_core_each(
    allowed: Iterable[int],
    told: dict[str, str],
    chosen: list[int],
    files: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(allowed), raising=False)
    files.update((str(Path("/sys/devices/system/cpu") / name), text) for name, text in told.items())
    assert host.fast_cores() == chosen
    assert host.default_threads() == len(chosen)
    assert host.core_cpus(len(chosen)) == chosen
    assert host.core_cpus(len(chosen) + 1) == sorted(allowed), "more than there are: wherever they may run"
    files["/sys/fs/cgroup/cpu.max"] = "100000 100000"
    assert host.default_threads() == 1


def test_threads_on_a_mac(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 10)
    monkeypatch.setattr(host.sys, "platform", "darwin")
    known = {"hw.perflevel0.physicalcpu": 4}
    monkeypatch.setattr(host, "_darwin", lambda name: known.get(name, 0))
    assert host.fast_cores() == [0, 1, 2, 3]
    known.clear()
    known["hw.physicalcpu"] = 6
    assert len(host.fast_cores()) == 6
    known.clear()
    assert host.default_threads() == 10


def test_more_threads_than_cores_are_told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(host, "usable_cores", lambda: 2)
    assert host.take_threads(2) == 2
    assert not caplog.records
    assert host.take_threads(1000) == 1000
    assert "1000 threads on 2 usable cores wait for one another; 2 are faster" in caplog.text


def test_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert host.take_threads(3) == 3
    assert host.take_threads(None) == 5
    monkeypatch.setenv("OMP_NUM_THREADS", "")
    assert host.take_threads(None) == host.default_threads()
    monkeypatch.setattr(host, "_SETTERS", ("no_such_symbol",))
    assert host.take_threads(None) == 1
    with pytest.raises(ConfigError, match="threads=3"):
        host.take_threads(3)

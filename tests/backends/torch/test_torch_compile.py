"""Kernels compiled by processes: each case of compile_stand_in.py, which runs once, outside Triton's interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from compile_stand_in_parts import living

from octavo.api import devices
from octavo.backends.torch.device import compile_workers
from octavo.base.config.config import DeviceConfig
from octavo.base.errors import ConfigError

HERE = Path(__file__).parent
WITHOUT_TORCH = """
import pkgutil, sys, importlib
from octavo.backends.torch import kernels
from octavo.backends.torch.device.compile_worker import Absent, WithoutTorch

sys.meta_path.insert(0, WithoutTorch())
for module in pkgutil.iter_modules(kernels.__path__):
    importlib.import_module(f"{kernels.__name__}.{module.name}")
assert isinstance(sys.modules["torch"], Absent)
"""


def environment(cache: Path) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("TRITON_")}
    return {**inherited, "TRITON_CACHE_DIR": str(cache), "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])}


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    cache = tmp_path_factory.mktemp("cache")
    script = [sys.executable, str(HERE / "compile_stand_in.py")]
    ran = subprocess.run(script, env=environment(cache), capture_output=True, text=True, timeout=300, check=False)
    rows = [json.loads(line) for line in ran.stdout.splitlines() if line.startswith("{")]
    assert rows, ran.stderr
    assert rows[-1]["case"] == "dies", ran.stderr
    assert [row["case"] for row in rows].count("main") == 1
    return {row["case"]: row for row in rows}


def check(case: dict[str, Any], origin: str, *, started: int, warnings: int = 0, about: str = "") -> None:
    assert not case["raised"]
    assert case["ready"] == [1, 1]
    assert case["started"] == started
    assert not case["left"]
    assert not case["launched"]
    assert not case["absent"], "compiled with what its module's constants are without torch"
    *warned, last = case["told"]
    assert last.endswith(f": 2 {origin}")
    assert len(warned) == warnings
    assert all(about in each for each in warned)


def test_processes_leave_what_is_then_found(cases: dict[str, dict[str, Any]]) -> None:
    check(cases["processes"], "compiled by processes", started=1)


def test_nothing_is_started_where_all_is_cached(cases: dict[str, dict[str, Any]]) -> None:
    check(cases["cached"], "found on disk", started=0)
    check(cases["cached, refused"], "found on disk", started=0)


def test_none_are_started_where_none_are_wanted(cases: dict[str, dict[str, Any]]) -> None:
    check(cases["threads"], "compiled by threads", started=0)


@pytest.mark.parametrize(
    ("name", "started", "about"),
    [
        ("refused", 0, "not in here"),
        ("ends at once", 1, "a process was lost"),
        ("no answer", 1, "no answer in"),
        ("killed", 1, "a process was lost"),
        ("cannot be written", 1, "Error"),
    ],
)
def test_threads_compile_what_processes_do_not(
    cases: dict[str, dict[str, Any]], name: str, started: int, about: str
) -> None:
    check(cases[name], "compiled by threads", started=started, warnings=1, about=about)


def test_a_miss_is_told(cases: dict[str, dict[str, Any]]) -> None:
    check(cases["another key"], "compiled by threads", started=1, warnings=2, about="under another key")


def test_an_interrupt_passes_and_leaves_nothing(cases: dict[str, dict[str, Any]]) -> None:
    case = cases["interrupted"]
    assert case["raised"] == "KeyboardInterrupt"
    assert case["started"] == 1
    assert not case["left"]
    assert not case["told"]


def test_other_threads_launch_as_ever(cases: dict[str, dict[str, Any]]) -> None:
    case = cases["other thread"]
    assert not case["raised"]
    assert case["launched"] == ["other_0"] * 4


def test_processes_end_with_the_one_that_asks(cases: dict[str, dict[str, Any]]) -> None:
    end = time.monotonic() + 20
    while left := living(cases["dies"]["group"]):
        assert time.monotonic() < end, left
        time.sleep(0.1)


def test_kernels_are_imported_without_torch(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_TORCH]
    ran = subprocess.run(command, env=environment(tmp_path), capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr


class Started:
    """In place of Workers."""

    def __init__(self, count: int) -> None:
        self.count, self.ended = count, False

    def end(self, *, at_once: bool) -> None:
        self.ended = at_once


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Triton's, empty; processes are not started."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(compile_workers, "Workers", Started)
    monkeypatch.setattr(compile_workers, "usual", lambda: 3)
    monkeypatch.setattr(compile_workers, "_ahead", None)
    return tmp_path


def test_those_started_ahead_are_taken_once(cache: Path) -> None:
    compile_workers.start_ahead()
    compile_workers.start_ahead()
    first, second = compile_workers.take(1), compile_workers.take(1)
    assert (first.count, second.count) == (3, 1)  # type: ignore[attr-defined]


def test_those_that_nobody_took_are_ended(cache: Path) -> None:
    compile_workers.start_ahead()
    started = compile_workers._ahead
    compile_workers.end_ahead()
    compile_workers.end_ahead()
    assert started is not None
    assert started.ended  # type: ignore[attr-defined]


def test_none_are_started_ahead_where_anything_is_cached(cache: Path) -> None:
    (cache / "kernel").mkdir()
    compile_workers.start_ahead()
    assert compile_workers._ahead is None


def test_triton_keeps_kernels_where_it_is_looked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With Triton imported, and before."""
    from triton import knobs

    monkeypatch.setenv("TRITON_HOME", str(tmp_path))
    for name in ("", "elsewhere"):
        monkeypatch.setenv("TRITON_CACHE_DIR", name) if name else monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
        assert str(compile_workers._cache()) == knobs.cache.dir
        with monkeypatch.context() as before:
            before.delitem(sys.modules, "triton")
            assert str(compile_workers._cache()) == knobs.cache.dir
    monkeypatch.setattr(knobs.cache, "dir", str(tmp_path / "set"))
    assert compile_workers._cache() == tmp_path / "set"


@pytest.mark.parametrize(
    ("device", "driver", "loaded", "chosen", "calls"),
    [
        ("auto", True, False, "cuda", ["context", "start"]),
        ("auto", True, False, "cpu", ["context", "end", "start"]),
        ("auto", True, True, "cuda", []),
        ("cpu", True, False, "cpu", ["end"]),
        ("cuda", False, False, "", ["end"]),
    ],
)
def test_begun_ahead_for_cuda_alone(
    monkeypatch: pytest.MonkeyPatch, device: str, driver: bool, loaded: bool, chosen: str, calls: list[str]
) -> None:
    """loaded: PyTorch is imported already.  chosen: the device; none where choosing it raises."""

    def choose(_: DeviceConfig) -> tuple[str, list[str]]:
        if not chosen:
            raise ConfigError("no driver", param="device")
        return chosen, []

    made: list[str] = []
    monkeypatch.setattr(devices, "_has_driver", lambda: driver)
    monkeypatch.setattr(devices, "choose_device", choose)
    context = threading.Event()
    monkeypatch.setattr(devices, "_make_context", lambda: (made.append("context"), context.set()))
    monkeypatch.setattr(compile_workers, "start_ahead", lambda: made.append("start"))
    monkeypatch.setattr(compile_workers, "end_ahead", lambda: made.append("end"))
    if not loaded:
        monkeypatch.delitem(sys.modules, "torch", raising=False)
    else:
        import torch  # noqa: F401
    with nullcontext() if chosen else pytest.raises(ConfigError):
        devices.choose_for_engine(DeviceConfig(device=device))  # type: ignore[arg-type]
    assert context.wait(10 if "context" in calls else 0) is ("context" in calls)
    assert sorted(made) == calls


@pytest.mark.parametrize("refusal", ["", "cuInit", "cuDeviceGet"])
def test_the_context_is_the_first_devices(monkeypatch: pytest.MonkeyPatch, refusal: str) -> None:
    asked: list[str] = []

    def answer(name: str, *_: object) -> int:
        asked.append(name)
        return int(name == refusal)

    names = ("cuInit", "cuDeviceGet", "cuDevicePrimaryCtxRetain")
    driver = SimpleNamespace(**{name: partial(answer, name) for name in names})
    monkeypatch.setattr(devices.ctypes, "CDLL", lambda _: driver)
    devices._make_context()
    assert asked == list(names[: names.index(refusal) + 1] if refusal else names)

"""octavo doctor: each check finds its cause and names a remedy."""

from __future__ import annotations

import importlib.util
import json
import shutil
import socket
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from octavo.api import devices
from octavo.backends.cpu import host, native
from octavo.base.types.ports import DeviceMemory
from octavo.cli import checks, main, plan

Examine = Callable[..., dict[str, dict[str, str]]]


@pytest.fixture
def examine(capsys: pytest.CaptureFixture[str]) -> Examine:
    """Findings by check; `code` is the exit code that is awaited."""

    def run(*arguments: str, code: int = 0) -> dict[str, dict[str, str]]:
        assert main(["doctor", "--json", "--port", "0", *arguments]) == code
        found = {one["check"]: one for one in json.loads(capsys.readouterr().out)}
        assert list(found) == list(checks.CHECKS)
        assert all(bool(one["remedy"]) is (one["status"] in ("slow", "fails")) for one in found.values())
        return found

    return run


def only(found: dict[str, dict[str, str]], check: str, status: str, *words: str) -> None:
    """This check has that status and tells these words; nothing else fails."""
    assert found[check]["status"] == status, found[check]
    for word in words:
        assert word in found[check]["cause"] + found[check]["remedy"]
    assert not [name for name, one in found.items() if one["status"] == "fails" and name != check]


def test_a_sound_start(examine: Examine, llama: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = examine(llama, "--device", "cpu")
    for check in ("versions", "device", "port", "model", "tokenizer", "memory"):
        assert found[check]["status"] == "ok", found[check]
    assert main(["doctor", "--port", "0"]) == 0
    shown = capsys.readouterr().out
    assert "skipped model" in shown
    assert len(shown.splitlines()) >= len(checks.CHECKS)


def test_versions(examine: Examine, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = {
        "octavo": ["no-such-package>=1", "numpy", 'other>=2; extra == "x"'],
        "torch": ['triton==3.0.1; platform_system == "Linux"', 'numpy==1.0; platform_system == "Windows"'],
    }
    real = metadata.version
    monkeypatch.setattr(metadata, "requires", lambda name: wanted[name])
    monkeypatch.setattr(metadata, "version", lambda name: "2.9.0" if name == "triton" else real(name))
    found = examine(code=1)
    only(
        found, "versions", "fails", "no-such-package>=1 (missing)", "triton==3.0.1 (2.9.0 is installed)", "pip install"
    )
    assert "numpy" not in found["versions"]["cause"]


def test_device(examine: Examine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_no_cuda", lambda: "no NVIDIA driver is installed (libcuda.so.1)")
    found = examine("--device", "cuda", code=1)
    only(found, "device", "fails", "no NVIDIA driver")
    assert found["kernels"]["status"] == "skipped"
    monkeypatch.setattr(checks, "_gpu_is_there", lambda: True)
    only(examine(), "device", "slow", "it is not used", "octavo[cuda]")


def test_kernels(examine: Examine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(native, "LIBRARY", tmp_path / "none.so")
    only(examine("--device", "cpu"), "kernels", "slow", "no native kernels were built", "C++ compiler")
    (tmp_path / "none.so").write_bytes(b"no library")
    only(examine("--device", "cpu"), "kernels", "slow", "cannot be loaded", "C++ compiler")
    scalar = type("Library", (), {"oct_variant": staticmethod(lambda: b"scalar")})()
    monkeypatch.setattr(native, "_load", lambda: scalar)
    only(examine("--device", "cpu"), "kernels", "slow", "none of AVX-512, AVX2 and NEON")


def test_kernels_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "triton" else find(name))
    assert devices.diagnose_kernels("cuda")[1] == "pip install 'octavo[cuda]'"
    assert devices.diagnose_kernels("torch:cpu") == ("PyTorch's own", "")


def test_threads(examine: Examine, monkeypatch: pytest.MonkeyPatch) -> None:
    only(examine("--threads", "4096"), "threads", "slow", "4096 threads")
    monkeypatch.setenv("OMP_NUM_THREADS", "4000")
    only(examine(), "threads", "slow", "4000 threads", "OMP_NUM_THREADS")


@pytest.mark.parametrize(("check", "variable"), [("cache", "OCTAVO_CACHE"), ("downloads", "HF_HOME")])
def test_folders(examine: Examine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, check: str, variable: str) -> None:
    monkeypatch.setenv(variable, str(tmp_path / "new" / "folder"))
    only(examine(), check, "ok", "can be written")
    (tmp_path / "file").touch()
    monkeypatch.setenv(variable, str(tmp_path / "file" / "folder"))
    only(examine(), check, "slow", "cannot be written", variable)


def test_port(examine: Examine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        only(examine("--port", port, code=1), "port", "fails", "in use", "--port 0")


def test_model(examine: Examine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = examine(str(tmp_path / "nowhere"), code=1)
    only(found, "model", "fails", "nowhere")
    assert {found[check]["status"] for check in ("tokenizer", "template", "memory")} == {"skipped"}


def test_tokenizer(examine: Examine, llama: str, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(llama, broken)
    (broken / "tokenizer.json").write_text("{}")
    found = examine(str(broken), code=1)
    only(found, "tokenizer", "fails", "tokenizer", "--tokenizer")


def test_template(examine: Examine, llama: str) -> None:
    only(
        examine(llama, "--chat-template", "{{ raise_exception('no') }}", code=1), "template", "fails", "--chat-template"
    )


def test_memory(examine: Examine, llama: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def with_free(free: int) -> Any:
        return lambda device: DeviceMemory(total=free, free=free, weights=0)

    monkeypatch.setattr(plan, "device_memory", with_free(1000))
    only(examine(llama, "--device", "cpu", code=1), "memory", "fails", "weights do not fit", "quantized")
    weights = int(1.2 * plan.make_report(*_opened(llama))[0].weight_bytes)
    monkeypatch.setattr(plan, "device_memory", with_free(weights))
    only(examine(llama, "--device", "cpu", code=1), "memory", "fails", "there is room for", "--gpu-memory")


def test_memory_that_was_ordered(examine: Examine, llama: str) -> None:
    orders = ["--device", "cpu", "--kv-cache-memory-bytes"]
    only(examine(llama, *orders, "1k", code=1), "memory", "fails", "a context of 256 tokens", "raise --kv-cache-memory")
    only(examine(llama, *orders, "4000000G", code=1), "memory", "fails", "--kv-cache-memory-bytes orders", "lower it")
    blocks = ["--device", "cpu", "--num-gpu-blocks-override", "1"]
    only(examine(llama, *blocks, code=1), "memory", "fails", "raise --num-gpu-blocks-override")


def _opened(model: str) -> tuple[Any, Any]:
    from octavo.api.arguments import engine_config
    from octavo.api.build import open_model

    config = engine_config(model, {"device": "cpu"})
    return config, open_model(config.model, with_text=False, with_weights=False)


def test_a_fault_of_its_own_is_a_finding(examine: Examine, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(patient: checks.Patient) -> checks.Result:
        raise RuntimeError("oops")

    monkeypatch.setitem(checks.CHECKS, "threads", broken)
    only(examine(code=1), "threads", "fails", "RuntimeError: oops", "report")
    assert host.memory_bytes()[0] > 0

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


def test_threads_within_the_quota_of_a_container(examine: Examine, monkeypatch: pytest.MonkeyPatch) -> None:
    read = host._read
    monkeypatch.setattr(host, "_read", lambda path: "100000 100000" if path.name == "cpu.max" else read(path))
    only(examine("--threads", "2"), "threads", "slow", "2 threads on 1 usable cores", "--threads 1")


@pytest.mark.parametrize("value", ["4,2", "0"])
def test_threads_that_are_no_number(examine: Examine, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    only(examine(), "threads", "slow", f"OMP_NUM_THREADS={value}", "--threads")
    assert examine("--threads", "1")["threads"]["status"] == "ok"


@pytest.mark.parametrize(
    ("check", "variable"),
    [
        ("cache", "OCTAVO_CACHE"),
        ("downloads", "HF_HOME"),
        ("downloads", "HF_HUB_CACHE"),
        ("downloads", "XDG_CACHE_HOME"),
    ],
)
def test_folders(examine: Examine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, check: str, variable: str) -> None:
    for other in ("HF_HOME", "HF_HUB_CACHE"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(variable, str(tmp_path / "new" / "folder"))
    only(examine(), check, "ok", "can be written")
    (tmp_path / "file").touch()
    monkeypatch.setenv(variable, str(tmp_path / "file" / "folder"))
    only(examine(), check, "slow", "cannot be written", variable)


@pytest.mark.usefixtures("homeless")
def test_no_home(examine: Examine) -> None:
    only(examine(), "cache", "slow", "no home directory", "OCTAVO_CACHE")


def test_port(examine: Examine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        only(examine("--port", port, code=1), "port", "fails", "in use", "--port 0")


def test_a_host_that_is_none(examine: Examine) -> None:
    only(examine("--host", "a..b", code=1), "port", "fails", "'a..b' is no address", "--host 0.0.0.0")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--dtype", "bfloat16"], "leave --dtype out"),
        (["--tool-call-parser", "nope"], "leave --tool-call-parser out"),
        (["--reasoning-parser", "nope"], "leave --reasoning-parser out"),
        (["--otlp-traces-endpoint", "nope"], "must be a URL"),
        (["--batch-dir", __file__], "--batch-dir"),
    ],
)
def test_options_that_a_server_refuses(examine: Examine, llama: str, arguments: list[str], words: str) -> None:
    only(examine(llama, "--device", "cpu", *arguments, code=1), "options", "fails", words)


def test_quantization_that_the_device_has_not(examine: Examine, llama: str) -> None:
    found = examine(llama, "--device", "cpu", "-q", "fp8", code=1)
    assert found["model"]["status"] == "fails"
    assert "leave --quantization out" in found["model"]["remedy"]


def test_a_remedy_is_of_the_option_that_the_error_names(examine: Examine, llama: str) -> None:
    only(examine(llama, "--max-num-batched-tokens", "3", code=1), "memory", "fails", "see --max-num-batched-tokens")


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


def test_a_template_that_is_not_there(examine: Examine, llama: str) -> None:
    found = examine(llama, "--chat-template", "/nowhere/x.jinja", code=1)
    only(found, "template", "fails", "no such file", "--chat-template")
    assert found["tokenizer"]["status"] == "ok"


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

"""choose_device: auto takes the first that works and tells why the others do not; by name it works or is refused."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from octavo import LLM
from octavo.api import devices
from octavo.api.arguments import engine_config
from octavo.api.build import open_model
from octavo.base.config.config import DeviceConfig
from octavo.base.errors import ConfigError, UnsupportedError


def choose(name: str) -> tuple[str, list[str]]:
    return devices.choose_device(DeviceConfig(device=name))  # type: ignore[arg-type]


def test_auto_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices.importlib.util, "find_spec", lambda name: None)
    device, reasons = choose("auto")
    assert device == "cpu"
    assert "PyTorch is not installed" in reasons[0]
    assert "mlx" in reasons[1]
    for name in ("cuda", "torch", "torch:cpu"):
        with pytest.raises(ConfigError, match="PyTorch is not installed"):
            choose(name)


def test_auto_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(devices.ctypes, "CDLL", missing)
    device, reasons = choose("auto")
    assert device == "cpu"
    assert "no NVIDIA driver" in reasons[0]
    assert choose("torch")[0] == "torch:cpu"
    with pytest.raises(ConfigError, match="no NVIDIA driver"):
        choose("cuda")


def test_auto_with_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_no_cuda", lambda: None)
    assert [choose(name)[0] for name in ("auto", "cuda", "torch", "cpu", "torch:cpu")] == [
        "cuda",
        "cuda",
        "cuda",
        "cpu",
        "torch:cpu",
    ]


@pytest.mark.parametrize(
    ("value", "threads", "told"),
    [
        *[(value, None, True) for value in ("abc", "4,2", "0")],
        *[("1", None, False), ("", None, False), ("abc", 1, False)],
    ],
)
def test_a_number_of_threads_that_is_none_is_told(
    value: str, threads: int | None, told: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As OpenMP's own libraries do."""
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    options = {"max_num_seqs": 2, "max_num_batched_tokens": 64, "block_size": 16, "threads": threads}
    with caplog.at_level(logging.WARNING):
        devices.make_backend("cpu", engine_config("m", options), max_model_len=64).close()
    assert (f"OMP_NUM_THREADS={value} is no number above 0" in caplog.text) == told


def test_mlx_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="mlx"):
        choose("mlx")


@pytest.mark.parametrize(
    ("dtype", "device", "stored", "size"),
    [("auto", "cpu", "bfloat16", 4), ("auto", "torch:cpu", "bfloat16", 4), ("auto", "cuda", "bfloat16", 2),
     ("float32", "cuda", "bfloat16", 4), ("float16", "torch:cpu", "float32", 2), ("fp8", "cuda", "bfloat16", 1),
     ("fp8_e4m3", "torch:cpu", "bfloat16", 1)],
)  # fmt: skip
def test_cache_elements(dtype: str, device: str, stored: str, size: int) -> None:
    assert devices.element_bytes(dtype, device=device, stored=stored) == size


@pytest.mark.parametrize(
    ("dtype", "activation_dtype", "size"),
    [("auto", "float32", 512), ("auto", "auto", 512), ("float32", "auto", 512), ("bfloat16", "auto", 256),
     ("int8_per_token_head", "auto", 128 + 2 * 2 * 2 * 4)],
)  # fmt: skip
def test_cache_types_halve_and_quarter(
    dtype: str, activation_dtype: str, size: int, checkpoint: Callable[[str], Path]
) -> None:
    """The bytes that sizing counts with, and the blocks that come of the same memory."""
    options = {"kv_cache_dtype": dtype, "activation_dtype": activation_dtype, "device": "cpu"}
    config = engine_config(str(checkpoint("llama")), options)
    assert devices.kv_bytes_per_token(config, open_model(config.model).spec, device="cpu") == size


@pytest.mark.parametrize("dtype", ["fp8", "fp8_e4m3"])
def test_float8_halves_the_cache(
    dtype: str, checkpoint: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    """Twice the blocks of bfloat16 in the same memory."""
    bytes_of: dict[str, int] = {}
    blocks: list[int] = []
    for kept in ("bfloat16", dtype):
        options = {"kv_cache_dtype": kept, "device": "torch:cpu"}
        config = engine_config(str(checkpoint("llama")), options)
        bytes_of[kept] = devices.kv_bytes_per_token(config, open_model(config.model).spec, device="cuda")
        with caplog.at_level(logging.INFO, "octavo"):
            LLM(str(checkpoint("llama")), kv_cache_memory_bytes=1 << 18, max_model_len=64, **options).close()
        blocks += [int(n) for n in re.findall(r"torch:cpu: (\d+) cache blocks", caplog.text)]
        caplog.clear()
    assert bytes_of["bfloat16"] == 2 * bytes_of[dtype] == 256
    assert blocks == [64, 128]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_arithmetic_of_the_cpu_is_float32(dtype: str, checkpoint: Callable[[str], Path]) -> None:
    with pytest.raises(UnsupportedError, match=f"dtype={dtype} is not supported on device cpu"):
        LLM(str(checkpoint("llama")), device="cpu", dtype=dtype)


@pytest.mark.parametrize(
    ("device", "dtype"), [("cpu", "float16"), ("cpu", "fp8"), ("cpu", "fp8_e4m3"), ("torch:cpu", "int8_per_token_head")]
)
def test_cache_types_of_other_backends_are_refused(device: str, dtype: str, checkpoint: Callable[[str], Path]) -> None:
    with pytest.raises(UnsupportedError, match=f"kv_cache_dtype={dtype} is not supported"):
        LLM(str(checkpoint("llama")), device=device, kv_cache_dtype=dtype)


def test_int8_activations_are_the_cpus(checkpoint: Callable[[str], Path]) -> None:
    with pytest.raises(UnsupportedError, match="activation_dtype=int8 is for device cpu"):
        LLM(str(checkpoint("llama")), device="torch:cpu", activation_dtype="int8")

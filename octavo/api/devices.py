"""In: a DeviceConfig. Out: which device it means here and why, what it has, what a token takes there, and its backend.

Backends are imported where they are made, so that a CPU never imports an accelerator's library.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import logging
import sys
import threading
from contextlib import suppress
from typing import Any

import msgspec

from octavo.base.config import env
from octavo.base.config.config import DeviceConfig, EngineConfig
from octavo.base.config.resolve import resolve
from octavo.base.errors import ConfigError, OctavoError, UnsupportedError
from octavo.base.types.ports import Backend, DeviceMemory
from octavo.models.spec import ModelSpec

logger = logging.getLogger(__name__)


def kv_bytes_per_token(config: EngineConfig, spec: ModelSpec, *, device: str) -> int:
    """Bytes of K and V that one token takes in a device's cache."""
    dtype: str = config.cache.kv_cache_dtype
    if device == "cpu":
        from octavo.backends.cpu.cache import cache_dtype
        from octavo.backends.cpu.native import rounds

        dtype = cache_dtype(dtype, rounds=rounds(config.device.activation_dtype), stored=spec.dtype)
    if dtype == "int8_per_token_head":
        return spec.kv_bytes_per_token(1, scale_bytes=4)
    return spec.kv_bytes_per_token(
        element_bytes(config.model.dtype if dtype == "auto" else dtype, device=device, stored=spec.dtype)
    )


def element_bytes(dtype: str, *, device: str, stored: str) -> int:
    """Bytes of one number of this type; of auto, as the device's arithmetic has it."""
    if dtype == "auto":
        dtype = "float32" if device.endswith("cpu") else stored
    return {"float32": 4, "fp8": 1, "fp8_e4m3": 1}.get(dtype, 2)


def resolve_for(device: str, config: EngineConfig, spec: ModelSpec) -> EngineConfig:
    """The config with what it leaves open decided, for this model on this device."""
    return resolve(
        config,
        max_position=spec.max_position,
        on_gpu=device == "cuda",
        block_size=_preferred_block_size(device, config, spec),
        pooling=spec.pooling is not None,
    )


def _preferred_block_size(device: str, config: EngineConfig, spec: ModelSpec) -> int | None:
    """Tokens a block that the fastest attention for this model on this device takes; None: it takes any."""
    if device != "cuda":
        return None
    from octavo.backends.torch.attention import flash4
    from octavo.backends.torch.device.device import resolve_cache_dtype, resolve_device, resolve_dtype

    place = resolve_device(device)
    dtype = resolve_dtype(config.model.dtype, device=place, stored=spec.dtype)
    cache_dtype = resolve_cache_dtype(config.cache.kv_cache_dtype, arithmetic=dtype, device=place)
    return flash4.preferred_block_size(spec, place, dtype, cache_dtype)


def choose_device(config: DeviceConfig) -> tuple[str, list[str]]:
    """One of cpu, torch:cpu, cuda, and why: auto takes cuda where it works here, else cpu.

    ConfigError or UnsupportedError where a device that was asked for by name is not there.
    """
    asked = config.device
    if asked in ("cpu", "torch:cpu"):
        if asked == "torch:cpu" and (reason := _no_torch()):
            raise ConfigError(f"device={asked}: {reason}", param="device")
        return asked, [f"{asked}, as asked for"]
    if asked == "mlx":
        raise UnsupportedError("device=mlx: this build has no mlx backend; use cpu", param="device")
    reason = _no_cuda()
    if asked == "cuda":
        if reason is not None:
            raise ConfigError(f"device=cuda: {reason}", param="device")
        return "cuda", ["cuda, as asked for"]
    if asked == "torch":
        if missing := _no_torch():
            raise ConfigError(f"device=torch: {missing}", param="device")
        return ("cuda", ["torch on cuda"]) if reason is None else ("torch:cpu", [f"not cuda: {reason}", "torch:cpu"])
    if reason is None:
        return "cuda", ["cuda, the first that auto tries"]
    return "cpu", [f"not cuda: {reason}", "not mlx: this build has no mlx backend", "cpu"]


def _no_torch() -> str | None:
    if importlib.util.find_spec("torch") is None:
        return "PyTorch is not installed (pip install 'octavo[torch]')"
    return None


def _no_cuda() -> str | None:
    """Why cuda cannot be used. The driver is asked before PyTorch, whose import takes seconds."""
    if reason := _no_torch():
        return reason
    if not _has_driver():
        return "no NVIDIA driver is installed (libcuda.so.1)"
    from octavo.backends.torch.device.device import resolve_device

    try:
        resolve_device("cuda")
    except OctavoError as error:
        return error.message
    return None


def _has_driver() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def diagnose_kernels(device: str) -> tuple[str, str]:
    """How a device's kernels are, and what would make them faster: "" where nothing would."""
    if device == "cpu":
        from octavo.backends.cpu import native

        return native.diagnose()
    if device == "cuda" and importlib.util.find_spec("triton") is None:
        return "Triton is not installed: PyTorch's own operators run the model", "pip install 'octavo[cuda]'"
    return ("Triton's" if device == "cuda" else "PyTorch's own"), ""


def choose_for_engine(config: DeviceConfig) -> tuple[str, list[str]]:
    """As choose_device; what CUDA's engine needs and need not wait for PyTorch begins before that is imported."""
    device = ""
    _begin_ahead(config.device)
    try:
        device, reasons = choose_device(config)
        return device, reasons
    finally:
        if device != "cuda":
            _end_ahead()


def _begin_ahead(device: str) -> None:
    if device not in ("auto", "cuda", "torch") or "torch" in sys.modules or _no_torch() or not _has_driver():
        return
    # some tenths of a second, which pass while PyTorch is imported
    threading.Thread(target=_make_context, name="octavo-cuda", daemon=True).start()
    if importlib.util.find_spec("triton") is not None:
        from octavo.backends.torch.device import compile_workers

        compile_workers.start_ahead()


def _make_context() -> None:
    """The first device's primary context, which PyTorch then finds made. What goes wrong PyTorch will tell."""
    driver, device, context = ctypes.CDLL("libcuda.so.1"), ctypes.c_int(), ctypes.c_void_p()
    if driver.cuInit(0) == 0 and driver.cuDeviceGet(ctypes.byref(device), 0) == 0:
        driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)


def _end_ahead() -> None:
    # looked up, not imported: a start on a CPU would wait for that
    began = sys.modules.get("octavo.backends.torch.device.compile_workers")
    if began is not None:
        began.end_ahead()


def prepare(device: str) -> None:
    """Import what an engine on this device (DeviceConfig.device) will need, in the time before its config is known."""
    names = ["octavo.engine.engine", "octavo.executor.local", "octavo.models.registry", "octavo.weights.source"]
    with suppress(OctavoError):  # the same will be said about the config
        if choose_for_engine(msgspec.convert({"device": device}, DeviceConfig))[0] == "cpu":
            names.append("octavo.backends.cpu.runner")
    for name in names:
        importlib.import_module(name)


def device_memory(device: str) -> DeviceMemory:
    """Bytes of a device that holds nothing yet; device as choose_device tells it."""
    if device == "cpu":
        from octavo.backends.cpu.host import memory_bytes

        total, free = memory_bytes()
    else:
        from octavo.backends.torch.device.device import resolve_device
        from octavo.backends.torch.device.memory import device_bytes

        total, free = device_bytes(resolve_device(device.removeprefix("torch:")))
    return DeviceMemory(total=total, free=free, weights=0)


def check_dtypes(device: str, config: EngineConfig) -> None:
    """UnsupportedError for number formats that this device's backend does not compute in."""
    dtype, activation = config.model.dtype, config.device.activation_dtype
    if device == "cpu" and dtype not in ("auto", "float32"):
        raise UnsupportedError(f"dtype={dtype} is not supported on device cpu; use float32", param="dtype")
    if device != "cpu" and activation == "int8":
        message = f"activation_dtype={activation} is for device cpu; leave it out on {device}"
        raise UnsupportedError(message, param="activation_dtype")


def make_backend(device: str, config: EngineConfig, *, max_model_len: int, quantization: str | None = None) -> Backend:
    """The backend of a device as choose_device tells it. UnsupportedError for what it does not know.

    quantization: as quantization.online_quantization tells it.
    """
    sizes: dict[str, Any] = {
        "max_num_seqs": config.scheduler.max_num_seqs,
        "max_model_len": max_model_len,
        "max_num_batched_tokens": config.scheduler.max_num_batched_tokens,
        "block_size": config.cache.block_size,
        "threads": config.device.threads,
        "kv_cache_dtype": config.cache.kv_cache_dtype,
    }
    check_dtypes(device, config)
    if device == "cpu":
        from octavo.backends.cpu.runner import CpuBackend

        if config.device.threads is None and env.ordered_threads() == 0:
            given = env.read("OMP_NUM_THREADS")
            logger.warning("OMP_NUM_THREADS=%s is no number above 0 and is passed over; use --threads", given)
        return CpuBackend(**sizes, activation_dtype=config.device.activation_dtype)
    from octavo.backends.torch.runner import TorchBackend

    backend = TorchBackend(device=device.removeprefix("torch:"), dtype=config.model.dtype, **sizes)
    backend.quantization = quantization
    backend.graphs = backend.graphs and not config.device.enforce_eager
    return backend

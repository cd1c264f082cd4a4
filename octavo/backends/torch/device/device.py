"""Names of devices and number types in, torch's own out."""

from __future__ import annotations

import torch

from octavo.base.errors import ConfigError, UnsupportedError

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

CACHE_DTYPES: dict[str, torch.dtype] = {
    **DTYPES,
    "fp8": torch.float8_e4m3fn,
    "fp8_e4m3": torch.float8_e4m3fn,
}


def resolve_device(name: str) -> torch.device:
    """The torch device. Raises ConfigError for a name that is unknown or a device that is not here."""
    if name == "cpu":
        return torch.device("cpu")
    if name != "cuda":
        raise ConfigError(f"device {name!r} is not one of cpu, cuda", param="device")
    if not torch.cuda.is_available():
        raise ConfigError(
            f"device cuda: PyTorch {torch.__version__} finds no CUDA device; use --device torch:cpu, or install a "
            "PyTorch built for CUDA and the driver",
            param="device",
        )
    return torch.device("cuda", torch.cuda.current_device())


def resolve_dtype(name: str, *, device: torch.device, stored: str) -> torch.dtype:
    """The arithmetic's type; "auto" is float32 on a CPU and `stored`, the checkpoint's own, elsewhere."""
    if name == "auto":
        name = "float32" if device.type == "cpu" else stored
    if name not in DTYPES:
        raise ConfigError(f"dtype {name!r} is not one of auto, {', '.join(DTYPES)}", param="dtype")
    return DTYPES[name]


def resolve_cache_dtype(name: str, *, arithmetic: torch.dtype, device: torch.device) -> torch.dtype:
    """The type of K and V in the cache; "auto" is that of the arithmetic. Raises UnsupportedError."""
    if name == "auto":
        return arithmetic
    if name not in CACHE_DTYPES:
        known = ", ".join(CACHE_DTYPES)
        raise UnsupportedError(
            f"kv_cache_dtype={name} is not supported on the torch backend; use auto, {known}, or device=cpu",
            param="kv_cache_dtype",
        )
    dtype = CACHE_DTYPES[name]
    if dtype.itemsize == 1 and (reason := _no_float8(device)):
        raise UnsupportedError(
            f"kv_cache_dtype={name} is not supported on this GPU: {reason}; use auto or bfloat16",
            param="kv_cache_dtype",
        )
    return dtype


def _no_float8(device: torch.device) -> str | None:
    """Why the device cannot convert E4M3; a CPU can."""
    if device.type == "cpu":
        return None
    if torch.version.hip is not None:
        return "on ROCm kernels have no E4M3"
    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 9):
        return "E4M3 needs compute capability 8.9, and it has {}.{}".format(*capability)
    return None

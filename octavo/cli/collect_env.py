"""`octavo collect-env`: nothing in; versions, hardware and settings out, for a bug report. Secrets are not shown."""

from __future__ import annotations

import os
import platform
import re
import sys
from importlib import metadata

from octavo import __version__
from octavo.api.devices import choose_device, device_memory
from octavo.backends.cpu.host import default_threads, usable_cores
from octavo.base.config.config import DeviceConfig
from octavo.base.config.env import VARIABLES, ordered_threads, read
from octavo.cli.flags import Parser

PACKAGES = (
    "numpy",
    "msgspec",
    "tokenizers",
    "minijinja",
    "huggingface-hub",
    "granian",
    "starlette",
    "prometheus-client",
    "torch",
    "triton",
    "flash-attn-4",
    "mlx",
)
SECRETS = ("KEY", "TOKEN")


def main(arguments: list[str]) -> int:
    """Print one line for each fact."""
    Parser("collect-env", "Print versions, hardware and settings, for a bug report.").parse(arguments)
    device, reasons = choose_device(DeviceConfig())
    memory = device_memory(device)
    threads = ordered_threads() or default_threads()
    rows = [
        ("octavo", __version__),
        ("python", f"{sys.version.split()[0]} ({platform.python_implementation()}, {sys.executable})"),
        ("system", platform.platform()),
        ("processor", _processor()),
        ("cores", f"{usable_cores()} usable of {os.cpu_count()}, {threads} threads by default"),
        ("device", f"{device} ({'; '.join(reasons)})"),
        ("memory", f"{memory.free / 2**30:.1f} GiB free of {memory.total / 2**30:.1f} GiB"),
    ]
    rows += [(name, _version(name)) for name in PACKAGES]
    rows += [(name, _setting(name)) for name in VARIABLES]
    width = max(len(name) for name, _ in rows) + 2
    for name, value in rows:
        print(f"{name:<{width}}{value}")
    return 0


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _setting(name: str) -> str:
    value = read(name)
    if not value:
        return "not set"
    if any(word in name for word in SECRETS):
        return "set"
    return re.sub(r"//[^/]*@", "//***@", value)  # a URL's user and password

"""This machine: what it is, and what it can do at most (peaks.cpp, compiled here and run)."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import tempfile
import time
from argparse import Namespace
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from octavo.backends.cpu.host import usable_cores

SOURCE = Path(__file__).with_name("peaks.cpp")
PACKAGES = ("octavo", "llama-cpp-python", "numpy")


@dataclass(frozen=True)
class Peaks:
    """The most that all threads together did: bytes read from memory, and operations by kind of product, a second."""

    threads: int
    read_bytes_s: float
    int8_ops_s: float
    bf16_ops_s: float
    int8: str
    bf16: str

    def operations(self, products: str) -> float:
        return self.int8_ops_s if products == "int8" else self.bf16_ops_s


def measure_peaks(threads: int) -> Peaks:
    """Compile peaks.cpp for this processor and run it; about five seconds."""
    compiler = os.environ.get("CXX", "c++")
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "peaks"
        target = "-mcpu=native" if platform.machine() in ("aarch64", "arm64") else "-march=native"
        command = [compiler, "-std=c++17", "-O3", target, "-pthread", str(SOURCE), "-o", str(program)]
        try:
            subprocess.run(command, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise SystemExit(f"no peaks without a C++17 compiler, name one in CXX: {error}") from None
        answer = subprocess.run([program, str(threads)], check=True, capture_output=True, text=True).stdout
    return Peaks(**json.loads(answer))


def about_machine() -> dict[str, Any]:
    """What a reader needs to judge a figure; load: of the last minute, other programs' included."""
    return {
        "processor": _processor(),
        "flags": sorted(_flags() & {"avx2", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_int8", "asimddp", "i8mm"}),
        "cores": usable_cores(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 2),
    }


def versions() -> dict[str, str]:
    """Of the packages, and the commit that is checked out ("+" where files differ from it)."""
    git = ["git", "-C", str(SOURCE.parent), "describe", "--always", "--dirty=+", "--exclude=*"]
    found = shutil.which("git") and subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    return {**{name: metadata.version(name) for name in PACKAGES}, "commit": found or "unknown"}


def about_run(arguments: Namespace, peaks: Peaks) -> dict[str, Any]:
    """What every result file begins with."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": about_machine(),
        "versions": versions(),
        "threads": arguments.threads,
        "rounds": arguments.rounds,
        "octavo_args": arguments.octavo_args,
        "peaks": asdict(peaks),
    }


def _cpuinfo(*fields: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    found = [line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() in fields]
    return found[0] if found else ""


def _processor() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _flags() -> set[str]:
    return set(_cpuinfo("flags", "Features").split())

"""In: the operating system. Out: cores and memory that this process may use, and BLAS held to one thread."""

from __future__ import annotations

import ctypes
import importlib
import logging
import math
import os
from pathlib import Path

from octavo.base.config import env
from octavo.base.errors import ConfigError

_log = logging.getLogger(__name__)

_CGROUP = Path("/sys/fs/cgroup")
# numpy's own wheels prefix and suffix OpenBLAS's symbols; distributions do not; conda may bring MKL
_SETTERS = (
    "scipy_openblas_set_num_threads64_",
    "scipy_openblas_set_num_threads",
    "openblas_set_num_threads64_",
    "openblas_set_num_threads",
    "MKL_Set_Num_Threads",
)


def usable_cores() -> int:
    """Cores by affinity and by the least CPU quota of the process's cgroups; at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for folder in _cgroup_folders():
        quota, _, period = _read(folder / "cpu.max").partition(" ")
        if quota.isdigit() and period.isdigit() and int(period):
            cores = min(cores, math.ceil(int(quota) / int(period)))
    return max(1, cores)


def take_threads(threads: int | None) -> int:
    """How many threads a Team may have: `threads`, else OMP_NUM_THREADS, else usable_cores().

    Holds numpy's BLAS to one, in all the process.  1 where this numpy's BLAS cannot be told and so keeps threads of
    its own; ConfigError if `threads` was given then.
    """
    extension = importlib.import_module("numpy._core._multiarray_umath")
    library = ctypes.CDLL(extension.__file__)  # symbols of what it links are found through it
    for name in _SETTERS:
        setter = getattr(library, name, None)
        if setter is not None:
            setter(ctypes.c_int(1))
            usable = usable_cores()
            wanted = threads or env.ordered_threads() or usable
            if wanted > usable:
                _log.warning(
                    "%d threads on %d usable cores wait for one another; %d are faster", wanted, usable, usable
                )
            return wanted
    if threads is not None:
        raise ConfigError(
            f"threads={threads}: this NumPy's BLAS cannot be told; leave threads out and set OMP_NUM_THREADS",
            param="threads",
        )
    return 1


def memory_bytes() -> tuple[int, int]:
    """(total, available) bytes: the machine's, or the cgroup's where that is less."""
    meminfo = _fields(_read(Path("/proc/meminfo")))
    if "MemTotal" in meminfo:
        total = meminfo["MemTotal"] << 10
        free = meminfo.get("MemAvailable", meminfo.get("MemFree", 0)) << 10
    else:
        page = os.sysconf("SC_PAGE_SIZE")
        total = os.sysconf("SC_PHYS_PAGES") * page
        free = os.sysconf("SC_AVPHYS_PAGES") * page if "SC_AVPHYS_PAGES" in os.sysconf_names else total // 2
    for folder in _cgroup_folders():
        limit, used = _read(folder / "memory.max"), _read(folder / "memory.current")
        if limit.isdigit() and used.isdigit():
            stat = _fields(_read(folder / "memory.stat"))
            cached = stat.get("inactive_file", 0) + stat.get("active_file", 0)  # as MemAvailable counts it
            total = min(total, int(limit))
            free = min(free, int(limit) - int(used) + cached)
    return total, max(0, free)


def _cgroup_folders() -> list[Path]:
    """This process's cgroup (version 2) and those above it; the uppermost alone where its own is not told."""
    for line in _read(Path("/proc/self/cgroup")).splitlines():
        if line.startswith("0::"):
            own = _CGROUP / line[3:].lstrip("/")
            return [folder for folder in (own, *own.parents) if folder.is_relative_to(_CGROUP)]
    return [_CGROUP]


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _fields(text: str) -> dict[str, int]:
    """Lines of "name: number ..." or "name number"."""
    found = {}
    for line in text.splitlines():
        name, _, rest = line.replace(":", " ", 1).partition(" ")
        number = rest.split()
        if number and number[0].isdigit():
            found[name] = int(number[0])
    return found

"""In: the operating system. Out: cores and memory that this process may use, and BLAS held to one thread."""

from __future__ import annotations

import ctypes
import importlib
import logging
import math
import os
import sys
from pathlib import Path

from octavo.base.config import env
from octavo.base.errors import ConfigError

_log = logging.getLogger(__name__)

_CGROUP = Path("/sys/fs/cgroup")
_CPUS = Path("/sys/devices/system/cpu")
_FAST = Path("/sys/devices/cpu_core/cpus")
"""Of a processor with two kinds of cores, Intel's fast ones."""
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
    cores = len(_cpus())
    for folder in _cgroup_folders():
        quota, _, period = _read(folder / "cpu.max").partition(" ")
        if quota.isdigit() and period.isdigit() and int(period):
            cores = min(cores, math.ceil(int(quota) / int(period)))
    return max(1, cores)


def core_cpus(threads: int) -> list[int]:
    """CPUs for so many threads: those of `fast_cores` where they are enough, else all that this process may use."""
    fast = fast_cores()
    return fast if threads <= len(fast) else _cpus()


def fast_cores() -> list[int]:
    """A CPU of each physical core that this process may use; of two kinds of cores, of the fast ones alone.

    Two threads on one core share its multipliers, which one of them fills, and wait for each other; a slow core is
    waited for. (llama.cpp counts so; vLLM takes one a core of x86.) Where the system does not tell, all CPUs.
    """
    cpus = _cpus()
    if sys.platform == "darwin":
        return cpus[: _darwin("hw.perflevel0.physicalcpu") or _darwin("hw.physicalcpu") or None]
    kind = _listed(_read(_FAST))
    capacity = {cpu: int(text) for cpu in cpus if (text := _read(_CPUS / f"cpu{cpu}/cpu_capacity")).isdigit()}
    enough = max(capacity.values(), default=0) / 2
    fast = [cpu for cpu in cpus if (not kind or cpu in kind) and capacity.get(cpu, enough) >= enough]
    taken: set[int] = set()
    cores = []
    for cpu in fast or cpus:
        if cpu not in taken:
            cores.append(cpu)
            taken |= {cpu, *_listed(_read(_CPUS / f"cpu{cpu}/topology/thread_siblings_list"))}
    return cores


def default_threads() -> int:
    """As many as `fast_cores`, within the CPU quota; at least 1."""
    return min(len(fast_cores()), usable_cores())


def take_threads(threads: int | None) -> int:
    """How many threads a Team may have: `threads`, else OMP_NUM_THREADS, else default_threads().

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
            wanted = threads or env.ordered_threads() or default_threads()
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


def _cpus() -> list[int]:
    """Those that this process may use, by affinity where the system has such; at least one."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _listed(text: str) -> set[int]:
    """Of "0-3,8"."""
    found: set[int] = set()
    for part in text.split(","):
        low, _, high = part.partition("-")
        if low.isdigit():
            found |= set(range(int(low), int(high if high.isdigit() else low) + 1))
    return found


def _darwin(name: str) -> int:
    """A number that sysctl tells; 0 where there is none of this name."""
    value, size = ctypes.c_int(0), ctypes.c_size_t(ctypes.sizeof(ctypes.c_int))
    failed = ctypes.CDLL(None).sysctlbyname(name.encode(), ctypes.byref(value), ctypes.byref(size), None, 0)
    return 0 if failed else value.value


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

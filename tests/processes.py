"""What Linux tells of running processes: a process with its children, their threads, cores and CPU time."""

from __future__ import annotations

from pathlib import Path

PROC = Path("/proc")
KNOWN = Path("/proc/self/schedstat").exists()


def tree(pid: int) -> list[int]:
    """The process and all that descend from it."""
    found = [pid]
    for children in (PROC / str(pid)).glob("task/*/children"):
        for child in children.read_text().split():
            found += tree(int(child))
    return found


def cpu_seconds(pids: list[int]) -> float:
    """CPU time that all their threads have taken."""
    stats = [stat for pid in pids for stat in (PROC / str(pid)).glob("task/*/schedstat")]
    return sum(int(stat.read_text().split()[0]) for stat in stats) / 1e9


def threads(pid: int, name: str) -> dict[str, set[int]]:
    """The cores that threads may use whose names begin with `name`, by name."""
    found = {}
    for task in (PROC / str(pid) / "task").iterdir():
        comm = (task / "comm").read_text().strip()
        if comm.startswith(name):
            fields = dict(line.split(":", 1) for line in (task / "status").read_text().splitlines() if ":" in line)
            found[comm] = _cores(fields["Cpus_allowed_list"].strip())
    return found


def _cores(text: str) -> set[int]:
    """ "0-2,5" -> {0, 1, 2, 5}"""
    pairs = [part.partition("-") for part in text.split(",")]
    return {core for low, _, high in pairs for core in range(int(low), int(high or low) + 1)}

"""The processes that compile kernels (compile_worker.py), as the process that asks has them.

Their own start takes a second or two. Where no kernel at all is on disk they are started while this process still
imports PyTorch: `start_ahead`, then `take`, then `end_ahead`, should nobody have taken them.
"""

from __future__ import annotations

import ast
import logging
import os
import signal
import subprocess
import sys
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from queue import SimpleQueue

from octavo.backends.torch.device.compile_worker import Job

logger = logging.getLogger(__name__)

MOST = 16
"""So many end with the kernel that takes longest. Each takes about 40 MB."""
PATIENCE_S = 60.0
"""For a kernel, the import of all kernels included; the longest takes 2 s."""
WORKER = "octavo.backends.torch.device.compile_worker"
KERNELS = Path(__file__).parent.parent / "kernels"

_ahead: Workers | None = None


def usual() -> int:
    """How many processes: one a core, up to MOST; none where there is but one core."""
    cores = os.cpu_count() or 1
    return min(cores, MOST) if cores > 1 else 0


def start_ahead() -> None:
    """Start the usual ones, unless Triton's cache has anything: then most kernels are in it."""
    global _ahead
    if _ahead is None and usual() and not any(_cache().glob("*")):
        _ahead = Workers(usual())


def take(count: int) -> Workers:
    """Those that were started ahead, or `count` new ones."""
    global _ahead
    workers, _ahead = _ahead, None
    return workers or Workers(count)


def end_ahead() -> None:
    """End those that were started ahead and that nobody took; idempotent."""
    global _ahead
    workers, _ahead = _ahead, None
    if workers is not None:
        workers.end(at_once=True)


def _cache() -> Path:
    """Where Triton keeps kernels: its own knobs.cache.dir, or what that will be. Triton is not imported for this."""
    if (triton := sys.modules.get("triton")) is not None:
        return Path(triton.knobs.cache.dir)
    home = os.environ.get("TRITON_HOME") or Path.home()
    return Path(os.environ.get("TRITON_CACHE_DIR") or Path(home, ".triton", "cache"))


class Workers:
    """Processes that share what they import, each with a connection. What goes wrong with them is told once."""

    def __init__(self, count: int) -> None:
        self._idle: SimpleQueue[Connection | None] = SimpleQueue()  # None in place of one that was lost
        self._process: subprocess.Popen[bytes] | None = None
        self._silent = False
        pairs = [Pipe() for _ in range(count)]
        try:
            self._process = _start([theirs.fileno() for _, theirs in pairs])
        except OSError as error:
            self._tell(str(error))
        for ours, theirs in pairs:
            theirs.close()
            self._idle.put(ours if self._process else None)

    def compile(self, job: Job) -> bool:
        """By the next that is idle; False where it could not."""
        connection = self._idle.get()
        try:
            problem = _ask(connection, job) if connection else None
        except (EOFError, OSError) as error:
            connection, problem = None, f"a process was lost: {type(error).__name__} {error}"
        finally:
            self._idle.put(connection)
        if problem:
            self._tell(f"{job.function}: {problem}")
        return connection is not None and not problem

    def end(self, *, at_once: bool) -> None:
        """at_once: whatever they are at; threads that wait for them learn it. Otherwise no thread may be waiting."""
        self._silent = True
        if self._process is None:
            return
        try:
            while not (at_once or self._idle.empty()):
                if connection := self._idle.get():
                    connection.close()
            self._process.wait(0 if at_once else 1)
        except subprocess.TimeoutExpired:
            with suppress(OSError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.kill()
            self._process.wait()

    def _tell(self, problem: str) -> None:
        if not self._silent:
            logger.warning("kernels are compiled in threads, which takes longer; processes failed: %s", problem)
        self._silent = True


def _start(connections: list[int]) -> subprocess.Popen[bytes]:
    """A process that finds the same packages as this one; in a group of its own, for the terminal's interrupts not to
    meet it and for one signal to end it and its forks."""
    modules = sorted(f"octavo.backends.torch.kernels.{path.stem}" for path in KERNELS.glob("[!_]*.py"))
    same = {"PYTHONPATH": os.pathsep.join(sys.path), "TRITON_CACHE_DIR": str(_cache())}
    single = {"OPENBLAS_NUM_THREADS": "1"}  # NumPy's library else starts threads, with which one does not fork
    return subprocess.Popen(
        [sys.executable, "-P", "-m", WORKER, ",".join(map(str, connections)), *modules],
        env={**os.environ, **same, **single},
        pass_fds=connections,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )


def _ask(connection: Connection, job: Job) -> str:
    """What went wrong, or ""; OSError, EOFError where the process is not to be asked again."""
    try:
        message = _written(job)
    except (SyntaxError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    connection.send_bytes(message)
    if not connection.poll(PATIENCE_S):
        raise TimeoutError(f"no answer in {PATIENCE_S:.0f} s")
    return connection.recv_bytes().decode(errors="replace")


def _written(job: Job) -> bytes:
    """As a literal; SyntaxError, ValueError where a constant (a dtype, a function) has none."""
    written = repr(tuple(job))
    if ast.literal_eval(written) != tuple(job):
        raise ValueError("what it is specialized for cannot be written as a literal")
    return written.encode()

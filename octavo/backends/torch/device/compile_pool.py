"""Triton's asynchronous compilation, by processes (compile_worker.py): it holds the interpreter's lock in threads."""

from __future__ import annotations

import ast
import hashlib
import inspect
import logging
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Executor, as_completed
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe
from queue import SimpleQueue
from typing import Any

from triton import AsyncCompileMode, knobs
from triton.language import constexpr
from triton.runtime.cache import get_cache_manager

from octavo.backends.torch.device.compile_worker import Job

logger = logging.getLogger(__name__)

MOST_WORKERS = 16
"""So many end with the kernel that takes longest. Each takes about 40 MB."""
PATIENCE_S = 60.0
"""For a kernel, the import of all kernels included; the longest takes 2 s."""
FOUND, BY_PROCESSES, BY_THREADS = "found on disk", "compiled by processes", "compiled by threads"
KERNELS = "octavo.backends.torch.kernels."
WORKER = "octavo.backends.torch.device.compile_worker"


class CompilePool(AsyncCompileMode):  # type: ignore[misc]
    """Within, a launch submits its kernel. What is not on disk is left there by processes, and threads load all.

    Processes are started with the first kernel that is not on disk. What they fail to leave, whatever the reason, is
    compiled by the thread that waits for it.
    """

    def __init__(self, threads: Executor, *, workers: int | None = None) -> None:
        """workers: how many processes; 0 for none, None for one a core, up to MOST_WORKERS."""
        super().__init__(threads)
        cores = os.cpu_count() or 1
        self._wanted = (min(cores, MOST_WORKERS) if cores > 1 else 0) if workers is None else workers
        self._workers: Workers | None = None
        self._ended = False
        self.ready: Counter[str] = Counter()
        """How many kernels came from where: FOUND, BY_PROCESSES, BY_THREADS."""

    def submit(self, key: str, compile_fn: Callable[[], Any], finalize_fn: Callable[[Any], None]) -> Any:
        """Called by a launch. key: Triton's cache key, whose digest names the kernel's folder on disk."""
        if key in self.future_kernels:
            return self.future_kernels[key]
        job = _job(compile_fn)
        found = job is not None and _on_disk(key, job)
        if self._wanted and self._workers is None and not found:
            self._workers = Workers(self._wanted)
        return super().submit(key, lambda: self._make(key, job, compile_fn, found), finalize_fn)

    def __exit__(self, *error: Any) -> None:
        """Waits for all, unless the block raised: then what is not begun is dropped, and what is begun is let go."""
        try:
            if error[0] is None:
                for future in as_completed(self.raw_futures):
                    future.result()
        except BaseException:
            self._end(drop=True)
            super().__exit__(None, None, None)
            raise
        self._end(drop=error[0] is not None)
        super().__exit__(*error)

    def _end(self, *, drop: bool) -> None:
        self._ended = True
        if self._workers is not None:
            self._workers.end(at_once=drop)
        if drop:
            for future in self.raw_futures:
                future.cancel()
            self.raw_futures.clear()

    def _make(self, key: str, job: Job | None, compile_fn: Callable[[], Any], found: bool) -> Any:
        """On a thread. A launch would else load the kernel, and build its launcher with the C compiler."""
        origin = FOUND if found else BY_THREADS
        if job is not None and self._workers is not None and not found and self._workers.compile(job):
            if _on_disk(key, job):
                origin = BY_PROCESSES
            else:
                logger.warning("%s was compiled, but under another key: it is compiled again", job.function)
        if self._ended:
            raise RuntimeError("compilation was given up")
        kernel = compile_fn()
        kernel.run  # noqa: B018 (a property that does so)
        self.ready[origin] += 1
        return kernel


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
    modules = sorted(name for name in sys.modules if name.startswith(KERNELS))
    same = {"PYTHONPATH": os.pathsep.join(sys.path), "TRITON_CACHE_DIR": knobs.cache.dir}
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


def _job(compile_fn: Callable[[], Any]) -> Job | None:
    """Of the closure that Triton 3.6 submits (JITFunction._do_compile); None of another version's."""
    held = inspect.getclosurevars(compile_fn).nonlocals
    if not {"src", "target", "options", "env_vars"} <= held.keys():
        return None
    source, target = held["src"], held["target"]
    key = source.fn.cache_key  # with it come used_global_vals
    constants = {
        (space["__name__"], name): value.value
        for (name, _), (value, space) in source.fn.used_global_vals.items()
        if isinstance(value, constexpr) and isinstance(value.value, bool | int | str)
    }
    return Job(
        module=source.fn.module,
        function=source.fn.fn.__qualname__,
        key=key,
        signature=source.signature,
        constants=source.constants,
        attributes=source.attrs,
        target=(target.backend, target.arch, target.warp_size),
        options=held["options"].__dict__,
        variables=held["env_vars"],
        constants_of=constants,
    )


def _on_disk(key: str, job: Job) -> bool:
    """As triton.compile looks for it."""
    name = f"{job.function.rpartition('.')[2][:150]}.json"
    folder = get_cache_manager(hashlib.sha256(key.encode()).hexdigest())
    return not knobs.compilation.always_compile and name in (folder.get_group(name) or {})

"""Triton's asynchronous compilation, by processes (compile_worker.py): it holds the interpreter's lock in threads."""

from __future__ import annotations

import hashlib
import inspect
import logging
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Executor, as_completed
from functools import lru_cache
from typing import Any

from triton import AsyncCompileMode, knobs
from triton.language import constexpr
from triton.runtime.cache import get_cache_manager

from octavo.backends.torch.device import compile_workers
from octavo.backends.torch.device.compile_worker import Job

logger = logging.getLogger(__name__)

FOUND, BY_PROCESSES, BY_THREADS = "found on disk", "compiled by processes", "compiled by threads"


class CompilePool(AsyncCompileMode):  # type: ignore[misc]
    """Within, a launch submits its kernel. What is not on disk is left there by processes, and threads load all.

    Processes are started with the first kernel that is not on disk, or were ahead of it (compile_workers.py). What they
    fail to leave, whatever the reason, is compiled by the thread that waits for it.
    """

    def __init__(self, threads: Executor, *, workers: int | None = None) -> None:
        """workers: how many processes; 0 for none, None for compile_workers.usual()."""
        super().__init__(threads)
        self._wanted = compile_workers.usual() if workers is None else workers
        self._workers: compile_workers.Workers | None = None
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
            self._workers = compile_workers.take(self._wanted)
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


def _job(compile_fn: Callable[[], Any]) -> Job | None:
    """Of the closure that Triton 3.6 submits (JITFunction._do_compile); None of another version's."""
    held = inspect.getclosurevars(compile_fn).nonlocals
    if not {"src", "target", "options", "env_vars"} <= held.keys():
        return None
    source, target = held["src"], held["target"]
    return Job(
        module=source.fn.module,
        function=source.fn.fn.__qualname__,
        key=source.fn.cache_key,
        signature=source.signature,
        constants=source.constants,
        attributes=source.attrs,
        target=(target.backend, target.arch, target.warp_size),
        options=held["options"].__dict__,
        variables=held["env_vars"],
        constants_of=_constants_of(source.fn.module.rpartition(".")[0], len(sys.modules)),
    )


@lru_cache(maxsize=1)
def _constants_of(package: str, loaded: int) -> dict[tuple[str, str], bool | int | str]:
    """By module and name: of all modules in the package, as Triton 3.6 does not tell all that a kernel takes.

    loaded: how many modules are; where it is another number, new ones are looked at.
    """
    return {
        (each, name): value.value
        for each, found in list(sys.modules.items())
        if each.rpartition(".")[0] == package
        for name, value in list(vars(found).items())
        if isinstance(value, constexpr) and isinstance(value.value, bool | int | str)
    }


def _on_disk(key: str, job: Job) -> bool:
    """As triton.compile looks for it."""
    name = f"{job.function.rpartition('.')[2][:150]}.json"
    folder = get_cache_manager(hashlib.sha256(key.encode()).hexdigest())
    return not knobs.compilation.always_compile and name in (folder.get_group(name) or {})

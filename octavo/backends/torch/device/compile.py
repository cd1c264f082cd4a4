"""Kernels compiled before they are needed, side by side: a block in which launches compile and do nothing else."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import wraps
from typing import Any

logger = logging.getLogger(__name__)

_lock = threading.Lock()
_threads: set[int] = set()
"""That are within compile_only."""


@contextmanager
def compile_only(workers: int | None = None) -> Iterator[None]:
    """Within, a kernel that is launched is found on disk, or compiled by another process (compile_pool.py), and does
    not run.

    At the end all are loaded. What the block computes is garbage. Other threads launch as ever. Without effect in
    Triton's interpreter, where nothing is compiled. workers: how many processes; 0 for threads alone, None for what is
    best.
    """
    from octavo.backends.torch.device.compile_pool import CompilePool

    begin = time.perf_counter()
    with (
        ThreadPoolExecutor(os.cpu_count(), "octavo-compile") as threads,
        CompilePool(threads, workers=workers) as pool,
        _launches_compile(),
    ):
        yield
    if pool.ready:
        counts = ", ".join(f"{count} {origin}" for origin, count in sorted(pool.ready.items()))
        logger.info("kernels ready in %.1f s: %s", time.perf_counter() - begin, counts)


@contextmanager
def _launches_compile() -> Iterator[None]:
    """Within, what this thread launches does not run."""
    from triton.runtime.jit import JITFunction

    this = threading.get_ident()
    with _lock:
        if not _threads:
            JITFunction.run = _unless_compiling(JITFunction.run)
        _threads.add(this)
    try:
        yield
    finally:
        with _lock:
            _threads.remove(this)
            if not _threads:
                JITFunction.run = JITFunction.run.__wrapped__


def _unless_compiling(real: Callable[..., Any]) -> Callable[..., Any]:
    """JITFunction.run, for a thread of `_threads` without the launch itself."""

    @wraps(real)
    def run(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        return real(self, *args, grid=grid, warmup=warmup or threading.get_ident() in _threads, **kwargs)

    return run

"""Kernels compiled before they are needed, side by side: a block in which launches compile and do nothing else."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

logger = logging.getLogger(__name__)


@contextmanager
def compile_only(workers: int | None = None) -> Iterator[None]:
    """Within, a kernel that is launched is compiled (or found on disk) by one of the threads, and does not run.

    At the end all are loaded. What the block computes is garbage. For one thread at a time. Without effect in Triton's
    interpreter, where nothing is compiled.
    """
    from triton import AsyncCompileMode
    from triton.runtime.jit import JITFunction

    begin, real, seen = time.perf_counter(), JITFunction.run, 0

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        nonlocal seen
        seen += 1
        real(self, *args, grid=grid, warmup=True, **kwargs)

    with ThreadPoolExecutor(workers or os.cpu_count(), "octavo-compile") as pool, AsyncCompileMode(pool) as mode:
        mode.executor = SimpleNamespace(submit=lambda compile: pool.submit(_load, compile))
        JITFunction.run = run
        try:
            yield
        finally:
            JITFunction.run = real
    if seen:
        logger.info("%d kernels ready in %.1f s", len(mode.future_kernels), time.perf_counter() - begin)


def _load(compile: Callable[[], Any]) -> Any:
    """What is left to its first launch otherwise: to load the kernel, and to build its launcher with the C compiler."""
    kernel = compile()
    kernel.run  # noqa: B018 (a property that does so)
    return kernel

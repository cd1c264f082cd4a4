"""Kernels compiled before they are needed, side by side: a block in which launches compile and do nothing else."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

logger = logging.getLogger(__name__)


@contextmanager
def compile_only(workers: int | None = None) -> Iterator[None]:
    """Within, a kernel that is launched is found on disk, or compiled by another process (compile_pool.py), and does
    not run.

    At the end all are loaded. What the block computes is garbage. For one thread at a time. Without effect in Triton's
    interpreter, where nothing is compiled. workers: how many processes; 0 for threads alone, None for what is best.
    """
    from triton.runtime.jit import JITFunction

    from octavo.backends.torch.device.compile_pool import CompilePool

    begin, real = time.perf_counter(), JITFunction.run

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        real(self, *args, grid=grid, warmup=True, **kwargs)

    with ThreadPoolExecutor(os.cpu_count(), "octavo-compile") as threads, CompilePool(threads, workers=workers) as pool:
        JITFunction.run = run
        try:
            yield
        finally:
            JITFunction.run = real
    if pool.ready:
        counts = ", ".join(f"{count} {origin}" for origin, count in sorted(pool.ready.items()))
        logger.info("kernels ready in %.1f s: %s", time.perf_counter() - begin, counts)

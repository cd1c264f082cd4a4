"""Work on the GPU that is recorded once and then launched as one: CUDA graphs, by what they are for."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

import torch

T = TypeVar("T")


class Graphs(Generic[T]):
    """A graph for each key whose work comes again. Graphs of one pool must not run side by side."""

    def __init__(self, pool: Any | None) -> None:
        """pool: of torch.cuda.graph_pool_handle, the memory that graphs share; None: nothing is recorded."""
        self._pool = pool
        self._made: dict[Hashable, tuple[torch.cuda.CUDAGraph, T]] = {}
        self._met: set[Hashable] = set()

    def run(self, key: Hashable, work: Callable[[], T]) -> T:
        """What `work` returns, launched as it is for the first time, which loads its kernels; then as a graph.

        Its tensors are the same in each replay, good until another graph of the pool runs. So `work` must read what
        changes from device memory, always the same, and the host must not depend on it.
        """
        if self._pool is None or key not in self._met:
            self._met.add(key)
            return work()
        if key not in self._made:
            self._made[key] = _capture(work, self._pool)
        graph, results = self._made[key]
        graph.replay()
        return results


def _capture(work: Callable[[], T], pool: Any) -> tuple[torch.cuda.CUDAGraph, T]:
    graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    # not torch.cuda.graph(), which waits for the device and collects garbage each time
    aside.wait_stream(current)
    with torch.cuda.stream(aside):
        graph.capture_begin(pool=pool, capture_error_mode="thread_local")
        try:
            results = work()
        finally:
            graph.capture_end()
    current.wait_stream(aside)
    return graph, results

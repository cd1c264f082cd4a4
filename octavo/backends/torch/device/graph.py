"""Work on the GPU that is recorded once and then launched as one: CUDA graphs, by what they are for."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

import torch

T = TypeVar("T")
logger = logging.getLogger(__name__)

TRIES = 2
"""To record a graph."""


class Pool:
    """Memory that graphs share which do not run side by side, and the stream on which they are recorded.

    One stream, as what is freed on one is not given out on another. And one piece of memory: graphs of growing sizes
    would else each leave pieces behind that are too small for the next.
    """

    def __init__(self, num_bytes: int) -> None:
        """num_bytes: as much as the largest graph takes; more is added where that is not enough."""
        self._handle, self._stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
        # a pool lasts as long as a graph of it
        self._first, _ = self.record(lambda: torch.empty(num_bytes, dtype=torch.uint8, device="cuda").fill_(0))

    def record(self, work: Callable[[], T]) -> tuple[torch.cuda.CUDAGraph, T]:
        """The graph of `work`, which runs no kernel now, and what it returns."""
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        # not torch.cuda.graph(), which waits for the device and collects garbage each time
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            graph.capture_begin(pool=self._handle, capture_error_mode="thread_local")
            try:
                results = work()
            finally:
                graph.capture_end()
        current.wait_stream(self._stream)
        return graph, results


class Graphs(Generic[T]):
    """A graph for each key, recorded when it is first met."""

    def __init__(self, pool: Pool | None) -> None:
        """pool: None: nothing is recorded."""
        self._pool = pool
        self._made: dict[Hashable, tuple[torch.cuda.CUDAGraph, T]] = {}
        self._failed: Counter[Hashable] = Counter()

    def run(self, key: Hashable, work: Callable[[], T]) -> T:
        """What `work` returns, launched as a graph; as it is where it could not be recorded.

        Its tensors are the same in each replay, good until another graph of the pool runs. So `work` must read what
        changes from device memory, always the same, and the host must not depend on it.
        """
        if key not in self._made:
            self._record(key, work)
        if key not in self._made:
            return work()
        graph, results = self._made[key]
        graph.replay()
        return results

    def _record(self, key: Hashable, work: Callable[[], T]) -> None:
        """What may not be done while a stream records (to wait for the device, say) is done when `work` then runs as
        it is, and perhaps once for all: so a recording that failed is tried again, TRIES times in all."""
        if self._pool is None or self._failed[key] == TRIES:
            return
        try:
            self._made[key] = self._pool.record(work)
        except RuntimeError as error:
            self._failed[key] += 1
            logger.warning("%s is launched without a graph: %s", key, error)

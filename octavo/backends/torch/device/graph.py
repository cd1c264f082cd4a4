"""Work on the GPU recorded once and launched as one: a CUDA graph and the tensors that it writes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch

T = TypeVar("T")


@dataclass(frozen=True)
class Graph(Generic[T]):
    """results: what was returned while recording, tensors in the graph's own memory; of the last replay."""

    graph: torch.cuda.CUDAGraph
    results: T

    def replay(self) -> T:
        """Launch it; the results, until another graph of the same memory is launched."""
        self.graph.replay()
        return self.results


def capture(run: Callable[[], T], pool: Any) -> Graph[T]:
    """Record what `run` launches. pool: of torch.cuda.graph_pool_handle, shared by graphs that never run side by side.

    Kernels must have been loaded: `run` has run before, with sizes that kernels do not tell apart from these.
    """
    graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    # not torch.cuda.graph(), which waits for the device and collects garbage each time
    aside.wait_stream(current)
    with torch.cuda.stream(aside):
        graph.capture_begin(pool=pool, capture_error_mode="thread_local")
        try:
            results = run()
        finally:
            graph.capture_end()
    current.wait_stream(aside)
    return Graph(graph, results)

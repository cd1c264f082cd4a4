"""What a launch takes of the GPU: many are captured in one graph, so that the CPU's launching does not count."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

import torch


def graph_us(launches: Sequence[Callable[[], object]], *, rounds: int = 7) -> float:
    """Microseconds a launch: the median of `rounds` replays, after one more, of a graph of all launches."""
    launches[0]()  # compiled, and workspaces made
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for launch in launches:
            launch()
    graph.replay()
    times = []
    for _ in range(rounds):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times) * 1000 / len(launches)

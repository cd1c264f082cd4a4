"""Decode steps as graphs: rows that each run one token in, their next tokens out; one launch in place of hundreds.

A graph holds the whole step: the inputs are gathered from the rows, the layers run, the tokens are drawn and written
behind the rows' own. What changes from step to step is read from device memory: two integers a row, in one copy.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from octavo.backends.torch.attention.cache import KVCache
from octavo.backends.torch.attention.port import PagedAttention
from octavo.backends.torch.batch import Batch
from octavo.backends.torch.device.transfer import Download
from octavo.backends.torch.layers.decoder import Decoder
from octavo.backends.torch.rows import Rows
from octavo.base.types.plan import RowStep

logger = logging.getLogger(__name__)

FLAG_NOT_FINITE = 1
"""Of kernels/sampling.py: a logit is NaN or infinite. 2: no token is left."""

PADDING = -1
"""In place of a row."""


def graph_sizes(most: int) -> list[int]:
    """Numbers of rows that graphs are made for: padding wastes at most a quarter above 16, and ends at `most`."""
    sizes = [1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 224, 256]
    sizes += [256 + 64 * i for i in range(1, 61)]
    return [size for size in sizes if size < most] + [most]


@dataclass(frozen=True)
class _Graph:
    graph: torch.cuda.CUDAGraph
    results: Tensor  # int32 [3, size]: tokens, flags, whether the stream is finite


class DecodeGraphs:
    """Graphs by number of rows and by whether any row filters; each is captured when it is first needed."""

    def __init__(self, decoder: Decoder, rows: Rows, cache: KVCache, attention: PagedAttention) -> None:
        self._decoder, self._rows, self._cache, self._attention = decoder, rows, cache, attention
        most = len(rows.states)
        self._sizes = graph_sizes(most)
        self._inputs = torch.full((2, most), PADDING, dtype=torch.int32, device=rows.device)
        self._graphs: dict[tuple[int, bool], _Graph] = {}
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream()
        # one more than steps may be unfinished: the oldest is read while two others are under way
        self._host_inputs = [torch.empty((2, most), dtype=torch.int32, pin_memory=True) for _ in range(3)]
        self._host_results = [torch.empty(3 * most, dtype=torch.int32, pin_memory=True) for _ in range(3)]
        self._turn = 0

    def run(self, steps: Sequence[RowStep], download: Download) -> np.ndarray | None:
        """int32 [3, n] on the host, filled once `download` is done; None: the step is not one for a graph."""
        count = len(steps)
        if not count or (self._rows.special and any(step.row in self._rows.special for step in steps)):
            return None
        plan = np.array([(step.row, step.start, step.count, step.sample) for step in steps], np.int32).T
        if not plan[2:].min() == plan[2:].max() == 1 or (plan[1] >= self._rows.room[plan[0]]).any():
            return None
        size = next(size for size in self._sizes if size >= count)
        filtered = bool(self._rows.filtered) and any(step.row in self._rows.filtered for step in steps)
        graph = self._graphs.get((size, filtered)) or self._capture(size, filtered)
        self._turn = (self._turn + 1) % 3
        inputs, results = self._host_inputs[self._turn], self._host_results[self._turn][: 3 * size]
        given = inputs.numpy()
        given[:, :count] = plan[:2]
        given[0, count:size] = PADDING
        self._inputs.copy_(inputs, non_blocking=True)
        graph.graph.replay()
        results.copy_(graph.results.view(-1), non_blocking=True)
        return results.numpy().reshape(3, size)[:, :count]

    def capture_all(self) -> None:
        """All sizes without filters, the largest first, so that the smaller ones fit in its memory."""
        begin = time.perf_counter()
        for size in reversed(self._sizes):
            if (size, False) not in self._graphs:
                self._capture(size, False)
        logger.info("%d graphs captured in %.1f s", len(self._sizes), time.perf_counter() - begin)

    def _capture(self, size: int, filtered: bool) -> _Graph:
        results = torch.zeros((3, size), dtype=torch.int32, device=self._rows.device)
        self._inputs[0].fill_(PADDING)  # whatever runs while warming up is written nowhere
        self._step(size, filtered, results)  # kernels that were not used yet are compiled and loaded now
        graph, current, aside = torch.cuda.CUDAGraph(), torch.cuda.current_stream(), self._stream
        aside.wait_stream(current)
        with torch.cuda.stream(aside):
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                self._step(size, filtered, results)
            finally:
                graph.capture_end()
        current.wait_stream(aside)
        made = self._graphs[size, filtered] = _Graph(graph, results)
        return made

    def _step(self, size: int, filtered: bool, results: Tensor) -> None:
        from octavo.backends.torch.kernels.inputs import decode_inputs
        from octavo.backends.torch.kernels.sampling import sample

        rows, starts = self._inputs[0, :size], self._inputs[1, :size]
        held, device = self._rows, self._rows.device
        token_ids, seq_lens = (torch.empty(size, dtype=torch.int32, device=device) for _ in range(2))
        slots = torch.empty(size, dtype=torch.int64, device=device)
        decode_inputs(rows, starts, held.tokens, held.block_tables, held.block_size, token_ids, slots, seq_lens)
        every = torch.arange(size, device=device)
        batch = Batch(
            steps=[],
            num_single=size,
            rows=rows,
            seq_lens=seq_lens,
            last=every,
            row_index=every,
            token_ids=token_ids,
            positions=starts,
            slots=slots,
            block_tables=held.block_tables,
            block_size=held.block_size,
        )
        h, finite = self._decoder.finish(self._decoder.forward(batch, self._cache, self._attention), every)
        logits = self._decoder.logits(h)
        sample(
            logits, rows, starts + 1, held.floats, held.integers, held.tokens, results[0], results[1], filtered=filtered
        )
        results[2].copy_(finite)


def make_graphs(decoder: Decoder, rows: Rows, cache: KVCache, attention: PagedAttention) -> DecodeGraphs | None:
    """None where there are no graphs: on a CPU, or where an attention implementation cannot be captured."""
    if rows.device.type != "cuda" or not attention.capturable:
        return None
    return DecodeGraphs(decoder, rows, cache, attention)

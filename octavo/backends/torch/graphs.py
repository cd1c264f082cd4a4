"""Decode steps as graphs: rows that each run one token in, their next tokens out; one launch in place of hundreds.

A graph holds the whole step: the inputs are gathered from the rows, the layers run, the tokens are drawn and written
behind the rows' own. What changes from step to step is read from device memory: two integers a row, in one copy.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from octavo.backends.torch.attention.cache import KVCache
from octavo.backends.torch.attention.port import PagedAttention
from octavo.backends.torch.batch import Batch, padded_sizes
from octavo.backends.torch.device.graph import Graph, capture
from octavo.backends.torch.device.transfer import Download, upload, upload_array
from octavo.backends.torch.kernels import sampling
from octavo.backends.torch.kernels.inputs import decode_inputs
from octavo.backends.torch.layers.decoder import Decoder
from octavo.backends.torch.rows import Rows
from octavo.backends.torch.step import NOT_FINITE, NOTHING_TO_SAMPLE
from octavo.base.types.plan import RowStep, StepPlan, StepResult

PADDING = -1
"""In place of a row."""


class DecodeStep:
    """The work of one decode step on the device. inputs: int32 [2, most] there: rows (PADDING: none), and positions."""

    def __init__(self, decoder: Decoder, rows: Rows, cache: KVCache, attention: PagedAttention) -> None:
        most = len(rows.states)
        self._decoder, self._rows, self._cache, self._attention = decoder, rows, cache, attention
        self._workspace = sampling.make_workspace(most, rows.vocab_size, rows.device)
        self.inputs = torch.zeros((2, most), dtype=torch.int32, device=rows.device)

    def run(self, size: int, *, filtered: bool, blank: bool = False) -> Tensor:
        """The first `size` of the inputs -> int32 [3, size]: tokens, the sampler's flags, whether all was finite.

        blank: no kernel will run that makes token ids, so zeros stand in for them.
        """
        rows, starts = self.inputs[0, :size], self.inputs[1, :size]
        held, device = self._rows, self._rows.device
        results = torch.empty((3, size), dtype=torch.int32, device=device)
        token_ids = (torch.zeros if blank else torch.empty)(size, dtype=torch.int32, device=device)
        seq_lens = torch.empty(size, dtype=torch.int32, device=device)
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
        results[2].copy_(finite)
        logits = self._decoder.logits(h)
        self.sample(logits, rows, starts + 1, results, filtered=filtered)
        return results

    def sample(self, logits: Tensor, rows: Tensor, positions: Tensor, results: Tensor, *, filtered: bool) -> None:
        """A token for each of `rows` at `positions`, int32 [n], to where it belongs; results [0], [1] as of `run`."""
        out, work = (results[0], results[1]), self._workspace
        sampling.sample(logits, rows, positions, self._rows, *out, workspace=work, filtered=filtered)


class DecodeSteps:
    """Decode steps of plans; on a GPU as graphs, by number of rows and by whether any row filters."""

    def __init__(self, step: DecodeStep, rows: Rows, *, graphs: bool) -> None:
        self._step, self._rows = step, rows
        most = len(rows.states)
        self._sizes = padded_sizes(most)
        self._graphs: dict[tuple[int, bool], Graph[Tensor]] | None = {} if graphs else None
        self._pool = torch.cuda.graph_pool_handle() if graphs else None

    def run(self, plan: StepPlan, download: Download) -> Callable[[], StepResult] | None:
        """Launch the step; what it returns gives the result after `download`. None: not a decode step."""
        columns = self._columns(plan.rows)
        if columns is None:
            return None
        count = len(plan.rows)
        size = next(size for size in self._sizes if size >= count)
        filtered = bool(self._rows.filtered) and any(step.row in self._rows.filtered for step in plan.rows)
        made = self._launch(upload_array(_padded(columns, size), self._rows.device), size, filtered)
        return partial(_result, plan, download.add(made).numpy()[:, :count])

    def draw(self, logits: Tensor, rows: list[int], positions: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        """As part of an eager step: tokens [n], whether the logits were finite, whether no token was left."""
        both = upload([rows, positions], torch.int32, self._rows.device)
        results = torch.empty((2, len(rows)), dtype=torch.int32, device=both.device)
        filtered = not self._rows.filtered.isdisjoint(rows)
        self._step.sample(logits, both[0], both[1], results, filtered=filtered)
        return results[0], results[1] != sampling.NOT_FINITE, results[1] == sampling.NONE_LEFT

    def warm(self) -> None:
        """Go through what the sizes differ in, for the sake of the kernels that are met (device/compile.py)."""
        for size in {size for size in self._sizes if size <= 64} | set(self._sizes[-2:]):
            self._step.run(size, filtered=False, blank=True)
        for size in {self._sizes[0], self._sizes[-1]}:
            self._step.run(size, filtered=True, blank=True)

    def _columns(self, steps: list[RowStep]) -> np.ndarray | None:
        """int32 [2, n], rows and positions; None where a row runs more, does not sample, asks more or cannot run."""
        special = self._rows.special
        if not steps or (special and any(step.row in special for step in steps)):
            return None
        if not all(step.count == 1 and step.sample for step in steps):
            return None
        columns = np.array([[step.row for step in steps], [step.start for step in steps]], np.int32)
        room = self._rows.room[columns[0]]
        return columns if ((columns[1] >= 0) & (columns[1] < room)).all() else None

    def _launch(self, inputs: Tensor, size: int, filtered: bool) -> Tensor:
        graph = self._graph(size, filtered=filtered)
        self._step.inputs[:, :size] = inputs
        if graph is None:
            return self._step.run(size, filtered=filtered)
        return graph.replay()

    def _graph(self, size: int, *, filtered: bool) -> Graph[Tensor] | None:
        if self._graphs is None:
            return None
        if (size, filtered) not in self._graphs:
            self._graphs[size, filtered] = self._capture(size, filtered)
        return self._graphs[size, filtered]

    def _capture(self, size: int, filtered: bool) -> Graph[Tensor]:
        # what runs while warming up is written nowhere, and reads what is there
        self._step.inputs[0].fill_(PADDING)
        self._step.inputs[1].zero_()
        self._step.run(size, filtered=filtered)  # kernels not used yet are compiled and loaded now
        return capture(lambda: self._step.run(size, filtered=filtered), self._pool)


def _padded(columns: np.ndarray, size: int) -> np.ndarray:
    padded = np.zeros((2, size), np.int32)
    padded[0] = PADDING
    padded[:, : columns.shape[1]] = columns
    return padded


def _result(plan: StepPlan, decoded: np.ndarray) -> StepResult:
    """decoded: as DecodeStep.run's, on the host, of the plan's rows."""
    tokens, flags, finite = decoded
    failed = {}
    if flags.any() or not finite.all():
        for i, step in enumerate(plan.rows):
            if flags[i] == sampling.NOT_FINITE or not finite[i]:
                failed[step.row] = NOT_FINITE
            elif flags[i] == sampling.NONE_LEFT:
                failed[step.row] = NOTHING_TO_SAMPLE
    return StepResult(step=plan.step, tokens=tokens.tolist(), failed=failed)

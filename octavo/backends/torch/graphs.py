"""Decode steps as graphs: rows that each run one token in, their next tokens out; one launch in place of hundreds.

A graph holds the whole step: the inputs are gathered from the rows, the layers run, the tokens are drawn and written
behind the rows' own. What changes from step to step is read from device memory: two integers a row, in one copy.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from octavo.backends.torch.attention.cache import KVCache
from octavo.backends.torch.attention.port import PagedAttention
from octavo.backends.torch.batch import Batch, padded_sizes
from octavo.backends.torch.device.graph import Graphs, Pool
from octavo.backends.torch.device.transfer import Download, upload, upload_into
from octavo.backends.torch.kernels import sampling
from octavo.backends.torch.kernels.edits import edit
from octavo.backends.torch.kernels.inputs import decode_inputs
from octavo.backends.torch.kernels.logprobs import log_probabilities
from octavo.backends.torch.layers.decoder import Decoder
from octavo.backends.torch.rows import Rows
from octavo.backends.torch.sampling.kinds import ALL_ON, Kind, meets
from octavo.backends.torch.sampling.logprobs import WIDTH, PackedLogprobs
from octavo.backends.torch.step import Sampled
from octavo.base.errors import NOT_FINITE, NOTHING_TO_SAMPLE
from octavo.base.types.plan import RowStep, StepPlan, StepResult

PADDING = -1
"""In place of a row."""


class DecodeStep:
    """The work of one decode step on the device, of what its inputs hold."""

    def __init__(self, decoder: Decoder, rows: Rows, cache: KVCache, attention: PagedAttention) -> None:
        most = len(rows.states)
        self._decoder, self._rows, self._cache, self._attention = decoder, rows, cache, attention
        self._workspace = sampling.make_workspace(most, rows.vocab_size, rows.device)
        self._saved = torch.empty((most, rows.tokens.shape[1]), dtype=torch.float32, device=rows.device)
        self._inputs = torch.zeros(2 * _width(most), dtype=torch.int32, device=rows.device)

    def inputs(self, size: int) -> Tensor:
        """int32 [2, _width(size)], contiguous: of a step of `size` rows, the rows (PADDING: none) and the positions."""
        return self._inputs[: 2 * _width(size)].view(2, -1)

    def run(self, size: int, kind: Kind, *, blank: bool = False) -> Tensor:
        """Of the inputs of this size, whose rows are of the kind -> what `unpack` takes apart.

        blank: no kernel will run that makes token ids, so zeros stand in for them.
        """
        h, finite = self.layers(size, blank=blank)
        return self.draw(size, kind, self.logits(h), finite)

    def layers(self, size: int, *, blank: bool = False) -> tuple[Tensor, Tensor]:
        """The part of `run` before logits: rows' states [size, hidden], and bool [size], whether they are finite."""
        rows, starts = self.inputs(size)[:, :size].unbind(0)
        held, device = self._rows, self._rows.device
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
            row_index=every,
            token_ids=token_ids,
            positions=starts,
            slots=slots,
            block_tables=held.block_tables,
            block_size=held.block_size,
        )
        stream, _ = self._decoder.forward(batch, self._cache, self._attention)
        return self._decoder.finish(stream, every)

    def logits(self, h: Tensor) -> Tensor:
        """float32 [size, vocab] of states."""
        return self._decoder.logits(h)

    def draw(self, size: int, kind: Kind, logits: Tensor, finite: Tensor) -> Tensor:
        """The rest of `run`. logits: overwritten."""
        rows, starts = self.inputs(size)[:, :size].unbind(0)
        results = make_results(size, kind, self._rows.device)
        unpack(results, size).finite.copy_(finite)
        self.sample(logits, rows, starts + 1, results, kind)
        return results

    def sample(self, logits: Tensor, rows: Tensor, positions: Tensor, results: Tensor, kind: Kind) -> None:
        """A token for each of `rows` at `positions`, int32 [n], to where it belongs; results but for `finite`.

        logits: float32 [n, vocab], overwritten.
        """
        tokens, flags, _, packed = unpack(results, rows.shape[0])
        held, work = self._rows, self._workspace
        raw = logits.clone() if kind.edited and kind.logprobs else logits
        if kind.edited:
            edit(logits, rows, positions, held, held.edits, self._saved)
        sampling.sample(logits, rows, positions, held, tokens, flags, workspace=work, filtered=kind.filtered)
        if kind.logprobs:
            log_probabilities(raw, rows, held, tokens, flags, packed, workspace=work)


def _width(size: int) -> int:
    """`size` up to whole 16 bytes of int32: kernels are compiled for what begins at such."""
    return -(-size // 4) * 4


class Results(NamedTuple):
    """int32 [n] each: tokens, the sampler's flags, whether the row's state was finite; packed int32 [n, WIDTH] as of
    sampling/logprobs.py, or [n, 0] where none of the rows asks."""

    tokens: Tensor
    flags: Tensor
    finite: Tensor
    packed: Tensor


def make_results(count: int, kind: Kind, device: torch.device) -> Tensor:
    """One tensor for the results of `count` rows, since each more would be one more transfer."""
    return torch.empty(count * (3 + (WIDTH if kind.logprobs else 0)), dtype=torch.int32, device=device)


def unpack(results: Tensor, count: int) -> Results:
    """Views of a tensor of make_results."""
    tokens, flags, finite = results[: 3 * count].view(3, count).unbind(0)
    return Results(tokens, flags, finite, results[3 * count :].view(count, results.shape[0] // count - 3))


class DecodeSteps:
    """Decode steps of plans; on a GPU as graphs, by number of rows and by what any of them asks of the sampler."""

    def __init__(self, step: DecodeStep, rows: Rows, *, pool: Pool | None) -> None:
        """pool: as Graphs has it."""
        self._step, self._rows = step, rows
        most = len(rows.states)
        self._sizes = padded_sizes(most)
        self._graphs = Graphs[Tensor](pool)
        self._layers = Graphs[tuple[Tensor, Tensor]](pool)

    def run(self, plan: StepPlan, download: Download) -> Callable[[], StepResult] | None:
        """Launch the step; what it returns gives the result after `download`. None: not a decode step."""
        taken = self._take(plan)
        if taken is None:
            return None
        rows, kind, size = taken
        made = self._graphs.run((size, kind), lambda: self._step.run(size, kind))
        return partial(_result, plan, unpack(download.add(made), size), self._counts(rows, kind))

    def start(self, plan: StepPlan) -> Callable[[Download], Callable[[], StepResult]] | None:
        """As `run`, in two parts: the layers now, as a graph; what it returns draws, once the rows' masks are there."""
        taken = self._take(plan)
        if taken is None:
            return None
        rows, kind, size = taken
        # logits are made outside: a graph's results are kept, and of each size they would take up to 150 MB
        h, finite = self._layers.run(size, lambda: self._step.layers(size))
        logits = self._step.logits(h)

        def draw(download: Download) -> Callable[[], StepResult]:
            made = self._step.draw(size, kind, logits, finite)
            return partial(_result, plan, unpack(download.add(made), size), self._counts(rows, kind))

        return draw

    def draw(
        self, logits: Tensor, finite: Tensor, rows: list[int], positions: list[int], download: Download
    ) -> Sampled:
        """As part of an eager step, for rows of which none is beyond the kernels. logits: overwritten.

        finite: bool [n], whether the rows' states were.
        """
        both = upload([rows, positions], torch.int32, self._rows.device)
        kind = self._rows.kinds.of(rows)
        made = make_results(len(rows), kind, both.device)
        self._step.sample(logits, both[0], both[1], made, kind)
        flags = unpack(made, len(rows)).flags
        finite, empty = finite & (flags != sampling.NOT_FINITE), download.add(flags == sampling.NONE_LEFT)
        host = unpack(download.add(made), len(rows))
        counts = self._counts(rows, kind)
        logprobs = [] if counts is None else [(list(range(len(rows))), _packed(host, counts))]
        return Sampled(rows, host.tokens, download.add(finite), empty, logprobs)

    def warm(self) -> None:
        """Go through what the sizes differ in, for the sake of the kernels that are met (device/compile.py): first
        those that take longest to compile."""
        self._step.run(self._sizes[0], ALL_ON, blank=True)
        # products of more than 64 rows differ by the blocks of 128 that they have, one or two (skinny_choice)
        differing = {size for size in self._sizes if size <= 64 or size in (128, 256)}
        for size in differing | set(self._sizes[-2:]):
            self._step.run(size, Kind(), blank=True)

    def _take(self, plan: StepPlan) -> tuple[list[int], Kind, int] | None:
        """Hand the step its inputs: its rows, their kind, its size. None: not a decode step."""
        rows = [step.row for step in plan.rows]
        inputs = self._inputs(plan.rows, rows)
        if inputs is None:
            return None
        size = self.size(len(rows))
        upload_into(self._step.inputs(size), inputs)
        return rows, self._rows.kinds.of(rows), size

    def _inputs(self, steps: list[RowStep], rows: list[int]) -> np.ndarray | None:
        """As DecodeStep has them; None where a row runs more than a token, does not sample, is beyond the kernels or
        cannot run."""
        single = all(step.count == 1 and step.sample for step in steps)
        if not steps or not single or meets(rows, self._rows.kinds.beyond):
            return None
        count = len(rows)
        inputs = np.zeros((2, _width(self.size(count))), np.int32)
        inputs[0] = PADDING
        inputs[0, :count], inputs[1, :count] = rows, [step.start for step in steps]
        used, starts = inputs[:, :count]
        able = ((starts >= 0) & (starts < self._rows.room[used])).all()
        return inputs if able else None

    def size(self, count: int) -> int:
        """What a step of `count` rows is padded to."""
        return next(size for size in self._sizes if size >= count)

    def _counts(self, rows: list[int], kind: Kind) -> list[int | None] | None:
        """By row, the alternatives whose log probabilities it asks for; None if no row asks for any."""
        return [self._rows.kinds.logprobs.get(row) for row in rows] if kind.logprobs else None


def _packed(results: Results, counts: list[int | None]) -> PackedLogprobs:
    """Of the first rows; results: on the host."""
    return PackedLogprobs(results.tokens[: len(counts)].numpy(), results.packed[: len(counts)].numpy(), counts)


def _result(plan: StepPlan, results: Results, counts: list[int | None] | None) -> StepResult:
    """results: on the host; its first rows are the plan's."""
    count = len(plan.rows)
    tokens, flags, finite = (each[:count].numpy() for each in results[:3])
    logprobs = [] if counts is None else _packed(results, counts).entries()
    failed = {}
    if flags.any() or not finite.all():
        for i, step in enumerate(plan.rows):
            if flags[i] == sampling.NOT_FINITE or not finite[i]:
                failed[step.row] = NOT_FINITE
            elif flags[i] == sampling.NONE_LEFT:
                failed[step.row] = NOTHING_TO_SAMPLE
    if logprobs and failed:
        logprobs = [None if step.row in failed else entry for step, entry in zip(plan.rows, logprobs, strict=True)]
    return StepResult(step=plan.step, tokens=tokens.tolist(), logprobs=logprobs, failed=failed)

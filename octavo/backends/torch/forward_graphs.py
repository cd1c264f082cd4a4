"""The layers of steps with prompts as graphs: a Batch in, what they leave out; one launch in place of hundreds.

Launching a pass over the layers costs the CPU about 20 ms, more than the GPU needs for a small model or a short prompt.
So such batches are padded to a few sizes, for each of which a graph is kept; what is larger is launched as it is.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from octavo.backends.torch.attention.cache import KVCache
from octavo.backends.torch.attention.select import AttentionStack
from octavo.backends.torch.batch import Batch, Ends, padded_sizes, padded_tokens
from octavo.backends.torch.device.graph import Graphs, Pool
from octavo.backends.torch.device.transfer import upload
from octavo.backends.torch.layers.decoder import Decoder, Passed
from octavo.backends.torch.ops.port import Stream
from octavo.backends.torch.rows import Rows
from octavo.models.spec import ModelSpec

MOST_OPERATIONS = 20e12
"""Of a graphed pass: what an H100 does in the time that launching it takes the CPU."""

FEW_SPANS = 8
"""Up to so many a graph of their own has no room for more: a kernel runs empty programs for what is left of it."""

FEW_ENDS = 8
"""Most passes have no more: those of prompts alone. A last layer of so many rows takes about as long as one of one."""


def graphed_tokens(spec: ModelSpec, max_tokens: int) -> int:
    """The most tokens of a pass that is worth a graph; max_tokens: of a step."""
    return min(max_tokens, int(MOST_OPERATIONS / (2 * spec.num_active_parameters())))


class ForwardGraphs:
    """Passes over the layers of a decoder with batches of up to `most` tokens."""

    def __init__(
        self, decoder: Decoder, rows: Rows, cache: KVCache, attention: AttentionStack, *, most: int, pool: Pool | None
    ) -> None:
        """pool: as Graphs has it."""
        self._decoder, self._rows, self._cache, self._attention, self._most = decoder, rows, cache, attention, most
        device = rows.device
        self._token_ids, self._positions = torch.zeros((2, most), dtype=torch.int32, device=device)
        self._slots = torch.full((most,), -1, dtype=torch.int64, device=device)
        # each begins at a multiple of 16 bytes: kernels are compiled for such
        self._row_ids, self._seq_lens, self._end_rows, self._end_lens = (
            torch.zeros(len(rows.states), dtype=torch.int32, device=device) for _ in range(4)
        )
        self._end_sizes = padded_sizes(len(rows.states))
        self._end_tokens = torch.zeros(len(rows.states), dtype=torch.int64, device=device)
        self._tiles: dict[int, Tensor] = {}
        # where every graph leaves its streams: those of each size would add up (a byte a token, `finite`, does not)
        shape = (2, most, decoder.spec.hidden_size)
        self._streams = torch.empty(shape, dtype=decoder.weights.embed.dtype, device=device)
        self._graphs = Graphs[Passed](pool)

    def room(self, tokens: int, ends: int) -> int:
        """What so many ends of a pass of `tokens` tokens are padded to, for `run`.

        Each of these is a graph of its own, so there are few: none, as in the middle of a long prompt, which ends
        behind the last layer's keys and values; FEW_ENDS; as many as there can be. All are sizes of decode steps, whose
        kernels are ready.
        """
        if tokens > self._most or not ends:
            return ends
        most = min(padded_tokens(tokens, self._most), self._end_sizes[-1])
        wanted = min(FEW_ENDS, most) if ends <= FEW_ENDS else most
        return next(room for room in self._end_sizes if room >= wanted)

    def run(self, batch: Batch) -> Passed | None:
        """As Decoder.forward, until the next call; None where the batch is too large. Ends are padded to a `room`."""
        count = len(batch.token_ids)
        if count > self._most:
            return None
        size, few = padded_tokens(count, self._most), len(batch.steps) - batch.num_single <= FEW_SPANS
        padded = self._padded(batch, size, FEW_SPANS if few else len(self._row_ids))
        ends = None if padded.ends is None else padded.ends.num_single
        (x, delta), finite = self._graphs.run((size, few, ends), lambda: self._forward(padded))
        rows = count if ends is None else ends
        stream = Stream(x[:rows], None if delta is None else delta[:rows])
        return Passed(stream, None if finite is None else finite[:count])

    def _forward(self, padded: Batch) -> Passed:
        (x, delta), finite = self._decoder.forward(padded, self._cache, self._attention)
        kept = self._streams[:, : len(x)]
        kept[0] = x
        if delta is not None:
            kept[1] = delta
        return Passed(Stream(kept[0], None if delta is None else kept[1]), finite)

    def _padded(self, batch: Batch, size: int, spans: int) -> Batch:
        """The batch in the tensors that the size's graph reads, padding behind its tokens and its single rows."""
        single, singles = batch.num_single, min(size, len(self._row_ids))
        row_ids = _filled(self._row_ids[:singles], batch.rows[:single], -1)
        return Batch(
            steps=[],
            num_single=singles,
            rows=row_ids,
            seq_lens=_filled(self._seq_lens[:singles], batch.seq_lens[:single], 0),
            row_index=batch.row_index,
            token_ids=_filled(self._token_ids[:size], batch.token_ids, 0),
            positions=_filled(self._positions[:size], batch.positions, 0),
            slots=_filled(self._slots[:size], batch.slots, -1),
            block_tables=batch.block_tables,
            block_size=batch.block_size,
            tiles=self._padded_tiles(batch, size, spans),
            ends=None if batch.ends is None else self._held_ends(batch.ends),
        )

    def _held_ends(self, ends: Ends) -> Ends:
        """In the tensors that the graph reads."""
        size = ends.num_single
        return replace(
            ends,
            steps=[],
            rows=self._end_rows[:size].copy_(ends.rows),
            seq_lens=self._end_lens[:size].copy_(ends.seq_lens),
            tokens=self._end_tokens[:size].copy_(ends.tokens),
        )

    def _padded_tiles(self, batch: Batch, size: int, spans: int) -> dict[int, Tensor]:
        """By the most queries of a tile. A span (of at most `spans`) has two tokens or more, and one tile not full."""
        padded = {}
        for queries, tiles in self._attention.span_tiles(batch).items():
            capacity = size // queries + min(size // 2, spans)
            if queries not in self._tiles:
                most = self._most // queries + min(self._most // 2, max(FEW_SPANS, len(self._row_ids)))
                self._tiles[queries] = torch.zeros((most, 4), dtype=torch.int32, device=self._rows.device)
            values = upload(tiles, torch.int32, self._rows.device) if tiles else self._tiles[queries][:0]
            padded[queries] = _filled(self._tiles[queries][:capacity], values, 0)
        return padded


def _filled(held: Tensor, values: Tensor, padding: int) -> Tensor:
    """`held` with the values, and behind them padding."""
    held[: len(values)] = values
    held[len(values) :] = padding
    return held

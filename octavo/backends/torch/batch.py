"""The rows of a StepPlan in, a Batch out: the device arrays of one step, gathered from the persistent rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from octavo.backends.torch.device.transfer import upload
from octavo.backends.torch.layers.rope import Turns
from octavo.backends.torch.rows import Rows
from octavo.base.types.plan import RowStep
from octavo.models.spec import Rope


@dataclass(frozen=True, kw_only=True)
class Queries:
    """n rows with tokens that attend, one after the other; rows of one token come first, num_single of them.

    steps: the rows', in this order.   rows, seq_lens: int32 [n]; seq_lens counts the step's tokens in.
    block_tables: int32 [all rows, max_blocks], of which `rows` are these.
    tiles: what port.CapturableAttention.span_tiles says, int32 [any, 4] each (all zero: nothing), where the steps do
    not tell; rows and tokens may then be padding (row -1 of length 0; token 0 at position 0).
    """

    steps: list[RowStep]
    num_single: int
    rows: Tensor
    seq_lens: Tensor
    block_tables: Tensor
    block_size: int
    tiles: Mapping[int, Tensor] | None = None

    def row_slots(self, index: int, length: int) -> Tensor:
        """Slots of positions 0..length-1 of the index-th row."""
        num_blocks = -(-length // self.block_size)
        offsets = torch.arange(self.block_size, device=self.rows.device)
        table = self.block_tables[self.steps[index].row, :num_blocks, None].long()
        return (table * self.block_size + offsets).flatten()[:length]


@dataclass(frozen=True, kw_only=True)
class Ends(Queries):
    """The tokens of a batch that are sampled from, in its order, as rows of one token; padding may follow.

    tokens: int64 [n], their indices in the batch; 0 for padding.
    """

    tokens: Tensor


@dataclass(frozen=True, kw_only=True)
class Batch(Queries):
    """All tokens of rows, and what the layers read of them.

    row_index: int64 [tokens], 0..n-1.   token_ids, positions: int32 [tokens].
    slots: int64 [tokens], places in the KV cache; -1: none (padding).
    turns: what layers with the same rope share.
    ends: where something is asked of these tokens alone; None: of any.
    """

    row_index: Tensor
    token_ids: Tensor
    positions: Tensor
    slots: Tensor
    turns: dict[Rope, Turns] = field(default_factory=dict)
    ends: Ends | None = None


def make_batch(steps: list[RowStep], rows: Rows) -> Batch:
    """`steps` have passed rows.refusal."""
    steps = sorted(steps, key=lambda step: step.count > 1)
    total = sum(step.count for step in steps)
    row_ids, starts, counts = upload([(s.row, s.start, s.count) for s in steps], torch.int64, rows.device).unbind(1)
    ends = counts.cumsum(0)
    index = torch.arange(len(steps), device=rows.device)
    row_index = torch.repeat_interleave(index, counts, output_size=total)
    positions = torch.arange(total, device=rows.device) - (ends - counts - starts)[row_index]
    at = row_ids[row_index]
    size = rows.block_size
    return Batch(
        steps=steps,
        num_single=sum(step.count == 1 for step in steps),
        rows=row_ids.int(),
        seq_lens=(starts + counts).int(),
        row_index=row_index,
        token_ids=rows.tokens[at, positions],
        positions=positions.int(),
        slots=rows.block_tables[at, positions // size].long() * size + positions % size,
        block_tables=rows.block_tables,
        block_size=size,
    )


def with_ends(batch: Batch, room: Callable[[int], int]) -> Batch:
    """The batch with its ends, which are padded to room(their number)."""
    steps, entries, first = [], [], 0
    for step in batch.steps:
        first += step.count
        if step.sample:
            end = step.start + step.count
            steps.append(RowStep(step.row, end - 1, 1, True))
            entries.append((step.row, end, first - 1))
    size = room(len(steps))
    entries += [(-1, 0, 0)] * (size - len(steps))
    rows, seq_lens, tokens = upload(entries, torch.int64, batch.rows.device).view(size, 3).unbind(1)
    ends = Ends(
        steps=steps,
        num_single=size,
        rows=rows.int(),
        seq_lens=seq_lens.int(),
        tokens=tokens,
        block_tables=batch.block_tables,
        block_size=batch.block_size,
    )
    return replace(batch, ends=ends)


def padded_sizes(most: int) -> list[int]:
    """Numbers of rows that decode steps are padded to: a third is wasted at most, an eighth above 64; ends at `most`.

    Kernels are compiled, and graphs captured, for these alone.
    """
    sizes = [1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 224, 256]
    sizes += [256 + 64 * i for i in range(1, 61)]
    return [size for size in sizes if size < most] + [most]


def padded_tokens(count: int, most: int) -> int:
    """What a step of `count` tokens (2 to `most`) is padded to: by an eighth at most above 256."""
    grain = 32 if count <= 256 else 1 << (count - 1).bit_length() - 4
    return min(-(-count // grain) * grain, most)

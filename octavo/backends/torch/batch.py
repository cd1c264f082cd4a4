"""The rows of a StepPlan in, a Batch out: the device arrays of one step, gathered from the persistent rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from octavo.backends.torch.device.transfer import upload
from octavo.backends.torch.layers.rope import Turns
from octavo.backends.torch.rows import Rows
from octavo.base.types.plan import RowStep
from octavo.models.spec import Rope


@dataclass(frozen=True)
class Batch:
    """n rows with all their tokens one after the other; those that run one token come first, num_single of them.

    steps: the rows', in this order.   rows, seq_lens: int32 [n]; seq_lens counts the step's tokens in.
    last: int64 [n], the index of a row's last token.   row_index: int64 [tokens], 0..n-1.
    token_ids, positions: int32 [tokens].   slots: int64 [tokens], places in the KV cache; -1: none (padding).
    block_tables: int32 [all rows, max_blocks], of which `rows` are these.
    turns: what layers with the same rope share.
    tiles: what port.CapturableAttention.span_tiles says, int32 [any, 4] each (all zero: nothing), where the steps do
    not tell; rows and tokens may then be padding (row -1 of length 0; token 0 at position 0).
    """

    steps: list[RowStep]
    num_single: int
    rows: Tensor
    seq_lens: Tensor
    last: Tensor
    row_index: Tensor
    token_ids: Tensor
    positions: Tensor
    slots: Tensor
    block_tables: Tensor
    block_size: int
    turns: dict[Rope, Turns] = field(default_factory=dict)
    tiles: Mapping[int, Tensor] | None = None

    def row_slots(self, index: int, length: int) -> Tensor:
        """Slots of positions 0..length-1 of the index-th row."""
        num_blocks = -(-length // self.block_size)
        offsets = torch.arange(self.block_size, device=self.rows.device)
        table = self.block_tables[self.steps[index].row, :num_blocks, None].long()
        return (table * self.block_size + offsets).flatten()[:length]


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
        last=ends - 1,
        row_index=row_index,
        token_ids=rows.tokens[at, positions],
        positions=positions.int(),
        slots=rows.block_tables[at, positions // size].long() * size + positions % size,
        block_tables=rows.block_tables,
        block_size=size,
    )


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

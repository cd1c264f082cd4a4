"""The rows of a StepPlan in, a Batch out: the device arrays of one step, gathered from the persistent rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.backends.torch.device.transfer import upload
from octavo.backends.torch.rows import Rows
from octavo.base.types.plan import RowStep


@dataclass(frozen=True)
class Batch:
    """n rows with all their tokens one after the other, int64.

    steps: the plan's, in the same order.   rows, starts, last: [n]; last is the index of a row's last token.
    row_index, positions, token_ids, slots: [tokens]; row_index counts 0..n-1, slots are places in the KV cache.
    block_tables: [n, max_blocks].
    """

    steps: list[RowStep]
    rows: Tensor
    starts: Tensor
    last: Tensor
    row_index: Tensor
    positions: Tensor
    token_ids: Tensor
    slots: Tensor
    block_tables: Tensor
    block_size: int

    def row_slots(self, index: int, length: int) -> Tensor:
        """Slots of positions 0..length-1 of the index-th row."""
        num_blocks = -(-length // self.block_size)
        offsets = torch.arange(self.block_size, device=self.rows.device)
        return (self.block_tables[index, :num_blocks, None] * self.block_size + offsets).flatten()[:length]


def make_batch(steps: list[RowStep], rows: Rows) -> Batch:
    """`steps` have passed rows.refusal."""
    total = sum(step.count for step in steps)
    row_ids, starts, counts = upload([(s.row, s.start, s.count) for s in steps], torch.int64, rows.device).unbind(1)
    ends = counts.cumsum(0)
    index = torch.arange(len(steps), device=rows.device)
    row_index = torch.repeat_interleave(index, counts, output_size=total)
    positions = torch.arange(total, device=rows.device) - (ends - counts - starts)[row_index]
    tables = rows.block_tables[row_ids].long()
    size = rows.block_size
    return Batch(
        steps=steps,
        rows=row_ids,
        starts=starts,
        last=ends - 1,
        row_index=row_index,
        positions=positions,
        token_ids=rows.tokens[row_ids[row_index], positions].long(),
        slots=tables[row_index, positions // size] * size + positions % size,
        block_tables=tables,
        block_size=size,
    )

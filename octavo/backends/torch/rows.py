"""Rows: sequences' persistent state on the device. A plan's changes in; each step's inputs are gathered from it.

Layout:
    tokens        int32 [rows, max_model_len + 1]   known tokens from position 0; a sampled one is written behind them
    block_tables  int32 [rows, max_blocks]
    floats        float32 [rows, len(FLOATS)], integers int64 [rows, 2] (seed, top_k): sampling parameters
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from octavo.backends.torch.device.transfer import upload
from octavo.backends.torch.sampling.group import FLOATS
from octavo.backends.torch.sampling.tables import NO_TABLES, TokenTables, make_tables
from octavo.base.errors import OctavoError
from octavo.base.types.plan import BlockUpdate, RowBegin, RowSampling, RowStep, StepPlan

_INT64 = 1 << 64


@dataclass
class RowState:
    """What the host knows of a row in use. error: why it cannot run, if it cannot."""

    sampling: RowSampling
    num_prompt: int
    num_blocks: int = 0
    tables: TokenTables = NO_TABLES
    error: str | None = None


class Rows:
    """All rows of a backend. What is wrong with one row is kept as that row's error."""

    def __init__(
        self,
        *,
        max_num_seqs: int,
        max_model_len: int,
        num_blocks: int,
        block_size: int,
        vocab_size: int,
        device: torch.device,
    ) -> None:
        self.device, self.block_size, self.vocab_size = device, block_size, vocab_size
        self.max_model_len = max_model_len
        self.num_blocks = num_blocks
        self.states: list[RowState | None] = [None] * max_num_seqs
        max_blocks = -(-max_model_len // block_size)
        self.tokens = torch.zeros((max_num_seqs, max_model_len + 1), dtype=torch.int32, device=device)
        self.block_tables = torch.zeros((max_num_seqs, max_blocks), dtype=torch.int32, device=device)
        self.floats = torch.zeros((max_num_seqs, len(FLOATS)), dtype=torch.float32, device=device)
        self.integers = torch.zeros((max_num_seqs, 2), dtype=torch.int64, device=device)

    def apply(self, plan: StepPlan) -> None:
        """Ended, begun and updated rows, in this order. IndexError for a row that does not exist."""
        for row in plan.ended:
            self.states[row] = None
        for begin in plan.begins:
            state = RowState(begin.sampling, begin.num_prompt)
            self.states[begin.row] = state
            try:
                self._begin(begin, state)
            except OctavoError as error:
                state.error = error.message
            except Exception as error:
                state.error = f"the row could not begin ({type(error).__name__}: {error})"
        for update in plan.updates:
            updated = self.states[update.row]
            if updated is not None and updated.error is None:
                self._set_blocks(update, updated)

    def refusal(self, step: RowStep) -> str | None:
        """Why this row cannot run, or None."""
        state = self.states[step.row]
        if state is None:
            return "the row was never begun"
        if state.error is not None:
            return state.error
        end = step.start + step.count
        if step.count < 1 or step.start < 0 or end > self.max_model_len:
            return f"tokens {step.start} to {end} are outside the context of {self.max_model_len}"
        if end > state.num_blocks * self.block_size:
            return f"{state.num_blocks} blocks do not hold {end} tokens"
        return None

    def state(self, row: int) -> RowState:
        """Of a row in use."""
        state = self.states[row]
        if state is None:
            raise RuntimeError(f"row {row} is not in use")
        return state

    def _begin(self, begin: RowBegin, state: RowState) -> None:
        tokens = begin.token_ids
        if not 0 < len(tokens) <= self.max_model_len:
            state.error = f"{len(tokens)} tokens do not fit the context of {self.max_model_len}"
            return
        for token in (min(tokens), max(tokens)):
            if not 0 <= token < self.vocab_size:
                state.error = f"token id {token} is outside the vocabulary of {self.vocab_size}"
                return
        s = begin.sampling
        state.tables = make_tables(s, vocab_size=self.vocab_size, device=self.device)
        self.tokens[begin.row, : len(tokens)] = upload(tokens, torch.int32, self.device)
        floats = [getattr(s, name) for name in FLOATS]
        self.floats[begin.row] = upload(floats, torch.float32, self.device)
        top_k = min(s.top_k, self.vocab_size) if s.top_k > 0 else self.vocab_size
        self.integers[begin.row] = upload([_signed(s.seed), top_k], torch.int64, self.device)
        self._set_blocks(BlockUpdate(begin.row, 0, begin.blocks), state)

    def _set_blocks(self, update: BlockUpdate, state: RowState) -> None:
        end = update.index + len(update.blocks)
        if not 0 <= update.index <= state.num_blocks or end > self.block_tables.shape[1]:
            state.error = f"blocks {update.index} to {end} do not fit behind the {state.num_blocks} of the row"
            return
        if any(not 0 <= block < self.num_blocks for block in update.blocks):
            state.error = f"blocks {update.blocks} are not all among the cache's {self.num_blocks}"
            return
        if update.blocks:
            self.block_tables[update.row, update.index : end] = upload(update.blocks, torch.int32, self.device)
        state.num_blocks = max(state.num_blocks, end)


def _signed(value: int) -> int:
    """Any integer as the int64 with the same low 64 bits."""
    value %= _INT64
    return value - _INT64 if value >= _INT64 // 2 else value

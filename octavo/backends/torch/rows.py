"""Rows: sequences' persistent state on the device. A plan's changes in; each step's inputs are gathered from it.

Layout:
    tokens        int32 [rows, max_model_len + 1]   known tokens from position 0; a sampled one is written behind them
    block_tables  int32 [rows, max_blocks]
    floats        float32 [rows, len(FLOATS)], integers int64 [rows, len(INTEGERS)]: sampling parameters
    room          int64 [rows], on the host: tokens that a row may come to hold; 0 where it cannot run
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from octavo.backends.torch.device.transfer import upload, upload_array
from octavo.backends.torch.sampling.edits import NO_EDITS, EditTables, RowEdits, row_edits
from octavo.backends.torch.sampling.group import FLOATS, INTEGERS
from octavo.backends.torch.sampling.kinds import Kinds
from octavo.backends.torch.sampling.tables import NO_TABLES, TokenTables, make_tables
from octavo.base.errors import OctavoError
from octavo.base.types.plan import BlockUpdate, RowBegin, RowSampling, RowStep, StepPlan
from octavo.base.types.pooling import RowPooling

_INT64 = 1 << 64


@dataclass
class RowState:
    """What the host knows of a row in use. error: why it cannot run, if it cannot.  pooling: for models that pool."""

    sampling: RowSampling
    num_prompt: int
    num_blocks: int = 0
    tables: TokenTables = NO_TABLES
    error: str | None = None
    pooling: RowPooling | None = None


@dataclass
class _Edits:
    """Changes of one table, collected over a plan: places in the flattened table, and what is to stand there."""

    places: list[np.ndarray] = field(default_factory=list)
    values: list[Sequence[int]] = field(default_factory=list)

    def add(self, place: int, values: Sequence[int]) -> None:
        self.places.append(np.arange(place, place + len(values)))
        self.values.append(values)

    def write(self, table: Tensor) -> None:
        """One transfer, one copy. A place that is named twice must be given the same value."""
        if not self.places:
            return
        values = np.concatenate([np.asarray(part, np.int64) for part in self.values])
        both = upload_array(np.stack((np.concatenate(self.places), values)), table.device)
        table.view(-1).index_copy_(0, both[0], both[1].to(table.dtype))


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
        self.integers = torch.zeros((max_num_seqs, len(INTEGERS)), dtype=torch.int64, device=device)
        self.edits = EditTables(max_num_seqs, vocab_size, device)
        self.room = np.zeros(max_num_seqs, np.int64)
        self.kinds = Kinds()

    def apply(self, plan: StepPlan) -> None:
        """Ended, begun and updated rows, in this order. IndexError for a row that does not exist."""
        for row in plan.ended:
            self._end(row)
        tokens, tables = _Edits(), _Edits()
        begun: dict[int, RowEdits] = {}
        for begin in plan.begins:
            self._end(begin.row)
            state = self.states[begin.row] = RowState(begin.sampling, begin.num_prompt, pooling=begin.pooling)
            try:
                self._begin(begin, state, tokens, tables)
                if state.error is None:
                    begun[begin.row] = self._edits(begin)
            except OctavoError as error:
                state.error = error.message
            except Exception as error:
                state.error = f"the row could not begin ({type(error).__name__}: {error})"
        for update in plan.updates:
            updated = self.states[update.row]
            if updated is not None and updated.error is None:
                self._set_blocks(update, updated, tables)
        tokens.write(self.tokens)
        for edits in _without_repeats(tables):
            edits.write(self.block_tables)
        self._set_sampling(begun)
        self.edits.write(begun)
        for row in {*begun, *(update.row for update in plan.updates)}:
            state_now = self.states[row]
            usable = state_now is not None and state_now.error is None
            held = state_now.num_blocks * self.block_size if usable and state_now is not None else 0
            self.room[row] = min(held, self.max_model_len)

    def set_masks(self, masks: dict[int, bytes]) -> None:
        """What rows may sample in the step under way, as ports.Backend.mask has it. ValueError for another size."""
        if masks:
            words = np.frombuffer(bytearray().join(masks.values()), np.int32)
            rows = upload(list(masks), torch.int64, self.device)
            table = self.edits.allowed
            table.index_copy_(0, rows, upload_array(words.reshape(len(masks), table.shape[1]), self.device))

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

    def _end(self, row: int) -> None:
        self.states[row] = None
        self.room[row] = 0
        self.kinds.discard(row)

    def _begin(self, begin: RowBegin, state: RowState, tokens: _Edits, tables: _Edits) -> None:
        ids = begin.token_ids
        if not 0 < len(ids) <= self.max_model_len:
            state.error = f"{len(ids)} tokens do not fit the context of {self.max_model_len}"
            return
        for token in (min(ids), max(ids)):
            if not 0 <= token < self.vocab_size:
                state.error = f"token id {token} is outside the vocabulary of {self.vocab_size}"
                return
        state.tables = make_tables(begin.sampling, vocab_size=self.vocab_size, device=self.device)
        tokens.add(begin.row * self.tokens.shape[1], ids)
        self._set_blocks(BlockUpdate(begin.row, 0, begin.blocks), state, tables)

    def _edits(self, begin: RowBegin) -> RowEdits:
        """Its lists for the kernels; none where they do not fit."""
        edits = row_edits(begin.sampling, num_prompt=begin.num_prompt, vocab_size=self.vocab_size)
        self.kinds.add(begin.row, begin.sampling, edits, vocab_size=self.vocab_size)
        return edits if edits.fits else NO_EDITS

    def _set_blocks(self, update: BlockUpdate, state: RowState, tables: _Edits) -> None:
        end = update.index + len(update.blocks)
        if not 0 <= update.index <= state.num_blocks or end > self.block_tables.shape[1]:
            state.error = f"blocks {update.index} to {end} do not fit behind the {state.num_blocks} of the row"
            return
        if any(not 0 <= block < self.num_blocks for block in update.blocks):
            state.error = f"blocks {update.blocks} are not all among the cache's {self.num_blocks}"
            return
        if update.blocks:
            tables.add(update.row * self.block_tables.shape[1] + update.index, update.blocks)
        state.num_blocks = max(state.num_blocks, end)

    def _set_sampling(self, begun: dict[int, RowEdits]) -> None:
        """Parameters of rows that began."""
        if not begun:
            return
        rows = upload(list(begun), torch.int64, self.device)
        floats = [[getattr(self.state(row).sampling, name) for name in FLOATS] for row in begun]
        self.floats.index_copy_(0, rows, upload(floats, torch.float32, self.device))
        integers = [self._integers(row, edits) for row, edits in begun.items()]
        self.integers.index_copy_(0, rows, upload(integers, torch.int64, self.device))

    def _integers(self, row: int, edits: RowEdits) -> list[int]:
        """In the order of INTEGERS."""
        state = self.state(row)
        listed = int(edits.allowed is not None or state.sampling.masked)
        logprobs = self.kinds.logprobs.get(row, -1)
        return [
            _signed(state.sampling.seed),
            self._top_k(state.sampling),
            state.num_prompt,
            edits.edits.shape[1],
            listed,
            logprobs,
        ]

    def _top_k(self, sampling: RowSampling) -> int:
        return min(sampling.top_k, self.vocab_size) if sampling.top_k > 0 else self.vocab_size


def _without_repeats(edits: _Edits) -> list[_Edits]:
    """In order, such that no place stands twice in one of them: later values then win on any device."""
    parts, seen = [_Edits()], set[int]()
    for places, values in zip(edits.places, edits.values, strict=True):
        if not seen.isdisjoint(places.tolist()):
            parts.append(_Edits())
            seen = set()
        seen.update(places.tolist())
        parts[-1].places.append(places)
        parts[-1].values.append(values)
    return parts


def _signed(value: int) -> int:
    """Any integer as the int64 with the same low 64 bits."""
    value %= _INT64
    return value - _INT64 if value >= _INT64 // 2 else value

"""In: begins, block updates and ends of sequences. Out: each step's spans and token arrays (Batch).

Arrays that outlive steps, one line a row:

    tokens [rows, max_model_len + 1]   known token ids, the first `length` of them
    blocks [rows, max blocks]          the block table, the first `num_blocks` of it
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from octavo.backends.cpu.sampler import RowSampler
from octavo.base.errors import ConfigError
from octavo.base.types.plan import BlockUpdate, RowBegin, RowStep
from octavo.base.types.pooling import RowPooling


class RowError(Exception):
    """What a plan asks of one row cannot be done; the row fails with this message, its neighbours go on."""


@dataclass
class Row:
    """One sequence's life in its row. failed: the reason, once it has failed; it stays so until a new begin.

    pooling: what its states become, where the model pools.
    """

    length: int
    num_prompt: int
    num_blocks: int
    sampler: RowSampler
    failed: str | None = None
    pooling: RowPooling | None = None


@dataclass(frozen=True)
class Span:
    """A row's share of a step: batch tokens [first, first + count) are its positions from `start`.

    blocks: the row's block table, as far as position start + count needs it.
    second: the position from which on tokens are of the second text of a pair; 0: there is none.
    """

    row: int
    first: int
    start: int
    count: int
    sample: bool
    blocks: np.ndarray
    second: int = 0


@dataclass(frozen=True)
class Arrays:
    """A batch token by token, int64 [T]: token ids, positions in their rows, and slots of the cache that they write.

    types: 1 for tokens of the second text of a pair, else 0.
    """

    tokens: np.ndarray
    positions: np.ndarray
    slots: np.ndarray
    types: np.ndarray


@dataclass(frozen=True)
class Batch:
    """A step of spans, which follow each other from 0. tails: those of its tokens whose logits are wanted, ascending.
    best_only: of these no more than the largest.

    tokens [rows, max_model_len + 1], blocks [rows, max blocks]: of all rows.
    """

    spans: list[Span]
    tails: list[int]
    tokens: np.ndarray
    blocks: np.ndarray
    block_size: int
    best_only: bool = False

    @property
    def num_tokens(self) -> int:
        """T."""
        return self.spans[-1].first + self.spans[-1].count

    def arrays(self) -> Arrays:
        """What csrc/program.cpp makes for itself."""
        counts = [span.count for span in self.spans]
        row = np.repeat([span.row for span in self.spans], counts)
        positions = np.arange(len(row)) + np.repeat([span.start - span.first for span in self.spans], counts)
        block, offset = np.divmod(positions, self.block_size)
        slots = self.blocks[row, block] * self.block_size + offset
        return Arrays(self.tokens[row, positions], positions, slots, self.types())

    def types(self) -> np.ndarray:
        """As in Arrays."""
        types = np.zeros(self.num_tokens, np.int64)
        for span in self.spans:
            if span.second:
                types[span.first + max(0, span.second - span.start) : span.first + span.count] = 1
        return types


def tail_spans(spans: Sequence[Span], tails: Sequence[int]) -> list[Span]:
    """Chosen tokens of these spans, ascending, as spans of a batch of their own."""
    found: list[Span] = []
    firsts, before = [span.first for span in spans], -2
    for i, tail in enumerate(tails):
        whole = spans[bisect_right(firsts, tail) - 1]
        if tail == before + 1 and tail > whole.first:
            found[-1] = replace(found[-1], count=found[-1].count + 1)
        else:
            found.append(replace(whole, first=i, start=whole.start + tail - whole.first, count=1))
        before = tail
    return found


class Rows:
    """The rows of a backend. Raises ConfigError where memory for so many of such a length cannot be had."""

    def __init__(self, num_rows: int, *, max_model_len: int, block_size: int, num_blocks: int, vocab_size: int) -> None:
        self.block_size = block_size
        self.num_blocks = num_blocks
        self.vocab_size = vocab_size
        try:
            self.tokens = np.zeros((num_rows, max_model_len + 1), np.int64)
            self.blocks = np.zeros((num_rows, max_model_len // block_size + 1), np.int64)
        except (MemoryError, ValueError) as error:  # the second: more than any array may have
            raise ConfigError(
                f"max_num_seqs={num_rows} rows of max_model_len={max_model_len} tokens take "
                f"{8 * num_rows * max_model_len / 2**30:.0f} GiB, which cannot be had; lower --max-num-seqs or "
                "--max-model-len",
                param="max_num_seqs",
            ) from error
        self.rows: list[Row | None] = [None] * num_rows

    def get(self, row: int) -> Row:
        """The sequence in a row. Raises RowError where there is none, or where it has failed."""
        if not 0 <= row < len(self.rows):
            raise RowError(f"row {row} is not one of the {len(self.rows)} rows")
        found = self.rows[row]
        if found is None:
            raise RowError(f"row {row} holds no sequence")
        if found.failed is not None:
            raise RowError(found.failed)
        return found

    def begin(self, begin: RowBegin) -> None:
        """Put a sequence into a row, in place of what was there. Raises RowError."""
        if not 0 <= begin.row < len(self.rows):
            raise RowError(f"row {begin.row} is not one of the {len(self.rows)} rows")
        self.rows[begin.row] = None
        tokens = np.asarray(begin.token_ids, np.int64)
        if len(tokens) > self.tokens.shape[1]:
            raise RowError(f"{len(tokens)} tokens are more than the context of {self.tokens.shape[1] - 1}")
        if len(tokens) and (tokens.min() < 0 or tokens.max() >= self.vocab_size):
            raise RowError(f"a token id lies outside the vocabulary of {self.vocab_size}")
        try:
            sampler = RowSampler(begin.sampling, vocab_size=self.vocab_size)
        except (ValueError, OverflowError) as error:
            raise RowError(str(error)) from error
        self.rows[begin.row] = Row(len(tokens), begin.num_prompt, 0, sampler, pooling=begin.pooling)
        self.tokens[begin.row, : len(tokens)] = tokens
        self.update(BlockUpdate(begin.row, 0, begin.blocks))

    def update(self, update: BlockUpdate) -> None:
        """Append or replace blocks of a row. Raises RowError."""
        row = self.get(update.row)
        blocks = np.asarray(update.blocks, np.int64)
        end = update.index + len(blocks)
        if not 0 <= update.index <= row.num_blocks or end > self.blocks.shape[1]:
            raise RowError(f"blocks {update.index}..{end} do not follow the row's {row.num_blocks}")
        if len(blocks) and (blocks.min() < 0 or blocks.max() >= self.num_blocks):
            raise RowError(f"a block lies outside the cache of {self.num_blocks}")
        self.blocks[update.row, update.index : end] = blocks
        row.num_blocks = max(row.num_blocks, end)

    def end(self, row: int) -> None:
        """Empty a row."""
        if 0 <= row < len(self.rows):
            self.rows[row] = None

    def fail(self, row: int, reason: str) -> None:
        """Keep a row from running until it begins anew."""
        if 0 <= row < len(self.rows) and (found := self.rows[row]) is not None:
            found.failed = reason

    def append(self, row: int, position: int, token: int) -> None:
        """Make `token` the row's token at `position`, and its last."""
        self.tokens[row, position] = token
        self.get(row).length = position + 1

    def span(self, step: RowStep, first: int) -> Span:
        """A row's share of a step. Raises RowError where tokens or blocks are missing."""
        row = self.get(step.row)
        end = step.start + step.count
        if step.start < 0 or step.count < 1 or end > row.length:
            raise RowError(f"positions {step.start}..{end} are not all known: the row has {row.length} tokens")
        if step.sample and end >= self.tokens.shape[1]:
            raise RowError(f"no token fits after the context of {self.tokens.shape[1] - 1}")
        needed = -(-end // self.block_size)
        if needed > row.num_blocks:
            raise RowError(f"position {end - 1} lies past the row's {row.num_blocks} blocks")
        second = row.pooling.second if row.pooling else 0
        return Span(step.row, first, step.start, step.count, step.sample, self.blocks[step.row, :needed], second)

    def batch(self, spans: list[Span], tails: list[int], *, best_only: bool = False) -> Batch:
        """A step of these spans."""
        return Batch(spans, tails, self.tokens, self.blocks, self.block_size, best_only)

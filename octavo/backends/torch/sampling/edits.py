"""A row's token lists (allowed, biased, bad, stop) in, tables on the device out: what kernels/edits.py reads.

The same lists as sampling/tables.py makes for the eager sampler, at fixed places, so that one captured graph serves
any row.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from octavo.backends.torch.device.transfer import upload, upload_array
from octavo.base.types.plan import RowSampling

MOST_EDITS = 1024
"""Biases, bad words and stop ids of a row, and tokens before the last of its bad words; more are left to the eager
sampler. 24 KiB a row."""

FIELDS = ("token", "value", "until", "length", "prefix")
"""Of an edit. value: bits of a float32; until: it holds for positions below; length, prefix: of a bad word, the number
of tokens before the last and where they begin in the row's prefixes."""

_FOREVER = 2**31 - 1
_REFUSED = float("-inf")


@dataclass(frozen=True)
class RowEdits:
    """edits: int32 [len(FIELDS), n].  prefixes: int32 [any].  allowed: int32 [ceil(vocab / 32)], a bit a token, or
    None where all are."""

    edits: np.ndarray
    prefixes: np.ndarray
    allowed: np.ndarray | None

    @property
    def fits(self) -> bool:
        """False where the row asks for more than the tables hold."""
        return self.edits.shape[1] <= MOST_EDITS and len(self.prefixes) <= MOST_EDITS

    @property
    def empty(self) -> bool:
        """True if no logit is masked or biased."""
        return self.edits.shape[1] == 0 and self.allowed is None


NO_EDITS = RowEdits(np.zeros((len(FIELDS), 0), np.int32), np.zeros(0, np.int32), None)


def row_edits(sampling: RowSampling, *, num_prompt: int, vocab_size: int) -> RowEdits:
    """sampling: one whose ids `make_tables` (sampling/tables.py) took."""
    s = sampling
    if s.allowed_token_ids is None and not (s.stop_token_ids or s.logit_bias or s.bad_words_ids):
        return NO_EDITS
    until = min(num_prompt + s.min_tokens, _FOREVER)
    stops = [token for token in s.stop_token_ids if token < vocab_size] if s.min_tokens else []
    words = [word for word in s.bad_words_ids if word]
    lengths = [len(word) - 1 for word in words]
    edits = np.zeros((len(FIELDS), len(s.logit_bias) + len(stops) + len(words)), np.int32)
    edits[0] = [*s.logit_bias, *stops, *(word[-1] for word in words)]
    values = [*s.logit_bias.values()] + [_REFUSED] * (len(stops) + len(words))
    edits[1] = np.array(values, np.float32).view(np.int32)
    edits[2] = [_FOREVER] * len(s.logit_bias) + [until] * len(stops) + [_FOREVER] * len(words)
    if words:
        edits[3, -len(words) :] = lengths
        edits[4, -len(words) :] = np.cumsum(lengths) - lengths
    return RowEdits(
        edits=edits,
        prefixes=np.array([token for word in words for token in word[:-1]], np.int32),
        allowed=None if s.allowed_token_ids is None else _bits(s.allowed_token_ids, vocab_size),
    )


def _bits(ids: list[int], vocab_size: int) -> np.ndarray:
    """int32 [ceil(vocab / 32)]: bit i of word w says whether token 32 w + i is among ids."""
    chosen = np.zeros(-(-vocab_size // 32) * 32, np.uint8)
    chosen[ids] = 1
    return np.packbits(chosen, bitorder="little").view("<i4")


class EditTables:
    """Persistent arrays by row: edits int32 [rows, len(FIELDS), MOST_EDITS], prefixes int32 [rows, MOST_EDITS], allowed
    int32 [rows, ceil(vocab / 32)], of masked rows the mask of the step under way. Where a row's lists end, and whether
    it has any, stands among its integers."""

    def __init__(self, num_rows: int, vocab_size: int, device: torch.device) -> None:
        self.edits = torch.zeros((num_rows, len(FIELDS), MOST_EDITS), dtype=torch.int32, device=device)
        self.prefixes = torch.zeros((num_rows, MOST_EDITS), dtype=torch.int32, device=device)
        self.allowed = torch.zeros((num_rows, -(-vocab_size // 32)), dtype=torch.int32, device=device)

    def write(self, begun: dict[int, RowEdits]) -> None:
        """The lists of rows that begin; a transfer for each of the tables that any of them uses."""
        begun = {row: each for row, each in begun.items() if each is not NO_EDITS}
        _write(self.edits, {row: each.edits for row, each in begun.items()})
        _write(self.prefixes, {row: each.prefixes for row, each in begun.items()})
        _write(self.allowed, {row: each.allowed for row, each in begun.items() if each.allowed is not None})


def _write(table: Tensor, begun: dict[int, np.ndarray]) -> None:
    """table[row, ..., : length] = its array, up to the longest of them."""
    begun = {row: array for row, array in begun.items() if array.size}
    if not begun:
        return
    longest = max(array.shape[-1] for array in begun.values())
    values = np.zeros((len(begun), *table.shape[1:-1], longest), np.int32)
    for padded, array in zip(values, begun.values(), strict=True):
        padded[..., : array.shape[-1]] = array
    rows = upload(list(begun), torch.int64, table.device)
    table[..., :longest].index_copy_(0, rows, upload_array(values, table.device))

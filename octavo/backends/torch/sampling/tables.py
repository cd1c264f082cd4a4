"""A row's token lists (allowed, biased, bad, stop) in, device tensors kept for the row's life out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.backends.torch.device.transfer import upload
from octavo.base.errors import InputError
from octavo.base.types.plan import RowSampling

ANY = -1
"""Stands in `BadWords.prefixes` before the first token of a shorter word."""


@dataclass(frozen=True)
class BadWords:
    """prefixes: int32 [words, longest - 1], right-aligned, ANY before them; last: int64 [words]."""

    prefixes: Tensor
    last: Tensor


@dataclass(frozen=True)
class TokenTables:
    """None where a row does not ask. refused: bool [vocab], all but the allowed ones.  stops, bias_ids: int64."""

    refused: Tensor | None = None
    stops: Tensor | None = None
    bias_ids: Tensor | None = None
    bias: Tensor | None = None
    bad_words: BadWords | None = None

    @property
    def empty(self) -> bool:
        """True if nothing is to be masked or biased."""
        return self.refused is None and self.stops is None and self.bias_ids is None and self.bad_words is None


NO_TABLES = TokenTables()


def make_tables(sampling: RowSampling, *, vocab_size: int, device: torch.device) -> TokenTables:
    """InputError naming a field with an id outside the vocabulary; such stop ids mean nothing and are left out."""
    s = sampling
    if s.allowed_token_ids is None and not (s.stop_token_ids or s.logit_bias or s.bad_words_ids):
        return NO_TABLES
    _check("allowed_token_ids", s.allowed_token_ids or (), vocab_size)
    _check("logit_bias", s.logit_bias, vocab_size)
    _check("bad_words", (token for word in s.bad_words_ids for token in word), vocab_size)
    stops = [token for token in s.stop_token_ids if token < vocab_size] if s.min_tokens else []
    words = [word for word in s.bad_words_ids if word]
    refused = None
    if s.allowed_token_ids is not None:
        refused = torch.ones(vocab_size, dtype=torch.bool, device=device)
        refused[upload(s.allowed_token_ids, torch.int64, device)] = False
    return TokenTables(
        refused=refused,
        stops=upload(stops, torch.int64, device) if stops else None,
        bias_ids=upload(list(s.logit_bias), torch.int64, device) if s.logit_bias else None,
        bias=upload(list(s.logit_bias.values()), torch.float32, device) if s.logit_bias else None,
        bad_words=_bad_words(words, device) if words else None,
    )


def _check(field: str, ids: Iterable[int], vocab_size: int) -> None:
    for token in ids:
        if not 0 <= token < vocab_size:
            raise InputError(f"{field} holds token id {token}, outside the vocabulary of {vocab_size}", param=field)


def _bad_words(words: list[list[int]], device: torch.device) -> BadWords:
    longest = max(len(word) for word in words)
    prefixes = [[ANY] * (longest - len(word)) + word[:-1] for word in words]
    return BadWords(upload(prefixes, torch.int32, device), upload([word[-1] for word in words], torch.int64, device))

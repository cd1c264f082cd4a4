"""Tokens that may not be sampled, and biases: changes logits in place, row by row, for rows that ask."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.backends.torch.sampling.group import Group
from octavo.backends.torch.sampling.tables import ANY, BadWords

REFUSED = float("-inf")
_NONE = -2
"""Stands for "no token here"; equals no token id and not ANY."""


def apply_masks(logits: Tensor, group: Group) -> None:
    """logits: float32 [m, vocab]. Masks, allowed_token_ids, bad_words, stop ids before min_tokens, then logit_bias."""
    for i, tables in enumerate(group.tables):
        if group.allowed is not None and group.sampling[i].masked:
            _keep_only(logits[i], group.allowed[group.rows[i]])
        if tables.empty:
            continue
        row, position, num_prompt = logits[i], group.positions[i], group.num_prompts[i]
        if tables.refused is not None:
            row.masked_fill_(tables.refused, REFUSED)
        if tables.bad_words is not None:
            _refuse_bad_words(row, tables.bad_words, group.tokens[group.rows[i]], first=num_prompt, end=position)
        if tables.stops is not None and position - num_prompt < group.sampling[i].min_tokens:
            row[tables.stops] = REFUSED
        if tables.bias_ids is not None and tables.bias is not None:
            row[tables.bias_ids] += tables.bias


def _keep_only(row: Tensor, words: Tensor) -> None:
    """words: int32 [ceil(vocab / 32)], a bit a token."""
    bits = (words[:, None] >> torch.arange(32, dtype=torch.int32, device=words.device)) & 1
    row.masked_fill_(bits.flatten()[: row.shape[0]] == 0, REFUSED)


def _refuse_bad_words(row: Tensor, words: BadWords, tokens: Tensor, *, first: int, end: int) -> None:
    """A word's last token is refused where the outputs, tokens[first:end], end in its other tokens."""
    length = words.prefixes.shape[1]
    tail = tokens[max(first, end - length) : end]
    tail = F.pad(tail, (length - tail.shape[0], 0), value=_NONE)
    complete = ((words.prefixes == tail) | (words.prefixes == ANY)).all(-1)
    # two words may end in the same token: -inf if either is complete
    hits = row.new_zeros(row.shape).index_add_(0, words.last, complete.float())
    row.masked_fill_(hits > 0, REFUSED)

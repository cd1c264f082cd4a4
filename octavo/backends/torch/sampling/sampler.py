"""Logits and a Group in, one token a row out. The order of the steps is vLLM's.

allowed_token_ids, bad_words, min_tokens, logit_bias, penalties; then the most likely token, or temperature, min_p,
top_k, top_p and a draw.
"""

from __future__ import annotations

import torch
from torch import Tensor

from octavo.backends.torch.sampling.group import Group
from octavo.backends.torch.sampling.masks import REFUSED, apply_masks
from octavo.backends.torch.sampling.penalties import apply_penalties
from octavo.backends.torch.sampling.random import gumbel_noise
from octavo.base.types.plan import RowSampling

GREEDY_BELOW = 1e-5
"""Temperatures below it are greedy."""


def is_filtered(sampling: RowSampling) -> bool:
    """True if the row cuts the distribution that it draws from: top_k, top_p or min_p."""
    cuts = sampling.top_k > 0 or sampling.top_p < 1.0 or sampling.min_p > 0.0
    return cuts and sampling.temperature >= GREEDY_BELOW


def choose_tokens(logits: Tensor, group: Group) -> tuple[Tensor, Tensor]:
    """logits: float32 [m, vocab], overwritten -> tokens int64 [m], and bool [m]: True where no token may be sampled."""
    apply_masks(logits, group)
    apply_penalties(logits, group)
    highest, tokens = logits.max(-1)
    drawing = [i for i, sampling in enumerate(group.sampling) if sampling.temperature >= GREEDY_BELOW]
    if drawing:
        at = torch.tensor(drawing, device=logits.device)
        tokens[at] = _draw(logits[at], group.select(drawing))
    return tokens, highest == REFUSED


def _draw(logits: Tensor, group: Group) -> Tensor:
    logits = logits / group.column("temperature")
    if any(s.min_p > 0 for s in group.sampling):
        # probability >= min_p * highest probability, in logarithms
        lowest = logits.amax(-1, keepdim=True) + group.column("min_p").log()
        logits = logits.masked_fill(logits < lowest, REFUSED)
    cutting = [i for i, s in enumerate(group.sampling) if s.top_p < 1 or 0 < s.top_k < logits.shape[1]]
    if cutting:
        at = torch.tensor(cutting, device=logits.device)
        logits[at] = _cut(logits[at], group.select(cutting))
    positions = torch.tensor(group.positions, device=logits.device)
    return (logits + gumbel_noise(group.seeds, positions, logits.shape[1])).argmax(-1)


def _cut(logits: Tensor, group: Group) -> Tensor:
    """top_k (ties with the k-th stay), then top_p: the fewest of the most likely whose probabilities reach it."""
    values, order = logits.sort(dim=-1, descending=True, stable=True)
    kth = values.gather(1, group.top_k[:, None] - 1)
    values = values.masked_fill(values < kth, REFUSED)
    top_p = group.column("top_p")
    probabilities = values.softmax(-1)
    above = probabilities.cumsum(-1) - probabilities
    outside = (above >= top_p) & (top_p < 1) & (above > 0)  # a top_p that is 0 in float32 leaves the first
    values = values.masked_fill(outside, REFUSED)
    return torch.empty_like(logits).scatter_(1, order, values)

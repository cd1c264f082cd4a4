"""Repetition, frequency and presence penalties: earlier tokens in, logits changed."""

from __future__ import annotations

import torch
from torch import Tensor

from octavo.backends.torch.sampling.group import Group


def apply_penalties(logits: Tensor, group: Group) -> None:
    """logits: float32 [m, vocab], in place. Repetition looks at prompt and outputs, the others at outputs only."""
    asking = [i for i, sampling in enumerate(group.sampling) if sampling.has_penalties]
    if not asking:
        return
    at = torch.tensor(asking, device=logits.device)
    logits[at] = _penalized(logits[at], group.select(asking))


def _penalized(logits: Tensor, group: Group) -> Tensor:
    length = max(group.positions)
    ids = group.tokens[:, :length][group.row_ids].long()
    place = torch.arange(length, device=logits.device)
    known = place < torch.tensor(group.positions, device=logits.device)[:, None]
    output = known & (place >= torch.tensor(group.num_prompts, device=logits.device)[:, None])
    seen = torch.zeros_like(logits).scatter_add_(1, ids, known.float()) > 0
    counts = torch.zeros_like(logits).scatter_add_(1, ids, output.float())
    repetition = group.column("repetition_penalty")
    logits = torch.where(seen, torch.where(logits > 0, logits / repetition, logits * repetition), logits)
    return logits - group.column("frequency_penalty") * counts - group.column("presence_penalty") * (counts > 0)

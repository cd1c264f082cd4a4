"""Log probabilities of raw logits: tokens in, each one's own, its rank and the most likely alternatives out."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.backends.torch.device.transfer import Download
from octavo.base.types.plan import TokenLogprobs

ALL = -1
"""Asks for the whole vocabulary."""


@dataclass(frozen=True)
class Logprobs:
    """At m positions: tokens int64 [m], own float32 [m], ranks int64 [m]; top_ids, top: [m, k], most likely first."""

    tokens: Tensor
    own: Tensor
    ranks: Tensor
    top_ids: Tensor
    top: Tensor

    def download(self, download: Download) -> Logprobs:
        """The same on the host, once `download` is done."""
        add = download.add
        return Logprobs(add(self.tokens), add(self.own), add(self.ranks), add(self.top_ids), add(self.top))

    def entries(self) -> list[TokenLogprobs]:
        """For StepResult; of host tensors."""
        ids = torch.cat((self.tokens[:, None], self.top_ids), dim=1).tolist()
        values = torch.cat((self.own[:, None], self.top), dim=1).tolist()
        return [TokenLogprobs(*row) for row in zip(ids, values, self.ranks.tolist(), strict=True)]


def token_logprobs(logits: Tensor, tokens: Tensor, count: int) -> Logprobs:
    """logits: float32 [m, vocab], before any sampling parameter; count: alternatives, or ALL."""
    logprobs = logits.log_softmax(-1)
    own = logprobs.gather(1, tokens[:, None])
    ranks = (logprobs > own).sum(-1) + 1
    if count == ALL or count >= logits.shape[1]:
        top, ids = logprobs.sort(dim=-1, descending=True, stable=True)
    else:
        top, ids = logprobs.topk(count, dim=-1)
    return Logprobs(tokens, own.squeeze(1), ranks, ids, top)


def is_finite(entry: TokenLogprobs) -> bool:
    """False where the logits were not finite."""
    return math.isfinite(entry.logprobs[0])

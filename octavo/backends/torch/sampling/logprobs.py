"""Log probabilities of raw logits: tokens in, each one's own, its rank and the most likely alternatives out."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from octavo.backends.torch.device.transfer import Download
from octavo.base.types.plan import TokenLogprobs

ALL = -1
"""Asks for the whole vocabulary."""

MOST = 20
"""Alternatives that a decode step's kernels find (kernels/logprobs.py): what a request may ask for by default."""

RANK, OWN, TOP = 0, 1, 2
WIDTH = TOP + 2 * MOST
"""A row that kernels fill, int32 [WIDTH]: the token's rank; bits of its float32 log probability; from TOP on the ids of
the alternatives, and from TOP + MOST bits of theirs."""


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
    ranks = (logits > logits.gather(1, tokens[:, None])).sum(-1) + 1
    if count == ALL or count >= logits.shape[1]:
        ids = logits.argsort(dim=-1, descending=True, stable=True)
    else:
        ids = logits.topk(count, dim=-1).indices
    return Logprobs(tokens, own.squeeze(1), ranks, ids, logprobs.gather(1, ids))


@dataclass(frozen=True)
class PackedLogprobs:
    """What kernels made, on the host: tokens int32 [m], packed int32 [m, WIDTH]; counts: of a row, the alternatives
    asked for, or None where it does not ask."""

    tokens: np.ndarray
    packed: np.ndarray
    counts: list[int | None]

    def entries(self) -> list[TokenLogprobs | None]:
        """For StepResult; None where a row does not ask."""
        return [None if count is None else self._entry(i, count) for i, count in enumerate(self.counts)]

    def _entry(self, i: int, count: int) -> TokenLogprobs:
        ids, values = self.packed[i], self.packed[i].view(np.float32)
        return TokenLogprobs(
            [int(self.tokens[i]), *ids[TOP : TOP + count].tolist()],
            [float(values[OWN]), *values[TOP + MOST : TOP + MOST + count].tolist()],
            int(ids[RANK]),
        )


def is_finite(entry: TokenLogprobs) -> bool:
    """False where the logits were not finite."""
    return math.isfinite(entry.logprobs[0])

"""Group: the rows that sample in one step, with their parameters gathered; what every sampling step takes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.backends.torch.sampling.tables import TokenTables
from octavo.base.types.plan import RowSampling

FLOATS = ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")
"""Fields of RowSampling, in the order of the columns of Group.floats."""

INTEGERS = ("seed", "top_k", "num_prompt", "num_edits", "listed", "logprobs")
"""Columns of the rows' integers. top_k: 1..vocab.  num_edits: of sampling/edits.py.  listed: 1 where allowed_token_ids
are given.  logprobs: alternatives to the sampled token, -1 where not even its own is asked for."""


@dataclass(frozen=True)
class Group:
    """m rows. Host lists and device tensors run parallel; host lists say which rows a step concerns.

    num_prompts, positions: prompt tokens, and the position at which the sampled token will stand.
    tokens: int32 [all rows, max_model_len + 1], of which `rows` and, on the device, `row_ids` int64 [m] are these;
    what stands at a row's position and behind it is anything.
    floats: float32 [m, len(FLOATS)].  seeds, top_k: int64 [m]; top_k is 1..vocab.
    allowed: int32 [all rows, ceil(vocab / 32)], of masked rows the step's masks, a bit a token; None if no row is.
    """

    sampling: list[RowSampling]
    tables: list[TokenTables]
    num_prompts: list[int]
    positions: list[int]
    rows: list[int]
    row_ids: Tensor
    tokens: Tensor
    floats: Tensor
    seeds: Tensor
    top_k: Tensor
    allowed: Tensor | None = None

    def column(self, name: str) -> Tensor:
        """[m, 1] of one of FLOATS."""
        at = FLOATS.index(name)
        return self.floats[:, at : at + 1]

    def select(self, indices: list[int]) -> Group:
        """The rows at these indices."""
        if len(indices) == len(self.sampling):
            return self
        at = torch.tensor(indices, device=self.floats.device)
        return Group(
            sampling=[self.sampling[i] for i in indices],
            tables=[self.tables[i] for i in indices],
            num_prompts=[self.num_prompts[i] for i in indices],
            positions=[self.positions[i] for i in indices],
            rows=[self.rows[i] for i in indices],
            row_ids=self.row_ids[at],
            tokens=self.tokens,
            floats=self.floats[at],
            seeds=self.seeds[at],
            top_k=self.top_k[at],
            allowed=self.allowed,
        )

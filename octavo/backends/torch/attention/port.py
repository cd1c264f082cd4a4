"""What an attention implementation is: which cases it takes, and plan/run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from octavo.backends.torch.attention.cache import KVCache
from octavo.backends.torch.batch import Queries
from octavo.models.spec import Attention


@dataclass(frozen=True)
class Case:
    """What decides whether an implementation can run a layer. dtype: the cache's; device: torch's type name."""

    layer: Attention
    dtype: torch.dtype
    device: str
    block_size: int


Tile = tuple[int, int, int, int]
"""Row, first token in the batch, its position, number of tokens."""


class PagedAttention(Protocol):
    """`plan` once a step, then `run` once a layer."""

    def plan(self, batch: Queries) -> None:
        """Prepare what all layers share."""

    def run(self, q: Tensor, layer: int) -> Tensor:
        """Attend with q [tokens, heads, head_dim], of any strides between tokens, over what is in the cache.

        The step's own keys and values are there already. Returns a new contiguous tensor of q's shape.
        """


class CapturableAttention(PagedAttention, Protocol):
    """One whose `plan` and `run` ask the host for nothing that depends on the step, once batch.tiles are given.

    So a graph can hold them.
    """

    def span_tiles(self, batch: Queries) -> dict[int, list[Tile]]:
        """Rows that run several tokens, cut into tiles of at most so many queries as the key says."""


@dataclass(frozen=True)
class Implementation:
    """One row of the list in select.py. supports: reasons to refuse a case, none if it can run it.

    make: layers by their index in the model, the cache, and the most rows of a step.  capturable: it makes
    CapturableAttention.
    """

    name: str
    supports: Callable[[Case], list[str]]
    make: Callable[[Mapping[int, Attention], KVCache, int], PagedAttention]
    capturable: bool = False

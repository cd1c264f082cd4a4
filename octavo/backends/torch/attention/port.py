"""What an attention implementation is: which cases it takes, and plan/run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from octavo.backends.torch.attention.cache import KVCache
from octavo.backends.torch.batch import Batch
from octavo.models.spec import Attention


@dataclass(frozen=True)
class Case:
    """What decides whether an implementation can run a layer. dtype: the cache's; device: torch's type name."""

    layer: Attention
    dtype: torch.dtype
    device: str
    block_size: int


class PagedAttention(Protocol):
    """`plan` once a step, then `run` once a layer."""

    def plan(self, batch: Batch) -> None:
        """Prepare what all layers share."""

    def run(self, q: Tensor, layer: int) -> Tensor:
        """Attend with q [tokens, heads, head_dim], of any strides between tokens, over what is in the cache.

        The step's own keys and values are there already. Returns a new contiguous tensor of q's shape.
        """


@dataclass(frozen=True)
class Implementation:
    """One row of the list in select.py. supports: reasons to refuse a case, none if it can run it.

    make: layers by their index in the model, the cache, and the most rows of a step.  capturable: `plan` and `run` of
    a batch of single tokens ask the host for nothing that depends on the step, so that a graph can hold them.
    """

    name: str
    supports: Callable[[Case], list[str]]
    make: Callable[[Mapping[int, Attention], KVCache, int], PagedAttention]
    capturable: bool = False

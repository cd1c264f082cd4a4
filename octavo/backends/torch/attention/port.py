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

    def run(self, q: Tensor, k: Tensor, v: Tensor, layer: int) -> Tensor:
        """Write k, v [tokens, kv_heads, head_dim] to the cache, attend with q [tokens, heads, head_dim]; like q."""


@dataclass(frozen=True)
class Implementation:
    """One row of the list in select.py. supports: reasons to refuse a case, none if it can run it.

    make: layers by their index in the model, and the cache.
    """

    name: str
    supports: Callable[[Case], list[str]]
    make: Callable[[Mapping[int, Attention], KVCache], PagedAttention]

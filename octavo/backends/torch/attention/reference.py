"""The definition of attention, written out in float32; runs every case."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from octavo.backends.torch.attention.cache import KVCache
from octavo.backends.torch.attention.gather import GatherAttention
from octavo.backends.torch.attention.port import Case, Implementation, PagedAttention
from octavo.models.spec import Attention


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, layer: Attention) -> Tensor:
    """gather.Kernel."""
    scores = q.float() @ k.float().mT * layer.scale
    if layer.softcap is not None:
        scores = layer.softcap * torch.tanh(scores / layer.softcap)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return (scores.softmax(-1) @ v.float()).to(q.dtype)


def supports(case: Case) -> list[str]:
    """No case is refused."""
    return []


def make(layers: Mapping[int, Attention], cache: KVCache, max_num_seqs: int) -> PagedAttention:
    """For Implementation.make."""
    return GatherAttention(layers, cache, attend)


REFERENCE = Implementation("reference", supports, make)

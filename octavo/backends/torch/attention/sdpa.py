"""PyTorch's own scaled dot product attention over gathered keys; refuses what that cannot express."""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor

from octavo.backends.torch.attention.cache import KVCache
from octavo.backends.torch.attention.gather import GatherAttention
from octavo.backends.torch.attention.port import Case, Implementation, PagedAttention
from octavo.models.spec import Attention


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, layer: Attention) -> Tensor:
    """gather.Kernel."""
    out = F.scaled_dot_product_attention(
        q.unsqueeze(0), k.unsqueeze(0), v.unsqueeze(0), attn_mask=mask, scale=layer.scale
    )
    return out.squeeze(0)


def supports(case: Case) -> list[str]:
    """All but a soft cap on the scores."""
    return [] if case.layer.softcap is None else [f"softcap {case.layer.softcap:g}"]


def make(layers: Mapping[int, Attention], cache: KVCache, max_num_seqs: int) -> PagedAttention:
    """For Implementation.make."""
    return GatherAttention(layers, cache, attend)


SDPA = Implementation("sdpa", supports, make)

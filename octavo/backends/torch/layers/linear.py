"""Linear maps: fused projections in, their parts out as views."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.backends.torch.quant.matrix import Matrix
from octavo.models.spec import Attention


def linear(x: Tensor, weight: Matrix, bias: Tensor | None) -> Tensor:
    """x: [tokens, in], weight: [out, in] -> [tokens, out]. A quantized weight is multiplied in float32."""
    if isinstance(weight, Tensor):
        return F.linear(x, weight, bias)
    wide = F.linear(x.float(), weight.dequantize(torch.float32), None if bias is None else bias.float())
    return wide.to(x.dtype)


def split_heads(qkv: Tensor, mixer: Attention) -> tuple[Tensor, Tensor, Tensor]:
    """[tokens, (heads + 2 * kv_heads) * head_dim] -> q [tokens, heads, head_dim], k and v [tokens, kv_heads, ..]."""
    heads = qkv.view(qkv.shape[0], -1, mixer.head_dim)
    q, k, v = torch.split(heads, [mixer.heads, mixer.kv_heads, mixer.kv_heads], dim=1)
    return q, k, v

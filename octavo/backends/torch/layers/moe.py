"""MoE of the vocabulary: rows sorted by expert, one grouped product for all experts' gates, one for their downs.

On a GPU nothing here waits for the device: which expert has how many rows stays on it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.backends.torch.layers.linear import linear
from octavo.backends.torch.layers.mlp import ACTIVATIONS, gated_mlp
from octavo.backends.torch.quant.experts import Experts
from octavo.backends.torch.weights import MoEWeights
from octavo.models.spec import MoE

GRANULE = 16
"""Bytes that a row must take a multiple of for torch's grouped product."""


def mixture(x: Tensor, weights: MoEWeights, moe: MoE) -> Tensor:
    """x: [tokens, hidden] -> the same. A token's experts are added in their order, in float32."""
    chosen, shares = route(linear(x, weights.router, None), moe)
    experts, order = chosen.flatten().sort(stable=True)  # rows (token, place) by expert
    numbers = torch.arange(moe.experts, device=x.device)
    ends = torch.searchsorted(experts, numbers, right=True, out_int32=True)
    gate, up = grouped_linear(x[order // moe.top_k], weights.gate_up, ends).chunk(2, dim=-1)
    rows = grouped_linear(ACTIVATIONS[moe.act](gate) * up, weights.down, ends)
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order), device=order.device)
    y = (rows[back].view(len(x), moe.top_k, -1) * shares[..., None]).sum(1).to(x.dtype)
    if weights.shared is not None and weights.shared_router is not None:
        y = y + linear(x, weights.shared_router, None).sigmoid() * gated_mlp(x, weights.shared, moe.act)
    return y


def route(logits: Tensor, moe: MoE) -> tuple[Tensor, Tensor]:
    """logits: [tokens, experts] -> the chosen experts [tokens, top_k] in order, and their p, float32."""
    # topk takes any of equal ones, which 16-bit logits often are
    ranked, numbers = logits.float().softmax(-1).sort(dim=-1, descending=True, stable=True)
    shares, chosen = ranked[:, : moe.top_k], numbers[:, : moe.top_k]
    if moe.renormalize:
        shares = shares / shares.sum(-1, keepdim=True)
    chosen, places = chosen.sort(-1)
    return chosen, shares.gather(-1, places)


def grouped_linear(x: Tensor, weight: Experts, ends: Tensor) -> Tensor:
    """x: [rows, in], sorted by expert; weight: [experts, out, in]; ends: int32 [experts], where rows of each end.

    Quantized weights are multiplied in float32.
    """
    if isinstance(weight, Tensor) and not any(t.stride(-2) * t.element_size() % GRANULE for t in (x, weight)):
        return F.grouped_mm(x, weight.transpose(-2, -1), offs=ends)
    out = x.new_empty(len(x), weight.shape[1])
    begin = 0
    for number, end in enumerate(ends.tolist()):
        rows = x[begin:end]
        if isinstance(weight, Tensor):
            out[begin:end] = linear(rows, weight[number], None)
        elif end > begin:
            out[begin:end] = F.linear(rows.float(), weight.expert(number))
        begin = end
    return out

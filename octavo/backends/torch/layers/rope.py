"""Rotary position embedding of the vocabulary: positions in, cosines and sines out; heads in, turned heads out."""

from __future__ import annotations

import torch
from torch import Tensor

from octavo.models.spec import Rope

Turns = tuple[Tensor, Tensor]
"""cos, sin: float32 [tokens, 1, dim / 2]"""


def rope_turns(rope: Rope, positions: Tensor) -> Turns:
    """positions: [tokens]. Angles in float32, as the reference implementation takes them."""
    inv_freq = torch.tensor(rope.inv_freq, dtype=torch.float32, device=positions.device)
    angles = positions.float()[:, None, None] * inv_freq
    return angles.cos() * rope.attention_factor, angles.sin() * rope.attention_factor


def apply_rope(x: Tensor, turns: Turns, rope: Rope) -> Tensor:
    """x: [tokens, heads, head_dim]; the first rope.dim of each head are turned, the rest pass through."""
    cos, sin = turns
    turned = x[..., : rope.dim].float()
    if rope.interleaved:
        pairs = turned.view(*turned.shape[:-1], -1, 2)
        a, b = pairs[..., 0], pairs[..., 1]
        turned = torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)
    else:
        a, b = turned.chunk(2, dim=-1)
        turned = torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)
    turned = turned.to(x.dtype)
    return turned if rope.dim == x.shape[-1] else torch.cat((turned, x[..., rope.dim :]), dim=-1)

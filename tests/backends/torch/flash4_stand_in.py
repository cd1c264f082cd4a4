"""What flash-attn-4's compiled forward kernel takes and does, in torch: all rows of blocks it reads are multiplied."""

from __future__ import annotations

import torch
from torch import Tensor


def stand_in(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: None, scale: float,
    firsts: Tensor, firsts_k: None, used_q: None, lengths: Tensor, tables: Tensor,
    left: int | None, right: int | None, *rest: object,
) -> None:  # fmt: skip
    """Spans of q [tokens, heads, dim] over k, v [blocks, block_size, kv_heads, dim], causal; as flash4.Function."""
    assert lse is None
    assert firsts_k is None
    assert used_q is None
    assert rest == (None, None, (None, None), None, None)
    assert (left is None) == (right is None)
    assert right in (None, 0)
    for tensor in (firsts, lengths, tables):
        assert tensor.dtype == torch.int32
        assert tensor.stride(-1) == 1
    for tensor in (q, k, v, out):
        assert tensor.dtype == q.dtype
        assert tensor.stride(-1) == 1
        assert all(stride % 8 == 0 for stride in tensor.stride()[:-1])
    count = len(lengths)
    assert firsts.shape == (count + 1,)
    assert tables.shape[0] == count
    size, group = k.shape[1], q.shape[1] // k.shape[2]
    for i, length in enumerate(lengths.tolist()):
        begin, end = int(firsts[i]), int(firsts[i + 1])
        if begin == end:
            continue
        blocks = tables[i, : -(-length // size)].long()
        keys, values = (part[blocks].flatten(0, 1).repeat_interleave(group, 1).double() for part in (k, v))
        at = torch.arange(len(keys), device=q.device)
        position = length - (end - begin) + torch.arange(end - begin, device=q.device)[:, None]
        seen = at <= position
        if left is not None:
            seen &= at >= position - left
        scores = torch.einsum("qhd,khd->hqk", q[begin:end].double(), keys) * scale
        weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
        out[begin:end] = torch.einsum("hqk,khd->qhd", weights, values).to(out.dtype)

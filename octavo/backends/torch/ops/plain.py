"""The decoder's operations in PyTorch's own: their definition, and what runs where there are no kernels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.backends.torch.attention.cache import KVCache
from octavo.backends.torch.batch import Batch
from octavo.backends.torch.layers.linear import linear, split_heads
from octavo.backends.torch.layers.mlp import gated_mlp
from octavo.backends.torch.layers.moe import mixture
from octavo.backends.torch.layers.norm import rms_norm
from octavo.backends.torch.layers.rope import apply_rope, rope_turns
from octavo.backends.torch.ops.port import Stream
from octavo.backends.torch.quant import Matrix
from octavo.backends.torch.weights import LayerWeights, MlpWeights, MoEWeights
from octavo.models.spec import Attention, MoE, RMSNorm


class PlainOps:
    """port.Ops."""

    fused = False

    def embed(self, token_ids: Tensor, table: Tensor, scale: float) -> Tensor:
        """As port.Ops.embed."""
        x = F.embedding(token_ids, table)
        # the scale is rounded to the arithmetic's type, as the reference implementation does
        return x if scale == 1.0 else x * torch.tensor(scale, dtype=x.dtype, device=x.device)

    def add_norm(self, stream: Stream, weight: Tensor, norm: RMSNorm) -> tuple[Tensor, Tensor]:
        """As port.Ops.add_norm."""
        x = stream.x if stream.delta is None else stream.x.add_(stream.delta)
        return x, rms_norm(x, weight, norm)

    def norm(self, x: Tensor, weight: Tensor, norm: RMSNorm) -> Tensor:
        """As port.Ops.norm."""
        return rms_norm(x, weight, norm)

    def linear(self, h: Tensor, weight: Matrix, bias: Tensor | None) -> Tensor:
        """As port.Ops.linear."""
        return linear(h, weight, bias)

    def norm_linear(
        self, stream: Stream, norm_weight: Tensor, norm: RMSNorm, weight: Matrix, bias: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """As port.Ops.norm_linear."""
        x, h = self.add_norm(stream, norm_weight, norm)
        return x, linear(h, weight, bias)

    def attention_inputs(
        self, qkv: Tensor, weights: LayerWeights, mixer: Attention, batch: Batch, *, cache: KVCache, layer: int
    ) -> Tensor:
        """As port.Ops.attention_inputs."""
        q, k, v = turned_heads(qkv, weights, mixer, batch)
        cache.write(layer, batch.slots, k, v)
        return q

    def mlp(self, h: Tensor, weights: MlpWeights, act: str) -> Tensor:
        """As port.Ops.mlp."""
        return gated_mlp(h, weights, act)

    def norm_mlp(
        self, stream: Stream, norm_weight: Tensor, norm: RMSNorm, weights: MlpWeights, act: str
    ) -> tuple[Tensor, Tensor]:
        """As port.Ops.norm_mlp."""
        x, h = self.add_norm(stream, norm_weight, norm)
        return x, gated_mlp(h, weights, act)

    def mixture(self, h: Tensor, weights: MoEWeights, moe: MoE) -> Tensor:
        """As port.Ops.mixture."""
        return mixture(h, weights, moe)

    def finish(self, stream: Stream, last: Tensor, weight: Tensor, norm: RMSNorm) -> tuple[Tensor, Tensor]:
        """As port.Ops.finish."""
        x, delta = stream
        final = x[last] if delta is None else x[last] + delta[last]
        return rms_norm(final, weight, norm), final.isfinite().all(-1).int()

    def logits(self, h: Tensor, head: Tensor) -> Tensor:
        """As port.Ops.logits."""
        return linear(h, head, None).float()


def turned_heads(qkv: Tensor, weights: LayerWeights, mixer: Attention, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """As linear.split_heads, q and k normed and turned."""
    q, k, v = split_heads(qkv, mixer)
    if mixer.qk_norm is not None and weights.q_norm is not None and weights.k_norm is not None:
        q, k = rms_norm(q, weights.q_norm, mixer.qk_norm), rms_norm(k, weights.k_norm, mixer.qk_norm)
    if mixer.rope is not None:
        turns = batch.turns.get(mixer.rope)
        if turns is None:
            turns = batch.turns[mixer.rope] = rope_turns(mixer.rope, batch.positions)
        q, k = apply_rope(q, turns, mixer.rope), apply_rope(k, turns, mixer.rope)
    return q, k, v

"""Walks a ModelSpec: a Batch in, the residual stream out; rows of that in, logits out."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.backends.torch.attention.port import PagedAttention
from octavo.backends.torch.batch import Batch
from octavo.backends.torch.layers.linear import linear, split_heads
from octavo.backends.torch.layers.mlp import ACTIVATIONS, gated_mlp
from octavo.backends.torch.layers.moe import mixture
from octavo.backends.torch.layers.norm import rms_norm
from octavo.backends.torch.layers.rope import Turns, apply_rope, rope_turns
from octavo.backends.torch.weights import LayerWeights, ModelWeights, MoEWeights
from octavo.base.errors import UnsupportedError
from octavo.models.spec import Attention, GatedMLP, Layer, ModelSpec, MoE, RMSNorm, Rope

WORDS = (Attention, GatedMLP, MoE, RMSNorm)


class Decoder:
    """The model on its device; `check_words(spec)` has passed."""

    def __init__(self, spec: ModelSpec, weights: ModelWeights) -> None:
        self.spec = spec
        self.weights = weights

    def forward(self, batch: Batch, attention: PagedAttention) -> Tensor:
        """The residual stream before the final norm, [tokens, hidden]; keys and values go to the cache."""
        attention.plan(batch)
        turns: dict[Rope, Turns] = {}
        x = F.embedding(batch.token_ids, self.weights.embed)
        if self.spec.embedding_scale != 1.0:
            # the scale is rounded to the arithmetic type, as the reference implementation does
            x = x * torch.tensor(self.spec.embedding_scale, dtype=x.dtype, device=x.device)
        for i, (layer, weights) in enumerate(zip(self.spec.layers, self.weights.layers, strict=True)):
            rope = layer.mixer.rope
            if rope is not None and rope not in turns:
                turns[rope] = rope_turns(rope, batch.positions)
            x = x + self._mix(x, i, turns.get(rope) if rope else None, attention)
            x = x + _feed(x, layer, weights)
        return x

    def logits(self, x: Tensor) -> Tensor:
        """x: [rows, hidden], rows of what `forward` gave -> float32 [rows, vocab]."""
        head = self.spec.head
        logits = linear(rms_norm(x, self.weights.final_norm, self.spec.final_norm), self.weights.head, None).float()
        if head.scale != 1.0:
            logits = logits * head.scale
        if head.softcap is not None:
            logits = head.softcap * torch.tanh(logits / head.softcap)
        return logits

    def _mix(self, x: Tensor, index: int, turns: Turns | None, attention: PagedAttention) -> Tensor:
        layer, weights = self.spec.layers[index], self.weights.layers[index]
        mixer = layer.mixer
        x = _norm(x, weights.pre_mixer, layer.pre_mixer)
        q, k, v = split_heads(linear(x, weights.qkv, weights.qkv_bias), mixer)
        q = _norm(q, weights.q_norm, mixer.qk_norm)
        k = _norm(k, weights.k_norm, mixer.qk_norm)
        if mixer.rope is not None and turns is not None:
            q, k = apply_rope(q, turns, mixer.rope), apply_rope(k, turns, mixer.rope)
        out = linear(attention.run(q, k, v, index).flatten(1), weights.o, weights.o_bias)
        return _norm(out, weights.post_mixer, layer.post_mixer)


def check_words(spec: ModelSpec) -> None:
    """UnsupportedError naming the layer and the word, where a layer is made of anything that is not implemented."""
    for i, layer in enumerate(spec.layers):
        norms = (layer.pre_mixer, layer.post_mixer, layer.pre_ffn, layer.post_ffn)
        for word in (layer.mixer, layer.ffn, *(norm for norm in norms if norm)):
            if type(word) not in WORDS:
                raise UnsupportedError(f"layers.{i}: the torch backend cannot run {type(word).__name__}")
        if layer.ffn.act not in ACTIVATIONS:
            raise UnsupportedError(
                f"layers.{i}: activation {layer.ffn.act!r} is not one of {', '.join(ACTIVATIONS)} (torch backend)"
            )


def _feed(x: Tensor, layer: Layer, weights: LayerWeights) -> Tensor:
    x, ffn = _norm(x, weights.pre_ffn, layer.pre_ffn), weights.ffn
    if isinstance(ffn, MoEWeights):
        out = mixture(x, ffn, cast(MoE, layer.ffn))
    else:
        out = gated_mlp(x, ffn, layer.ffn.act)
    return _norm(out, weights.post_ffn, layer.post_ffn)


def _norm(x: Tensor, weight: Tensor | None, norm: RMSNorm | None) -> Tensor:
    return x if weight is None or norm is None else rms_norm(x, weight, norm)

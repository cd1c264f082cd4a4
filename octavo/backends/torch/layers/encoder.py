"""Walks an encoder's ModelSpec: a Batch of whole prompts in, every token's final state out. Nothing is cached."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.backends.torch.attention.cache import KVCache
from octavo.backends.torch.attention.port import PagedAttention
from octavo.backends.torch.batch import Batch
from octavo.backends.torch.layers.linear import linear, split_heads
from octavo.backends.torch.layers.mlp import ACTIVATIONS
from octavo.backends.torch.weights import LayerWeights, MlpWeights, ModelWeights
from octavo.models.spec import Attention, Layer, LayerNorm, LearnedEmbedding, ModelSpec


class Encoder:
    """The model on its device; `decoder.check_words(spec)` has passed."""

    def __init__(self, spec: ModelSpec, weights: ModelWeights, learned: LearnedEmbedding) -> None:
        self.spec = spec
        self.weights = weights
        self._learned = learned
        self._embed_norm = torch.stack((weights.more["embed_norm"], weights.more["embed_norm_bias"]))

    def states(self, batch: Batch, cache: KVCache, attention: PagedAttention, types: Tensor | None) -> Tensor:
        """[tokens, hidden]. types: int64 [tokens], the rows of token types; None: 0 for all.

        cache, attention: a decoder's.
        """
        more, places = self.weights.more, batch.positions + self._learned.offset
        x = F.embedding(batch.token_ids, self.weights.embed) + F.embedding(places, more["positions"])
        x = x + (more["token_types"][0] if types is None else F.embedding(types, more["token_types"]))
        x = layer_norm(x, self._embed_norm, self._learned.norm)
        spans = equal_spans(batch, self.spec)
        for layer, weights in zip(self.spec.layers, self.weights.layers, strict=True):
            x = self._layer(x, layer, weights, spans)
        return x

    def _layer(self, x: Tensor, layer: Layer, weights: LayerWeights, spans: list[Span]) -> Tensor:
        qkv = linear(x, weights.qkv, weights.qkv_bias)
        attended = attend(*split_heads(qkv, layer.mixer), layer.mixer, spans)
        x = _norm_after(x + linear(attended, weights.o, weights.o_bias), weights.after_mixer, layer.after_mixer)
        ffn = weights.ffn
        if not isinstance(ffn, MlpWeights):
            raise RuntimeError("an encoder has no experts")
        wide = ACTIVATIONS[layer.ffn.act](linear(x, ffn.gate_up, ffn.gate_up_bias))
        return _norm_after(x + linear(wide, ffn.down, ffn.down_bias), weights.after_ffn, layer.after_ffn)


def _norm_after(x: Tensor, weights: Tensor | None, norm: LayerNorm | None) -> Tensor:
    return x if weights is None or norm is None else layer_norm(x, weights, norm)


def layer_norm(x: Tensor, weights: Tensor, norm: LayerNorm) -> Tensor:
    """LayerNorm of the vocabulary: x [..., width] of any type in, the same out; weights [2, width] in float32."""
    return F.layer_norm(x.float(), x.shape[-1:], weights[0], weights[1], norm.eps).to(x.dtype)


Span = tuple[Tensor, dict[int | None, Tensor | None]]
"""Of the batch's rows of n tokens their places in it, int64 [rows, n], and by window what `_near` says of n tokens."""


def equal_spans(batch: Batch, spec: ModelSpec) -> list[Span]:
    """The batch's rows by length, for `attend` in all layers. Every row runs whole."""
    firsts: dict[int, list[int]] = {}
    first = 0
    for step in batch.steps:
        firsts.setdefault(step.count, []).append(first)
        first += step.count
    device = batch.token_ids.device
    windows = {layer.mixer.window for layer in spec.layers}
    return [
        (
            torch.tensor(some, device=device)[:, None] + torch.arange(count, device=device),
            {window: _near(count, window, device) for window in windows},
        )
        for count, some in firsts.items()
    ]


def attend(q: Tensor, k: Tensor, v: Tensor, mixer: Attention, spans: list[Span]) -> Tensor:
    """As split_heads has them -> [tokens, heads * head_dim]: every token sees its own row's, within the mixer's window.

    Rows of one length are one call, so that nothing is padded.
    """
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    grouped = q.shape[1] != k.shape[1]
    for places, near in spans:
        a, b, c = (part[places].transpose(1, 2) for part in (q, k, v))  # [rows, heads, n, head_dim]
        mask = near[mixer.window]
        seen = F.scaled_dot_product_attention(a, b, c, mask, scale=mixer.scale, enable_gqa=grouped)
        out[places] = seen.transpose(1, 2)
    return out.flatten(1)


def _near(count: int, window: int | None, device: torch.device) -> Tensor | None:
    """bool [count, count]: which tokens lie less than `window` places from each other; None: all do."""
    if window is None or count <= window:
        return None
    places = torch.arange(count, device=device)
    return (places[:, None] - places).abs() < window

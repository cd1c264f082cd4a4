"""Walks a ModelSpec: a Batch in, the residual stream out; some of its tokens in, their logits out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor

from octavo.backends.torch.attention.cache import KVCache
from octavo.backends.torch.attention.port import PagedAttention
from octavo.backends.torch.batch import Batch
from octavo.backends.torch.layers.encoder import attend, equal_spans
from octavo.backends.torch.layers.mlp import ACTIVATIONS
from octavo.backends.torch.ops.plain import turned_heads
from octavo.backends.torch.ops.port import Ops, Stream
from octavo.backends.torch.weights import LayerWeights, MlpWeights, ModelWeights, MoEWeights
from octavo.base.errors import UnsupportedError
from octavo.models.spec import MLP, Attention, GatedMLP, Layer, LayerNorm, ModelSpec, MoE, RMSNorm

WORDS = (Attention, GatedMLP, MoE, RMSNorm)
ENCODER_WORDS = (Attention, MLP, LayerNorm)


class Decoder:
    """The model on its device; `check_words(spec)` has passed."""

    def __init__(self, spec: ModelSpec, weights: ModelWeights, ops: Ops) -> None:
        self.spec = spec
        self.weights = weights
        self.ops = ops
        self._whole = not all(layer.mixer.causal for layer in spec.layers)
        self._walk: Sequence[int] = range(len(spec.layers))

    @contextmanager
    def kinds_only(self) -> Iterator[None]:
        """Within, `forward` goes through two layers of each kind alone: enough to meet all kernels, of no other use."""
        layers = self.spec.layers
        # two, as the first of all has nothing to add to the stream yet
        self._walk = [i for i, layer in enumerate(layers) if layers[:i].count(layer) < 2]
        try:
            yield
        finally:
            self._walk = range(len(layers))

    def forward(self, batch: Batch, cache: KVCache, attention: PagedAttention) -> Stream:
        """The residual stream before the final norm; keys and values go to the cache."""
        attention.plan(batch)
        spans = equal_spans(batch, self.spec) if self._whole else []
        stream = Stream(self.ops.embed(batch.token_ids, self.weights.embed, self.spec.embedding_scale), None)
        for i in self._walk:
            layer, weights = self.spec.layers[i], self.weights.layers[i]
            x, qkv = self._project(stream, layer, weights)
            if layer.mixer.causal:
                q = self.ops.attention_inputs(qkv, weights, layer.mixer, batch, cache=cache, layer=i)
                attended = attention.run(q, i).flatten(1)
            else:
                attended = attend(*turned_heads(qkv, weights, layer.mixer, batch), layer.mixer, spans)
            out = self.ops.linear(attended, weights.o, weights.o_bias)
            stream = Stream(x, self._norm_out(out, weights.post_mixer, layer.post_mixer))
            x, out = self._feed(stream, layer, weights)
            stream = Stream(x, self._norm_out(out, weights.post_ffn, layer.post_ffn))
        return stream

    def finish(self, stream: Stream, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """For tokens int64 [n]: what the head reads, [n, hidden], and int32 [n]: 1 where the stream is finite."""
        weight, norm = self.weights.final_norm, self.spec.final_norm
        if weight is None or norm is None:
            raise RuntimeError("a decoder ends in a norm")
        return self.ops.finish(stream, tokens, weight, norm)

    def states(self, batch: Batch, cache: KVCache, attention: PagedAttention, types: Tensor | None) -> Tensor:
        """Every token's final state, [tokens, hidden], for a model that pools. types: not for decoders."""
        stream = self.forward(batch, cache, attention)
        return self.finish(stream, torch.arange(len(batch.token_ids), device=batch.token_ids.device))[0]

    def logits(self, h: Tensor) -> Tensor:
        """h: of `finish` -> float32 [n, vocab]."""
        head = self.spec.head
        if head is None:
            raise RuntimeError("a model that pools has no head")
        logits = self.ops.logits(h, self.weights.head)
        # in place, as the memory's plan has no room for more of their size
        if head.scale != 1.0:
            logits.mul_(head.scale)
        if head.softcap is not None:
            logits.div_(head.softcap).tanh_().mul_(head.softcap)
        return logits

    def _project(self, stream: Stream, layer: Layer, weights: LayerWeights) -> tuple[Tensor, Tensor]:
        """x, and q, k and v of what the mixer reads."""
        if layer.pre_mixer is None or weights.pre_mixer is None:
            x = stream.total()
            return x, self.ops.linear(x, weights.qkv, weights.qkv_bias)
        return self.ops.norm_linear(stream, weights.pre_mixer, layer.pre_mixer, weights.qkv, weights.qkv_bias)

    def _norm_out(self, y: Tensor, weight: Tensor | None, norm: RMSNorm | None) -> Tensor:
        return y if weight is None or norm is None else self.ops.norm(y, weight, norm)

    def _feed(self, stream: Stream, layer: Layer, weights: LayerWeights) -> tuple[Tensor, Tensor]:
        """x, and what the feed-forward branch makes of it."""
        ffn, norm, weight = weights.ffn, layer.pre_ffn, weights.pre_ffn
        if isinstance(ffn, MlpWeights) and norm is not None and weight is not None:
            return self.ops.norm_mlp(stream, weight, norm, ffn, layer.ffn.act)
        if norm is None or weight is None:
            x = h = stream.total()
        else:
            x, h = self.ops.add_norm(stream, weight, norm)
        if isinstance(ffn, MoEWeights):
            return x, self.ops.mixture(h, ffn, cast(MoE, layer.ffn))
        return x, self.ops.mlp(h, ffn, layer.ffn.act)


def check_words(spec: ModelSpec) -> None:
    """UnsupportedError naming the layer and the word, where a layer is made of anything that is not implemented."""
    known = ENCODER_WORDS if spec.learned else WORDS
    for i, layer in enumerate(spec.layers):
        norms = (layer.pre_mixer, layer.post_mixer, layer.pre_ffn, layer.post_ffn, layer.after_mixer, layer.after_ffn)
        for word in (layer.mixer, layer.ffn, *(norm for norm in norms if norm)):
            if type(word) not in known:
                raise UnsupportedError(f"layers.{i}: the torch backend cannot run {type(word).__name__}")
        if layer.ffn.act not in ACTIVATIONS:
            raise UnsupportedError(
                f"layers.{i}: activation {layer.ffn.act!r} is not one of {', '.join(ACTIVATIONS)} (torch backend)"
            )

"""Walks a ModelSpec: a Batch in, the residual stream out; some of its tokens in, their logits out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import inf
from typing import NamedTuple, cast

import torch
from torch import Tensor

from octavo.backends.torch.attention.cache import KVCache
from octavo.backends.torch.attention.port import PagedAttention
from octavo.backends.torch.batch import Batch, Ends
from octavo.backends.torch.layers.encoder import attend, equal_spans
from octavo.backends.torch.layers.mlp import ACTIVATIONS
from octavo.backends.torch.ops.plain import turned_heads
from octavo.backends.torch.ops.port import Ops, Stream
from octavo.backends.torch.weights import LayerWeights, MlpWeights, ModelWeights, MoEWeights
from octavo.base.errors import UnsupportedError
from octavo.models.spec import MLP, Attention, GatedMLP, Layer, LayerNorm, ModelSpec, MoE, RMSNorm

WORDS = (Attention, GatedMLP, MoE, RMSNorm)
ENCODER_WORDS = (Attention, MLP, LayerNorm)


class Passed(NamedTuple):
    """What a pass over the layers leaves. stream: before the final norm, of all tokens; where the batch has ends, of
    those alone.

    finite: bool [tokens], whether all is finite that the last layer reads of a token and keeps of it; None without
    ends.
    """

    stream: Stream
    finite: Tensor | None


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

    def forward(self, batch: Batch, cache: KVCache, attention: PagedAttention) -> Passed:
        """Keys and values go to the cache. With ends, the last layer is run for those alone once they are there."""
        attention.plan(batch)
        spans = equal_spans(batch, self.spec) if self._whole else []
        stream = Stream(self.ops.embed(batch.token_ids, self.weights.embed, self.spec.embedding_scale), None)
        finite = None
        for i in self._walk:
            layer, weights = self.spec.layers[i], self.weights.layers[i]
            if layer.mixer.causal:
                ends = batch.ends if i == self._walk[-1] else None
                stream, finite = self._attend(i, stream, batch, ends, cache=cache, attention=attention)
            else:
                x, qkv = self._project(stream, layer, weights)
                attended = attend(*turned_heads(qkv, weights, layer.mixer, batch), layer.mixer, spans)
                stream = self._mixed(x, attended, layer, weights)
            if len(stream.x):
                x, out = self._feed(stream, layer, weights)
                stream = Stream(x, self._norm_out(out, weights.post_ffn, layer.post_ffn))
        return Passed(stream, finite)

    def finish(self, stream: Stream, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """For tokens int64 [n]: what the head reads, [n, hidden], and int32 [n]: 1 where the stream is finite."""
        weight, norm = self.weights.final_norm, self.spec.final_norm
        if weight is None or norm is None:
            raise RuntimeError("a decoder ends in a norm")
        return self.ops.finish(stream, tokens, weight, norm)

    def states(self, batch: Batch, cache: KVCache, attention: PagedAttention, types: Tensor | None) -> Tensor:
        """Every token's final state, [tokens, hidden], for a model that pools. types: not for decoders."""
        stream, _ = self.forward(batch, cache, attention)
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

    def _attend(
        self, i: int, stream: Stream, batch: Batch, ends: Ends | None, *, cache: KVCache, attention: PagedAttention
    ) -> tuple[Stream, Tensor | None]:
        """The stream behind the mixer of layer i, of all tokens or of these ends, and with ends Passed.finite."""
        layer, weights = self.spec.layers[i], self.weights.layers[i]
        x, qkv = self._project(stream, layer, weights)
        q = self.ops.attention_inputs(qkv, weights, layer.mixer, batch, cache=cache, layer=i)
        finite = None
        if ends is not None:
            # before rows are gathered: attention reads its plan before it waits for the kernel just before (pdl.py)
            attention.plan(ends)
            finite = finite_tokens(x) & finite_tokens(qkv[:, layer.mixer.heads * layer.mixer.head_dim :])
            x, q = x.index_select(0, ends.tokens), q.index_select(0, ends.tokens)
            if not len(x):
                return Stream(x, None), finite
        return self._mixed(x, attention.run(q, i).flatten(1), layer, weights), finite

    def _mixed(self, x: Tensor, attended: Tensor, layer: Layer, weights: LayerWeights) -> Stream:
        """x, to which what the mixer makes of it is to be added."""
        out = self.ops.linear(attended, weights.o, weights.o_bias)
        return Stream(x, self._norm_out(out, weights.post_mixer, layer.post_mixer))

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


def finite_tokens(x: Tensor) -> Tensor:
    """bool [tokens] of x [tokens, any]: whether all of a token's numbers are finite; nothing of x's size is made."""
    lowest, highest = x.aminmax(dim=-1)  # both NaN where there is one
    return (lowest > -inf) & (highest < inf)


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

"""The vocabulary in which every architecture is written: small frozen dataclasses, no arrays, no forward pass.

A family file turns a checkpoint's config into a ModelSpec. Backends run the vocabulary; sizes are computed from it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Literal

Activation = Literal["silu", "gelu", "gelu_tanh"]
PoolingKind = Literal["cls", "mean", "last"]
DenseActivation = Literal["tanh", "identity", "relu", "sigmoid", "gelu", "silu"]
ClassActivation = Literal["softmax", "sigmoid", "identity"]


@dataclass(frozen=True)
class RMSNorm:
    """y = x / sqrt(mean(x^2) + eps) * (offset + w); offset is 1 where the checkpoint stores w - 1 (Gemma)."""

    eps: float
    offset: float = 0.0


@dataclass(frozen=True)
class LayerNorm:
    """y = (x - mean(x)) / sqrt(var(x) + eps) * w + b."""

    eps: float


@dataclass(frozen=True)
class LearnedEmbedding:
    """What is added to the tokens' embeddings before the first layer, and the norm of the sum.

    positions: rows of a table of which a token at position p takes row p + offset.  types: rows of a table of token
    types, which tell the texts of a pair apart; with one row every token takes it.
    """

    positions: int
    offset: int
    types: int
    norm: LayerNorm


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding over the first `dim` of each head.

    inv_freq[j] in radians a token, dim // 2 of them, scaling already applied (models/rope.py).
    attention_factor multiplies cos and sin (yarn).  interleaved: pairs are (2j, 2j+1) in place of (j, j + dim/2).
    """

    dim: int
    inv_freq: tuple[float, ...]
    attention_factor: float = 1.0
    interleaved: bool = False


@dataclass(frozen=True)
class Attention:
    """Grouped-query attention. scores = scale * q.k, then softcap * tanh(scores / softcap) where softcap is set.

    window: a token sees itself and the window - 1 tokens before it; None: all.
    qk_norm: RMSNorm over head_dim on q and k, before rope.  qkv_bias, output_bias: the projections add one.
    causal: False where a token sees all tokens of its own prompt (an encoder), with a window those less than `window`
        places before and behind it: it has no softcap, and nothing is cached.
    """

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    rope: Rope | None
    window: int | None = None
    softcap: float | None = None
    qk_norm: RMSNorm | None = None
    qkv_bias: bool = False
    output_bias: bool = False
    causal: bool = True


@dataclass(frozen=True)
class MLP:
    """down(act(up(x))), `width` wide."""

    width: int
    act: Activation
    bias: bool = False


@dataclass(frozen=True)
class GatedMLP:
    """down(act(gate(x)) * up(x)), `width` wide."""

    width: int
    act: Activation
    bias: bool = False


@dataclass(frozen=True)
class MoE:
    """`experts` gated MLPs (no biases), `width` wide, of which each token goes through `top_k`: a mixture of experts.

    p = softmax(router(x)) in float32. y = sum of p_e * down_e(act(gate_e(x)) * up_e(x)) over the top_k largest p, of
    equal ones the lowest numbers; renormalize: these p are divided by their sum first.
    shared_width: y += sigmoid(shared_router(x)) * shared(x), one more gated MLP that every token goes through.
    """

    experts: int
    top_k: int
    width: int
    act: Activation
    renormalize: bool
    shared_width: int | None = None


@dataclass(frozen=True)
class Layer:
    """x += post_mixer(mixer(pre_mixer(x))); x += post_ffn(ffn(pre_ffn(x))); a norm that is None is left out.

    after_mixer, after_ffn: norms of x itself after each of the two (BERT's residual pattern).
    """

    mixer: Attention
    ffn: GatedMLP | MLP | MoE
    pre_mixer: RMSNorm | None
    pre_ffn: RMSNorm | None
    post_mixer: RMSNorm | None = None
    post_ffn: RMSNorm | None = None
    after_mixer: LayerNorm | None = None
    after_ffn: LayerNorm | None = None


@dataclass(frozen=True)
class Dense:
    """v = act(W v + b), `width` long; without bias no b."""

    width: int
    act: DenseActivation
    bias: bool = True


@dataclass(frozen=True)
class Pooling:
    """What a prompt's hidden states become in a model that does not generate: one vector.

    kind: the first token's state (cls), the last one's, or the mean of all.  dense: what comes next, one by one.
    labels: 0 for an embedding; else logits = W v (+ b with label_bias), so many, and `activation` of them.
    normalize: an embedding is divided by its length.  dimensions: shorter lengths that an embedding may be cut to
    before (Matryoshka): None none, an empty tuple any.
    """

    kind: PoolingKind
    normalize: bool = True
    dimensions: tuple[int, ...] | None = None
    dense: tuple[Dense, ...] = ()
    labels: int = 0
    label_bias: bool = False
    activation: ClassActivation = "softmax"


@dataclass(frozen=True)
class Head:
    """logits = softcap(x @ W.T * scale); tied: W is the embedding."""

    tied: bool
    softcap: float | None = None
    scale: float = 1.0


@dataclass(frozen=True)
class Parameter:
    """One weight: its shape as stored ([out, in] for matrices), the axis along which it splits over ranks."""

    shape: tuple[int, ...]
    shard_axis: int | None = None


@dataclass(frozen=True)
class ModelSpec:
    """A decoder, or an encoder (a Pooling and no head). dtype: the checkpoint's element type, as torch names it.

    pooling: the model does not generate; head is None then.  final_norm: None where the last layer ends in a norm.
    embedding_scale multiplies embeddings, once it has been rounded to the element type of the arithmetic: a model that
    runs in bfloat16 was trained with sqrt(hidden_size) in bfloat16 (Gemma), in float32 the exact value is right.
    """

    family: str
    vocab_size: int
    hidden_size: int
    layers: tuple[Layer, ...]
    final_norm: RMSNorm | None
    head: Head | None
    max_position: int
    embedding_scale: float = 1.0
    dtype: str = "float32"
    learned: LearnedEmbedding | None = None
    pooling: Pooling | None = None

    def parameters(self) -> dict[str, Parameter]:
        """Every weight by its internal name, in the order in which a forward pass meets them.

        embed, layers.{i}.{pre_mixer,q,k,v,q_bias,k_bias,v_bias,q_norm,k_norm,o,o_bias,post_mixer,pre_ffn,
        gate,up,down,gate_bias,up_bias,down_bias,post_ffn}, final_norm, head (absent if tied). A MoE has router,
        experts.{e}.{gate,up,down}, shared.{gate,up,down} and shared_router in place of gate to down_bias.
        Of encoders also positions, token_types, embed_norm, layers.{i}.{after_mixer,after_ffn}, and of poolings
        dense.{i}, dense.{i}_bias, classifier, classifier_bias; a LayerNorm's bias is its name with _bias.
        """
        table = {"embed": Parameter((self.vocab_size, self.hidden_size), 0)}
        if self.learned:
            table["positions"] = Parameter((self.learned.positions, self.hidden_size))
            table["token_types"] = Parameter((self.learned.types, self.hidden_size))
            table.update(_layer_norm("embed_norm", self.hidden_size))
        for i, layer in enumerate(self.layers):
            for name, parameter in _layer_parameters(layer, self.hidden_size):
                table[f"layers.{i}.{name}"] = parameter
        if self.final_norm:
            table["final_norm"] = Parameter((self.hidden_size,))
        if self.head and not self.head.tied:
            table["head"] = Parameter((self.vocab_size, self.hidden_size), 0)
        if self.pooling:
            table.update(_pooling_parameters(self.pooling, self.hidden_size))
        return table

    def vector_size(self) -> int:
        """Numbers of what is pooled, before a classifier."""
        dense = self.pooling.dense if self.pooling else ()
        return dense[-1].width if dense else self.hidden_size

    def num_parameters(self) -> int:
        """Weights in all."""
        return sum(prod(parameter.shape) for parameter in self.parameters().values())

    def num_active_parameters(self) -> int:
        """Weights that one token meets: all but those of the experts that it does not go through."""
        mixtures = [layer.ffn for layer in self.layers if isinstance(layer.ffn, MoE)]
        idle = sum((ffn.experts - ffn.top_k) * 3 * ffn.width * self.hidden_size for ffn in mixtures)
        return self.num_parameters() - idle

    def kv_bytes_per_token(self, element_bytes: int, *, scale_bytes: int = 0) -> int:
        """Bytes of K and V that one token takes over all layers. scale_bytes: beside each head's elements."""
        mixers = [layer.mixer for layer in self.layers if layer.mixer.causal]
        return sum(2 * mixer.kv_heads * (mixer.head_dim * element_bytes + scale_bytes) for mixer in mixers)


def _layer_parameters(layer: Layer, hidden: int) -> Iterator[tuple[str, Parameter]]:
    a = layer.mixer
    q, kv = a.heads * a.head_dim, a.kv_heads * a.head_dim
    if layer.pre_mixer:
        yield "pre_mixer", Parameter((hidden,))
    for name, width in (("q", q), ("k", kv), ("v", kv)):
        yield name, Parameter((width, hidden), 0)
        if a.qkv_bias:
            yield f"{name}_bias", Parameter((width,), 0)
    if a.qk_norm:
        yield "q_norm", Parameter((a.head_dim,))
        yield "k_norm", Parameter((a.head_dim,))
    yield "o", Parameter((hidden, q), 1)
    if a.output_bias:
        yield "o_bias", Parameter((hidden,))
    if layer.post_mixer:
        yield "post_mixer", Parameter((hidden,))
    if layer.after_mixer:
        yield from _layer_norm("after_mixer", hidden)
    if layer.pre_ffn:
        yield "pre_ffn", Parameter((hidden,))
    if isinstance(layer.ffn, MoE):
        yield from _moe_parameters(layer.ffn, hidden)
    else:
        yield from _mlp_parameters(layer.ffn, hidden)
    if layer.post_ffn:
        yield "post_ffn", Parameter((hidden,))
    if layer.after_ffn:
        yield from _layer_norm("after_ffn", hidden)


def _layer_norm(name: str, hidden: int) -> Iterator[tuple[str, Parameter]]:
    yield name, Parameter((hidden,))
    yield f"{name}_bias", Parameter((hidden,))


def _pooling_parameters(p: Pooling, hidden: int) -> Iterator[tuple[str, Parameter]]:
    width = hidden
    for i, dense in enumerate(p.dense):
        yield f"dense.{i}", Parameter((dense.width, width))
        if dense.bias:
            yield f"dense.{i}_bias", Parameter((dense.width,))
        width = dense.width
    if p.labels:
        yield "classifier", Parameter((p.labels, width))
        if p.label_bias:
            yield "classifier_bias", Parameter((p.labels,))


def _mlp_parameters(f: GatedMLP | MLP, hidden: int) -> Iterator[tuple[str, Parameter]]:
    for name in ("gate", "up") if isinstance(f, GatedMLP) else ("up",):
        yield name, Parameter((f.width, hidden), 0)
        if f.bias:
            yield f"{name}_bias", Parameter((f.width,), 0)
    yield "down", Parameter((hidden, f.width), 1)
    if f.bias:
        yield "down_bias", Parameter((hidden,))


def _moe_parameters(f: MoE, hidden: int) -> Iterator[tuple[str, Parameter]]:
    yield "router", Parameter((f.experts, hidden))
    expert = tuple(_mlp_parameters(GatedMLP(f.width, f.act), hidden))
    for e in range(f.experts):
        for name, parameter in expert:
            yield f"experts.{e}.{name}", parameter
    if f.shared_width is not None:
        for name, parameter in _mlp_parameters(GatedMLP(f.shared_width, f.act), hidden):
            yield f"shared.{name}", parameter
        yield "shared_router", Parameter((1, hidden))

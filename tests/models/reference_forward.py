"""The meaning of the vocabulary of models/spec.py: a ModelSpec, weights and token ids in, logits out.

Plain NumPy in float32, one sequence, no cache, nothing clever: what backends are compared with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import erf

import numpy as np

from octavo.models.spec import MLP, Attention, GatedMLP, LayerNorm, ModelSpec, MoE, RMSNorm, Rope

Weights = Mapping[str, np.ndarray]


def forward(spec: ModelSpec, weights: Weights, token_ids: Sequence[int]) -> np.ndarray:
    """weights: float32 by the names of spec.parameters(). Returns logits, float32 [tokens, vocab]."""
    x = rms_norm(spec.final_norm, states(spec, weights, token_ids), weights["final_norm"])
    logits = linear(x, weights["embed" if spec.head.tied else "head"]) * np.float32(spec.head.scale)
    return soft_cap(logits, spec.head.softcap)


def states(spec: ModelSpec, weights: Weights, token_ids: Sequence[int], types: Sequence[int] | int = 0) -> np.ndarray:
    """What the last layer leaves, float32 [tokens, hidden]. types: of the tokens, where there is a table of them."""
    x = weights["embed"][list(token_ids)] * np.float32(spec.embedding_scale)  # [tokens, hidden]
    if spec.learned:
        places = np.arange(len(x)) + spec.learned.offset
        x = x + weights["positions"][places] + weights["token_types"][types]
        x = layer_norm(spec.learned.norm, x, weights, "embed_norm")
    for i, layer in enumerate(spec.layers):
        w = {name.split(".", 2)[2]: value for name, value in weights.items() if name.startswith(f"layers.{i}.")}
        y = attention(layer.mixer, w, normed(layer.pre_mixer, x, w, "pre_mixer"))
        x = layer_norm(layer.after_mixer, x + normed(layer.post_mixer, y, w, "post_mixer"), w, "after_mixer")
        y = feed(layer.ffn, w, normed(layer.pre_ffn, x, w, "pre_ffn"))
        x = layer_norm(layer.after_ffn, x + normed(layer.post_ffn, y, w, "post_ffn"), w, "after_ffn")
    return x


def layer_norm(norm: LayerNorm | None, x: np.ndarray, w: Weights, name: str) -> np.ndarray:
    if norm is None:
        return x
    x = x - x.mean(axis=-1, keepdims=True)
    scale = np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + np.float32(norm.eps))
    return x / scale * w[name] + w[f"{name}_bias"]


def normed(norm: RMSNorm | None, x: np.ndarray, w: Weights, name: str) -> np.ndarray:
    return x if norm is None else rms_norm(norm, x, w[name])


def rms_norm(norm: RMSNorm, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    mean = np.mean(x * x, axis=-1, keepdims=True)
    return x / np.sqrt(mean + np.float32(norm.eps)) * (np.float32(norm.offset) + weight)


def linear(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    y = x @ weight.T
    return y if bias is None else y + bias


def soft_cap(x: np.ndarray, cap: float | None) -> np.ndarray:
    return x if cap is None else np.float32(cap) * np.tanh(x / np.float32(cap))


def attention(a: Attention, w: Weights, x: np.ndarray) -> np.ndarray:
    tokens = len(x)

    def project(name: str, heads: int) -> np.ndarray:
        y = linear(x, w[name], w[f"{name}_bias"] if a.qkv_bias else None)
        return y.reshape(tokens, heads, a.head_dim)

    q, k, v = project("q", a.heads), project("k", a.kv_heads), project("v", a.kv_heads)
    if a.qk_norm:
        q, k = rms_norm(a.qk_norm, q, w["q_norm"]), rms_norm(a.qk_norm, k, w["k_norm"])
    if a.rope:
        q, k = rotate(a.rope, q), rotate(a.rope, k)
    group = a.heads // a.kv_heads
    k, v = np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)
    scores = soft_cap(np.einsum("qhd,khd->hqk", q, k) * np.float32(a.scale), a.softcap)
    back = np.arange(tokens)[:, None] - np.arange(tokens)[None, :]  # [query, key]: how far back the key lies
    seen = (back >= 0) & (back < (a.window or tokens)) if a.causal else np.full(back.shape, True)
    scores = np.where(seen, scores, -np.inf)
    scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
    scores = scores / scores.sum(axis=-1, keepdims=True)
    y = np.einsum("hqk,khd->qhd", scores, v).reshape(tokens, -1)
    return linear(y, w["o"], w["o_bias"] if a.output_bias else None)


def rotate(rope: Rope, x: np.ndarray) -> np.ndarray:
    """x: [tokens, heads, head_dim], token t at position t."""
    angles = np.arange(len(x), dtype=np.float32)[:, None] * np.array(rope.inv_freq, np.float32)  # [tokens, dim / 2]
    cos = (np.cos(angles) * rope.attention_factor).astype(np.float32)[:, None, :]
    sin = (np.sin(angles) * rope.attention_factor).astype(np.float32)[:, None, :]
    half, dim = rope.dim // 2, rope.dim
    first = np.s_[..., 0:dim:2] if rope.interleaved else np.s_[..., :half]
    second = np.s_[..., 1:dim:2] if rope.interleaved else np.s_[..., half:dim]
    y = x.copy()
    y[first] = x[first] * cos - x[second] * sin
    y[second] = x[second] * cos + x[first] * sin
    return y


def feed(f: GatedMLP | MLP | MoE, w: Weights, x: np.ndarray) -> np.ndarray:
    if isinstance(f, MLP):
        biases = (w["up_bias"], w["down_bias"]) if f.bias else (None, None)
        return linear(ACTIVATIONS[f.act](linear(x, w["up"], biases[0])), w["down"], biases[1])
    return mixture(f, w, x) if isinstance(f, MoE) else gated_mlp(f, w, x)


def mixture(f: MoE, w: Weights, x: np.ndarray) -> np.ndarray:
    logits = linear(x, w["router"])
    p = np.exp(logits - logits.max(axis=-1, keepdims=True))
    p = p / p.sum(axis=-1, keepdims=True)
    y = np.zeros_like(x)
    for t in range(len(x)):
        chosen = sorted(range(f.experts), key=lambda e: (-p[t, e], e))[: f.top_k]
        whole = sum(p[t, e] for e in chosen) if f.renormalize else 1
        for e in chosen:
            y[t] += p[t, e] / whole * one_mlp(f, w, f"experts.{e}.", x[t : t + 1])[0]
    if f.shared_width is not None:
        y += one_mlp(f, w, "shared.", x) / (1 + np.exp(-linear(x, w["shared_router"])))
    return y


def one_mlp(f: MoE, w: Weights, prefix: str, x: np.ndarray) -> np.ndarray:
    part = {name: w[prefix + name] for name in ("gate", "up", "down")}
    return gated_mlp(GatedMLP(f.width, f.act), part, x)


def gated_mlp(f: GatedMLP, w: Weights, x: np.ndarray) -> np.ndarray:
    def bias(name: str) -> np.ndarray | None:
        return w[f"{name}_bias"] if f.bias else None

    gate, up = linear(x, w["gate"], bias("gate")), linear(x, w["up"], bias("up"))
    return linear(ACTIVATIONS[f.act](gate) * up, w["down"], bias("down"))


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def gelu_tanh(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(np.float32(np.sqrt(2 / np.pi)) * (x + np.float32(0.044715) * x**3)))


def gelu(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1 + np.vectorize(erf)(x / np.sqrt(2))).astype(np.float32)


ACTIVATIONS = {"silu": silu, "gelu": gelu, "gelu_tanh": gelu_tanh}

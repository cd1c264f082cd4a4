"""The vocabulary's meaning in float64: a ModelSpec, weights and token ids in, logits out; one loop per sum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import erf

import numpy as np

from octavo.models.spec import Attention, GatedMLP, ModelSpec, MoE, RMSNorm, Rope

Weights = Mapping[str, np.ndarray]


def forward(model: ModelSpec, weights: Weights, ids: Sequence[int]) -> np.ndarray:
    """[tokens, vocab]"""
    weights = {name: array.astype(np.float64) for name, array in weights.items()}
    x = weights["embed"][list(ids)] * model.embedding_scale
    for i, layer in enumerate(model.layers):
        w = {name.split(".", 2)[2]: array for name, array in weights.items() if name.startswith(f"layers.{i}.")}
        x = x + norm(
            layer.post_mixer, attend(layer.mixer, w, norm(layer.pre_mixer, x, w.get("pre_mixer"))), w.get("post_mixer")
        )
        x = x + norm(layer.post_ffn, feed(layer.ffn, w, norm(layer.pre_ffn, x, w.get("pre_ffn"))), w.get("post_ffn"))
    x = norm(model.final_norm, x, weights["final_norm"])
    return cap(x @ weights["embed" if model.head.tied else "head"].T * model.head.scale, model.head.softcap)


def norm(word: RMSNorm | None, x: np.ndarray, weight: np.ndarray | None) -> np.ndarray:
    if word is None or weight is None:
        return x
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + word.eps) * (word.offset + weight)


def cap(x: np.ndarray, limit: float | None) -> np.ndarray:
    return x if limit is None else limit * np.tanh(x / limit)


def attend(mixer: Attention, w: Weights, x: np.ndarray) -> np.ndarray:
    parts = {}
    for name, heads in (("q", mixer.heads), ("k", mixer.kv_heads), ("v", mixer.kv_heads)):
        y = x @ w[name].T + w.get(f"{name}_bias", 0.0)
        parts[name] = y.reshape(len(x), heads, mixer.head_dim)
    for name in ("q", "k"):
        parts[name] = norm(mixer.qk_norm, parts[name], w.get(f"{name}_norm"))
        if mixer.rope:
            parts[name] = np.stack([turn(mixer.rope, heads, p) for p, heads in enumerate(parts[name])])
    out = np.zeros_like(parts["q"])
    for p in range(len(x)):
        first = 0 if mixer.window is None else max(0, p - mixer.window + 1)
        for h in range(mixer.heads):
            g = h // (mixer.heads // mixer.kv_heads)
            scores = cap(parts["k"][first : p + 1, g] @ parts["q"][p, h] * mixer.scale, mixer.softcap)
            chance = np.exp(scores - scores.max())
            out[p, h] = chance / chance.sum() @ parts["v"][first : p + 1, g]
    return out.reshape(len(x), -1) @ w["o"].T + w.get("o_bias", 0.0)


def turn(word: Rope, heads: np.ndarray, position: int) -> np.ndarray:
    """Each pair of a head is a complex number, turned by position * inv_freq."""
    angle = np.exp(1j * position * np.array(word.inv_freq)) * word.attention_factor
    half = word.dim // 2
    a = slice(0, word.dim, 2) if word.interleaved else slice(0, half)
    b = slice(1, word.dim, 2) if word.interleaved else slice(half, word.dim)
    turned = (heads[:, a] + 1j * heads[:, b]) * angle
    out = heads.copy()
    out[:, a], out[:, b] = turned.real, turned.imag
    return out


def feed(ffn: GatedMLP | MoE, w: Weights, x: np.ndarray) -> np.ndarray:
    if isinstance(ffn, GatedMLP):
        return one_mlp(ffn.act, w, x)
    chance = np.exp(x @ w["router"].T)
    chance /= chance.sum(-1, keepdims=True)
    out = np.zeros_like(x)
    for t, p in enumerate(chance):
        chosen = np.argsort(-p)[: ffn.top_k]
        for e in chosen:
            expert = {name: w[f"experts.{e}.{name}"] for name in ("gate", "up", "down")}
            out[t] += p[e] / (p[chosen].sum() if ffn.renormalize else 1) * one_mlp(ffn.act, expert, x[t])
    if ffn.shared_width is not None:
        shared = {name: w[f"shared.{name}"] for name in ("gate", "up", "down")}
        out += one_mlp(ffn.act, shared, x) / (1 + np.exp(-x @ w["shared_router"].T))
    return out


def one_mlp(act: str, w: Weights, x: np.ndarray) -> np.ndarray:
    gate = ACTIVATIONS[act](x @ w["gate"].T + w.get("gate_bias", 0.0))
    return gate * (x @ w["up"].T + w.get("up_bias", 0.0)) @ w["down"].T + w.get("down_bias", 0.0)


ACTIVATIONS = {
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu": lambda x: x * (1 + np.vectorize(erf)(x / 2**0.5)) / 2,
    "gelu_tanh": lambda x: x * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3))) / 2,
}


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))

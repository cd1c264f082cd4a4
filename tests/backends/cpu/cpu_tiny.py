"""A hand-made spec with every word of the vocabulary, random weights for it, and a naive float64 forward pass."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from octavo.backends.cpu.cache import CELLS, Cells, make_cells
from octavo.backends.cpu.runner import CpuBackend
from octavo.base.types.tensor import SCHEMES, StoredTensor
from octavo.models.spec import Attention, GatedMLP, Head, Layer, ModelSpec, MoE, RMSNorm, Rope

VOCAB = 61


def rope(dim: int, **more: Any) -> Rope:
    return Rope(dim, tuple(100.0 ** (-2 * j / dim) for j in range(dim // 2)), **more)


def spec() -> ModelSpec:
    """Unlike layers: no norms and no rope; everything at once; a window and interleaved pairs; that with experts."""
    bare = Layer(
        Attention(heads=2, kv_heads=2, head_dim=6, scale=0.5, rope=None, output_bias=True),
        GatedMLP(width=10, act="gelu", bias=True),
        pre_mixer=None,
        pre_ffn=None,
    )
    full = Layer(
        Attention(
            heads=6,
            kv_heads=2,
            head_dim=8,
            scale=0.4,
            rope=rope(6, attention_factor=1.2),
            softcap=5.0,
            qk_norm=RMSNorm(1e-3, offset=1.0),
            qkv_bias=True,
        ),
        GatedMLP(width=14, act="gelu_tanh"),
        pre_mixer=RMSNorm(1e-5),
        pre_ffn=RMSNorm(1e-5, offset=1.0),
        post_mixer=RMSNorm(1e-2, offset=1.0),
        post_ffn=RMSNorm(1e-5),
    )
    narrow = Layer(
        Attention(heads=3, kv_heads=1, head_dim=8, scale=0.3, rope=rope(8, interleaved=True), window=5),
        GatedMLP(width=14, act="silu"),
        pre_mixer=RMSNorm(1e-5),
        pre_ffn=None,
        post_ffn=RMSNorm(1e-5),
    )
    mixed = Layer(
        narrow.mixer,
        MoE(experts=4, top_k=2, width=9, act="gelu", renormalize=True, shared_width=14),
        pre_mixer=RMSNorm(1e-5),
        pre_ffn=RMSNorm(1e-5),
        post_ffn=RMSNorm(1e-5),
    )
    return ModelSpec(
        family="made_by_hand",
        vocab_size=VOCAB,
        hidden_size=12,
        layers=(bare, full, narrow, mixed),
        final_norm=RMSNorm(1e-5, offset=1.0),
        head=Head(tied=False, softcap=8.0, scale=1.5),
        max_position=512,
        embedding_scale=2.5,
    )


def stored(name: str, array: np.ndarray) -> StoredTensor:
    return StoredTensor(name, SCHEMES["F32"], array.shape, memoryview(array.astype("<f4").tobytes()))


def arrays(model: ModelSpec, *, seed: int = 0) -> dict[str, np.ndarray]:
    """Random float32 by internal name."""
    rng = np.random.default_rng(seed)
    return {
        name: (rng.standard_normal(parameter.shape) / math.sqrt(parameter.shape[-1]) * 1.5).astype(np.float32)
        for name, parameter in model.parameters().items()
    }


def backend(model: ModelSpec, weights: dict[str, np.ndarray], *, num_blocks: int = 32, **sizes: Any) -> CpuBackend:
    """Loaded and allocated; the cache is full of NaN, so that a slot read before it was written shows."""
    given: dict[str, Any] = {
        "max_num_seqs": 4,
        "max_model_len": 64,
        "max_num_batched_tokens": 96,
        "block_size": 4,
        "threads": 1,
        "kv_cache_dtype": "float32",  # to be compared with floats
    }
    made = CpuBackend(**{**given, **sizes})
    made.load(model, {name: stored(name, array) for name, array in weights.items()})
    made.allocate(num_blocks)
    for cache in made._machine._caches.values():
        poison(cache)
    return made


POISON = 0xFFFF
"""A bfloat16 that is NaN, as no number is rounded to."""


def rand(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def poisoned(*shape: int) -> np.ndarray:
    return np.full(shape, np.nan, np.float32)


def poison(cells: Cells) -> Cells:
    """Numbers that show wherever they are used: NaN in every type, by the scales where the cells are int8."""
    for array in cells.arrays:
        array.fill({"f": np.nan, "u": POISON, "i": 101}[array.dtype.kind])
    return cells


def cells(dtype: str, *shape: int, block_size: int) -> Cells:
    """Poisoned ones."""
    return poison(make_cells(dtype, shape, block_size=block_size))


KV_DTYPES = list(CELLS)


def forward(model: ModelSpec, weights: dict[str, np.ndarray], tokens: list[int]) -> np.ndarray:
    """Logits [tokens, vocab], token by token, in float64."""
    w = {name: array.astype(np.float64) for name, array in weights.items()}
    x = w["embed"][tokens] * model.embedding_scale
    for i, layer in enumerate(model.layers):
        p = f"layers.{i}."
        y = _attention(layer.mixer, w, p, norm(x, layer.pre_mixer, w.get(p + "pre_mixer")))
        x = x + norm(y, layer.post_mixer, w.get(p + "post_mixer"))
        y = _feed(layer.ffn, w, p, norm(x, layer.pre_ffn, w.get(p + "pre_ffn")))
        x = x + norm(y, layer.post_ffn, w.get(p + "post_ffn"))
    x = norm(x, model.final_norm, w["final_norm"])
    logits = x @ w["embed" if model.head.tied else "head"].T * model.head.scale
    return logits if model.head.softcap is None else model.head.softcap * np.tanh(logits / model.head.softcap)


def norm(x: np.ndarray, kind: RMSNorm | None, weight: np.ndarray | None) -> np.ndarray:
    if kind is None:
        return x
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + kind.eps) * (kind.offset + weight)


def turn(x: np.ndarray, position: int, kind: Rope) -> np.ndarray:
    """One head's vector [head_dim], turned pair by pair."""
    y = x.copy()
    for j, frequency in enumerate(kind.inv_freq):
        a, b = (2 * j, 2 * j + 1) if kind.interleaved else (j, j + kind.dim // 2)
        cos, sin = math.cos(position * frequency), math.sin(position * frequency)
        y[a] = (x[a] * cos - x[b] * sin) * kind.attention_factor
        y[b] = (x[b] * cos + x[a] * sin) * kind.attention_factor
    return y


def activate(x: float, act: str) -> float:
    if act == "silu":
        return x / (1 + math.exp(-x))
    if act == "gelu":
        return x * (1 + math.erf(x / math.sqrt(2))) / 2
    return x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, position: int, kind: Attention) -> np.ndarray:
    """One query [heads, head_dim] at `position` over k, v [tokens, kv_heads, head_dim]."""
    out = np.zeros_like(q)
    low = 0 if kind.window is None else max(0, position - kind.window + 1)
    for h in range(kind.heads):
        g = h // (kind.heads // kind.kv_heads)
        scores = np.array([kind.scale * float(q[h] @ k[t, g]) for t in range(low, position + 1)])
        if kind.softcap is not None:
            scores = kind.softcap * np.tanh(scores / kind.softcap)
        shares = np.exp(scores - scores.max())
        for share, t in zip(shares / shares.sum(), range(low, position + 1), strict=True):
            out[h] += share * v[t, g]
    return out


def _attention(a: Attention, w: dict[str, np.ndarray], p: str, x: np.ndarray) -> np.ndarray:
    parts = []
    for name, heads in (("q", a.heads), ("k", a.kv_heads), ("v", a.kv_heads)):
        y = x @ w[p + name].T + (w[f"{p}{name}_bias"] if a.qkv_bias else 0)
        y = y.reshape(len(x), heads, a.head_dim)
        if name != "v":
            y = norm(y, a.qk_norm, w.get(f"{p}{name}_norm"))
            if a.rope is not None:
                y = np.array([[turn(head, position, a.rope) for head in row] for position, row in enumerate(y)])
        parts.append(y)
    q, k, v = parts
    out = np.array([attention(q[t], k, v, t, a) for t in range(len(x))]).reshape(len(x), -1)
    return out @ w[p + "o"].T + (w[p + "o_bias"] if a.output_bias else 0)


def _feed(f: GatedMLP | MoE, w: dict[str, np.ndarray], p: str, x: np.ndarray) -> np.ndarray:
    if isinstance(f, GatedMLP):
        return _mlp(f, w, p, x)
    mlp = GatedMLP(f.width, f.act)
    out = _mlp(mlp, w, p + "shared.", x) / (1 + np.exp(-x @ w[p + "shared_router"].T))
    for t, logits in enumerate(x @ w[p + "router"].T):
        chosen = np.argsort(-logits)[: f.top_k]
        chances = np.exp(logits) / (np.exp(logits[chosen]).sum() if f.renormalize else np.exp(logits).sum())
        for e in chosen:
            out[t] += chances[e] * _mlp(mlp, w, f"{p}experts.{e}.", x[t : t + 1])[0]
    return out


def _mlp(f: GatedMLP, w: dict[str, np.ndarray], p: str, x: np.ndarray) -> np.ndarray:
    def project(name: str, y: np.ndarray) -> np.ndarray:
        return y @ w[p + name].T + (w[f"{p}{name}_bias"] if f.bias else 0)

    gate, up = project("gate", x), project("up", x)
    return project("down", np.vectorize(lambda value: activate(value, f.act))(gate) * up)

"""The ops of encoders against float64, into outputs poisoned with NaN; rows do not see their neighbours."""

from __future__ import annotations

import math

import numpy as np
import pytest
from cpu_tiny import poisoned, rand

from octavo.backends.cpu import ops
from octavo.backends.cpu.attention import SCORES, AttentionPlan
from octavo.backends.cpu.rows import Span
from octavo.backends.cpu.team import Team

TEAM = Team(2)
BLOCKS = np.zeros(0, np.int64)


def make_plan(counts: list[int], heads: int, *, scores: int = SCORES) -> AttentionPlan:
    firsts = np.cumsum([0, *counts[:-1]])
    spans = [
        Span(i, int(first), 0, count, True, BLOCKS) for i, (first, count) in enumerate(zip(firsts, counts, strict=True))
    ]
    return AttentionPlan(spans, 16, heads, np.empty((TEAM.size, scores), np.float32), TEAM)


def reference(qkv: np.ndarray, heads: int, counts: list[int], scale: float, window: int | None) -> np.ndarray:
    kv_heads = (qkv.shape[1] - heads) // 2
    wide = qkv.astype(np.float64)
    out = np.empty((len(qkv), heads, qkv.shape[2]))
    first = 0
    for count in counts:
        rows = slice(first, first + count)
        for head in range(heads):
            own = heads + head // (heads // kv_heads)
            scores = wide[rows, head] @ wide[rows, own].T * scale
            if window is not None:
                scores[abs(np.subtract.outer(np.arange(count), np.arange(count))) >= window] = -np.inf
            p = np.exp(scores - scores.max(axis=1, keepdims=True))
            out[rows, head] = p / p.sum(axis=1, keepdims=True) @ wide[rows, own + kv_heads]
        first += count
    return out


@pytest.mark.parametrize("offset", [0, 2])
def test_embed_of_positions(offset: int) -> None:
    weight, places, out = rand(5, 9), np.array([0, 6, 3]), poisoned(3, 5)
    ops.embed(out, places, weight, scale=1.0, offset=offset)
    np.testing.assert_array_equal(out, weight[:, places + offset].T)


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (8, 33)])
def test_layer_norm(shape: tuple[int, int], in_place: bool) -> None:
    x, delta, weight, bias = rand(*shape) + 3, rand(*shape, seed=1), rand(shape[1], seed=2), rand(shape[1], seed=3)
    total = x.astype(np.float64) + delta
    centered = total - total.mean(axis=1, keepdims=True)
    expected = centered / np.sqrt(np.square(centered).mean(axis=1, keepdims=True) + 1e-6) * weight + bias
    out = x if in_place else poisoned(*shape)
    ops.layer_norm(out, x, weight, bias, delta, eps=1e-6)
    np.testing.assert_allclose(out, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("act", ops.ACTIVATIONS)
def test_activate(act: str) -> None:
    x, out = rand(4, 9) * 3, poisoned(4, 9)
    functions = {
        "silu": lambda v: v / (1 + math.exp(-v)),
        "gelu": lambda v: v * (1 + math.erf(v / math.sqrt(2))) / 2,
        "gelu_tanh": lambda v: v * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))) / 2,
    }
    ops.activate(out, x, act=act)
    np.testing.assert_allclose(out, np.vectorize(functions[act])(x.astype(np.float64)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("window", [None, 1, 2, 9, 40])
@pytest.mark.parametrize("scores", [SCORES, 200])
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(1, 1, 1), (4, 4, 8), (6, 2, 5)])
def test_span_attention(
    heads: int, kv_heads: int, dim: int, scores: int, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("octavo.backends.cpu.attention.SCORES", scores)
    counts = [1, 17, 3, 30]
    qkv = rand(sum(counts), heads + 2 * kv_heads, dim)
    out = poisoned(len(qkv), heads, dim)
    plan = make_plan(counts, heads, scores=max(scores, heads * 31))
    ops.span_attention(out, qkv, plan, scale=0.3, window=window)
    np.testing.assert_allclose(out, reference(qkv, heads, counts, 0.3, window), rtol=1e-5, atol=1e-5)


def test_a_nan_stays_in_its_row() -> None:
    counts = [5, 4, 6]
    qkv = rand(15, 6, 4)
    qkv[6] = np.nan
    out = poisoned(15, 2, 4)
    ops.span_attention(out, qkv, make_plan(counts, 2), scale=1.0, window=None)
    assert np.isnan(out[5:9]).all()
    assert np.isfinite(np.delete(out, slice(5, 9), axis=0)).all()

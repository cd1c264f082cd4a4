"""Each op against a naive float64 loop, at odd shapes, into outputs poisoned with NaN; every registered op is here."""

from __future__ import annotations

import math
from collections.abc import Callable

import cpu_tiny
import numpy as np
import pytest
from cpu_tiny import poisoned, rand

from octavo.backends.cpu import ops
from octavo.backends.cpu.attention import SCORES, AttentionPlan
from octavo.backends.cpu.cache import decode, encode
from octavo.backends.cpu.rows import Span
from octavo.backends.cpu.team import Team
from octavo.models.spec import Attention, RMSNorm

TESTED = {"experts", "add_gated"}  # by test_cpu_experts.py
TESTED |= {"layer_norm", "activate", "span_attention"}  # by test_cpu_encoder_ops.py
TEAM = Team(2)


def covers(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    TESTED.update(names)
    return lambda test: test


def close(found: np.ndarray, expected: np.ndarray, tolerance: float = 1e-5) -> None:
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


SHAPES = [(1, 1), (1, 7), (3, 5), (8, 33)]


@covers("embed")
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_embed(scale: float) -> None:
    weight, tokens, out = rand(5, 9), np.array([8, 0, 3, 3]), poisoned(4, 5)
    ops.embed(out, tokens, weight, scale=scale)
    close(out, np.array([weight[:, t].astype(np.float64) * scale for t in tokens]))


@covers("add")
def test_add() -> None:
    x, delta = rand(3, 5), rand(3, 5, seed=1)
    expected = x.astype(np.float64) + delta
    ops.add(x, delta)
    close(x, expected)


@covers("rms_norm")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("with_delta", [False, True])
@pytest.mark.parametrize("in_place", [False, True])
def test_rms_norm(shape: tuple[int, int], offset: float, with_delta: bool, in_place: bool) -> None:
    x, weight, delta = rand(*shape), rand(shape[1], seed=1), rand(*shape, seed=2) if with_delta else None
    total = x.astype(np.float64) + (0 if delta is None else delta)
    out = x if in_place else poisoned(*shape)
    ops.rms_norm(out, x, weight, delta, eps=1e-2, offset=offset)
    close(out, cpu_tiny.norm(total, RMSNorm(1e-2, offset), weight.astype(np.float64)))
    if not in_place:
        close(x, total)


@covers("linear")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("with_bias", [False, True])
def test_linear(shape: tuple[int, int], with_bias: bool) -> None:
    """Trailing axes on both sides are taken as one."""
    (tokens, width), wide = shape, 6
    x, weight, bias = rand(tokens, width, 2), rand(width * 2, wide, seed=1), rand(wide, seed=2) if with_bias else None
    out = poisoned(tokens, 3, 2)
    ops.linear(out, x, weight, bias)
    for t in range(tokens):
        for o in range(wide):
            expected = math.fsum(float(a) * float(b) for a, b in zip(x[t].flat, weight[:, o], strict=True))
            expected += 0 if bias is None else float(bias[o])
            assert out[t].flat[o] == pytest.approx(expected, abs=1e-4)


@covers("qk_norm")
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_qk_norm(offset: float) -> None:
    qkv, weight = rand(3, 7, 5), rand(5, 5, seed=1)  # 3 query heads, 2 KV heads
    before = qkv.astype(np.float64)
    ops.qk_norm(qkv, weight, eps=1e-2, offset=offset)
    for t in range(3):
        for h in range(5):
            close(qkv[t, h], cpu_tiny.norm(before[t, h], RMSNorm(1e-2, offset), weight[h].astype(np.float64)))
    np.testing.assert_array_equal(qkv[:, 5:], before[:, 5:].astype(np.float32))


@covers("rope")
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dim", [2, 6, 8])
def test_rope(interleaved: bool, dim: int) -> None:
    """The first `dim` of 8, of the first 3 of 5 heads, at far positions too."""
    kind = cpu_tiny.rope(dim, attention_factor=1.3, interleaved=interleaved)
    qkv, positions = rand(4, 5, 8), np.array([0, 1, 77, 100_003])
    before = qkv.astype(np.float64)
    cos, sin = ops.rope_tables(positions, np.array(kind.inv_freq), attention_factor=kind.attention_factor)
    assert cos.shape == sin.shape == (4, dim // 2)
    ops.rope(qkv, cos, sin, heads=3, interleaved=interleaved)
    for t, position in enumerate(positions.tolist()):
        for h in range(3):
            close(qkv[t, h], cpu_tiny.turn(before[t, h], position, kind))
    np.testing.assert_array_equal(qkv[:, 3:], before[:, 3:].astype(np.float32))


@covers("write_kv")
@pytest.mark.parametrize("dtype", cpu_tiny.KV_DTYPES)
def test_write_kv(dtype: str) -> None:
    keys, values = (cpu_tiny.cells(dtype, 2, 3, 4, 5, block_size=4) for _ in range(2))
    qkv, slots = rand(3, 3 + 2 * 2, 5), np.array([11, 0, 6])
    ops.write_kv(keys, values, qkv, slots)
    for cache, x in ((keys, qkv[:, 3:5]), (values, qkv[:, 5:7])):
        found = decode(cache.data, cache.scales)
        for t, slot in enumerate(slots.tolist()):
            np.testing.assert_array_equal(found[:, slot // 4, slot % 4], decode(*encode(x[t], cache.data.dtype)))
        assert np.isnan(found).sum() == 9 * 2 * 5


ROWS = {
    "decoding": [(0, 1), (4, 1), (30, 1)],
    "whole prompts": [(0, 1), (0, 13)],
    "chunks with history": [(3, 9), (17, 2), (21, 12)],
    "mixed": [(16, 1), (0, 6), (7, 1), (15, 5)],
}


def paged(rows: list[tuple[int, int]], kind: Attention, *, size: int, together: bool, dtype: str = "float32") -> None:
    """Rows of (history, new tokens): the op against one naive query after the other, over a poisoned cache."""
    rng = np.random.default_rng(5)
    needed = [-(-(start + count) // size) for start, count in rows]
    order = np.arange(sum(needed) + 3) if together else rng.permutation(sum(needed) + 3)
    tables = np.split(order, np.cumsum(needed))[: len(rows)]
    shape = (kind.kv_heads, len(order), size, kind.head_dim)
    keys, values = (cpu_tiny.cells(dtype, *shape, block_size=size) for _ in range(2))
    spans, queries, expected, first = [], [], [], 0
    for index, ((start, count), table) in enumerate(zip(rows, tables, strict=True)):
        end = start + count
        kv = rand(end, 2 * kind.kv_heads, kind.head_dim, seed=index)
        ops.write_kv(keys, values, kv, table[np.arange(end) // size] * size + np.arange(end) % size)
        k, v = np.split(decode(*encode(kv, keys.data.dtype)), 2, axis=1)
        q = rand(count, kind.heads, kind.head_dim, seed=100 + index)
        queries.append(q)
        exact = [array.astype(np.float64) for array in (q, k, v)]
        expected += [cpu_tiny.attention(exact[0][i], *exact[1:], start + i, kind) for i in range(count)]
        spans.append(Span(index, first, start, count, False, table))
        first += count
    qkv = poisoned(first, kind.heads + 2 * kind.kv_heads, kind.head_dim)
    qkv[:, : kind.heads] = np.concatenate(queries)
    out = poisoned(first, kind.heads, kind.head_dim)
    plan = AttentionPlan(spans, size, kind.heads, poisoned(2, SCORES), TEAM)
    options = {"scale": kind.scale, "window": kind.window, "softcap": kind.softcap}
    ops.paged_attention(out, qkv, keys, values, plan, **options)
    close(out, np.array(expected))


@covers("paged_attention")
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("window", [None, 1, 3, 6, 64])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("dtype", cpu_tiny.KV_DTYPES)
def test_paged_attention(
    rows: list[tuple[int, int]], together: bool, window: int | None, softcap: float | None, dtype: str
) -> None:
    kind = Attention(heads=6, kv_heads=2, head_dim=5, scale=0.7, rope=None, window=window, softcap=softcap)
    paged(rows, kind, size=4, together=together, dtype=dtype)


@covers("paged_attention")
@pytest.mark.parametrize("window", [None, 7])
def test_paged_attention_in_tiles(monkeypatch: pytest.MonkeyPatch, window: int | None) -> None:
    """Scores that do not fit at once are cut into queries; rows that decode, into groups."""
    kind = Attention(heads=4, kv_heads=4, head_dim=3, scale=0.7, rope=None, window=window)
    for scores in (4 * 33, 4 * 50, 4 * 200):
        monkeypatch.setattr("octavo.backends.cpu.attention.SCORES", scores)
        monkeypatch.setattr(f"{__name__}.SCORES", scores)
        paged([(2, 27), (30, 1), (0, 9), (31, 1), (32, 1)], kind, size=8, together=False)


@covers("gated")
@pytest.mark.parametrize("act", sorted(ops.ACTIVATIONS))
def test_gated(act: str) -> None:
    gate = np.concatenate((np.linspace(-9, 9, 1501), [-87.0, -30.0, 30.0, 87.0, 0.0])).astype(np.float32)[None]
    up = rand(*gate.shape)
    out = poisoned(*gate.shape)
    ops.gated(out, np.concatenate((gate, up), axis=1), act=act)
    expected = np.array([cpu_tiny.activate(float(g), act) * float(u) for g, u in zip(gate[0], up[0], strict=True)])
    close(out[0], expected, 1e-6)


def test_gated_passes_nan_on() -> None:
    for act in ops.ACTIVATIONS:
        out = np.zeros((1, 1), np.float32)
        ops.gated(out, np.array([[np.nan, 1.0]], np.float32), act=act)
        assert np.isnan(out).all()


@covers("head")
@pytest.mark.parametrize(("scale", "softcap"), [(1.0, None), (0.25, None), (1.5, 3.0)])
def test_head(scale: float, softcap: float | None) -> None:
    x, weight, out = rand(3, 5) * 9, rand(5, 11, seed=1), poisoned(3, 11)
    ops.head(out, x, weight, scale=scale, softcap=softcap)
    expected = x.astype(np.float64) @ weight.astype(np.float64) * scale
    if softcap is not None:
        expected = np.array([[softcap * math.tanh(value / softcap) for value in row] for row in expected.tolist()])
    close(out, expected, 1e-5)


@covers("check")
def test_check() -> None:
    x, finite = rand(4, 3), np.zeros(4, np.bool_)
    x[1, 0], x[2, 2] = np.inf, np.nan
    ops.check(finite, x)
    assert finite.tolist() == [True, False, False, True]


@covers("gather")
def test_gather() -> None:
    x, last = rand(5, 3), poisoned(3, 3)
    ops.gather(last, x, np.array([4, 0, 4]))
    np.testing.assert_array_equal(last, x[[4, 0, 4]])


@covers("scan")
def test_scan() -> None:
    logits = np.array([[1, 5, 5], [-np.inf, 0, 1], [2, np.nan, 3]], np.float32)
    finite, best = np.empty(3, np.bool_), np.empty(3, np.int64)
    ops.scan(finite, best, logits)
    assert finite.tolist() == [True, False, False]
    assert best.tolist()[0] == 1


def test_every_op_is_tested() -> None:
    assert set(ops.OPS) == TESTED

"""Each native op against its NumPy reference, for every instruction set, at odd shapes, into outputs full of NaN."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import cpu_tiny
import native_tiny
import numpy as np
import pytest
from native_remote import Remote

from octavo.backends.cpu import ops
from octavo.backends.cpu.attention import SCORES, AttentionPlan
from octavo.backends.cpu.native import Pool
from octavo.backends.cpu.packed import Packed
from octavo.backends.cpu.program import Instruction
from octavo.backends.cpu.rows import Span
from octavo.backends.cpu.team import Team

pytestmark = pytest.mark.timeout(1200)  # the first use of a place compiles the kernels for it
TESTED: set[str] = set()
TEAM = Team(1)
SHAPES = [(1, 1), (1, 7), (3, 33), (19, 80)]


def covers(name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    TESTED.add(name)
    return lambda test: test


@pytest.fixture(params=native_tiny.TARGETS, ids=" ".join)
def pool(request: pytest.FixtureRequest, remotes: Callable[[str], Remote]) -> Iterator[Pool]:
    with native_tiny.target(*request.param, remotes) as made:
        yield made


def rand(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def poisoned(*shape: int) -> np.ndarray:
    return np.full(shape, np.nan, np.float32)


def close(found: np.ndarray, expected: np.ndarray, tolerance: float = 2e-6) -> None:
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


@covers("embed")
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_embed(pool: Pool, scale: float) -> None:
    weight, ids, out = rand(19, 5), [18, 0, 3, 3], poisoned(4, 5)
    packed = Packed({}, {"w": native_tiny.pack(pool, weight)})
    step = Instruction("embed", ("x", "tokens", "w"), {"scale": scale})
    native_tiny.run(pool, step, {"x": out}, packed=packed, tokens=4, ids=ids)
    np.testing.assert_array_equal(out, weight[ids] * np.float32(scale))


@covers("add")
@pytest.mark.parametrize("shape", SHAPES)
def test_add(pool: Pool, shape: tuple[int, int]) -> None:
    x, delta = rand(*shape), rand(*shape, seed=1)
    expected = x + delta
    native_tiny.run(pool, Instruction("add", ("x", "y")), {"x": x, "y": delta}, tokens=len(x))
    np.testing.assert_array_equal(x, expected)


@covers("rms_norm")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("with_delta", [False, True])
@pytest.mark.parametrize("in_place", [False, True])
def test_rms_norm(pool: Pool, shape: tuple[int, int], offset: float, with_delta: bool, in_place: bool) -> None:
    x, weight, delta = rand(*shape), rand(shape[1], seed=1), rand(*shape, seed=2) if with_delta else None
    out = x if in_place else poisoned(*shape)
    expected, total = poisoned(*shape), x.copy()
    ops.rms_norm(expected, total, weight, delta, eps=1e-2, offset=offset)
    arrays = {"x": x, "out": out} | ({"y": delta} if delta is not None else {})
    step = Instruction("rms_norm", ("out", "x", "w", "y" if with_delta else None), {"eps": 1e-2, "offset": offset})
    native_tiny.run(pool, step, arrays, packed=Packed({"w": weight}, {}), tokens=len(x))
    close(out, expected)
    if not in_place:
        np.testing.assert_array_equal(x, total)


@covers("linear")
@pytest.mark.parametrize("tokens", [1, 3, 17, 40])
@pytest.mark.parametrize("with_bias", [False, True])
def test_linear_of_several_matrices(pool: Pool, tokens: int, with_bias: bool) -> None:
    """Each fills its own columns; trailing axes are taken as one."""
    parts = [rand(n, 12, seed=n) for n in (130, 3, 17)]
    x, bias, out = rand(tokens, 6, 2), rand(150, seed=9) if with_bias else None, poisoned(tokens, 15, 10)
    packed = Packed({"b": bias} if with_bias else {}, {"w": sum((native_tiny.pack(pool, p) for p in parts), ())})
    step = Instruction("linear", ("out", "x", "w", "b" if with_bias else None))
    native_tiny.run(pool, step, {"x": x, "out": out}, packed=packed, tokens=tokens)
    expected = poisoned(tokens, 15, 10)
    ops.linear(expected, x, np.concatenate(parts).T, bias)
    close(out, expected, 1e-5)


@covers("head")
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_head(pool: Pool, scale: float) -> None:
    weight, x, out, expected = rand(101, 8), rand(3, 8, seed=1), poisoned(3, 101), poisoned(3, 101)
    packed = Packed({}, {"w": native_tiny.pack(pool, weight)})
    step = Instruction("head", ("logits", "last", "w"), {"scale": scale})
    native_tiny.run(pool, step, {"logits": out, "last": x}, packed=packed, tokens=3)
    ops.head(expected, x, weight.T, scale=scale)
    close(out, expected, 1e-5)


@covers("qk_norm")
@pytest.mark.parametrize("dim", [5, 64])
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_qk_norm(pool: Pool, dim: int, offset: float) -> None:
    qkv, weight = rand(3, 7, dim), rand(5, dim, seed=1)  # 3 query heads, 2 KV heads
    expected = qkv.copy()
    ops.qk_norm(expected, weight, eps=1e-2, offset=offset)
    step = Instruction("qk_norm", ("qkv", "w"), {"eps": 1e-2, "offset": offset})
    native_tiny.run(pool, step, {"qkv": qkv}, packed=Packed({"w": weight}, {}), tokens=3)
    close(qkv, expected)
    np.testing.assert_array_equal(qkv[:, 5:], expected[:, 5:])


@covers("rope")
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dim", [2, 6, 64, 80])
def test_rope(pool: Pool, interleaved: bool, dim: int) -> None:
    """The first `dim` of 80, of the first 3 of 5 heads, at far positions too; tables included."""
    kind = cpu_tiny.rope(dim, attention_factor=1.3, interleaved=interleaved)
    qkv, positions = rand(4, 5, 80), np.array([0, 1, 77, 100_003])
    expected, inv_freq = qkv.copy(), np.array(kind.inv_freq)
    tables = ops.rope_tables(positions, inv_freq, attention_factor=1.3)
    ops.rope(expected, *tables, heads=3, interleaved=interleaved)
    arrays = {"qkv": qkv, "cos.0": poisoned(4, dim // 2), "sin.0": poisoned(4, dim // 2), "inv_freq.0": inv_freq}
    step = Instruction("rope", ("qkv", "cos.0", "sin.0"), {"heads": 3, "interleaved": interleaved})
    native_tiny.run(pool, step, arrays, tokens=4, factors=(1.3,), positions=positions)
    close(arrays["cos.0"], tables[0], 1e-7)
    close(arrays["sin.0"], tables[1], 1e-7)
    close(qkv, expected)
    np.testing.assert_array_equal(qkv[:, 3:], expected[:, 3:])


@covers("write_kv")
def test_write_kv(pool: Pool) -> None:
    """Keys of a block lie side by side: [kv_heads, blocks, D, block_size]."""
    keys, values = poisoned(2, 3, 5, 4), poisoned(2, 3, 4, 5)
    qkv, slots = rand(3, 3 + 2 * 2, 5), np.array([11, 0, 6])
    reference = poisoned(2, 3, 4, 5), poisoned(2, 3, 4, 5)
    ops.write_kv(*reference, qkv, slots)
    step = Instruction("write_kv", ("keys.0", "values.0", "qkv", "slots"))
    arrays = {"keys.0": keys, "values.0": values, "qkv": qkv}
    native_tiny.run(pool, step, arrays, tokens=3, slots=slots, block_size=4, num_blocks=3)
    np.testing.assert_array_equal(keys, reference[0].swapaxes(2, 3))
    np.testing.assert_array_equal(values, reference[1])


ROWS = {
    "decoding": [(0, 1), (4, 1), (63, 1), (700, 1)],
    "whole prompts": [(0, 1), (0, 150)],
    "chunks with history": [(3, 9), (250, 20), (61, 70)],
    "mixed": [(256, 1), (0, 6), (7, 1), (515, 5)],
}


@covers("paged_attention")
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("size", [8, 16, 32])
@pytest.mark.parametrize("window", [None, 1, 40, 300])
@pytest.mark.parametrize(("heads", "dim", "softcap"), [(6, 5, None), (6, 64, 2.0), (2, 80, None)])
def test_paged_attention(
    pool: Pool, rows: list[tuple[int, int]], size: int, window: int | None, heads: int, dim: int, softcap: float | None
) -> None:
    """Blocks in any order, over a cache of NaN."""
    rng, kv_heads = np.random.default_rng(5), 2
    needed = [-(-(start + count) // size) for start, count in rows]
    tables = np.split(rng.permutation(sum(needed) + 3), np.cumsum(needed))[: len(rows)]
    blocks = sum(needed) + 3
    keys, values = poisoned(kv_heads, blocks, size, dim), poisoned(kv_heads, blocks, size, dim)
    spans, first = [], 0
    for index, ((start, count), table) in enumerate(zip(rows, tables, strict=True)):
        at = np.arange(start + count)
        keys[:, table[at // size], at % size] = rng.standard_normal((kv_heads, len(at), dim))
        values[:, table[at // size], at % size] = rng.standard_normal((kv_heads, len(at), dim))
        spans.append(Span(index, first, start, count, False, table))
        first += count
    qkv, out, expected = (
        rand(first, heads + 2 * kv_heads, dim),
        poisoned(first, heads, dim),
        poisoned(first, heads, dim),
    )
    options = {"scale": 0.3, "window": window, "softcap": softcap}
    plan = AttentionPlan(spans, size, heads, poisoned(1, SCORES), TEAM)
    ops.paged_attention(expected, qkv, keys, values, plan, **options)
    arrays = {"out": out, "qkv": qkv, "keys.0": np.ascontiguousarray(keys.swapaxes(2, 3)), "values.0": values}
    step = Instruction("paged_attention", ("out", "qkv", "keys.0", "values.0", "plan"), options)
    native_tiny.run(pool, step, arrays, tokens=first, spans=spans, block_size=size, num_blocks=blocks)
    close(out, expected, 1e-5)


@covers("gated")
@pytest.mark.parametrize("act", sorted(ops.ACTIVATIONS))
def test_gated(pool: Pool, act: str) -> None:
    gate = np.concatenate((np.linspace(-9, 9, 1501), [-1e30, -87.0, -30.0, 30.0, 87.0, 0.0])).astype(np.float32)[None]
    up, out = rand(*gate.shape), poisoned(*gate.shape)
    step = Instruction("gated", ("wide", "gate_up"), {"act": act})
    native_tiny.run(pool, step, {"wide": out, "gate_up": np.concatenate((gate, up), axis=1)}, tokens=1)
    exact = np.array([cpu_tiny.activate(float(g), act) if abs(g) < 700 else 0.0 for g in gate[0]])
    close(out[0], exact * up[0])


@covers("softcap")
def test_softcap(pool: Pool) -> None:
    x = (rand(3, 700) * 20).astype(np.float32)
    x[0, :8] = [0, 1e-7, -1e-3, 0.74, 0.76, 1e9, -1e9, np.nan]
    expected = 3.0 * np.tanh(x.astype(np.float64) / 3.0)
    native_tiny.run(pool, Instruction("softcap", ("x",), {"cap": 3.0}), {"x": x}, tokens=3)
    close(x, expected, 1e-6)


def test_nan_goes_through(pool: Pool) -> None:
    for act in ops.ACTIVATIONS:
        out = np.zeros((1, 1), np.float32)
        arrays = {"wide": out, "gate_up": np.array([[np.nan, 1.0]], np.float32)}
        native_tiny.run(pool, Instruction("gated", ("wide", "gate_up"), {"act": act}), arrays, tokens=1)
        assert np.isnan(out).all()


@pytest.mark.parametrize("width", [1, 15, 16, 61, 49152, 50001])
def test_scan(pool: Pool, width: int) -> None:
    """The first of the largest; a row with one number that is not finite is found wherever that is."""
    x = rand(6, width)
    x[1, width // 2 :] = x[1].max() + 1
    x[2, -1] = np.inf
    x[3, width // 2] = np.nan
    x[4, 0] = -np.inf
    finite, best = pool.scan(x)
    assert finite.tolist() == [True, True, False, False, False, True]
    for row in (0, 1, 5):
        assert best[row] == x[row].argmax()


def test_every_op_is_tested() -> None:
    assert set(ops.OPS) == TESTED

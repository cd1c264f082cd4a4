"""The native ops of encoders against their NumPy references, for every instruction set, into outputs full of NaN."""

from __future__ import annotations

import cpu_tiny
import native_tiny
import numpy as np
import pytest
from cpu_tiny import poisoned, rand
from test_cpu_encoder_ops import make_plan

from octavo.backends.cpu import ops
from octavo.backends.cpu.native import Pool
from octavo.backends.cpu.packed import Packed
from octavo.backends.cpu.program import Instruction

pytestmark = pytest.mark.timeout(1200)  # the first use of a place compiles the kernels for it


@pytest.mark.parametrize(("ids", "offset"), [("positions", 2), ("types", 0)])
def test_embed_of_positions_and_types(pool: Pool, ids: str, offset: int) -> None:
    weight, places, out = rand(19, 5), [16, 0, 3, 3], poisoned(4, 5)
    packed = Packed({}, {"w": native_tiny.pack(pool, weight)})
    step = Instruction("embed", ("x", ids, "w"), {"scale": 1.0, "offset": offset})
    given = {"ids": [9, 9, 9, 9], ids: places}
    native_tiny.run(pool, step, {"x": out}, packed=packed, tokens=4, **given)
    np.testing.assert_array_equal(out, weight[np.array(places) + offset])


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (3, 33), (19, 80)])
def test_layer_norm(pool: Pool, shape: tuple[int, int], in_place: bool) -> None:
    x, delta = rand(*shape) + 3, rand(*shape, seed=1)
    vectors = {"w": rand(shape[1], seed=2), "b": rand(shape[1], seed=3)}
    total, expected = x.copy(), poisoned(*shape)
    ops.layer_norm(expected, total, vectors["w"], vectors["b"], delta, eps=1e-6)
    arrays = {"x": x, "delta": delta, "out": x if in_place else poisoned(*shape)}
    step = Instruction("layer_norm", ("out", "x", "w", "b", "delta"), {"eps": 1e-6})
    native_tiny.run(pool, step, arrays, packed=Packed(vectors, {}), tokens=shape[0])
    np.testing.assert_allclose(arrays["out"], expected, rtol=1e-5, atol=1e-5)
    if not in_place:
        np.testing.assert_allclose(x, total, rtol=1e-6)


@pytest.mark.parametrize("act", sorted(ops.ACTIVATIONS))
def test_activate(pool: Pool, act: str) -> None:
    x = np.concatenate((np.linspace(-9, 9, 301), [-1e30, -87.0, -30.0, 30.0, 87.0, 0.0])).astype(np.float32)
    x, out = np.stack((x, x[::-1])), poisoned(2, 307)
    native_tiny.run(pool, Instruction("activate", ("out", "x"), {"act": act}), {"x": x, "out": out}, tokens=2)
    exact = np.array([[cpu_tiny.activate(float(v), act) if abs(v) < 700 else 0.0 for v in row] for row in x])
    np.testing.assert_allclose(out, exact, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("window", [None, 1, 3, 32, 70])
@pytest.mark.parametrize("counts", [[1], [150], [5, 33, 1, 64]])
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(1, 1, 1), (4, 4, 32), (6, 2, 5), (2, 1, 80)])
def test_span_attention(pool: Pool, counts: list[int], heads: int, kv_heads: int, dim: int, window: int | None) -> None:
    tokens = sum(counts)
    qkv, out, expected = (
        rand(tokens, heads + 2 * kv_heads, dim),
        poisoned(tokens, heads, dim),
        poisoned(tokens, heads, dim),
    )
    plan = make_plan(counts, heads)
    options = {"scale": 0.3, "window": window}
    ops.span_attention(expected, qkv, plan, **options)
    step = Instruction("span_attention", ("out", "qkv", "plan"), options)
    native_tiny.run(pool, step, {"out": out, "qkv": qkv}, tokens=tokens, spans=plan.spans)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)


def test_a_nan_stays_in_its_span(pool: Pool) -> None:
    counts = [5, 4, 6]
    qkv, out = rand(15, 6, 4), poisoned(15, 2, 4)
    qkv[6] = np.nan
    step = Instruction("span_attention", ("out", "qkv", "plan"), {"scale": 1.0, "window": None})
    native_tiny.run(pool, step, {"out": out, "qkv": qkv}, tokens=15, spans=make_plan(counts, 2).spans)
    assert np.isnan(out[5:9]).all()
    assert np.isfinite(np.delete(out, slice(5, 9), axis=0)).all()

"""Each native op against its NumPy reference, for every instruction set, at odd shapes, into outputs full of NaN."""

from __future__ import annotations

from collections.abc import Callable

import cpu_tiny
import native_tiny
import numpy as np
import pytest
from cpu_tiny import poisoned, rand

from octavo.backends.cpu import ops
from octavo.backends.cpu.attention import SCORES, AttentionPlan
from octavo.backends.cpu.cache import CELLS, Cells, decode, encode
from octavo.backends.cpu.lower import JOINED
from octavo.backends.cpu.native import Pool
from octavo.backends.cpu.packed import Matrix, Packed
from octavo.backends.cpu.program import Instruction
from octavo.backends.cpu.rows import Span
from octavo.backends.cpu.team import Team

pytestmark = pytest.mark.timeout(1200)  # the first use of a place compiles the kernels for it
TESTED = {"experts", "add_gated"}  # by test_cpu_experts.py
TESTED |= {"layer_norm", "activate", "span_attention"}  # by test_cpu_native_encoder_ops.py
TEAM = Team(1)
SHAPES = [(1, 1), (1, 7), (3, 33), (19, 80)]


def covers(name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    TESTED.add(name)
    return lambda test: test


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


def run_head(
    pool: Pool, weight: np.ndarray, x: np.ndarray, *, best_only: bool = False, **options: float | None
) -> tuple[np.ndarray, ...]:
    """(logits, finite, best), computed in pieces by two threads."""
    rows = len(x)
    out, finite, best = poisoned(rows, len(weight)), np.full(rows, 7, np.uint8), np.full(rows, -7)
    step, packed = (
        Instruction("head", ("logits", "last", "w"), options),
        Packed({}, {"w": native_tiny.pack(pool, weight)}),
    )
    given = {"tails": np.arange(rows), "tails_finite": finite, "best": best, "best_only": best_only}
    native_tiny.run(pool, step, {"logits": out, "last": x}, packed=packed, tokens=rows, **given)
    return out, finite, best


@covers("head")
@covers("scan")
@pytest.mark.parametrize("rows", [3, 100])
@pytest.mark.parametrize("vocab", [1, 15, 61, 2001])
@pytest.mark.parametrize(("scale", "softcap"), [(1.0, None), (0.25, None), (-1.5, 3.0)])
def test_head(pool: Pool, vocab: int, scale: float, softcap: float | None, rows: int) -> None:
    """With 100 rows, few columns are near at a time."""
    weight, x, expected = rand(vocab, 8), rand(rows, 8, seed=1), poisoned(rows, vocab)
    weight[vocab // 2 :] = weight[: vocab - vocab // 2]  # the largest is there twice, far apart
    out, finite, best = run_head(pool, weight, x, scale=scale, softcap=softcap)
    ops.head(expected, x, weight.T, scale=scale, softcap=softcap)
    close(out, expected, 1e-5)
    assert finite.tolist() == [1] * rows
    assert best.tolist() == [row.tolist().index(row.max()) for row in out]
    unwritten, *alone = run_head(pool, weight, x, scale=scale, softcap=softcap, best_only=True)
    assert np.isnan(unwritten).all()
    np.testing.assert_array_equal(alone, [finite, best])


@pytest.mark.parametrize("best_only", [False, True])
@pytest.mark.parametrize("at", [0, 1000, 2000])
def test_head_finds_what_is_not_finite(pool: Pool, at: int, best_only: bool) -> None:
    weight, x = rand(2001, 8), rand(5, 8, seed=1)
    weight[:, 0] = 0
    weight[at, 0] = 1e30
    x[:, 0] = [1, 1e30, -1e30, np.nan, 0]
    finite = run_head(pool, weight, x, best_only=best_only, scale=1.0, softcap=None)[1]
    assert finite.tolist() == [1, 0, 0, 0, 1]


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


def paired(array: np.ndarray, axis: int) -> np.ndarray:
    """Neighbours along an axis as pairs, a new last axis; beside a written one, what is not written is zero."""
    missing = np.full_like(array.take([0], axis), cpu_tiny.POISON)
    even = array if array.shape[axis] % 2 == 0 else np.concatenate((array, missing), axis)
    first, second = (even.take(range(start, even.shape[axis], 2), axis) for start in (0, 1))
    written, other = ((half != cpu_tiny.POISON).any(axis=-1, keepdims=True) for half in (first, second))
    return np.stack((first, np.where(written & ~other, 0, second)), axis=-1)


def turned(keys: Cells, values: Cells) -> dict[str, Cells]:
    """Keys and values as NumPy has them, as the kernels do: see csrc/program.h."""
    if keys.data.dtype != np.uint16:
        made = keys.data.swapaxes(2, 3), values.data
    else:
        in_dims = keys.data[..., None]  # so that what is written is told for each number
        made = paired(in_dims, 3)[:, :, :, :, 0].swapaxes(2, 3), paired(values.data, 2)
    return {
        name: Cells(np.ascontiguousarray(array), cells.scales)
        for name, array, cells in zip(("keys.0", "values.0"), made, (keys, values), strict=True)
    }


@covers("write_kv")
@pytest.mark.parametrize("dtype", cpu_tiny.KV_DTYPES)
@pytest.mark.parametrize("dim", [5, 64, 80])
def test_write_kv(pool: Pool, dtype: str, dim: int) -> None:
    """The same bits, of halves between numbers, of zeros, of the smallest and the largest, of what is not finite."""
    qkv, slots = rand(9, 3 + 2 * 2, dim), np.array([11, 0, 1, 2, 8, 9, 4, 5, 6])
    qkv[1] = 0
    qkv[2] = 1e-42
    qkv[3, :, 0] = np.nan
    qkv[4, :, -1] = -np.inf
    qkv[5] = 3e38
    qkv[6, :, :4] = np.array([0x3F808000, 0x3F818000, 0x3F80FFFF, 0x3F808001], np.uint32).view(np.float32)
    qkv[7, :, :4] = [127, 0.5, 1.5, -2.5]
    made = [cpu_tiny.cells(dtype, 2, 3, 4, dim, block_size=4) for _ in range(4)]
    with np.errstate(all="ignore"):
        ops.write_kv(made[0], made[1], qkv, slots)
    caches, expected = turned(*made[2:]), turned(*made[:2])
    step = Instruction("write_kv", ("keys.0", "values.0", "qkv", "slots"))
    native_tiny.run(pool, step, {"qkv": qkv}, caches=caches, tokens=9, slots=slots, block_size=4, num_blocks=3)
    for name, found in caches.items():
        for one, other in zip(found.arrays, expected[name].arrays, strict=True):
            np.testing.assert_array_equal(one, other)


ROWS = {
    "decoding": [(0, 1), (4, 1), (63, 1), (700, 1)],
    "whole prompts": [(0, 1), (0, 150)],
    "chunks with history": [(3, 9), (250, 20), (61, 70)],
    "mixed": [(256, 1), (0, 6), (7, 1), (515, 5)],
}


SIZES = [(8, "float32"), (16, "float32"), (32, "float32"), (16, "bfloat16"), (8, "int8_per_token_head")]
SIZES += [(32, "int8_per_token_head")]


@covers("paged_attention")
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize(("size", "dtype"), SIZES)
@pytest.mark.parametrize("window", [None, 1, 40, 300])
@pytest.mark.parametrize(("heads", "dim", "softcap"), [(6, 5, None), (6, 64, 2.0), (2, 80, None), (14, 64, None)])
def test_paged_attention(
    pool: Pool,
    rows: list[tuple[int, int]],
    size: int,
    dtype: str,
    window: int | None,
    heads: int,
    dim: int,
    softcap: float | None,
) -> None:
    """Blocks in any order, over a poisoned cache."""
    rng, kv_heads = np.random.default_rng(5), 2
    needed = [-(-(start + count) // size) for start, count in rows]
    tables = np.split(rng.permutation(sum(needed) + 3), np.cumsum(needed))[: len(rows)]
    blocks = sum(needed) + 3
    keys, values = (cpu_tiny.cells(dtype, kv_heads, blocks, size, dim, block_size=size) for _ in range(2))
    spans, first = [], 0
    for index, ((start, count), table) in enumerate(zip(rows, tables, strict=True)):
        at = np.arange(start + count)
        kv = rng.standard_normal((len(at), 2 * kv_heads, dim)).astype(np.float32)
        ops.write_kv(keys, values, kv, table[at // size] * size + at % size)
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
    caches = turned(keys, values)
    step = Instruction("paged_attention", ("out", "qkv", "keys.0", "values.0", "plan"), options)
    given = {"spans": spans, "block_size": size, "num_blocks": blocks}
    native_tiny.run(pool, step, {"out": out, "qkv": qkv}, caches=caches, tokens=first, **given)
    if dtype != "bfloat16":
        close(out, expected, 1e-5)
        return
    # Queries are rounded, which the reference can do, and each key's share, by 2**-8 at most.
    rounded, _ = encode(qkv[:, :heads] * np.float32(options["scale"]), CELLS[dtype])
    qkv[:, :heads], options["scale"] = decode(rounded, None), 1.0
    ops.paged_attention(expected, qkv, keys, values, plan, **options)
    largest = poisoned(first, heads, dim)
    ops.paged_attention(largest, qkv, keys, Cells(values.data & 0x7FFF), plan, **options)
    assert (np.abs(out - expected) <= 2.0**-8 * largest + 1e-5).all()


@covers("gated")
@pytest.mark.parametrize("act", sorted(ops.ACTIVATIONS))
def test_gated(pool: Pool, act: str) -> None:
    gate = np.concatenate((np.linspace(-9, 9, 1501), [-1e30, -87.0, -30.0, 30.0, 87.0, 0.0])).astype(np.float32)[None]
    up, out = rand(*gate.shape), poisoned(*gate.shape)
    step = Instruction("gated", ("wide", "gate_up"), {"act": act})
    native_tiny.run(pool, step, {"wide": out, "gate_up": np.concatenate((gate, up), axis=1)}, tokens=1)
    exact = np.array([cpu_tiny.activate(float(g), act) if abs(g) < 700 else 0.0 for g in gate[0]])
    close(out[0], exact * up[0])


def q8_0(pool: Pool, n: int, k: int, seed: int) -> Matrix:
    """Random codes, blocks of 32 behind a float16 scale each."""
    blocks = np.random.default_rng(seed).integers(0, 256, (n * k // 32, 34), np.uint8)
    blocks[:, :2] = np.full(1, 0.01, "<f2").view(np.uint8)
    return Matrix("Q8_0", n, k, pool.pack("Q8_0", memoryview(blocks.reshape(-1)), n=n, k=k))


def bf16(pool: Pool, n: int, k: int, seed: int, *, short: bool) -> Matrix:
    """Random bfloat16, in 12 bits a weight or in 16."""
    words = (rand(n, k, seed=seed).view(np.uint32) >> 16).astype(np.uint16)
    stored = memoryview(words).cast("B")
    packed = pool.pack_short(stored, n=n, k=k) if short else pool.pack("BF16", stored, n=n, k=k)
    assert packed is not None
    return Matrix("BF16_SHORT" if short else "BF16", n, k, packed)


@pytest.mark.parametrize("forms", ["b", "s", "bs", "sbs"])
@pytest.mark.parametrize("tokens", [1, 5, 33])
def test_linear_of_short_and_plain_bfloat16(pool: Pool, forms: str, tokens: int) -> None:
    """One pack may have both: they read the same activations, and give the same bits."""
    x, found = rand(tokens, 70), []
    for shorten in (False, True):
        made = [bf16(pool, 33, 70, i, short=shorten and form == "s") for i, form in enumerate(forms)]
        out = poisoned(tokens, 33 * len(forms))
        step = Instruction("linear", ("out", "x", "w", None))
        native_tiny.run(pool, step, {"x": x, "out": out}, packed=Packed({}, {"w": tuple(made)}), tokens=tokens)
        found.append(out)
    assert np.isfinite(found[0]).all()
    np.testing.assert_array_equal(found[1].view(np.uint32), found[0].view(np.uint32))


@pytest.mark.parametrize("act", sorted(ops.ACTIVATIONS))
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(
    ("tokens", "width", "forms"),
    [(1, 130, "88"), (3, 3, "ff"), (17, 48, "8f"), (70, 33, "88"), (65, 17, "ff"), (70, 33, "ss"), (70, 48, "sb")],
)
def test_gate_and_up_in_one_product(pool: Pool, act: str, with_bias: bool, tokens: int, width: int, forms: str) -> None:
    """As precise as the two steps apart, and of the same bits; for few tokens it is those."""
    k, weights = 64, [rand(width, 64, seed=seed) for seed in (1, 2)]
    pair = [
        q8_0(pool, width, k, i)
        if form == "8"
        else bf16(pool, width, k, i, short=form == "s")
        if form in "bs"
        else native_tiny.pack(pool, weights[i])[0]
        for i, form in enumerate(forms)
    ]
    bias = rand(2 * width, seed=9) if with_bias else None
    packed = Packed({} if bias is None else {"b": bias}, {"w": tuple(pair)})
    x, out, apart, both = rand(tokens, k), *(poisoned(tokens, w) for w in (width, width, 2 * width))
    linear = Instruction("linear", ("gate_up", "x", "w", None if bias is None else "b"))
    gated = Instruction("gated", ("wide", "gate_up"), {"act": act})
    native_tiny.run(pool, linear, {"x": x, "gate_up": both}, packed=packed, tokens=tokens)
    native_tiny.run(pool, gated, {"gate_up": both, "wide": apart}, tokens=tokens)
    unused = poisoned(min(tokens, JOINED), 2 * width)
    native_tiny.run(pool, (linear, gated), {"x": x, "gate_up": unused, "wide": out}, packed=packed, tokens=tokens)
    assert np.isnan(unused).all() == (tokens >= JOINED)
    np.testing.assert_array_equal(out.view(np.uint32), apart.view(np.uint32))
    if forms == "ff":
        gate, up = (x.astype(np.float64) @ w.T.astype(np.float64) for w in weights)
        if bias is not None:
            gate, up = gate + bias[:width], up + bias[width:]
        exact = np.vectorize(lambda g: cpu_tiny.activate(float(g), act))(gate) * up
        assert np.abs(out - exact).max() < 1e-4 * np.abs(exact).max()


def test_nan_goes_through(pool: Pool) -> None:
    for act in ops.ACTIVATIONS:
        out = np.zeros((1, 1), np.float32)
        arrays = {"wide": out, "gate_up": np.array([[np.nan, 1.0]], np.float32)}
        native_tiny.run(pool, Instruction("gated", ("wide", "gate_up"), {"act": act}), arrays, tokens=1)
        assert np.isnan(out).all()


@covers("check")
@pytest.mark.parametrize("width", [1, 15, 16, 61])
def test_check(pool: Pool, width: int) -> None:
    """A row with one number that is not finite is found wherever that is."""
    x = rand(40, width)
    x[1, -1], x[2, width // 2], x[3, 0] = np.inf, np.nan, -np.inf
    finite = np.full(40, 7, np.uint8)
    native_tiny.run(pool, Instruction("check", ("finite", "x")), {"x": x}, tokens=40, finite=finite)
    assert finite.tolist() == [1, 0, 0, 0, *[1] * 36]


@covers("gather")
def test_gather(pool: Pool) -> None:
    x, last, tails = rand(5, 7), poisoned(4, 7), [4, 0, 2, 2]
    step = Instruction("gather", ("last", "x", "tails"))
    native_tiny.run(pool, step, {"x": x, "last": last}, tokens=5, tails=tails)
    np.testing.assert_array_equal(last, x[tails])


def test_every_op_is_tested() -> None:
    assert set(ops.OPS) == TESTED

"""The native products: every scheme in every variant that this processor runs, against NumPy on dequantized weights."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest
from native_calls import NAMES, Native, check_guards, guarded, kernels
from native_remote import VARIANTS

from octavo.base.types.tensor import SCHEMES, StoredTensor
from octavo.quant import dequantize

pytestmark = pytest.mark.timeout(1200)  # the first use of a place compiles the kernels for it
DENSE = ("F32", "F16", "BF16", "BF16_SHORT")
QUANTIZED = [name for name in NAMES if name not in DENSE]
# Byte offsets of the float16 factors of a block, and whether the second is a minimum with a sign.
FACTORS = {
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q8_0": (0,),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "IQ4_NL": (0,),
}
OUTLIER = 3.5
"""kOutlier of matmul_formats.h."""


def stored_scheme(name: str) -> str:
    return "BF16" if name == "BF16_SHORT" else name


def stored_weights(name: str, n: int, k: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Random stored bytes, a tenth of the blocks with a scale of zero, and the float32 [n, k] that they stand for."""
    rng, scheme = np.random.default_rng(seed), SCHEMES[stored_scheme(name)]
    if name in DENSE:
        values = rng.standard_normal((n, k)).astype(np.float32)
        words = {
            "F32": values,
            "F16": values.astype(np.float16),
            "BF16": (values.view(np.uint32) >> 16).astype(np.uint16),
        }
        raw = words[scheme.name].view(np.uint8).reshape(-1)
    else:
        blocks = rng.integers(0, 256, (n * k // scheme.group, scheme.group_bytes), dtype=np.uint8)
        for place, offset in enumerate(FACTORS[name]):
            factor = rng.uniform(-0.02, 0.02, len(blocks)).astype(np.float16) * (8 if place else 1)
            factor[rng.random(len(blocks)) < 0.1] = 0
            blocks[:, offset : offset + 2] = factor.astype("<f2")[:, None].view(np.uint8)
        raw = blocks.reshape(-1)
    return raw, dequantize(StoredTensor("w", scheme, (n, k), memoryview(raw.tobytes())))


def activations(m: int, k: int, seed: int = 1) -> np.ndarray:
    """float32 [m, k], rows 3 apart from each other, with outliers, a zero group and a tiny one."""
    rng = np.random.default_rng(seed)
    wide = rng.standard_normal((m, k + 3)).astype(np.float32)
    wide *= np.where(rng.random(wide.shape) < 0.02, 20, 1).astype(np.float32)
    wide[m // 2, : min(k, 32)] = 0
    wide[0, : min(k, 32)] *= np.float32(1e-40) if k > 32 else np.float32(1)
    return wide[:, :k]


def rounded_activations(name: str, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the kernels multiply, float64 [m, k], and the bound of its distance to x."""
    if name in ("F32", "F16"):
        return x.astype(np.float64), np.zeros(x.shape)
    if stored_scheme(name) == "BF16":
        bits = np.ascontiguousarray(x).view(np.uint32)
        rounded = (
            ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32).astype(np.float64)
        )
        return rounded, np.abs(x) * 2.0**-8
    groups = np.ascontiguousarray(x).reshape(len(x), -1, 32)
    low, high = groups.min(axis=2, keepdims=True), groups.max(axis=2, keepdims=True)
    end = np.float32(OUTLIER * np.sqrt((x.astype(np.float64) ** 2).mean(axis=1)))[:, None, None]
    half = np.float32(0.5)
    outliers = (high * half - low * half > end) & (np.abs(groups) > end)
    low = np.where(outliers, np.inf, groups).min(axis=2, keepdims=True).astype(np.float32)
    high = np.where(outliers, -np.inf, groups).max(axis=2, keepdims=True).astype(np.float32)
    low, high = (np.where(low > high, np.float32(0), side) for side in (low, high))
    centre, step = high * half + low * half, (high * half - low * half) * (np.float32(2) / np.float32(254))
    scale = np.where(step < np.float32(2.0**-118), np.float32(0), step)
    inverse = np.where(scale > 0, np.float32(1) / np.where(scale > 0, scale, np.float32(1)), np.float32(0))
    codes = np.clip(np.rint((groups - centre) * inverse), -127, 127).astype(np.float64)
    rounded = np.where(outliers, groups, codes * scale + centre)
    bound = np.where(outliers, 0, scale.astype(np.float64) * 0.502) + 2.0**-117 + np.abs(centre) * 2.0**-23
    return rounded.reshape(x.shape), bound.reshape(x.shape)


SHAPES = [(1, 16, 1), (2, 17, 2), (5, 33, 3), (16, 31, 1), (19, 50, 2), (33, 80, 5)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_product_is_the_numpy_product(native: Native, name: str, shape: tuple[int, int, int]) -> None:
    m, n, groups = shape
    k = groups * 17 if name in DENSE else groups * SCHEMES[name].group
    raw, weights = stored_weights(name, n, k, seed=groups)
    x, wide = activations(m, k), weights.astype(np.float64)
    bias = np.random.default_rng(5).standard_normal(n).astype(np.float32)
    packed = native.pack(name, raw, n, k)
    got = native.matmul(name, packed, x, n, bias=bias)
    exact, bound = rounded_activations(name, x)
    expected = exact @ wide.T + bias
    # What is added to scaled codes, a minimum or a centre, may cancel them, but not the rounding of their sums.
    width = 1 if name in DENSE else 32
    largest, widest = (np.abs(side).reshape(len(side), -1, width).max(axis=2) for side in (wide, exact))
    size = widest @ largest.T * width + np.abs(bias) + 1e-30
    assert (np.abs(got - expected) / size).max() < 1e-6
    assert (np.abs(got - (x.astype(np.float64) @ wide.T + bias)) <= bound @ np.abs(wide).T + 1e-6 * size).all()
    plain = native.matmul(name, packed, x, n)
    assert np.abs(plain + bias - got).max() <= 1e-6 * size.max()


@pytest.mark.parametrize("name", NAMES)
def test_a_row_does_not_depend_on_the_batch(native: Native, name: str) -> None:
    n, k = 83, 100 if name in DENSE else 3 * SCHEMES[name].group
    raw, _ = stored_weights(name, n, k)
    packed = native.pack(name, raw, n, k)
    x = activations(64, k)
    whole = native.matmul(name, packed, x, n).view(np.uint32)
    for m in native.rows:
        np.testing.assert_array_equal(native.matmul(name, packed, x[:m], n).view(np.uint32), whole[:m])
        np.testing.assert_array_equal(native.matmul(name, packed, x[64 - m :], n).view(np.uint32), whole[64 - m :])
    for m in (1, 3, 8, 64):
        split = native.matmul(name, packed, x[:m], n, cuts=(16, 48, 64, 69, 70))
        np.testing.assert_array_equal(split.view(np.uint32), whole[:m])


@pytest.mark.parametrize("name", QUANTIZED)
def test_an_outlier_costs_its_neighbours_nothing(native: Native, name: str) -> None:
    """Rows of small elements and a few huge ones: each is multiplied exactly, the others as if it were not there."""
    n, k = 40, 2 * SCHEMES[name].group
    raw, weights = stored_weights(name, n, k)
    packed = native.pack(name, raw, n, k)
    x = np.random.default_rng(3).standard_normal((50, k)).astype(np.float32)
    at = np.arange(50)
    x[at, at % 32] = 300
    x[at[::2], (at[::2] + 7) % 32] = -300
    got = native.matmul(name, packed, x, n)
    wide = np.abs(weights.astype(np.float64))
    lost = np.abs(got - x.astype(np.float64) @ weights.T.astype(np.float64))
    assert (lost <= 0.502 * 8 / 254 * wide.sum(axis=1) + 1e-6 * 600 * wide.max(axis=1)).all()


@pytest.mark.parametrize("name", ["Q4_1", "BF16", "BF16_SHORT", "F32"])
def test_chunks_of_many_rows_change_nothing(native: Native, name: str) -> None:
    """More activations than one pass keeps in cache."""
    n, k, m = 16, 2048, 304
    raw, _ = stored_weights(name, n, k)
    packed = native.pack(name, raw, n, k)
    x = activations(m, k)
    whole = native.matmul(name, packed, x, n).view(np.uint32)
    for row in (0, 15, 16, 47, 48, 127, 128, 303):
        np.testing.assert_array_equal(
            native.matmul(name, packed, x[row : row + 1], n).view(np.uint32), whole[row : row + 1]
        )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_row_that_is_not_finite_fails_alone(native: Native, name: str, value: float) -> None:
    n, k = 20, 64 if name in DENSE else 2 * SCHEMES[name].group
    raw, _ = stored_weights(name, n, k)
    packed = native.pack(name, raw, n, k)
    x = activations(7, k)
    clean = native.matmul(name, packed, x, n)
    x[3, 5] = value
    got = native.matmul(name, packed, x, n)
    assert not np.isfinite(got[3]).any()
    others = [0, 1, 2, 4, 5, 6]
    np.testing.assert_array_equal(got[others].view(np.uint32), clean[others].view(np.uint32))


@pytest.mark.parametrize("name", NAMES)
def test_packing_in_parts_and_reading_rows_back(library: Native, name: str) -> None:
    n, k = 53, 37 if name in DENSE else 2 * SCHEMES[name].group
    raw, weights = stored_weights(name, n, k)
    packed = library.pack(name, raw, n, k)
    np.testing.assert_array_equal(library.pack(name, raw, n, k, cuts=(16, 48)), packed)
    for row in (0, 1, 15, 16, 52):
        np.testing.assert_array_equal(library.row(name, packed, k, row).view(np.uint32), weights[row].view(np.uint32))


@pytest.mark.parametrize("name", QUANTIZED)
def test_packed_size_stays_close_to_the_stored_one(library: Native, name: str) -> None:
    n, k, scheme = 64, 1024, SCHEMES[name]
    stored = n * k // scheme.group * scheme.group_bytes
    assert stored <= library.lib.oct_packed_bytes(NAMES.index(name), n, k) <= stored * 1.04
    plain, short = (library.lib.oct_packed_bytes(NAMES.index(form), n, k) for form in ("BF16", "BF16_SHORT"))
    assert short <= plain * 0.77


@pytest.mark.parametrize("name", NAMES)
def test_variants_make_the_same_activations(library: Native, name: str) -> None:
    k = 75 if name in DENSE else 2 * SCHEMES[name].group
    x, made = activations(37, k), []
    x[np.abs(x) < np.finfo(np.float32).tiny] = 0  # as bfloat16, such a number may be lost
    for variant in VARIANTS:
        if library.choose(variant):
            made += [library.quantize(name, x), library.quantize(name, x, cuts=(1, 16, 33))]
    library.choose("auto")
    for other in made[1:]:
        np.testing.assert_array_equal(other, made[0])


def test_float16_factors_of_every_kind(native: Native) -> None:
    """Subnormal and greatest scales mean in the product what they mean to NumPy; an infinite or NaN one shows."""
    bits = np.array([0x0001, 0x03FF, 0x0400, 0x7BFF, 0x7C00, 0x7E01, 0x8001, 0xFC00], np.uint16)
    blocks = np.full((8, 34), 1, np.uint8)
    blocks[:, :2] = bits[:, None].view(np.uint8)
    packed = native.pack("Q8_0", blocks, 8, 32)
    got = native.matmul("Q8_0", packed, np.ones((1, 32), np.float32), 8)[0]
    expected = bits.view(np.float16).astype(np.float32) * 32
    finite = np.isfinite(expected)
    np.testing.assert_allclose(got[finite], expected[finite], rtol=1e-6)
    assert not np.isfinite(got[~finite]).any()
    for row in range(8):
        np.testing.assert_array_equal(native.row("Q8_0", packed, 32, row), np.full(32, expected[row] / 32))


class Ahead(ctypes.Structure):
    """oct_ahead of csrc/matmul.h."""


MORE = ctypes.CFUNCTYPE(None, ctypes.POINTER(Ahead))
Ahead._fields_ = [("at", ctypes.c_size_t), ("end", ctypes.c_size_t), ("more", MORE)]


@pytest.mark.parametrize("name", ["Q4_0", "Q6_K", "BF16"])
@pytest.mark.parametrize("rows", [1, 40, 700])
def test_pieces_with_one_act_id_find_outliers_once(name: str, rows: int) -> None:
    """And those of the next id find the outliers that the same memory holds by then."""
    native = kernels("here", lambda _: pytest.skip())
    n, k = 48, 1024
    packed = native.pack(name, stored_weights(name, n, k)[0], n, k)
    rng, act = np.random.default_rng(2), None
    for act_id in (2**40, 2**40 + 1, 2**40 + 2):
        x = rng.standard_normal((rows, k)).astype(np.float32)
        x[rng.random(x.shape) < 0.01] *= 50  # outliers, in other places each time
        if act is None:
            act = native.quantize(name, x)
        else:
            act[:] = native.quantize(name, x)
        made = np.full((rows, n), np.nan, np.float32)
        for begin, end in ((0, 16), (16, 41), (41, n)):
            native.lib.oct_matmul(NAMES.index(name), packed, act, act_id, made, n, rows, k, begin, end, None, None)
        np.testing.assert_array_equal(made, native.matmul(name, packed, x, n))


@pytest.mark.parametrize("name", ["Q4_0", "Q6_K", "BF16", "BF16_SHORT"])
@pytest.mark.parametrize("rows", [1, 7, 32])
def test_what_comes_after_is_asked_for_to_its_end(name: str, rows: int) -> None:
    """By products of many rows, whose results stay what they are; the pieces need not be whole lines."""
    native = kernels("here", lambda _: pytest.skip())
    n, k = 48, 512
    packed = native.pack(name, stored_weights(name, n, k)[0], n, k)
    x = np.random.default_rng(1).standard_normal((rows, k)).astype(np.float32)
    later, pieces = guarded(700, 3), [(0, 300), (300, 301), (301, 700)]
    asked = []

    @MORE
    def more(ahead: Any) -> None:
        if pieces:
            begin, end = pieces.pop(0)
            ahead[0].at, ahead[0].end = later.ctypes.data + begin, later.ctypes.data + end
            asked.append(end)

    ahead = Ahead(0, 0, more)
    act, made = native.quantize(name, x), np.full((rows, n), np.nan, np.float32)
    product = native.lib.oct_matmul
    y = native.matmul(name, packed, x, n)
    product(NAMES.index(name), packed, act, 0, made, n, rows, k, 0, n, None, np.frombuffer(ahead, np.uint8))
    np.testing.assert_array_equal(made, y)
    many = rows == 32 and native.lib.oct_variant() == b"avx512"  # others take too few rows at once
    assert asked == ([300, 301, 700] if many else [])
    check_guards(later)


def test_choosing_a_variant(library: Native) -> None:
    assert library.choose("auto")
    best = library.lib.oct_variant()
    assert best.decode() in VARIANTS
    assert not library.choose("abacus")
    assert library.lib.oct_variant() == best
    assert library.choose("scalar")
    assert library.lib.oct_variant() == b"scalar"
    assert library.choose("auto")
    assert library.lib.oct_packed_bytes(99, 16, 32) == 0

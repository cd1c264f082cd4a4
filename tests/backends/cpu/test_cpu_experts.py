"""The mixture of experts on the cpu backend: its NumPy op against plain loops, the native one against NumPy."""

from __future__ import annotations

from dataclasses import dataclass, replace

import native_tiny
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from octavo.backends.cpu import ops
from octavo.backends.cpu.native import Pool
from octavo.backends.cpu.packed import Matrix, Packed
from octavo.backends.cpu.program import Instruction
from octavo.base.types.tensor import SCHEMES, StoredTensor
from octavo.quant import dequantize


@dataclass
class Mixture:
    """Weights [out, in] of each expert, and the step's inputs."""

    gate: list[np.ndarray]
    up: list[np.ndarray]
    down: list[np.ndarray]
    x: np.ndarray
    router: np.ndarray


def mixture(tokens: int, *, experts: int, hidden: int, width: int, seed: int = 0) -> Mixture:
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32)

    def matrices(n: int, k: int) -> list[np.ndarray]:
        return [normal(n, k) / np.float32(k**0.5) for _ in range(experts)]

    parts = (matrices(width, hidden), matrices(width, hidden), matrices(hidden, width))
    return Mixture(*parts, normal(tokens, hidden), normal(tokens, experts) * 2)


def by_numpy(m: Mixture, options: dict[str, object]) -> np.ndarray:
    gate_up = np.concatenate([a for pair in zip(m.gate, m.up, strict=True) for a in pair]).T
    out = np.full_like(m.x, np.nan)
    ops.experts(out, m.x, m.router, gate_up, np.concatenate(m.down).T, **options)
    return out


def by_loops(m: Mixture, *, act: str, top_k: int, renormalize: bool) -> np.ndarray:
    """In float64, token by token."""
    out = np.zeros(m.x.shape)
    for t, x in enumerate(m.x.astype(np.float64)):
        p = np.exp(m.router[t].astype(np.float64))
        p /= p.sum()
        chosen = sorted(range(len(p)), key=lambda e: (-p[e], e))[:top_k]
        for e in chosen:
            wide = np.empty((1, len(m.gate[e])), np.float32)
            ops.gated(wide, np.concatenate((m.gate[e] @ x, m.up[e] @ x)).astype(np.float32)[None], act=act)
            out[t] += p[e] / (p[chosen].sum() if renormalize else 1) * (m.down[e] @ wide[0])
    return out


def by_native(pool: Pool, m: Mixture, options: dict[str, object], *, schemes: str = "F32") -> np.ndarray:
    """schemes: of gate, up and down, or one for all. Weights in `m` become what the scheme can say."""
    kinds = schemes.split() * (3 if " " not in schemes else 1)
    packs: dict[str, list[Matrix]] = {"gate_up": [], "down": []}
    for e in range(len(m.gate)):
        for part, name, kind in zip((m.gate, m.up, m.down), ("gate_up", "gate_up", "down"), kinds, strict=True):
            packs[name].append(pack(pool, part, e, kind))
    out = np.full(m.x.shape, np.nan, np.float32)
    arrays = {"y": out, "h": m.x, "router": m.router}
    step = Instruction("experts", ("y", "h", "router", "gate_up", "down"), options)
    packed = Packed({}, {name: tuple(matrices) for name, matrices in packs.items()})
    native_tiny.run(pool, step, arrays, packed=packed, tokens=len(m.x))
    return out


def pack(pool: Pool, part: list[np.ndarray], e: int, kind: str) -> Matrix:
    from gguf import GGMLQuantizationType, quants

    n, k = part[e].shape
    stored = kind.removesuffix("_SHORT")
    raw = quants.quantize(part[e], GGMLQuantizationType[stored]).tobytes()
    part[e] = dequantize(StoredTensor("w", SCHEMES[stored], (n, k), memoryview(raw)))
    short = pool.pack_short(memoryview(raw), n=n, k=k) if kind == "BF16_SHORT" else None
    return Matrix(kind, n, k, pool.pack(kind, memoryview(raw), n=n, k=k) if short is None else short)


@pytest.fixture(params=[1, 3])
def pool(request: pytest.FixtureRequest):
    with native_tiny.here(request.param) as made:
        yield made


@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize("act", list(ops.ACTIVATIONS))
def test_numpy_is_what_the_word_says(act: str, renormalize: bool) -> None:
    m = mixture(9, experts=5, hidden=12, width=7)
    options = {"act": act, "top_k": 2, "renormalize": renormalize}
    assert_allclose(by_numpy(m, options), by_loops(m, **options), atol=1e-5)


def test_equal_logits_choose_the_first() -> None:
    router = np.array([[1, 3, 3, 0, 3], [0, 0, 0, 0, 0]], np.float32)
    chosen, shares = ops.route(router, top_k=2, renormalize=True)
    assert chosen.tolist() == [[1, 2], [0, 1]]
    assert_allclose(shares, 0.5)


@pytest.mark.parametrize("variant", native_tiny.VARIANTS)
@pytest.mark.parametrize(
    ("tokens", "experts", "top_k", "hidden", "width"),
    [(1, 4, 1, 5, 3), (1, 8, 8, 48, 33), (7, 3, 2, 17, 130), (110, 2, 1, 40, 20), (150, 60, 5, 100, 70)],
)
def test_native_is_numpy(
    pool: Pool, variant: str, tokens: int, experts: int, top_k: int, hidden: int, width: int
) -> None:
    """Chunks that are full, cut and alone; experts without rows; sizes that fill no panel."""
    with native_tiny.variant(variant):
        m = mixture(tokens, experts=experts, hidden=hidden, width=width)
        m.router[:, 0] -= 50  # nobody's choice, unless it must be
        m.router[0, 1:] = 0.25
        for renormalize, act in ((True, "silu"), (False, "gelu_tanh")):
            options = {"act": act, "top_k": top_k, "renormalize": renormalize}
            assert_allclose(by_native(pool, m, options), by_numpy(m, options), atol=2e-5)


@pytest.mark.parametrize(
    "schemes", ["BF16", "Q8_0", "Q4_0", "Q4_0 Q8_0 BF16", "BF16 F32 Q4_0", "BF16 BF16_SHORT BF16_SHORT"]
)
def test_stored_formats(pool: Pool, schemes: str) -> None:
    """gate, up and down of one expert may be stored in different formats. Activations are rounded, to int8 at worst."""
    m = mixture(40, experts=6, hidden=64, width=96)
    options = {"act": "silu", "top_k": 3, "renormalize": True}
    off = by_native(pool, m, options, schemes=schemes) - by_numpy(m, options)
    assert np.sqrt(np.mean(off**2)) < 0.02


@pytest.mark.parametrize("schemes", ["F32", "BF16", "BF16_SHORT", "Q4_0"])
def test_a_token_does_not_depend_on_its_neighbours(pool: Pool, schemes: str) -> None:
    m = mixture(96, experts=6, hidden=64, width=96)
    options = {"act": "silu", "top_k": 3, "renormalize": True}
    whole = by_native(pool, m, options, schemes=schemes)
    for rows in (slice(0, 1), slice(37, 38), slice(20, 53), slice(5, 96)):
        some = replace(m, x=np.ascontiguousarray(m.x[rows]), router=np.ascontiguousarray(m.router[rows]))
        assert_array_equal(by_native(pool, some, options, schemes=schemes), whole[rows])


@pytest.mark.parametrize("variant", native_tiny.VARIANTS)
def test_add_gated(pool: Pool, variant: str) -> None:
    rng = np.random.default_rng(0)
    x, delta = rng.standard_normal((2, 19, 37), np.float32)
    logit = np.append(rng.standard_normal(16, np.float32), np.float32([-200, 200, 0]))[:, None]
    want = x + delta / (1 + np.exp(-logit.astype(np.float64)))
    ours = x.copy()
    with np.errstate(over="ignore"):  # as the backend runs ops
        ops.add_gated(ours, delta, logit)
    assert_allclose(ours, want, atol=1e-6)
    with native_tiny.variant(variant):
        step = Instruction("add_gated", ("y", "shared", "logit"))
        native_tiny.run(pool, step, {"y": x, "shared": delta, "logit": logit}, tokens=19)
    assert_allclose(x, want, atol=1e-6)


def test_a_row_that_is_not_finite_stays_alone(pool: Pool) -> None:
    m = mixture(20, experts=4, hidden=32, width=32)
    options = {"act": "silu", "top_k": 2, "renormalize": True}
    good = by_native(pool, m, options)
    m.x[3, 5], m.router[3] = np.nan, np.nan
    m.x[11, 0] = np.inf
    m.router[17, 2] = np.nan
    bad = by_native(pool, m, options)
    broken = [3, 11, 17]
    assert not np.isfinite(bad[broken]).all(axis=1).any()
    assert_array_equal(np.delete(bad, broken, axis=0), np.delete(good, broken, axis=0))

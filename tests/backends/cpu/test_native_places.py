"""The kernels elsewhere: what each ARM core chooses by itself, and threads under the thread sanitizer."""

from __future__ import annotations

from collections.abc import Callable

import native_tiny
import numpy as np
import pytest
from cpu_tiny import rand
from native_remote import ARM_CORES, PLACES, Remote, RemotePool, remote

from octavo.backends.cpu import native
from octavo.backends.cpu.cache import Cells
from octavo.backends.cpu.packed import Packed
from octavo.backends.cpu.program import Instruction
from octavo.backends.cpu.rows import Span

pytestmark = pytest.mark.timeout(1200)  # the first use of a place compiles the kernels for it


def linear(pool: RemotePool, weights: list[np.ndarray], x: np.ndarray) -> np.ndarray:
    """x [m, k] times all the weights [n, k], one product after the other."""
    out = np.full((len(x), sum(len(w) for w in weights)), np.nan, np.float32)
    packed = Packed({}, {"w": sum((native_tiny.pack(pool, w) for w in weights), ())})
    step = Instruction("linear", ("out", "x", "w", None))
    native_tiny.run(pool, step, {"x": x, "out": out}, packed=packed, tokens=len(x))
    return out


def head(pool: RemotePool, weight: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, ...]:
    """Logits, whether they are finite, and the best of each row."""
    rows = len(x)
    out, finite, best = np.empty((rows, len(weight)), np.float32), np.full(rows, 7, np.uint8), np.full(rows, -7)
    step = Instruction("head", ("logits", "last", "w"), {"scale": 1.0, "softcap": None})
    given = {"tails": np.arange(rows), "tails_finite": finite, "best": best}
    packed = Packed({}, {"w": native_tiny.pack(pool, weight)})
    native_tiny.run(pool, step, {"logits": out, "last": x}, packed=packed, tokens=rows, **given)
    return out, finite, best


@pytest.mark.parametrize(("core", "variant"), ARM_CORES.items())
def test_an_arm_core_chooses_what_it_can_run(core: str, variant: str, request: pytest.FixtureRequest) -> None:
    """Nothing that it lacks is executed: the emulator would end the driver with SIGILL."""
    with remote("arm", request.config.cache.mkdir("native"), core=core) as lib:
        assert lib.oct_variant().decode() == variant
        able = PLACES["arm"].variants[PLACES["arm"].variants.index(variant) :]
        for name in PLACES["arm"].variants:
            assert (lib.oct_set_variant(name.encode()) == 0) == (name in able)
        assert lib.oct_set_variant(b"auto") == 0
        pool = RemotePool(lib, 2)
        x, weight = rand(5, 70), rand(33, 70, seed=1)
        np.testing.assert_allclose(linear(pool, [weight], x), x @ weight.T, rtol=1e-4, atol=1e-4)
        pool.close()


def attend(pool: RemotePool) -> np.ndarray:
    """Rows that decode, whose sums are merged by other threads, and a prompt."""
    size, heads, dim, blocks = 16, 4, 16, 60
    spans = [Span(0, 0, 700, 1, False, np.arange(44)), Span(1, 1, 0, 70, False, np.arange(44, 49))]
    arrays = {
        "out": np.full((71, heads, dim), np.nan, np.float32),
        "qkv": rand(71, heads + 4, dim),
    }
    caches = {
        "keys.0": Cells(rand(2, blocks, dim, size, seed=1)),
        "values.0": Cells(rand(2, blocks, size, dim, seed=2)),
    }
    step = Instruction(
        "paged_attention",
        ("out", "qkv", "keys.0", "values.0", "plan"),
        {"scale": 0.3, "window": None, "softcap": None},
    )
    given = {"spans": spans, "block_size": size, "num_blocks": blocks}
    native_tiny.run(pool, step, arrays, caches=caches, tokens=71, **given)
    return arrays["out"]


def test_threads_do_not_race(remotes: Callable[[str], Remote]) -> None:
    """Packing, conversion, products, attention and its merges, and the head with its scan, by 1, 2 and 5 threads."""
    lib, found = remotes("raced"), []
    assert lib.oct_abi() == native.library().oct_abi()
    for threads in (1, 2, 5):
        pool = RemotePool(lib, threads)
        for _ in range(3):
            product = linear(pool, [rand(n, 24, seed=n) for n in (300, 5, 130)], rand(40, 24))
            found.append([product, attend(pool), *head(pool, rand(50_000, 2), rand(3, 2, seed=1))])
        pool.close()
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(a, b)

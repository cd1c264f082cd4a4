"""BF16_SHORT: bfloat16 in 12 bits a weight is the same numbers, and its products are of the same bits as BF16's."""

from __future__ import annotations

from collections.abc import Iterator

import native_tiny
import numpy as np
import pytest
from native_calls import NAMES, Native, RefusedError, kernels

from octavo.backends.cpu import native as native_library
from octavo.backends.cpu.native import Pool

pytestmark = pytest.mark.timeout(1200)  # the first use of a place compiles the kernels for it
ODD = np.array([0x0000, 0x8000, 0x0001, 0x807F, 0x0080, 0x7F7F, 0xFF7F, 0x7F80, 0xFF80, 0x7FC1, 0xFFFF], np.uint16)
"""Zeros, subnormals, the least and greatest normal numbers, infinities, NaN."""
PANEL = 16


def normal(n: int, k: int, seed: int = 0) -> np.ndarray:
    """bfloat16 [n, k] of a normal distribution, as words."""
    values = np.random.default_rng(seed).standard_normal((n, k)).astype(np.float32) * np.float32(0.02)
    return (values.view(np.uint32) >> 16).astype(np.uint16)


def sixteen(n: int, k: int, seed: int = 0) -> np.ndarray:
    """Words of 16 upper bytes, each often."""
    rng = np.random.default_rng(seed)
    return (rng.integers(0, 1 << 16, (n, k), np.uint16) & 0x87FF | 0x3800).astype(np.uint16)


def room(k: int) -> int:
    """short_exceptions of csrc/matmul_formats.h."""
    blocks = ((k + 1) // 2 + 3) // 4
    return ((20 + blocks // 2 * 6 + 63) // 64 * 64 - 20) // 6


def alike(native: Native, words: np.ndarray, rows: list[int], *, cuts: tuple[int, ...] = ()) -> None:
    """Products and rows of both forms are of the same bits."""
    n, k = words.shape
    plain, short = (native.pack(name, words.view(np.uint8), n, k) for name in ("BF16", "BF16_SHORT"))
    x = np.random.default_rng(3).standard_normal((max(rows), k)).astype(np.float32)
    for m in rows:
        wanted = native.matmul("BF16", plain, x[:m], n, cuts=cuts).view(np.uint32)
        np.testing.assert_array_equal(native.matmul("BF16_SHORT", short, x[:m], n, cuts=cuts).view(np.uint32), wanted)
    for row in {0, n // 2, n - 1}:
        got = native.row("BF16_SHORT", short, k, row).view(np.uint32)
        np.testing.assert_array_equal(got, words[row].astype(np.uint32) << 16)


@pytest.mark.parametrize(("n", "k"), [(40, 200), (1, 1), (17, 33), (35, 31), (16, 576), (33, 1037)])
def test_random_weights(native: Native, n: int, k: int) -> None:
    alike(native, normal(n, k), native.rows if k == 200 else [1, 5, 17, 40])


def test_ranges_of_outputs(native: Native) -> None:
    alike(native, normal(83, 100), [1, 4, 33], cuts=(16, 17, 29, 48, 70))


@pytest.mark.parametrize("k", [96, 131, 1000])
def test_exceptions_anywhere(native: Native, k: int) -> None:
    """Also beside the borders of blocks and of what is decoded at once, in rows and steps that are the last."""
    words, left = sixteen(37, k), [room(k)] * 3
    places = [(r, i) for r in (0, 15, 16, 36) for i in (0, 1, 7, 8, 31, 32, 33, 63, 64, k - 2, k - 1)]
    for index, place in enumerate(np.random.default_rng(k).permutation(len(places))):
        r, i = places[place]
        if left[r // PANEL]:
            words[r, i] = ODD[index % 6]
            left[r // PANEL] -= 1
    alike(native, words, [1, 2, 6, 13, 16, 33])


def test_numbers_that_are_none(native: Native) -> None:
    """Infinite and NaN weights make the products that they are in what they are with BF16."""
    words = sixteen(20, 64)
    words[3, 5], words[7, 63], words[19, 0] = 0x7F80, 0x7FC1, 0xFF80
    n, k = words.shape
    x = np.random.default_rng(1).standard_normal((18, k)).astype(np.float32)
    found = [
        native.matmul(name, native.pack(name, words.view(np.uint8), n, k), x, n) for name in ("BF16", "BF16_SHORT")
    ]
    np.testing.assert_array_equal(*found)
    assert np.isfinite(found[1]).all(axis=0).tolist() == [row not in (3, 7, 19) for row in range(n)]


@pytest.mark.parametrize("fill", ODD, ids=hex)
def test_one_number_only(library: Native, fill: int) -> None:
    """Exponents of one kind leave the table empty but for it; padding stays finite."""
    words = np.full((19, 37), fill, np.uint16)
    short = library.pack("BF16_SHORT", words.view(np.uint8), *words.shape)
    for row in (0, 15, 16, 18):
        got = library.row("BF16_SHORT", short, words.shape[1], row).view(np.uint32)
        np.testing.assert_array_equal(got, words[row].astype(np.uint32) << 16)
    x = np.zeros((3, 37), np.float32)
    plain = library.pack("BF16", words.view(np.uint8), *words.shape)
    wanted = library.matmul("BF16", plain, x, 19)
    np.testing.assert_array_equal(library.matmul("BF16_SHORT", short, x, 19), wanted)


@pytest.mark.parametrize("panel", [0, 1, 2])
@pytest.mark.parametrize("k", [64, 1001])
def test_room_for_exceptions(native: Native, k: int, panel: int) -> None:
    """A panel's room is used to its end; one more, and the matrix is refused, also where other panels were held."""
    words = sixteen(PANEL * 2 + 5, k)
    rows = words[panel * PANEL : (panel + 1) * PANEL].reshape(-1)
    places = np.random.default_rng(k).permutation(rows.size)[: room(k) + 1]
    rows[places[:-1]] = np.random.default_rng(2).integers(0, 0x80, room(k))
    alike(native, words, [1, 20])
    rows[places[-1]] = 0x4444
    with pytest.raises(RefusedError):
        native.pack("BF16_SHORT", words.view(np.uint8), *words.shape)
    with pytest.raises(RefusedError):
        native.pack("BF16_SHORT", words.view(np.uint8), *words.shape, cuts=(16, 32))
    native.pack("BF16", words.view(np.uint8), *words.shape)


def test_packing_in_parts_is_packing(library: Native) -> None:
    words = normal(70, 333)
    words[5::9, 100] = 0
    whole = library.pack("BF16_SHORT", words.view(np.uint8), *words.shape)
    np.testing.assert_array_equal(library.pack("BF16_SHORT", words.view(np.uint8), *words.shape, cuts=(16, 48)), whole)


@pytest.fixture(params=[1, 3])
def pool(request: pytest.FixtureRequest) -> Iterator[Pool]:
    with native_tiny.here(request.param) as made:
        yield made


def test_threads_pack_the_same_or_nothing(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """No byte is left unwritten, and a panel too varied anywhere refuses the matrix."""
    words = normal(700, 130)
    n, k = words.shape
    wanted = kernels("here", lambda _: pytest.skip()).pack("BF16_SHORT", words.view(np.uint8), n, k)
    for filling in (0, 255):
        monkeypatch.setattr(native_library, "aligned", lambda size, filling=filling: np.full(size, filling, np.uint8))
        np.testing.assert_array_equal(pool.pack_short(memoryview(words).cast("B"), n=n, k=k), wanted)
    for row in (0, 350, 699):
        varied = words.copy()
        varied[row] = np.random.default_rng(row).integers(0, 1 << 16, k)
        assert pool.pack_short(memoryview(varied).cast("B"), n=n, k=k) is None


def test_the_number_is_the_last(library: Native) -> None:
    """No stored format has it."""
    assert NAMES[-1] == "BF16_SHORT"
    assert library.lib.oct_packed_bytes(len(NAMES), 16, 32) == 0

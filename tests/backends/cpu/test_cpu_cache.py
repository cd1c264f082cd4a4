"""What the cache keeps of numbers: rounding and scales against their definitions, NaN shown, blocks copied whole."""

from __future__ import annotations

import cpu_tiny
import numpy as np
import pytest

from octavo.backends.cpu.cache import CELLS, copy_blocks, decode, encode, make_cells

INT8, BFLOAT16 = CELLS["int8_per_token_head"], CELLS["bfloat16"]


def rand(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


def test_float32_is_kept_as_it_is() -> None:
    x = rand(3, 5)
    data, scales = encode(x, CELLS["float32"])
    assert scales is None
    assert decode(data, None) is data is x


def test_bfloat16_takes_the_nearest() -> None:
    """Against the neighbours on both sides, in float64; a tie goes to the even one."""
    x = np.concatenate((rand(4000) * 10.0 ** np.arange(-20, 20).repeat(100), [0, -0.0, 1e-42])).astype(np.float32)
    found = decode(*encode(x, BFLOAT16)).astype(np.float64)
    low = (x.view(np.uint32) & 0xFFFF0000).view(np.float32).astype(np.float64)
    high = ((x.view(np.uint32) & 0xFFFF0000) + 0x10000).view(np.float32).astype(np.float64)
    assert (np.abs(found - x) == np.minimum(np.abs(low - x), np.abs(high - x))).all()
    bits = np.array([0x3F808000, 0x3F818000, 0x3F807FFF, 0x3F808001, 0x7F7FFFFF, 0xFF800000], np.uint32)
    data, _ = encode(bits.view(np.float32), BFLOAT16)
    assert data.tolist() == [0x3F80, 0x3F82, 0x3F80, 0x3F81, 0x7F80, 0xFF80]


def test_int8_is_off_by_half_a_step_at_most() -> None:
    x = rand(50, 7, 64)
    data, scales = encode(x, INT8)
    assert scales is not None
    assert data.dtype == np.int8
    assert scales.shape == (50, 7)
    np.testing.assert_array_equal(np.abs(data).max(axis=-1), 127)
    assert (np.abs(decode(data, scales).astype(np.float64) - x) <= scales[..., None] * 0.50001).all()


def test_int8_of_zeros_and_of_the_smallest_numbers_is_zero() -> None:
    data, scales = encode(np.array([[0, -0.0], [1e-42, -1e-41]], np.float32), INT8)
    assert not data.any()
    assert scales is not None
    assert not scales.any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", CELLS)
def test_what_is_not_finite_is_not_lost(bad: float, dtype: str) -> None:
    x = rand(2, 8)
    x[1, 3] = bad
    with np.errstate(invalid="ignore"):
        found = decode(*encode(x, CELLS[dtype]))
    assert np.isfinite(found[0]).all()
    assert not np.isfinite(found[1, 3])


@pytest.mark.parametrize("dtype", CELLS)
def test_copies_bring_everything_and_read_before_they_write(dtype: str) -> None:
    cells = make_cells(dtype, (2, 4, 8, 3), block_size=8)
    for array in cells.arrays:
        array[...] = np.arange(array.size).reshape(array.shape) % 100
    before = [array.copy() for array in cells.arrays]
    copy_blocks([cells], [(0, 1), (1, 3)])
    for array, old in zip(cells.arrays, before, strict=True):
        np.testing.assert_array_equal(array, old[:, [0, 0, 2, 1]])


@pytest.mark.parametrize(
    ("dtype", "size"), [("float32", 4 * 64), ("bfloat16", 2 * 64), ("int8_per_token_head", 64 + 4)]
)
def test_bytes_of_a_head(dtype: str, size: int) -> None:
    cells = make_cells(dtype, (3, 5, 64, 16), block_size=16)
    assert sum(array.nbytes for array in cells.arrays) == 3 * 5 * 16 * size


def test_poison_shows() -> None:
    for dtype in CELLS:
        cells = cpu_tiny.cells(dtype, 2, 3, 4, 5, block_size=4)
        assert np.isnan(decode(cells.data, cells.scales)).all()

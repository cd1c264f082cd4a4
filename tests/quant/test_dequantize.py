"""Every scheme's dequantizer against ggml's own definition (the gguf package), on random and on hostile bytes."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants

from octavo.base.errors import UnsupportedError
from octavo.base.types.tensor import SCHEMES, Scheme, StoredTensor
from octavo.quant import DEQUANTIZERS, dequantize
from octavo.quant.blocks import PIECE, block_format

ALL = sorted(SCHEMES)
# Where the float16 scales lie in a group, in bytes.
SCALES = {
    **dict.fromkeys(("Q4_0", "Q5_0", "Q8_0", "IQ4_NL"), (0,)),
    **dict.fromkeys(("Q4_1", "Q5_1", "Q4_K", "Q5_K"), (0, 2)),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q6_K": (208,),
}


def tensor(name: str, raw: np.ndarray, shape: tuple[int, ...]) -> StoredTensor:
    return StoredTensor("t", SCHEMES[name], shape, memoryview(raw.tobytes()))


def random_groups(name: str, groups: int, *, seed: int = 0) -> np.ndarray:
    """Random bytes, with finite scales of a weight's usual size."""
    rng = np.random.default_rng(seed)
    raw = rng.integers(0, 256, (groups, SCHEMES[name].group_bytes), np.uint8)
    for at in SCALES.get(name, ()):
        raw[:, at : at + 2] = rng.normal(0, 0.1, groups).astype(np.float16)[:, None].view(np.uint8)
    return raw


def oracle(name: str, raw: np.ndarray) -> np.ndarray:
    kind = GGMLQuantizationType[name]
    if name in ("F32", "F16"):  # the package takes these as numbers
        return raw.view("<f4" if name == "F32" else "<f2").astype(np.float32).reshape(-1)
    return quants.dequantize(raw, kind).reshape(-1)


def test_every_scheme_is_registered() -> None:
    assert set(DEQUANTIZERS) == set(SCHEMES)


@pytest.mark.parametrize("name", ALL)
def test_random_blocks_equal_ggml(name: str) -> None:
    group = SCHEMES[name].group
    rows, groups = 6, 32
    raw = random_groups(name, rows * groups, seed=ALL.index(name))
    if group == 1:
        raw[:, -1] &= 0xBF  # keeps exponents finite
    got = dequantize(tensor(name, raw, (rows, groups * group)))
    assert got.shape == (rows, groups * group)
    assert got.dtype == np.float32
    want = oracle(name, raw).reshape(got.shape)
    assert np.isfinite(want).all()
    np.testing.assert_array_max_ulp(got, want, maxulp=1)
    assert np.count_nonzero(got != want) == 0  # ggml's order of operations, so the same bits


@pytest.mark.parametrize("name", ALL)
def test_any_bytes_are_harmless(name: str) -> None:
    """NaN and infinite scales included: no warning (an error in this suite), and NaN exactly where ggml has it."""
    raw = np.random.default_rng(7).integers(0, 256, (512, SCHEMES[name].group_bytes), np.uint8)
    for at in SCALES.get(name, (0,)):
        raw[::3, at : at + 2] = np.array([0x00, 0x7C], np.uint8)
        raw[1::3, at : at + 2] = np.array([0x01, 0x7E], np.uint8)
    got = dequantize(tensor(name, raw, (512, SCHEMES[name].group)))
    with np.errstate(all="ignore"):
        want = oracle(name, raw).reshape(got.shape)
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("name", ["Q4_1", "Q6_K"])
def test_pieces_join_without_a_seam(name: str) -> None:
    group = SCHEMES[name].group
    groups = 2 * (PIECE // group) + 3
    raw = random_groups(name, groups)
    got = dequantize(tensor(name, raw, (groups, group)))
    np.testing.assert_array_equal(got.reshape(-1), oracle(name, raw))


@pytest.mark.parametrize("name", ALL)
def test_nothing_to_do_and_one_group(name: str) -> None:
    group = SCHEMES[name].group
    assert dequantize(tensor(name, np.empty((0, 1), np.uint8), (0, group))).shape == (0, group)
    raw = random_groups(name, 1)
    assert dequantize(tensor(name, raw, (group,))).shape == (group,)


@pytest.mark.parametrize("name", ALL)
def test_result_is_new_and_writable(name: str) -> None:
    source = random_groups(name, 4)
    stored = tensor(name, source, (4, SCHEMES[name].group))
    before = bytes(stored.data)
    dequantize(stored)[:] = 0
    assert bytes(stored.data) == before


def test_unknown_scheme_is_refused_by_name() -> None:
    stored = StoredTensor("blk.0", Scheme("Q9_X", 1, 1), (4,), memoryview(bytes(4)))
    with pytest.raises(UnsupportedError, match=r"blk\.0.*Q9_X"):
        dequantize(stored)


def test_layout_must_fit_the_scheme() -> None:
    with pytest.raises(ValueError, match="Q4_0"):
        block_format("Q4_0", np.dtype([("d", "<f2")]))

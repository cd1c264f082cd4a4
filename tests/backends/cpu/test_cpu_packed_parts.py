"""Matrices that a checkpoint keeps in parts: packed in a format of blocks, and mapped by the next load."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import native_tiny
import numpy as np
import pytest

from octavo.backends.cpu import packed, packed_file
from octavo.backends.cpu.native import Pool
from octavo.backends.cpu.packed import Packed, kept_bytes, load_packed
from octavo.backends.cpu.program import Pack
from octavo.base.types.tensor import PART_SCHEMES, SCHEMES, MatrixScheme, QuantizedTensor, StoredTensor
from octavo.quant import dequantize_matrix
from octavo.quant.as_blocks import as_stored
from octavo.weights.files import map_file

SHAPE = (40, 512)
INT4, FP8 = MatrixScheme("packed", 4, (1, 128), zeros=True), MatrixScheme("fp8", 8, (1, 0))
SIZES = {"words": 40 * 64 * 4, "scale": 40 * 4 * 2, "zeros": 5 * 4 * 4, "weight": 40 * 512, "row_scale": 40 * 2}
PACKS = {"a": Pack(("a",), SHAPE[::-1]), "b": Pack(("b",), SHAPE[::-1])}


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pool]:
    monkeypatch.setattr(packed_file, "LEAST", 0)
    monkeypatch.setattr(packed_file, "SETTLED_NS", 0)
    with native_tiny.here(2) as made:
        yield made


@pytest.fixture
def model(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    raw = {name: rng.integers(0, 126, size, np.uint8) for name, size in SIZES.items()}
    for name in ("scale", "row_scale"):
        raw[name] = rng.uniform(0.01, 0.02, SIZES[name] // 2).astype(np.float16).view(np.uint8)
    (tmp_path / "m").write_bytes(b"".join(part.tobytes() for part in raw.values()))
    return tmp_path / "m"


def opened(path: Path) -> dict[str, QuantizedTensor]:
    view, at, parts = map_file(path), 0, {}
    shapes = {"words": (40, 64), "scale": (40, 4), "zeros": (5, 4), "weight": SHAPE, "row_scale": (40, 1)}
    kinds = {"words": "I32", "scale": "F16", "zeros": "I32", "weight": "F8_E4M3", "row_scale": "F16"}
    for name, size in SIZES.items():
        kind = {**SCHEMES, **PART_SCHEMES}[kinds[name]]
        parts[name] = StoredTensor(name, kind, shapes[name], view[at : at + size])
        at += size
    return {
        "a": QuantizedTensor("a", INT4, SHAPE, {name: parts[name] for name in ("words", "scale", "zeros")}),
        "b": QuantizedTensor("b", FP8, SHAPE, {"weight": parts["weight"], "scale": parts["row_scale"]}),
    }


def load(pool: Pool, model: Path, folder: Path) -> Packed:
    loaded = load_packed(PACKS, opened(model), pool=pool, folder=folder)
    if loaded.saving is not None:
        loaded.saving.close(240)
    return loaded


def test_the_second_load_makes_nothing(
    pool: Pool, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load(pool, model, tmp_path / "packed")
    with monkeypatch.context() as patch:
        patch.setattr(packed, "as_stored", None)
        second = load(pool, model, tmp_path / "packed")
    assert (first.mapped, second.mapped) == (0, first.nbytes)
    for loaded in (first, second):
        (matrix,) = loaded.matrices["a"]
        assert matrix.scheme == "Q4_1"
        want = as_stored(opened(model)["a"], "Q4_1")
        np.testing.assert_array_equal(matrix.data, pool.pack("Q4_1", want.data, n=SHAPE[0], k=SHAPE[1]))
        assert loaded.matrices["b"][0].scheme in ("BF16", "BF16_SHORT")
    np.testing.assert_array_equal(first.matrices["b"][0].data, second.matrices["b"][0].data)
    monkeypatch.setattr(packed, "AS_STORED_VERSION", b"another")
    assert load(pool, model, tmp_path / "packed").mapped == 0


def test_exact_products_have_the_numbers_themselves(pool: Pool, model: Path) -> None:
    loaded = load_packed(PACKS, opened(model), pool=pool, exact=True)
    for name, matrix in opened(model).items():
        (found,) = loaded.matrices[name]
        want = memoryview(dequantize_matrix(matrix).tobytes())
        np.testing.assert_array_equal(found.data, pool.pack("F32", want, n=SHAPE[0], k=SHAPE[1]))


def test_bytes_are_known_before(model: Path) -> None:
    found = opened(model)
    assert kept_bytes(found["a"], SHAPE) == kept_bytes(INT4, SHAPE) == 40 * 512 * 20 // 32
    assert kept_bytes(MatrixScheme("awq", 4, (1, 128)), SHAPE) == 40 * 512 * 18 // 32
    assert kept_bytes(found["b"], SHAPE) == kept_bytes(FP8, SHAPE) == 40 * 512 * 2
    shuffled = QuantizedTensor("a", INT4, SHAPE, {**found["a"].parts, "g_idx": found["a"].parts["zeros"]})
    assert kept_bytes(shuffled, SHAPE) == 40 * 512 * 2

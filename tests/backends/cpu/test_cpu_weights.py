"""Packing: every scheme's bytes come out as quant.dequantize makes them, in pieces and in threads; damage is named."""

from __future__ import annotations

import mmap
import re
from pathlib import Path

import cpu_tiny
import numpy as np
import pytest

from octavo.backends.cpu import weights
from octavo.backends.cpu.program import Pack, build_program
from octavo.base.errors import ModelFormatError
from octavo.base.types.tensor import SCHEMES, StoredTensor
from octavo.quant.scheme import DEQUANTIZERS, dequantize


def random_tensor(scheme: str, shape: tuple[int, ...], seed: int = 0) -> StoredTensor:
    """Random bytes with zeroed top bits, so that no scale is NaN."""
    kind = SCHEMES[scheme]
    size = int(np.prod(shape)) // kind.group * kind.group_bytes
    raw = np.random.default_rng(seed).integers(0, 64, size, np.uint8)
    return StoredTensor(scheme, kind, shape, memoryview(raw.tobytes()))


@pytest.mark.parametrize("scheme", sorted(DEQUANTIZERS))
@pytest.mark.parametrize("piece", [1, 3 * 512, 1 << 19])
def test_pieces_make_the_whole(scheme: str, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "_PIECE", piece)
    first, second = random_tensor(scheme, (7, 512)), random_tensor(scheme, (4, 512), seed=1)
    found = weights.load_packs({"both": Pack(("a", "b"), (512, 11))}, {"a": first, "b": second}, threads=2)
    assert found["both"].dtype == np.float32
    assert found["both"].flags.c_contiguous
    np.testing.assert_array_equal(found["both"], np.concatenate((dequantize(first), dequantize(second))).T)


def test_progress_reaches_the_end() -> None:
    told: list[tuple[str, int, int]] = []
    tensors = {"a": random_tensor("Q8_0", (4000, 512)), "b": random_tensor("F32", (5,))}
    packs = {"a": Pack(("a",), (512, 4000)), "b": Pack(("b",), (5,))}
    weights.load_packs(packs, tensors, threads=3, progress=lambda *call: told.append(call))
    total = sum(tensor.data.nbytes for tensor in tensors.values())
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)
    assert told[-1] == ("weights", total, total)
    assert len(told) > 2


def test_every_parameter_is_packed_once_or_repeated_as_a_norm() -> None:
    spec = cpu_tiny.spec()
    packs = build_program(spec).packs
    sources = [source for pack in packs.values() for source in pack.sources]
    assert set(sources) == set(spec.parameters())
    repeated = {source for source in sources if sources.count(source) > 1}
    assert repeated == {"layers.1.q_norm", "layers.1.k_norm"}


def test_mapped_file_is_read_and_released(tmp_path: Path) -> None:
    values = cpu_tiny.arrays(cpu_tiny.spec())["embed"]
    (tmp_path / "weights").write_bytes(values.tobytes())
    with (tmp_path / "weights").open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    tensor = StoredTensor("embed", SCHEMES["F32"], values.shape, memoryview(mapped))
    for _ in range(2):
        found = weights.load_packs({"embed": Pack(("embed",), values.T.shape)}, {"embed": tensor}, threads=1)
        np.testing.assert_array_equal(found["embed"].T, values)


def test_missing_and_misshapen_tensors_are_named() -> None:
    spec = cpu_tiny.spec()
    good = {name: cpu_tiny.stored(name, array) for name, array in cpu_tiny.arrays(spec).items()}
    weights.check_weights(spec, good)
    with pytest.raises(ModelFormatError, match=re.escape("layers.1.q_norm")):
        weights.check_weights(spec, {name: t for name, t in good.items() if name != "layers.1.q_norm"})
    wrong = cpu_tiny.stored("blk.0.o", np.zeros((12, 11), np.float32))
    with pytest.raises(ModelFormatError, match=r"blk\.0\.o \(layers\.0\.o\).*\[12, 11\].*\[12, 12\]"):
        weights.check_weights(spec, {**good, "layers.0.o": wrong})

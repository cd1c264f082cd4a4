"""GGUF files made by the gguf package, read back: values, shapes, metadata; and headers made to hurt."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import weight_files as make
from gguf import GGUFReader, GGUFValueType, GGUFWriter, quants

from octavo.base.errors import ModelFormatError
from octavo.quant import dequantize
from octavo.weights.gguf import (
    MAX_LIST,
    SCALARS,
    IncompleteHeaderError,
    gguf_models,
    read_gguf,
    read_header,
    split_parts,
)


def read(path: Path):
    return read_gguf(memoryview(path.read_bytes()), where=path.name)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_values_and_shapes_come_back(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "m.gguf"
    written = make.write_gguf(path, kind=kind)
    tensors = read(path).tensors
    oracle = {t.name: t for t in GGUFReader(path).tensors}
    assert list(tensors) == list(written)
    for name, values in written.items():
        assert tensors[name].shape == values.shape
        assert tensors[name].scheme.name == (kind if values.ndim > 1 else "F32")
        want = quants.dequantize(oracle[name].data, oracle[name].tensor_type).reshape(values.shape)
        np.testing.assert_array_equal(dequantize(tensors[name]), want)


def test_metadata_of_every_type_comes_back(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "m.gguf", "llama")
    scalars = {
        "UINT8": 255, "INT8": -5, "UINT16": 65535, "INT16": -300, "UINT32": 1 << 31, "INT32": -7, "UINT64": 1 << 63,
        "INT64": -(1 << 62), "FLOAT32": 0.5, "FLOAT64": 0.1, "BOOL": True, "STRING": "grüße",
    }  # fmt: skip
    for kind, value in scalars.items():
        writer.add_key_value(f"x.{kind}", value, GGUFValueType[kind])
    writer.add_array("x.words", ["a", "", "ü"])
    writer.add_array("x.numbers", [1, -2, 3])
    writer.add_array("x.floats", [0.5, 1.5])
    make.finish(writer, {"t": np.zeros((2, 3), np.float32)})
    metadata = read(tmp_path / "m.gguf").metadata
    assert {key[2:]: metadata[key] for key in metadata if key[2:] in scalars} == scalars
    assert metadata["x.words"] == ["a", "", "ü"]
    assert metadata["x.numbers"] == [1, -2, 3]
    assert metadata["x.floats"] == [0.5, 1.5]


def test_lists_of_every_type_come_back() -> None:
    for kind, form in SCALARS.items():
        values = [0.5, -1.5, 3.0] if form in "fd" else [True, False, True] if form == "?" else [1, 0, 127]
        raw = header(keys=[("tokenizer.t", array(kind, [struct.pack("<3" + form, *values)], count=3))])
        found = read_gguf(memoryview(raw), where="f").metadata["tokenizer.t"]
        assert found == values
        assert {type(value) for value in found} == {type(value) for value in values}
        raw = header(keys=[("t", array(kind, [], count=0))])
        assert read_gguf(memoryview(raw), where="f").metadata["t"] == []


def test_long_lists_are_passed_over_but_the_vocabularys() -> None:
    """Memory stays near what the file takes, whatever it says of itself."""
    count = 1 << 20
    numbers, words = (
        array(0, [bytes(count)], count=count),
        array(8, [string("ab")] * (MAX_LIST + 1), count=MAX_LIST + 1),
    )
    for prefix, kept in (("x.", False), ("tokenizer.", True)):
        raw = memoryview(
            header(keys=[(prefix + "numbers", numbers), (prefix + "words", words), ("y", (4, struct.pack("<I", 7)))])
        )
        tracemalloc.start()
        metadata = read_gguf(raw, where="f").metadata
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert set(metadata) == ({"y", prefix + "numbers", prefix + "words"} if kept else {"y"})
        assert most < (10 * len(raw) if kept else len(raw) // 10)


@pytest.mark.parametrize("alignment", [8, 64, 4096])
def test_alignment_is_followed(tmp_path: Path, alignment: int) -> None:
    writer = GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_custom_alignment(alignment)
    values = {"a": np.arange(3, dtype=np.float32), "b": np.arange(5, dtype=np.float32)}
    make.finish(writer, values)
    for name, stored in read(tmp_path / "m.gguf").tensors.items():
        np.testing.assert_array_equal(dequantize(stored), values[name])


def test_broken_utf8_in_a_token_is_replaced() -> None:
    raw = header(keys=[("t", array(8, [string(b"\xff\xfe")], count=1))])
    assert read_gguf(memoryview(raw), where="f").metadata["t"] == ["��"]


# Headers written by hand, each wrong in one place.


def string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def array(kind: int, values: list[bytes], *, count: int) -> tuple[int, bytes]:
    return 9, struct.pack("<IQ", kind, count) + b"".join(values)


def tensor(name: str = "t", dims: tuple[int, ...] = (4,), kind: int = 0, offset: int = 0) -> bytes:
    return string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def header(
    *,
    keys: list[tuple[str, tuple[int, bytes]]] | None = None,
    tensors: list[bytes] | None = None,
    counts: tuple[int, int] | None = None,
    version: int = 3,
    data: int = 64,
) -> bytes:
    keys, tensors = keys or [], tensors or []
    raw = b"GGUF" + struct.pack("<IQQ", version, *(counts or (len(tensors), len(keys))))
    raw += b"".join(string(name) + struct.pack("<I", kind) + value for name, (kind, value) in keys)
    raw += b"".join(tensors)
    return raw + bytes(-len(raw) % 32) + bytes(data)


def alignment_key(value: int) -> list[tuple[str, tuple[int, bytes]]]:
    return [("general.alignment", (4, struct.pack("<I", value)))]


HUGE = 1 << 62
ATTACKS = {
    "empty": (b"", "begin with GGUF"),
    "magic only": (b"GGUF", "version"),
    "another magic": (b"GGML" + bytes(60), "begin with GGUF"),
    "version 1": (header(version=1), "version 1"),
    "version 99": (header(version=99), "version 99"),
    "big-endian": (header(version=3 << 24), "big-endian"),
    "2^62 tensors": (header(counts=(HUGE, 0)), "do not fit"),
    "2^62 keys": (header(counts=(0, HUGE)), "do not fit"),
    "2^64-1 tensors and keys": (header(counts=((1 << 64) - 1, (1 << 64) - 1)), "do not fit"),
    "key name of 2^60 bytes": (header(counts=(0, 1))[:24] + struct.pack("<Q", 1 << 60) + bytes(64), "name of key 0"),
    "string of 2^60 bytes": (header(keys=[("k", (8, struct.pack("<Q", 1 << 60)))]), "runs past the end"),
    "array of 2^62 strings": (header(keys=[("k", array(8, [], count=HUGE))]), "left"),
    "array of 2^61 numbers": (header(keys=[("k", array(10, [], count=1 << 61))]), "left"),
    "array of strings cut off": (header(keys=[("k", array(8, [string("a" * 40)] * 3, count=9))], data=0), "past the"),
    "array of arrays": (header(keys=[("k", array(9, [struct.pack("<IQ", 9, 1)] * 4, count=1))]), "arrays of arrays"),
    "array of an unknown type": (header(keys=[("k", array(77, [], count=1))]), "77"),
    "unknown value type": (header(keys=[("k", (13, bytes(8)))]), "unknown value type 13"),
    "a key twice": (header(keys=[("k", (0, b"\1")), ("k", (0, b"\2"))]), "comes twice"),
    "key name not UTF-8": (header(counts=(0, 1))[:24] + string(b"\xff") + bytes(64), "not UTF-8"),
    "alignment 0": (header(keys=alignment_key(0)), "general.alignment"),
    "alignment 3": (header(keys=alignment_key(3)), "general.alignment"),
    "alignment 2^31": (header(keys=alignment_key(1 << 31)), "general.alignment"),
    "alignment a string": (header(keys=[("general.alignment", (8, string("32")))]), "general.alignment"),
    "dims overflow to 0 in 64 bits": (header(tensors=[tensor(dims=(1 << 32, 1 << 32))]), "takes"),
    "dims overflow to 16 bytes": (header(tensors=[tensor(dims=((1 << 62) + 1, 4))]), "takes"),
    "a dim of 0": (header(tensors=[tensor(dims=(0, 4))]), "cannot have"),
    "5 dims": (header(tensors=[tensor(dims=(1, 1, 1, 1, 1))]), "5 dimensions"),
    "2^32-1 dims": (header(tensors=[string("t") + struct.pack("<I", (1 << 32) - 1) + bytes(64)]), "dimensions"),
    "row no multiple of the group": (header(tensors=[tensor(dims=(33,), kind=2)]), "cannot have"),
    "offset beyond the file": (header(tensors=[tensor(offset=1 << 20)]), "takes"),
    "offset 2^63": (header(tensors=[tensor(offset=1 << 63)]), "takes"),
    "offset + size wraps": (header(tensors=[tensor(offset=(1 << 64) - 32)]), "takes"),
    "data cut off": (header(tensors=[tensor(dims=(17,))]), "takes"),
    "unaligned offset": (header(tensors=[tensor(offset=4)]), "alignment"),
    "overlap": (header(tensors=[tensor("a", (16,)), tensor("b", (4,), offset=32)]), "overlap"),
    "two at one place": (header(tensors=[tensor("a"), tensor("b")]), "overlap"),
    "a tensor twice": (header(tensors=[tensor("a"), tensor("a", offset=32)]), "comes twice"),
    "an unsupported type by name": (header(tensors=[tensor(dims=(256,), kind=16)]), "IQ2_XXS"),
    "an unknown type": (header(tensors=[tensor(kind=1000)]), "type 1000"),
    "integers": (header(tensors=[tensor(kind=26)]), "I32"),
}  # fmt: skip


@pytest.mark.parametrize("name", ATTACKS)
def test_attack(name: str) -> None:
    raw, expected = ATTACKS[name]
    with pytest.raises(ModelFormatError, match=expected):
        read_gguf(memoryview(raw), where="bad.gguf")


@pytest.mark.parametrize("name", ATTACKS)
def test_attack_on_a_header(name: str) -> None:
    raw, _ = ATTACKS[name]
    with pytest.raises(ModelFormatError):
        read_header(memoryview(raw), where="bad.gguf", size=len(raw))


def test_every_cut_through_a_header_asks_for_more(tmp_path: Path) -> None:
    """And once it is whole, it says the same as the file."""
    written = make.write_gguf(tmp_path / "m.gguf", kind="Q4_0")
    raw = (tmp_path / "m.gguf").read_bytes()
    whole = read_header(memoryview(raw), where="f", size=len(raw))
    end = min(tensor.begin for tensor in whole.tensors.values())
    table = raw.index(b"token_embd.weight")  # the padding behind the last tensor's description is not needed
    for stop in range(4, end):
        for size in ({}, {"size": len(raw)}):
            try:
                cut = read_header(memoryview(raw)[:stop], where="f", **size)
            except IncompleteHeaderError:
                continue
            assert stop > table
            assert end - stop < 32
            assert cut == whole
    tensors = read_gguf(memoryview(raw), where="f").tensors
    assert list(tensors) == list(whole.tensors) == list(written)
    for name, info in whole.tensors.items():
        assert bytes(tensors[name].data) == raw[info.begin : info.begin + info.nbytes]
        assert (tensors[name].shape, tensors[name].scheme) == (info.shape, info.scheme)


def test_the_same_headers_unharmed_are_read() -> None:
    """What the attacks change one thing of is itself valid."""
    raw = header(keys=alignment_key(32), tensors=[tensor("a"), tensor("b", (8,), offset=32)])
    got = read_gguf(memoryview(raw), where="f")
    assert {name: t.shape for name, t in got.tensors.items()} == {"a": (4,), "b": (8,)}
    assert not read_gguf(memoryview(header(version=2)), where="f").tensors


def test_split_names() -> None:
    assert split_parts("m.gguf") == ["m.gguf"]
    assert split_parts("m-00001-of-00003.gguf") == [f"m-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    with pytest.raises(ModelFormatError, match="m-00001-of-00003"):
        split_parts("m-00002-of-00003.gguf")
    names = ["a.gguf", "b-00001-of-00002.gguf", "b-00002-of-00002.gguf"]
    assert gguf_models(names) == ["a.gguf", "b-00001-of-00002.gguf"]


def test_what_goes_with_a_model_is_none() -> None:
    assert gguf_models(["m.gguf", "mmproj-m-f16.gguf", "m.mmproj-f16.gguf", "m.imatrix.gguf"]) == ["m.gguf"]
    assert gguf_models(["mmproj/m.gguf", "q/mmproj.gguf"]) == ["mmproj/m.gguf"]
    assert gguf_models(["m-imatrix-Q4_0.gguf"]) == ["m-imatrix-Q4_0.gguf"]

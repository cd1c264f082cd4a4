"""safetensors files read back, against the reference implementation where it can write them; and hostile headers."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import weight_files as make
from safetensors.numpy import save_file

from octavo.base.errors import ModelFormatError
from octavo.quant import dequantize
from octavo.weights.safetensors import read_index, read_safetensors


def file_of(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype: str = "F32", shape: object = (1,), offsets: object = (0, 4)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_the_reference_writer_is_understood(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = {
        "w": rng.standard_normal((3, 5), np.float32),
        "h": rng.standard_normal(7).astype(np.float16),
        "scalar": np.array(2.5, np.float32),
        "none": np.zeros((0, 4), np.float32),
    }
    save_file(values, tmp_path / "m.safetensors", metadata={"format": "pt"})
    tensors = read_safetensors(memoryview((tmp_path / "m.safetensors").read_bytes()), where="m").tensors
    assert set(tensors) == set(values)
    for name, value in values.items():
        np.testing.assert_array_equal(dequantize(tensors[name]), value.astype(np.float32))


def test_bfloat16_and_shapes() -> None:
    source = make.small_safetensors()
    tensors = read_safetensors(memoryview(make.safetensors_bytes(source)), where="m").tensors
    for name, (dtype, shape, raw) in source.items():
        assert (tensors[name].scheme.name, tensors[name].shape) == (dtype, shape)
        assert bytes(tensors[name].data) == raw


def test_old_buffers_are_passed_over() -> None:
    source = {
        "w": ("F32", (1,), bytes(4)),
        "position_ids": ("I64", (1, 2), bytes(16)),
        "mask": ("BOOL", (3,), bytes(3)),
    }
    read = read_safetensors(memoryview(make.safetensors_bytes(source)), where="m")
    assert set(read.tensors) == {"w"}
    assert read.buffers == {"position_ids", "mask"}


ATTACKS = {
    "empty": (b"", "too few"),
    "seven bytes": (bytes(7), "too few"),
    "header of 2^63 bytes": (struct.pack("<Q", 1 << 63) + b"{}", "does not fit"),
    "header longer than the file": (struct.pack("<Q", 100) + b"{}", "does not fit"),
    "header of length 0": (bytes(8), "header"),
    "not JSON": (file_of(b"{nonsense"), "header"),
    "a list": (file_of([]), "header"),
    "not UTF-8": (file_of(b'{"\xff": 1}'), "damaged"),
    "deep nesting": (file_of(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "damaged"),
    "deep nesting as a shape": (file_of({"a": entry(shape=[[[[1]]]])}, bytes(4)), "'a' is damaged"),
    "an unknown field": (file_of({"a": {**entry(), "x": 1}}, bytes(4)), "'a' is damaged"),
    "no dtype": (file_of({"a": {"shape": [1], "data_offsets": [0, 4]}}, bytes(4)), "dtype"),
    "FP8": (file_of({"a": entry("F8_E5M2", (4,))}, bytes(4)), "F8_E5M2"),
    "packed integers": (file_of({"a": entry("I8")}, bytes(4)), "I8"),
    "a GGUF type": (file_of({"a": entry("Q4_0", (32,), (0, 18))}, bytes(18)), "Q4_0"),
    "negative size": (file_of({"a": entry(shape=(-1,))}, bytes(4)), "'a' is damaged"),
    "size 2^70": (file_of({"a": entry(shape=(1 << 70,))}, bytes(4)), "'a' is damaged"),
    "a million dims": (file_of({"a": entry(shape=[1] * 1_000_000)}, bytes(4)), "'a' is damaged"),
    "fractional size": (file_of({"a": entry(shape=(1.5,))}, bytes(4)), "'a' is damaged"),
    "product wraps to 4": (file_of({"a": entry(shape=((1 << 62) + 1, 4), offsets=(0, 16))}, bytes(16)), "'a'"),
    "shape does not fit the offsets": (file_of({"a": entry(shape=(2,))}, bytes(4)), "does not take 4"),
    "offsets reversed": (file_of({"a": entry(offsets=(4, 0))}, bytes(4)), "does not take -4"),
    "three offsets": (file_of({"a": entry(offsets=(0, 4, 8))}, bytes(4)), "'a' is damaged"),
    "beyond the file": (file_of({"a": entry(offsets=(0, 4))}), "0 are there"),
    "data left over": (file_of({"a": entry()}, bytes(8)), "8 are there"),
    "overlap": (file_of({"a": entry(), "b": entry(offsets=(0, 4))}, bytes(4)), "overlaps"),
    "partial overlap": (file_of({"a": entry(shape=(2,), offsets=(0, 8)), "b": entry(offsets=(4, 8))}, bytes(8)), "ove"),
    "gap": (file_of({"a": entry(), "b": entry(offsets=(8, 12))}, bytes(12)), "gap"),
}  # fmt: skip


@pytest.mark.parametrize("name", ATTACKS)
def test_attack(name: str) -> None:
    raw, expected = ATTACKS[name]
    with pytest.raises(ModelFormatError, match=expected):
        read_safetensors(memoryview(raw), where="bad.safetensors")


@pytest.mark.parametrize(
    "text",
    [
        b"", b"[]", b"{}", b'{"weight_map": 1}', b'{"weight_map": {}}', b'{"weight_map": {"a": 1}}', b"\xff",
        b'{"weight_map": {"a": "../../etc/passwd"}}', b'{"weight_map": {"a": "/x.safetensors"}}',
        b'{"weight_map": {"a": "x\\\\y.safetensors"}}', b'{"weight_map": {"a": "model.bin"}}',
        b'{"weight_map": {"a": ".safetensors"}}', b'{"weight_map": {"a": "x\\u0000.safetensors"}}',
    ],
)  # fmt: skip
def test_index_attack(text: bytes) -> None:
    with pytest.raises(ModelFormatError, match=r"index\.json"):
        read_index(text, where="index.json")


def test_index() -> None:
    table = {"a": "model-00001-of-00002.safetensors"}
    assert read_index(json.dumps({"metadata": {}, "weight_map": table}).encode(), where="i") == table

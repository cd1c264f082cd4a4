"""2,000 damaged copies of a GGUF file and as many of safetensors files: a clean load or a ModelFormatError, no more."""

from __future__ import annotations

import random
import struct
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
import weight_files as make

from octavo.base.errors import ModelFormatError
from octavo.weights.checkpoint import Checkpoint, open_checkpoint

COUNT = 2000
# Numbers at which readers break.
EDGES = (
    0,
    1,
    2,
    7,
    8,
    31,
    255,
    256,
    1 << 15,
    1 << 31,
    (1 << 32) - 1,
    1 << 32,
    1 << 60,
    1 << 62,
    1 << 63,
    (1 << 64) - 1,
)
EDGE_TEXTS = (
    b"-1",
    b"1e308",
    b"18446744073709551616",
    b"[]",
    b"{}",
    b"null",
    b'"',
    b",",
    b"\\ud800",
    b"[[",
    b"F64",
    b"\0",
)


def mutations(source: bytes, *, count: int, header: int, seed: int) -> Iterator[bytes]:
    """Changed bytes, edge numbers, cut-out, doubled and inserted pieces (within the header), and truncations."""
    rng = random.Random(seed)
    for _ in range(count):
        raw = bytearray(source)
        for _ in range(rng.choice((1, 1, 1, 2, 5))):
            at, length = rng.randrange(min(header, len(raw))), rng.randrange(1, 24)
            match rng.randrange(8):
                case 0 | 1:
                    raw[at] ^= 1 << rng.randrange(8)
                case 2:
                    raw[at] = rng.randrange(256)
                case 3:
                    form = rng.choice("IQ")
                    struct.pack_into(
                        f"<{form}",
                        raw,
                        min(at, len(raw) - 8),
                        rng.choice(EDGES) & (2**32 - 1 if form == "I" else 2**64 - 1),
                    )
                case 4:
                    del raw[at : at + length]
                case 5:
                    raw[at:at] = raw[at : at + length]
                case 6:
                    raw[at:at] = rng.choice(EDGE_TEXTS)
                case 7:
                    del raw[rng.randrange(8, len(raw)) :]
            if len(raw) < 16:
                break
        yield bytes(raw)


def read_all(checkpoint: Checkpoint) -> None:
    """What was loaded is inside the file and of the shape that it claims."""
    for tensor in checkpoint.tensors.values():
        assert len(bytes(tensor.data)) == tensor.data.nbytes
    assert checkpoint.total_bytes == sum(tensor.data.nbytes for tensor in checkpoint.tensors.values())


def attempt(path: Path, *, limit: int) -> bool:
    """True for a clean load. Anything but a ModelFormatError comes through; memory stays under `limit` bytes."""
    tracemalloc.reset_peak()
    before, _ = tracemalloc.get_traced_memory()
    message = None
    try:
        read_all(open_checkpoint(path))
    except ModelFormatError as error:
        message = error.message
    assert message is None or 0 < len(message) < 2000
    _, peak = tracemalloc.get_traced_memory()
    assert peak - before < limit
    return message is None


@pytest.fixture
def traced() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


@pytest.mark.usefixtures("traced")
def test_gguf(tmp_path: Path) -> None:
    make.write_gguf(tmp_path / "good.gguf", kind="Q4_0")
    source = (tmp_path / "good.gguf").read_bytes()
    assert attempt(tmp_path / "good.gguf", limit=1 << 20)
    header = source.index(b"blk.1.ffn_down.weight") + 64
    path, loaded = tmp_path / "bad.gguf", 0
    for raw in mutations(source, count=COUNT, header=header, seed=1):
        path.write_bytes(raw)
        loaded += attempt(path, limit=1 << 20)
    assert COUNT // 50 < loaded < COUNT * 9 // 10  # some damage is harmless, most is found


@pytest.mark.usefixtures("traced")
def test_safetensors(tmp_path: Path) -> None:
    make.write_config(tmp_path)
    path = tmp_path / "model.safetensors"
    source, loaded = make.safetensors_bytes(make.small_safetensors()), 0
    path.write_bytes(source)
    assert attempt(tmp_path, limit=1 << 20)
    for raw in mutations(source, count=COUNT * 3 // 4, header=len(source), seed=2):
        path.write_bytes(raw)
        loaded += attempt(tmp_path, limit=1 << 20)
    assert 0 < loaded < COUNT // 2


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("file", ["model.safetensors.index.json", "model-00002-of-00002.safetensors"])
def test_sharded_safetensors(tmp_path: Path, file: str) -> None:
    make.write_sharded(tmp_path)
    assert attempt(tmp_path, limit=1 << 20)
    source = (tmp_path / file).read_bytes()
    loaded = 0
    for raw in mutations(source, count=COUNT // 8, header=len(source), seed=3):
        (tmp_path / file).write_bytes(raw)
        loaded += attempt(tmp_path, limit=1 << 20)
    assert loaded < COUNT // 8

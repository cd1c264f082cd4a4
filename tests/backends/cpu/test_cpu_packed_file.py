"""Packed weights on disk: what is mapped again, what is never served, and that nothing about the disk stops a load."""

from __future__ import annotations

import errno
import fcntl
import logging
import mmap
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cpu_tiny
import native_tiny
import numpy as np
import pytest

from octavo.backends.cpu import native, packed, packed_file, runner
from octavo.backends.cpu.native import Pool
from octavo.backends.cpu.native_machine import NativeMachine
from octavo.backends.cpu.packed import Packed, load_packed
from octavo.backends.cpu.packed_file import PART, SUFFIX, PackedFile, Part, locate
from octavo.backends.cpu.program import Pack
from octavo.base.config import env
from octavo.base.errors import ConfigError
from octavo.base.types.tensor import SCHEMES, StoredTensor
from octavo.quant.scheme import DEQUANTIZERS, dequantize
from octavo.weights.files import map_file

SHAPES = {"a": (48, 512), "b": (19, 256), "c": (32, 512)}
PACKS = {"a": Pack(("a",), (512, 48)), "bc": Pack(("b",), (256, 19)), "c": Pack(("c",), (512, 32))}


@pytest.fixture(autouse=True)
def _small_and_young_files_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_file, "LEAST", 0)
    monkeypatch.setattr(packed_file, "SETTLED_NS", 0)


@pytest.fixture
def pool() -> Iterator[Pool]:
    with native_tiny.here(2) as made:
        yield made


def q8_0(shape: tuple[int, ...], seed: int) -> bytes:
    """Random bytes with zeroed top bits, so that no scale is NaN."""
    size = shape[0] * shape[1] // 32 * 34
    return np.random.default_rng(seed).integers(0, 64, size, np.uint8).tobytes()


def write_model(path: Path, seed: int = 0) -> Path:
    path.write_bytes(b"".join(q8_0(shape, seed + i) for i, shape in enumerate(SHAPES.values())))
    return path


def open_model(path: Path) -> dict[str, StoredTensor]:
    view, at, found = map_file(path), 0, {}
    for name, shape in SHAPES.items():
        size = shape[0] * shape[1] // 32 * 34
        found[name] = StoredTensor(name, SCHEMES["Q8_0"], shape, view[at : at + size])
        at += size
    return found


def place(path: Path, folder: Path, *, layout: str = "1") -> PackedFile:
    tensors = list(open_model(path).values())
    file = locate(folder, tensors, layout=layout)
    assert file is not None
    return file


SIZES = {"BF16": (640, 64, 100), "BF16_SHORT": (500, 48, 1)}


def some_parts(seed: int = 0) -> list[Part]:
    rng = np.random.default_rng(seed)
    schemes = ("BF16_SHORT", "BF16", "BF16_SHORT")
    return [(s, rng.integers(0, 256, SIZES[s][i]).astype(np.uint8)) for i, s in enumerate(schemes)]


def size_of(index: int, scheme: str) -> int | None:
    return SIZES[scheme][index] if scheme in SIZES else None


def read(file: PackedFile) -> list[Part] | None:
    return file.read(size_of)


def same(found: list[Part] | None, parts: list[Part]) -> bool:
    assert found is not None
    return all(a[0] == b[0] and np.array_equal(a[1], b[1]) for a, b in zip(found, parts, strict=True))


def keep(file: PackedFile, parts: list[Part] | None = None) -> None:
    file.write(some_parts() if parts is None else parts, threading.Event())


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_what_was_written_is_mapped(tmp_path: Path) -> None:
    folder, model = tmp_path / "new" / "packed", write_model(tmp_path / "m")
    assert read(place(model, folder)) is None
    keep(place(model, folder))
    found = read(place(model, folder))
    assert same(found, some_parts())
    for _, left in found or []:
        assert left.ctypes.data % 64 == 0
        assert not left.flags.writeable
        base: Any = left
        while isinstance(base, np.ndarray):
            base = base.base
        assert isinstance(base.obj if isinstance(base, memoryview) else base, mmap.mmap)
    assert names(folder) == [place(model, folder).path.name]


def load(pool: Pool, model: Path, folder: Path | None, *, packs: dict[str, Pack] = PACKS, **options: Any) -> Packed:
    loaded = load_packed(packs, open_model(model), pool=pool, folder=folder, **options)
    if loaded.saving is not None:
        loaded.saving.close(240)
    return loaded


def test_the_second_load_packs_nothing(pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = write_model(tmp_path / "m")
    told: list[tuple[str, int, int]] = []
    first = load(pool, model, tmp_path / "packed", progress=lambda *call: told.append(call))
    assert told[-1][1] == told[-1][2] > 0
    monkeypatch.setattr(packed, "_pack", None)
    second = load(pool, model, tmp_path / "packed")
    assert second.saving is None
    assert second.nbytes == first.nbytes
    assert (first.mapped, second.mapped) == (0, second.nbytes)
    for name, matrices in first.matrices.items():
        for left, right in zip(matrices, second.matrices[name], strict=True):
            assert (left.scheme, left.n, left.k) == (right.scheme, right.n, right.k)
            np.testing.assert_array_equal(left.data, right.data)


def test_mapped_weights_are_not_free_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system counts their pages as available, on every start but the first."""
    if native.library() is None:
        pytest.skip("nothing was compiled")
    spec, model = cpu_tiny.spec(), tmp_path / "m"
    arrays = cpu_tiny.arrays(spec)
    model.write_bytes(b"".join(array.tobytes() for array in arrays.values()))
    monkeypatch.setattr(env, "packed_folder", lambda: tmp_path / "packed")
    monkeypatch.setattr(runner, "memory_bytes", lambda: (1 << 30, 1 << 29))
    found = []
    for _ in range(2):
        view, at, weights = map_file(model), 0, {}
        for name, array in arrays.items():
            weights[name] = StoredTensor(name, SCHEMES["F32"], array.shape, view[at : at + array.nbytes])
            at += array.nbytes
        made = runner.CpuBackend(
            max_num_seqs=1, max_model_len=8, max_num_batched_tokens=8, block_size=8, threads=1, activation_dtype="int8"
        )
        made.load(spec, weights)
        found.append(made.memory())
        loaded = made._machine
        made.close()
    assert isinstance(loaded, NativeMachine)
    assert 0.9 * found[0].weights < loaded.mapped_bytes <= found[0].weights
    assert found[0].free - found[1].free == loaded.mapped_bytes


def test_another_packed_form_is_packed_anew(pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = write_model(tmp_path / "m")
    load(pool, model, tmp_path / "packed")
    before = names(tmp_path / "packed")
    genuine = Pool.pack

    def otherwise(self: Pool, scheme: str, stored: memoryview, **options: Any) -> np.ndarray:
        return genuine(self, scheme, stored, **options)[::-1].copy()

    with monkeypatch.context() as patch:
        patch.setattr(Pool, "pack", otherwise)
        load(pool, model, tmp_path / "packed")
        changed = names(tmp_path / "packed")
    monkeypatch.setattr(Pool, "layout", 0)
    load(pool, model, tmp_path / "packed")
    assert len({*before, *changed, *names(tmp_path / "packed")}) == 3


@pytest.mark.parametrize("scheme", sorted(DEQUANTIZERS))
def test_a_packed_form_has_no_byte_left_unwritten(pool: Pool, scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = SCHEMES[scheme]
    raw = memoryview(np.full(37 * 512 // kind.group * kind.group_bytes, 7, np.uint8).tobytes())
    found = []
    for filling in (0, 255):
        monkeypatch.setattr(native, "aligned", lambda size, filling=filling: np.full(size, filling, np.uint8))
        found.append(pool.pack(scheme, raw, n=37, k=512))
    np.testing.assert_array_equal(*found)


def test_a_matrix_is_kept_in_its_form(pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """bfloat16 in 12 bits where that can hold it: known only once it was packed."""
    model, rng = tmp_path / "m", np.random.default_rng(1)
    words = {name: rng.integers(0, 1 << 16, shape, np.uint16) & 0x87FF | 0x3800 for name, shape in SHAPES.items()}
    words["c"] = rng.integers(0, 1 << 16, SHAPES["c"], np.uint16)
    model.write_bytes(b"".join(each.astype(np.uint16).tobytes() for each in words.values()))

    def opened() -> dict[str, StoredTensor]:
        view, at, found = map_file(model), 0, {}
        for name, shape in SHAPES.items():
            size = shape[0] * shape[1] * 2
            found[name] = StoredTensor(name, SCHEMES["BF16"], shape, view[at : at + size])
            at += size
        return found

    first = load_packed(PACKS, opened(), pool=pool, folder=tmp_path / "packed")
    assert first.saving is not None
    first.saving.close(240)
    monkeypatch.setattr(packed, "_pack", None)
    second = load_packed(PACKS, opened(), pool=pool, folder=tmp_path / "packed")
    for loaded in (first, second):
        schemes = {name: matrices[0].scheme for name, matrices in loaded.matrices.items()}
        assert schemes == {"a": "BF16_SHORT", "bc": "BF16_SHORT", "c": "BF16"}
        assert {matrix.act_scheme for pack in loaded.matrices.values() for matrix in pack} == {"BF16"}
    for name, matrices in first.matrices.items():
        np.testing.assert_array_equal(matrices[0].data, second.matrices[name][0].data)
    assert second.nbytes == first.nbytes < 0.92 * model.stat().st_size  # c, and b with 13 rows of padding


def test_a_matrix_made_float32_is_mapped_with_the_others(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the routers of a mixture of experts are, whatever the checkpoint has them in."""
    model, packs = write_model(tmp_path / "m"), {**PACKS, "a": Pack(("a",), (512, 48), exact=True)}
    first = load(pool, model, tmp_path / "packed", packs=packs)
    with monkeypatch.context() as patch:
        patch.setattr(packed, "_pack", None)
        second = load(pool, model, tmp_path / "packed", packs=packs)
    assert [loaded.matrices["a"][0].scheme for loaded in (first, second)] == ["F32", "F32"]
    genuine = Pool.pack

    def otherwise(self: Pool, scheme: str, stored: memoryview, *, to_float: bool = False, **shape: int) -> np.ndarray:
        return genuine(self, scheme, stored, to_float=to_float, **shape)[:: -1 if to_float else 1].copy()

    with monkeypatch.context() as patch:  # another form of these alone is another form
        patch.setattr(Pool, "pack", otherwise)
        assert load(pool, model, tmp_path / "packed", packs=packs).mapped == 0
    np.testing.assert_array_equal(first.matrices["a"][0].data, second.matrices["a"][0].data)
    assert load(pool, model, tmp_path / "packed").matrices["a"][0].scheme == "Q8_0"  # not as it was kept


def test_portable_kernels_keep_bfloat16_plain(pool: Pool) -> None:
    words = np.random.default_rng(1).integers(0, 1 << 16, SHAPES["a"], np.uint16) & 0x87FF | 0x3800
    weights = {"a": StoredTensor("a", SCHEMES["BF16"], SHAPES["a"], memoryview(words.astype(np.uint16).tobytes()))}
    found = {}
    for variant in ("auto", "scalar"):
        native.set_variant(variant)
        found[variant] = load_packed({"a": PACKS["a"]}, weights, pool=pool).matrices["a"][0].scheme
    native.set_variant("auto")
    assert found["scalar"] == "BF16"
    assert found["auto"] == ("BF16" if pool.variant == "scalar" else "BF16_SHORT")


def test_a_scheme_that_the_matrix_cannot_have_is_damage(tmp_path: Path) -> None:
    file = place(write_model(tmp_path / "m"), tmp_path / "packed")
    keep(file, [("F32", part) for _, part in some_parts()])
    assert read(file) is None


def test_nothing_is_kept_of_float32_weights_or_without_a_folder(pool: Pool, tmp_path: Path) -> None:
    model = write_model(tmp_path / "m")
    assert load(pool, model, tmp_path / "packed", exact=True).matrices["a"][0].scheme == "F32"
    load(pool, model, None)
    assert not (tmp_path / "packed").exists()


@pytest.mark.parametrize("scheme", sorted(DEQUANTIZERS))
def test_packing_to_float_is_packing_the_dequantized(pool: Pool, scheme: str) -> None:
    kind, (n, k) = SCHEMES[scheme], (37, 512)
    raw = np.random.default_rng(1).integers(0, 64, n * k // kind.group * kind.group_bytes, np.uint8).tobytes()
    numbers = dequantize(StoredTensor("w", kind, (n, k), memoryview(raw)))
    wanted = pool.pack("F32", memoryview(numbers).cast("B"), n=n, k=k)
    np.testing.assert_array_equal(pool.pack(scheme, memoryview(raw), n=n, k=k, to_float=True), wanted)


def damage(path: Path, how: str) -> None:
    raw = bytearray(path.read_bytes())
    if how == "empty":
        raw.clear()
    elif how == "cut":
        del raw[-1:]
    elif how == "head only":
        del raw[int.from_bytes(raw[8:16], "little") :]
    elif how == "header":
        raw[40] ^= 1
    elif how == "length":
        raw[8 + 4] ^= 1
    elif how == "first bytes":
        del raw[12:]
    elif how == "magic":
        raw[0] ^= 1
    elif how == "zeros":
        begin = int.from_bytes(raw[8:16], "little")
        raw[begin:] = bytes(len(raw) - begin)
    elif how == "longer":
        raw += b"\0"
    path.write_bytes(raw)


@pytest.mark.parametrize(
    "how", ["empty", "first bytes", "cut", "head only", "header", "length", "magic", "zeros", "longer"]
)
def test_damage_is_seen_told_once_and_mended(tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    file = place(write_model(tmp_path / "m"), tmp_path / "packed")
    keep(file)
    damage(file.path, how)
    assert read(file) is None
    assert [record.message for record in caplog.records if "packing anew" in record.message] == [
        record.message for record in caplog.records
    ]
    assert len(caplog.records) == 1
    keep(file)
    assert read(file) is not None


def test_another_files_content_under_the_name_is_refused(tmp_path: Path) -> None:
    one = place(write_model(tmp_path / "m"), tmp_path / "packed")
    other = place(write_model(tmp_path / "n", seed=9), tmp_path / "packed")
    keep(other)
    other.path.rename(one.path)
    assert read(one) is None


def test_a_changed_model_is_another_one(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m")
    before = place(model, tmp_path)
    times = os.stat(model)
    write_model(model, seed=1)
    os.utime(model, ns=(times.st_atime_ns, times.st_mtime_ns))
    after = place(model, tmp_path)
    assert after.key != before.key
    raw = bytearray(model.read_bytes())
    raw[3] ^= 1
    model.write_bytes(raw)
    assert place(model, tmp_path).key not in (before.key, after.key)
    assert place(model, tmp_path, layout="2").key != place(model, tmp_path).key


def test_samples_of_the_content_are_in_the_key(tmp_path: Path) -> None:
    """Were a file system to tell the same times for another content."""
    model = write_model(tmp_path / "m")
    first, second = list(open_model(model).values()), list(open_model(write_model(tmp_path / "n", seed=5)).values())
    second[0].data.obj.identity = first[0].data.obj.identity
    found = [locate(tmp_path, tensors, layout="1") for tensors in (first, second)]
    assert found[0] is not None
    assert found[1] is not None
    assert found[0].key != found[1].key


def test_a_young_or_changed_model_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = write_model(tmp_path / "m")
    file = place(model, tmp_path / "packed")
    write_model(model, seed=1)
    keep(file)
    model.unlink()
    keep(file)
    monkeypatch.setattr(packed_file, "SETTLED_NS", 60 * 10**9)
    keep(place(write_model(tmp_path / "n"), tmp_path / "packed"))
    assert names(tmp_path / "packed") == []


def test_few_bytes_and_memory_have_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = list(open_model(write_model(tmp_path / "m")).values())
    in_memory = StoredTensor("d", SCHEMES["Q8_0"], SHAPES["a"], memoryview(q8_0(SHAPES["a"], 0)))
    assert locate(tmp_path, [*tensors, in_memory], layout="1") is None
    stored = sum(tensor.nbytes for tensor in tensors)
    for least, found in ((stored + 1, False), (stored, True)):
        monkeypatch.setattr(packed_file, "LEAST", least)
        assert (locate(tmp_path, tensors, layout="1") is not None) == found


def test_a_full_disk_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    file = place(write_model(tmp_path / "m"), tmp_path / "packed")

    def fill(*_arguments: Any) -> bool:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(PackedFile, "_fill", fill)
        keep(file)
    with monkeypatch.context() as patch:
        patch.setattr(os, "statvfs", lambda _path: os.statvfs_result([1] * 10))
        keep(file)
    assert names(tmp_path / "packed") == []
    assert len(caplog.records) == 2
    assert all("not kept" in record.message for record in caplog.records)
    keep(file)
    assert read(file) is not None


def test_it_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = place(write_model(tmp_path / "m"), tmp_path / "packed")
    synced = []

    def sync(opened: Any) -> None:
        assert not file.path.exists()
        synced.append(os.fstat(opened.fileno()).st_size)

    monkeypatch.setattr(os, "fsync", sync)
    keep(file)
    assert synced == [file.path.stat().st_size]
    file.path.unlink()
    monkeypatch.setattr(packed_file, "_SYNC", 500)
    keep(file)
    assert synced[1:-1]
    assert synced[-1] == file.path.stat().st_size
    file.path.unlink()

    def refuse(_opened: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", refuse)
    keep(file)
    assert names(tmp_path / "packed") == []


def test_a_folder_that_cannot_be_written(pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = write_model(tmp_path / "m")
    (tmp_path / "file").write_text("")
    loads = [load(pool, model, tmp_path / "file" / "packed")]

    def refuse(*_arguments: Any) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    (tmp_path / "packed").mkdir()
    monkeypatch.setattr(os, "open", refuse)
    loads.append(load(pool, model, tmp_path / "packed"))
    monkeypatch.undo()
    np.testing.assert_array_equal(loads[0].matrices["a"][0].data, loads[1].matrices["a"][0].data)
    assert names(tmp_path / "packed") == []


def test_only_one_process_writes(tmp_path: Path) -> None:
    file = place(write_model(tmp_path / "m"), tmp_path / "packed")
    part = file.path.with_suffix(PART)
    part.parent.mkdir()
    part.write_bytes(b"what a killed process has left" * 10_000)
    with part.open("r+b") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        keep(file)
        assert names(part.parent) == [part.name]
        assert part.read_bytes().startswith(b"what a killed")
    keep(file)
    assert names(part.parent) == [file.path.name]
    assert read(file) is not None


def test_many_at_once(tmp_path: Path) -> None:
    file = place(write_model(tmp_path / "m"), tmp_path / "packed")
    start, wrong = threading.Barrier(8), []

    def one() -> None:
        start.wait()
        for _ in range(20):
            keep(file)
            found = read(file)
            if found is not None and not same(found, some_parts()):
                wrong.append(found)

    threads = [threading.Thread(target=one) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert names(tmp_path / "packed") == [file.path.name]


def test_stopped_half_way(tmp_path: Path) -> None:
    file = place(write_model(tmp_path / "m"), tmp_path / "packed")
    stopped = threading.Event()
    stopped.set()
    file.write(some_parts(), stopped)
    assert names(tmp_path / "packed") == []


def test_a_model_has_one_file_and_a_gone_one_none(tmp_path: Path) -> None:
    folder, model, gone, other = tmp_path / "packed", tmp_path / "m", tmp_path / "gone", tmp_path / "other"
    first = place(write_model(model), folder)
    for file in (first, place(write_model(gone), folder), place(write_model(other), folder)):
        keep(file)
    mapped = read(first)
    (folder / f"x{SUFFIX}").write_bytes(b"no header")
    (folder / f"old{PART}").write_bytes(b"")
    (folder / f"young{PART}").write_bytes(b"")
    long_ago = time.time() - 2 * packed_file.ABANDONED_S
    os.utime(folder / f"old{PART}", (long_ago, long_ago))
    gone.unlink()
    second = place(write_model(model, seed=1), folder)
    keep(second, some_parts(1))
    assert names(folder) == sorted([second.path.name, place(other, folder).path.name, f"young{PART}"])
    assert same(mapped, some_parts())


def test_a_model_that_cannot_be_looked_at_is_not_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its folder is another user's, or on a disk that does not answer."""
    folder, model, far = tmp_path / "packed", write_model(tmp_path / "m"), write_model(tmp_path / "far")
    for file in (place(model, folder), place(far, folder)):
        keep(file)
    genuine = os.stat

    def look(path: Any, *rest: Any, **options: Any) -> os.stat_result:
        if str(path) == str(far):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return genuine(path, *rest, **options)

    second = place(write_model(model, seed=1), folder)
    with monkeypatch.context() as patch, caplog.at_level(logging.INFO):
        patch.setattr(os, "stat", look)
        keep(second)
    assert names(folder) == sorted([second.path.name, place(far, folder).path.name])
    assert caplog.messages == []


def test_it_can_be_turned_off(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OCTAVO_CACHE", str(tmp_path))
    assert env.packed_folder() == tmp_path / "packed"
    monkeypatch.setenv("OCTAVO_PACKED_CACHE", "0")
    assert env.packed_folder() is None


@pytest.mark.usefixtures("homeless")
def test_without_a_home_nothing_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert env.packed_folder() is None
    with pytest.raises(ConfigError, match="set OCTAVO_CACHE"):
        env.cache_folder()
    monkeypatch.setenv("OCTAVO_CACHE", str(tmp_path))
    assert env.cache_folder() == tmp_path

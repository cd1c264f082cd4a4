"""In: a model's matrices as stored. Out: their packed forms, mapped from a file that an earlier start has left.

    magic [8]  bytes of the whole header, uint64 [8]  digest of what follows [16]  a _Header as JSON, zeros up to a
    multiple of 64
    the matrices in the order given, each from a multiple of 64 on; at last 64 zeros, as kernels may read beyond an end

A file's name holds its key: which bytes were packed (the identity of the model's files, and samples of their content),
into which form. Whatever is changed has another key. Nothing is ever written in place, so mapped files stay whole.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import mmap
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import msgspec
import numpy as np

from octavo.base.types.tensor import QuantizedTensor, StoredTensor, stored_parts
from octavo.weights.files import MappedFile, identity_of

MAGIC = b"octavoP2"
SUFFIX, PART = ".packed", ".part"
LEAST = 16 << 20
"""Bytes of matrices from which on a file is made: fewer are packed in less time than a person notices."""
SETTLED_NS = 2 * 10**9
"""A model's file younger than this may change once more without a clock's tick between, so it is not packed ahead."""
ABANDONED_S = 3600.0
_ALIGN = 64
_SAMPLE = 64
_CHUNK = 8 << 20
_SYNC = 64 << 20
"""Bytes after which they are written out: one sync of them all at the end could not be broken off."""
_DIGEST = 16
_MOST_HEADER = 1 << 24
_BEFORE = len(MAGIC) + 8 + _DIGEST
_log = logging.getLogger(__name__)

Part = tuple[str, np.ndarray]
"""A scheme, and a matrix packed in it."""


class _Header(msgspec.Struct, frozen=True):
    """model: the first of the files that were packed.  schemes: of each matrix.  samples: digest of its content's."""

    model: bytes
    key: str
    schemes: list[str]
    samples: str


@dataclass(frozen=True)
class PackedFile:
    """Where a model's packed matrices are kept, or would be: `count` of them, which come from the files `sources`."""

    path: Path
    key: str
    sources: tuple[MappedFile, ...]
    count: int

    def read(self, size: Callable[[int, str], int | None]) -> list[Part] | None:
        """The packed matrices, mapped; None where there is no file, or one that is damaged (one line in the log).

        size(index, scheme): bytes of a matrix in a scheme, None where it cannot be in that one.
        """
        try:
            with self.path.open("rb") as file:
                whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:  # an empty file cannot be mapped
            _log.info("%s cannot be used (%s): packing anew", self.path, error)
            return None
        header, begin = _decode(whole), _header_bytes(whole)
        if header is not None and header.key == self.key and len(header.schemes) == self.count:
            sizes = [found for i, scheme in enumerate(header.schemes) if (found := size(i, scheme)) is not None]
            places, nbytes = _places(begin, sizes)
            if len(places) == self.count and nbytes == len(whole):
                content = np.frombuffer(whole, np.uint8)
                matrices = [content[begin:end] for begin, end in places]
                if _samples(matrices) == header.samples:
                    return list(zip(header.schemes, matrices, strict=True))
        _log.info("%s is damaged: packing anew", self.path)
        return None

    def write(self, parts: Sequence[Part], stopped: threading.Event) -> None:
        """Keep the matrices, and drop what the same model left before. What prevents it is one line in the log.

        It is on the disk before it has its name: samples and length would not show a hole that a power cut left.
        """
        if not self._settled():
            return
        part = self.path.with_suffix(PART)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(os.open(part, os.O_RDWR | os.O_CREAT, 0o600), "r+b", buffering=0) as file:
                if not _locked(file, part):
                    return  # another process writes the same
                disk = os.statvfs(self.path.parent)
                nbytes = sum(matrix.nbytes for _, matrix in parts)
                if disk.f_bavail * disk.f_frsize < 2 * nbytes:
                    raise OSError(f"less than twice their {nbytes} bytes are free on the disk")
                if self._fill(file, parts, stopped) and self._settled():
                    part.replace(self.path)
                    prune(self.path.parent, keep=self.path)
                else:
                    part.unlink()
        except OSError as error:
            _log.info("packed weights are not kept: %s", error)
            with suppress(OSError):
                part.unlink(missing_ok=True)

    def _fill(self, file: FileIO, parts: Sequence[Part], stopped: threading.Event) -> bool:
        """All of it on the disk; False where it was stopped half-way."""
        schemes, matrices = [scheme for scheme, _ in parts], [matrix for _, matrix in parts]
        header = _encode(_Header(os.fsencode(self.sources[0].path), self.key, schemes, _samples(matrices)))
        places, nbytes = _places(len(header), [matrix.nbytes for matrix in matrices])
        begins, synced = (0, *(begin for begin, _ in places)), 0
        for begin, left in zip(begins, (memoryview(header), *(matrix.data for matrix in matrices)), strict=True):
            file.seek(begin)
            while left:
                if stopped.is_set():
                    return False
                left = left[file.write(left[:_CHUNK]) :]
                if file.tell() - synced >= _SYNC:
                    os.fsync(file)
                    synced = file.tell()
        file.truncate(nbytes)
        os.fsync(file)
        return True

    def _settled(self) -> bool:
        """Whether the sources are what was mapped, and would not look the same if they changed now."""
        now = time.time_ns()
        for source in self.sources:
            try:
                found = identity_of(os.stat(source.path))
            except OSError:
                return False
            if found != source.identity or now - found.changed_ns < SETTLED_NS:
                return False
        return True


def locate(folder: Path, tensors: Sequence[StoredTensor | QuantizedTensor], *, layout: str) -> PackedFile | None:
    """The file for these matrices in the packed form `layout`. None where they lie in no file, or are few bytes."""
    parts = stored_parts({str(i): tensor for i, tensor in enumerate(tensors)})
    owners = [part.data.obj for part in parts]
    sources = tuple({id(owner): owner for owner in owners if isinstance(owner, MappedFile)}.values())
    if sum(part.nbytes for part in parts) < LEAST or not all(isinstance(owner, MappedFile) for owner in owners):
        return None
    about = [(part.name, part.scheme.name, part.shape) for part in parts]
    about += [(t.name, str(t.scheme), t.shape) for t in tensors if isinstance(t, QuantizedTensor)]
    digest = hashlib.blake2b(digest_size=_DIGEST)
    digest.update(msgspec.msgpack.encode((layout, [source.identity for source in sources], about)))
    for part in parts:
        middle = part.data.nbytes // 2
        digest.update(part.data[middle : middle + _SAMPLE])
    key = digest.hexdigest()
    return PackedFile(folder / f"{_name(sources[0].path)}-{key}{SUFFIX}", key, sources, len(tensors))


def prune(folder: Path, *, keep: Path) -> None:
    """Drop the other files of keep's model, those of models that are gone, and what broken-off writes have left."""
    model = keep.name.partition("-")[0]
    for path in folder.glob(f"*{SUFFIX}"):
        if path != keep and (path.name.startswith(model + "-") or not _model_exists(path)):
            path.unlink(missing_ok=True)
    for path in folder.glob(f"*{PART}"):
        with suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > ABANDONED_S:
                path.unlink()


class Saving:
    """PackedFile.write on a thread that stands back behind the model's own."""

    def __init__(self, file: PackedFile, parts: Sequence[Part]) -> None:
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(file, parts), name="octavo-keep", daemon=True)
        self._thread.start()

    def _run(self, file: PackedFile, parts: Sequence[Part]) -> None:
        if sys.platform == "linux":  # where a thread has a priority of its own
            with suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
        file.write(parts, self._stopped)

    def close(self, seconds: float = 3.0) -> None:
        """Give it so long to end, then let it break off; idempotent."""
        self._thread.join(seconds)
        self._stopped.set()


def _locked(file: FileIO, path: Path) -> bool:
    """Take the file for this process alone, which the system ends with the process. False if another has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    with suppress(FileNotFoundError):  # who had it before may have renamed it
        return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
    return False


def _name(path: Path) -> str:
    return hashlib.blake2b(os.fsencode(path), digest_size=8).hexdigest()


def _model_exists(path: Path) -> bool:
    """Whether a packed file's model is there; so it is where the system does not tell."""
    try:
        with path.open("rb") as file:
            before = file.read(_BEFORE)
            header = _decode(before + file.read(min(_header_bytes(before), _MOST_HEADER)))
        if header is not None:
            os.stat(os.fsdecode(header.model))
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return header is not None


def _samples(matrices: Sequence[np.ndarray]) -> str:
    digest = hashlib.blake2b(digest_size=_DIGEST)
    for matrix in matrices:
        digest.update(matrix[:_SAMPLE].data)
        digest.update(matrix[-_SAMPLE:].data)
    return digest.hexdigest()


def _places(begin: int, sizes: Sequence[int]) -> tuple[list[tuple[int, int]], int]:
    """(begin, end) of each matrix, and the bytes of the whole file."""
    found, at = [], begin
    for size in sizes:
        found.append((at, at + size))
        at = _aligned(at + size)
    return found, (found[-1][1] if found else begin) + _ALIGN


def _aligned(at: int) -> int:
    return (at + _ALIGN - 1) // _ALIGN * _ALIGN


def _encode(header: _Header) -> bytes:
    body = msgspec.json.encode(header)
    body = body.ljust(_aligned(_BEFORE + len(body)) - _BEFORE, b"\0")
    length = (_BEFORE + len(body)).to_bytes(8, "little")
    return MAGIC + length + hashlib.blake2b(body, digest_size=_DIGEST).digest() + body


def _header_bytes(raw: bytes | mmap.mmap) -> int:
    """Of the header that begins with these."""
    return int.from_bytes(raw[len(MAGIC) : len(MAGIC) + 8], "little")


def _decode(raw: bytes | mmap.mmap) -> _Header | None:
    """None for what is no header."""
    if raw[: len(MAGIC)] != MAGIC or _header_bytes(raw) > _MOST_HEADER:
        return None
    digest, body = raw[_BEFORE - _DIGEST : _BEFORE], raw[_BEFORE : _header_bytes(raw)]
    if hashlib.blake2b(body, digest_size=_DIGEST).digest() != digest:
        return None
    try:
        return msgspec.json.decode(body.rstrip(b"\0"), type=_Header)
    except msgspec.MsgspecError:
        return None

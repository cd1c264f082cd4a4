"""One large file in pieces in, a complete and verified file out; what was cut off goes on, in the next process too.

huggingface_hub begins every process's download anew, so weights are fetched here, into its cache's blobs/<etag>.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from octavo.base.errors import ModelFormatError

RETRIES = 5
FIRST_PIECE = 256 << 10  # bytes; of a file of which only the beginning is wanted
SHA256 = re.compile(r"^[0-9a-f]{64}$")


class Interrupted(Exception):  # noqa: N818
    """The connection broke, or the server asks to come again: worth another try."""


@dataclass(frozen=True)
class Body:
    """An answer under way.  resumed: chunks begin at the byte that was asked for, not at the file's start."""

    resumed: bool
    chunks: Iterator[bytes]


Reader = Callable[[int, int | None], AbstractContextManager[Body]]
"""Opens the file from one byte on, up to another (None: its end); more may come where the server knows no ranges.

Raises Interrupted, then or while the chunks are read, where a retry may help.
"""


@dataclass(frozen=True)
class RemoteFile:
    """A file as the hub describes it: size in bytes; etag is its SHA-256 where it is stored as a large file."""

    name: str
    etag: str
    size: int
    read: Reader


def fetch_blob(file: RemoteFile, blobs: Path, *, count: Callable[[int], None]) -> None:
    """Make blobs/<etag>. One process at a time: the caller holds a lock.

    count(n): n more bytes are here (negative where some had to be thrown away). Raises ModelFormatError if the bytes
    do not match the SHA-256; Interrupted and whatever else `read` raises come through, and blobs/<etag>.part stays.
    """
    target, part = blobs / file.etag, blobs / f"{file.etag}.part"
    if target.exists():
        count(file.size)
        return
    count(_begin(file, part))
    _complete(file, part, file.size, count=count)
    if SHA256.match(file.etag) and _sha256(part) != file.etag:
        part.unlink()
        raise ModelFormatError(f"{file.name}: what was downloaded does not match its SHA-256; download it again")
    with part.open("rb") as whole:
        os.fsync(whole)  # after a power cut nobody looks at the sum of what has its name
    part.replace(target)


def fetch_beginning(file: RemoteFile, target: Path, *, enough: Callable[[Path], bool]) -> None:
    """Make `target` of the file's leading bytes: FIRST_PIECE, then twice as many each time until enough(path).

    One process at a time: the caller holds a lock. `enough` raises ModelFormatError where the file is damaged; with
    all of the file it must not say no.
    """
    part = target.with_name(f"{target.name}.part")
    size = max(_begin(file, part), min(FIRST_PIECE, file.size))
    while True:
        _complete(file, part, size, count=lambda _: None)
        try:
            if enough(part):
                break
        except ModelFormatError:
            part.unlink()
            raise
        size = min(2 * size, file.size)
    part.replace(target)


def _begin(file: RemoteFile, part: Path) -> int:
    """The bytes that an earlier try left in `part`, which is there afterwards."""
    if part.exists() and part.stat().st_size > file.size:
        part.unlink()
    part.touch()
    return part.stat().st_size


def _complete(file: RemoteFile, part: Path, stop: int, *, count: Callable[[int], None]) -> None:
    """Append to `part` until it has `stop` bytes."""
    failures = 0
    while (start := part.stat().st_size) < stop:
        problem = Interrupted(f"the hub sends no more than {start} of {file.size} bytes")
        try:
            _append(file, part, (start, stop), count=count)
        except Interrupted as error:
            problem = error
        failures = 0 if part.stat().st_size > start else failures + 1
        if failures > RETRIES:
            raise problem
        if failures:
            time.sleep(min(0.25 * 2**failures, 8))


def _append(file: RemoteFile, part: Path, span: tuple[int, int], *, count: Callable[[int], None]) -> None:
    """Fetch from span[0] on until span[1] or the server stops; a server that ignores ranges begins from 0 again."""
    start, stop = span
    with file.read(start, stop if stop < file.size else None) as body:
        if start and not body.resumed:
            count(-start)
            start = 0
        left = stop - start
        with part.open("ab" if body.resumed else "wb") as out:
            for chunk in body.chunks:
                out.write(chunk[:left])
                count(min(len(chunk), left))
                left -= len(chunk)
                if left < 0:
                    break


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

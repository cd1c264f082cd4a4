"""Files and batches on disk: bounded in number, in bytes and in time. Nobody sees what came with another key.

For each, NAME.json tells what it is, and for a file NAME.data is its content. Names are made here, never by a client.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Literal

import msgspec

from octavo.base.errors import ConfigError
from octavo.base.files import write_whole
from octavo.server.batch.types import BatchObject, FileObject, Purpose
from octavo.server.errors import HttpError

log = logging.getLogger(__name__)

MAX_FILES = 1024
MAX_BATCHES = 1024
MAX_BYTES = 4 << 30
KEEP_S = 30 * 86400
_OWN = re.compile(r"((?:file-|batch_)[0-9a-f]{32})(?:_output|_errors)?\.data")
_OWN_TORN = re.compile(r"(?:file-|batch_)[0-9a-f]{32}\.torn")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_GOING_ON = ("validating", "in_progress", "finalizing", "cancelling")


class Kept(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What NAME.json holds: a file or a batch, and the digest of the key it came with."""

    owner: bytes
    file: FileObject | None = None
    batch: BatchObject | None = None
    keep_results_s: int = KEEP_S


class BatchStore:
    """folder: where all is kept, and found again by the next process; None: a temporary folder, gone with this one."""

    def __init__(self, folder: str | None) -> None:
        self._given = folder
        self._folder: Path | None = None
        self._kept: dict[str, Kept] = {}
        self._num_files = self._num_bytes = 0
        if folder is not None:
            self._folder = Path(os.path.expanduser(folder))
            self._load()

    @property
    def folder(self) -> Path:
        """The folder; a temporary one is made when it is first needed."""
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="octavo-batch-"))
        return self._folder

    def close(self) -> None:
        """Remove a temporary folder; nothing can be kept any more."""
        if self._given is None and self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def files(self, owner: bytes) -> list[FileObject]:
        """All files, the newest first."""
        self._expire()
        found = [kept.file for kept in self._kept.values() if kept.owner == owner and kept.file is not None]
        return found[::-1]

    def batches(self, owner: bytes) -> list[BatchObject]:
        """All batches, the newest first."""
        self._expire()
        found = [kept.batch for kept in self._kept.values() if kept.owner == owner and kept.batch is not None]
        return found[::-1]

    def unfinished(self) -> list[Kept]:
        """Batches that a process left before they were done."""
        return [kept for kept in self._kept.values() if kept.batch is not None and kept.batch.status in _GOING_ON]

    def file(self, name: str, owner: bytes, *, param: str | None = None) -> FileObject:
        """A file; a 404 where there is none of this name for this owner."""
        found = self._find(name, owner).file
        if found is None:
            raise _missing("file", name, param)
        return found

    def batch(self, name: str, owner: bytes) -> Kept:
        """A batch; a 404 as for `file`."""
        found = self._find(name, owner)
        if found.batch is None:
            raise _missing("batch", name, None)
        return found

    def _find(self, name: str, owner: bytes) -> Kept:
        self._expire()
        kept = self._kept.get(name)
        return kept if kept is not None and kept.owner == owner else Kept(owner=owner)

    def add_file(self, owner: bytes, content: bytes, *, filename: str, keep_s: int = KEEP_S) -> FileObject:
        """Keep an uploaded file; a 413 where there is no room, a 507 where the disk is full."""
        self._expire()
        self.check_room(len(content))
        name = new_name("file")
        _write(self.path(name), content)
        try:
            return self.adopt(owner, name, filename=filename, purpose="batch", keep_s=keep_s)
        except BaseException:
            self.path(name).unlink(missing_ok=True)
            raise

    def adopt(self, owner: bytes, name: str, *, filename: str, purpose: Purpose, keep_s: int) -> FileObject:
        """Make a file of what `path(name)` holds; a 507 where the disk has no room to tell of it."""
        now = int(time.time())
        made = FileObject(
            id=name,
            bytes=self.path(name).stat().st_size,
            created_at=now,
            expires_at=now + keep_s,
            filename=filename,
            purpose=purpose,
        )
        self._put(name, Kept(owner=owner, file=made))
        return made

    def check_room(self, size: int) -> None:
        """A 413 unless a file of `size` bytes can be added."""
        if self._num_files >= MAX_FILES or self._num_bytes + size > MAX_BYTES:
            raise HttpError(413, "there is no room for more files; delete some", kind="PayloadTooLarge")

    def add_batch(self, kept: Kept) -> None:
        """Keep a new batch; a 413 where there are too many."""
        self._expire()
        if sum(known.batch is not None for known in self._kept.values()) >= MAX_BATCHES:
            raise HttpError(413, f"{MAX_BATCHES} batches are kept; wait until some expire", kind="TooMany")
        self.save(kept)

    def save(self, kept: Kept) -> None:
        """Keep a batch's state as it is now; a 507 where the disk is full."""
        if kept.batch is not None:
            self._put(kept.batch.id, kept)

    def delete_file(self, name: str, owner: bytes) -> None:
        """Forget a file; a 404 as for `file`."""
        self._drop(self.file(name, owner).id)

    def path(self, name: str) -> Path:
        """Where a file's content is."""
        return self.folder / f"{name}.data"

    def _put(self, name: str, kept: Kept) -> None:
        _write(self.folder / f"{name}.json", msgspec.json.encode(kept))
        self._note(name, kept)

    def _note(self, name: str, kept: Kept) -> None:
        if kept.file is not None:  # put once, a batch often
            self._num_files, self._num_bytes = self._num_files + 1, self._num_bytes + kept.file.bytes
        self._kept[name] = kept

    def _drop(self, name: str) -> None:
        kept = self._kept.pop(name)
        if kept.file is not None:
            self._num_files, self._num_bytes = self._num_files - 1, self._num_bytes - kept.file.bytes
        (self.folder / f"{name}.json").unlink(missing_ok=True)
        self.path(name).unlink(missing_ok=True)

    def _expire(self) -> None:
        now = time.time()
        for name, kept in list(self._kept.items()):
            if kept.file is not None and kept.file.expires_at <= now:
                self._drop(name)
            batch = kept.batch
            if batch is not None and batch.status not in _GOING_ON and batch.created_at + KEEP_S <= now:
                self._drop(name)

    def _load(self) -> None:
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _sweep(self.folder)
            found = sorted(self.folder.glob("*.json"), key=lambda path: path.stat().st_mtime)
        except OSError as error:
            raise ConfigError(f"--batch-dir {self.folder}: {error.strerror}", param="batch_dir") from None
        read: list[tuple[str, Kept]] = []
        for path in found:
            try:
                read.append((path.stem, msgspec.json.decode(path.read_bytes(), type=Kept)))
            except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
                log.warning("--batch-dir: %s is passed over: %s", path.name, error)
        for name, kept in sorted(read, key=lambda one: _created_at(one[1])):  # a batch was written again since
            self._note(name, kept)


def _sweep(folder: Path) -> None:
    """Remove what a process that crashed left: half-written files, and contents that no NAME.json tells of."""
    for path in list(folder.iterdir()):  # before their NAME.json is looked for, which comes after them
        own = _OWN.fullmatch(path.name)
        nobodys = own is not None and not (folder / f"{own[1]}.json").exists()
        if nobodys or _OWN_TORN.fullmatch(path.name):
            with suppress(OSError):
                path.unlink()
                log.warning("--batch-dir: %s is removed: a process that crashed left it", path.name)


def _created_at(kept: Kept) -> int:
    made = kept.batch or kept.file
    return made.created_at if made is not None else 0


def new_name(kind: str) -> str:
    """A name that nobody can guess."""
    return f"{kind}-{uuid.uuid4().hex}" if kind == "file" else f"{kind}_{uuid.uuid4().hex}"


def _missing(kind: str, name: str, param: str | None) -> HttpError:
    return HttpError(404, f"there is no {kind} {name[:80]!r}; it may have expired", kind="NotFoundError", param=param)


def open_private(path: Path, mode: Literal["wb", "ab"]) -> FileIO:
    """Open a file for writing, unbuffered, that only this user may read, whatever the folder lets others do."""
    return open(path, mode, buffering=0, opener=lambda name, flags: os.open(name, flags, 0o600))


@contextmanager
def telling_full() -> Iterator[None]:
    """A 507 in place of an OSError that says that there is no room."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise HttpError(507, "the disk is full; make room on the server", kind="InsufficientStorage") from None


def _write(path: Path, content: bytes) -> None:
    """All of it, or nothing."""
    torn = path.with_suffix(".torn")
    try:
        with telling_full(), open_private(torn, "wb") as file:
            write_whole(file, content)
        os.replace(torn, path)
    except BaseException:
        torn.unlink(missing_ok=True)
        raise

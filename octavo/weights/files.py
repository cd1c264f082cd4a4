"""Files of a checkpoint in: read-only views of their bytes, and JSON objects out. Damage is a ModelFormatError."""

from __future__ import annotations

import json
import mmap
import os
from pathlib import Path
from typing import Any, NamedTuple

from octavo.base.errors import ModelFormatError

MAX_JSON_BYTES = 256 << 20
LFS_POINTER = b"version https://git-lfs.github.com/"


class Identity(NamedTuple):
    """Of a file and its content: any write moves changed_ns, which no program can set back."""

    device: int
    inode: int
    nbytes: int
    modified_ns: int
    changed_ns: int


class MappedFile(mmap.mmap):
    """A whole file, mapped read-only.  path: free of links.  identity: when it was mapped."""

    path: Path
    identity: Identity


def release(*views: memoryview) -> None:
    """Tell the system that mapped files are not needed in memory for now; reading them again still works."""
    for mapped in {id(view.obj): view.obj for view in views}.values():
        if isinstance(mapped, MappedFile) and hasattr(mmap, "MADV_DONTNEED"):
            mapped.madvise(mmap.MADV_DONTNEED)


def identity_of(status: os.stat_result) -> Identity:
    """An open file's, or a path's."""
    return Identity(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def map_file(path: Path) -> memoryview:
    """A view of the whole file's MappedFile, which lives as long as a view of it does."""
    try:
        with path.open("rb") as file:
            mapped = MappedFile(file.fileno(), 0, access=mmap.ACCESS_READ)
            mapped.path, mapped.identity = Path(os.path.realpath(path)), identity_of(os.fstat(file.fileno()))
    except ValueError as error:  # an empty file cannot be mapped
        raise ModelFormatError(f"{path.name} is empty; download it again") from error
    except OSError as error:
        raise ModelFormatError(f"{path.name} cannot be read: {error.strerror}") from error
    if mapped[: len(LFS_POINTER)] == LFS_POINTER:
        raise ModelFormatError(
            f"{path.name} is a pointer of Git LFS, not the file itself; type: git lfs pull, in its folder"
        )
    return memoryview(mapped)


def read_text(path: Path) -> str:
    """A UTF-8 text file of at most MAX_JSON_BYTES."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ModelFormatError(f"{path.name} is larger than {MAX_JSON_BYTES} bytes; this is no model's file")
        return path.read_text("utf-8")
    except OSError as error:
        raise ModelFormatError(f"{path.name} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ModelFormatError(f"{path.name} is not UTF-8 text; download it again") from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; {} if there is no such file."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise ModelFormatError(f"{path.name} is not valid JSON ({error}); download it again") from error
    if not isinstance(value, dict):
        raise ModelFormatError(f"{path.name} must hold a JSON object, not {type(value).__name__}")
    return value

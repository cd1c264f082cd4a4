"""A path in; whether a file can be written there, told before any work is done, and a file that appears there whole."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from octavo.base.errors import ConfigError


def as_path(text: str) -> Path:
    """A path of the command line; a shell leaves the ~ of --option=~/file to us."""
    return Path(os.path.expanduser(text))  # Path.expanduser() raises where there is no such user


def check_writable(name: str, path: str | None) -> None:
    """ConfigError, before anything is run, where the file could not be written. name: the flag."""
    if path is None:
        return
    target = as_path(path)
    folder = target.absolute().parent
    if not folder.is_dir():
        raise ConfigError(f"{name} {path}: the folder {folder} does not exist; make it first", param=name)
    try:
        if target.is_dir():
            raise ConfigError(f"{name} {path} is a folder; name a file", param=name)
        if _is_special(target):
            return
        if target.exists() and not os.access(target, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        trial = _beside(target.resolve())
        trial.open("x").close()
        trial.unlink()
    except OSError as error:
        raise ConfigError(f"{name} {path} cannot be written: {error.strerror or error}", param=name) from None


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """An OSError of the block names the file that is written in it: writes themselves do not."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


@contextmanager
def replacing(path: str | Path) -> Iterator[TextIO]:
    """A file that takes the path's place when the block has ended well; until then what is there stays.

    A pipe or a device is written as it is. OSErrors name the path.
    """
    target = as_path(str(path))
    if _is_special(target):
        with naming(path), target.open("w", encoding="utf-8") as file:
            yield file
        return
    target = target.resolve()  # a link stays one
    fresh = _beside(target)
    try:
        with naming(path):
            with fresh.open("w", encoding="utf-8") as file:
                yield file
            if target.exists():
                shutil.copymode(target, fresh)
            fresh.replace(target)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise


def _is_special(target: Path) -> bool:
    return target.exists() and not target.is_file()


def _beside(target: Path) -> Path:
    return target.with_name(f".octavo-{os.getpid()}.tmp")

"""Lines in, a file that holds whole ones out, whatever the disk takes."""

from __future__ import annotations

import os
from contextlib import suppress
from io import FileIO


def write_whole(file: FileIO, data: bytes) -> None:
    """All of it at the file's end, or, where it can be cut, nothing of it and an OSError."""
    done = 0
    try:
        while done < len(data):
            done += file.write(data[done:]) or 0
    except OSError:
        with suppress(OSError):
            os.ftruncate(file.fileno(), os.lseek(file.fileno(), 0, os.SEEK_CUR) - done)
            os.lseek(file.fileno(), 0, os.SEEK_END)
        raise

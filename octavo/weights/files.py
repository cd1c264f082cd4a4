"""Files of a checkpoint in: read-only views of their bytes, and JSON objects out. Damage is a ModelFormatError."""

from __future__ import annotations

import json
import mmap
from pathlib import Path
from typing import Any

from octavo.base.errors import ModelFormatError

MAX_JSON_BYTES = 256 << 20


def map_file(path: Path) -> memoryview:
    """The whole file, mapped read-only; the mapping lives as long as a view of it does."""
    try:
        with path.open("rb") as file:
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except ValueError as error:  # an empty file cannot be mapped
        raise ModelFormatError(f"{path.name} is empty; download it again") from error
    except OSError as error:
        raise ModelFormatError(f"{path.name} cannot be read: {error.strerror}") from error


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

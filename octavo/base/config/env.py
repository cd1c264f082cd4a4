"""The environment variables that Octavo itself reads, each with its meaning; docs/configuration.md lists them."""

from __future__ import annotations

import os
from pathlib import Path

from octavo.base.errors import ConfigError

VARIABLES: dict[str, str] = {
    "OCTAVO_API_KEY": "Key that requests must carry, as --api-key.",
    "OCTAVO_ADMIN_API_KEY": "Key of the admin routes, as --admin-api-key.",
    "OPENAI_API_KEY": "Key that `octavo bench serve` sends; OCTAVO_API_KEY where unset.",
    "OCTAVO_CACHE": "Folder for converted tokenizers and other derived files; ~/.cache/octavo where unset.",
    "OCTAVO_PACKED_CACHE": "0: do not keep weights as the CPU reads them (as large as the model) under OCTAVO_CACHE.",
    "OCTAVO_LOG_LEVEL": "DEBUG, INFO, WARNING or ERROR; INFO where unset.",
    "OCTAVO_FAULTS": "Faults on purpose, for tests only (octavo/base/faults.py).",
    "OMP_NUM_THREADS": "CPU threads where --threads is not given.",
    "HF_HOME": "Where the hub's client keeps its files; XDG_CACHE_HOME/huggingface where unset.",
    "HF_HUB_CACHE": "Where hub downloads are kept; HF_HOME/hub where unset.",
    "XDG_CACHE_HOME": "Of HF_HOME's default; ~/.cache where unset.",
    "HF_ENDPOINT": "The hub's address.",
    "HF_TOKEN": "The hub token.",
    "HF_HUB_OFFLINE": "1: never ask the hub, use what was downloaded.",
}


def read(name: str, default: str = "") -> str:
    """The variable's value; KeyError for one that is not listed above."""
    if name not in VARIABLES:
        raise KeyError(f"{name} is not listed in octavo.base.config.env.VARIABLES")
    return os.environ.get(name, default)


def ordered_threads() -> int | None:
    """OMP_NUM_THREADS; None where it is not set, 0 where it is no number above 0 and so is passed over."""
    text = read("OMP_NUM_THREADS")
    return (int(text) if text.isdigit() else 0) if text else None


def find_cache_folder() -> Path | None:
    """Where Octavo keeps what it derives from models; it need not exist yet. None for a user without a home."""
    try:
        return Path(read("OCTAVO_CACHE") or "~/.cache/octavo").expanduser()
    except RuntimeError:
        return None


def cache_folder() -> Path:
    """As find_cache_folder, for what cannot do without. Raises ConfigError where there is none."""
    found = find_cache_folder()
    if found is None:
        raise ConfigError(
            f"OCTAVO_CACHE={read('OCTAVO_CACHE')}: this user has no home directory; set OCTAVO_CACHE to a folder that "
            "can be written"
        )
    return found


def packed_folder() -> Path | None:
    """Where weights are kept as the CPU reads them; None where they shall not or cannot be."""
    folder = None if read("OCTAVO_PACKED_CACHE") == "0" else find_cache_folder()
    return folder and folder / "packed"

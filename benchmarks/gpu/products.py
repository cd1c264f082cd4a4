"""What the benchmarks of products share: compiling ahead in processes of their own, JSON lines, names of variants."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch

from octavo.backends.torch.kernels.skinny_choice import Variant

WORKERS = 14


def label(variant: Variant) -> str:
    """v: vector, d: dot, s: dot with the weights as the tall side."""
    if variant.form == "vector":
        return f"v{variant.block_n}x{variant.block_k}w{variant.warps}"
    end = f"k{variant.split}" if variant.split > 1 else ""
    return f"{'ds'[variant.swap]}{variant.block_n}x{variant.block_k}w{variant.warps}s{variant.stages}{end}"


def compile_share(cases: Iterable[Any], launch: Callable[[Any], object], index: int) -> None:
    """Launches every WORKERS-th case once, so that Triton's disk cache has them."""
    for case in list(cases)[index::WORKERS]:
        try:
            launch(case)
            torch.cuda.synchronize()
        except Exception as error:
            print("compiling", case, repr(error)[:300], flush=True)
            if "CUDA error" in repr(error):
                return


def compile_all(script: str, part: str, seconds: float) -> None:
    """Runs the script with --compile in WORKERS processes, for so long at the most."""
    start = time.time()
    command = [sys.executable, script, part, "--compile"]
    workers = [subprocess.Popen([*command, str(i)]) for i in range(WORKERS)]
    for worker in workers:
        try:
            worker.wait(max(1.0, seconds - (time.time() - start)))
        except subprocess.TimeoutExpired:
            worker.kill()
    print(f"compiled in {time.time() - start:.1f} s", flush=True)


class Lines:
    """JSON lines out, table rows kept for the end."""

    kernel: str

    def __init__(self) -> None:
        folder = os.environ.get("OUT")
        self.file = open(os.path.join(folder, f"{self.kernel}.jsonl"), "w") if folder else sys.stdout  # noqa: SIM115
        self.rows: list[str] = []

    def line(self, **values: object) -> None:
        self.file.write(json.dumps({"kernel": self.kernel, **values}) + "\n")
        self.file.flush()

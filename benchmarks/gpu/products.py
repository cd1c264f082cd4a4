"""What the benchmarks of products share: shapes, compiling ahead in processes of their own, times, JSON lines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import triton
from timing import graph_us
from torch import Tensor

from octavo.backends.torch.kernels.direct_choice import MAX_ROWS as MOST_DIRECT
from octavo.backends.torch.kernels.direct_choice import Direct
from octavo.backends.torch.kernels.skinny_choice import Variant, row_blocks

SHAPES = {  # name: (N, K)
    "8b.qkv": (6144, 4096),
    "8b.o": (4096, 4096),
    "8b.gate_up": (28672, 4096),
    "8b.down": (4096, 14336),
    "q06.qkv": (4096, 1024),
    "q06.o": (1024, 2048),
    "q06.gate_up": (6144, 1024),
    "q06.down": (1024, 3072),
}
CACHE_BYTES = 160 << 20  # weights rotated over: three times the L2 cache
WORKERS = 14


def copies_of(size: int, least: int) -> int:
    """Copies of a weight of `size` bytes: so many that none of it is found in cache; one where `least` is 0."""
    return max(2, triton.cdiv(least, size)) if least else 1


def block_of(variant: Any, m: int) -> int:
    """Tokens that the variant's kernel is compiled for."""
    if isinstance(variant, Direct):
        return 8 if m <= 8 else 16
    return m if variant.form == "vector" else row_blocks(m)[0]


def splits(variant: Any, tiles: int, k: int, wanted: Sequence[int]) -> list[Any]:
    """The variant, whose programs are as many as tiles, split until there are about as many as each wanted."""
    found = []
    for programs in wanted:
        split = 1
        while split < 8 and tiles * split * 2 <= programs and k >= split * 4 * variant.block_k:
            split *= 2
        found.append(replace(variant, split=split))
    return found


def copies_us(launch: Callable[[int], object], copies: int, least: int = 4) -> float:
    """Microseconds of launch(copy), every copy of the weight in its turn."""
    return graph_us([partial(launch, i % copies) for i in range(max(copies, least))])


def check_and_time(
    launch: Callable[[int], Tensor], copies: int, wanted: Tensor, *, exact: Callable[[], bool] = lambda: True
) -> tuple[float, float]:
    """(microseconds, error relative to the greatest value) of launch(copy), which gives its out.

    The error is infinite where a repetition gives other bits, or `exact` says no after the first launch.
    """
    out = launch(0)
    error = float((out.double() - wanted).abs().max() / wanted.abs().max())
    if not exact():
        error = float("inf")
    before = out.clone()
    us = copies_us(launch, copies)
    out.fill_(float("nan"))
    if not torch.equal(launch(0), before):
        error = float("inf")
    return us, error


def directs(m: int, *, gated: bool) -> list[Direct]:
    """One and two tiles of weight rows a program, with few and many warps."""
    if m > MOST_DIRECT:
        return []
    sizes = [(4, 1, 128), (4, 2, 128), (8, 1, 80), (8, 1, 128), (8, 2, 80), (8, 2, 128), (16, 1, 128)]
    return [Direct(block_n, *size) for block_n in ((16,) if gated else (16, 32)) for size in sizes]


def label(variant: Variant | Direct) -> str:
    """v: vector, d: dot, s: dot with the weights as the tall side, r: direct."""
    if isinstance(variant, Direct):
        return f"r{variant.block_n}w{variant.warps}s{variant.stages}r{variant.registers}"
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
    label = staticmethod(label)

    def __init__(self) -> None:
        folder = os.environ.get("OUT")
        self.file = open(os.path.join(folder, f"{self.kernel}.jsonl"), "w") if folder else sys.stdout  # noqa: SIM115
        self.rows: list[str] = []

    def line(self, **values: object) -> None:
        self.file.write(json.dumps({"kernel": self.kernel, **values}) + "\n")
        self.file.flush()

    def variants(
        self,
        title: str,
        cases: Iterable[Any],
        measure: Callable[[Any], tuple[float, float]],
        traffic: float,
        chosen: Any,
    ) -> tuple[list[tuple[float, str]], str]:
        """A line for each case, by `measure` (microseconds, error); (those that are right, " choose .." if chosen is).

        traffic: MB, so that over microseconds it is TB/s.
        """
        timed: list[tuple[float, str]] = []
        at_choice = ""
        for case in cases:
            what = f"{title} {self.label(case.variant)}"
            try:
                us, error = measure(case)
            except Exception as failure:
                self.line(case=what, error=repr(failure)[:300])
                self.rows.append(f"FAILED {what} {repr(failure)[:100]}")
                continue
            self.line(case=what, us=round(us, 2), tb_s=round(traffic / us, 3), error=error)
            if not error < 0.02:
                self.rows.append(f"WRONG {what} error {error}")
                continue
            timed.append((us, self.label(case.variant)))
            if case.variant == chosen:
                at_choice = f" choose {us:.1f}"
        return sorted(timed), at_choice


def run(
    make_report: Callable[[], Any],
    measure: Callable[[str, Any, float], None],
    *,
    cases: Callable[[str], list[Any]],
    launch: Callable[[Any], object],
    seconds: float,
) -> None:
    """A benchmark's command line: its part, and seconds to take. cases: of a part, what is to be compiled."""
    script, part = sys.argv[0], sys.argv[1] if len(sys.argv) > 1 else "all"
    if "--compile" in sys.argv:
        compile_share(cases(part), launch, int(sys.argv[-1]))
        return
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else seconds
    start = time.time()
    if cases(part):
        compile_all(script, part, seconds * 0.6)
    report = make_report()
    try:
        measure(part, report, start + seconds * 0.9)
    finally:
        print("\n".join(report.rows))
        print(f"{time.time() - start:.1f} s")

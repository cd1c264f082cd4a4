"""Checks and times kernels/byte_matmul.py, x rounded on the way, beside libraries; a table last, every timing as JSON.

python benchmarks/gpu/byte_matmul.py [all | few | blocks | integers | many] [seconds]; JSON lines:
$OUT/byte_matmul.jsonl.

few: 16 to 256 tokens in E4M3 with scales by row.  blocks: with scales by block.  integers: int8 by row.
many: 1,024 and 8,192 tokens of all three.
Beside them: E4M3 by torch._scaled_mm, x rounded on the way, too; integers by torch._int_mm, without rounding and
scales.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
import triton
from products import CACHE_BYTES, SHAPES, Lines, block_of, check_and_time, copies_of, copies_us, run
from torch import Tensor

from octavo.backends.torch.kernels.byte_matmul import byte_matmul, choose_bytes, many_bytes
from octavo.backends.torch.kernels.fp8_matmul import quantize_rows, scaled_matmul
from octavo.backends.torch.kernels.skinny_choice import Variant, row_blocks
from octavo.backends.torch.kernels.skinny_matmul import Plan, Scaled, make_scratch, scratch_sizes
from octavo.backends.torch.quant.scaled import ScaledMatrix

SHAPES = {name: shape for name, shape in SHAPES.items() if name.startswith("8b")}
KINDS = {"few": "rows", "blocks": "blocks", "integers": "int8"}
ROWS = (16, 32, 48, 64, 128, 256)
MANY = (1024, 8192)
SIZES = {  # tokens of a program: rows of weights, block_k, warps, stages
    16: ((64, 128, 4, 4), (64, 128, 4, 6), (64, 256, 4, 4), (128, 128, 4, 4)),
    32: ((64, 128, 4, 4), (64, 128, 4, 6), (64, 256, 4, 3), (128, 128, 8, 4)),
    64: ((64, 128, 4, 4), (64, 256, 4, 3), (128, 128, 4, 4), (128, 128, 8, 4)),
    128: ((64, 128, 4, 4), (128, 128, 4, 4), (128, 128, 8, 4), (256, 128, 8, 3)),
}


class Case(NamedTuple):
    """One launch: name of a shape, tokens, "rows", "blocks" or "int8", variant."""

    name: str
    m: int
    kind: str
    variant: Variant


def chosen(name: str, m: int, kind: str) -> Variant | None:
    n, k = SHAPES[name]
    columns = 128 if kind == "blocks" else 0
    if m in MANY:
        return many_bytes(m, k, columns=columns)
    return choose_bytes(m, n, k, columns=columns, library=kind != "int8")


def group(name: str, m: int, kind: str) -> list[Case]:
    """All variants, split once and twice where there is room, and what is chosen."""
    n, k = SHAPES[name]
    block, blocks = row_blocks(m)
    variants = []
    for block_n, block_k, warps, stages in SIZES[block]:
        if (kind == "blocks" and (block_k != 128 or block * block_n > 16384)) or k % block_k:
            continue
        base = Variant("bytes", block_n, block_k, warps, stages, swap=True)
        programs = blocks * triton.cdiv(n, block_n)
        variants += [replace(base, split=split) for split in (1, 2, 4) if split == 1 or programs * split <= 400]
    choice = chosen(name, m, kind)
    variants += [] if choice is None else [choice]
    return [Case(name, m, kind, variant) for variant in dict.fromkeys(variants)]


def groups(part: str) -> Iterator[tuple[str, int, str]]:
    for which, kind in KINDS.items():
        for name in SHAPES:
            yield from ((name, m, kind) for m in ROWS if part in ("all", which))
            yield from ((name, m, kind) for m in MANY if part in ("all", "many"))


def distinct_cases(part: str) -> list[Case]:
    """One of all launches that are the same in what Triton compiles."""
    found = {}
    for name, m, kind in groups(part):
        for case in group(name, m, kind):
            found[SHAPES[name][1], block_of(case.variant, m), kind, case.variant] = case
    return list(found.values())


class Bench:
    """Inputs of one shape: enough copies of the weight to find none of it in cache."""

    def __init__(self, name: str, kind: str, *, least: int = CACHE_BYTES) -> None:
        self.n, self.k = n, k = SHAPES[name]
        self.group = (128, 128) if kind == "blocks" else (1, 0)
        element = torch.int8 if kind == "int8" else torch.float8_e4m3fn
        self.weights = torch.empty(copies_of(n * k, least), n, k, device="cuda", dtype=element)
        for copy in self.weights:
            copy.copy_(torch.randn(n, k, device="cuda").clamp_(-4, 4) * (30 if kind == "int8" else 100))
        shape = (triton.cdiv(n, 128), k // 128) if kind == "blocks" else (n, 1)
        self.scale = (torch.rand(shape, device="cuda") + 0.5) / 100 * k**-0.5
        self.x = torch.randn(max(MANY), k, device="cuda", dtype=torch.bfloat16)

    def launches(self, case: Case) -> Callable[[int], Tensor]:
        """launch(copy), which gives its out."""
        x = self.x[: case.m]
        out = torch.full((case.m, self.n), float("nan"), device="cuda", dtype=x.dtype)
        elements, tiles = scratch_sizes(case.variant, case.m, self.n)
        plan = Plan(case.variant, make_scratch(elements, tiles, "cuda") if tiles else None)
        return lambda i: byte_matmul(x, Scaled(self.weights[i], self.scale, self.group), out, plan)

    def wanted(self, m: int) -> Tensor:
        """float64, of x as it is rounded; of 256 tokens at the most."""
        x, columns = self.x[: min(m, 256)], self.group[1]
        rows, scale = quantize_rows(x, dtype=self.weights.dtype, columns=columns)
        rounded = (rows.double() * scale.double().repeat_interleave(columns or self.k, 1))[: len(x)]
        weight = ScaledMatrix(self.weights[0], self.scale, self.group).dequantize(torch.float32)
        return torch.cat([rounded @ piece.double().T for piece in weight.split(4096)], dim=1)

    def library(self, m: int) -> float:
        x = self.x[:m]
        if self.weights.dtype == torch.int8:
            rows, _ = quantize_rows(x, dtype=torch.int8)
            rows = torch.cat([rows] * (1 if m > 16 else 2))  # 17 at least
            return copies_us(lambda i: torch._int_mm(rows, self.weights[i].t()), len(self.weights))
        return copies_us(
            lambda i: scaled_matmul(x, self.weights[i], self.scale, None, group=self.group), len(self.weights)
        )


class Report(Lines):
    """Times, and tells."""

    kernel = "byte_matmul"

    def cases(self, bench: Bench, cases: list[Case]) -> None:
        """Times all variants of one (shape, tokens, kind), keeps the row of the table."""
        first = cases[0]
        wanted = bench.wanted(first.m)

        def timed(case: Case) -> tuple[float, float]:
            launch = bench.launches(case)
            return check_and_time(lambda i: launch(i)[: len(wanted)], len(bench.weights), wanted)

        title = f"{first.name} {first.kind} m{first.m}"
        choice = chosen(first.name, first.m, first.kind)
        found, at_choice = self.variants(title, cases, timed, bench.n * bench.k / 1e6, choice)
        best = ", ".join(f"{name} {us:.1f}" for us, name in found[:4])
        tops = f" {2e-6 * first.m * bench.n * bench.k / found[0][0]:.0f} TOPS" if found and first.m in MANY else ""
        self.rows.append(f"{title} library {bench.library(first.m):.1f} best {best}{at_choice}{tops}")


def measure(part: str, report: Report, deadline: float) -> None:
    bench, last = None, None
    for name, m, kind in groups(part):
        if time.time() > deadline:
            report.rows.append(f"out of time before {name} {kind} {m}")
            return
        if last != (name, kind):
            bench, last = None, (name, kind)
            bench = Bench(name, kind)
        assert bench is not None
        report.cases(bench, group(name, m, kind))


def main() -> None:
    def launch(case: Case) -> None:
        Bench(case.name, case.kind, least=0).launches(case)(0)

    run(Report, measure, cases=distinct_cases, launch=launch, seconds=120.0)


if __name__ == "__main__":
    main()

"""Checks and times kernels/int4_matmul.py beside torch's bfloat16 product; a compact table last, all timings as JSON.

python benchmarks/gpu/int4_matmul.py [all | plain | gated] [seconds]; JSON lines: $OUT/int4_matmul.jsonl.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import products
import torch
import torch.nn.functional as F
import triton
from products import (
    CACHE_BYTES,
    SHAPES,
    Lines,
    block_of,
    check_and_time,
    copies_of,
    copies_us,
    directs,
    run,
    splits,
)
from torch import Tensor

from octavo.backends.torch.kernels.direct_choice import Direct
from octavo.backends.torch.kernels.gated import gated
from octavo.backends.torch.kernels.int4_matmul import (
    Variant,
    choose,
    dequantize,
    int4_matmul,
    scratch_sizes,
)
from octavo.backends.torch.kernels.skinny_choice import row_blocks
from octavo.backends.torch.kernels.skinny_matmul import make_scratch
from octavo.backends.torch.quant.int4 import Int4Matrix

SHAPES = {name: shape for name, shape in SHAPES.items() if name.startswith("8b")}
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
WHOLE_ROWS = (128, 256, 8192)  # dequantized, then the library's product
GROUP = 128


def vector(block_n: int, repeat: int, warps: int, stages: int) -> Variant:
    return Variant("vector", block_n, warps, stages, repeat=repeat)


def dot(block_n: int, block_k: int, warps: int, stages: int) -> Variant:
    return Variant("dot", block_n, warps, stages, block_k=block_k)


VECTORS = (  # the first few have all 4096 of K in flight at once
    vector(8, 2, 4, 8),
    vector(8, 2, 8, 4),
    vector(8, 1, 4, 8),
    vector(8, 1, 8, 4),
    vector(4, 2, 4, 4),
    vector(8, 2, 16, 7),
    vector(8, 2, 8, 7),
    vector(8, 2, 4, 2),
    vector(8, 2, 4, 4),
    vector(8, 2, 8, 2),
    vector(8, 4, 4, 1),
    vector(8, 4, 4, 2),
    vector(16, 2, 4, 2),
)
DOTS = {  # padded M: variants before splitting
    16: (
        dot(64, 128, 4, 4),
        dot(64, 128, 4, 6),
        dot(128, 128, 8, 4),
    ),
    32: (dot(64, 128, 4, 4), dot(64, 128, 4, 3)),
    64: (dot(64, 128, 4, 3), dot(128, 128, 8, 3), dot(64, 64, 4, 4)),
    128: (dot(64, 128, 4, 3), dot(64, 128, 4, 2), dot(128, 128, 8, 3)),
}
DOT_ROWS = {1: 3, 2: 3, 4: 3, 8: 3}  # at these M only the first few: the same kernels as at 16


class Case(NamedTuple):
    """One launch: shape name, M, gated activation or "", with zeros?, variant."""

    name: str
    m: int
    act: str
    zeros: bool
    variant: Variant | Direct


def label(v: Variant | Direct) -> str:
    """v: vector, d: dot, r: direct; block_n x repeat or block_k, warps, stages, split."""
    if isinstance(v, Direct):
        return products.label(v)
    if v.form == "vector":
        return f"v{v.block_n}x{v.repeat}w{v.warps}s{v.stages}"
    end = f"k{v.split}" if v.split > 1 else ""
    return f"d{v.block_n}x{v.block_k}w{v.warps}s{v.stages}{end}"


def group(name: str, m: int, act: str, zeros: bool) -> list[Case]:
    """All variants and what choose takes, without doubles."""
    n, k = SHAPES[name]
    variants: list[Variant | Direct] = [v for v in VECTORS if m == 1 and (not act or v.repeat > 1)]
    variants += directs(m, gated=bool(act))
    block, blocks = row_blocks(m)
    for base in DOTS[block][: DOT_ROWS.get(m)]:
        tiles = blocks * triton.cdiv(n // 2 if act else n, base.block_n)
        variants += splits(base, tiles, k, (264, 528))
    chosen = choose(m, n, k, group=GROUP, gated=bool(act))
    if zeros:
        variants = variants[:2]
    if chosen is not None:
        variants.append(chosen)
    return [Case(name, m, act, zeros, v) for v in dict.fromkeys(variants)]


def all_cases(part: str) -> Iterator[Case]:
    for name in SHAPES if part in ("all", "plain") else ():
        for m in ROWS:
            yield from group(name, m, "", False)
        for m in (1, 16):
            yield from group(name, m, "", True)
    for m in ROWS if part in ("all", "gated") else ():
        yield from group("8b.gate_up", m, "silu", False)


class Bench:
    """Inputs of one shape: enough copies of the weight to find none of it in cache."""

    def __init__(self, name: str, least: int = CACHE_BYTES) -> None:
        self.n, self.k = n, k = SHAPES[name]
        copies = copies_of(n * k // 2, least)
        bounds = (-(1 << 31), (1 << 31) - 1)
        words = torch.randint(*bounds, (copies, k // 32, n, 4), device="cuda", dtype=torch.int32)
        scales = (torch.rand(copies, k // GROUP, n, device="cuda") + 0.5) * (0.2 / k**0.5)
        zeros = torch.randint(0, 16, (copies, k // GROUP, n), device="cuda", dtype=torch.uint8)
        self.scales, self.zeros = scales.half(), zeros
        self.words = words
        self.x = torch.randn(max(ROWS), k, device="cuda", dtype=torch.bfloat16)
        self.known: dict[tuple[str, bool], Tensor] = {}

    @property
    def copies(self) -> int:
        return len(self.words)

    def weight(self, i: int, zeros: bool) -> Int4Matrix:
        return Int4Matrix(self.words[i], self.scales[i], self.zeros[i] if zeros else None)

    def launches(self, case: Case) -> Callable[[int], Tensor]:
        """launch(copy), which gives its out."""
        x, v = self.x[: case.m], case.variant
        out = torch.full((case.m, self.n // 2 if case.act else self.n), float("nan"), device="cuda", dtype=x.dtype)
        elements, tiles = scratch_sizes(v, case.m, self.n, gated=bool(case.act))
        scratch = make_scratch(elements, tiles, "cuda") if tiles else None
        weights = [self.weight(i, case.zeros) for i in range(self.copies)]
        return lambda i: int4_matmul(x, weights[i], out, v, scratch=scratch, act=case.act)

    def wanted(self, act: str, zeros: bool) -> Tensor:
        """float64 reference for all rows and the first copy of the weight, in pieces so that it stays small."""
        if (act, zeros) not in self.known:
            pieces = [self.x.double() @ piece.T for piece in self.pieces(zeros)]
            y = torch.cat(pieces, dim=1)
            if act:
                gate, up = y.chunk(2, dim=-1)
                y = F.silu(gate) * up
            self.known[act, zeros] = y
        return self.known[act, zeros]

    def pieces(self, zeros: bool, rows: int = 4096) -> Iterator[Tensor]:
        """The first copy by Int4Matrix's definition, float64 [rows, k] at a time."""
        w = self.weight(0, zeros)
        for at in range(0, self.n, rows):
            words, here = w.words[:, at : at + rows], slice(at, at + rows)
            q = torch.empty(
                len(words), words.shape[1], 4, 4, 2, device="cuda", dtype=torch.float64
            )  # chunk, n, p, j, h
            for p in range(4):
                for h in range(2):
                    q[:, :, p, :, h] = (words >> 4 * (p + 4 * h)) & 15
            q = q.flatten(2).permute(1, 0, 2).reshape(words.shape[1], -1)
            scale = w.scales[:, here].T.double().repeat_interleave(GROUP, 1)
            less = 8.0 if w.zeros is None else w.zeros[:, here].T.double().repeat_interleave(GROUP, 1)
            yield (q - less) * scale

    def check_and_time(self, case: Case) -> tuple[float, float]:
        """As products.check_and_time."""
        wanted = self.wanted(case.act, case.zeros)[: case.m]
        return check_and_time(self.launches(case), self.copies, wanted)


def distinct_cases(part: str) -> list[Case]:
    """One of all launches that are the same in what Triton compiles."""
    distinct: dict[object, Case] = {}
    for case in all_cases(part):
        key = (SHAPES[case.name][1], block_of(case.variant, case.m), case.act, case.zeros, case.variant)
        if key not in distinct or SHAPES[case.name][0] < SHAPES[distinct[key].name][0]:
            distinct[key] = case
    return list(distinct.values())


class Report(Lines):
    """Times, and tells."""

    kernel = "int4_matmul"
    label = staticmethod(label)

    def group(self, bench: Bench, cases: list[Case]) -> None:
        """Times all variants of one (shape, M, act, zeros), keeps the best three for the table."""
        first = cases[0]
        title = f"{first.name}{'+' + first.act if first.act else ''}{' zeros' if first.zeros else ''} m{first.m}"
        traffic = bench.n * bench.k / 2 / 1e6  # packed bytes / microsecond = MB / s; / 1e6 gives TB/s
        chosen = choose(first.m, bench.n, bench.k, group=GROUP, gated=bool(first.act))
        timed, at_choice = self.variants(title, cases, bench.check_and_time, traffic, chosen)
        best = " ".join(f"{us:.1f} {name}" for us, name in timed[:3])
        if timed:
            self.rows.append(f"{title} {traffic / timed[0][0]:.2f} TB/s {best}{at_choice}")

    def whole(self, name: str, bench: Bench) -> None:
        """The matrix dequantized by itself, then with the library's product; the library's with bfloat16 weights."""
        scratch = torch.full((bench.n, bench.k), float("nan"), device="cuda", dtype=torch.bfloat16)
        dequantize(bench.weight(0, False), scratch)
        wanted = torch.cat([piece.bfloat16() for piece in bench.pieces(False)])
        if not torch.equal(scratch, wanted):
            self.rows.append(f"WRONG {name} dequantize, {int((scratch != wanted).sum())} weights")
        us = copies_us(lambda i: dequantize(bench.weight(i, False), scratch), bench.copies)
        self.line(
            case=f"{name} dequantize", us=round(us, 2), tb_s=round(2.5 * bench.n * bench.k / 1e6 / us, 3), error=0
        )
        row = f"{name} dequantize {us:.1f}"
        plain = torch.empty(3, bench.n, bench.k, device="cuda", dtype=torch.bfloat16).normal_(0, bench.k**-0.5)
        for m in (1, 16, *WHOLE_ROWS):
            x = torch.randn(m, bench.k, device="cuda", dtype=torch.bfloat16)
            us = copies_us(lambda i, x=x: F.linear(x, plain[i]), 3)
            self.line(case=f"{name} m{m} torch", us=round(us, 2), error=0)
            row += f"; m{m} bf16 {us:.1f}"
            if m in WHOLE_ROWS:

                def both(i: int, x: Tensor = x) -> Tensor:
                    return F.linear(x, dequantize(bench.weight(i, False), scratch))

                us = copies_us(both, min(bench.copies, 4))
                self.line(case=f"{name} m{m} dequantize and torch", us=round(us, 2), error=0)
                row += f" both {us:.1f}"
        y = torch.randn(1, bench.n, device="cuda", dtype=torch.bfloat16)
        if name == "8b.gate_up":
            acted = torch.empty(1, bench.n // 2, device="cuda", dtype=torch.bfloat16)
            us = copies_us(lambda i: gated(y, acted, "silu"), 8)
            row += f"; gated m1 {us:.1f}"
        self.rows.append(row)


def measure(part: str, report: Report, deadline: float) -> None:
    cases = list(all_cases(part))
    for name in dict.fromkeys(case.name for case in cases):
        bench = Bench(name)
        groups: dict[tuple[int, str, bool], list[Case]] = {}
        for case in cases:
            if case.name == name:
                groups.setdefault((case.m, case.act, case.zeros), []).append(case)
        for (m, _, _), members in groups.items():
            if time.time() > deadline:
                report.rows.append(f"out of time before {name} {m}")
                return
            report.group(bench, members)
        report.whole(name, bench)


def main() -> None:
    run(Report, measure, cases=distinct_cases, launch=lambda case: Bench(case.name, 0).launches(case)(0), seconds=90.0)


if __name__ == "__main__":
    main()

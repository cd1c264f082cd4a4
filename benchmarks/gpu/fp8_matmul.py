"""Checks and times products with E4M3 and int8 weights; a compact table last, every timing as JSON.

python benchmarks/gpu/fp8_matmul.py [all | few | 8b | fused | blocks | between | integers | many] [seconds]; JSON lines:
$OUT/fp8_matmul.jsonl.

few: kernels/skinny_matmul.py at 1 to 64 rows, beside the library's products in bfloat16 and with FP8 on both sides.
8b: of that, what is of Llama-3.1-8B.  fused: with norm and activation.
blocks: with scales by block, at few rows.
between: 96 to 256 rows of the same kernel, E4M3 in blocks and int8 in groups, beside the library's product in bfloat16
and of the weight widened in memory.  integers: int8 in groups at few rows.
many: 8192 and 512 rows in FP8 on both sides, beside bfloat16.  tb_s: bytes of E4M3 elements a second.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
from products import CACHE_BYTES, SHAPES, Lines, block_of, check_and_time, copies_of, copies_us, directs, run, splits
from torch import Tensor

from octavo.backends.torch.kernels.direct_choice import Direct
from octavo.backends.torch.kernels.fp8_matmul import choose_fp8, quantize_rows, scaled_matmul, widen
from octavo.backends.torch.kernels.skinny_choice import Variant, row_blocks
from octavo.backends.torch.kernels.skinny_matmul import Norm, Plan, Scaled, make_scratch, scratch_sizes, skinny_matmul
from octavo.backends.torch.quant.scaled import ScaledMatrix

FUSED = {"8b.qkv": "", "8b.gate_up": "silu", "q06.gate_up": "silu"}
ROWS = (1, 2, 4, 8, 16, 32, 64)
SMALL_ROWS = (1, 8, 64)  # of Qwen3-0.6B
FUSED_ROWS = (1, 4, 8, 16, 32, 64)
BLOCK_ROWS = (1, 4, 8, 16, 32, 64)
BETWEEN = (96, 128, 192, 256)
INTEGER_ROWS = (1, 2, 4, 8, 16, 32, 64)
MANY = (512, 8192)
EPS = 1e-5


class Case(NamedTuple):
    """One launch: name of a shape, M, activation or "", a norm?, columns of a scale's block or 0, variant, int8?"""

    name: str
    m: int
    act: str
    norm: bool
    columns: int
    variant: Variant | Direct
    integers: bool = False


def vectors(m: int, k: int, *, gated: bool, columns: int) -> list[Variant]:
    """Programs of 1 to 8 rows of weights."""
    whole = max(triton.next_power_of_2(k), 1024)
    if m > 4:
        return []
    if m > 2:
        return [Variant("vector", 2, 1024, 4)]
    sizes = [(4, 1024, 4), (2, 1024, 4), (4, 2048, 8)]
    if k > 4096 and m == 1:
        sizes += [(8, 1024, 4), (4, 2048, 4), (2, 4096, 8)]
    if whole <= 4096:
        sizes = [(2, whole, 4), (2, whole, 8), (4, whole, 8)]
        sizes += [] if m > 1 else [(1, whole, 4), (4, 1024, 4)]
        sizes += [] if m > 1 or gated else [(4, whole, 4), (8, whole, 8)]
    if columns:
        sizes = sizes[:3]
    return [Variant("vector", *size) for size in sizes]


def dots(m: int, n: int, k: int, *, gated: bool, columns: int) -> list[Variant]:
    """With and without the weights as the tall side, split until there is a program a multiprocessor, and two."""
    if m < 2 or (m == 2 and not gated):
        return []
    bases = [
        Variant("dot", 64, 128, 4, 4, swap=True),
        Variant("dot", 64, 128, 4, 6, swap=True),
        Variant("dot", 128, 128, 8, 4, swap=True),
        Variant("dot", 32, 128, 4, 6),
    ]
    if not columns and m <= 32:
        bases += [Variant("dot", 64, 256, 4, 4, swap=True), Variant("dot", 32, 256, 4, 5)]
    if m > 64:
        bases = [Variant("dot", 64, 128, 4, stages, swap=True) for stages in (2, 3)]
    elif m > 32:
        bases = [replace(base, stages=min(base.stages, 4)) for base in bases]
    found = []
    for base in bases:
        found += splits(base, row_blocks(m)[1] * triton.cdiv(n // 2 if gated else n, base.block_n), k, (132, 264))
    return found


def group(name: str, m: int, act: str, norm: bool, columns: int = 0, *, integers: bool = False) -> list[Case]:
    n, k = SHAPES[name]
    options = {"gated": bool(act), "columns": columns}
    variants: list[Variant | Direct] = [*vectors(m, k, **options)]
    variants += [] if norm else [*dots(m, n, k, **options), *directs(m, gated=bool(act))]
    chosen = choose_fp8(m, n, k, columns=columns, gated=bool(act))
    variants += [] if chosen is None else [chosen]
    return [Case(name, m, act, norm, columns, variant, integers) for variant in dict.fromkeys(variants)]


def all_cases(part: str) -> Iterator[Case]:
    names = [name for name in SHAPES if part != "8b" or name.startswith("8b")]
    for name in names if part in ("all", "few", "8b") else ():
        for m in ROWS if name.startswith("8b") else SMALL_ROWS:
            yield from group(name, m, "", False)
    for name in FUSED if part in ("all", "fused") else ():
        for m in FUSED_ROWS:
            if FUSED[name]:
                yield from group(name, m, FUSED[name], False)
            if m == 1:
                yield from group(name, m, FUSED[name], True)
    for name in ("8b.qkv", "8b.gate_up", "8b.down") if part in ("all", "few", "blocks") else ():
        for m in BLOCK_ROWS:
            yield from group(name, m, "", False, 128)
    for name in (name for name in SHAPES if name.startswith("8b")):
        for m in BETWEEN if part in ("all", "between") else ():
            yield from group(name, m, "", False, 128)
            yield from group(name, m, "", False, 128, integers=True)
        for m in INTEGER_ROWS if part in ("all", "integers") else ():
            yield from group(name, m, "", False, 128, integers=True)


class Bench:
    """Inputs of one shape: enough copies of the weight to find none of it in cache."""

    def __init__(
        self, name: str, columns: int = 0, *, least: int = CACHE_BYTES, rows: int = max(BETWEEN), integers: bool = False
    ) -> None:
        self.n, self.k = SHAPES[name]
        copies = copies_of(self.n * self.k, least)
        element = torch.int8 if integers else torch.float8_e4m3fn
        self.weights = torch.empty(copies, self.n, self.k, device="cuda", dtype=element)
        for copy in self.weights if least else ():
            copy.copy_(torch.randn(self.n, self.k, device="cuda").clamp_(-4, 4) * (30 if integers else 100))
        self.group = (1 if integers else 128, columns) if columns else (1, 0)
        shape = (triton.cdiv(self.n, self.group[0]), triton.cdiv(self.k, columns)) if columns else (self.n, 1)
        self.scale = (torch.rand(shape, device="cuda") + 0.5) / 100 * self.k**-0.5
        self.x = torch.randn(rows, self.k, device="cuda", dtype=torch.bfloat16)
        self.delta = torch.randn_like(self.x)
        self.norm = torch.rand(self.k, device="cuda") + 0.5

    def matrix(self, copy: int = 0) -> ScaledMatrix:
        return ScaledMatrix(self.weights[copy], self.scale, self.group)

    def launches(self, case: Case) -> Callable[[int], Tensor]:
        """launch(copy), which gives its out."""
        x = self.x[: case.m]
        out = torch.full((case.m, self.n // 2 if case.act else self.n), float("nan"), device="cuda", dtype=x.dtype)
        self.x_out = torch.full_like(x, float("nan"))
        norm = Norm(self.norm, EPS, self.delta[: case.m], self.x_out) if case.norm else None
        elements, tiles = scratch_sizes(case.variant, case.m, self.n, gated=bool(case.act))
        plan = Plan(case.variant, make_scratch(elements, tiles, "cuda") if tiles else None)

        def launch(copy: int) -> Tensor:
            weight = Scaled(self.weights[copy], self.scale, self.group)
            return skinny_matmul(x, weight, out, plan, norm=norm, act=case.act)

        return launch

    def wanted(self, act: str, norm: bool) -> Tensor:
        """float64 reference for all rows and the first copy of the weight, in pieces so that it stays small."""
        x = self.x
        if norm:
            x = F.rms_norm((x + self.delta).float(), self.norm.shape, self.norm, EPS).bfloat16()
        weight = self.matrix().dequantize(torch.float32)
        y = torch.cat([x.double() @ piece.double().T for piece in weight.split(4096)], dim=1)
        if not act:
            return y
        gate, up = y.chunk(2, dim=-1)
        return F.silu(gate) * up

    def microseconds(self, launch: Callable[[int], object]) -> float:
        return copies_us(launch, len(self.weights))

    def libraries(self, m: int, plains: Tensor) -> tuple[float, str, float]:
        """Microseconds of the library's product in bfloat16, and with FP8 on both sides, x rounded first, or (scales by
        block) of the weight widened in memory."""
        x = self.x[:m]
        plain = self.microseconds(lambda i: F.linear(x, plains[i % len(plains)]))
        if self.group[1]:

            def widening(i: int) -> Tensor:
                return F.linear(x, widen(self.weights[i], self.scale, self.group, x.dtype))

            return plain, "widened", self.microseconds(widening)
        return plain, "both fp8", self.microseconds(lambda i: scaled_matmul(x, self.weights[i], self.scale, None))

    def check_and_time(self, case: Case, wanted: Tensor) -> tuple[float, float]:
        """As products.check_and_time; x_out counts as well."""
        m = case.m
        launch = self.launches(case)

        def exact() -> bool:
            return not case.norm or torch.equal(self.x_out, self.x[:m] + self.delta[:m])

        return check_and_time(launch, len(self.weights), wanted[:m], exact=exact)


def distinct_cases(part: str) -> list[Case]:
    """One of all launches that are the same in what Triton compiles."""
    distinct: dict[object, Case] = {}
    for case in all_cases(part):
        n, k = SHAPES[case.name]
        rows = block_of(case.variant, case.m)
        key = (k, rows, case.act, case.norm, case.columns, case.variant, case.integers)
        if key not in distinct or n < SHAPES[distinct[key].name][0]:
            distinct[key] = case
    return list(distinct.values())


class Report(Lines):
    """Times, and tells."""

    kernel = "fp8_matmul"

    def few(self, bench: Bench, cases: list[Case], wanted: Tensor, library: tuple[float, str, float]) -> None:
        """Times all variants of one (shape, M, act, norm, columns), keeps the row of the table."""
        first = cases[0]
        extra = f"{'+norm' if first.norm else ''}{'+' + first.act if first.act else ''}"
        title = f"{first.name}{extra}{'+blocks' if first.columns else ''}{' int8' if first.integers else ''}"
        traffic = bench.n * bench.k / 1e6  # bytes / microsecond = MB / s; / 1e6 gives TB/s
        chosen = choose_fp8(first.m, bench.n, bench.k, columns=first.columns, gated=bool(first.act))
        timed, at_choice = self.variants(
            f"{title} m{first.m}", cases, lambda case: bench.check_and_time(case, wanted), traffic, chosen
        )
        best = ", ".join(f"{name} {us:.1f}" for us, name in timed[:3])
        rate = f" {traffic / timed[0][0]:.2f} TB/s" if timed else ""
        self.rows.append(
            f"{title} {first.m} bf16 {library[0]:.1f} {library[1]} {library[2]:.1f} best {best}{rate}{at_choice}"
        )

    def many(self, name: str, m: int) -> None:
        """FP8 on both sides, its parts, and what blocks take: widened weights in the library's bfloat16 product."""
        bench = Bench(name, least=0, rows=m)
        bench.weights = bench.weights.expand(2, -1, -1).contiguous()
        for copy in bench.weights:
            copy.copy_(torch.randn(bench.n, bench.k, device="cuda").clamp_(-4, 4) * 100)
        plain = bench.matrix().dequantize(torch.bfloat16)
        try:
            out = scaled_matmul(bench.x, bench.weights[0], bench.scale, None)
            rows, scale = quantize_rows(bench.x)
            if out is None:
                raise RuntimeError("no scaled_mm here")
            sample = slice(0, min(m, 256))
            wanted = (rows[sample].double() * scale[sample]) @ bench.matrix().dequantize(torch.float32).double().T
            error = float((out[sample].double() - wanted).abs().max() / wanted.abs().max())
            inner = torch.randn(m, 2 * bench.k, device="cuda", dtype=torch.bfloat16)
            times = {
                "fp8": bench.microseconds(lambda i: scaled_matmul(bench.x, bench.weights[i], bench.scale, None)),
                "quantize": bench.microseconds(lambda i: quantize_rows(bench.x)),
                "gated quantize": bench.microseconds(lambda i: quantize_rows(inner, act="silu")),
                "bf16": bench.microseconds(lambda i: F.linear(bench.x, plain)),
                "widen": bench.microseconds(lambda i: bench.matrix(i).dequantize(torch.bfloat16)),
            }
        except Exception as failure:
            self.rows.append(f"FAILED {name} m{m} {repr(failure)[:200]}")
            self.line(case=f"{name} m{m} many", error=repr(failure)[:300])
            return
        flops = 2 * m * bench.n * bench.k / 1e6
        for what, us in times.items():
            self.line(case=f"{name} m{m} {what}", us=round(us, 1), tflops=round(flops / us), error=error)
        wrong = "" if error < 0.02 else f" WRONG error {error}"
        shown = ", ".join(f"{what} {us:.1f}" for what, us in times.items())
        self.rows.append(f"{name} {m} many: {shown} us; fp8 {flops / times['fp8']:.0f} TFLOPS{wrong}")


def measure(part: str, report: Report, deadline: float) -> None:
    cases = list(all_cases(part))
    for name, columns, integers in dict.fromkeys((case.name, case.columns, case.integers) for case in cases):
        libraries: dict[tuple[int, str, bool], tuple[float, str, float]] = {}
        bench = Bench(name, columns, integers=integers)
        plain = bench.matrix().dequantize(torch.bfloat16).expand(1, -1, -1)
        spare = max(1, CACHE_BYTES // (2 * plain.numel()))
        plains = plain.repeat(spare + 1, 1, 1)
        groups: dict[tuple[int, str, bool], list[Case]] = {}
        for case in cases:
            if (case.name, case.columns, case.integers) == (name, columns, integers):
                groups.setdefault((case.m, case.act, case.norm), []).append(case)
        wanted: dict[tuple[str, bool], Tensor] = {}
        for (m, act, norm), members in groups.items():
            if time.time() > deadline:
                report.rows.append(f"out of time before {name} {m}")
                return
            if (act, norm) not in wanted:
                wanted[act, norm] = bench.wanted(act, norm)
            if (m, act, norm) not in libraries:
                libraries[m, act, norm] = bench.libraries(m, plains)
            report.few(bench, list(dict.fromkeys(members)), wanted[act, norm], libraries[m, act, norm])
    for name in ("8b.qkv", "8b.gate_up", "8b.down") if part in ("all", "many") else ():
        for m in MANY:
            report.many(name, m)


def main() -> None:
    run(
        Report,
        measure,
        cases=distinct_cases,
        launch=lambda case: Bench(case.name, case.columns, least=0, integers=case.integers).launches(case)(0),
        seconds=85.0,
    )


if __name__ == "__main__":
    main()

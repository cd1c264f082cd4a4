"""Checks and times kernels/skinny_matmul.py beside torch's product; a compact table last, every timing as JSON.

python benchmarks/gpu/skinny_matmul.py [all | plain | fused] [seconds]; JSON lines: $OUT/skinny_matmul.jsonl.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
from products import Lines, compile_all, compile_share, label
from torch import Tensor

from octavo.backends.torch.kernels.gated import gated
from octavo.backends.torch.kernels.norm import add_rms_norm
from octavo.backends.torch.kernels.skinny_choice import Variant, choose, padded_rows
from octavo.backends.torch.kernels.skinny_matmul import Norm, Plan, make_scratch, scratch_sizes, skinny_matmul

SHAPES = {  # name: (N, K)
    "8b.qkv": (6144, 4096),
    "8b.o": (4096, 4096),
    "8b.gate_up": (28672, 4096),
    "8b.down": (4096, 14336),
    "q06.qkv": (4096, 1024),
    "q06.o": (1024, 2048),
    "q06.gate_up": (6144, 1024),
    "q06.down": (1024, 3072),
    "1b.qkv": (3072, 2048),
    "1b.o": (2048, 2048),
    "1b.gate_up": (16384, 2048),
    "1b.down": (2048, 8192),
    "8b.head": (128256, 4096),
    "q06.head": (151936, 1024),
    "1b.head": (128256, 2048),
}
FUSED = {"8b.qkv": "", "8b.gate_up": "silu", "q06.qkv": "", "q06.gate_up": "silu", "1b.gate_up": "silu"}
ROWS = (1, 2, 4, 8, 16, 32, 48, 64)
NORM_ROWS = (1, 2)


def dot(n: int, k: int, stages: int, swap: str = "") -> Variant:
    return Variant("dot", n, k, 4, stages, swap=bool(swap))


DOTS = {  # padded M: variants before splitting
    16: (dot(32, 256, 4), dot(64, 128, 4, "swap")),
    32: (dot(32, 128, 4), dot(64, 128, 4, "swap")),
    64: (dot(32, 128, 4), dot(64, 128, 3, "swap")),
}
GATED = {
    16: (dot(32, 128, 4), dot(64, 64, 4, "swap")),
    32: (dot(32, 128, 3), dot(64, 64, 4, "swap")),
    64: (dot(32, 128, 3), dot(64, 64, 4, "swap")),
}
CACHE_BYTES = 160 << 20  # weights rotated over: three times the L2 cache
EPS = 1e-5


class Case(NamedTuple):
    """One launch: shape name, M, gated activation or "", with a norm?, variant."""

    name: str
    m: int
    act: str
    norm: bool
    variant: Variant


def vectors(m: int, k: int) -> list[Variant]:
    """Programs of 1 to 4 rows of weights, with all of K in one block where it fits."""
    sizes = {1: [(2, 1024, 4), (1, 1024, 2), (1, 1024, 1), (2, 1024, 2)], 2: [(2, 1024, 4), (1, 1024, 2)]}
    found = sizes.get(m, [(2, 1024, 4)] if m <= 4 else [])
    whole = triton.next_power_of_2(k)
    if m <= 2 and 1024 < whole <= 4096:
        found = [*found, (1, whole, whole // 1024), (2, whole, 4)]
    return [Variant("vector", n, block_k, warps) for n, block_k, warps in found]


def splits(variant: Variant, outputs: int, k: int) -> list[Variant]:
    """The variant split until the device has about one program a multiprocessor, and two."""
    found = []
    tiles = triton.cdiv(outputs, variant.block_n)
    for wanted in (132, 264):
        split = 1
        while split < 8 and tiles * split * 2 <= wanted and k >= split * 4 * variant.block_k:
            split *= 2
        found.append(replace(variant, split=split))
    return found


def group(name: str, m: int, act: str, norm: bool, bases: tuple[Variant, ...]) -> list[Case]:
    """bases split, and what choose takes; without doubles."""
    n, k = SHAPES[name]
    variants = vectors(m, k)
    for base in bases:
        variants += splits(base, n // 2 if act else n, k)
    chosen = choose(m, n, k, gated=bool(act))
    if chosen is not None:
        variants.append(chosen)
    return [Case(name, m, act, norm, v) for v in dict.fromkeys(variants)]


def all_cases(part: str) -> Iterator[Case]:
    for name in SHAPES if part in ("all", "plain") else ():
        for m in ROWS:
            yield from group(name, m, "", False, DOTS[padded_rows(m)])
    for name in FUSED if part in ("all", "fused") else ():
        for m in ROWS:
            if FUSED[name]:
                yield from group(name, m, FUSED[name], False, GATED[padded_rows(m)])
            if m in NORM_ROWS:
                yield from group(name, m, FUSED[name], True, ())


class Bench:
    """Inputs of one shape: enough copies of the weight to find none of it in cache."""

    def __init__(self, name: str, least: int = CACHE_BYTES) -> None:
        self.n, self.k = SHAPES[name]
        copies = max(2, triton.cdiv(least, self.n * self.k * 2)) if least else 1
        self.weights = torch.empty(copies, self.n, self.k, device="cuda", dtype=torch.bfloat16)
        if least:
            self.weights.normal_(0, self.k**-0.5)
        self.x = torch.randn(max(ROWS), self.k, device="cuda", dtype=torch.bfloat16)
        self.delta = torch.randn_like(self.x)
        self.scale = torch.rand(self.k, device="cuda") + 0.5

    def plan(self, case: Case) -> Plan:
        elements, tiles = scratch_sizes(case.variant, case.m, self.n, gated=bool(case.act))
        return Plan(case.variant, make_scratch(elements, tiles, "cuda") if tiles else None)

    def launches(self, case: Case) -> tuple[Tensor, Callable[[int], Tensor]]:
        """(out, launch(copy))."""
        x = self.x[: case.m]
        out = torch.full((case.m, self.n // 2 if case.act else self.n), float("nan"), device="cuda", dtype=x.dtype)
        self.x_out = torch.full_like(x, float("nan"))
        norm = Norm(self.scale, EPS, self.delta[: case.m], self.x_out) if case.norm else None
        plan = self.plan(case)
        return out, lambda i: skinny_matmul(x, self.weights[i], out, plan, norm=norm, act=case.act)

    def apart(self, m: int, act: str, norm: bool, variant: Variant | None) -> Callable[[int], Tensor]:
        """Separate launches: the norm's and the activation's own kernels, between them torch's product or `variant`."""
        # Of few enough launches that x + delta + delta + .. stays finite.
        x, delta, h = self.x[:m].clone(), self.delta[:m] * 1e-3, torch.empty_like(self.x[:m])
        y = torch.empty(m, self.n, device="cuda", dtype=x.dtype)
        acted = torch.empty(m, self.n // 2, device="cuda", dtype=x.dtype)
        plan = None if variant is None else self.plan(Case("", m, "", False, variant))

        def launch(i: int) -> Tensor:
            if norm:
                add_rms_norm(x, delta, self.scale, EPS, h)
            into = h if norm else x
            product = F.linear(into, self.weights[i]) if plan is None else skinny_matmul(into, self.weights[i], y, plan)
            if act:
                gated(product, acted, act)
            return acted if act else product

        return launch

    def wanted(self, act: str, norm: bool) -> Tensor:
        """float32 reference for all rows and the first copy of the weight, in pieces so that it stays small."""
        x = self.x
        if norm:
            x = F.rms_norm((x + self.delta).float(), self.scale.shape, self.scale, EPS).bfloat16()
        y = torch.cat([x.float() @ piece.float().T for piece in self.weights[0].split(32768)], dim=1)
        if not act:
            return y
        gate, up = y.chunk(2, dim=-1)
        return F.silu(gate) * up

    def microseconds(self, launch: Callable[[int], Tensor]) -> float:
        """Median over replays of one captured graph with a launch for each copy of the weight."""
        copies = self.weights.shape[0]
        launch(0)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for i in range(max(copies, 4)):
                launch(i % copies)
        times = []
        for _ in range(6):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) * 1000 / max(copies, 4))
        return statistics.median(times[1:])

    def check_and_time(self, case: Case, wanted: Tensor) -> tuple[float, float]:
        """(microseconds, error relative to the greatest value; infinite if x_out or a repetition is wrong)."""
        out, launch = self.launches(case)
        launch(0)
        wanted = wanted[: case.m]
        error = float((out.float() - wanted).abs().max() / wanted.abs().max())
        if case.norm and not torch.equal(self.x_out, self.x[: case.m] + self.delta[: case.m]):
            error = float("inf")
        before = out.clone()
        us = self.microseconds(launch)
        out.fill_(float("nan"))
        if not torch.equal(launch(0), before):
            error = float("inf")
        return us, error


def distinct_cases(part: str) -> list[Case]:
    """One of all launches that are the same in what Triton compiles."""
    distinct: dict[object, Case] = {}
    for case in all_cases(part):
        n, k = SHAPES[case.name]
        rows = case.m if case.variant.form == "vector" else padded_rows(case.m)
        key = (k, rows, case.act, case.norm, case.variant)
        if key not in distinct or n < SHAPES[distinct[key].name][0]:
            distinct[key] = case
    return list(distinct.values())


class Report(Lines):
    """Times, and tells."""

    kernel = "skinny_matmul"

    def group(self, bench: Bench, cases: list[Case], wanted: Tensor) -> None:
        """Times all variants of one (shape, M, act, norm) beside torch, keeps the row of the table."""
        first = cases[0]
        title = f"{first.name}{'+norm' if first.norm else ''}{'+' + first.act if first.act else ''}"
        traffic = bench.n * bench.k * 2 / 1e6  # bytes / microsecond = MB / s; / 1e6 gives TB/s
        library = bench.microseconds(bench.apart(first.m, first.act, first.norm, None))
        self.line(case=f"{title} m{first.m} torch", us=round(library, 2), tb_s=round(traffic / library, 3), error=0)
        own = ""
        plain = choose(first.m, bench.n, bench.k)
        if plain is not None and (first.act or first.norm):
            us = bench.microseconds(bench.apart(first.m, first.act, first.norm, plain))
            self.line(case=f"{title} m{first.m} apart", us=round(us, 2), tb_s=round(traffic / us, 3), error=0)
            own = f" apart {us:.1f}"
        timed: list[tuple[float, str]] = []
        chosen = choose(first.m, bench.n, bench.k, gated=bool(first.act))
        at_choice = ""
        for case in cases:
            what = f"{title} m{case.m} {label(case.variant)}"
            try:
                us, error = bench.check_and_time(case, wanted)
            except Exception as failure:
                self.line(case=what, error=repr(failure)[:300])
                self.rows.append(f"FAILED {what} {repr(failure)[:100]}")
                continue
            self.line(case=what, us=round(us, 2), tb_s=round(traffic / us, 3), error=error)
            if not error < 0.02:
                self.rows.append(f"WRONG {what} error {error}")
                continue
            timed.append((us, label(case.variant)))
            if case.variant == chosen:
                at_choice = f" choose {us:.1f}"
        if timed:
            us, name = min(timed)
            self.rows.append(
                f"{title} {first.m} torch {library:.1f} best {us:.1f} {name} {traffic / us:.2f}{own}{at_choice}"
            )


def measure(part: str, report: Report, deadline: float) -> None:
    cases = list(all_cases(part))
    for name in dict.fromkeys(case.name for case in cases):
        bench = Bench(name)
        groups: dict[tuple[int, str, bool], list[Case]] = {}
        for case in cases:
            if case.name == name:
                groups.setdefault((case.m, case.act, case.norm), []).append(case)
        wanted: dict[tuple[str, bool], Tensor] = {}
        for (m, act, norm), members in groups.items():
            if time.time() > deadline:
                report.rows.append(f"out of time before {name} {m}")
                return
            if (act, norm) not in wanted:
                wanted[act, norm] = bench.wanted(act, norm)
            report.group(bench, list(dict.fromkeys(members)), wanted[act, norm])


def main() -> None:
    part = sys.argv[1] if len(sys.argv) > 1 else "all"
    if "--compile" in sys.argv:
        compile_share(distinct_cases(part), lambda case: Bench(case.name, 0).launches(case)[1](0), int(sys.argv[-1]))
        return
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 60.0
    start = time.time()
    compile_all(__file__, part, seconds * 0.65)
    report = Report()
    try:
        measure(part, report, start + seconds * 0.9)
    finally:
        print("\n".join(report.rows))
        print(f"{time.time() - start:.1f} s")


if __name__ == "__main__":
    main()

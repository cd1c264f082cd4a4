"""Checks and times kernels/skinny_matmul.py beside torch's product; a compact table last, every timing as JSON.

python benchmarks/gpu/skinny_matmul.py [all | plain | fused] [seconds]; JSON lines: $OUT/skinny_matmul.jsonl.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
from products import CACHE_BYTES, SHAPES, Lines, block_of, check_and_time, copies_of, copies_us, run, splits
from torch import Tensor

from octavo.backends.torch.kernels.gated import gated
from octavo.backends.torch.kernels.norm import add_rms_norm
from octavo.backends.torch.kernels.skinny_choice import Variant, choose, row_blocks
from octavo.backends.torch.kernels.skinny_matmul import Norm, Plan, make_scratch, scratch_sizes, skinny_matmul

SHAPES = SHAPES | {
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


def group(name: str, m: int, act: str, norm: bool, bases: tuple[Variant, ...]) -> list[Case]:
    """bases split, and what choose takes; without doubles."""
    n, k = SHAPES[name]
    variants = vectors(m, k)
    for base in bases:
        variants += splits(base, triton.cdiv(n // 2 if act else n, base.block_n), k, (132, 264))
    chosen = choose(m, n, k, gated=bool(act))
    if chosen is not None:
        variants.append(chosen)
    return [Case(name, m, act, norm, v) for v in dict.fromkeys(variants)]


def all_cases(part: str) -> Iterator[Case]:
    for name in SHAPES if part in ("all", "plain") else ():
        for m in ROWS:
            yield from group(name, m, "", False, DOTS[row_blocks(m)[0]])
    for name in FUSED if part in ("all", "fused") else ():
        for m in ROWS:
            if FUSED[name]:
                yield from group(name, m, FUSED[name], False, GATED[row_blocks(m)[0]])
            if m in NORM_ROWS:
                yield from group(name, m, FUSED[name], True, ())


class Bench:
    """Inputs of one shape: enough copies of the weight to find none of it in cache."""

    def __init__(self, name: str, least: int = CACHE_BYTES) -> None:
        self.n, self.k = SHAPES[name]
        copies = copies_of(self.n * self.k * 2, least)
        self.weights = torch.empty(copies, self.n, self.k, device="cuda", dtype=torch.bfloat16)
        if least:
            self.weights.normal_(0, self.k**-0.5)
        self.x = torch.randn(max(ROWS), self.k, device="cuda", dtype=torch.bfloat16)
        self.delta = torch.randn_like(self.x)
        self.scale = torch.rand(self.k, device="cuda") + 0.5

    def plan(self, case: Case) -> Plan:
        elements, tiles = scratch_sizes(case.variant, case.m, self.n, gated=bool(case.act))
        return Plan(case.variant, make_scratch(elements, tiles, "cuda") if tiles else None)

    def launches(self, case: Case) -> Callable[[int], Tensor]:
        """launch(copy), which gives its out."""
        x = self.x[: case.m]
        out = torch.full((case.m, self.n // 2 if case.act else self.n), float("nan"), device="cuda", dtype=x.dtype)
        self.x_out = torch.full_like(x, float("nan"))
        norm = Norm(self.scale, EPS, self.delta[: case.m], self.x_out) if case.norm else None
        plan = self.plan(case)
        return lambda i: skinny_matmul(x, self.weights[i], out, plan, norm=norm, act=case.act)

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

    def microseconds(self, launch: Callable[[int], object]) -> float:
        return copies_us(launch, len(self.weights))

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
        chosen = choose(first.m, bench.n, bench.k, gated=bool(first.act))
        timed, at_choice = self.variants(
            f"{title} m{first.m}", cases, lambda case: bench.check_and_time(case, wanted), traffic, chosen
        )
        if timed:
            us, name = timed[0]
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
    run(Report, measure, cases=distinct_cases, launch=lambda case: Bench(case.name, 0).launches(case)(0), seconds=60.0)


if __name__ == "__main__":
    main()

"""Mixture of experts on the GPU: checks the kernels at Qwen3-30B-A3B's size and times block sizes, a JSON line each.

PYTHONPATH=. python benchmarks/gpu/moe.py [seconds]; last come the best blocks for each number of tokens, and all of
a layer beside today's torch.nn.functional.grouped_mm. Variants are compiled by processes side by side.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict

import torch
import torch.nn.functional as F
from timing import graph_us
from torch import Tensor

from octavo.backends.torch.kernels import moe_matmul, moe_routing
from octavo.backends.torch.kernels.moe_matmul import (
    Blocks,
    Tile,
    choose_blocks,
    choose_tile,
    combine,
    down_apart,
    expert_matmul,
)
from octavo.backends.torch.layers import moe as eager
from octavo.backends.torch.weights import MoEWeights
from octavo.models.spec import MoE

START = time.monotonic()
SECONDS = float(sys.argv[1]) if len(sys.argv) > 1 else 19.0
COMPILING = 0.5 * SECONDS
MOE = MoE(experts=128, top_k=8, width=768, act="silu", renormalize=True)
HIDDEN = 2048
TOKENS = (1, 2, 8, 32, 128, 256, 1024, 4096)
INPUTS = 6
"""Inputs, each with its own choice of experts, that a graph's launches go through: more than L2 holds of weights."""

FEW = {
    True: [
        Blocks(16, 32, 128, 4, 4), Blocks(16, 64, 128, 4, 3), Blocks(16, 64, 64, 4, 4), Blocks(16, 32, 256, 4, 3),
        Blocks(16, 32, 128, 4, 4, descriptors=True), Blocks(32, 64, 64, 4, 4), Blocks(32, 64, 128, 4, 3),
    ],
    False: [
        Blocks(16, 64, 128, 4, 4), Blocks(16, 32, 128, 4, 4), Blocks(16, 32, 256, 4, 3), Blocks(16, 128, 64, 4, 4),
        Blocks(16, 64, 128, 4, 4, descriptors=True), Blocks(32, 64, 128, 4, 3), Blocks(32, 128, 64, 4, 4),
    ],
}  # fmt: skip
MANY = {
    True: [
        Blocks(64, 64, 64, 4, 4, 8), Blocks(64, 128, 64, 4, 3, 8), Blocks(64, 128, 64, 4, 4, 8, descriptors=True),
        Blocks(128, 64, 64, 8, 4, 8), Blocks(128, 128, 64, 8, 3, 8), Blocks(128, 64, 64, 4, 3, 8, descriptors=True),
        Blocks(128, 128, 64, 8, 3, 8, descriptors=True), Blocks(128, 128, 64, 8, 4, 8, descriptors=True),
    ],
    False: [
        Blocks(64, 128, 64, 4, 4, 8), Blocks(64, 128, 64, 4, 4, 8, descriptors=True), Blocks(128, 128, 64, 8, 3, 8),
        Blocks(64, 256, 64, 4, 3, 8, descriptors=True), Blocks(128, 128, 64, 8, 3, 8, descriptors=True),
        Blocks(128, 128, 64, 8, 4, 8, descriptors=True), Blocks(128, 256, 64, 8, 3, 8, descriptors=True),
    ],
}  # fmt: skip
APART = [
    choose_tile(MOE.width, element_size=2), Tile(8, 256), Tile(16, 256, 4, 8), Tile(8, 256, 2, 8),
    Tile(16, 256, 8, 6), Tile(16, 128, 4, 8), Tile(32, 128, 4, 6),
]  # fmt: skip
GROUPS = (1, 8)
"""Compared for the best blocks only: a group is no reason to compile."""


def variants(tokens: int, *, gated: bool) -> list[Blocks]:
    if tokens >= 1024:
        return MANY[gated]
    return [blocks for blocks in FEW[gated] if blocks.m == 16 or tokens >= 128]


def shape(*, gated: bool) -> tuple[int, int, int]:
    """Columns of the output, rows of an expert's matrix, inputs."""
    return (MOE.width, 2 * MOE.width, HIDDEN) if gated else (HIDDEN, HIDDEN, MOE.width)


def compile_variant(job: tuple[bool, Blocks | Tile]) -> str:
    """In a process of its own: one launch on one row, whose code the main process then finds in Triton's cache."""
    gated, blocks = job
    try:
        columns, rows, inputs = shape(gated=gated)
        device = torch.device("cuda")
        x = torch.zeros(MOE.top_k, inputs, dtype=torch.bfloat16, device=device)
        weight = torch.zeros(1, rows, inputs, dtype=torch.bfloat16, device=device)
        shares = torch.zeros(MOE.top_k, device=device)
        experts = torch.zeros(MOE.top_k, dtype=torch.int32, device=device)
        if isinstance(blocks, Tile):
            down_apart(x, weight, experts=experts, shares=shares, out=x.new_empty(1, columns), tile=blocks)
        else:
            runs = moe_routing.Runs(
                torch.full((blocks.m,), -1, dtype=torch.int32, device=device), experts[:1], blocks.m
            )
            product(x, weight, runs=runs, out=x.new_empty(1, columns), shares=shares, blocks=blocks)
        torch.cuda.synchronize()
    except Exception as error:
        return f"{job}: {error!r}"
    return ""


def compile_all(jobs: list[tuple[bool, Blocks | Tile]]) -> None:
    """Forked before this process touches the GPU. What is not done in time is compiled when used, or left out."""
    workers = max(1, min(14, (os.cpu_count() or 2) - 1, len(jobs)))
    pool = multiprocessing.get_context("fork").Pool(workers)
    results = pool.imap_unordered(compile_variant, jobs)
    with contextlib.suppress(StopIteration, multiprocessing.TimeoutError):
        while True:
            if problem := results.next(timeout=max(0.1, COMPILING - elapsed())):
                print(json.dumps({"kernel": "compile", "error": problem}), flush=True)
    pool.terminate()
    print(json.dumps({"kernel": "compile", "variants": len(jobs), "s": round(elapsed(), 1)}), flush=True)


def elapsed() -> float:
    return time.monotonic() - START


def product(x: Tensor, weight: Tensor, *, runs: moe_routing.Runs, out: Tensor, shares: Tensor, blocks: Blocks) -> None:
    """The gated product if out has fewer columns than weight has rows, else the one of down."""
    if out.shape[1] < weight.shape[1]:
        expert_matmul(x, weight, runs=runs, out=out, blocks=blocks, gather_top_k=MOE.top_k, act=MOE.act)
    else:
        expert_matmul(x, weight, runs=runs, out=out, blocks=blocks, shares=shares)


def tell(kernel: str, case: str, **values: object) -> None:
    rounded = {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in values.items()}
    print(json.dumps({"kernel": kernel, "case": case, **rounded}), flush=True)


@contextlib.contextmanager
def reported(kernel: str, case: str) -> Iterator[None]:
    """An error is printed and the script goes on."""
    try:
        yield
    except Exception as error:
        tell(kernel, case, error=repr(error)[:300], at=traceback.format_exc().splitlines()[-3].strip()[:160])


class Layer:
    """One layer's weights, and for a number of tokens INPUTS inputs with what the router makes of them."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        device = torch.device("cuda")

        def matrix(*size: int) -> Tensor:
            return torch.randn(*size, dtype=torch.bfloat16, device=device) * size[-1] ** -0.5

        self.weights = MoEWeights(
            router=matrix(MOE.experts, HIDDEN) * 2,
            gate_up=matrix(MOE.experts, 2 * MOE.width, HIDDEN),
            down=matrix(MOE.experts, HIDDEN, MOE.width),
        )

    def prepare(self, tokens: int) -> None:
        self.tokens = tokens
        rows = tokens * MOE.top_k
        self.x = [torch.randn(tokens, HIDDEN, dtype=torch.bfloat16, device="cuda") for _ in range(INPUTS)]
        self.logits = [x @ self.weights.router.T for x in self.x]
        self.experts = [torch.empty(tokens, MOE.top_k, dtype=torch.int32, device="cuda") for _ in range(INPUTS)]
        self.shares = [torch.empty(tokens, MOE.top_k, device="cuda") for _ in range(INPUTS)]
        for i in range(INPUTS):
            self.route(i)
        self.inner = [torch.randn(rows, MOE.width, dtype=torch.bfloat16, device="cuda") for _ in range(INPUTS)]
        self.rows = [torch.randn(rows, HIDDEN, dtype=torch.bfloat16, device="cuda") for _ in range(INPUTS)]
        self.touched = sum(len(experts.unique()) for experts in self.experts) / INPUTS

    def route(self, i: int) -> None:
        moe_routing.route(
            self.logits[i], top_k=MOE.top_k, renormalize=MOE.renormalize, experts=self.experts[i], shares=self.shares[i]
        )

    def sort(self, i: int, block_m: int) -> moe_routing.Runs:
        return moe_routing.sort_by_expert(self.experts[i], num_experts=MOE.experts, block_m=block_m)

    def speeds(self, us: float, *, gated: bool) -> dict[str, float]:
        _, rows, inputs = shape(gated=gated)
        return {
            "us": us,
            "tb_s": self.touched * rows * inputs * 2 / us / 1e6,
            "tflops": 2 * self.tokens * MOE.top_k * rows * inputs / us / 1e6,
        }


def mix(layer: Layer, i: int) -> Tensor:
    """All of a layer, for the i-th input."""
    x = layer.x[i]
    return moe_matmul.mixture(x, F.linear(x, layer.weights.router), layer.weights, MOE)


def routed(logits: Tensor) -> tuple[Tensor, Tensor]:
    """As moe_routing.route; torch.topk, which eager.route uses, takes any of equal ones (frequent in bfloat16)."""
    p = logits.float().softmax(-1)
    chosen = p.sort(dim=-1, descending=True, stable=True).indices[:, : MOE.top_k].sort(-1).values
    shares = p.gather(-1, chosen)
    return chosen, shares / shares.sum(-1, keepdim=True)


def exact(layer: Layer, i: int) -> Tensor:
    """The mixture of input i in float32, the inner values rounded to bfloat16 as they are stored."""
    x = layer.x[i].float()
    chosen, shares = routed(layer.logits[i])
    y = torch.zeros_like(x)
    for expert in range(MOE.experts):
        token, place = (chosen == expert).nonzero(as_tuple=True)
        gate, up = (x[token] @ layer.weights.gate_up[expert].float().T).chunk(2, dim=-1)
        inner = (F.silu(gate) * up).bfloat16().float()
        y.index_add_(0, token, inner @ layer.weights.down[expert].float().T * shares[token, place, None])
    return y


def check(layer: Layer) -> None:
    """Routing as in torch, order equal to a stable sort, the layer near to float32."""
    chosen, shares = routed(layer.logits[0])
    off = int((chosen != layer.experts[0]).sum())
    runs = layer.sort(0, 64)
    order = runs.order[: int((runs.block_experts >= 0).sum()) * 64]
    same = torch.equal(order[order >= 0].long(), layer.experts[0].flatten().sort(stable=True).indices)
    wanted = exact(layer, 0)
    y = mix(layer, 0).float()
    tell(
        "moe_check", f"T={layer.tokens}", error=float((y - wanted).abs().max() / wanted.abs().max()),
        torch_error=float((eager.mixture(layer.x[0], layer.weights, MOE) - wanted).abs().max() / wanted.abs().max()),
        experts_off=off, shares_error=float((shares - layer.shares[0]).abs().max()), order_right=same,
    )  # fmt: skip


def time_product(layer: Layer, *, gated: bool, blocks: Blocks, runs: list[moe_routing.Runs]) -> float:
    columns, _, _ = shape(gated=gated)
    x = layer.x if gated else layer.inner
    weight = layer.weights.gate_up if gated else layer.weights.down
    out = layer.x[0].new_empty(layer.tokens * MOE.top_k, columns)

    def launch(i: int) -> Callable[[], None]:
        return lambda: product(x[i], weight, runs=runs[i], out=out, shares=layer.shares[i], blocks=blocks)

    launches = INPUTS if layer.tokens <= 256 else 2
    return graph_us([launch(i) for i in range(launches)], rounds=7 if layer.tokens <= 256 else 3)


def compare(layer: Layer, best: dict[str, dict]) -> None:
    """All variants of both products; the best of each m to `best`."""
    for gated in (True, False):
        name = "gated" if gated else "down"
        results: list[tuple[float, Blocks]] = []
        chosen = choose_blocks(layer.tokens, top_k=MOE.top_k, experts=MOE.experts, gated=gated)
        for blocks in dict.fromkeys([chosen, *variants(layer.tokens, gated=gated)]):
            case = f"T={layer.tokens} {name} {describe(blocks)}"
            if elapsed() > SECONDS:
                return tell("moe_" + name, case, skipped="out of time")
            with reported("moe_" + name, case):
                runs = [layer.sort(i, blocks.m) for i in range(INPUTS)]
                us = time_product(layer, gated=gated, blocks=blocks, runs=runs)
                results.append((us, blocks))
                tell("moe_" + name, case, **layer.speeds(us, gated=gated), chosen=blocks == chosen)
        best[f"T={layer.tokens} {name}"] = {
            f"m{m}": min((round(us, 1), describe(blocks)) for us, blocks in results if blocks.m == m)
            for m in sorted({blocks.m for _, blocks in results})
        }
        with reported("moe_" + name, f"T={layer.tokens} groups"):
            compare_groups(layer, gated=gated, blocks=min(results, key=lambda result: result[0])[1])
    return None


def compare_groups(layer: Layer, *, gated: bool, blocks: Blocks) -> None:
    runs = [layer.sort(i, blocks.m) for i in range(INPUTS)]
    for group in GROUPS:
        grouped = Blocks(**{**asdict(blocks), "group": group})
        us = time_product(layer, gated=gated, blocks=grouped, runs=runs)
        tell("moe_group", f"T={layer.tokens} gated={gated} {describe(grouped)}", us=us)


def describe(blocks: Blocks) -> str:
    b = blocks
    return f"m{b.m} n{b.n} k{b.k} w{b.warps} s{b.stages} g{b.group}{' tma' * b.descriptors}"


def time_parts(layer: Layer) -> None:
    """What is not a product, and all of a layer with and without these kernels."""
    t = layer.tokens
    block_m = choose_blocks(t, top_k=MOE.top_k, experts=MOE.experts, gated=True).m
    out = torch.empty_like(layer.x[0])
    parts: dict[str, Callable[[int], object]] = {
        "route": layer.route,
        "sort": lambda i: layer.sort(i, block_m),
        "combine": lambda i: combine(layer.rows[i], out=out),
        "router": lambda i: F.linear(layer.x[i], layer.weights.router),
        "mixture": lambda i: mix(layer, i),
        "mixture_torch": lambda i: eager.mixture(layer.x[i], layer.weights, MOE),
    }
    for name, part in parts.items():
        with reported("moe_" + name, f"T={t}"):
            us = graph_us([lambda i=i, part=part: part(i) for i in range(INPUTS if t <= 256 else 2)], rounds=5)
            speeds = {"us": us}
            if name.startswith("mixture"):
                size = 3 * MOE.width * HIDDEN
                speeds |= {
                    "tb_s": layer.touched * size * 2 / us / 1e6, "tflops": 2 * t * MOE.top_k * size / us / 1e6
                }  # fmt: skip
            tell("moe_" + name, f"T={t}", **speeds)


def time_apart(layer: Layer) -> None:
    """down_apart, and what it replaces but for the sort: the product of down and combine."""
    if not moe_matmul.apart(layer.tokens, top_k=MOE.top_k, experts=MOE.experts):
        return
    out = torch.empty_like(layer.x[0])

    def launch(i: int, tile: Tile) -> None:
        down_apart(
            layer.inner[i], layer.weights.down, experts=layer.experts[i], shares=layer.shares[i], out=out, tile=tile
        )

    for tile in dict.fromkeys(APART):
        case = f"T={layer.tokens} n{tile.n} k{tile.k} w{tile.warps} s{tile.stages}"
        with reported("moe_down_apart", case):
            us = graph_us([lambda i=i, tile=tile: launch(i, tile) for i in range(INPUTS)])
            tell("moe_down_apart", case, **layer.speeds(us, gated=False), chosen=tile == APART[0])


def time_grouped_mm(layer: Layer) -> None:
    """torch's grouped product alone, rows already sorted."""
    for gated in (True, False):
        with reported("grouped_mm", f"T={layer.tokens} gated={gated}"):
            experts = layer.experts[0].flatten().sort(stable=True).values
            numbers = torch.arange(MOE.experts, device="cuda", dtype=torch.int32)
            ends = torch.searchsorted(experts, numbers, right=True, out_int32=True)
            weight = (layer.weights.gate_up if gated else layer.weights.down).transpose(-2, -1)
            x = torch.randn(len(experts), weight.shape[1], dtype=torch.bfloat16, device="cuda")
            us = graph_us([lambda x=x, weight=weight, ends=ends: F.grouped_mm(x, weight, offs=ends)] * 2, rounds=5)
            tell("grouped_mm", f"T={layer.tokens} gated={gated}", **layer.speeds(us, gated=gated))


def main() -> None:
    jobs: list[tuple[bool, Blocks | Tile]] = [(False, tile) for tile in APART]
    for tokens in TOKENS:
        for gated in (True, False):
            chosen = choose_blocks(tokens, top_k=MOE.top_k, experts=MOE.experts, gated=gated)
            jobs += [(gated, Blocks(**{**asdict(b), "group": 1})) for b in (chosen, *variants(tokens, gated=gated))]
    compile_all(list(dict.fromkeys(jobs)))
    layer = Layer()
    best: dict[str, dict] = {}
    for step in (check, time_parts, time_apart, time_grouped_mm):
        for tokens in TOKENS:
            with reported("moe_" + step.__name__, f"T={tokens}"):
                layer.prepare(tokens)
                step(layer)
    for tokens in TOKENS:
        with reported("moe_compare", f"T={tokens}"):
            layer.prepare(tokens)
            compare(layer, best)
    for case, blocks in best.items():
        print(json.dumps({"kernel": "moe_best", "case": case, **blocks}), flush=True)
    print(json.dumps({"kernel": "moe", "s": round(elapsed(), 1)}), flush=True)


if __name__ == "__main__":
    main()

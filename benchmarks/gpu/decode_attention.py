"""Decode attention on a GPU: checks it against torch's attention in float32 and times it, one JSON line a case.

From the repository root: PYTHONPATH=. python benchmarks/gpu/decode_attention.py [seconds, 36 unless given] [part]
part: bfloat16 (unless given), float8 (a cache of E4M3, beside what bfloat16 takes), or skewed (cuts of unlike lengths).
Last comes a table: each case's fastest cuts and what choose takes (marked >).
Each time is a launch's share of a CUDA graph of several, over caches that together exceed L2. Where few programs run it
is up to a quarter too low, as the next launch starts in the room they leave; "in a step" other kernels are between.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from timing import graph_us

from octavo.backends.torch.kernels import decode_attention as kernel
from octavo.backends.torch.kernels.decode_choice import FEW, TILE, Choice, choose
from octavo.models.spec import Attention

BEGIN = time.monotonic()
SECONDS = float(sys.argv[1]) if len(sys.argv) > 1 else 36.0
PART = sys.argv[2] if len(sys.argv) > 2 else "bfloat16"
COLD, MOST_COPIES = 8 * 2**30, 64
"""Bytes of caches that launches rotate over, as a step's layers do. Over less some cuts seem a tenth faster than they
are in a step: an H100's L2 keeps a part of 300 MB from launch to launch."""

SHAPES = {
    "llama-8b": Attention(32, 8, 128, 128**-0.5, None),
    "qwen3-0.6b": Attention(16, 8, 128, 128**-0.5, None),
    "llama-1b": Attention(32, 8, 64, 64**-0.5, None),
    "qwen3-30b": Attention(32, 4, 128, 128**-0.5, None),
}
LOADS = {
    "1x128": [128],
    "1x600": [600],
    "1x8192": [8192],
    "4 skewed": [200, 200, 200, 16000],
    "8x600": [600] * 8,
    "16x600": [600] * 16,
    "32x600": [600] * 32,
    "64x600": [600] * 64,
    "128x600": [600] * 128,
    "256x576": [576] * 256,
    "32x4096": [4096] * 32,
    "skewed": [256] * 63 + [32768],
    "skewed first": [32768] + [256] * 63,
    "as many bytes": [764] * 64,
    "mixed": [(i * 7919) % 1500 + 1 for i in range(200)],
    "32 mixed": [(i * 7919 + 13) % 1100 + 150 for i in range(32)],
    "padded": [700] * 40 + [0] * 24,
}
MANY = [(64, 4, 3, 2), (64, 4, 3, 3), (64, 4, 2, 2), (64, 4, 2, 3), (32, 4, 3, 4), (32, 4, 4, 4), (128, 4, 2, 3)]
"""Tile, warps, stages, programs a multiprocessor for _decode."""
MANY_FLOAT8 = [(64, 4, 4, 3), (64, 4, 4, 2), (64, 4, 3, 4), (128, 4, 3, 2), (128, 4, 4, 2), (32, 4, 4, 4)]
SMALL = [(64, 4, 3), (64, 4, 4), (32, 4, 3), (128, 4, 2), (64, 8, 3), (128, 8, 2), (256, 8, 2)]
"""Tile, warps, stages for _decode_few."""
SMALL_FLOAT8 = [(64, 4, 4), (64, 4, 3), (64, 8, 3), (128, 4, 3), (128, 8, 3), (256, 8, 2)]
FULL = ("llama-8b", "qwen3-0.6b")
BFLOAT16, FLOAT8 = torch.bfloat16, torch.float8_e4m3fn
Case = tuple[str, str, int, torch.dtype]
"""Shape, load, block size, the cache's type."""
CASES = [  # the most wanted first, should time run out
    *((shape, load, 16) for load in ("1x600", "1x8192", "32x600", "8x600", "1x128") for shape in FULL),
    ("qwen3-30b", "1x8192", 16),
    ("llama-1b", "1x8192", 16),
    *(
        (shape, load, 16)
        for load in ("16x600", "64x600", "32 mixed", "128x600", "256x576", "4 skewed")
        for shape in FULL
    ),
    *(("llama-8b", load, 16) for load in ("32x4096", "skewed", "mixed", "padded")),
    *((shape, load, 16) for load in ("1x600", "256x576") for shape in ("qwen3-30b", "llama-1b")),
    *(("llama-8b", load, 64) for load in ("1x600", "1x8192", "32x600", "256x576")),
]
WANTED: list[Case] = {
    "bfloat16": [(*case, BFLOAT16) for case in CASES],
    "float8": [
        ("llama-8b", load, 64, kept)
        for load in ("256x576", "1x8192", "32x600", "32x4096", "1x600", "skewed", "mixed")
        for kept in (FLOAT8, BFLOAT16)
    ]
    + [(shape, "256x576", 64, kept) for shape in ("qwen3-0.6b", "llama-1b") for kept in (FLOAT8, BFLOAT16)]
    + [("llama-8b", "256x576", 16, FLOAT8)],
    "skewed": [
        ("llama-8b", load, 64, kept)
        for kept in (BFLOAT16, FLOAT8)
        for load in ("skewed", "as many bytes", "32x600", "mixed", "skewed first", "256x576")
    ],
}[PART]
ONE_CUT = PART == "float8"
"""Of bfloat16's cuts, as chosen and no others."""


def choice_of(shape: str, load: str, kept: torch.dtype, processors: int) -> Choice:
    """What decode_attention takes."""
    layer, batch = SHAPES[shape], len(LOADS[load])
    group, pairs = layer.heads // layer.kv_heads, batch * layer.kv_heads
    return choose(layer.head_dim, kept.itemsize, group, batch=batch, pairs=pairs, processors=processors)


def cuts_of(shape: str, load: str, kept: torch.dtype, processors: int) -> list[Choice]:
    """Those to compare, the chosen one first."""
    batch, kv_heads = len(LOADS[load]), SHAPES[shape].kv_heads
    chosen = choice_of(shape, load, kept, processors)
    if kept == BFLOAT16 and ONE_CUT:
        return [chosen]
    cuts, small, many = [], (SMALL, SMALL_FLOAT8)[kept == FLOAT8], (MANY, MANY_FLOAT8)[kept == FLOAT8]
    if batch > 4:
        kinds = [(slack, even) for even in (False, True) for slack in (0, 12)]
        cuts += [Choice(t, w, s, max(1, 256 // t), 0, slack, n, even) for t, w, s, n in many for slack, even in kinds]
    if batch <= FEW:
        most = processors * 8 // (batch * kv_heads)
        cuts += [Choice(*v, 1, splits) for v in small for splits in (1, 2, 4, 8, 16, 32) if splits <= most]
    return list(dict.fromkeys([chosen, *cuts]))


Build = tuple[str, int, torch.dtype, Choice, bool]
"""Shape, block size, the cache's type, what of a choice is compiled in, one sequence alone."""


def builds() -> list[Build]:
    """All that is compiled, the most wanted first."""
    found: dict[Build, None] = {}
    for shape, load, size, kept in WANTED:
        for choice in cuts_of(shape, load, kept, 132):
            compiled = choice._replace(min_share=1, splits=int(choice.splits > 0), slack=0, each=1, even=False)
            found[shape, size, kept, compiled, choice.splits > 0 and len(LOADS[load]) == 1] = None
    return list(found)


TABLE: list[str] = []


@dataclass(frozen=True)
class Inputs:
    layer: Attention
    lengths: list[int]
    q: torch.Tensor
    caches: list[torch.Tensor]
    plan: kernel.Plan
    out: torch.Tensor

    @property
    def bytes(self) -> int:
        numbers = 2 * sum(self.lengths) * self.layer.kv_heads * self.layer.head_dim
        return numbers * self.caches[0].element_size() + 2 * self.q.numel() * 2


def make(shape: str, lengths: list[int], block_size: int, kept: torch.dtype, *, cold: int = COLD) -> Inputs:
    """Random numbers in blocks of a random order; the table's unused entries are wild, the unused keys NaN."""
    layer, batch = SHAPES[shape], len(lengths)
    counts = [-(-n // block_size) for n in lengths]
    order = torch.randperm(sum(counts)).int()
    tables = torch.full((batch, max(counts)), 2**30, dtype=torch.int32)
    size = (2, sum(counts), block_size, layer.kv_heads, layer.head_dim)
    copies = max(1, min(MOST_COPIES, cold // (kept.itemsize * torch.Size(size).numel())))
    caches = [torch.randn(size, dtype=torch.bfloat16, device="cuda").to(kept) for _ in range(copies)]
    done = 0
    for row, count in enumerate(counts):
        tables[row, :count] = order[done : done + count]
        done += count
    for row, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        if length % block_size:
            caches[0][:, int(tables[row, count - 1]), length % block_size :].fill_(float("nan"))
    q = torch.randn(batch, layer.heads, layer.head_dim, dtype=torch.bfloat16, device="cuda")
    numbers = torch.arange(batch), torch.tensor(lengths), torch.zeros(batch + 2)
    plan = kernel.Plan(tables.cuda(), *(x.int().cuda() for x in numbers))
    return Inputs(layer, lengths, q, caches, plan, torch.full_like(q, float("nan")))


def workspace(inputs: Inputs) -> kernel.Workspace:
    layer = inputs.layer
    return kernel.make_workspace(
        max_rows=len(inputs.lengths),
        kv_heads=layer.kv_heads,
        group=layer.heads // layer.kv_heads,
        head_dim=layer.head_dim,
        processors=torch.cuda.get_device_properties(0).multi_processor_count,
        device=torch.device("cuda"),
    )


def run(inputs: Inputs, cache: torch.Tensor, space: kernel.Workspace, choice: Choice) -> None:
    plan, out = inputs.plan, inputs.out
    kernel.launch(inputs.q, cache, plan, out, layer=inputs.layer, workspace=space, sinks=None, choice=choice)


def wide(inputs: Inputs) -> torch.Tensor:
    """The first cache, of a type that can be indexed."""
    cache = inputs.caches[0]
    return cache.half() if cache.dtype == FLOAT8 else cache


def error(inputs: Inputs) -> float:
    """The greatest difference from float32, over 8 of the sequences, of inputs.out from the first cache."""
    worst = 0.0
    batch = len(inputs.lengths)
    for b in sorted({*range(0, batch, max(1, batch // 6)), batch - 1}):
        length = inputs.lengths[b]
        want = torch.zeros_like(inputs.out[b], dtype=torch.float32)
        if length:
            table = inputs.plan.block_tables[b, : -(-length // inputs.caches[0].shape[2])].long()
            k, v = (kept[table].flatten(0, 1)[:length].float().transpose(0, 1) for kept in wide(inputs))
            q = inputs.q[b].float()[:, None]
            want = F.scaled_dot_product_attention(q[None], k[None], v[None], scale=inputs.layer.scale, enable_gqa=True)[
                0, :, 0
            ]
        difference = (inputs.out[b].float() - want).abs().max().item()
        worst = max(worst, difference if difference == difference else float("inf"))
    return worst


def report(kernel_name: str, case: str, **numbers: float | str) -> None:
    rounded = {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in numbers.items()}
    print(json.dumps({"kernel": kernel_name, "case": case, **rounded}), flush=True)


def guarded(case: str, work: Callable[[], float | None]) -> float:
    """work's result; infinity where time is up or, with a line that says so, where it fails."""
    if time.monotonic() - BEGIN > SECONDS:
        return float("inf")
    try:
        took = work()
        return float("inf") if took is None else took
    except Exception as problem:
        report("decode_attention", case, error=repr(problem)[:300])
        return float("inf")


def named(choice: Choice) -> str:
    how = f"few, splits {choice.splits}"
    if not choice.splits:
        how = f"many, slack {choice.slack}{' even' * choice.even}"
    return (
        f"{how} tile {choice.tile} warps {choice.warps} stages {choice.stages} least {choice.min_share} x{choice.each}"
    )


def plan(inputs: Inputs, choice: Choice) -> None:
    kernel.plan_tiles(inputs.plan.seq_lens, inputs.plan.tiles, window=None, tile=choice.tile)


def measure(inputs: Inputs, case: str, choice: Choice) -> float:
    """Microseconds, reported with the error; plans for choice.tile."""
    space = workspace(inputs)
    plan(inputs, choice)
    inputs.out.fill_(float("nan"))
    run(inputs, inputs.caches[0], space, choice)
    wrong = error(inputs)
    caches = inputs.caches * max(1, -(-4 // len(inputs.caches)))
    us = graph_us([lambda cache=cache: run(inputs, cache, space, choice) for cache in caches])
    left = int(space.arrived.abs().sum())
    report(
        "decode_attention",
        f"{case} {named(choice)}",
        us=us,
        tb_s=inputs.bytes / us / 1e6,
        error=wrong if not left else f"counters left at {left}",
    )
    return us if not left and wrong < 0.02 else float("inf")


def in_step(inputs: Inputs, choice: Choice) -> float:
    """Microseconds that a launch adds between a layer's other kernels, whose code and weights push its own out."""
    space = workspace(inputs)
    plan(inputs, choice)
    weights = [torch.randn(4096, 2048, dtype=torch.bfloat16, device="cuda") for _ in range(3)]
    x = torch.randn(16, 4096, dtype=torch.bfloat16, device="cuda")
    y = torch.empty(16, 2048, dtype=torch.bfloat16, device="cuda")
    caches = (inputs.caches * 32)[:32]

    def layer(i: int, cache: torch.Tensor | None) -> None:
        torch.mm(x, weights[i % 3], out=y)
        y.add_(1.0)
        torch.softmax(y, 1, out=y)
        if cache is not None:
            run(inputs, cache, space, choice)
        y.mul_(0.5)

    full = graph_us([lambda i=i, cache=cache: layer(i, cache) for i, cache in enumerate(caches)])
    return full - graph_us([lambda i=i: layer(i, None) for i in range(32)])


def compare(shape: str, load: str, block_size: int, kept: torch.dtype) -> None:
    """All cuts of a case; the table gets the best."""
    case = f"{shape} {load} block {block_size}" + " float8" * (kept == FLOAT8)
    made: list[Inputs] = []
    guarded(case, lambda: made.append(make(shape, LOADS[load], block_size, kept)))
    if not made:
        return
    times = {}
    cuts = cuts_of(shape, load, kept, torch.cuda.get_device_properties(0).multi_processor_count)
    chosen = cuts[0]
    for cut in cuts:
        times[cut] = guarded(case, lambda cut=cut: measure(made[0], case, cut))
    order = [cut for cut in sorted(times, key=lambda cut: times[cut]) if times[cut] < float("inf")]
    if len(order) < len(times):
        TABLE.append(f"{case:36}   {len(times) - len(order)} of {len(times)} failed or left out")
    for cut in dict.fromkeys([*order[:6], chosen]):
        mark = ">" if cut == chosen else " "
        if cut not in order:
            continue
        speed = made[0].bytes / times[cut] / 1e6
        step = ""
        if PART == "bfloat16":
            took = guarded(case, lambda cut=cut: in_step(made[0], cut))
            step = f" in a step {took:6.2f} us"
        TABLE.append(f"{case:36} {mark} {times[cut]:7.2f} us {speed:6.3f} TB/s {step}  {named(cut)}")


def build(job: Build) -> str:
    """Compiles one variant into Triton's cache on disk, by running it on little; in a process of its own."""
    shape, block_size, kept, choice, alone = job
    try:
        inputs = make(shape, [40] if alone else [40, 1], block_size, kept, cold=1)
        plan(inputs, choice)
        run(inputs, inputs.caches[0], workspace(inputs), choice)
        torch.cuda.synchronize()
    except Exception as problem:
        return f"{job}: {problem!r}"[:300]
    return ""


def build_all() -> None:
    """Side by side, before this process has touched the GPU (a fork cannot use it after that)."""
    with multiprocessing.get_context("fork").Pool(12) as pool:
        try:
            for problem in pool.map_async(build, builds(), chunksize=1).get(timeout=SECONDS * 0.75):
                if problem:
                    report("decode_attention build", problem)
        except multiprocessing.TimeoutError:
            report("decode_attention build", "time is up")
        pool.terminate()
    report("decode_attention build", "all", seconds=time.monotonic() - BEGIN)


def copy_speed() -> float:
    source = torch.empty(2**28, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    us = graph_us([lambda: target.copy_(source)] * 3)
    report("copy", "256 MB, read and written", us=us, tb_s=2 * source.numel() / us / 1e6)
    return us


def plan_time(batch: int, window: int | None) -> float:
    lengths = torch.randint(0, 3000, (batch,), dtype=torch.int32, device="cuda")
    out = torch.zeros(batch + 2, dtype=torch.int32, device="cuda")
    us = graph_us([lambda: kernel.plan_tiles(lengths, out, window=window, tile=TILE)] * 20)
    low = (lengths - (window or 2**30)).clamp(min=0)
    counts = (lengths + TILE - 1) // TILE - low // TILE
    wrong = int((out[1:-1] - counts.cumsum(0)).abs().max())
    report("plan_tiles", f"{batch} window {window}", us=us, error=wrong)
    return us


def main() -> None:
    build_all()
    guarded("copy", copy_speed)
    for batch, window in ((1, None), (256, None), (4096, 512)):
        guarded("plan", lambda batch=batch, window=window: plan_time(batch, window))
    for case in WANTED:
        compare(*case)
    report("done", "", seconds=time.monotonic() - BEGIN)
    print("\n".join(TABLE), flush=True)


if __name__ == "__main__":
    main()

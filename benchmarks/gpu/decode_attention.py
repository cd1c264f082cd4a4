"""Decode attention on a GPU: checks it against torch's attention in float32 and times it, one JSON line a case.

From the repository root: PYTHONPATH=. python benchmarks/gpu/decode_attention.py [seconds, 36 unless given]
Last comes a table: each case's fastest cuts, what choose takes (marked >) and the first round's cut (marked 1).
Each time is a launch's share of a CUDA graph of several, over caches that together exceed L2.
"""

from __future__ import annotations

import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from octavo.backends.torch.kernels import decode_attention as kernel
from octavo.models.spec import Attention

BEGIN = time.monotonic()
SECONDS = float(sys.argv[1]) if len(sys.argv) > 1 else 36.0
COLD = 128 * 2**20
"""Bytes of caches that launches rotate over: more than twice an H100's L2."""

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
    "32x600": [600] * 32,
    "64x600": [600] * 64,
    "128x600": [600] * 128,
    "256x576": [576] * 256,
    "32x4096": [4096] * 32,
    "skewed": [256] * 63 + [32768],
    "mixed": [(i * 7919) % 1500 + 1 for i in range(200)],
    "padded": [700] * 40 + [0] * 24,
}
MANY = [(64, 4, 3), (32, 4, 4)]
"""Tile, warps, stages for _decode."""
SMALL = [*MANY, (64, 4, 4), (64, 8, 2), (64, 8, 3), (128, 4, 2), (128, 8, 2), (256, 8, 2)]
"""For _decode_few."""
FIRST = (kernel.Choice(64, 4, 3, 4), 3)
"""The first round's cut."""
Cut = tuple[kernel.Choice, int]
"""With programs a multiprocessor."""
FULL = ("llama-8b", "qwen3-0.6b")
CASES = [  # shape, load, block size: the most wanted first, should time run out
    *((shape, load, 16) for load in ("1x600", "1x8192", "32x600", "8x600", "1x128") for shape in FULL),
    ("qwen3-30b", "1x8192", 16),
    ("llama-1b", "1x8192", 16),
    *((shape, load, 16) for load in ("64x600", "128x600", "256x576", "4 skewed") for shape in FULL),
    *(("llama-8b", load, 16) for load in ("32x4096", "skewed", "mixed", "padded")),
    *((shape, load, 16) for load in ("1x600", "256x576") for shape in ("qwen3-30b", "llama-1b")),
    *(("llama-8b", load, 64) for load in ("1x600", "1x8192", "32x600", "256x576")),
]


def variants(load: str) -> list[tuple[int, int, int]]:
    """Of _decode_few."""
    return SMALL if load in ("1x600", "1x8192") else [*MANY, (128, 8, 2)]


BUILDS = sorted({  # (shape, block size, tile and warps and stages, few, alone): all that is compiled
    (shape, size, variant, few, alone)
    for shape, load, size in CASES
    for few, alone in ((False, False), (True, len(LOADS[load]) == 1))
    if not few or len(LOADS[load]) <= kernel.FEW
    for variant in (variants(load) if few else MANY)
})  # fmt: skip
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
        return sum(self.lengths) * self.layer.kv_heads * self.layer.head_dim * 4 + 2 * self.q.numel() * 2


def make(shape: str, lengths: list[int], block_size: int, *, cold: int = COLD) -> Inputs:
    """Random numbers in blocks of a random order; the table's unused entries are wild, the unused keys NaN."""
    layer, batch = SHAPES[shape], len(lengths)
    counts = [-(-n // block_size) for n in lengths]
    order = torch.randperm(sum(counts)).int()
    tables = torch.full((batch, max(counts)), 2**30, dtype=torch.int32)
    size = (2, sum(counts), block_size, layer.kv_heads, layer.head_dim)
    copies = max(1, -(-cold // (2 * torch.Size(size).numel())))
    caches = [torch.randn(size, dtype=torch.bfloat16, device="cuda") for _ in range(copies)]
    done = 0
    for row, count in enumerate(counts):
        tables[row, :count] = order[done : done + count]
        done += count
    for row, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        if length % block_size:
            caches[0][:, tables[row, count - 1], length % block_size :] = float("nan")
    q = torch.randn(batch, layer.heads, layer.head_dim, dtype=torch.bfloat16, device="cuda")
    numbers = torch.arange(batch), torch.tensor(lengths), torch.zeros(batch + 1)
    plan = kernel.Plan(tables.cuda(), *(x.int().cuda() for x in numbers))
    return Inputs(layer, lengths, q, caches, plan, torch.full_like(q, float("nan")))


def workspace(inputs: Inputs, programs: int) -> kernel.Workspace:
    layer = inputs.layer
    return kernel.make_workspace(
        max_rows=len(inputs.lengths),
        kv_heads=layer.kv_heads,
        group=layer.heads // layer.kv_heads,
        head_dim=layer.head_dim,
        programs=programs,
        device=torch.device("cuda"),
    )


def run(inputs: Inputs, cache: torch.Tensor, space: kernel.Workspace, choice: kernel.Choice) -> None:
    plan, out = inputs.plan, inputs.out
    kernel.launch(inputs.q, cache, plan, out, layer=inputs.layer, workspace=space, sinks=None, choice=choice)


def error(inputs: Inputs) -> float:
    """The greatest difference from float32, over 8 of the sequences, of inputs.out from the first cache."""
    worst = 0.0
    batch = len(inputs.lengths)
    for b in sorted({*range(0, batch, max(1, batch // 6)), batch - 1}):
        length = inputs.lengths[b]
        want = torch.zeros_like(inputs.out[b], dtype=torch.float32)
        if length:
            table = inputs.plan.block_tables[b, : -(-length // inputs.caches[0].shape[2])].long()
            k, v = inputs.caches[0][:, table].flatten(1, 2)[:, :length].float().transpose(1, 2)
            q = inputs.q[b].float()[:, None]
            want = F.scaled_dot_product_attention(q[None], k[None], v[None], scale=inputs.layer.scale, enable_gqa=True)[
                0, :, 0
            ]
        difference = (inputs.out[b].float() - want).abs().max().item()
        worst = max(worst, difference if difference == difference else float("inf"))
    return worst


def seconds(launches: list[Callable[[], None]]) -> float:
    """Of one launch: the median of seven runs of a graph of all of them."""
    launches[0]()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for launch in launches:
            launch()
    graph.replay()
    times = []
    for _ in range(7):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times) / len(launches) / 1000


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


def named(choice: kernel.Choice, programs: int) -> str:
    how = f"few, splits {choice.splits}" if choice.splits else f"many, slack {choice.slack}"
    return f"{how} tile {choice.tile} warps {choice.warps} stages {choice.stages} least {choice.min_share} x{programs}"


def measure(inputs: Inputs, case: str, programs: int, choice: kernel.Choice) -> float:
    """Microseconds, reported with the error; plans for choice.tile."""
    space = workspace(inputs, programs * torch.cuda.get_device_properties(0).multi_processor_count)
    kernel.plan_tiles(inputs.plan.seq_lens, inputs.plan.tiles, window=None, tile=choice.tile)
    inputs.out.fill_(float("nan"))
    run(inputs, inputs.caches[0], space, choice)
    wrong = error(inputs)
    caches = inputs.caches * max(1, -(-4 // len(inputs.caches)))
    took = seconds([lambda cache=cache: run(inputs, cache, space, choice) for cache in caches])
    left = int(space.arrived.abs().sum())
    report(
        "decode_attention",
        f"{case} {named(choice, programs)}",
        us=took * 1e6,
        tb_s=inputs.bytes / took / 1e12,
        error=wrong if not left else f"counters left at {left}",
    )
    return took * 1e6 if not left and wrong < 0.02 else float("inf")


def cuts_of(load: str, kv_heads: int) -> list[Cut]:
    """Those to compare."""
    batch = len(LOADS[load])
    pairs = batch * kv_heads
    cuts = [FIRST, (FIRST[0], 2)]
    if batch > 4:
        cuts += [(kernel.Choice(*v, 4, 0, slack), n) for v in MANY for n in (2, 3) for slack in (0, 12, 25)]
    if batch <= kernel.FEW:
        few = [(splits, least, 2) for splits, least in ((1, 1), (2, 1), (4, 1), (8, 1), (16, 1), (32, 1), (32, 2))]
        if batch > 1:
            few.append((32, 1, 1))  # one program a multiprocessor has all
        if load == "1x8192":
            few.append((64, 1, 4))
        cuts += [
            (kernel.Choice(*v, least, splits), n)
            for v in variants(load)
            for splits, least, n in few
            if splits * pairs <= (2 if batch > 1 else 1) * n * 132 and (batch > 1 or splits != 2)
        ]
    return cuts


def in_step(inputs: Inputs, choice: kernel.Choice, programs: int) -> float:
    """Microseconds that a launch adds between a layer's other kernels, whose code and weights push its own out."""
    space = workspace(inputs, programs * torch.cuda.get_device_properties(0).multi_processor_count)
    kernel.plan_tiles(inputs.plan.seq_lens, inputs.plan.tiles, window=None, tile=choice.tile)
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

    full = seconds([lambda i=i, cache=cache: layer(i, cache) for i, cache in enumerate(caches)])
    return (full - seconds([lambda i=i: layer(i, None) for i in range(32)])) * 1e6


def compare(shape: str, load: str, block_size: int) -> None:
    """All cuts of a case; the table gets the best."""
    case = f"{shape} {load} block {block_size}"
    made: list[Inputs] = []
    guarded(case, lambda: made.append(make(shape, LOADS[load], block_size)))
    if not made:
        return
    layer, batch = SHAPES[shape], len(LOADS[load])
    programs = kernel.PROGRAMS * torch.cuda.get_device_properties(0).multi_processor_count
    chosen = (
        kernel.choose(layer.head_dim, 2, batch=batch, pairs=batch * layer.kv_heads, programs=programs),
        kernel.PROGRAMS,
    )
    times = {}
    for cut in dict.fromkeys([chosen, *cuts_of(load, layer.kv_heads)]):
        times[cut] = guarded(case, lambda cut=cut: measure(made[0], case, cut[1], cut[0]))
    order = [cut for cut in sorted(times, key=lambda cut: times[cut]) if times[cut] < float("inf")]
    if len(order) < len(times):
        TABLE.append(f"{case:28}   {len(times) - len(order)} of {len(times)} failed or left out")
    for cut in dict.fromkeys([*order[:6], chosen, FIRST]):
        mark = ">" if cut == chosen else "1" if cut == FIRST else " "
        if cut not in order:
            continue
        speed = made[0].bytes / times[cut] / 1e6
        step = ""
        if batch <= 8:
            took = guarded(case, lambda cut=cut: in_step(made[0], *cut))
            step = f" in a step {took:6.2f} us"
        TABLE.append(f"{case:28} {mark} {times[cut]:7.2f} us {speed:6.3f} TB/s {step}  {named(*cut)}")


def build(job: tuple[str, int, tuple[int, int, int], bool, bool]) -> str:
    """Compiles one variant into Triton's cache on disk, by running it on little; in a process of its own."""
    shape, block_size, variant, few, alone = job
    try:
        inputs = make(shape, [40] if alone else [40, 1], block_size, cold=1)
        kernel.plan_tiles(inputs.plan.seq_lens, inputs.plan.tiles, window=None, tile=variant[0])
        run(inputs, inputs.caches[0], workspace(inputs, 16), kernel.Choice(*variant, 1, int(few)))
        torch.cuda.synchronize()
    except Exception as problem:
        return f"{job}: {problem!r}"[:300]
    return ""


def build_all() -> None:
    """Side by side, before this process has touched the GPU (a fork cannot use it after that)."""
    with multiprocessing.get_context("fork").Pool(12) as pool:
        try:
            for problem in pool.map_async(build, BUILDS, chunksize=1).get(timeout=SECONDS * 0.75):
                if problem:
                    report("decode_attention build", problem)
        except multiprocessing.TimeoutError:
            report("decode_attention build", "time is up")
        pool.terminate()
    report("decode_attention build", "all", seconds=time.monotonic() - BEGIN)


def copy_speed() -> float:
    source = torch.empty(2**28, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    took = seconds([lambda: target.copy_(source)] * 3)
    report("copy", "256 MB, read and written", us=took * 1e6, tb_s=2 * source.numel() / took / 1e12)
    return took


def plan_time(batch: int, window: int | None) -> float:
    lengths = torch.randint(0, 3000, (batch,), dtype=torch.int32, device="cuda")
    out = torch.zeros(batch + 1, dtype=torch.int32, device="cuda")
    took = seconds([lambda: kernel.plan_tiles(lengths, out, window=window)] * 20)
    low = (lengths - (window or 2**30)).clamp(min=0)
    counts = (lengths + kernel.TILE - 1) // kernel.TILE - low // kernel.TILE
    wrong = int((out[1:] - counts.cumsum(0)).abs().max())
    report("plan_tiles", f"{batch} window {window}", us=took * 1e6, error=wrong)
    return took


def main() -> None:
    build_all()
    guarded("copy", copy_speed)
    for batch, window in ((1, None), (256, None), (4096, 512)):
        guarded("plan", lambda batch=batch, window=window: plan_time(batch, window))
    for shape, load, size in CASES:
        compare(shape, load, size)
    report("done", "", seconds=time.monotonic() - BEGIN)
    print("\n".join(TABLE), flush=True)


if __name__ == "__main__":
    main()

"""Prefill attention on a GPU: errors against float32 math, then times of real shapes in several cuts, as JSON lines.

PYTHONPATH=. python benchmarks/gpu/prefill_attention.py [--all] [--float8]
--all: all cuts for all heads.  --float8: over a cache of E4M3 (q stays bfloat16), and bfloat16's chosen cut beside it.
Where flash-attn-4 is installed (octavo[flash]) it stands beside them, over blocks of 128 tokens.
tflops counts the products that the causal mask and the window leave; an H100 SXM has 990 dense.
"""

from __future__ import annotations

import functools
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import torch
import triton
from timing import graph_us

from octavo.backends.torch.attention import flash4
from octavo.backends.torch.kernels import prefill_attention as kernel
from octavo.backends.torch.kernels.prefill_attention import Shape
from octavo.models.spec import Attention, GatedMLP, Head, Layer, ModelSpec, RMSNorm

LLAMA8B, LLAMA1B, QWEN06B, QWEN30B = (32, 8, 128), (32, 8, 64), (16, 8, 128), (32, 4, 128)
GEMMA = (8, 4, 256)
SPANS = {  # (row, first, start, count)
    "8192": [(0, 0, 0, 8192)],
    "8x1024": [(i, i * 1024, 0, 1024) for i in range(8)],
    "2048@30k": [(0, 0, 30000, 2048)],
    "mixed": [(i, i, 900 + 37 * i, 1) for i in range(64)] + [(64, 64, 0, 1500), (65, 1564, 5000, 484)],
}
VARIANTS = [  # block_m, block_n, heads packed (0: all of a kv head), warps, stages, descriptors, then block_size
    (64, 64, 0, 4, 3, True, 64),
    (128, 64, 0, 8, 3, True, 64),
    (64, 64, 0, 4, 3, False, 64),
    (64, 64, 0, 4, 3, True, 128),
    (128, 128, 0, 8, 3, True, 128),
    (64, 64, 0, 4, 3, False, 16),
    (128, 64, 0, 8, 3, False, 16),
    (128, 128, 0, 8, 3, False, 16),
]
FEW = [VARIANTS[i] for i in (0, 1, 5)]
NARROW = [  # head_dim 64
    (128, 64, 0, 8, 3, True, 64),
    (64, 64, 0, 4, 3, True, 64),
    (128, 64, 0, 8, 3, False, 16),
]
WIDE = [  # head_dim 256
    (128, 64, 0, 8, 2, True, 64),
    (128, 32, 0, 8, 3, True, 64),
    (128, 32, 0, 8, 3, False, 16),
]
FLOAT8 = [  # in place of VARIANTS over a cache of E4M3
    (64, 64, 0, 4, 3, False, 64),
    (64, 64, 0, 4, 3, True, 64),
    (64, 64, 0, 4, 2, False, 64),
    (64, 64, 0, 4, 4, False, 64),
    (64, 32, 0, 4, 3, False, 64),
    (128, 64, 0, 8, 3, False, 64),
    (128, 64, 0, 8, 3, True, 64),
    (128, 128, 0, 8, 2, False, 128),
]
FLOAT8_NARROW = [(128, 64, 0, 8, 3, False, 64), (128, 64, 0, 8, 3, True, 64), (64, 64, 0, 4, 3, False, 64)]
FLOAT8_WIDE = [(128, 32, 0, 8, 3, False, 64), (128, 32, 0, 8, 3, True, 64), (128, 64, 0, 8, 2, True, 64)]
E4M3, HALF = torch.float8_e4m3fn, torch.bfloat16
LIMIT = 20.0  # seconds, after which no new case begins (without --all)
COPIES = 2  # of queries and cache, more than the L2 holds
COMPILING: list[bool] = []  # not empty: nothing is launched, nothing to check


def layer_of(heads: tuple[int, int, int], **fields) -> Attention:
    return Attention(*heads, scale=heads[2] ** -0.5, rope=None, **fields)


def inputs(layer: Attention, spans: list, block_size: int, dtype=HALF, kept=None) -> list[tuple]:
    """COPIES of (q, cache of type `kept`, block tables, out); blocks of all sequences shuffled."""
    tokens, rows = sum(span[3] for span in spans), len(spans)
    width = max(-(-(start + count) // block_size) for _, _, start, count in spans) // 16 * 16 + 16
    total = sum(-(-(start + count) // block_size) for _, _, start, count in spans) + 1
    made = []
    for seed in range(COPIES):
        torch.manual_seed(seed)
        order, tables = torch.randperm(total).tolist(), torch.zeros(rows, width, dtype=torch.int32)
        for row, _, start, count in spans:
            for block in range(-(-(start + count) // block_size)):
                tables[row, block] = order.pop()
        q = torch.randn(tokens, layer.heads + 2 * layer.kv_heads, layer.head_dim, device="cuda").to(dtype)
        shape = (2, total, block_size, layer.kv_heads, layer.head_dim)
        cache = torch.randn(shape, dtype=dtype, device="cuda").to(kept or dtype)
        q = q[:, : layer.heads]
        made.append((q, cache, tables.cuda(), torch.full(q.shape, float("nan"), dtype=dtype, device="cuda")))
    return made


def error(layer: Attention, spans: list, data: tuple, sinks=None, samples: int = 12) -> float:
    """Largest difference from float32 math over `samples` queries of each of up to 8 spans; NaN counts."""
    q, cache, tables, out = data
    worst = 0.0
    for row, first, start, count in spans[:4] + spans[4:][-4:]:
        at = torch.arange(start + count, device="cuda")
        size = cache.shape[2]
        k, v = cache.flatten(1, 2).float()[:, tables[row, at // size] * size + at % size]
        group = layer.heads // layer.kv_heads
        picked = torch.unique(torch.linspace(0, count - 1, min(samples, count), device="cuda").long())
        queries = q[first + picked].float().unflatten(1, (layer.kv_heads, group))
        scores = torch.einsum("qkgd,nkd->qkgn", queries, k) * layer.scale
        if layer.softcap is not None:
            scores = layer.softcap * torch.tanh(scores / layer.softcap)
        p = (start + picked)[:, None]
        seen = (at <= p) & (at > p - (layer.window or 1 << 30))
        scores = scores.masked_fill(~seen[:, None, None], float("-inf"))
        if sinks is not None:
            scores = torch.cat([scores, sinks.view(1, layer.kv_heads, group, 1).expand(len(picked), -1, -1, 1)], -1)
        weights = scores.softmax(-1)[..., : len(at)]
        wanted = torch.einsum("qkgn,nkd->qkgd", weights, v).flatten(1, 2)
        difference = (out[first + picked].float() - wanted).abs()
        worst = max(worst, float("inf") if bool(difference.isnan().any()) else difference.max().item())
    return worst


def cut(layer: Attention, variant: tuple) -> Shape:
    m, n, pack, *rest, _ = variant
    return Shape(m, n, pack or layer.heads // layer.kv_heads, *rest)


def tiles_of(spans: list, shape: Shape) -> torch.Tensor:
    return torch.tensor(kernel.make_tiles(spans, shape.queries), dtype=torch.int32, device="cuda")


def flops(layer: Attention, spans: list) -> float:
    pairs = 0
    for _, _, start, count in spans:
        pairs += sum(min(p + 1, layer.window or 1 << 30) for p in range(start, start + count))
    return 4.0 * layer.head_dim * layer.heads * pairs


def timed(run) -> float:
    """Microseconds a launch, of 2 * COPIES. run(i) launches on copy i."""
    return graph_us([functools.partial(run, i % COPIES) for i in range(2 * COPIES)], rounds=5)


def say(**fields) -> None:
    print(json.dumps({k: round(v, 5) if isinstance(v, float) else v for k, v in fields.items()}), flush=True)


def measure(heads: tuple, name: str, variant: tuple, fields: dict, kept: torch.dtype, table: list) -> None:
    """One case in one cut: one JSON line."""
    layer, spans = layer_of(heads, **fields), SPANS[name]
    case = "/".join(map(str, heads)) + f" {name}" + "".join(f" {k} {v}" for k, v in fields.items())
    case += " float8" * (kept == E4M3)
    shape = cut(layer, variant)
    label = f"{variant[0]}x{variant[1]} pack {shape.pack} warps {shape.warps} stages {shape.stages}"
    label += f" block_size {variant[-1]}" + " descriptors" * shape.descriptors
    label += " chosen" * (shape == kernel.choose(*heads, 2, variant[-1], other(kept)))
    try:
        data, tiles = cached_inputs(layer, name, variant[-1], kept), tiles_of(spans, shape)
        us = timed(lambda i: kernel.launch(shape, *data[i][:3], tiles, data[i][3], layer))
        wrong = max(error(layer, spans, copy) for copy in data)
        rate = flops(layer, spans) / us / 1e6
        say(kernel="prefill_attention", case=case, cut=label, us=us, tflops=rate, error=wrong)
        table.append((case, label, us, rate, "" if wrong < 0.03 else f"WRONG {wrong:.3f}"))
    except Exception as e:
        say(kernel="prefill_attention", case=case, cut=label, error=repr(e)[:200])
        table.append((case, label, 0.0, 0.0, type(e).__name__))


@functools.lru_cache(maxsize=2)
def cached_inputs(layer: Attention, name: str, block_size: int, kept: torch.dtype) -> list[tuple]:
    return inputs(layer, SPANS[name], block_size, kept=kept)


def other(kept: torch.dtype, dtype: torch.dtype = HALF) -> torch.dtype | None:
    return None if kept == dtype else kept


def checks(float8: bool) -> list[tuple]:
    """(heads, cut or None for the chosen one, block_size, dtype, sinks, layer's fields[, cache's type])"""
    half = HALF
    if float8:
        return [
            *((heads, None, 16, half, False, {}, E4M3) for heads in (LLAMA8B, LLAMA1B, GEMMA)),
            (LLAMA8B, None, 64, half, True, {"window": 100, "softcap": 20.0}, E4M3),
            (LLAMA8B, Shape(64, 64, 4, 4, 3, True), 64, half, False, {"window": 200}, E4M3),
            ((14, 2, 96), None, 32, torch.float16, False, {}, E4M3),
            ((4, 2, 64), None, 64, torch.float32, False, {}, E4M3),
        ]
    return [
        (LLAMA8B, None, 16, half, False, {}),
        (LLAMA8B, None, 16, half, True, {"window": 100, "softcap": 20.0}),
        (LLAMA8B, None, 64, half, False, {"window": 100}),
        (LLAMA8B, None, 128, half, True, {}),
        (LLAMA8B, Shape(128, 64, 4, 8, 3, True), 64, half, False, {"window": 200}),
        (LLAMA1B, None, 64, torch.float16, False, {}),
        (LLAMA1B, None, 16, half, True, {}),
        (GEMMA, None, 64, half, False, {"window": 256}),
        (GEMMA, None, 16, half, False, {}),
        ((14, 2, 96), None, 32, half, False, {}),
        ((4, 2, 128), None, 16, torch.float32, False, {}),
        ((4, 2, 64), None, 64, torch.float32, False, {}),
    ]


def check(heads, shape: Shape | None, block_size: int, dtype, sunk: bool, fields: dict, kept=None) -> None:
    """Spans of 700 queries and fewer: one JSON line with the largest error of 64 queries a span."""
    layer, spans = layer_of(heads, **fields), [(0, 0, 0, 700), (1, 700, 611, 90), (2, 790, 333, 1), (3, 791, 0, 3)]
    case = "/".join(map(str, heads)) + f" {dtype} cache {kept or dtype} block_size {block_size} {fields} sinks {sunk}"
    shape = shape or kernel.choose(*heads, dtype.itemsize, block_size, kept)
    sinks = torch.randn(heads[0], device="cuda") if sunk else None
    try:
        data = inputs(layer, spans, block_size, dtype, kept)[0]
        kernel.launch(shape, *data[:3], tiles_of(spans, shape), data[3], layer, sinks)
        if COMPILING:
            return
        wrong = error(layer, spans, data, sinks, 64)
        say(kernel="prefill_attention check", case=case, cut=str(tuple(shape)), error=wrong)
    except Exception as e:
        say(kernel="prefill_attention check", case=case, cut=str(tuple(shape)), error=repr(e)[:200])


def host_time() -> None:
    """Microseconds of Python a call of prefill_attention."""
    layer = layer_of(QWEN06B)
    q, cache, tables, out = inputs(layer, [(0, 0, 0, 8)], 64)[0]
    tiles = tiles_of([(0, 0, 0, 8)], kernel.choose(*QWEN06B, 2))
    kernel.prefill_attention(q, cache, tables, tiles, out, layer=layer)
    begin = time.perf_counter()
    for _ in range(200):
        kernel.prefill_attention(q, cache, tables, tiles, out, layer=layer)
    say(kernel="prefill_attention host", us=(time.perf_counter() - begin) * 5e3)
    torch.cuda.synchronize()


def flash_of(jobs: list) -> tuple[list[Attention], flash4.Flash4]:
    """The jobs' layers, and flash-attn-4's kernels for them, which are compiled from now on."""
    layers = list(dict.fromkeys(layer_of(heads, **fields) for heads, _, _, fields, _ in jobs))
    rest = {"ffn": GatedMLP(1, "silu"), "pre_mixer": RMSNorm(0), "pre_ffn": RMSNorm(0)}
    spec = ModelSpec("", 1, 1, tuple(Layer(layer, **rest) for layer in layers), RMSNorm(0), Head(tied=True), 1)
    types = {"dtype": torch.bfloat16, "cache_dtype": torch.bfloat16}
    return layers, flash4.Flash4(spec, device=torch.device("cuda", 0), block_size=flash4.BLOCK_SIZE, **types)


def flash(jobs: list, layers: list[Attention], compiled: flash4.Flash4, table: list) -> None:
    """Each of the jobs' cases by flash-attn-4, where it takes the layer."""
    kernels = compiled.kernels()
    for layer, name in dict.fromkeys((layer_of(heads, **fields), name) for heads, name, _, fields, _ in jobs):
        if layers.index(layer) in kernels:
            measure_flash(layer, name, kernels[layers.index(layer)], table)


def measure_flash(layer: Attention, name: str, function: flash4.Function, table: list) -> None:
    """One case: one JSON line."""
    spans, data = SPANS[name], cached_inputs(layer, name, flash4.BLOCK_SIZE, HALF)
    rows, firsts, starts, counts = (torch.tensor(part, dtype=torch.int32).cuda() for part in zip(*spans, strict=True))
    ends = torch.cat((firsts, firsts[-1:] + counts[-1:]))
    plans = [flash4.Spans(ends, starts + counts, copy[2][rows]) for copy in data]
    us = timed(lambda i: flash4.attend(function, *data[i][:2], plans[i], data[i][3], layer))
    wrong = max(error(layer, spans, copy) for copy in data)
    window = f" window {layer.window}" if layer.window else ""
    case = f"{layer.heads}/{layer.kv_heads}/{layer.head_dim} {name}{window}"
    rate = flops(layer, spans) / us / 1e6
    say(kernel=flash4.NAME, case=case, us=us, tflops=rate, error=wrong)
    label = f"{flash4.NAME} block_size {flash4.BLOCK_SIZE}"
    table.append((case, label, us, rate, "" if wrong < 0.03 else f"WRONG {wrong:.3f}"))


def sdpa() -> None:
    """PyTorch's own on contiguous keys, for scale."""
    heads, kv_heads, dim = LLAMA8B
    q = torch.randn(COPIES, heads, 8192, dim, dtype=torch.bfloat16, device="cuda")
    k, v = torch.randn(2, COPIES, kv_heads, 8192, dim, dtype=torch.bfloat16, device="cuda")
    attend = functools.partial(torch.nn.functional.scaled_dot_product_attention, is_causal=True, enable_gqa=True)
    us = timed(lambda i: attend(q[i : i + 1], k[i : i + 1], v[i : i + 1]))
    say(kernel="torch sdpa", case="32/8/128 8192", us=us, tflops=flops(layer_of(LLAMA8B), SPANS["8192"]) / us / 1e6)


class Warm:
    """Stands in for the kernel: compiles in place of launching."""

    def __init__(self, real):
        self.real = real

    def __getitem__(self, grid):
        return functools.partial(self.real.warmup, grid=grid)


def compile_all(jobs: list, float8: bool) -> None:
    """All variants at once on all cores, as the compiler releases the interpreter's lock."""
    real, begin = kernel._prefill, time.perf_counter()
    kernel._prefill = Warm(real)
    COMPILING.append(True)
    try:
        with ThreadPoolExecutor() as pool, triton.AsyncCompileMode(pool, ignore_errors=True):
            for job in checks(float8):
                check(*job)
            for heads, name, variant, fields, kept in jobs:
                layer = layer_of(heads, **fields)
                shape, data = cut(layer, variant), cached_inputs(layer, name, variant[-1], kept)[0]
                kernel.launch(shape, *data[:3], tiles_of(SPANS[name], shape), data[3], layer)
    except Exception as e:
        say(kernel="prefill_attention compile", error=repr(e)[:200])
    finally:
        kernel._prefill = real
        COMPILING.clear()
    say(kernel="prefill_attention compile", seconds=time.perf_counter() - begin)


def plan_float8() -> list[tuple]:
    """As plan's: cuts over E4M3, after what is chosen over bfloat16."""
    prompts = ("8192", "8x1024")
    jobs = [(LLAMA8B, name, VARIANTS[0], {}, HALF) for name in (*prompts, "2048@30k", "mixed")]
    jobs += [(LLAMA8B, name, variant, {}, E4M3) for name in (*prompts, "2048@30k", "mixed") for variant in FLOAT8]
    jobs += [(LLAMA8B, "8192", (*variant[:-1], 16), {}, E4M3) for variant in (FLOAT8[0], FLOAT8[5])]
    jobs += [(LLAMA1B, "8192", NARROW[0], {}, HALF)]
    jobs += [(LLAMA1B, "8192", variant, {}, E4M3) for variant in FLOAT8_NARROW]
    jobs += [(GEMMA, "8192", WIDE[0], {}, HALF)]
    return jobs + [(GEMMA, "8192", variant, {}, E4M3) for variant in FLOAT8_WIDE]


def plan(everything: bool) -> list[tuple]:
    """(heads, spans' name, variant, layer's fields, cache's type), neighbours with the same inputs, the best first."""
    prompts = ("8192", "8x1024")
    jobs = [(LLAMA8B, name, variant, {}) for name in (*prompts, "2048@30k") for variant in VARIANTS]
    jobs += [(LLAMA8B, "mixed", variant, {}) for variant in FEW]
    jobs += [(LLAMA8B, "8192", variant, {"window": 1024}) for variant in FEW]
    jobs += [(LLAMA1B, name, variant, {}) for name in prompts for variant in NARROW]
    few = VARIANTS if everything else FEW[:1]
    jobs += [(heads, name, variant, {}) for heads in (QWEN06B, QWEN30B) for name in prompts for variant in few]
    jobs += [(GEMMA, name, variant, {}) for name in prompts for variant in WIDE]
    jobs.sort(key=lambda job: (job[0] != LLAMA8B, job[0] == GEMMA, job[0], job[1], job[2][-1], str(job[3])))
    return [(*job, HALF) for job in jobs]


def main() -> None:
    begin, table = time.perf_counter(), []
    everything = "--all" in sys.argv
    float8 = "--float8" in sys.argv
    jobs = plan_float8() if float8 else plan(everything)
    layers, compiled = flash_of(jobs)
    compile_all(jobs, float8)
    for job in checks(float8):
        check(*job)
    for i, (heads, name, variant, fields, kept) in enumerate(jobs):
        if time.perf_counter() - begin > LIMIT and not everything:
            say(kernel="prefill_attention", left_out=len(jobs) - i)
            break
        measure(heads, name, variant, fields, kept, table)
    for call in (functools.partial(flash, jobs, layers, compiled, table), sdpa, host_time):
        try:
            call()
        except Exception as e:
            say(kernel=getattr(call, "__name__", flash4.NAME), error=repr(e)[:200])
    say(kernel="prefill_attention", seconds=time.perf_counter() - begin)
    for case, label, us, rate, note in sorted(table, key=lambda line: (line[0], -line[3])):
        print(f"{case:34} {label:62} {us:8.1f} us {rate:6.1f} TFLOP/s {note}")


if __name__ == "__main__":
    main()

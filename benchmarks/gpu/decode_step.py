"""One decode step on a GPU: milliseconds by batch and context, the share of it in which the GPU idles, its kernels.

    python benchmarks/gpu/decode_step.py CONFIG_FOLDER [--batch 1,8,32,128,256] [--context 600] [--kernels] [--eager]
        [--kv-cache-dtype fp8] [--quantization fp8]

Random weights, quantized as config.json's quantization_config says, and a random cache; the backend alone, without
engine or text. One JSON line a batch: `step_ms`, wall clock of steps launched one ahead, as the engine does; `gpu_ms`,
the sum of the kernels' times in a profile of some of them; `launch_us`, what begin() takes of the CPU; `floor_ms`,
weights and cache over --bandwidth.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from octavo.api.quantization import quantized_matrices
from octavo.backends.torch.runner import TorchBackend
from octavo.base.types.plan import RowBegin, RowSampling, RowStep, StepPlan
from octavo.models.registry import build_spec, find_family
from octavo.weights.dummy import DummyWeights
from octavo.weights.quantization import find_quantization

SETTLE, STEPS, PROFILED = 10, 60, 20
BLOCK_SIZE = 64


def make_backend(folder: Path, args: argparse.Namespace) -> tuple[TorchBackend, Any]:
    """Loaded and allocated for the largest batch."""
    config = json.loads((folder / "config.json").read_text())
    spec = build_spec(config)
    longest, most = args.context + SETTLE + STEPS + PROFILED + 8, max(args.batch)
    backend = TorchBackend(
        device="cuda",
        max_num_seqs=most,
        max_model_len=longest,
        max_num_batched_tokens=4096,
        block_size=args.block_size,
        dtype="auto",
        kv_cache_dtype=args.kv_cache_dtype,
    )
    backend.graphs = not args.eager
    backend.quantization = args.quantization
    shapes = {name: parameter.shape for name, parameter in spec.parameters().items()}
    names = find_family(config).names(spec)
    quantized = quantized_matrices(find_quantization(folder, config, {}), names)
    backend.load(spec, DummyWeights(shapes, seed=0, quantized=quantized))
    backend.allocate(most * -(-longest // args.block_size))
    with torch.inference_mode():
        for i in range(len(spec.layers)):
            layer = backend._runner._cache.layer(i)
            layer.copy_(torch.randn(layer.shape, dtype=torch.bfloat16, device=layer.device))
    return backend, spec


def begin_rows(backend: TorchBackend, batch: int, context: int, block_size: int, longest: int) -> None:
    """Rows with `context` tokens each; what stands before the last of them is the cache's random content."""
    blocks = -(-longest // block_size)
    sampling = RowSampling(temperature=0.6)
    begins = [
        RowBegin(r, [1] * context, context, list(range(r * blocks, (r + 1) * blocks)), sampling) for r in range(batch)
    ]
    backend.begin(StepPlan(step=0, rows=[RowStep(r, context - 1, 1, True) for r in range(batch)], begins=begins))
    backend.finish()


def run_steps(backend: TorchBackend, batch: int, first: int, count: int) -> tuple[float, float]:
    """(milliseconds a step, microseconds of begin), one step ahead."""
    launches = []
    torch.cuda.synchronize()
    start = time.perf_counter()
    for i in range(count):
        plan = StepPlan(step=first + i, rows=[RowStep(r, first + i, 1, True) for r in range(batch)])
        begin = time.perf_counter()
        backend.begin(plan)
        launches.append(time.perf_counter() - begin)
        if i:
            backend.finish()
    backend.finish()
    return (time.perf_counter() - start) / count * 1e3, statistics.median(launches) * 1e6


def profile(backend: TorchBackend, batch: int, first: int) -> tuple[float, list[tuple[str, float, float]]]:
    """(GPU milliseconds a step, kernels: name, launches a step, microseconds a step)."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as prof:
        run_steps(backend, batch, first, PROFILED)
    rows = [(e.key, e.count / PROFILED, e.device_time_total / PROFILED) for e in prof.key_averages()]
    rows.sort(key=lambda row: -row[2])
    return sum(row[2] for row in rows) / 1e3, rows


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--batch", type=lambda text: [int(n) for n in text.split(",")], default=[1, 8, 32, 128, 256])
    parser.add_argument("--context", type=int, default=600)
    parser.add_argument("--block-size", type=int, default=BLOCK_SIZE)
    parser.add_argument("--kv-cache-dtype", default="auto")
    parser.add_argument("--quantization", help="what the matrices become while loading")
    parser.add_argument("--bandwidth", type=float, default=3.0, help="TB/s, for the floor")
    parser.add_argument("--kernels", action="store_true", help="print the kernels of a step")
    parser.add_argument("--eager", action="store_true", help="without graphs")
    args = parser.parse_args()
    begin = time.perf_counter()
    backend, spec = make_backend(args.config, args)
    print(json.dumps({"model": args.config.name, "ready_s": round(time.perf_counter() - begin, 2)}), flush=True)
    longest = args.context + SETTLE + STEPS + PROFILED + 8
    weights = backend.memory().weights - (0 if spec.head.tied else spec.vocab_size * spec.hidden_size * 2)
    for batch in args.batch:
        first_begin = time.perf_counter()
        begin_rows(backend, batch, args.context, args.block_size, longest)
        first_s = time.perf_counter() - first_begin
        run_steps(backend, batch, args.context, SETTLE)
        step_ms, launch_us = run_steps(backend, batch, args.context + SETTLE, STEPS)
        gpu_ms, kernels = profile(backend, batch, args.context + SETTLE + STEPS)
        number = backend._runner._cache.dtype.itemsize
        kv = batch * (args.context + SETTLE + STEPS / 2) * spec.kv_bytes_per_token(number)
        figures = {
            "batch": batch,
            "step_ms": round(step_ms, 4),
            "gpu_ms": round(gpu_ms, 4),
            "idle": round(1 - gpu_ms / step_ms, 3),
            "launch_us": round(launch_us, 1),
            "floor_ms": round((weights + kv) / args.bandwidth / 1e9, 4),
            "first_s": round(first_s, 2),
        }
        print(json.dumps(figures), flush=True)
        if args.kernels:
            for name, launches, us in kernels[:16]:
                print(f"    {us:9.1f} us  {launches:6.1f} x  {name[:90]}", flush=True)
    backend.close()


if __name__ == "__main__":
    main()

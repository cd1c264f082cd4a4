"""Paged attention of the cpu backend alone, beside this machine's floors: one JSON line for each case.

Prompts are bound by arithmetic (gflop_s beside peak_gflop_s), decoding by memory (gb_s beside read_gb_s). Every
layer has a cache of its own, as in a model, so that decoding finds nothing that the processor kept from before.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from octavo.backends.cpu import native
from octavo.backends.cpu.cache import CELLS, Cells, kernel_axes, make_cells
from octavo.backends.cpu.host import take_threads
from octavo.backends.cpu.lower import Lowering
from octavo.backends.cpu.native import BatchArrays, Pool, pointer
from octavo.backends.cpu.packed import Packed
from octavo.backends.cpu.program import Instruction
from octavo.backends.cpu.team import Team

SIZE, SECONDS = 16, 0.5
CACHE_BYTES = 200 << 20
"""More than any processor's cache: all layers' keys and values together."""


@dataclass(frozen=True)
class Shape:
    """A model's attention."""

    heads: int
    kv_heads: int
    dim: int
    window: int | None
    layers: int


SHAPES = {
    "smollm2": Shape(9, 3, 64, None, 30),
    "gemma3": Shape(4, 1, 256, None, 18),
    "gemma3-window": Shape(4, 1, 256, 512, 18),
}
PROMPTS = [(1, 0, 128), (1, 0, 512), (1, 0, 2048), (1, 6144, 2048)]
DECODING = [(1, 127, 1), (1, 1023, 1), (1, 8191, 1), (8, 1023, 1), (32, 127, 1)]


def best(run: Callable[[], None]) -> float:
    """Seconds of the fastest run: what the machine can do between its interruptions."""
    times: list[float] = []
    end = time.perf_counter() + SECONDS
    while len(times) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def floors(threads: int) -> dict[str, float]:
    """What BLAS reaches: a large product, and a sum over memory."""
    team = Team(threads)
    square = [np.ones((768, 768), np.float32) for _ in range(threads)]
    long = [np.ones(32 << 20, np.float32) for _ in range(threads)]
    product = best(lambda: team.each(lambda x, _: np.matmul(x, x), square))
    read = best(lambda: team.each(lambda x, _: np.dot(x, x), long))
    team.close()
    figures = {"peak_gflop_s": 2 * 768**3 * threads / product / 1e9, "read_gb_s": threads * long[0].nbytes / read / 1e9}
    return {name: round(value, 1) for name, value in figures.items()}


def measure(pool: Pool, shape: Shape, dtype: str, case: tuple[int, int, int]) -> dict[str, Any]:
    """case: rows, tokens before, tokens of this step in each."""
    rows, history, count = case
    total = history + count
    blocks = -(-total // SIZE) * rows
    token_bytes = 2 * shape.kv_heads * (shape.dim * CELLS[dtype].itemsize + (4 if dtype.startswith("int8") else 0))
    decoding = count == 1
    layers = min(shape.layers, -(-CACHE_BYTES // (token_bytes * blocks * SIZE))) if decoding else 1
    caches: dict[str, Cells] = {}
    for i in range(layers):
        both = kernel_axes(dtype, dim=shape.dim, block_size=SIZE)
        for name, axes in zip((f"keys.{i}", f"values.{i}"), both, strict=True):
            caches[name] = make_cells(dtype, (shape.kv_heads, blocks, *axes), block_size=SIZE)
            for array in caches[name].arrays:
                array.fill({"f": 1, "u": 0x3F80, "i": 1}[array.dtype.kind])
    qkv = np.random.default_rng(0).standard_normal((rows * count, shape.heads + 2 * shape.kv_heads, shape.dim))
    arrays = {"qkv": qkv.astype(np.float32), "out": np.empty((rows * count, shape.heads, shape.dim), np.float32)}
    options = {"scale": shape.dim**-0.5, "window": shape.window, "softcap": None}
    steps = tuple(
        Instruction("paged_attention", ("out", "qkv", f"keys.{i}", f"values.{i}", "plan"), options)
        for i in range(layers)
    )
    lowered = Lowering(arrays, Packed({}, {}), lambda _scheme, _k: np.empty(0), lambda _mix: np.empty(0), caches).lower(
        steps
    )
    table = np.random.default_rng(1).permutation(blocks)
    spans = np.array([(row * count, history, count, row * (blocks // rows), 0) for row in range(rows)], np.int64)
    batch = BatchArrays(tokens=rows * count, num_spans=rows, block_size=SIZE, num_blocks=blocks)
    batch.spans, batch.table = pointer(spans), pointer(table)
    seconds = best(lambda: pool.run(lowered, batch)) / layers
    window = shape.window or total
    pairs = rows * sum(min(position + 1, window) for position in range(history, total))
    figures = {"us_a_layer": seconds * 1e6, "gflop_s": 4 * shape.heads * shape.dim * pairs / seconds / 1e9}
    if decoding:
        figures["gb_s"] = pairs * token_bytes / seconds / 1e9
    return {name: round(value, 1) for name, value in figures.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shapes", nargs="*", help=", ".join(SHAPES))
    parser.add_argument("--kv-cache-dtype", action="append", choices=list(CELLS), default=[])
    parser.add_argument("--threads", type=int, default=None)
    arguments = parser.parse_args()
    library = native.library()
    if library is None:
        raise SystemExit("the native kernels were not built")
    threads = take_threads(arguments.threads)
    about = {"threads": threads, **floors(threads)}
    pool = Pool(library, threads)
    for name in arguments.shapes or SHAPES:
        for dtype in arguments.kv_cache_dtype or ["float32"]:
            for case in PROMPTS + DECODING:
                figures = measure(pool, SHAPES[name], dtype, case)
                told = dict(zip(("rows", "history", "tokens"), case, strict=True))
                print(json.dumps({"shape": name, "kv_cache_dtype": dtype, **told, **figures, **about}), flush=True)
    pool.close()


if __name__ == "__main__":
    main()

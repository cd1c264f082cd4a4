"""Checks and times the row kernels (norm, rope_cache, gated, inputs) on realistic shapes; one JSON line a case.

python benchmarks/gpu/fused_rows.py [seconds]: after that many (20) no case is begun; a table of variants ends it.
Activations of small batches are in the L2 cache here as they are in a step; those of large ones exceed it.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timing import graph_us
from torch import Tensor

from octavo.backends.torch.kernels import gated, inputs, norm, rope_cache
from octavo.backends.torch.layers.mlp import ACTIVATIONS
from octavo.backends.torch.layers.rope import apply_rope, rope_turns
from octavo.models.spec import Attention, RMSNorm, Rope

Calls = tuple[list[Callable[[], None]], int]
"""Launches on different buffers, bytes that one of them moves."""

EPS, BF16, BLOCK_SIZE = 1e-6, torch.bfloat16, 16
TOKENS = (1, 8, 64, 256, 4096, 16384)
MODELS = {  # hidden, mlp width, q heads, kv heads, head_dim, qk_norm
    "q06": (1024, 3072, 16, 8, 128, True),
    "8b": (4096, 14336, 32, 8, 128, False),
}
NORM_VARIANTS = (8, 16, 32)  # elements of a row, a thread
GATED_VARIANTS = ((512, 2), (1024, 4), (2048, 4), (2048, 8))  # columns, warps
ROPE_VARIANTS = ((512, 1), (1024, 2), (2048, 4), (1024, 1), (2048, 2))  # elements, warps
START, LIMIT = time.monotonic(), float(sys.argv[1]) if len(sys.argv) > 1 else 20.0
BEST: dict[str, list[tuple[float, str]]] = {}


def rand(*shape: int, dtype: torch.dtype = BF16) -> Tensor:
    return torch.randn(shape, device="cuda").to(dtype)


def attempt(kernel: str, case: str, run: Callable[..., dict[str, Any]], *args: Any) -> dict[str, Any]:
    """Prints what `run` gave or why it did not."""
    line: dict[str, Any] = {"kernel": kernel, "case": case}
    if time.monotonic() - START > LIMIT:
        line["error"] = "left out: out of time"
    else:
        try:
            line |= run(*args)
        except Exception as error:
            line["error"] = f"{type(error).__name__}: {str(error)[:300]}"
            traceback.print_exc(limit=4, file=sys.stderr)
    print(json.dumps(line), flush=True)
    return line


def timed(make: Callable[..., Calls], *args: Any) -> dict[str, Any]:
    """make(*args, sets) gives the calls over that many sets of buffers."""
    size = make(*args, 1)[1]
    calls, size = make(*args, max(1, min(16, int(150e6 / max(size, 1)))))
    launches = max(min(100, int(4e9 / max(size, 1))), len(calls), 4)
    us = graph_us([calls[i % len(calls)] for i in range(launches)])
    return {"us": round(us, 2), "tb_s": round(size / us / 1e6, 3)}


def compare(key: str, variant: str, make: Callable[..., Calls], *args: Any) -> None:
    """A timing of one variant, kept for the table."""
    line = attempt(key, variant, timed, make, *args)
    if "us" in line:
        BEST.setdefault(key, []).append((line["us"], variant))


def normed(x: Tensor, weight: Tensor) -> Tensor:
    return F.rms_norm(x.float(), weight.shape, weight, EPS).to(x.dtype)


def difference(*pairs: tuple[Tensor, Tensor]) -> dict[str, Any]:
    """The largest |got - want| / (1 + |want|): two units in the last place of bfloat16 are 0.0156."""
    return {"error": max(float(((a.float() - b.float()).abs() / (1 + b.float().abs())).max()) for a, b in pairs)}


# -- the calls


def rms_calls(tokens: int, hidden: int, sets: int) -> Calls:
    weight = rand(hidden, dtype=torch.float32)
    rows = [(rand(tokens, hidden), rand(tokens, hidden)) for _ in range(sets)]
    return [lambda x=x, out=out: norm.rms_norm(x, weight, EPS, out) for x, out in rows], 4 * tokens * hidden


def add_calls(tokens: int, hidden: int, elements: int, sets: int) -> Calls:
    weight = rand(hidden, dtype=torch.float32)
    rows = [[rand(tokens, hidden) for _ in range(3)] for _ in range(sets)]
    calls = [lambda r=r: norm.launch_add(r[0], r[1], weight, EPS, r[2], elements) for r in rows]
    return calls, 8 * tokens * hidden


def finish_calls(rows: int, hidden: int, sets: int) -> Calls:
    weight, last = rand(hidden, dtype=torch.float32), torch.arange(rows, dtype=torch.int32, device="cuda")
    finite = torch.empty_like(last)
    sets_of = [[rand(rows, hidden) for _ in range(3)] for _ in range(sets)]
    calls = [lambda r=r: norm.finish_norm(r[0], r[1], last, weight, EPS, r[2], finite) for r in sets_of]
    return calls, 6 * rows * hidden


def gated_calls(tokens: int, width: int, variant: tuple[int, int], sets: int) -> Calls:
    rows = [(rand(tokens, 2 * width), rand(tokens, width)) for _ in range(sets)]
    return [lambda a=a, out=out: gated.launch_gated(a, out, "silu", *variant) for a, out in rows], 6 * tokens * width


def mixer_of(heads: int, kv_heads: int, dim: int, rope_dim: int | None = None, **kwargs: Any) -> Attention:
    turned = dim if rope_dim is None else rope_dim
    rope = Rope(turned, tuple(1e6 ** (-2 * j / turned) for j in range(turned // 2)), **kwargs) if turned else None
    return Attention(heads, kv_heads, dim, scale=1.0, rope=rope, qk_norm=RMSNorm(EPS))


def rope_tensors(tokens: int, a: Attention, dtype: torch.dtype = BF16) -> tuple[Tensor, ...]:
    """qkv, positions, slots, cache: many tokens are a prompt in scattered blocks, few are a token a sequence."""
    blocks = tokens // BLOCK_SIZE + 1
    index = torch.arange(tokens, device="cuda")
    positions = index % 40960 if tokens > 256 else torch.randint(0, 40960, (tokens,), device="cuda")
    slots = torch.randperm(blocks, device="cuda")[index // BLOCK_SIZE] * BLOCK_SIZE + index % BLOCK_SIZE
    cache = torch.full((2, blocks, BLOCK_SIZE, a.kv_heads, a.head_dim), float("nan"), dtype=dtype, device="cuda")
    return rand(tokens, (a.heads + 2 * a.kv_heads) * a.head_dim, dtype=dtype), positions.int(), slots, cache


def rope_calls(tokens: int, a: Attention, with_norm: bool, variant: tuple[int, int], sets: int) -> Calls:
    table = rope_cache.rope_table(a.rope, 40960, "cuda")
    weight = rand(a.head_dim, dtype=torch.float32) if with_norm else None
    rows = [rope_tensors(tokens, a) for _ in range(sets)]
    calls = [
        lambda q=q, p=p, s=s, c=c: rope_cache.launch_rope_cache((q, p, s, table, c), a, (weight, weight), variant)
        for q, p, s, c in rows
    ]
    return calls, tokens * (a.heads + 2 * a.kv_heads) * a.head_dim * 4


def input_calls(batch: int, sets: int) -> Calls:
    rows, length = 256, 16384
    tokens = torch.randint(0, 1000, (rows, length + 1), dtype=torch.int32, device="cuda")
    tables = torch.randint(0, 1000, (rows, length // BLOCK_SIZE + 1), dtype=torch.int32, device="cuda")
    index = torch.arange(batch, dtype=torch.int32, device="cuda")
    row, start = index % rows, index * 37 % length
    ids, lengths, slots = torch.empty_like(index), torch.empty_like(index), torch.empty_like(index, dtype=torch.int64)
    call = partial(inputs.decode_inputs, row, start, tokens, tables, BLOCK_SIZE, ids, slots, lengths)
    return [call] * sets, batch * 32


# -- the checks


def check_norms(tokens: int, hidden: int) -> dict[str, Any]:
    x, delta, out = rand(tokens, hidden), rand(tokens, hidden), rand(tokens, hidden)
    weight = rand(hidden, dtype=torch.float32)
    norm.rms_norm(x, weight, EPS, out)
    pairs = [(out.clone(), normed(x, weight))]
    want = x + delta
    last = torch.arange(tokens - 1, -1, -1, dtype=torch.int32, device="cuda")
    finite = torch.full_like(last, -7)
    norm.finish_norm(x, delta, last, weight, EPS, out, finite)
    pairs += [(out.clone(), normed(want, weight).flip(0)), (finite.clone(), torch.ones_like(finite))]
    broken = delta.clone()
    broken[0, hidden - 1] = float("nan")
    norm.finish_norm(x, broken, last, weight, EPS, out, finite)
    pairs.append((finite, (last != 0).int()))
    norm.add_rms_norm(x, delta, weight, EPS, out)
    pairs += [(x.clone(), want), (out.clone(), normed(want, weight))]
    return difference(*pairs)


def check_gated(tokens: int, width: int) -> dict[str, Any]:
    pairs = []
    for act in ("silu", "gelu", "gelu_tanh"):
        gate_up, out = 3 * rand(tokens, 2 * width), torch.full((tokens, width), float("nan"), device="cuda", dtype=BF16)
        gated.gated(gate_up, out, act)
        gate, up = gate_up.chunk(2, dim=-1)
        pairs.append((out, ACTIVATIONS[act](gate) * up))
    return difference(*pairs)


def check_rope(
    tokens: int, a: Attention, with_norm: bool, dtype: torch.dtype = BF16, stored: torch.dtype | None = None
) -> dict[str, Any]:
    weights = [rand(a.head_dim, dtype=torch.float32) if with_norm else None for _ in range(2)]
    table = rope_cache.rope_table(a.rope, 40960, "cuda") if a.rope else None
    qkv, positions, slots, cache = rope_tensors(tokens, a, dtype)
    cache = cache.to(stored or dtype)
    slots[::3] = -1
    parts = list(qkv.clone().view(tokens, -1, a.head_dim).split([a.heads, a.kv_heads, a.kv_heads], dim=1))
    for i, weight in enumerate(weights):
        parts[i] = parts[i] if weight is None else normed(parts[i], weight)
        parts[i] = apply_rope(parts[i], rope_turns(a.rope, positions), a.rope) if a.rope else parts[i]
    want = torch.full(cache.shape, float("nan"), dtype=dtype, device="cuda").flatten(1, 2)
    kept = slots >= 0
    want[:, slots[kept]] = torch.stack((parts[1], parts[2]))[:, kept]
    want = want.to(cache.dtype).float()
    rope_cache.rope_cache(qkv, positions, slots, table, cache, a, tuple(weights))
    got, q = cache.flatten(1, 2).float(), qkv.view(tokens, -1, a.head_dim)
    others = (got.isnan(), want.isnan())
    return difference((q[:, : a.heads], parts[0]), (got.nan_to_num(9), want.nan_to_num(9)), others)


def check_inputs(batch: int) -> dict[str, Any]:
    tokens = torch.randint(0, 1000, (9, 5001), dtype=torch.int32, device="cuda")
    tables = torch.randint(0, 2**26, (9, 5000 // BLOCK_SIZE + 1), dtype=torch.int32, device="cuda")
    row, start = torch.randint(0, 9, (batch,), device="cuda"), torch.randint(0, 5000, (batch,), device="cuda")
    ids, lengths = (torch.full((batch,), -9, dtype=torch.int32, device="cuda") for _ in range(2))
    slots = torch.full((batch,), -9, dtype=torch.int64, device="cuda")
    padded = row.int()
    padded[::4] = -1
    inputs.decode_inputs(padded, start.int(), tokens, tables, BLOCK_SIZE, ids, slots, lengths)
    used = padded >= 0
    places = tables[row, start // BLOCK_SIZE].long() * BLOCK_SIZE + start % BLOCK_SIZE
    wrong = int((ids != tokens[row, start] * used).sum()) + int((lengths != (start + 1) * used).sum())
    return {"error": wrong + int((slots != torch.where(used, places, -1)).sum())}


def checks() -> None:
    for name, (hidden, width, heads, kv_heads, dim, with_norm) in MODELS.items():
        attempt("check.norm", name, check_norms, 67, hidden)
        attempt("check.gated", name, check_gated, 67, width)
        attempt("check.rope_cache", name, check_rope, 67, mixer_of(heads, kv_heads, dim), with_norm)
    attempt("check.inputs", "mixed", check_inputs, 300)
    odd = mixer_of(5, 3, 80, 24, interleaved=True)
    attempt("check.rope_cache", "interleaved, partial, float32", check_rope, 33, odd, True, torch.float32)
    attempt("check.rope_cache", "1b, float16", check_rope, 33, mixer_of(32, 8, 64), False, torch.float16)
    # a key between two of E4M3 may fall to either side: 0.0625 at most
    attempt("check.rope_cache", "8b, E4M3", check_rope, 67, mixer_of(32, 8, 128), False, BF16, torch.float8_e4m3fn)
    attempt("check.rope_cache", "no rope", check_rope, 33, mixer_of(4, 4, 96, 0), True)
    attempt("check.norm", "odd width", check_norms, 5, 1001)


def timings(name: str) -> None:
    hidden, width, heads, kv_heads, dim, with_norm = MODELS[name]
    a = mixer_of(heads, kv_heads, dim)
    of_gated, of_rope = (gated.COLUMNS, gated.WARPS), (rope_cache.ELEMENTS, rope_cache.WARPS)
    for tokens in TOKENS:
        case = f"{name} T={tokens}"
        attempt("rms_norm", case, timed, rms_calls, tokens, hidden)
        attempt("add_rms_norm", case, timed, add_calls, tokens, hidden, norm.ELEMENTS)
        attempt("gated", case, timed, gated_calls, tokens, width, of_gated)
        attempt("rope_cache", case, timed, rope_calls, tokens, a, with_norm, of_rope)
        if tokens <= 256:
            attempt("finish_norm", case, timed, finish_calls, tokens, hidden)
            if name == "q06":
                attempt("decode_inputs", case, timed, input_calls, tokens)


def variants(name: str) -> None:
    hidden, width, heads, kv_heads, dim, with_norm = MODELS[name]
    a = mixer_of(heads, kv_heads, dim)
    for tokens in (1, 64, 16384):
        case = f"{name} T={tokens}"
        for elements in NORM_VARIANTS:
            compare(f"add_rms_norm {case}", f"elements={elements}", add_calls, tokens, hidden, elements)
        for pair in GATED_VARIANTS:
            compare(f"gated {case}", "columns={} warps={}".format(*pair), gated_calls, tokens, width, pair)
        for pair in ROPE_VARIANTS:
            compare(f"rope_cache {case}", "elements={} warps={}".format(*pair), rope_calls, tokens, a, with_norm, pair)


def eager() -> dict[str, Any]:
    """Microseconds of Python a launch, outside a graph."""
    call = add_calls(1, 1024, norm.ELEMENTS, 1)[0][0]
    call()
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(300):
        call()
    return {"us": round((time.perf_counter() - begin) / 300 * 1e6, 2)}


def main() -> None:
    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    print(json.dumps({"device": torch.cuda.get_device_name(), "torch": torch.__version__}), flush=True)
    checks()
    print(json.dumps({"checks_done_s": round(time.monotonic() - START, 1)}), flush=True)
    attempt("add_rms_norm", "host, a launch", eager)
    for name in MODELS:
        timings(name)
    print(json.dumps({"timings_done_s": round(time.monotonic() - START, 1)}), flush=True)
    for name in MODELS:
        variants(name)
    print(json.dumps({"all_done_s": round(time.monotonic() - START, 1)}))
    for key, entries in BEST.items():
        print(f"{key:32}", "   ".join(f"{v}: {us:.2f}" for us, v in sorted(entries)))


if __name__ == "__main__":
    main()

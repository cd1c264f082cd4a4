"""The fused row kernels against plain torch in float32: norms, rope with the cache's writes, gated, a step's inputs.

Without a GPU they run in Triton's interpreter, whose bfloat16 is truncated, not rounded: hence its tolerance.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.backends.torch.kernels import gated as gated_kernels
from octavo.backends.torch.kernels import inputs, norm, rope_cache
from octavo.backends.torch.layers.mlp import ACTIVATIONS
from octavo.backends.torch.layers.rope import apply_rope, rope_turns
from octavo.models.spec import Attention, RMSNorm, Rope

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

EPS = 1e-5
OVERFLOWS = pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")
"""Of a test that means them; the interpreter is NumPy."""
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
"""A few units in the last place: a value near the middle between two may fall to either side."""


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(7)


def rand(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, device=DEVICE).to(dtype)


def wild(*shape: int, dtype: torch.dtype) -> Tensor:
    """What an output holds before it is written."""
    value = float("nan") if dtype.is_floating_point else -77
    return torch.full(shape, value, dtype=dtype, device=DEVICE)


def ints(values: Any, dtype: torch.dtype = torch.int32) -> Tensor:
    return torch.tensor(values, dtype=dtype, device=DEVICE)


def close(got: Tensor, want: Tensor) -> None:
    tolerance = TOLERANCE[want.dtype]
    torch.testing.assert_close(got, want.to(got.dtype), rtol=tolerance, atol=tolerance)


def normed(x: Tensor, weight: Tensor) -> Tensor:
    return F.rms_norm(x.float(), weight.shape, weight, EPS).to(x.dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "hidden"), [(3, 64), (1, 1000), (2, 33), (1, 1), (0, 64), (1, 16384)])
def test_rms_norm(tokens: int, hidden: int, dtype: torch.dtype) -> None:
    x, weight, out = rand(tokens, hidden, dtype=dtype), rand(hidden), wild(tokens, hidden, dtype=dtype)
    norm.rms_norm(x, weight, EPS, out)
    close(out, normed(x, weight))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "hidden"), [(3, 64), (2, 100), (0, 64)])
def test_add_rms_norm(tokens: int, hidden: int, dtype: torch.dtype) -> None:
    x, delta = rand(tokens, hidden, dtype=dtype), 4 * rand(tokens, hidden, dtype=dtype)
    weight, out = rand(hidden), wild(tokens, hidden, dtype=dtype)
    want = x + delta
    norm.add_rms_norm(x, delta, weight, EPS, out)
    close(x, want)
    close(out, normed(x, weight))  # of the rounded sum that was kept


@OVERFLOWS
@pytest.mark.parametrize("dtype", DTYPES)
def test_finish_norm(dtype: torch.dtype) -> None:
    x, delta, weight, last = rand(6, 40, dtype=dtype), rand(6, 40, dtype=dtype), rand(40), ints([5, 0, 2, 3, 4, 0])
    big = 3e38 if dtype != torch.float16 else 6e4  # finite, its square is not
    x[2, 39], x[3, 0], delta[4, 7], x[5, 1], delta[5, 1] = float("nan"), float("inf"), -float("inf"), big, 0.0
    before, out, finite = x.clone(), wild(6, 40, dtype=dtype), wild(6, dtype=torch.int32)
    norm.finish_norm(x, delta, last, weight, EPS, out, finite)
    assert finite.tolist() == [1, 1, 0, 0, 0, 1]
    close(out[[1, 5]], normed(x + delta, weight)[[0, 0]])
    assert torch.equal(x.nan_to_num(), before.nan_to_num())
    norm.finish_norm(x, delta, last[:0], weight, EPS, out[:0], finite[:0])


@OVERFLOWS
def test_finish_norm_sees_a_sum_that_overflows() -> None:
    x, out, finite = (
        torch.full((1, 40), 6e4, dtype=torch.float16, device=DEVICE),
        wild(1, 40, dtype=torch.float16),
        ints([7]),
    )
    norm.finish_norm(x, x, ints([0]), rand(40), EPS, out, finite)
    assert finite.tolist() == [0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("act", ["silu", "gelu", "gelu_tanh"])
@pytest.mark.parametrize(("tokens", "width"), [(2, 1100), (3, 13), (0, 16)])
def test_gated(tokens: int, width: int, act: str, dtype: torch.dtype) -> None:
    gate_up, out = 3 * rand(tokens, 2 * width, dtype=dtype), wild(tokens, width, dtype=dtype)
    gated_kernels.gated(gate_up, out, act)
    gate, up = gate_up.chunk(2, dim=-1)
    close(out, ACTIVATIONS[act](gate) * up)


@OVERFLOWS
def test_gated_at_the_ends() -> None:
    gate_up = torch.tensor([[-200.0, 200.0, -0.0, 30.0, 1.0, 1.0, 1.0, 1.0]], device=DEVICE)
    for act in ACTIVATIONS:
        out = wild(1, 4, dtype=torch.float32)
        gated_kernels.gated(gate_up, out, act)
        close(out, torch.tensor([[0.0, 200.0, 0.0, 30.0]], device=DEVICE))


def make_rope(dim: int, **kwargs: Any) -> Rope:
    return Rope(dim, tuple(100.0 ** (-2 * j / dim) for j in range(dim // 2)), **kwargs)


def mixer(heads: int, kv_heads: int, dim: int, rope: Rope | None) -> Attention:
    return Attention(heads, kv_heads, dim, scale=1.0, rope=rope, qk_norm=RMSNorm(EPS))


MIXERS = {
    "plain": mixer(4, 2, 16, make_rope(16)),
    "no_rope": mixer(2, 1, 16, None),
    "partial": mixer(3, 1, 20, make_rope(12)),
    "odd_half": mixer(2, 2, 22, make_rope(22, attention_factor=1.3)),
    "interleaved": mixer(4, 1, 16, make_rope(16, interleaved=True)),
    "interleaved_partial": mixer(2, 1, 24, make_rope(6, interleaved=True)),
    "groups": mixer(9, 3, 128, make_rope(128)),
    "wide": mixer(1, 1, 256, make_rope(256)),
}


def plain_rope_cache(qkv: Tensor, positions: Tensor, a: Attention, norms: tuple[Tensor | None, ...]) -> list[Tensor]:
    """q, k, v: [tokens, heads, head_dim], by the layers of the reference."""
    parts = list(qkv.view(qkv.shape[0], -1, a.head_dim).split([a.heads, a.kv_heads, a.kv_heads], dim=1))
    for i in range(2):
        weight = norms[i]
        parts[i] = parts[i] if weight is None else normed(parts[i], weight)
        parts[i] = apply_rope(parts[i], rope_turns(a.rope, positions), a.rope) if a.rope else parts[i]
    return parts


def check_rope_cache(a: Attention, norms: tuple[bool, bool], dtype: torch.dtype, kept: torch.dtype) -> None:
    slots, positions = ints([7, -1, 0, 22], torch.int64), ints([0, 3, 49, 17])
    qkv = rand(4, (a.heads + 2 * a.kv_heads) * a.head_dim, dtype=dtype)
    weights = [rand(a.head_dim) if given else None for given in norms]
    cache, before = wild(2, 3, 8, a.kv_heads, a.head_dim, dtype=kept), qkv.clone()
    table = rope_cache.rope_table(a.rope, 50, DEVICE) if a.rope else None
    q, k, v = plain_rope_cache(before, positions, a, tuple(weights))
    rope_cache.rope_cache(qkv, positions, slots, table, cache, a, tuple(weights))
    width = a.heads * a.head_dim
    close(qkv[:, :width], q.flatten(1))
    assert torch.equal(qkv[:, width:], before[:, width:])
    keys, values = cache.flatten(1, 2)
    written = [0, 2, 3]
    close(keys[slots[written]], k[written])
    assert torch.equal(values[slots[written]], v[written].to(kept))
    others = [i for i in range(24) if i not in (7, 0, 22)]
    assert cache.flatten(1, 2)[:, others].isnan().all()


@pytest.mark.parametrize("name", MIXERS)
@pytest.mark.parametrize("norms", [(False, False), (True, True)])
def test_rope_cache(name: str, norms: tuple[bool, bool]) -> None:
    check_rope_cache(MIXERS[name], norms, torch.float32, torch.float32)


@pytest.mark.parametrize("norms", [(True, False), (False, True)])
@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_rope_cache_of_types(dtype: torch.dtype, norms: tuple[bool, bool]) -> None:
    check_rope_cache(MIXERS["plain"], norms, dtype, dtype)
    check_rope_cache(MIXERS["no_rope"], norms, dtype, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rope_cache_of_float8(dtype: torch.dtype) -> None:
    """As torch rounds what the arithmetic's type holds, at every place of every exponent."""
    a, kept = mixer(2, 1, 64, None), torch.float8_e4m3fn
    codes = torch.arange(127, dtype=torch.uint8, device=DEVICE).view(kept).float()
    below, middle = codes[:-1], (codes[:-1] + codes[1:]) / 2
    values = torch.cat([codes, middle, middle * 0.999 + below * 0.001, middle * 1.002, codes / 64, rand(64) * 9])
    values = torch.cat([values, -values, torch.zeros(-2 * len(values) % 128, device=DEVICE)]).to(dtype)
    qkv = F.pad(values.view(-1, 2, 64), (0, 0, 2, 0)).flatten(1).contiguous()
    cache = wild(2, 3, 8, 1, 64, dtype=kept)
    slots = torch.randperm(24, device=DEVICE)[: len(qkv)]
    assert len(slots) == len(qkv)
    rope_cache.rope_cache(qkv, slots.int(), slots, None, cache, a, (None, None))
    found = cache.flatten(1, 2).float()
    assert torch.equal(found[:, slots].transpose(0, 1).flatten(), values.to(kept).float())
    rest = [i for i in range(24) if i not in slots.tolist()]
    assert found[:, rest].isnan().all()


@OVERFLOWS
@pytest.mark.parametrize("dtype", DTYPES)
def test_float8_saturates_and_shows_what_is_not_finite(dtype: torch.dtype) -> None:
    a, nan, inf = mixer(2, 1, 8, None), float("nan"), float("inf")
    given = torch.tensor([nan, inf, -inf, 449.0, 479.0, 6e4, -6e4, -464.0], device=DEVICE).to(dtype)
    cache = wild(2, 1, 8, 1, 8, dtype=torch.float8_e4m3fn)
    rope_cache.rope_cache(given.repeat(4)[None], ints([0]), ints([3]), None, cache, a, (None, None))
    want = torch.tensor([nan, nan, nan, 448.0, 448.0, 448.0, -448.0, -448.0], device=DEVICE)
    for i in range(2):
        torch.testing.assert_close(cache[i, 0, 3, 0].float(), want, rtol=0, atol=0, equal_nan=True)


def test_rope_cache_of_narrow_slots_and_of_nothing() -> None:
    a = MIXERS["plain"]
    qkv, cache = rand(1, 128), wild(2, 1, 8, 2, 16, dtype=torch.float32)
    run = partial(rope_cache.rope_cache, table=rope_cache.rope_table(a.rope, 8, DEVICE), cache=cache, mixer=a)
    run(qkv[:0], ints([]), ints([]), norms=(None, None))
    assert cache.isnan().all()
    run(qkv, ints([0]), ints([5]), norms=(None, None))
    assert torch.equal(cache[:, 0, 5].flatten(), qkv[0, 64:])  # position 0 turns nothing


def test_rope_table_is_the_layers_own() -> None:
    rope = make_rope(12, attention_factor=1.7)
    cos, sin = rope_turns(rope, torch.arange(1000, device=DEVICE))
    table = rope_cache.rope_table(rope, 1000, DEVICE)
    assert table.shape == (1000, 2, 6)
    assert table.is_contiguous()
    assert torch.equal(table[:, :1], cos)
    assert torch.equal(table[:, 1:], sin)


ROWS, LENGTH, BLOCKS = 5, 40, 5


def persistent(block_size: int) -> tuple[Tensor, Tensor]:
    """tokens [ROWS, LENGTH + 1], block_tables of as many blocks as that takes."""
    tokens = torch.randint(0, 1000, (ROWS, LENGTH + 1), dtype=torch.int32, device=DEVICE)
    tables = torch.randint(0, 2**26, (ROWS, -(-(LENGTH + 1) // block_size)), dtype=torch.int32, device=DEVICE)
    return tokens, tables


def place(tables: Tensor, row: int, position: int, block_size: int) -> int:
    return int(tables[row, position // block_size]) * block_size + position % block_size


@pytest.mark.parametrize("batch", [1, 5, 130])
def test_decode_inputs(batch: int) -> None:
    tokens, tables = persistent(64 if batch == 5 else 8)
    size = 64 if batch == 5 else 8
    rows = torch.randint(-1, ROWS, (batch,), dtype=torch.int32, device=DEVICE)
    starts = torch.randint(0, LENGTH + 1, (batch,), dtype=torch.int32, device=DEVICE)
    starts[rows < 0] = 2**31 - 1  # of padding, anything
    outs = [wild(batch + 2, dtype=d) for d in (torch.int32, torch.int64, torch.int32)]
    inputs.decode_inputs(rows, starts, tokens, tables, size, *(out[:batch] for out in outs))
    pairs = list(zip(rows.tolist(), starts.tolist(), strict=True))
    assert outs[0].tolist() == [int(tokens[r, p]) if r >= 0 else 0 for r, p in pairs] + [-77, -77]
    assert outs[1].tolist() == [place(tables, r, p, size) if r >= 0 else -1 for r, p in pairs] + [-77, -77]
    assert outs[2].tolist() == [p + 1 if r >= 0 else 0 for r, p in pairs] + [-77, -77]


def test_inputs_of_no_tokens() -> None:
    tokens, tables = persistent(8)
    empty, none = ints([]), ints([], torch.int64)
    inputs.decode_inputs(empty, empty, tokens, tables, 8, empty, none, empty)

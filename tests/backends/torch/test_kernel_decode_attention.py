"""The decode attention kernel against plain float64 sums: lengths, groups, windows, caps, sinks, splits, poison."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

from octavo.backends.torch.kernels import decode_attention as kernel
from octavo.backends.torch.kernels.decode_choice import FEW_PROGRAMS, PROGRAMS, TILE, Choice, choose
from octavo.models.spec import Attention

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"

FLOAT8 = torch.float8_e4m3fn
WILD = 2**30
"""A block number that would be far out of the cache."""


@dataclass(frozen=True)
class Case:
    layer: Attention
    lengths: tuple[int, ...]
    programs: int = 3
    """Of a multiprocessor each."""
    block_size: int = 8
    tile: int = 16
    min_share: int = 1
    splits: int = 0
    slack: int = 0
    even: bool = False
    dtype: torch.dtype = torch.float32
    cache_dtype: torch.dtype | None = None
    sinks: bool = False
    strided: bool = False


def attention(heads: int, kv_heads: int, head_dim: int, **more: float) -> Attention:
    return Attention(heads, kv_heads, head_dim, head_dim**-0.5, None, **more)


SMALL = attention(4, 2, 16)
CASES = {
    "one_token": Case(SMALL, (1,)),
    "one_sequence_split": Case(SMALL, (150,), programs=5),
    "more_programs_than_tiles": Case(SMALL, (40, 3), programs=11),
    "one_program": Case(SMALL, (17, 0, 33, 16), programs=1),
    "empty_sequences": Case(SMALL, (0, 0, 19, 0, 5, 0), programs=2),
    "only_empty": Case(SMALL, (0, 0)),
    "no_sequences": Case(SMALL, ()),
    "edges_of_tiles_and_blocks": Case(SMALL, (15, 16, 17, 8, 9, 31, 32), programs=4),
    "skewed": Case(SMALL, (3, 2, 190, 1), programs=6),
    "least_share": Case(SMALL, (100, 30), programs=9, min_share=3),
    "cuts_moved": Case(SMALL, (70, 30, 0, 64, 17), programs=5, slack=30),
    "cuts_moved_away": Case(SMALL, (33, 48, 40, 0), programs=4, slack=40),
    "one_cut_often": Case(attention(2, 1, 16), (9, 200, 20), programs=6, slack=12),
    "window_cuts_moved": Case(attention(2, 1, 16, window=70), (9, 200, 20, 64, 300), programs=4, slack=40),
    "alike": Case(SMALL, (100, 97, 0, 110), programs=11, even=True),
    "alike_more_than_programs": Case(SMALL, (100, 97, 0, 110, 99, 101), programs=4, even=True),
    "alike_cut_alike": Case(attention(2, 1, 16), (100, 97), programs=5, even=True),
    "alike_window": Case(attention(4, 2, 16, window=40), (100, 300, 50), programs=11, even=True),
    "unlike": Case(SMALL, (100, 9, 0, 110), programs=11, even=True),
    "many_programs_with_empty": Case(SMALL, (40, 3, 0), programs=23),
    "few": Case(SMALL, (50, 1, 0, 17), programs=12, splits=3),
    "few_alone": Case(attention(2, 1, 16), (275,), programs=20, splits=20),
    "few_alone_whole": Case(SMALL, (50,), programs=2, splits=1),
    "few_alone_empty": Case(SMALL, (0,), programs=2, splits=2),
    "few_skewed": Case(SMALL, (3, 120, 40), programs=12, splits=4, min_share=2),
    "few_window": Case(attention(4, 2, 16, window=40), (70, 20, 41, 5, 0, 116), programs=30, splits=3, sinks=True),
    "few_many_parts": Case(attention(16, 1, 256), (100,), programs=9, splits=9, block_size=32),
    "few_all_at_once": Case(
        attention(6, 2, 80, softcap=0.7, window=45), (70, 9, 0), programs=20, splits=3, sinks=True, strided=True
    ),
    "few_bfloat16": Case(SMALL, (70, 9), dtype=torch.bfloat16, strided=True, programs=12, splits=3),
    "block_of_a_tile": Case(SMALL, (37, 16, 1), block_size=16),
    "block_over_a_tile": Case(SMALL, (70, 33, 1), block_size=32),
    "as_chosen": Case(attention(4, 2, 64), (200, 64, 1), tile=TILE, block_size=16, programs=4),
    "as_chosen_large_blocks": Case(attention(2, 1, 128), (200, 300), tile=TILE, block_size=128, programs=4),
    "group_of_one": Case(attention(3, 3, 8), (20, 41)),
    "group_of_three": Case(attention(6, 2, 80), (20, 41), programs=4),
    "group_of_sixteen": Case(attention(16, 1, 32), (20, 41)),
    "group_of_twenty": Case(attention(20, 1, 16), (20, 41)),
    "wide": Case(attention(2, 1, 256), (35,), programs=2),
    "width_96": Case(attention(2, 1, 96), (35,), programs=2),
    "window": Case(attention(4, 2, 16, window=20), (70, 20, 21, 5, 0, 36), programs=5),
    "window_of_one": Case(attention(4, 2, 16, window=1), (33, 1, 16)),
    "window_large_blocks": Case(attention(4, 2, 16, window=20), (70, 100, 5), block_size=32),
    "softcap": Case(attention(4, 2, 16, softcap=0.7), (30, 50)),
    "sinks": Case(SMALL, (30, 50, 1), sinks=True, programs=4),
    "all_at_once": Case(attention(6, 2, 16, softcap=0.7, window=25), (70, 9, 0), sinks=True, strided=True),
    "bfloat16": Case(SMALL, (70, 9), dtype=torch.bfloat16, strided=True, programs=4),
    "float16": Case(SMALL, (70, 9), dtype=torch.float16, strided=True, programs=4),
    "float16_float32_cache": Case(SMALL, (70, 9), dtype=torch.float16, cache_dtype=torch.float32),
    "float32_float16_cache": Case(SMALL, (70, 9), cache_dtype=torch.float16),
    "float32_bfloat16_cache": Case(SMALL, (70, 9), cache_dtype=torch.bfloat16),
    "float32_float8_cache": Case(SMALL, (70, 9), cache_dtype=FLOAT8),
    "float8_window": Case(
        attention(6, 2, 80, softcap=0.7, window=45),
        (70, 9, 0, 133),
        cache_dtype=FLOAT8,
        dtype=torch.bfloat16,
        sinks=True,
        strided=True,
        programs=5,
        slack=12,
    ),
    "float8_few": Case(
        attention(4, 2, 24, window=40),
        (70, 20, 0, 133),
        cache_dtype=FLOAT8,
        dtype=torch.bfloat16,
        programs=20,
        splits=3,
    ),
    "float8_as_chosen": Case(
        attention(4, 1, 128), (200, 64, 1), tile=TILE, cache_dtype=FLOAT8, dtype=torch.bfloat16, block_size=64
    ),
    "float16_float8_cache": Case(SMALL, (70, 9), dtype=torch.float16, cache_dtype=FLOAT8, programs=4),
    "bfloat16_float8_cache": Case(SMALL, (70, 9, 0, 33), dtype=torch.bfloat16, cache_dtype=FLOAT8, programs=4),
}


@dataclass(frozen=True)
class Inputs:
    q: torch.Tensor
    cache: torch.Tensor
    plan: kernel.Plan
    sinks: torch.Tensor | None
    workspace: kernel.Workspace


def make(case: Case) -> Inputs:
    """Blocks in a random order; whatever is not seen is NaN in the cache and a wild number in the block table."""
    generator = torch.Generator().manual_seed(sum(case.lengths) + len(case.lengths))
    layer, size, batch = case.layer, case.block_size, len(case.lengths)
    counts = [-(-n // size) for n in case.lengths]
    order = torch.randperm(sum(counts) + 2, generator=generator).tolist()
    tables = torch.full((batch + 2, max(counts, default=0) + 2), WILD, dtype=torch.int32)
    rows = torch.randperm(batch + 2, generator=generator)[:batch].int()
    cache = torch.full((2, len(order), size, layer.kv_heads, layer.head_dim), float("nan"))
    for row, length in zip(rows.tolist(), case.lengths, strict=True):
        low = max(0, length - layer.window) if layer.window else 0
        for i in range(low // size, -(-length // size)):
            block = order.pop()
            tables[row, i] = block
            begin, end = max(low - i * size, 0), min(length - i * size, size)
            cache[:, block, begin:end] = torch.randn(
                2, end - begin, layer.kv_heads, layer.head_dim, generator=generator
            )
    width = 3 if case.strided else 1
    q = torch.randn(batch, width * layer.heads, layer.head_dim, generator=generator)[:, : layer.heads]
    sinks = torch.randn(layer.heads, generator=generator).to(DEVICE) if case.sinks else None
    tensors = [rows, torch.tensor(case.lengths, dtype=torch.int32), torch.full((batch + 2,), -7, dtype=torch.int32)]
    plan = kernel.Plan(tables.to(DEVICE), *(x.to(DEVICE) for x in tensors))
    kernel.plan_tiles(plan.seq_lens, plan.tiles, window=layer.window, tile=case.tile)
    workspace = kernel.make_workspace(
        max_rows=batch + 1,
        kv_heads=layer.kv_heads,
        group=layer.heads // layer.kv_heads,
        head_dim=layer.head_dim,
        processors=case.programs,
        device=torch.device(DEVICE),
    )
    workspace.partial.fill_(float("nan"))
    workspace.lse.fill_(float("nan"))
    cache = cache.to(case.cache_dtype or case.dtype).to(DEVICE)
    q = q.to(case.dtype).to(DEVICE) if not case.strided else q._base.to(case.dtype).to(DEVICE)[:, : layer.heads]
    return Inputs(q, cache, plan, sinks, workspace)


def expected(case: Case, inputs: Inputs) -> torch.Tensor:
    layer = case.layer
    out = torch.zeros(inputs.q.shape, dtype=torch.float64)
    cache, q, plan = inputs.cache.double().cpu(), inputs.q.double().cpu(), inputs.plan
    for b, length in enumerate(case.lengths):
        if not length:
            continue
        low = max(0, length - layer.window) if layer.window else 0
        table = plan.block_tables[plan.rows[b]].cpu()
        at = torch.arange(low, length)
        k, v = cache[:, table[at // case.block_size].long(), at % case.block_size]  # [keys, kv_heads, head_dim]
        group = layer.heads // layer.kv_heads
        scores = torch.einsum("hd,nhd->hn", q[b], k.repeat_interleave(group, 1)) * layer.scale
        if layer.softcap is not None:
            scores = layer.softcap * torch.tanh(scores / layer.softcap)
        if inputs.sinks is not None:
            scores = torch.cat([scores, inputs.sinks.double().cpu()[:, None]], 1)
        p = scores.softmax(1)[:, : length - low]
        out[b] = torch.einsum("hn,nhd->hd", p, v.repeat_interleave(group, 1))
    return out


def run(case: Case, inputs: Inputs) -> torch.Tensor:
    """The kernel's output [B, heads, head_dim], after a check that nothing around it was written."""
    batch, heads, head_dim = inputs.q.shape
    storage = torch.full((batch + 2, heads, head_dim), float("nan"), dtype=case.dtype, device=DEVICE)
    choice = Choice(case.tile, 4, 2, case.min_share, case.splits, case.slack, 1, case.even)
    kernel.launch(
        inputs.q,
        inputs.cache,
        inputs.plan,
        storage[1:-1],
        layer=case.layer,
        workspace=inputs.workspace,
        sinks=inputs.sinks,
        choice=choice,
    )
    assert storage[0].isnan().all()
    assert storage[-1].isnan().all()
    assert not inputs.workspace.arrived.any()
    return storage[1:-1].cpu()


TOLERANCE = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}


@pytest.mark.parametrize("name", CASES)
def test_equals_plain_sums(name: str) -> None:
    case = CASES[name]
    if not CUDA and torch.bfloat16 in (case.dtype, case.cache_dtype) and case.cache_dtype != FLOAT8:
        pytest.skip("the interpreter's dot takes bfloat16's bits for integers")
    inputs = make(case)
    out = run(case, inputs)
    torch.testing.assert_close(out.double(), expected(case, inputs), rtol=0, atol=TOLERANCE[case.dtype])


@pytest.mark.parametrize("name", ["skewed", "few_skewed"])
def test_the_same_bits_again(name: str) -> None:
    case = CASES[name]
    inputs = make(case)
    assert torch.equal(run(case, inputs), run(case, inputs))


@pytest.mark.filterwarnings("ignore:overflow encountered in exp2")
def test_large_scores_and_sinks() -> None:
    """Scores far beyond what exp takes: the largest wins, and a sink above all of them leaves nothing."""
    case = replace(CASES["sinks"], layer=replace(SMALL, scale=300.0))
    inputs = make(case)
    sinks = inputs.sinks
    assert sinks is not None
    sinks[0], sinks[1] = 1e5, -1e5
    out = run(case, inputs)
    assert not out[:, 0].any()
    torch.testing.assert_close(out.double(), expected(case, inputs), rtol=0, atol=2e-3)


@pytest.mark.parametrize("programs", [1, 2, 24])
def test_the_door(programs: int) -> None:
    """decode_attention and plan_tiles with what they choose themselves."""
    case = replace(CASES["float16"], lengths=(130, 0, 64), programs=programs)
    case = replace(case, tile=choose(16, 2, 2, batch=3, pairs=6, processors=programs).tile)
    inputs = make(case)
    out = torch.full(inputs.q.shape, float("nan"), dtype=case.dtype, device=DEVICE)
    kernel.decode_attention(
        inputs.q, inputs.cache, inputs.plan, out, layer=case.layer, workspace=inputs.workspace, sinks=None
    )
    torch.testing.assert_close(out.cpu().double(), expected(case, inputs), rtol=0, atol=TOLERANCE[case.dtype])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("largest", [1e-9, 1e6, 1e20])
def test_float8_beside_queries_of_any_size(largest: float, dtype: torch.dtype) -> None:
    """Larger than float16 holds, and smaller: the scores are what they would be."""
    case = Case(replace(SMALL, scale=1 / largest), (70, 9), dtype=dtype, cache_dtype=FLOAT8)
    inputs = make(case)
    inputs.q.mul_(largest)
    torch.testing.assert_close(run(case, inputs).double(), expected(case, inputs), rtol=0, atol=TOLERANCE[dtype])


def test_float8_keeps_many_faint_keys() -> None:
    """2**-26 of the largest weight each, which float16 does not hold, but together as much as a fiftieth of it."""
    case = Case(replace(SMALL, scale=1.0), (4096, 1), dtype=torch.bfloat16, cache_dtype=FLOAT8, tile=TILE)
    inputs = make(case)
    keys, values = inputs.cache.float()
    keys[~keys.isnan()], values[~values.isnan()] = 0.0, 448.0
    table = inputs.plan.block_tables[inputs.plan.rows[0]]
    keys[table[0], 0], values[table[0], 0] = 1.0, 0.0
    inputs.cache.copy_(torch.stack((keys, values)))
    inputs.q.fill_(0.0)
    inputs.q[..., 0] = 18.0
    out, want = run(case, inputs).double(), expected(case, inputs)
    assert want[0].min() > 0.02
    torch.testing.assert_close(out[0], want[0], rtol=0.01, atol=0)


@pytest.mark.parametrize("window", [None, 1, 20, 1000])
def test_plan(window: int | None) -> None:
    """More sequences than the plan sums at once."""
    batch = kernel.PLAN_CHUNK + 77
    lengths = torch.randint(0, 200, (batch,), dtype=torch.int32)
    lengths[::5] = 0
    storage = torch.full((batch + 4,), -7, dtype=torch.int32, device=DEVICE)
    kernel.plan_tiles(lengths.to(DEVICE), storage[1:-1], window=window, tile=TILE)
    low = (lengths - (window or WILD)).clamp(min=0)
    counts = -(-lengths // TILE) - low // TILE
    assert storage[1] == 0
    assert torch.equal(storage[2:-2].cpu(), counts.cumsum(0).int())
    alike = counts.max() * (counts > 0).sum() * 100 <= counts.sum() * kernel.ALIKE
    assert storage[-2] == (int((counts > 0).sum()) if alike else 0)
    assert storage[0] == -7
    assert storage[-1] == -7


@pytest.mark.parametrize(
    ("lengths", "alike"),
    [((), 0), ((0, 0), 0), ((64, 0, 64), 2), ((640, 640, 800), 3), ((640, 640, 900), 0), ((1, 640), 0)],
)
def test_the_plan_tells_sequences_of_like_length(lengths: tuple[int, ...], alike: int) -> None:
    out = torch.full((len(lengths) + 2,), -7, dtype=torch.int32, device=DEVICE)
    kernel.plan_tiles(torch.tensor(lengths, dtype=torch.int32, device=DEVICE), out, window=None, tile=TILE)
    assert out[-1] == alike


@pytest.mark.parametrize(
    ("name", "cut"),
    [("alike", False), ("alike_more_than_programs", False), ("alike_cut_alike", True), ("unlike", True)],
)
def test_sequences_of_like_length_are_whole(name: str, cut: bool) -> None:
    """With as many programs as are of use none meets another, unless all are cut so that all programs have work."""
    inputs = make(CASES[name])
    run(CASES[name], inputs)
    assert bool(inputs.workspace.partial.isnan().all()) != cut


@pytest.mark.parametrize("group", [1, 8])
@pytest.mark.parametrize("head_dim", [8, 64, 96, 128, 256])
@pytest.mark.parametrize("itemsize", [1, 2, 4])
@pytest.mark.parametrize("batch", [1, 32, 64, 256])
def test_choices_fit_shared_memory(batch: int, itemsize: int, head_dim: int, group: int) -> None:
    """As many programs as one expects to run at once, beside a few KB each for sums that cross warps."""
    choice = choose(head_dim, itemsize, group, batch=batch, pairs=8 * batch, processors=132)
    padded = max(16, 1 << (head_dim - 1).bit_length())
    each = 1 if choice.splits else choice.each
    assert each <= PROGRAMS
    assert each * (2 * choice.tile * padded * itemsize * (choice.stages - 1) + 4 * 1024) <= 227 * 1024


@pytest.mark.parametrize("pairs", [1, 8, 33, 64, 99, 100, 2048])
def test_choices_fit_the_workspace(pairs: int) -> None:
    choice = choose(128, 2, 4, batch=1, pairs=pairs, processors=132)
    assert choice.splits * pairs <= 2 * PROGRAMS * 132
    assert bool(choice.splits) == (4 * pairs <= FEW_PROGRAMS * 132)

"""Prefill attention against a float64 definition: spans, windows, soft caps, sinks, head shapes, block sizes."""

import itertools

import pytest
import torch

from octavo.backends.torch.kernels.prefill_attention import (
    Shape,
    choose,
    launch,
    make_tiles,
    prefill_attention,
    tile_queries,
)
from octavo.models.spec import Attention

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

SPANS = [(2, 3, 0, 19), (0, 25, 71, 5), (3, 31, 40, 1)]  # (row, first, start, count); tokens between are no query's


def spec(heads=4, kv_heads=2, dim=16, **fields) -> Attention:
    return Attention(heads, kv_heads, dim, scale=fields.pop("scale", dim**-0.5), rope=None, **fields)


def case(layer, spans, *, block_size=16, dtype=torch.float32, blocks=24, seed=0):
    """q (a view of a wider buffer), cache and tables: unused slots are NaN, unused table entries out of range."""
    torch.manual_seed(seed)
    tokens = max(first + count for _, first, _, count in spans) + 3
    q = torch.randn(tokens, layer.heads + 2, layer.head_dim).to(dtype)[:, : layer.heads]
    cache = torch.full((2, blocks, block_size, layer.kv_heads, layer.head_dim), float("nan"))
    slots = cache.flatten(1, 2)
    free = torch.randperm(blocks).tolist()
    tables = torch.full((5, 1 + max(-(-(start + count) // block_size) for _, _, start, count in spans)), 1 << 30)
    for row, _, start, count in spans:
        low = max(0, start - layer.window + 1) if layer.window else 0
        for block in range(low // block_size, -(-(start + count) // block_size)):
            tables[row, block] = free.pop()
        at = torch.arange(low, start + count)
        places = tables[row, at // block_size] * block_size + at % block_size
        slots[:, places] = torch.randn(2, len(at), layer.kv_heads, layer.head_dim)
    return q.to(DEVICE), cache.to(DEVICE, dtype), tables.to(DEVICE, torch.int32)


def expected(layer, q, cache, tables, spans, sinks=None):
    """The definition in float64, NaN where no span has a query."""
    slots, size = cache.flatten(1, 2).double(), cache.shape[2]
    out = torch.full(q.shape, float("nan"), dtype=torch.float64, device=q.device)
    for row, first, start, count in spans:
        for i in range(count):
            p = start + i
            at = torch.arange(max(0, p - layer.window + 1) if layer.window else 0, p + 1, device=q.device)
            k, v = slots[:, tables[row, at // size] * size + at % size].repeat_interleave(
                layer.heads // layer.kv_heads, dim=2
            )
            scores = torch.einsum("hd,nhd->hn", q[first + i].double(), k) * layer.scale
            if layer.softcap is not None:
                scores = layer.softcap * torch.tanh(scores / layer.softcap)
            if sinks is not None:
                scores = torch.cat([scores, sinks.double()[:, None]], 1)
            weights = scores.softmax(1)[:, : len(at)]
            out[first + i] = torch.einsum("hn,nhd->hd", weights, v)
    return out


def check(layer, spans, *, shape=None, sinks=None, tolerance=5e-6, cache_dtype=None, factor=1.0, **options):
    q, cache, tables = case(layer, spans, **options)
    q *= factor
    cache = cache.to(cache_dtype or q.dtype)
    out = torch.full(q.shape, float("nan"), dtype=q.dtype, device=DEVICE)
    queries = shape.queries if shape else tile_queries(layer, q.dtype)
    tiles = torch.tensor([*make_tiles(spans, queries), (0, 0, 0, 0)], dtype=torch.int32, device=DEVICE)
    if shape:
        launch(shape, q, cache, tables, tiles, out, layer, sinks)
    else:
        prefill_attention(q, cache, tables, tiles, out, layer=layer, sinks=sinks)
    torch.testing.assert_close(
        out.double(), expected(layer, q, cache, tables, spans, sinks), atol=tolerance, rtol=tolerance, equal_nan=True
    )


def test_tiles():
    tiles = [(1, 0, 100, 2), (4, 16, 11, 1), (4, 13, 8, 3), (4, 10, 5, 3)]
    assert make_tiles([(4, 10, 5, 7), (1, 0, 100, 2)], 3) == tiles
    assert make_tiles([], 3) == make_tiles([(0, 0, 0, 0)], 3) == []


@pytest.mark.parametrize("block_size", [8, 32, 128])  # below, at and above the keys a step
def test_spans(block_size):
    check(spec(), SPANS, block_size=block_size)


@pytest.mark.parametrize(("window", "block_size"), [(1, 16), (7, 16), (32, 16), (1000, 16), (1, 64), (50, 64)])
def test_window(window, block_size):
    check(spec(window=window), SPANS, block_size=block_size)


@pytest.mark.parametrize("window", [None, 20])
def test_softcap_and_sinks(window):
    sinks = torch.tensor([-3.0, 0.0, 2.0, 200.0], device=DEVICE)
    check(spec(softcap=3.0, scale=1.5, window=window), SPANS, sinks=sinks, tolerance=2e-5)
    check(spec(window=window), SPANS, sinks=sinks)


@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(2, 2, 8), (3, 1, 80), (8, 2, 32), (7, 1, 96), (2, 1, 256)])
def test_heads(heads, kv_heads, dim):
    check(spec(heads, kv_heads, dim), [(1, 0, 20, 18), (0, 18, 3, 1)])


@pytest.mark.parametrize("block_size", [16, 64])  # 64: the chosen cut loads by descriptors
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
def test_half_types(dtype, tolerance, block_size):
    spans = [(1, 0, 40, 90), (2, 90, 0, 35)]
    check(spec(4, 1, 64), spans, dtype=dtype, tolerance=tolerance, block_size=block_size)


def test_cache_of_another_type():
    check(spec(), SPANS[1:], cache_dtype=torch.float16)
    check(spec(4, 1, 32), [(1, 0, 20, 18)], dtype=torch.bfloat16, cache_dtype=torch.float32, tolerance=2e-2)
    check(spec(4, 1, 32), [(1, 0, 20, 70)], cache_dtype=torch.bfloat16)  # more queries than a tile's


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 5e-6), (torch.float16, 3e-3), (torch.bfloat16, 2e-2)])
def test_float8(dtype, tolerance):
    options = {"dtype": dtype, "cache_dtype": torch.float8_e4m3fn, "tolerance": tolerance}
    sinks = torch.tensor([-3.0, 0.0, 2.0, 5.0], device=DEVICE)
    check(spec(), SPANS, block_size=64, **options)
    check(spec(softcap=3.0, scale=1.5, window=20), SPANS, sinks=sinks, block_size=8, **options)
    check(spec(3, 1, 80), [(1, 0, 20, 18), (0, 18, 3, 1)], **options)
    check(spec(7, 1, 96, window=30), [(1, 0, 40, 70)], **options)
    shape = Shape(block_m=32, block_n=16, pack=2, warps=4, stages=2, descriptors=True)
    check(spec(), SPANS, shape=shape, block_size=32, **options)


@pytest.mark.parametrize("factor", [1e-9, 1e6, 1e20])
def test_float8_beside_queries_of_any_size(factor):
    """Larger than float16 holds, and smaller: the scores are what they would be."""
    options = {"dtype": torch.bfloat16, "cache_dtype": torch.float8_e4m3fn, "tolerance": 2e-2, "factor": factor}
    check(spec(scale=1 / factor), SPANS, **options)


@pytest.mark.parametrize(("pack", "window", "block_size"), [(1, None, 32), (2, 30, 32), (2, None, 8)])  # 8: too small
def test_descriptors_and_part_packs(pack, window, block_size):
    shape = Shape(block_m=32, block_n=16, pack=pack, warps=4, stages=2, descriptors=True)
    check(spec(window=window), SPANS, shape=shape, block_size=block_size)


def test_descriptors_of_whole_blocks():
    shape = Shape(block_m=32, block_n=16, pack=2, warps=4, stages=2, descriptors=True)
    sinks = torch.tensor([-3.0, 0.0, 2.0, 5.0], device=DEVICE)
    check(spec(window=30, softcap=3.0, scale=1.5), SPANS, shape=shape, block_size=16, sinks=sinks, tolerance=5e-6)
    check(spec(), [(0, 0, 15, 2), (1, 2, 16, 2), (2, 4, 17, 1)], shape=shape, block_size=16)


def test_large_scores_and_equal_ones():
    check(spec(scale=40.0), SPANS, tolerance=3e-4)
    check(spec(scale=1e-30), SPANS)


def test_no_tiles_and_shapes():
    layer = spec()
    q, cache, tables = case(layer, SPANS)
    out = torch.full_like(q, float("nan"))
    prefill_attention(q, cache, tables, torch.empty(0, 4, dtype=torch.int32, device=DEVICE), out, layer=layer)
    assert out.isnan().all()
    for heads, kv_heads in [(32, 8), (28, 4), (40, 8), (64, 1), (34, 2)]:
        for dim in (64, 96, 128, 192, 256):
            queries = tile_queries(spec(heads, kv_heads, dim), torch.bfloat16)
            kinds = (None, torch.float8_e4m3fn, torch.float32)
            for size, width, kept in itertools.product((8, 16, 32, 64, 128), (2, 4), kinds):
                shape = choose(heads, kv_heads, dim, width, size, kept)
                assert (heads // kv_heads) % shape.pack == 0
                assert shape.queries == queries <= shape.block_m // shape.pack

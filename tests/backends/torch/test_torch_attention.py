"""Each attention implementation against plain float64 sums: histories, chunks, windows, caps, groups, poison."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch_driver import layer, spec

from octavo.backends.torch.attention.cache import KVCache
from octavo.backends.torch.attention.gather import TILE
from octavo.backends.torch.attention.port import Case, Implementation
from octavo.backends.torch.attention.select import IMPLEMENTATIONS, AttentionStack, choose
from octavo.backends.torch.batch import make_batch, with_ends
from octavo.backends.torch.rows import Rows
from octavo.base.errors import UnsupportedError
from octavo.base.types.plan import RowBegin, RowSampling, RowStep, StepPlan
from octavo.models.spec import Attention

BLOCK = 4
LONG = TILE + 22
CASES = {
    "causal": Attention(4, 2, 8, 0.35, None),
    "one_kv_head": Attention(6, 1, 4, 0.5, None),
    "no_groups": Attention(3, 3, 16, 0.25, None),
    "window": Attention(4, 2, 8, 0.35, None, window=7),
    "window_of_one": Attention(4, 2, 8, 0.35, None, window=1),
    "window_over_tiles": Attention(4, 2, 8, 0.35, None, window=TILE + 3),
    "softcap": Attention(4, 2, 8, 0.35, None, softcap=0.7),
    "softcap_window": Attention(4, 2, 8, 0.35, None, softcap=0.7, window=5),
}
# (row, start, count) of each step: chunks with history, decodes and a long prompt side by side
STEPS = (
    [(0, 0, 9), (2, 0, 1), (1, 0, 3)],
    [(2, 1, 1), (1, 3, 1), (3, 0, LONG), (0, 9, 6)],
    [(1, 4, 5), (0, 15, 1), (3, LONG, 2), (2, 2, 7)],
)


def dense(mixer: Attention, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """q: [count, heads, dim] of the last positions of k, v: [length, kv_heads, dim]."""
    out = np.empty(q.shape)
    for i in range(len(q)):
        end = len(k) - len(q) + i + 1
        low = 0 if mixer.window is None else max(0, end - mixer.window)
        for h in range(mixer.heads):
            g = h * mixer.kv_heads // mixer.heads
            scores = k[low:end, g].astype(np.float64) @ q[i, h] * mixer.scale
            if mixer.softcap is not None:
                scores = mixer.softcap * np.tanh(scores / mixer.softcap)
            weight = np.exp(scores - scores.max())
            out[i, h] = weight @ v[low:end, g] / weight.sum()
    return out


def make_rows(num_blocks: int) -> Rows:
    """Four rows with shuffled blocks."""
    rows = Rows(
        max_num_seqs=4,
        max_model_len=LONG + 10,
        num_blocks=num_blocks,
        block_size=BLOCK,
        vocab_size=9,
        device=torch.device("cpu"),
    )
    order = np.random.default_rng(5).permutation(num_blocks).tolist()
    per_row = num_blocks // 4
    begins = [RowBegin(r, [1], 1, order[r * per_row : (r + 1) * per_row], RowSampling()) for r in range(4)]
    rows.apply(StepPlan(step=0, rows=[], begins=begins))
    return rows


def runnable() -> list[tuple[Implementation, str]]:
    """Every implementation with every case that it takes."""
    pairs = [(each, name) for each in IMPLEMENTATIONS for name in CASES]
    return [(each, name) for each, name in pairs if not each.supports(Case(CASES[name], torch.float32, "cpu", BLOCK))]


FLOAT8 = torch.float8_e4m3fn


@pytest.mark.parametrize("kept", [torch.float32, FLOAT8], ids=["float32", "float8"])
@pytest.mark.parametrize(("implementation", "name"), runnable(), ids=lambda part: getattr(part, "name", part))
def test_against_plain_sums(implementation: Implementation, name: str, kept: torch.dtype) -> None:
    mixer = CASES[name]
    num_blocks = 4 * (-(-(LONG + 10) // BLOCK))
    model = spec(layer(), replace(layer(), mixer=mixer))
    cache = KVCache(model, num_blocks=num_blocks, block_size=BLOCK, dtype=kept, device=torch.device("cpu"))
    cache.slots(1).fill_(float("nan"))  # what was never written must never be read
    attention = implementation.make({1: mixer}, cache, 4)
    rows = make_rows(num_blocks)
    rng = np.random.default_rng(2)
    past = {row: [np.empty((0, mixer.kv_heads, mixer.head_dim), np.float32)] * 2 for row in range(4)}
    for step in STEPS:
        batch = make_batch([RowStep(*part, False) for part in step], rows)
        tokens = sum(count for _, _, count in step)
        q = rng.standard_normal((tokens, mixer.heads, mixer.head_dim), np.float32) * 2
        k, v = rng.standard_normal((2, tokens, mixer.kv_heads, mixer.head_dim), np.float32)
        attention.plan(batch)
        order = [part for part in step if part[2] == 1] + [part for part in step if part[2] > 1]
        cache.write(1, batch.slots, torch.from_numpy(k), torch.from_numpy(v))
        k, v = (torch.from_numpy(x).to(kept).float().numpy() for x in (k, v))
        out = attention.run(torch.from_numpy(q), 1).numpy()
        first = 0
        for row, start, count in order:
            part = slice(first, first + count)
            past[row] = [np.concatenate((old, new[part])) for old, new in zip(past[row], (k, v), strict=True)]
            assert len(past[row][0]) == start + count
            np.testing.assert_allclose(out[part], dense(mixer, q[part], *past[row]), rtol=0, atol=3e-6)
            first += count


def test_batch_arrays() -> None:
    rows = make_rows(40)
    batch = make_batch([RowStep(2, 5, 3, True), RowStep(0, 0, 1, False), RowStep(3, 9, 2, True)], rows)
    tables = rows.block_tables
    assert batch.num_single == 1
    assert [step.row for step in batch.steps] == batch.rows.tolist() == [0, 2, 3]  # single tokens first
    assert batch.row_index.tolist() == [0, 1, 1, 1, 2, 2]
    assert batch.positions.tolist() == [0, 5, 6, 7, 9, 10]
    assert batch.seq_lens.tolist() == [1, 8, 11]
    ends = with_ends(batch, lambda count: count + 2).ends
    assert ends is not None
    assert ends.steps == [RowStep(2, 7, 1, True), RowStep(3, 10, 1, True)]
    assert (ends.num_single, ends.tokens.tolist()) == (4, [3, 5, 0, 0])
    assert (ends.rows.tolist(), ends.seq_lens.tolist()) == ([2, 3, -1, -1], [8, 11, 0, 0])
    pairs = [(0, 0), (2, 5), (2, 6), (2, 7), (3, 9), (3, 10)]
    expected = [int(tables[row, p // BLOCK]) * BLOCK + p % BLOCK for row, p in pairs]
    assert batch.slots.tolist() == expected
    assert batch.row_slots(1, 8).tolist()[5:] == expected[1:4]


@pytest.mark.parametrize("dtype", [torch.float32, FLOAT8])
@pytest.mark.parametrize("copies", [[(0, 1), (1, 0)], [(3, 0), (0, 2)], []])
def test_copies_read_before_they_write(copies: Sequence[tuple[int, int]], dtype: torch.dtype) -> None:
    cache = KVCache(spec(), num_blocks=5, block_size=BLOCK, dtype=dtype, device=torch.device("cpu"))
    before = []
    for index in range(2):
        cache.slots(index).copy_(torch.randn(cache.slots(index).shape, generator=torch.Generator().manual_seed(index)))
        before.append(cache.slots(index).clone().unflatten(1, (5, BLOCK)))
    cache.copy_blocks(copies)
    source = list(range(5))
    for a, b in copies:
        source[b] = a
    for index in range(2):
        after = cache.slots(index).unflatten(1, (5, BLOCK))
        assert torch.equal(after.float(), before[index].float()[:, source])


@pytest.mark.parametrize("arithmetic", [torch.float32, torch.bfloat16, torch.float16])
def test_float8_saturates_and_shows_what_is_not_finite(arithmetic: torch.dtype) -> None:
    nan, inf = float("nan"), float("inf")
    given = torch.tensor([nan, inf, -inf, 449.0, 6e4, -479.0, 0.3, -0.001]).to(arithmetic)
    want = [nan, nan, nan, 448.0, 448.0, -448.0, 0.3125, -(2.0**-9)]
    cache = KVCache(spec(), num_blocks=1, block_size=BLOCK, dtype=FLOAT8, device=torch.device("cpu"))
    slots = torch.tensor([2])
    cache.write(0, slots, given.expand(1, 2, 8), -given.expand(1, 2, 8))
    k, v = cache.read(0, slots, arithmetic)
    assert k.dtype == arithmetic
    for got, sign in ((k, 1), (v, -1)):
        torch.testing.assert_close(got[0, 1].float(), sign * torch.tensor(want), rtol=0, atol=0, equal_nan=True)


def test_kernels_refuse_an_odd_head_in_float8() -> None:
    case = Case(Attention(2, 1, 9, 0.3, None), FLOAT8, "cuda", BLOCK)
    assert "an odd head_dim, 9, over a cache of torch.float8_e4m3fn" in IMPLEMENTATIONS[0].supports(case)


def test_choice_is_the_first_that_takes_the_case_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    model = spec(layer(), layer({"softcap": 2.0}), layer({"window": 4}))
    cache = KVCache(model, num_blocks=1, block_size=BLOCK, dtype=torch.float32, device=torch.device("cpu"))
    with caplog.at_level(logging.INFO, logger="octavo"):
        stack = AttentionStack(model, cache, max_num_seqs=4)
    assert stack.names == ["sdpa", "reference", "sdpa"]
    assert [record.getMessage() for record in caplog.records] == [
        "attention: sdpa (not kernels: device cpu), from layer 0",
        "attention: reference (not kernels: device cpu; sdpa: softcap 2), from layer 1",
    ]


def test_no_implementation_says_why() -> None:
    case = Case(CASES["softcap"], torch.float32, "cpu", BLOCK)
    with pytest.raises(UnsupportedError, match=r"sdpa: softcap 0\.7"):
        choose(case, [each for each in IMPLEMENTATIONS if each.name == "sdpa"])

"""The sampling kernel against sampling/random.py's noise and a float64 reference of the filters, row by row."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from octavo.backends.torch.kernels.sampling import (
    FINE,
    KEEP,
    NONE_LEFT,
    NOT_FINITE,
    make_workspace,
    sample,
    split_size,
)
from octavo.backends.torch.sampling.random import gumbel_noise

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
INF = float("inf")
WIDTH = 50
MANY = 3 * 4096 + 61
"""A vocabulary of several splits, the last one short."""


def draw(
    logits: Tensor, parameters: list[tuple[float, float, int, float]], *, filtered: bool, rows: list[int] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """parameters: (temperature, top_p, top_k, min_p) a row of logits -> allowed tokens' scores, tokens and flags.

    Checks where the kernel wrote, unfiltered twice: its workspace must come out as it went in.
    """
    batch, vocab = logits.shape
    rows = list(range(batch + 2))[::-1][:batch] if rows is None else rows
    count = batch + 2
    floats, integers = torch.full((count, 6), math.nan), torch.zeros((count, 2), dtype=torch.int64)
    seeds = torch.randint(-(2**63), 2**63 - 1, (count,))
    positions = torch.randint(0, WIDTH, (batch,), dtype=torch.int32)
    for row, (temperature, top_p, top_k, min_p) in zip(rows, parameters, strict=True):
        floats[row, :3] = torch.tensor([temperature, top_p, min_p])
        integers[row] = torch.tensor([int(seeds[row]), top_k or vocab])
    padded = torch.full((batch, vocab + 3), math.nan, dtype=logits.dtype)
    padded[:, :vocab] = logits
    arrays = SimpleNamespace(floats=floats.to(DEVICE), integers=integers.to(DEVICE))
    workspace = make_workspace(batch + 1, vocab, DEVICE)
    for _ in range(1 if filtered else 2):
        arrays.tokens = torch.full((count, WIDTH), -7, dtype=torch.int32, device=DEVICE)
        out_tokens, out_flags = (torch.full((batch + 1,), -7, dtype=torch.int32, device=DEVICE) for _ in range(2))
        sample(
            padded.to(DEVICE)[:, :vocab], torch.tensor(rows, dtype=torch.int32, device=DEVICE), positions.to(DEVICE),
            arrays, out_tokens[:batch], out_flags[:batch], workspace=workspace, filtered=filtered,
        )  # fmt: skip
        expected = torch.full((count, WIDTH), -7, dtype=torch.int32)
        for b, row in enumerate(rows):
            if row >= 0:
                expected[row, positions[b]] = out_tokens[b].cpu()
        assert torch.equal(arrays.tokens.cpu(), expected)
        assert out_tokens[batch] == out_flags[batch] == -7
        assert not workspace.arrived.any()
    noise = gumbel_noise(integers[rows, 0], positions.long(), vocab)
    return noise, out_tokens[:batch].cpu(), out_flags[:batch].cpu()


def allowed(x: Tensor, top_p: float, top_k: int, min_p: float) -> tuple[Tensor, Tensor]:
    """x: float32 [vocab] logits / temperature -> bool [vocab]: kept, and too close to a boundary of min_p or top_p to
    tell (float32 sums decide); tokens' probabilities in float64."""
    x = x.double()
    edge = torch.zeros_like(x, dtype=torch.bool)
    if min_p > 0:
        lowest = x.max() + math.log(min_p)
        edge |= (x - lowest).abs() < 1e-6 * max(1.0, float(x.max().abs()))
        x = x.masked_fill((x < lowest) & ~edge, -INF)
    values, order = x.sort(descending=True, stable=True)
    if 0 < top_k < len(x):
        values = values.masked_fill(values < values[top_k - 1], -INF)
    probabilities = values.softmax(-1)
    above = probabilities.cumsum(-1) - probabilities
    near = (above - top_p).abs() < 2e-6
    kept = (values > -INF) & ((above < top_p) | (top_p >= 1))
    kept_at, near_at = torch.zeros_like(edge), torch.zeros_like(edge)
    kept_at[order], near_at[order] = kept, near & (values > -INF) & (top_p < 1)
    return kept_at, edge | near_at


def check(logits: Tensor, parameters: list[tuple[float, float, int, float]], *, filtered: bool) -> None:
    """Each row's token has the best score of those that must be kept, and may be kept."""
    noise, tokens, flags = draw(logits, parameters, filtered=filtered)
    assert flags.tolist() == [FINE] * len(parameters)
    for b, (temperature, top_p, top_k, min_p) in enumerate(parameters):
        row, token = logits[b].float(), int(tokens[b])
        if temperature < 1e-5:
            assert token == int(row.argmax()), parameters[b]
            continue
        x = row / torch.tensor(temperature)
        kept, edge = allowed(x, top_p, top_k, min_p)
        score = x.double() + noise[b].double()
        assert kept[token] or edge[token], (parameters[b], token)
        best = score[kept & ~edge].max() if bool((kept & ~edge).any()) else score[token]
        # the noise's logarithms may differ in their last digit
        assert score[token] >= best - 4e-6 * max(1.0, float(best.abs())), (parameters[b], token)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("vocab", [1, 61, MANY])
def test_unfiltered(vocab: int, dtype: torch.dtype) -> None:
    logits = (torch.randn(3, vocab) * 3).to(dtype)
    check(logits, [(1.0, 1.0, 0, 0.0), (0.0, 1.0, 0, 0.0), (0.3, 1.0, 0, 0.0)], filtered=False)


def test_draws_follow_the_probabilities_and_the_noise() -> None:
    """Many rows of few tokens: equal to the noise's own argmax, and as often as their probability says."""
    batch = 24
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, -INF, 0.5, -3.0]).repeat(batch, 1)
    noise, tokens, flags = draw(logits, [(1.0, 1.0, 0, 0.0)] * batch, filtered=False)
    assert torch.equal(tokens.long(), (logits + noise).argmax(-1))
    assert not flags.any()


def test_equal_logits_give_the_first() -> None:
    logits = torch.zeros(2, MANY)
    logits[:, [4095, 4096, 9000]] = 1.0
    _, tokens, _ = draw(logits, [(0.0, 1.0, 0, 0.0)] * 2, filtered=False)
    assert tokens.tolist() == [4095, 4095]
    _, tokens, _ = draw(logits, [(0.0, 0.5, 3, 0.1)] * 2, filtered=True)
    assert tokens.tolist() == [4095, 4095]


@pytest.mark.parametrize("filtered", [False, True])
def test_flags_and_padding(filtered: bool) -> None:
    logits = torch.randn(7, 4096 + 61)
    logits[0, 4100], logits[1, 5], logits[2] = math.nan, INF, -INF
    logits[3] = -INF
    logits[3, 4120] = -3.0
    logits[4] = -INF
    logits[4, 9], logits[5, 100:] = math.nan, -INF
    top_p = 0.9 if filtered else 1.0
    rows = [8, 0, 3, 1, 7, 4, -1]
    _, tokens, flags = draw(logits, [(0.7, top_p, 0, 0.0)] * 7, filtered=filtered, rows=rows)
    assert flags.tolist() == [NOT_FINITE, NOT_FINITE, NONE_LEFT, FINE, NOT_FINITE, FINE, FINE]
    assert tokens[:5].tolist() == [0, 0, 0, 4120, 0]
    assert tokens[5] < 100
    assert tokens[6] == 0


def test_nothing_to_do() -> None:
    empty = torch.zeros(0, dtype=torch.int32, device=DEVICE)
    arrays = SimpleNamespace(floats=torch.zeros(1, 6), integers=torch.zeros(1, 2), tokens=torch.zeros(1, 2))
    workspace = make_workspace(1, 61, DEVICE)
    sample(torch.zeros(0, 61, device=DEVICE), empty, empty, arrays, empty, empty, workspace=workspace, filtered=True)


FILTERS = [
    (1.0, 0.9, 0, 0.0),
    (0.7, 0.5, 0, 0.0),
    (1.3, 0.99, 0, 0.0),
    (1.0, 1.0, 20, 0.0),
    (1.0, 1.0, 1, 0.0),
    (0.6, 0.95, 20, 0.0),
    (1.0, 1.0, 0, 0.1),
    (2.0, 0.8, 5, 0.02),
    (1.0, 0.7, 0, 0.05),
    (1.0, 1.0, 40, 1.0),
    (1.0, 1.0, 0, 0.0),
    (0.0, 0.5, 3, 0.1),
]


@pytest.mark.parametrize("vocab", [1, 61, 700])
def test_filters_in_one_split(vocab: int) -> None:
    """Mixed with a greedy row and one that filters nothing; 700 has more tokens than a split hands on."""
    check(torch.randn(len(FILTERS), vocab) * 2, FILTERS, filtered=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_filters_over_many_splits(dtype: torch.dtype) -> None:
    """Steep logits, as a model's: the candidates suffice."""
    logits = torch.randn(len(FILTERS), MANY) - 1.5 * torch.rand(len(FILTERS), MANY).add(1e-4).log() * 1.3
    check(logits.to(dtype), FILTERS, filtered=True)


def test_flat_logits_need_all_of_them() -> None:
    """More tokens pass the filters than the splits hand on, or ties hide how many."""
    logits = torch.randn(5, MANY)
    logits[3] = torch.randint(0, 2, (MANY,)).float()
    logits[4, : MANY // 2] = 7.0
    top_k = KEEP * 4
    flat = [(1.0, 0.95, 0, 0.0), (1.0, 1.0, top_k, 0.0), (0.8, 0.9, top_k, 0.01), (1.0, 0.3, 50, 0.0), (1, 0.1, 0, 0.0)]
    check(logits, flat, filtered=True)


def test_ties_with_the_kth_stay() -> None:
    """Of four equal tokens behind the first, top_k = 2 keeps all, top_p then the lowest of them first."""
    logits = torch.full((6, 61), -5.0)
    logits[:, [50, 3, 17, 40, 8]] = torch.tensor([2.0, 1.0, 1.0, 1.0, 1.0])
    # probabilities 0.405, 0.149 x 4: 0.6 is reached by three tokens
    check(logits, [(1.0, 1.0, 2, 0.0)] * 3 + [(1.0, 0.6, 2, 0.0)] * 3, filtered=True)


def test_extreme_temperatures_and_logits() -> None:
    logits = torch.randn(6, 300) * 100
    logits[4], logits[5, 0] = -1e30, 3e38
    logits[4, 7] = -2e30
    cold = [(1e-5, 0.9, 0, 0.0), (1e-5, 1.0, 5, 0.0), (1e4, 0.9, 9, 0.0), (0.01, 0.95, 20, 0.0)]
    check(logits[:4], cold, filtered=True)
    _, tokens, flags = draw(logits[4:], [(1.0, 0.9, 30, 0.0), (1e-5, 0.5, 0, 0.0)], filtered=True)
    assert not flags.any()
    assert tokens[0] != 7
    assert tokens[1] == 0


def test_scores_too_large_to_tell_tokens_apart() -> None:
    """At 1e8 float32 counts in eights: many tokens share the best score, at 1e9 all; the first of them is drawn."""
    torch.manual_seed(0)  # one in thirty draws has a token by itself at 1e8 + 16
    logits = torch.tensor([1e2, 1e3, 1e4])[:, None].repeat(1, 5000)
    noise, tokens, _ = draw(logits, [(1e-5, 1.0, 0, 0.0)] * 3, filtered=False)
    score = logits / torch.tensor(1e-5) + noise
    assert int((score[1] == score[1].max()).sum()) > 32
    assert torch.equal(tokens.long(), score.argmax(-1))


def test_splits_cover_any_vocabulary() -> None:
    assert split_size(61) == 4096
    assert split_size(262208) == 8192

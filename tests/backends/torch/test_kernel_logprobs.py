"""The kernels of log probabilities against float64: the token's own, its rank, the most likely ones in order."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from octavo.backends.torch.kernels.logprobs import log_probabilities
from octavo.backends.torch.kernels.sampling import FINE, NONE_LEFT, NOT_FINITE, make_workspace
from octavo.backends.torch.sampling.group import INTEGERS
from octavo.backends.torch.sampling.logprobs import MOST, OWN, RANK, TOP, WIDTH, PackedLogprobs, token_logprobs

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
INF = float("inf")
MANY = 3 * 4096 + 61
POISON = -7
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def run(
    logits: Tensor, chosen: list[int], counts: list[int | None], *, rows: list[int], flags: list[int] | None = None
) -> tuple[Tensor, Tensor]:
    """-> packed int32 [B, WIDTH] and flags [B], both poisoned where nothing is to be written."""
    batch, vocab = logits.shape
    integers = torch.zeros((batch + 2, len(INTEGERS)), dtype=torch.int64)
    for row, count in zip(rows, counts, strict=True):
        if row >= 0:
            integers[row, INTEGERS.index("logprobs")] = -1 if count is None else count
    wide = torch.full((batch, vocab + 3), math.nan)
    wide[:, :vocab] = logits
    workspace = make_workspace(batch, vocab, DEVICE)
    for each in (workspace.best, workspace.weight):
        each.fill_(math.nan)
    packed = torch.full((batch + 1, WIDTH), POISON, dtype=torch.int32, device=DEVICE)
    out_flags = torch.tensor([*(flags or [FINE] * batch), POISON], dtype=torch.int32, device=DEVICE)
    tokens = torch.tensor(chosen, dtype=torch.int32, device=DEVICE)
    log_probabilities(
        wide.to(DEVICE)[:, :vocab], torch.tensor(rows, dtype=torch.int32, device=DEVICE),
        SimpleNamespace(integers=integers.to(DEVICE)), tokens, out_flags[:batch], packed[:batch], workspace=workspace,
    )  # fmt: skip
    assert bool((packed[batch] == POISON).all())
    assert out_flags[batch] == POISON
    return packed[:batch].cpu(), out_flags[:batch].cpu()


def check(logits: Tensor, chosen: list[int], counts: list[int | None], packed: Tensor) -> None:
    """Every row that asks against float64, and (where no logits are equal) the eager path."""
    expected = logits.double().log_softmax(-1)
    for b, (token, count) in enumerate(zip(chosen, counts, strict=True)):
        if count is None:
            assert bool((packed[b] == POISON).all())
            continue
        values = packed[b].view(torch.float32)
        assert int(packed[b, RANK]) == 1 + int((logits[b] > logits[b, token]).sum())
        order = logits[b].argsort(descending=True, stable=True)[:count]
        assert packed[b, TOP : TOP + count].tolist() == order.tolist()
        found = torch.cat((values[OWN : OWN + 1], values[TOP + MOST : TOP + MOST + count])).double()
        torch.testing.assert_close(found, expected[b][[token, *order.tolist()]], rtol=2e-6, atol=2e-6)
        assert bool((packed[b, TOP + count : TOP + MOST] == POISON).all())
        [entry] = PackedLogprobs(torch.tensor([token]).numpy(), packed[b : b + 1].numpy(), [count]).entries()
        [other] = token_logprobs(logits[b : b + 1], torch.tensor([token]), count).entries()
        assert entry is not None
        assert entry.rank == other.rank
        assert entry.logprobs == pytest.approx(other.logprobs, rel=2e-6, abs=2e-6)
        if len(logits[b].unique()) == len(logits[b]):
            assert entry.token_ids == other.token_ids


@pytest.mark.parametrize("vocab", [MOST, 61, MANY])
def test_rows_that_ask_and_rows_that_do_not(vocab: int) -> None:
    counts = [0, 1, None, MOST, 5, None]
    logits = torch.randn(len(counts), vocab) * 3
    chosen = torch.randint(0, vocab, (len(counts),)).tolist()
    chosen[1] = int(logits[1].argmax())
    chosen[3] = int(logits[3].argmin())
    packed, flags = run(logits, chosen, counts, rows=[7, 0, 3, 1, 5, -1])
    assert not flags.any()
    check(logits, chosen, counts, packed)


def test_equal_logits_come_by_token() -> None:
    """All equal; a few values only; the best ones across a border of splits; the largest split gives several."""
    logits = torch.zeros(4, MANY)
    logits[1] = torch.randint(0, 3, (MANY,)).float()
    logits[2, [4094, 4095, 4096, 4097, 9000, 12_300]] = 2.0
    logits[3] = torch.linspace(9, -9, MANY)
    chosen = [500, 3, 4096, 0]
    packed, flags = run(logits, chosen, [MOST] * 4, rows=[0, 1, 2, 3])
    assert not flags.any()
    check(logits, chosen, [MOST] * 4, packed)
    assert packed[3, TOP : TOP + MOST].tolist() == list(range(MOST))


def test_extreme_logits() -> None:
    logits = torch.stack((torch.randn(700) * 1e4, torch.randn(700) * 1e-3, torch.full((700,), -80.0)))
    logits[2, 9] = 3e4
    chosen = [5, 6, 7]
    packed, _ = run(logits, chosen, [3, 3, 3], rows=[2, 1, 0])
    values = packed.view(torch.float32)
    expected = logits.double().log_softmax(-1)
    torch.testing.assert_close(values[:, OWN].double(), expected[range(3), chosen], rtol=1e-6, atol=1e-6)
    assert packed[:, TOP].tolist() == logits.argmax(-1).tolist()


def test_what_is_not_finite_is_flagged() -> None:
    """A NaN, infinity, a token of no chance, an alternative of none; a flag that stands stays."""
    logits = torch.randn(6, 61)
    logits[0, 50], logits[1, 50], logits[2, 7], logits[3, 7:] = math.nan, INF, -INF, -INF
    logits[4, 50] = logits[5, 50] = math.nan
    packed, flags = run(
        logits, [7, 7, 7, 3, 0, 7], [0, 2, 0, 8, 0, None], rows=[0, 1, 2, 3, 4, 5], flags=[0, 0, 0, 0, NONE_LEFT, 0]
    )
    assert flags.tolist() == [NOT_FINITE, NOT_FINITE, NOT_FINITE, NOT_FINITE, NONE_LEFT, FINE]
    assert packed[3, TOP : TOP + 7].tolist() == logits[3].argsort(descending=True, stable=True)[:7].tolist()


def test_nothing_to_do() -> None:
    empty = torch.zeros(0, dtype=torch.int32, device=DEVICE)
    arrays = SimpleNamespace(integers=torch.zeros(1, len(INTEGERS)))
    packed = torch.zeros(0, WIDTH, dtype=torch.int32)
    log_probabilities(torch.zeros(0, 61), empty, arrays, empty, empty, packed, workspace=make_workspace(1, 61, DEVICE))

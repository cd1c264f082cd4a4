"""The kernel of masks, biases and penalties against plain counting in float64, and against the eager sampler's bits."""

from __future__ import annotations

import math
import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from octavo.backends.torch.kernels.edits import edit
from octavo.backends.torch.sampling.edits import MOST_EDITS, NO_EDITS, EditTables, row_edits
from octavo.backends.torch.sampling.group import FLOATS, INTEGERS, Group
from octavo.backends.torch.sampling.masks import apply_masks
from octavo.backends.torch.sampling.penalties import apply_penalties
from octavo.backends.torch.sampling.tables import make_tables
from octavo.base.types.plan import RowSampling

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CPU = torch.device("cpu")
INF = float("inf")
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

PARAMETERS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "repetition": {"repetition_penalty": 1.3},
    "repetition below one": {"repetition_penalty": 0.7},
    "presence": {"presence_penalty": 0.5},
    "frequency": {"frequency_penalty": 0.25},
    "penalties": {"presence_penalty": 0.7, "frequency_penalty": -0.3, "repetition_penalty": 1.9},
    "bias": {"logit_bias": {3: 2.5, 60: -100.0, 0: 0.125}},
    "allowed": {"allowed_token_ids": [0, 31, 32, 33, 60, 7]},
    "min_tokens": {"min_tokens": 9, "stop_token_ids": [5, 60, 99]},
    "min_tokens reached": {"min_tokens": 8, "stop_token_ids": [5, 60]},
    "bad words": {"bad_words_ids": [[4], [40, 41, 42], [41, 43], [9, 44], [40, 41, 45], [1, 40, 41, 46]]},
    "everything": {
        "presence_penalty": 0.1,
        "frequency_penalty": 0.2,
        "repetition_penalty": 1.1,
        "logit_bias": {4: 9.0, 5: 3.0, 8: -2.0, 59: 1.5},
        "allowed_token_ids": list(range(50)),
        "min_tokens": 100,
        "stop_token_ids": [8, 6],
        "bad_words_ids": [[4], [41, 5]],
    },
}
"""The rows of `cases` end in 40, 41 and have 8 outputs."""


def arrays(
    samplings: list[RowSampling], prompts: list[int], known: list[list[int]], rows: list[int], vocab: int
) -> Any:
    """The persistent arrays of rows.py, with rows of these, and garbage in the others."""
    count, width = len(rows) + 2, max(map(len, known)) + 3
    floats = torch.full((count, len(FLOATS)), math.nan)
    integers = torch.randint(0, 99, (count, len(INTEGERS)))
    tokens = torch.randint(0, vocab, (count, width), dtype=torch.int32)
    made = {}
    for row, sampling, prompt, ids in zip(rows, samplings, prompts, known, strict=True):
        if row < 0:
            continue
        made[row] = each = row_edits(sampling, num_prompt=prompt, vocab_size=vocab)
        assert each.fits
        floats[row] = torch.tensor([getattr(sampling, name) for name in FLOATS])
        integers[row] = torch.tensor([0, 0, prompt, each.edits.shape[1], each.allowed is not None, -1])
        tokens[row, : len(ids)] = torch.tensor(ids)
    tables = EditTables(count, vocab, DEVICE)
    for table in (tables.edits, tables.prefixes, tables.allowed):
        table.fill_(-(2**31))
    tables.write(made)
    return SimpleNamespace(
        floats=floats.to(DEVICE), integers=integers.to(DEVICE), tokens=tokens.to(DEVICE), tables=tables
    )


def run(
    logits: Tensor, samplings: list[RowSampling], prompts: list[int], known: list[list[int]], rows: list[int]
) -> Tensor:
    """The kernel's result; checks that it wrote inside the vocabulary only."""
    batch, vocab = logits.shape
    held = arrays(samplings, prompts, known, rows, vocab)
    wide = torch.full((batch, vocab + 3), math.nan, device=DEVICE)
    wide[:, :vocab] = logits.to(DEVICE)
    saved = torch.full((batch, held.tokens.shape[1]), math.nan, device=DEVICE)
    edit(
        wide[:, :vocab], torch.tensor(rows, dtype=torch.int32, device=DEVICE),
        torch.tensor([len(ids) for ids in known], dtype=torch.int32, device=DEVICE), held, held.tables, saved,
    )  # fmt: skip
    assert wide[:, vocab:].isnan().all()
    return wide[:, :vocab].cpu()


def eager(logits: Tensor, samplings: list[RowSampling], prompts: list[int], known: list[list[int]]) -> Tensor:
    """sampling/masks.py and penalties.py."""
    logits = logits.clone()
    tokens = torch.zeros((len(known), max(map(len, known)) + 1), dtype=torch.int32)
    for row, ids in enumerate(known):
        tokens[row, : len(ids)] = torch.tensor(ids)
    group = Group(
        sampling=samplings,
        tables=[make_tables(each, vocab_size=logits.shape[1], device=CPU) for each in samplings],
        num_prompts=prompts,
        positions=[len(ids) for ids in known],
        rows=list(range(len(known))),
        row_ids=torch.arange(len(known)),
        tokens=tokens,
        floats=torch.tensor([[getattr(each, name) for name in FLOATS] for each in samplings]),
        seeds=torch.zeros(len(known), dtype=torch.int64),
        top_k=torch.zeros(len(known), dtype=torch.int64),
    )
    apply_masks(logits, group)
    apply_penalties(logits, group)
    return logits


def edited(logits: Tensor, s: RowSampling, prompt: list[int], outputs: list[int]) -> Tensor:
    """The reference, in float64, of one row."""
    x = logits.double().tolist()
    refused = set() if s.allowed_token_ids is None else set(range(len(x))) - set(s.allowed_token_ids)
    refused |= {word[-1] for word in s.bad_words_ids if outputs[len(outputs) - len(word) + 1 :] == word[:-1]}
    refused |= set(s.stop_token_ids) if len(outputs) < s.min_tokens else set()
    for token in range(len(x)):
        x[token] += s.logit_bias.get(token, 0.0)
        if token in refused:
            x[token] = -INF
        if token in prompt or token in outputs:
            x[token] = x[token] / s.repetition_penalty if x[token] > 0 else x[token] * s.repetition_penalty
        if token in outputs:
            x[token] -= s.frequency_penalty * outputs.count(token) + s.presence_penalty
    return torch.tensor(x, dtype=torch.float64)


def test_each_kind_alone_and_all_in_a_batch() -> None:
    """One row of each, in scattered places, with a row of padding; the reference in float64, the eager path's bits."""
    vocab, rng = 61, random.Random(torch.initial_seed())
    samplings = [RowSampling(**each) for each in PARAMETERS.values()]
    prompts = [rng.randrange(1, 30) for _ in samplings]
    known = [[rng.randrange(40) for _ in range(prompt + 6)] + [40, 41] for prompt in prompts]
    logits = torch.randn(len(samplings), vocab) * 4
    logits[:, 13] = -INF
    rows = list(range(len(samplings)))[::-1]
    made = run(logits, samplings, prompts, known, rows)
    for i, (name, sampling) in enumerate(zip(PARAMETERS, samplings, strict=True)):
        expected = edited(logits[i], sampling, known[i][: prompts[i]], known[i][prompts[i] :])
        torch.testing.assert_close(made[i].double(), expected, rtol=1e-5, atol=1e-5, msg=name)
        assert torch.equal(run(logits[i : i + 1], [sampling], prompts[i : i + 1], known[i : i + 1], [1])[0], made[i])
    assert torch.equal(made, eager(logits, samplings, prompts, known))
    assert torch.equal(run(logits[:2], samplings[8:10], prompts[:2], known[:2], [-1, 0])[0], logits[0])


def test_long_rows_and_lists_to_the_brim() -> None:
    """More tokens than a pass takes at a time, more vocabulary than a tile; as many edits as fit."""
    vocab, rng = 2048 * 2 + 7, random.Random(torch.initial_seed())
    ids = rng.sample(range(vocab), MOST_EDITS)
    word = [rng.randrange(vocab) for _ in range(MOST_EDITS - 2)] + [9]
    samplings = [
        RowSampling(logit_bias={token: rng.uniform(-9, 9) for token in ids}, frequency_penalty=0.3),
        RowSampling(bad_words_ids=[[token] for token in ids], repetition_penalty=1.2, presence_penalty=0.1),
        RowSampling(bad_words_ids=[[*word, 5], [3, 6]], allowed_token_ids=[*ids, 5, 6]),
        RowSampling(min_tokens=2, stop_token_ids=ids),
    ]
    prompts = [2100, 3, 1, 4]
    known = [[rng.randrange(vocab) for _ in range(length)] for length in (4500, 2048, 40, 5)]
    known[2] += word
    logits = torch.randn(4, vocab) * 3
    made = run(logits, samplings, prompts, known, [3, 0, 2, 5])
    assert torch.equal(made, eager(logits, samplings, prompts, known))
    assert made[2, 5] == -INF
    assert made[2, 6] == logits[2, 6]
    assert int((made[3] == -INF).sum()) == MOST_EDITS


def test_one_token_too_many_does_not_fit() -> None:
    for field, value in (
        ("logit_bias", dict.fromkeys(range(MOST_EDITS + 1), 1.0)),
        ("bad_words_ids", [[1] * (MOST_EDITS + 2)]),
    ):
        assert not row_edits(RowSampling(**{field: value}), num_prompt=1, vocab_size=9999).fits
    assert row_edits(RowSampling(allowed_token_ids=list(range(9999))), num_prompt=1, vocab_size=9999).fits
    assert NO_EDITS.empty
    assert row_edits(RowSampling(stop_token_ids=[1]), num_prompt=1, vocab_size=9).empty  # no min_tokens
    endless = row_edits(RowSampling(stop_token_ids=[1], min_tokens=2**40), num_prompt=1, vocab_size=9)
    assert endless.edits[2].tolist() == [2**31 - 1]


def test_nothing_to_do() -> None:
    empty = torch.zeros(0, dtype=torch.int32, device=DEVICE)
    nothing = SimpleNamespace(floats=torch.zeros(1, 6), integers=torch.zeros(1, 6), tokens=torch.zeros(1, 2))
    edit(torch.zeros(0, 9, device=DEVICE), empty, empty, nothing, EditTables(1, 9, DEVICE), torch.zeros(0, 2))

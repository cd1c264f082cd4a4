"""Each sampling parameter, alone and mixed, against a plain NumPy reference; seeds, masks, log probabilities."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch_forward import log_softmax

from octavo.backends.torch.sampling.edits import NO_EDITS
from octavo.backends.torch.sampling.group import FLOATS, Group
from octavo.backends.torch.sampling.kinds import Kind, Kinds
from octavo.backends.torch.sampling.logprobs import ALL, token_logprobs
from octavo.backends.torch.sampling.random import gumbel_noise
from octavo.backends.torch.sampling.sampler import choose_tokens
from octavo.backends.torch.sampling.tables import make_tables
from octavo.base.errors import InputError
from octavo.base.types.plan import RowSampling

VOCAB = 13
CPU = torch.device("cpu")
LOGITS = np.random.default_rng(3).standard_normal(VOCAB) * 2
PROMPT, OUTPUTS = [3, 3, 9, 1], [5, 5, 9, 5, 0]


def group(
    samplings: list[RowSampling], prompts: list[list[int]], outputs: list[list[int]], *, vocab: int = VOCAB
) -> Group:
    known = [prompt + output for prompt, output in zip(prompts, outputs, strict=True)]
    tokens = torch.full((len(known), max(map(len, known)) + 2), 7, dtype=torch.int32)  # 7: stale tokens behind
    for row, ids in enumerate(known):
        tokens[row, : len(ids)] = torch.tensor(ids)
    return Group(
        sampling=samplings,
        tables=[make_tables(each, vocab_size=vocab, device=CPU) for each in samplings],
        num_prompts=[len(prompt) for prompt in prompts],
        positions=[len(ids) for ids in known],
        rows=list(range(len(known))),
        row_ids=torch.arange(len(known)),
        tokens=tokens,
        floats=torch.tensor([[getattr(each, name) for name in FLOATS] for each in samplings]),
        seeds=torch.tensor([each.seed for each in samplings]),
        top_k=torch.tensor([min(each.top_k, vocab) or vocab for each in samplings]),
    )


def chances(logits: np.ndarray, s: RowSampling, prompt: list[int], outputs: list[int]) -> np.ndarray:
    """The reference: probability of each token, in vLLM's order of steps."""
    x = logits.astype(np.float64).copy()
    if s.allowed_token_ids is not None:
        x[[t for t in range(len(x)) if t not in s.allowed_token_ids]] = -np.inf
    for word in s.bad_words_ids:
        if len(word) == 1 or outputs[-(len(word) - 1) :] == word[:-1]:
            x[word[-1]] = -np.inf
    if len(outputs) < s.min_tokens:
        x[s.stop_token_ids] = -np.inf
    for token, bias in s.logit_bias.items():
        x[token] += bias
    for token in set(prompt + outputs):
        x[token] = x[token] / s.repetition_penalty if x[token] > 0 else x[token] * s.repetition_penalty
    for token in set(outputs):
        x[token] -= s.frequency_penalty * outputs.count(token) + s.presence_penalty
    if s.temperature == 0:
        return np.eye(len(x))[x.argmax()]
    p = np.exp(log_softmax(x / s.temperature))
    p[p < s.min_p * p.max()] = 0
    if s.top_k:
        p[p < np.sort(p)[::-1][min(s.top_k, len(p)) - 1]] = 0
    p /= p.sum()
    order = np.argsort(-p, kind="stable")
    kept = np.cumsum(p[order]) - p[order] < s.top_p
    p[order[~kept]] = 0
    return p / p.sum()


PARAMETERS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "plain": {},
    "temperature_low": {"temperature": 0.3},
    "temperature_high": {"temperature": 2.5},
    "top_k": {"top_k": 4},
    "top_k_beyond_the_vocabulary": {"top_k": 1000},
    "top_p": {"top_p": 0.7},
    "top_p_tiny": {"top_p": 1e-6},
    "top_p_that_float32_rounds_to_zero": {"top_p": 1e-46, "allowed_token_ids": [2, 5, 8, 11]},
    "min_p": {"min_p": 0.2},
    "min_p_one": {"min_p": 1.0},
    "repetition": {"repetition_penalty": 1.7},
    "repetition_below_one": {"repetition_penalty": 0.6},
    "frequency": {"frequency_penalty": 0.8},
    "presence": {"presence_penalty": -1.5},
    "logit_bias": {"logit_bias": {2: 3.0, 9: -100.0}},
    "allowed": {"allowed_token_ids": [1, 2, 8]},
    "bad_words": {"bad_words_ids": [[4], [5, 0, 6], [0, 8], [1, 2]]},
    "bad_word_reaches_into_the_prompt": {"bad_words_ids": [[1, 5, 5, 9, 5, 0, 10]]},
    "bad_words_share_a_last_token": {"bad_words_ids": [[9, 11], [5, 0, 11], [3, 11]]},
    "min_tokens": {"min_tokens": 6, "stop_token_ids": [4, 6]},
    "min_tokens_reached": {"min_tokens": 5, "stop_token_ids": [4, 6]},
    "greedy_with_all_masks": {
        "temperature": 0.0,
        "logit_bias": {2: 9.0, 4: 9.0, 6: 9.0},
        "bad_words_ids": [[2]],
        "min_tokens": 9,
        "stop_token_ids": [4],
        "repetition_penalty": 1.3,
    },
    "everything": {
        "temperature": 1.4,
        "top_k": 7,
        "top_p": 0.9,
        "min_p": 0.02,
        "repetition_penalty": 1.2,
        "frequency_penalty": 0.3,
        "presence_penalty": 0.2,
        "logit_bias": {2: 1.0, 5: 2.0, 9: -1.5},
        "bad_words_ids": [[4]],
    },
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_most_likely_token_is_the_references(name: str) -> None:
    """The same parameters, greedy, over 400 rows of logits; one more row with a longer history beside them."""
    sampling = RowSampling(**{**PARAMETERS[name], "temperature": 0.0})
    outputs = [OUTPUTS] * 400 + [OUTPUTS * 2]
    logits = np.random.default_rng(4).standard_normal((401, VOCAB)).astype(np.float32)
    tokens, _ = choose_tokens(torch.from_numpy(logits.copy()), group([sampling] * 401, [PROMPT] * 401, outputs))
    expected = [chances(*row, PROMPT, past) for *row, past in zip(logits, [sampling] * 401, outputs, strict=True)]
    assert tokens.tolist() == [int(row.argmax()) for row in expected]


@pytest.mark.parametrize("name", PARAMETERS)
def test_frequencies_are_the_references(name: str) -> None:
    """1500 rows that differ in their seed only."""
    draws = 1500
    samplings = [RowSampling(**{"temperature": 1.0, **PARAMETERS[name], "seed": seed}) for seed in range(draws)]
    logits = torch.from_numpy(LOGITS).float().repeat(draws, 1)
    tokens, empty = choose_tokens(logits, group(samplings, [PROMPT] * draws, [OUTPUTS] * draws))
    expected = chances(LOGITS, samplings[0], PROMPT, OUTPUTS)
    counts = np.bincount(tokens.numpy(), minlength=VOCAB)
    assert not empty.any()
    assert not counts[expected == 0].any()
    deviation = np.sqrt(draws * expected * (1 - expected))
    assert (abs(counts - draws * expected) <= 4.5 * deviation + 1e-9).all()


def test_mixed_rows_do_not_see_each_other() -> None:
    """All parameter sets in one batch, with other histories: the same tokens as alone."""
    samplings = [
        RowSampling(**{"temperature": 1.0, **each, "seed": i * 17}) for i, each in enumerate(PARAMETERS.values())
    ]
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, VOCAB, 1 + i).tolist() for i in range(len(samplings))]
    outputs = [rng.integers(0, VOCAB, i % 4).tolist() for i in range(len(samplings))]
    logits = torch.from_numpy(rng.standard_normal((len(samplings), VOCAB))).float()
    together, _ = choose_tokens(logits.clone(), group(samplings, prompts, outputs))
    alone = [
        choose_tokens(logits[i : i + 1].clone(), group([s], [prompts[i]], [outputs[i]]))[0].item()
        for i, s in enumerate(samplings)
    ]
    assert together.tolist() == alone
    for i, sampling in enumerate(samplings):
        assert chances(logits[i].numpy(), sampling, prompts[i], outputs[i])[alone[i]] > 0


def test_ties_with_the_kth_stay() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0, 3.0, 0.0]]).repeat(200, 1)
    samplings = [RowSampling(temperature=1.0, top_k=2, seed=seed) for seed in range(200)]
    tokens, _ = choose_tokens(logits, group(samplings, [[1]] * 200, [[]] * 200, vocab=5))
    assert set(tokens.tolist()) == {1, 2, 3}


def test_greedy_rows_need_no_filters() -> None:
    """Their top_k and top_p are the model's defaults, which a request for temperature 0 leaves as they are."""
    kinds = Kinds()
    for row, temperature in enumerate((0.0, 0.6)):
        sampling = RowSampling(temperature=temperature, top_k=20, top_p=0.95, min_p=0.1)
        kinds.add(row, sampling, NO_EDITS, vocab_size=61)
    assert kinds.of([0]) == Kind()
    assert kinds.of([0, 1]) == Kind(filtered=True)


def test_nothing_left_is_told_per_row() -> None:
    impossible = RowSampling(allowed_token_ids=[4], stop_token_ids=[4], min_tokens=3)
    samplings = [impossible, RowSampling(temperature=1.0), RowSampling(temperature=1.0, bad_words_ids=[[2]])]
    logits = torch.from_numpy(LOGITS).float().repeat(3, 1)
    _, empty = choose_tokens(logits, group(samplings, [[1]] * 3, [[]] * 3))
    assert empty.tolist() == [True, False, False]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("allowed_token_ids", [1, VOCAB]),
        ("logit_bias", {99: 1.0}),
        ("bad_words_ids", [[1, 99]]),
        ("logit_bias", {-1: 1.0}),
    ],
)
def test_ids_outside_the_vocabulary(field: str, value: Any) -> None:
    with pytest.raises(InputError, match=field.removesuffix("_ids") + ".* outside the vocabulary of 13"):
        make_tables(RowSampling(**{field: value}), vocab_size=VOCAB, device=CPU)


def test_stop_ids_outside_the_vocabulary_mean_nothing() -> None:
    sampling = RowSampling(stop_token_ids=[99, 4], min_tokens=2, logit_bias={4: 50.0, 2: 40.0})
    tokens, empty = choose_tokens(torch.from_numpy(LOGITS).float()[None], group([sampling], [[1]], [[]]))
    assert (tokens.item(), empty.item()) == (2, False)


def test_noise_is_gumbel_and_uncorrelated() -> None:
    seeds = torch.arange(40).repeat_interleave(25) * 3 - 50  # negative seeds too
    positions = torch.arange(25).repeat(40)
    noise = gumbel_noise(seeds, positions, 200).double()
    assert noise.isfinite().all()
    assert abs(noise.mean() - 0.57722) < 0.01
    assert abs(noise.var() - np.pi**2 / 6) < 0.03
    # P(noise <= x) = exp(-exp(-x))
    for x in (-1.0, 0.0, 1.0, 3.0, 6.0):
        assert abs((noise <= x).double().mean() - np.exp(-np.exp(-x))) < 0.004
    grid = (noise - noise.mean()).view(40, 25, 200)
    for shifted in (grid[1:] * grid[:-1], grid[:, 1:] * grid[:, :-1], grid[..., 1:] * grid[..., :-1]):
        assert abs(shifted.mean()) < 0.02
    assert noise.unique().numel() > 0.99 * noise.numel()


def test_noise_depends_on_seed_and_position_alone() -> None:
    many = gumbel_noise(torch.tensor([5, 6, 5]), torch.tensor([8, 8, 9]), 50)
    assert torch.equal(many[0], gumbel_noise(torch.tensor([5]), torch.tensor([8]), 50)[0])
    assert torch.equal(many[0, :20], gumbel_noise(torch.tensor([5]), torch.tensor([8]), 20)[0])
    assert not torch.equal(many[0], many[1])
    assert not torch.equal(many[0], many[2])


@pytest.mark.parametrize("count", [0, 1, 5, VOCAB, 40, ALL])
def test_logprobs(count: int) -> None:
    logits = np.random.default_rng(1).standard_normal((6, VOCAB)) * 3
    chosen = [0, 12, 5, 5, 7, int(logits[5].argmax())]
    entries = token_logprobs(torch.from_numpy(logits).float(), torch.tensor(chosen), count).entries()
    expected = log_softmax(logits)
    for row, (token, entry) in enumerate(zip(chosen, entries, strict=True)):
        best = np.argsort(-expected[row], kind="stable")[: VOCAB if count == ALL else count].tolist()
        assert entry.token_ids == [token, *best]
        np.testing.assert_allclose(entry.logprobs, expected[row][entry.token_ids], rtol=0, atol=1e-5)
        assert entry.rank == 1 + (expected[row] > expected[row][token]).sum()
    assert entries[-1].rank == 1

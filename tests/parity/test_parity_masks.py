"""Masks given step by step, on every backend: tokens and log probabilities as with allowed_token_ids of that step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from checkpoints import VOCAB_SIZE, prompt
from parity.drive import PROGRAMS, Drive, Seq, load_checkpoint, make_backend

from octavo.base.types.plan import RowSampling

WAYS: list[dict[str, Any]] = [
    {},
    {"logprobs": 3},
    {"temperature": 1.0, "seed": 5, "top_p": 0.9, "logprobs": -1},
    {"logprobs": 1, "prompt_logprobs": 2},
    {"repetition_penalty": 1.3, "logit_bias": {9: 3.0}, "bad_words_ids": [[11]]},
]
STEPS = 6


@pytest.fixture(scope="module", params=PROGRAMS)
def drive(request: pytest.FixtureRequest, checkpoint: Callable[[str], Path]) -> Iterator[Drive]:
    backend = make_backend(
        request.param, max_num_seqs=7, max_model_len=64, max_num_batched_tokens=64, block_size=8, threads=1
    )
    load_checkpoint(backend, checkpoint("llama"))
    backend.allocate(64)
    yield Drive(backend, num_blocks=64, block_size=8, num_rows=7)
    backend.close()


def allowed(step: int, row: int) -> list[int]:
    return [token for token in range(VOCAB_SIZE) if (token * 31 + row) % 17 % 5 == step % 5]


def test_masked_rows_beside_free_ones(drive: Drive) -> None:
    masked = [drive.add(prompt(7, seed=i), RowSampling(masked=True, **way)) for i, way in enumerate(WAYS)]
    free = drive.add(prompt(9, seed=50), RowSampling(logprobs=0))
    drive.launch([*((seq, seq.left) for seq in masked), (free, 4)], {s: allowed(0, i) for i, s in enumerate(masked)})
    drive.collect()
    for step in range(1, STEPS):
        shares = [(free, free.left), *((seq, 1) for seq in masked)]
        drive.launch(shares, {seq: allowed(step, i) for i, seq in enumerate(masked)})
        result = drive.collect()
        assert not result.failed
    for seq in (*masked, free):
        drive.end(seq)
    assert sorted(masked[3].prompt) == list(range(1, 7))
    for row, (seq, way) in enumerate(zip(masked, WAYS, strict=True)):
        for step, token in enumerate(seq.outputs):
            assert same_step(drive, seq, way, step, row) == token

    # what the free row got is what it gets alone
    alone = drive.add(prompt(9, seed=50), RowSampling(logprobs=0))
    drive.prefill(alone)
    drive.decode(alone, steps=STEPS - 2)
    drive.end(alone)
    assert alone.outputs == free.outputs


def same_step(drive: Drive, seq: Seq, way: dict[str, Any], step: int, row: int) -> int | None:
    """The token of that step, drawn with a list of tokens in place of the mask; log probabilities are compared."""
    sampling = RowSampling(allowed_token_ids=allowed(step, row), **way)
    known = [token for token in seq.tokens[: seq.num_prompt + step] if token is not None]
    other = drive.add(known, sampling)
    other.num_prompt = seq.num_prompt
    drive.step([(other, len(known))])
    drive.end(other)
    assert seq.failed is None
    assert other.failed is None
    mine, theirs = seq.sampled.get(len(known)), other.sampled.get(len(known))
    assert (mine is None) == (theirs is None) == ("logprobs" not in way)
    if mine is not None and theirs is not None:
        assert mine.token_ids == theirs.token_ids
        assert mine.logprobs == pytest.approx(theirs.logprobs, abs=1e-4)
    return other.tokens[-1]


def test_a_row_without_its_mask_fails_alone(drive: Drive) -> None:
    """Left out, or all of them late: when the next step is begun, or this one finished."""
    sampling = RowSampling(masked=True)
    for late in ("left out", "begin", "finish"):
        first, second = drive.add(prompt(5, seed=1), sampling), drive.add(prompt(5, seed=2), sampling)
        free = drive.add(prompt(5, seed=3), RowSampling())
        drive.launch([(first, 5), (second, 5), (free, 5)], {second: [40, 41]} if late == "left out" else None)
        if late == "begin":
            drive.launch([(free, 1)])
        result = drive.collect()
        assert first.row in result.failed
        assert "mask is missing" in result.failed[first.row]
        assert (second.row in result.failed) == (late != "left out")
        assert free.row not in result.failed
        if late == "left out":
            assert second.tokens[-1] in (40, 41)
        if late == "begin":
            assert not drive.collect().failed
        for seq in (first, second, free):
            drive.end(seq)


def test_a_mask_that_allows_nothing_fails_its_row(drive: Drive) -> None:
    seq, free = drive.add(prompt(5, seed=1), RowSampling(masked=True)), drive.add(prompt(5, seed=3), RowSampling())
    drive.launch([(seq, 5), (free, 5)], {seq: []})
    assert list(drive.collect().failed) == [seq.row]
    drive.end(seq)
    drive.end(free)


def test_a_mask_where_none_is_waited_for_is_refused(drive: Drive) -> None:
    with pytest.raises(RuntimeError, match="no step waits"):
        drive.backend.mask({})

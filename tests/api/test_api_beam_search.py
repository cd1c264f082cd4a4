"""LLM.beam_search beside Transformers' own, and beside a search written out plainly over Transformers' logits."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
import torch

from octavo import LLM, BeamSearchParams
from octavo.base.errors import InputError

SIZES = {"max_num_seqs": 8, "kv_cache_memory_bytes": 4 << 20, "device": "cpu", "threads": 1}
EXACT = {"dtype": "float32", "activation_dtype": "float32"}
ENDS = [*range(2, 300, 16)]  # a random model comes to one of so many
PROMPTS = [checkpoints.prompt(length, seed=length) for length in (1, 7, 40)]


@pytest.fixture(scope="module")
def folder(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model with many ends of text."""
    made, source = tmp_path_factory.mktemp("beams"), checkpoint("llama")
    for file in source.iterdir():
        (made / file.name).write_bytes(file.read_bytes())
    (made / "generation_config.json").write_text(json.dumps({"eos_token_id": ENDS, "bos_token_id": 1}))
    return made


@pytest.fixture(scope="module")
def searcher(folder: Path) -> Iterator[LLM]:
    with LLM(str(folder), **SIZES, **EXACT) as llm:
        yield llm


def theirs(folder: Path, ids: list[int], width: int, steps: int, **options: Any) -> tuple[list[list[int]], list[float]]:
    """Transformers' beams: tokens and scores."""
    model = checkpoints.hf_model(folder)
    config = type(model.generation_config)(
        num_beams=width,
        num_return_sequences=width,
        max_new_tokens=steps,
        do_sample=False,
        early_stopping="never",
        return_dict_in_generate=True,
        output_scores=True,
        pad_token_id=0,
        **options,
    )
    model.generation_config = config  # what a config leaves out is filled in from here
    with torch.no_grad():
        made = model.generate(torch.tensor([ids]), generation_config=config)
    rows = made.sequences.tolist()
    if config.eos_token_id is not None:  # behind an end of text there is padding
        ends = [
            next((at + 1 for at, token in enumerate(row) if at >= len(ids) and token in ENDS), None) for row in rows
        ]
        rows = [row[:end] for row, end in zip(rows, ends, strict=True)]
    return rows, made.sequences_scores.tolist()


def plain(folder: Path, ids: list[int], params: BeamSearchParams) -> list[tuple[float, list[int]]]:
    """Every step to the last one, without an early end: (score, tokens), the best first."""
    model, width = checkpoints.hf_model(folder), params.beam_width
    live: list[tuple[float, list[int]]] = [(0.0, ids)]
    ended: list[tuple[float, list[int]]] = []
    for _ in range(params.max_tokens):
        found: list[tuple[float, list[int]]] = []
        for sum_, tokens in live:
            logits = checkpoints.logits_of(model, tokens)[-1].astype(np.float64)
            logprobs = logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
            for token in np.argsort(-logprobs)[: 2 * width].tolist():
                ends = token in ENDS and not params.ignore_eos
                (ended if ends else found).append((sum_ + float(logprobs[token]), [*tokens, token]))
        live = sorted(found, reverse=True)[:width]
    scored = [(sum_ / (len(tokens) - 1) ** params.length_penalty, tokens) for sum_, tokens in ended]
    scored += [(sum_ / len(tokens) ** params.length_penalty, tokens) for sum_, tokens in live]
    return sorted(scored, reverse=True)[:width]


@pytest.mark.parametrize("width", [2, 3, 8])
def test_beams_are_transformers_own(searcher: LLM, folder: Path, width: int) -> None:
    outputs = searcher.beam_search(PROMPTS, BeamSearchParams(width, 9, ignore_eos=True, length_penalty=0.0))
    for ids, output in zip(PROMPTS, outputs, strict=True):
        tokens, scores = theirs(folder, ids, width, 9, length_penalty=0.0, eos_token_id=None)
        assert [beam.tokens for beam in output.sequences] == tokens
        assert [beam.cum_logprob for beam in output.sequences] == pytest.approx(scores, abs=2e-4)
        assert {beam.finish_reason for beam in output.sequences} == {"length"}


def test_the_best_that_ends_is_transformers_own_or_better(searcher: LLM, folder: Path) -> None:
    """Transformers drops an end of text that a step ranks below the beam width; vLLM and this keep it."""
    prompts, same = [checkpoints.prompt(5, seed=seed) for seed in range(8)], []
    for ids, output in zip(
        prompts, searcher.beam_search(prompts, BeamSearchParams(3, 9, length_penalty=0)), strict=True
    ):
        tokens, scores = theirs(folder, ids, 3, 9, length_penalty=0.0, eos_token_id=ENDS)
        best = output.sequences[0]
        assert best.cum_logprob >= scores[0] - 2e-4
        if best.tokens == tokens[0]:
            assert best.cum_logprob == pytest.approx(scores[0], abs=2e-4)
            same.append(best.finish_reason)
    assert {"stop"} <= set(same)


@pytest.mark.parametrize("penalty", [-1.0, 0.0, 1.0, 3.0])
def test_an_early_end_changes_nothing(searcher: LLM, folder: Path, penalty: float) -> None:
    params = BeamSearchParams(4, 10, length_penalty=penalty)
    for ids, output in zip(PROMPTS, searcher.beam_search(PROMPTS, params), strict=True):
        expected = plain(folder, ids, params)
        assert [beam.tokens for beam in output.sequences] == [tokens for _, tokens in expected]
        for beam, (score, tokens) in zip(output.sequences, expected, strict=True):
            assert beam.score(penalty) == pytest.approx(score, abs=2e-4)
            assert beam.stop_reason == (tokens[-1] if tokens[-1] in ENDS else None)
            chosen = [table[token].logprob for table, token in zip(beam.logprobs, tokens[len(ids) :], strict=True)]
            assert sum(chosen) == pytest.approx(beam.cum_logprob)


def test_texts_and_what_they_show_of_the_end(searcher: LLM) -> None:
    decode = searcher.get_tokenizer().decode
    (hidden,) = searcher.beam_search("The quick", BeamSearchParams(4, 8))
    (shown,) = searcher.beam_search({"prompt": "The quick"}, BeamSearchParams(4, 8, include_stop_str_in_output=True))
    assert [beam.tokens for beam in hidden.sequences] == [beam.tokens for beam in shown.sequences]
    assert any(beam.finish_reason == "stop" for beam in shown.sequences)
    for one, other in zip(hidden.sequences, shown.sequences, strict=True):
        assert other.text == decode(other.tokens, skip_special_tokens=False)
        cut = one.tokens[:-1] if one.finish_reason == "stop" else one.tokens
        assert one.text == decode(cut, skip_special_tokens=False)


def test_many_prompts_alone_and_together(searcher: LLM) -> None:
    params = BeamSearchParams(2, 6)
    together = searcher.beam_search(PROMPTS, params)
    assert searcher.beam_search(PROMPTS, params, concurrency_limit=1) == together
    assert [searcher.beam_search([ids], params)[0] for ids in PROMPTS] == together
    assert searcher.beam_search([], params) == []


def test_the_context_ends_it(searcher: LLM) -> None:
    (output,) = searcher.beam_search([checkpoints.prompt(252)], BeamSearchParams(2, 50, ignore_eos=True))
    assert {len(beam.tokens) for beam in output.sequences} == {256}


def test_one_failure_fails_its_own_prompt(searcher: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    executor = searcher._engine.executor  # type: ignore[union-attr]
    begin, finish, rows, failed = executor.begin, executor.finish, [], []

    def recording(plan: Any) -> None:
        rows[:] = [row.row for row in plan.rows]
        begin(plan)

    def failing() -> Any:
        result = finish()
        if not failed and len(result.tokens) == 6:
            failed.append(rows[0])
            result.failed[rows[0]] = "logits are not finite"
        return result

    expected = searcher.beam_search(PROMPTS, BeamSearchParams(2, 5))
    monkeypatch.setattr(executor, "begin", recording)
    monkeypatch.setattr(executor, "finish", failing)
    outputs = searcher.beam_search(PROMPTS, BeamSearchParams(2, 5))
    errors = [output for output in outputs if output.error is not None]
    assert len(errors) == 1
    assert "not finite" in (errors[0].error or "")
    assert errors[0].sequences == []
    assert [output for output in outputs if output.error is None] == [
        one for one, output in zip(expected, outputs, strict=True) if output.error is None
    ]


def test_a_drawn_token_joins_the_candidates(searcher: LLM) -> None:
    (output,) = searcher.beam_search([PROMPTS[1]], BeamSearchParams(1, 12, ignore_eos=True, temperature=100.0))
    sizes = {len(table) for table in output.sequences[0].logprobs}
    assert sizes <= {2, 3}
    assert 3 in sizes


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ((0, 5), "beam_width"),
        ((129, 5), "beam_width"),
        ((True, 5), "beam_width"),
        ((2, 0), "max_tokens"),
        ((2, 5, "no"), "ignore_eos"),
        ((2, 5, False, -1.0), "temperature"),
        ((2, 5, False, 0.0, float("nan")), "length_penalty"),
        ((2, 5, False, 0.0, 21), "length_penalty"),
    ],
)
def test_bad_params(values: tuple[Any, ...], field: str) -> None:
    with pytest.raises(InputError) as caught:
        BeamSearchParams(*values)
    assert caught.value.param == field


def test_what_cannot_be_searched(searcher: LLM) -> None:
    with pytest.raises(InputError, match=r"beam_width=11 needs 22 .* at most 20"):
        searcher.beam_search("x", BeamSearchParams(11, 5))
    with pytest.raises(InputError, match="BeamSearchParams, got dict"):
        searcher.beam_search("x", {"beam_width": 2})  # type: ignore[arg-type]
    with pytest.raises(InputError, match="concurrency_limit"):
        searcher.beam_search("x", BeamSearchParams(2, 5), concurrency_limit=0)


def test_the_bar_counts_tokens(searcher: LLM, capsys: pytest.CaptureFixture[str]) -> None:
    searcher.beam_search([[5, 6, 7]], BeamSearchParams(2, 5, ignore_eos=True), use_tqdm=True)
    shown = capsys.readouterr().err
    assert "output: " in shown
    assert "output: 0.00" not in shown

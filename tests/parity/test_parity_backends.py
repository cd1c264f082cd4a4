"""Every backend against Transformers on every case: chunked prompts, decoding, mixed batches, block tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from checkpoints import CASES, hf_logits, prompt
from parity.drive import BACKENDS, EVERYTHING, PROGRAMS, Drive, Seq, check_against, load_checkpoint, make_backend

from octavo.base.types.plan import RowSampling

BLOCK_SIZE, NUM_BLOCKS, NUM_ROWS = 8, 64, 6
WINDOWED = ["mistral", "qwen2_window", "gemma3_text"]  # a window of 8 tokens


@pytest.fixture(scope="module", params=[(b, c) for b in PROGRAMS for c in CASES], ids=lambda p: f"{p[0]}-{p[1]}")
def model(request: pytest.FixtureRequest, checkpoint: Callable[[str], Path]) -> Iterator[tuple[Drive, Path]]:
    """A backend with a case's checkpoint; its tests follow each other in the same rows and blocks."""
    name, case = request.param
    backend = make_backend(
        name, max_num_seqs=NUM_ROWS, max_model_len=256, max_num_batched_tokens=256, block_size=BLOCK_SIZE, threads=1
    )
    folder = checkpoint(case)
    load_checkpoint(backend, folder)
    backend.allocate(NUM_BLOCKS)
    yield Drive(backend, num_blocks=NUM_BLOCKS, block_size=BLOCK_SIZE, num_rows=NUM_ROWS), folder
    backend.close()


def check(folder: Path, *seqs: Seq) -> None:
    for seq in seqs:
        check_against(seq, hf_logits(folder, seq.tokens))


def test_whole_prompt_then_decode(model: tuple[Drive, Path]) -> None:
    drive, folder = model
    seq = drive.add(prompt(75, seed=1))  # past the original context of the scaled ropes
    drive.prefill(seq)
    drive.decode(seq, steps=20)
    drive.end(seq)
    check(folder, seq)


@pytest.mark.parametrize("chunk", [1, 3, 7])
def test_chunked_prompt(model: tuple[Drive, Path], chunk: int) -> None:
    drive, folder = model
    drive.shuffle(chunk)
    seq = drive.add(prompt(26, seed=chunk))
    drive.prefill(seq, chunk=chunk)
    drive.decode(seq, steps=3)
    drive.end(seq)
    check(folder, seq)


@pytest.mark.parametrize("asked", [EVERYTHING, RowSampling(logprobs=-1)], ids=["everything", "outputs alone"])
def test_mixed_batch(model: tuple[Drive, Path], asked: RowSampling) -> None:
    """Rows that decode, rows that begin and rows in mid-prompt share steps; rows and shuffled blocks are used again."""
    drive, folder = model
    drive.shuffle(7)
    first, second = drive.add(prompt(9, seed=11), asked), drive.add(prompt(30, seed=12), asked)
    drive.step([(first, 9), (second, 5)])
    drive.step([(second, 11), (first, 1)])
    third = drive.add(prompt(1, seed=13), asked)
    drive.step([(first, 1), (third, 1), (second, 14)])
    drive.decode(third, second, first, steps=4)
    drive.end(second)
    drive.decode(first, third, steps=2)
    fourth = drive.add(prompt(17, seed=14), asked)
    assert fourth.row == second.row
    drive.step([(third, 1), (fourth, 17), (first, 1)])
    drive.decode(first, third, fourth, steps=9)
    check(folder, first, second, third, fourth)
    for seq in (first, third, fourth):
        drive.end(seq)


def test_copied_blocks(model: tuple[Drive, Path]) -> None:
    """A fork shares whole blocks, owns a copy of the last, and neither disturbs the other; a block may be replaced."""
    drive, folder = model
    drive.shuffle(3)
    seq = drive.add(prompt(21, seed=21))
    drive.prefill(seq)
    fork = drive.fork(seq, RowSampling(logprobs=-1, logit_bias={5: 100.0}))
    drive.step([(fork, fork.left), (seq, 1)])
    drive.decode(fork, seq, steps=2)
    drive.move(seq, 1)
    drive.decode(seq, fork, steps=3)
    assert fork.tokens[22:] == [5] * 6
    fork.prompt, fork.sampled = dict(seq.prompt), {21: seq.sampled[21], **fork.sampled}
    check(folder, seq)
    reference = hf_logits(folder, fork.tokens)
    fork.num_prompt = len(fork.tokens)  # biased tokens are not the most likely ones
    check_against(fork, reference)
    drive.end(seq)
    drive.end(fork, shared=2)


def test_one_step_ahead(model: tuple[Drive, Path]) -> None:
    """A step begun before the one before it is finished runs the token that only the backend knows."""
    drive, folder = model
    drive.shuffle(5)
    seqs = [drive.add(prompt(length, seed=length)) for length in (12, 3)]
    drive.launch([(seq, seq.left) for seq in seqs])
    for _ in range(8):
        drive.launch([(seq, 1) for seq in seqs])
        drive.collect()
    drive.collect()
    check(folder, *seqs)
    for seq in seqs:
        drive.end(seq)


def test_resumed_sequence(model: tuple[Drive, Path]) -> None:
    """Preempted and begun again with its outputs: the same tokens follow, prompt logprobs stop at the prompt's end."""
    drive, folder = model
    seq = drive.add(prompt(11, seed=31))
    drive.prefill(seq)
    drive.decode(seq, steps=6)
    drive.end(seq)
    drive.shuffle(9)
    again = drive.add(seq.tokens[:14])
    again.num_prompt = 11
    drive.step([(again, 6)])
    drive.step([(again, 8)])
    drive.decode(again, steps=3)
    assert again.tokens == seq.tokens
    assert sorted(again.prompt) == list(range(1, 11))
    again.sampled = {**seq.sampled, **again.sampled}
    check(folder, again)
    drive.end(again)


@pytest.mark.parametrize("case", WINDOWED)
@pytest.mark.parametrize("name", BACKENDS)
def test_window_is_crossed_everywhere(name: str, case: str, checkpoint: Callable[[str], Path]) -> None:
    """Chunks that start before, at and after the window's edge, in blocks larger than the window."""
    backend = make_backend(
        name, max_num_seqs=2, max_model_len=128, max_num_batched_tokens=128, block_size=16, threads=1
    )
    folder = checkpoint(case)
    load_checkpoint(backend, folder)
    backend.allocate(12)
    for chunk in (8, 9, 16, 40):
        drive = Drive(backend, num_blocks=12, block_size=16, num_rows=2)
        seq, other = drive.add(prompt(41, seed=chunk)), drive.add(prompt(6, seed=chunk), EVERYTHING)
        drive.prefill(seq, other, chunk=chunk)
        drive.decode(other, seq, steps=9)
        check(folder, seq, other)
    backend.close()

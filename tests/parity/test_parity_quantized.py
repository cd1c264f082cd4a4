"""Quantized checkpoints on every backend against Transformers on the numbers that they hold."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoints import hf_logits, prompt
from parity.drive import EVERYTHING, PROGRAMS, Drive, check_against, load_checkpoint, make_backend
from quantized_checkpoints import FORMATS, INT4_FORMATS, INT8_FORMATS, quantize_folder

CASES = [("llama", name) for name in (*FORMATS, *INT4_FORMATS, *INT8_FORMATS)]
CASES += [
    ("llama_bias", "fp8_block"),
    ("qwen3_moe", "compressed_channel"),
    ("qwen3_moe", "gptq_shuffled"),
    ("qwen3_moe", "int8_channel"),
]


@pytest.fixture(scope="module", params=CASES, ids=lambda p: "-".join(p))
def folders(
    request: pytest.FixtureRequest, checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    case, name = request.param
    return quantize_folder(checkpoint(case), name, tmp_path_factory.mktemp(f"{case}-{name}"))


@pytest.mark.parametrize("name", PROGRAMS)
def test_logits(folders: tuple[Path, Path], name: str) -> None:
    quantized, plain = folders
    backend = make_backend(name, max_num_seqs=2, max_model_len=128, max_num_batched_tokens=128, block_size=8, threads=1)
    load_checkpoint(backend, quantized)
    backend.allocate(32)
    drive = Drive(backend, num_blocks=32, block_size=8, num_rows=2)
    seq = drive.add(prompt(21, seed=3), sampling=EVERYTHING)
    drive.prefill(seq, chunk=13)
    drive.decode(seq, steps=4)
    check_against(seq, hf_logits(plain, seq.tokens))
    backend.close()

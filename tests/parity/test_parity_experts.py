"""Quantized GGUF files with experts, run by every backend, against the reference forward pass on the same numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import weight_files as make
from models import reference_forward
from parity.drive import PROGRAMS, Drive, check_against, load_checkpoint, make_backend

from octavo.models.registry import find_family
from octavo.quant import dequantize
from octavo.weights.checkpoint import open_checkpoint
from octavo.weights.names import map_names


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
@pytest.mark.parametrize("arch", ["llama", "qwen2moe", "qwen3moe"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_gguf_with_experts(tmp_path: Path, name: str, arch: str, kind: str) -> None:
    path = tmp_path / "m.gguf"
    make.write_experts_gguf(path, arch, kind=kind)
    checkpoint = open_checkpoint(path)
    family = find_family(checkpoint.config)
    spec = family.spec(checkpoint.config)
    shapes = {key: parameter.shape for key, parameter in spec.parameters().items()}
    weights = {key: dequantize(t) for key, t in map_names(checkpoint, family.names(spec), shapes).items()}

    backend = make_backend(
        name, max_num_seqs=3, max_model_len=128, max_num_batched_tokens=128, block_size=16, threads=2
    )
    load_checkpoint(backend, path)
    backend.allocate(16)
    drive = Drive(backend, num_blocks=16, block_size=16, num_rows=3)
    rng = np.random.default_rng(0)
    seqs = [drive.add(rng.integers(0, make.VOCAB, length).tolist()) for length in (40, 3, 17)]
    drive.prefill(*seqs, chunk=11)
    drive.decode(*seqs, steps=4)
    backend.close()
    for seq in seqs:
        check_against(seq, reference_forward.forward(spec, weights, seq.tokens))

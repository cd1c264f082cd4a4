"""A seed gives the same tokens on every backend, whatever the filters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from checkpoints import prompt
from parity.drive import PROGRAMS, Drive, load_checkpoint, make_backend

from octavo.base.types.plan import RowSampling

FILTERS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.4},
    {"top_k": 20},
    {"top_p": 0.9},
    {"min_p": 0.1},
    {"temperature": 1.4, "top_k": 60, "top_p": 0.8, "min_p": 0.01},
    {"logit_bias": {3: 2.0}, "repetition_penalty": 1.2, "presence_penalty": 0.3},
    {"seed": -1},
    {"seed": 2**63 - 1},
]
STEPS = 30


def outputs(name: str, folder: Path) -> list[list[int | None]]:
    backend = make_backend(
        name, max_num_seqs=len(FILTERS), max_model_len=64, max_num_batched_tokens=128, block_size=8, threads=1
    )
    load_checkpoint(backend, folder)
    backend.allocate(64)
    drive = Drive(backend, num_blocks=64, block_size=8, num_rows=len(FILTERS))
    seqs = [
        drive.add(prompt(9, seed=n), RowSampling(**{"temperature": 1.0, "seed": n, **fields}))
        for n, fields in enumerate(FILTERS)
    ]
    drive.prefill(*seqs)
    drive.decode(*seqs, steps=STEPS)
    backend.close()
    return [seq.outputs for seq in seqs]


def test_the_same_tokens_everywhere(checkpoint: Callable[[str], Path]) -> None:
    found = {name: outputs(name, checkpoint("llama")) for name in PROGRAMS}
    assert all(len(set(tokens)) > 3 for tokens in found["cpu"])
    for name in PROGRAMS:
        assert found[name] == found["cpu"], name

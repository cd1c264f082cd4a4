"""Names that older and newer checkpoints give to the same weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import weight_files as make

from octavo.weights.checkpoint import open_checkpoint
from octavo.weights.names import map_names


@pytest.mark.parametrize(
    ("asked", "stored"),
    [
        ("language_model.model.norm.weight", "model.language_model.norm.weight"),
        ("language_model.lm_head.weight", "lm_head.weight"),
        ("bert.embeddings.LayerNorm.weight", "bert.embeddings.LayerNorm.gamma"),
        ("bert.embeddings.LayerNorm.bias", "bert.embeddings.LayerNorm.beta"),
        ("bert.embeddings.LayerNorm.bias", "embeddings.LayerNorm.beta"),
        ("model.norm.weight", "norm.weight"),
    ],
)
def test_another_name_is_found(tmp_path: Path, asked: str, stored: str) -> None:
    make.write_config(tmp_path)
    raw = np.arange(4, dtype="<f4").tobytes()
    (tmp_path / "model.safetensors").write_bytes(make.safetensors_bytes({stored: ("F32", (4,), raw)}))
    found = map_names(open_checkpoint(tmp_path), {"w": asked}, {"w": (4,)})["w"]
    assert (found.name, bytes(found.data)) == (stored, raw)

"""What becomes of a prompt's states on a CPU, where NumPy would warn."""

from __future__ import annotations

import warnings

import numpy as np

from octavo.backends.cpu.pooling import Pooler
from octavo.base.types.pooling import RowPooling
from octavo.base.types.tensor import SCHEMES, StoredTensor
from octavo.models.spec import Dense, Pooling


def test_a_score_far_from_zero_is_no_warning() -> None:
    weights = np.array([[-300.0], [0.0], [300.0], [-11.0]], np.float32)
    stored = {
        "classifier": StoredTensor("c", SCHEMES["F32"], weights.shape, memoryview(weights.tobytes())),
        "dense.0": StoredTensor("d", SCHEMES["F32"], (1, 1), memoryview(np.full(1, 500, np.float32).tobytes())),
    }
    pooling = Pooling("last", labels=4, activation="sigmoid", dense=(Dense(1, "sigmoid", bias=False),))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = Pooler(pooling, stored)(np.ones((1, 1), np.float32), RowPooling(activate=True))
    np.testing.assert_allclose(scores, [0, 0.5, 1, 1 / (1 + np.exp(11.0))], rtol=1e-5, atol=1e-37)

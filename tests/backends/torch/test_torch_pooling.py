"""Pooling of all a step's rows at once: the vectors of the cpu backend's Pooler, whatever is beside; one download."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from octavo.backends.cpu.pooling import Pooler
from octavo.backends.torch.device.transfer import Download
from octavo.backends.torch.pooling import Span, Vectors, pool
from octavo.base.types.pooling import RowPooling
from octavo.models.spec import Dense, Pooling

HIDDEN, LABELS = 48, 5
TANH = (Dense(HIDDEN, "tanh"),)
COUNTS = (3, 1, 17, 8)
CPU = torch.device("cpu")


def weights(pooling: Pooling) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    shapes: dict[str, tuple[int, ...]] = {}
    for i, dense in enumerate(pooling.dense):
        shapes |= {f"dense.{i}": (dense.width, HIDDEN), f"dense.{i}_bias": (dense.width,)}
    shapes |= {"classifier": (LABELS, HIDDEN)} if pooling.labels else {}
    shapes |= {"classifier_bias": (LABELS,)} if pooling.label_bias else {}
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


POOLINGS = [
    *(Pooling(kind) for kind in ("cls", "mean", "last")),
    *(Pooling("cls", dense=TANH, labels=LABELS, label_bias=True, activation=name) for name in ("softmax", "sigmoid")),
    Pooling("last", labels=LABELS, activation="identity"),
]


@pytest.mark.parametrize("pooling", POOLINGS, ids=str)
def test_rows_together_are_the_rows_alone(pooling: Pooling, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(11)
    states = rng.standard_normal((sum(COUNTS) + 6, HIDDEN), np.float32)  # six of a row that failed before
    spans = [Span(row, 6 + sum(COUNTS[:row]), count) for row, count in enumerate(COUNTS)]
    held = weights(pooling)
    pooler = Pooler.__new__(Pooler)
    pooler._pooling, pooler._weights = pooling, held
    tensors = {name: torch.from_numpy(array) for name, array in held.items()}
    vectors, copies = Vectors(), []
    monkeypatch.setattr(Download, "add", lambda self, tensor: copies.append(tensor) or tensor)
    kinds = [RowPooling(), RowPooling(activate=False)]
    kinds += [] if pooling.labels else [RowPooling(tokens=True), RowPooling(dimensions=7)]
    shares = [spans[:3], spans[3:]] if len(kinds) == 2 else [[span] for span in spans]
    asked = dict(zip(kinds, shares, strict=True))
    for one, some in asked.items():
        vectors.add(some, one, pool(torch.from_numpy(states), some, pooling, tensors, one))
    vectors.send(Download(CPU))
    assert len(copies) == 1
    found = dict(vectors.read())
    assert sorted(found) == [span.row for span in spans]
    for one, some in asked.items():
        for span in some:
            expected = pooler(states[span.first : span.first + span.count], one)
            np.testing.assert_allclose(found[span.row].reshape(expected.shape), expected, rtol=2e-5, atol=2e-6)


def test_a_row_that_is_not_finite_is_alone_with_it() -> None:
    states = torch.randn(sum(COUNTS), HIDDEN)
    states[COUNTS[0]] = torch.nan
    firsts = itertools.accumulate(COUNTS[:-1], initial=0)
    spans = [Span(row, first, count) for row, (first, count) in enumerate(zip(firsts, COUNTS, strict=True))]
    made = pool(states, spans, Pooling("mean"), {}, RowPooling())
    assert made.isfinite().all(-1).tolist() == [True, False, True, True]


def test_nothing_to_send() -> None:
    vectors = Vectors()
    vectors.send(Download(CPU))
    assert list(vectors.read()) == []

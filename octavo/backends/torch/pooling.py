"""Final states of a step's prompts in; the vectors that a Pooling makes of them out: all rows at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.backends.torch.device.transfer import Download, upload
from octavo.base.types.pooling import RowPooling
from octavo.models.spec import DenseActivation, Pooling

_DENSE: dict[DenseActivation, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "identity": lambda x: x,
    "relu": F.relu,
    "sigmoid": torch.sigmoid,
    "gelu": F.gelu,
    "silu": F.silu,
}


@dataclass(frozen=True)
class Span:
    """A row's prompt: `count` tokens of the step's states, from `first` on."""

    row: int
    first: int
    count: int


@dataclass
class Vectors:
    """What a step's rows become, float32, one row's numbers after another's. Read them after the download."""

    parts: list[Tensor] = field(default_factory=list)
    rows: list[tuple[int, int]] = field(default_factory=list)
    host: Tensor | None = None

    def add(self, spans: Sequence[Span], asked: RowPooling, made: Tensor) -> None:
        """made: of `pool`, for these spans."""
        self.parts.append(made.flatten())
        self.rows += [(span.row, made.shape[1] * (span.count if asked.tokens else 1)) for span in spans]

    def send(self, download: Download) -> None:
        """All of them in one copy."""
        if self.parts:
            self.host = download.add(torch.cat(self.parts))

    def read(self) -> Iterable[tuple[int, np.ndarray]]:
        """Row and its numbers."""
        if self.host is None:
            return
        first = 0
        for row, size in self.rows:
            yield row, self.host[first : first + size].numpy()
            first += size


def pool(
    states: Tensor, spans: Sequence[Span], pooling: Pooling, weights: Mapping[str, Tensor], asked: RowPooling
) -> Tensor:
    """states [tokens, hidden] -> float32 [spans, width], or with asked.tokens [tokens of the spans, width].

    weights: dense.{i} and classifier with their biases, float32, as far as the pooling has them.
    """
    if asked.tokens:
        return _embedding(_gathered(states, spans).float(), asked)
    vectors = _pooled(states, spans, pooling.kind)
    for i, dense in enumerate(pooling.dense):
        vectors = _DENSE[dense.act](F.linear(vectors, weights[f"dense.{i}"], weights.get(f"dense.{i}_bias")))
    if not pooling.labels:
        return _embedding(vectors, asked)
    logits = F.linear(vectors, weights["classifier"], weights.get("classifier_bias"))
    if not asked.activate or pooling.activation == "identity":
        return logits
    return logits.softmax(-1) if pooling.activation == "softmax" else logits.sigmoid()


def _pooled(states: Tensor, spans: Sequence[Span], kind: str) -> Tensor:
    """float32 [spans, hidden]."""
    if kind == "mean":
        lengths = upload([span.count for span in spans], torch.int64, states.device)
        # unsafe: the check that lengths add up would wait for the device
        return torch.segment_reduce(_gathered(states, spans).float(), "mean", lengths=lengths, unsafe=True)
    places = [span.first + (span.count - 1 if kind == "last" else 0) for span in spans]
    return states[upload(places, torch.int64, states.device)].float()


def _gathered(states: Tensor, spans: Sequence[Span]) -> Tensor:
    """The spans' states, one after the other."""
    if sum(span.count for span in spans) == len(states):
        return states
    places = [place for span in spans for place in range(span.first, span.first + span.count)]
    return states[upload(places, torch.int64, states.device)]


def _embedding(vectors: Tensor, asked: RowPooling) -> Tensor:
    if asked.dimensions:
        vectors = vectors[..., : asked.dimensions]
    return F.normalize(vectors, dim=-1) if asked.activate else vectors

"""A prompt's final states in, the vector that a Pooling makes of them out, on the device."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.base.types.pooling import RowPooling
from octavo.models.spec import Pooling


def pool(states: Tensor, pooling: Pooling, weights: Mapping[str, Tensor], asked: RowPooling) -> Tensor:
    """states [tokens, hidden] -> float32 [width], or [tokens, width] with asked.tokens.

    weights: pooler and classifier with their biases, float32, as far as the pooling has them.
    """
    states = states.float()
    if asked.tokens:
        return _embedding(states, asked)
    vector = {"cls": lambda: states[0], "last": lambda: states[-1], "mean": lambda: states.mean(0)}[pooling.kind]()
    if pooling.dense:
        vector = torch.tanh(F.linear(vector, weights["pooler"], weights["pooler_bias"]))
    if not pooling.labels:
        return _embedding(vector, asked)
    logits = F.linear(vector, weights["classifier"], weights.get("classifier_bias"))
    if not asked.activate or pooling.activation == "identity":
        return logits
    return logits.softmax(-1) if pooling.activation == "softmax" else logits.sigmoid()


def _embedding(vectors: Tensor, asked: RowPooling) -> Tensor:
    if asked.dimensions:
        vectors = vectors[..., : asked.dimensions]
    return F.normalize(vectors, dim=-1) if asked.activate else vectors

"""In: a prompt's final states. Out: the vector that a Pooling makes of them, in NumPy: it is little work."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from octavo.backends.cpu.ops import ACTIVATIONS
from octavo.base.types.pooling import RowPooling
from octavo.base.types.tensor import StoredTensor, Weights
from octavo.models.spec import DenseActivation, Pooling
from octavo.quant import dequantize, dequantize_matrix


def _by_op(name: str) -> Callable[[np.ndarray], np.ndarray]:
    def run(x: np.ndarray) -> np.ndarray:
        out = np.empty_like(x)
        ACTIVATIONS[name](out, x)
        return out

    return run


def _sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + e^-x), where e^-x has no float32, too."""
    out: np.ndarray = np.exp(-np.logaddexp(np.float32(0), -x))
    return out


_DENSE: dict[DenseActivation, Callable[[np.ndarray], np.ndarray]] = {
    "tanh": np.tanh,
    "identity": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "sigmoid": _sigmoid,
    "gelu": _by_op("gelu"),
    "silu": _by_op("silu"),
}


class Pooler:
    """A Pooling with its weights, float32."""

    def __init__(self, pooling: Pooling, weights: Weights) -> None:
        self._pooling = pooling
        names = [f"dense.{i}" for i in range(len(pooling.dense))]
        names += [f"dense.{i}_bias" for i, dense in enumerate(pooling.dense) if dense.bias]
        names += ["classifier"] if pooling.labels else []
        names += ["classifier_bias"] if pooling.label_bias else []
        self._weights = {name: _load(weights, name) for name in names}

    def __call__(self, states: np.ndarray, asked: RowPooling) -> np.ndarray:
        """states [tokens, hidden] -> float32 [width], or [tokens, width] with asked.tokens."""
        if asked.tokens:
            return self._embedding(states, asked)
        vector = _pool(states, self._pooling.kind)
        for i, dense in enumerate(self._pooling.dense):
            vector = self._weights[f"dense.{i}"] @ vector
            if dense.bias:
                vector += self._weights[f"dense.{i}_bias"]
            vector = _DENSE[dense.act](vector)
        if not self._pooling.labels:
            return self._embedding(vector, asked)
        logits = self._weights["classifier"] @ vector
        if self._pooling.label_bias:
            logits += self._weights["classifier_bias"]
        return _activated(logits, self._pooling.activation) if asked.activate else logits

    def _embedding(self, vectors: np.ndarray, asked: RowPooling) -> np.ndarray:
        if asked.dimensions:
            vectors = vectors[..., : asked.dimensions]
        if not asked.activate:
            return vectors
        # a vector of zeros stays one, as in PyTorch's normalize
        lengths = np.maximum(np.sqrt(np.square(vectors, dtype=np.float64).sum(-1, keepdims=True)), 1e-12)
        unit: np.ndarray = (vectors / lengths).astype(np.float32)
        return unit


def _pool(states: np.ndarray, kind: str) -> np.ndarray:
    pooled: np.ndarray = (
        states.mean(axis=0, dtype=np.float64) if kind == "mean" else states[-1 if kind == "last" else 0]
    )
    return pooled.astype(np.float32)


def _activated(logits: np.ndarray, name: str) -> np.ndarray:
    if name == "identity":
        return logits
    p: np.ndarray = np.exp(logits - logits.max()) if name == "softmax" else _sigmoid(logits)
    return p / p.sum() if name == "softmax" else p


def _load(weights: Weights, name: str) -> np.ndarray:
    stored = weights[name]
    whole = dequantize(stored) if isinstance(stored, StoredTensor) else dequantize_matrix(stored)
    return np.ascontiguousarray(whole, np.float32)

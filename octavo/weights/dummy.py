"""Shapes in, random weights out: for timing a model whose files are not there. Each tensor is made when asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from hashlib import blake2b
from typing import Literal

import numpy as np

from octavo.base.types.tensor import SCHEMES, StoredTensor, Weights

STANDARD_DEVIATION = 0.02


def dummy_weights(
    parameters: Mapping[str, tuple[int, ...]], *, seed: int, scheme: Literal["BF16", "F32"] = "BF16"
) -> Weights:
    """Normal weights (deviation 0.02), ones for norms (vectors that are no biases). Equal seeds give equal bytes."""
    return _DummyWeights(dict(parameters), seed, scheme)


class _DummyWeights(Mapping[str, StoredTensor]):
    """Keeps no tensor: what is asked for twice is made twice, equal."""

    def __init__(self, parameters: dict[str, tuple[int, ...]], seed: int, scheme: str) -> None:
        self._parameters, self._seed, self._scheme = parameters, seed, SCHEMES[scheme]

    def __getitem__(self, name: str) -> StoredTensor:
        shape = self._parameters[name]
        if len(shape) == 1 and not name.endswith("_bias"):
            values = np.ones(shape, np.float32)
        else:
            key = int.from_bytes(blake2b(f"{self._seed}/{name}".encode(), digest_size=16).digest(), "little")
            values = np.random.Generator(np.random.PCG64(key)).standard_normal(shape, np.float32)
            values *= STANDARD_DEVIATION
        if self._scheme.name == "BF16":
            values = (values.view(np.uint32) >> 16).astype(np.uint16)
        return StoredTensor(name, self._scheme, shape, memoryview(values.tobytes()))

    def __iter__(self) -> Iterator[str]:
        return iter(self._parameters)

    def __len__(self) -> int:
        return len(self._parameters)

"""Shapes in, random weights out: for timing a model whose files are not there. Each tensor is made when asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from hashlib import blake2b

import numpy as np

from octavo.base.types.tensor import SCHEMES, MatrixScheme, StoredTensor

STANDARD_DEVIATION = 0.02


class DummyWeights(Mapping[str, StoredTensor]):
    """Normal weights in bfloat16 (deviation 0.02), ones for norms (vectors that are no biases). Equal seeds give equal
    bytes.

    Keeps no tensor: what is asked for twice is made twice, equal. A backend may draw the same kind of numbers on its
    device instead, from `shape`, `is_norm` and `key`.

    quantized: matrices by the form that the model's files have them in, for backends that keep it.
    """

    def __init__(
        self,
        parameters: Mapping[str, tuple[int, ...]],
        *,
        seed: int,
        quantized: Mapping[str, MatrixScheme] | None = None,
    ) -> None:
        self._parameters, self._seed = dict(parameters), seed
        self.quantized = dict(quantized or {})

    def __getitem__(self, name: str) -> StoredTensor:
        shape = self.shape(name)
        if self.is_norm(name):
            values = np.ones(shape, np.float32)
        else:
            values = np.random.Generator(np.random.PCG64(self.key(name))).standard_normal(shape, np.float32)
            values *= STANDARD_DEVIATION
        halves = (values.view(np.uint32) >> 16).astype(np.uint16)
        return StoredTensor(name, SCHEMES["BF16"], shape, memoryview(halves.tobytes()))

    def __iter__(self) -> Iterator[str]:
        return iter(self._parameters)

    def __len__(self) -> int:
        return len(self._parameters)

    def __contains__(self, name: object) -> bool:
        return name in self._parameters

    def shape(self, name: str) -> tuple[int, ...]:
        """As the tensor has it."""
        return self._parameters[name]

    def is_norm(self, name: str) -> bool:
        """True if the tensor is all ones."""
        return len(self.shape(name)) == 1 and not name.endswith("_bias")

    def key(self, name: str) -> int:
        """128 bits of the tensor's own, to seed a generator with."""
        return int.from_bytes(blake2b(f"{self._seed}/{name}".encode(), digest_size=16).digest(), "little")

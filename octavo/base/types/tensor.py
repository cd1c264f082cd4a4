"""A stored tensor as data: which number format (Scheme), which shape, which bytes. No arrays here.

weights/ makes StoredTensors from files, quant/ knows how to turn them into numbers, backends keep or convert them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod

from octavo.base.errors import ModelFormatError


@dataclass(frozen=True)
class Scheme:
    """`group` consecutive elements of a row take `group_bytes` bytes. Names are the formats' own."""

    name: str
    group: int
    group_bytes: int


SCHEMES: dict[str, Scheme] = {
    scheme.name: scheme
    for scheme in (
        Scheme("F32", 1, 4),
        Scheme("F16", 1, 2),
        Scheme("BF16", 1, 2),
        Scheme("Q4_0", 32, 18),
        Scheme("Q4_1", 32, 20),
        Scheme("Q5_0", 32, 22),
        Scheme("Q5_1", 32, 24),
        Scheme("Q8_0", 32, 34),
        Scheme("Q2_K", 256, 84),
        Scheme("Q3_K", 256, 110),
        Scheme("Q4_K", 256, 144),
        Scheme("Q5_K", 256, 176),
        Scheme("Q6_K", 256, 210),
        Scheme("IQ4_NL", 32, 18),
    )
}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as it lies in a file: row-major, `shape` outermost first ([out, in] for matrices).

    data: read-only bytes (usually a view of a mapped file). Raises ModelFormatError if they do not fit the shape.
    """

    name: str
    scheme: Scheme
    shape: tuple[int, ...]
    data: memoryview = field(repr=False, compare=False)

    def __post_init__(self) -> None:
        row, group = self.shape[-1] if self.shape else 1, self.scheme.group
        if row % group:
            raise ModelFormatError(
                f"tensor {self.name}: rows of {row} do not split into groups of {group} ({self.scheme.name})"
            )
        expected = prod(self.shape) // self.scheme.group * self.scheme.group_bytes
        if self.data.nbytes != expected:
            raise ModelFormatError(
                f"tensor {self.name}: {list(self.shape)} of {self.scheme.name} takes {expected} bytes, the file has "
                f"{self.data.nbytes}; download it again"
            )

    @property
    def nbytes(self) -> int:
        return self.data.nbytes


Weights = Mapping[str, StoredTensor]
"""Internal name (models.spec.ModelSpec.parameters) -> tensor."""

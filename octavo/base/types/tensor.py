"""A stored tensor as data: which number format (Scheme), which shape, which bytes. No arrays here.

weights/ makes StoredTensors from files, quant/ knows how to turn them into numbers, backends keep or convert them.
A QuantizedTensor is a matrix that a checkpoint keeps in several of them: elements, scales, and what else there is.
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

PART_SCHEMES: dict[str, Scheme] = {
    scheme.name: scheme for scheme in (Scheme("F8_E4M3", 1, 1), Scheme("I8", 1, 1), Scheme("I32", 1, 4))
}
"""Of parts of a QuantizedTensor, which are no numbers of the model's without the other parts."""


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


@dataclass(frozen=True)
class MatrixScheme:
    """How the elements of a matrix [out, in] are stored in several tensors.

    layout: the tensors and how elements lie in them, a key of quant.matrix.MATRICES.  bits: of an element.
    group: rows and columns that share a scale, 0 for all of them: (0, 0) a scale a matrix, (1, 0) one a row,
    (128, 128) one a block.  zeros: a group has a zero point beside its scale.
    """

    layout: str
    bits: int
    group: tuple[int, int]
    zeros: bool = False

    def scale_shape(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Scales down and across for a matrix of this shape."""
        rows, columns = (-(-size // group) if group else 1 for size, group in zip(shape, self.group, strict=True))
        return rows, columns

    def num_bytes(self, shape: tuple[int, ...]) -> int:
        """Of a matrix of this shape in memory, with float32 scales; zero points are as wide as elements."""
        scales = prod(self.scale_shape(shape))
        return (prod(shape) * self.bits + 7) // 8 + scales * 4 + (scales * self.bits // 8 if self.zeros else 0)


@dataclass(frozen=True)
class QuantizedTensor:
    """A matrix in parts. name: of its first part in the file.  shape: [out, in], whatever the parts' own are.

    parts: by the names that the scheme's layout gives them; what is optional there and absent here is left out.
    """

    name: str
    scheme: MatrixScheme
    shape: tuple[int, ...]
    parts: Mapping[str, StoredTensor] = field(repr=False, compare=False)

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts.values())


Weights = Mapping[str, StoredTensor | QuantizedTensor]
"""Internal name (models.spec.ModelSpec.parameters) -> tensor."""


def stored_parts(weights: Weights) -> list[StoredTensor]:
    """Everything that has bytes of its own."""
    tensors = weights.values()
    return [part for t in tensors for part in (t.parts.values() if isinstance(t, QuantizedTensor) else (t,))]

"""Experts' matrices that stay quantized on a device."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from octavo.backends.torch.quant.int4 import Int4Matrix
from octavo.backends.torch.quant.scaled import ScaledMatrix


@dataclass(frozen=True)
class QuantizedExperts:
    """rows: [count * out, in], one expert below the other; columns of 4-bit ones are in order."""

    rows: ScaledMatrix | Int4Matrix
    count: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """(experts, out, in)."""
        rows, width = self.rows.shape
        return self.count, rows // self.count, width

    def tensors(self) -> tuple[Tensor, ...]:
        """All that is kept on the device."""
        return self.rows.tensors()

    def expert(self, number: int) -> Tensor:
        """float32 [out, in], newly made."""
        out = self.shape[1]
        return self.rows.part(number * out, (number + 1) * out)


Experts = Tensor | QuantizedExperts
"""[experts, out, in]."""

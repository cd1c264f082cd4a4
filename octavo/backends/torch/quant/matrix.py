"""What every quantized matrix on a device is, whatever its form: operations take one where they take a Tensor."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from octavo.base.types.tensor import QuantizedTensor, StoredTensor


class QuantizedMatrix(Protocol):
    """[out, in].  A class a form; ops/products.py says how a form is multiplied."""

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""

    @property
    def kind(self) -> Hashable:
        """Matrices of one kind and shape are multiplied by the same kernel."""

    def tensors(self) -> tuple[Tensor, ...]:
        """All that it keeps on the device."""

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """[out, in], newly made: computed in float32, then rounded to dtype."""


Matrix = Tensor | QuantizedMatrix

Join = Callable[[Sequence[QuantizedTensor], torch.device], QuantizedMatrix | None]
"""Stored matrices of one layout, one below the other, as one on the device; None where their forms do not go together.

One alone always can be taken."""

Quantize = Callable[[Tensor], QuantizedMatrix]
"""A plain matrix on the device, [out, in], in another form."""

ELEMENTS: dict[str, torch.dtype] = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "I8": torch.int8,
    "I32": torch.int32,
}


def view(stored: StoredTensor) -> Tensor:
    """A new host tensor of the stored shape and type, whose element is one number. KeyError for block formats."""
    raw = torch.frombuffer(bytearray(stored.data), dtype=torch.uint8) if stored.data.nbytes else torch.empty(0)
    return raw.view(ELEMENTS[stored.scheme.name]).reshape(stored.shape)

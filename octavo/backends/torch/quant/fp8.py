"""FP8 (E4M3) matrices on a device, from a checkpoint's or from plain ones."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.backends.torch.quant.matrix import view
from octavo.base.types.tensor import QuantizedTensor

LARGEST = 448.0
"""Of E4M3."""

_PIECE = 1 << 24
"""Elements that are quantized at once, in float32."""


@dataclass(frozen=True)
class Fp8Matrix:
    """weight: float8_e4m3fn [out, in], contiguous.  scale: float32, what its elements are multiplied by.

    group: rows and columns that share a scale.  (1, 0): scale is [out, 1].  (rows, 128): [ceil(out / rows),
    ceil(in / 128)], rows 1 or 128.
    """

    weight: Tensor
    scale: Tensor
    group: tuple[int, int]

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        out, width = self.weight.shape
        return out, width

    @property
    def kind(self) -> Hashable:
        """By group."""
        return ("fp8", self.group)

    def tensors(self) -> tuple[Tensor, ...]:
        """Both."""
        return self.weight, self.scale

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """As QuantizedMatrix."""
        return (self.weight.float() * self._spread()).to(dtype)

    def _spread(self) -> Tensor:
        out, width = self.shape
        rows, columns = self.group
        if columns == 0:
            return self.scale
        return self.scale.repeat_interleave(rows, 0)[:out].repeat_interleave(columns, 1)[:, :width]


def join_fp8(stored: Sequence[QuantizedTensor], device: torch.device) -> Fp8Matrix | None:
    """matrix.Join. A scale a matrix becomes one a row; blocks whose rows do not meet at a seam, blocks of one row."""
    rows = sum(each.shape[0] for each in stored)
    groups = {each.scheme.group for each in stored}
    if len(groups) > 1 and not groups <= {(0, 0), (1, 0)}:
        return None
    weight = torch.empty((rows, stored[0].shape[1]), dtype=torch.float8_e4m3fn, device=device)
    at = 0
    for each in stored:
        weight[at : at + each.shape[0]].copy_(view(each.parts["weight"]))
        at += each.shape[0]
    scales = [view(each.parts["scale"]).float() for each in stored]
    if groups <= {(0, 0), (1, 0)}:
        spread = [scale.expand(each.shape[0], 1) for scale, each in zip(scales, stored, strict=True)]
        return Fp8Matrix(weight, torch.cat(spread).to(device), (1, 0))
    (group,) = groups
    if any(each.shape[0] % group[0] for each in stored[:-1]):
        spread = [s.repeat_interleave(group[0], 0)[: e.shape[0]] for s, e in zip(scales, stored, strict=True)]
        return Fp8Matrix(weight, torch.cat(spread).to(device), (1, group[1]))
    return Fp8Matrix(weight, torch.cat(scales).to(device), group)


def quantize_fp8(matrix: Tensor) -> Fp8Matrix:
    """One scale a row, by which its largest element becomes E4M3's largest; a row of zeros stays one."""
    weight = torch.empty(matrix.shape, dtype=torch.float8_e4m3fn, device=matrix.device)
    scale = torch.empty((len(matrix), 1), dtype=torch.float32, device=matrix.device)
    step = max(1, _PIECE // matrix.shape[1])
    for begin in range(0, len(matrix), step):
        piece = matrix[begin : begin + step].float()
        largest = piece.abs().amax(1, keepdim=True)
        scale[begin : begin + step] = torch.where(largest > 0, largest / LARGEST, 1.0)
        weight[begin : begin + step] = piece / scale[begin : begin + step]
    return Fp8Matrix(weight, scale, (1, 0))

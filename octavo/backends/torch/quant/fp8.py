"""FP8 (E4M3) matrices on a device, from a checkpoint's or from plain ones."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.backends.torch.quant.matrix import view
from octavo.base.types.tensor import MatrixScheme, QuantizedTensor

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


def quantize_fp8(matrix: Tensor, scheme: MatrixScheme | None = None) -> Fp8Matrix:
    """A scale a row, or a block where the scheme has blocks: it makes their largest element E4M3's largest.

    Where all are zero the scale is 1.
    """
    rows, columns = (1, 0) if scheme is None or scheme.group[1] == 0 else scheme.group
    out, width = matrix.shape
    weight = torch.empty((out, width), dtype=torch.float8_e4m3fn, device=matrix.device)
    across = -(-width // columns) if columns else 1
    scale = torch.empty((-(-out // rows), across), dtype=torch.float32, device=matrix.device)
    step = rows * max(1, _PIECE // (rows * width))
    for begin in range(0, out, step):
        piece = matrix[begin : begin + step].float()
        down = -(-len(piece) // rows)
        padded = F.pad(piece, (0, across * (columns or width) - width, 0, down * rows - len(piece)))
        groups = padded.view(down, rows, across, -1)
        largest = groups.abs().amax((1, 3), keepdim=True)
        by = torch.where(largest > 0, largest / LARGEST, 1.0)
        scale[begin // rows : begin // rows + down] = by.view(down, across)
        weight[begin : begin + step] = (groups / by).view(padded.shape)[: len(piece), :width]
    return Fp8Matrix(weight, scale, (rows, columns))

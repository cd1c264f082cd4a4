"""Matrices of one byte an element and scales beside them, E4M3 or 8-bit integers, on a device."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.backends.torch.quant.matrix import view
from octavo.base.types.tensor import MatrixScheme, QuantizedTensor
from octavo.quant.int8 import LAYOUTS as INT8
from octavo.quant.int8 import TURNED, elements_of, unpack_int8


@dataclass(frozen=True)
class ScaledMatrix:
    """weight: float8_e4m3fn or int8 [out, in], contiguous.  scale: float32, what its elements are multiplied by.

    group: rows and columns that share a scale.  (1, 0): scale is [out, 1].  (rows, 128): [ceil(out / rows),
    ceil(in / 128)], rows 1 or 128.
    both: activations may be rounded to what its elements are.
    """

    weight: Tensor
    scale: Tensor
    group: tuple[int, int]
    both: bool = True

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        out, width = self.weight.shape
        return out, width

    @property
    def integers(self) -> bool:
        """Rather than E4M3."""
        return self.weight.dtype == torch.int8

    @property
    def kind(self) -> Hashable:
        """By element, group and what becomes of activations."""
        return (self.weight.dtype, self.group, self.both)

    def tensors(self) -> tuple[Tensor, ...]:
        """Both."""
        return self.weight, self.scale

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """As QuantizedMatrix."""
        return self.part(0, self.shape[0]).to(dtype)

    def part(self, begin: int, end: int) -> Tensor:
        """float32: of so many rows, newly made."""
        down, columns = self.group
        scale = self.scale[torch.arange(begin, end, device=self.scale.device) // down]
        if columns:
            scale = scale.repeat_interleave(columns, 1)[:, : self.shape[1]]
        return self.weight[begin:end].float() * scale


def join_scaled(stored: Sequence[QuantizedTensor], device: torch.device) -> ScaledMatrix | None:
    """matrix.Join. A scale a matrix becomes one a row; blocks whose rows do not meet at a seam, blocks of one row."""
    rows, width = sum(each.shape[0] for each in stored), stored[0].shape[1]
    groups = {_group(each) for each in stored}
    if len(groups) > 1:
        return None
    weight = torch.empty((rows, width), dtype=_element(stored[0]), device=device)
    at = 0
    for each in stored:
        weight[at : at + each.shape[0]].copy_(_weight(each))
        at += each.shape[0]
    scales = [_scale(each) for each in stored]
    ((down, across),) = groups
    if any(each.shape[0] % down for each in stored[:-1]):
        scales = [scale.repeat_interleave(down, 0)[: e.shape[0]] for scale, e in zip(scales, stored, strict=True)]
        down = 1
    return ScaledMatrix(weight, torch.cat(scales).to(device), (down, across), _both(stored[0].scheme))


def quantize_int8(matrix: Tensor, scheme: MatrixScheme) -> ScaledMatrix:
    """A scale a row, or for 128 columns of one where the scheme has groups: its largest element becomes 127."""
    out, width = matrix.shape
    columns = 128 if scheme.group[1] else width
    groups = matrix.float().reshape(out, -1, columns)
    scale = (groups.abs().amax(2, keepdim=True) / 127).clamp(min=torch.finfo(torch.float32).tiny)
    weight = (groups / scale).round_().to(torch.int8).view(out, width)
    return ScaledMatrix(weight, scale[:, :, 0].contiguous(), (1, 128 if scheme.group[1] else 0), _both(scheme))


def _group(stored: QuantizedTensor) -> tuple[int, int]:
    """Of ScaledMatrix: scales of a whole matrix are spread over its rows, those of more than 128 columns repeated."""
    rows, columns = stored.scheme.group
    return max(rows, 1), 128 if columns else 0


def _both(scheme: MatrixScheme) -> bool:
    return scheme.layout in ("fp8", "int8")  # integers in words are weights alone


def _element(stored: QuantizedTensor) -> torch.dtype:
    return torch.int8 if stored.scheme.layout in INT8 else torch.float8_e4m3fn


def _weight(stored: QuantizedTensor) -> Tensor:
    """[out, in] on the host."""
    layout = stored.scheme.layout
    if layout not in INT8:
        return view(stored.parts["weight"])
    raw = view(stored.parts[elements_of(layout)]).view(torch.uint8).flatten()
    weight: Tensor = unpack_int8(layout, raw, *stored.shape).contiguous().view(torch.int8)
    return weight


def _scale(stored: QuantizedTensor) -> Tensor:
    """float32, as of _group."""
    scale, (out, _) = view(stored.parts["scale"]).float(), stored.shape
    if stored.scheme.layout in TURNED:
        scale = scale.t()
    rows, columns = stored.scheme.group
    if columns > 128:
        scale = scale.repeat_interleave(columns // 128, 1)
    return scale.expand(out, 1) if rows == 0 else scale

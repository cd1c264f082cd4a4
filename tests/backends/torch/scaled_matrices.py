"""Matrices in bytes for tests, E4M3 and int8, drawn with scales of every kind, and what products with them are."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from products_inputs import DEVICE, poisoned

from octavo.backends.torch.kernels.skinny_matmul import Scaled
from octavo.backends.torch.quant.scaled import ScaledMatrix


def matrix(n: int, k: int, group: tuple[int, int]) -> ScaledMatrix:
    """Any finite elements; scales that tell groups apart, inside a wider tensor of NaN."""
    codes = torch.randint(0, 256, (n, k), dtype=torch.uint8)
    codes[(codes & 0x7F) == 0x7F] = 8
    rows, columns = (-(-size // step) if step else 1 for size, step in zip((n, k), group, strict=True))
    wide = poisoned(rows, columns + 1, dtype=torch.float32)
    wide[:, :columns] = (torch.rand(rows, columns) * 10 + 0.1).to(DEVICE) / 448
    return ScaledMatrix(codes.view(torch.float8_e4m3fn).to(DEVICE), wide[:, :columns], group)


def integers(n: int, k: int, group: tuple[int, int]) -> ScaledMatrix:
    """As matrix, of all 256 integers."""
    weight = torch.randint(-128, 128, (n, k), dtype=torch.int8)
    weight.view(-1)[:256] = torch.arange(-128, 128)
    return ScaledMatrix(weight.to(DEVICE), matrix(n, k, group).scale, group)


def scaled(weight: ScaledMatrix) -> Scaled:
    scale = weight.scale.contiguous() if weight.group[1] == 0 else weight.scale
    return Scaled(weight.weight, scale, weight.group)


def product(x: torch.Tensor, weight: ScaledMatrix, bias: torch.Tensor | None = None) -> torch.Tensor:
    """float64."""
    return F.linear(x.double(), weight.dequantize(torch.float64), None if bias is None else bias.double())


def check(out: torch.Tensor, wanted: torch.Tensor, tolerance: float) -> None:
    error = (out.double() - wanted).abs().max().item() / (wanted.abs().max().item() + 1e-9)
    assert error <= tolerance, error

"""E4M3 matrices on a device, made of plain ones."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.backends.torch.quant.scaled import ScaledMatrix
from octavo.base.types.tensor import MatrixScheme

LARGEST = 448.0
"""Of E4M3."""

_PIECE = 1 << 24
"""Elements that are quantized at once, in float32."""


def quantize_fp8(matrix: Tensor, scheme: MatrixScheme | None = None) -> ScaledMatrix:
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
    return ScaledMatrix(weight, scale, (rows, columns))

"""FP8 matrices on the torch backend: stored ones joined, plain ones made so; each against the numbers that it means."""

from __future__ import annotations

import pytest
import torch

from octavo.backends.torch.quant import JOINS, REQUANTIZE
from octavo.backends.torch.quant.fp8 import Fp8Matrix, join_fp8, quantize_fp8
from octavo.base.types.tensor import PART_SCHEMES, SCHEMES, MatrixScheme, QuantizedTensor, StoredTensor
from octavo.quant import dequantize_matrix

CPU = torch.device("cpu")


def stored(rows: int, width: int, group: tuple[int, int], *, scale: str = "F32") -> QuantizedTensor:
    scheme = MatrixScheme("fp8", 8, group)
    codes = torch.randint(0, 256, (rows, width), dtype=torch.uint8)
    codes[(codes & 0x7F) == 0x7F] = 3
    scales = torch.rand(scheme.scale_shape((rows, width))) + 0.1
    scales = scales.bfloat16() if scale == "BF16" else scales
    parts = {
        "weight": StoredTensor("w", PART_SCHEMES["F8_E4M3"], (rows, width), memoryview(codes.numpy().tobytes())),
        "scale": StoredTensor(
            "s", SCHEMES[scale], tuple(scales.shape), memoryview(scales.view(torch.uint8).numpy().tobytes())
        ),
    }
    return QuantizedTensor("w", scheme, (rows, width), parts)


@pytest.mark.parametrize(
    ("groups", "heights", "group"),
    [
        ([(0, 0), (0, 0), (0, 0)], (70, 3, 9), (1, 0)),
        ([(1, 0), (1, 0)], (70, 30), (1, 0)),
        ([(0, 0), (1, 0)], (4, 5), (1, 0)),
        ([(128, 128), (128, 128)], (256, 70), (128, 128)),
        ([(128, 128), (128, 128), (128, 128)], (200, 128, 5), (1, 128)),
        ([(128, 128)], (130,), (128, 128)),
    ],
)
def test_joined_matrices_are_the_stored_ones(
    groups: list[tuple[int, int]], heights: tuple[int, ...], group: tuple[int, int]
) -> None:
    parts = [stored(rows, 200, kind) for rows, kind in zip(heights, groups, strict=True)]
    joined = join_fp8(parts, CPU)
    assert joined is not None
    assert (joined.shape, joined.group) == ((sum(heights), 200), group)
    wanted = torch.cat([torch.from_numpy(dequantize_matrix(part)) for part in parts])
    assert torch.equal(joined.dequantize(torch.float32), wanted)
    assert joined.scale.dtype == torch.float32


def test_scales_of_sixteen_bits_are_widened() -> None:
    part = stored(20, 30, (1, 0), scale="BF16")
    joined = JOINS["fp8"]([part], CPU)
    assert joined is not None
    assert torch.equal(joined.dequantize(torch.float32), torch.from_numpy(dequantize_matrix(part)))


def test_rows_and_blocks_do_not_go_together() -> None:
    assert join_fp8([stored(128, 128, (1, 0)), stored(128, 128, (128, 128))], CPU) is None


@pytest.mark.parametrize("group", [(0, 0), (1, 0), (128, 128)])
def test_plain_matrices_are_rounded_to_the_nearest(group: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("octavo.backends.torch.quant.fp8._PIECE", 128 * 150)  # a piece is a block of rows high
    plain = torch.randn(300, 150, dtype=torch.bfloat16)
    plain[:128, 128:] = 0
    made = REQUANTIZE["fp8"](plain, MatrixScheme("fp8", 8, group))
    assert isinstance(made, Fp8Matrix)
    assert made.group == ((128, 128) if group == (128, 128) else (1, 0))
    back = made.dequantize(torch.float32)
    rows, columns = made.group
    scale = made.scale.repeat_interleave(rows, 0)[:300].repeat_interleave(columns or 150, 1)[:, :150]
    half_step = torch.maximum(back.abs() / 16, scale * 2.0**-10)
    assert ((back - plain.float()).abs() <= half_step * 1.001).all()
    assert (back[:128, 128:] == 0).all()
    assert back.isfinite().all()


def test_a_row_of_zeros_stays_one() -> None:
    made = quantize_fp8(torch.zeros(3, 20))
    assert (made.dequantize(torch.float32) == 0).all()

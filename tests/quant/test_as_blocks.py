"""Matrices in parts as formats of blocks: the same numbers, or a format that has them is not named."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from quantized_checkpoints import INT4_FORMATS, INT8_FORMATS, as_found, int8_gptq
from torch import Tensor

from octavo.base.types.tensor import QuantizedTensor
from octavo.quant import dequantize, dequantize_matrix
from octavo.quant.as_blocks import as_stored, block_scheme

FORMATS = {
    **INT4_FORMATS,
    **INT8_FORMATS,
    "int8_groups": ({**INT8_FORMATS["int8_gptq"][0], "group_size": 128}, int8_gptq(128)),
}
EXACT = ("int8_gptq", "int8_gptq_v2", "int8_groups")
SYMMETRIC = ("gptq", "packed_group", "packed_sharded", "packed_channel")


def made(name: str, shape: tuple[int, int], **replaced: Tensor) -> QuantizedTensor:
    """A random matrix in the format. replaced: parts by their last name, in place of what belongs to it."""
    torch.manual_seed(sum(shape))
    config, quantizer = FORMATS[name]
    parts, _ = quantizer(torch.randn(shape) / 8)
    return as_found(config, {**parts, **replaced}, shape)


@pytest.mark.parametrize("shape", [(8, 64), (24, 192), (11, 128), (40, 256)])
@pytest.mark.parametrize("name", FORMATS)
def test_the_numbers_are_the_same(name: str, shape: tuple[int, int]) -> None:
    if (shape[0] % 8 and name.startswith("awq")) or (shape[1] % 128 and name == "int8_groups"):
        pytest.skip("a word has eight rows, a group 128 columns")
    matrix = made(name, shape)
    scheme = block_scheme(matrix)
    if "g_idx" in matrix.parts:
        assert scheme is None
        return
    assert scheme == ("Q8_0" if name in INT8_FORMATS or name in EXACT else "Q4_0" if name in SYMMETRIC else "Q4_1")
    stored = as_stored(matrix, scheme)
    assert (stored.name, stored.shape, stored.scheme.name) == (matrix.name, shape, scheme)
    got, want = dequantize(stored), dequantize_matrix(matrix)
    if name in (*SYMMETRIC, *EXACT):
        np.testing.assert_array_equal(got, want)
    elif scheme == "Q8_0":  # scales of other types than float16
        np.testing.assert_allclose(got, want, rtol=2**-11)
    else:
        steps = dequantize(matrix.parts["scale"])
        assert np.abs(got - want).max() <= 0.004 * steps.max()


def test_rows_that_are_no_multiple_of_a_block_long_keep_another_form() -> None:
    matrix = made("int8_channel", (24, 48))
    assert block_scheme(matrix) is None
    np.testing.assert_array_equal(dequantize(as_stored(matrix, "F32")), dequantize_matrix(matrix))


def test_zeros_that_are_all_the_middle_are_none() -> None:
    zeros = torch.full((2, 3), 0x88888888 - (1 << 32), dtype=torch.int32)
    assert block_scheme(made("gptq_v2", (24, 64), qzeros=zeros)) == "Q4_0"
    zeros[1, 2] += 1
    assert block_scheme(made("gptq_v2", (24, 64), qzeros=zeros)) == "Q4_1"


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float32])
def test_scales_that_float16_would_move_keep_another_form(kind: torch.dtype) -> None:
    """Tiny ones beside large ones of their row do no harm; a row of tiny ones, infinite ones and NaN would."""
    scale = torch.full((24, 2), 0.01, dtype=kind)
    scale[3, 1] = 1e-9
    assert block_scheme(made("packed_group", (24, 64), weight_scale=scale)) == "Q4_0"
    for wrong in (torch.tensor([1e-7, 1.3e-9]), torch.tensor([1e5, 0.1]), torch.tensor([float("nan"), 0.1])):
        scale[5] = wrong.to(kind)
        matrix = made("packed_group", (24, 64), weight_scale=scale)
        assert block_scheme(matrix) is None
        plain = as_stored(matrix, "F32")
        np.testing.assert_array_equal(dequantize(plain), dequantize_matrix(matrix))

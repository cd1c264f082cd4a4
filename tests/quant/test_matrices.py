"""Matrices in parts: every layout's dequantizer against float64 made from the format's definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from quantized_checkpoints import INT4_FORMATS, INT8_FORMATS, as_found

from octavo.base.errors import UnsupportedError
from octavo.base.types.tensor import PART_SCHEMES, SCHEMES, MatrixScheme, QuantizedTensor, Scheme, StoredTensor
from octavo.quant import MATRICES, as_plain, dequantize_matrix
from octavo.quant.fp8 import E4M3


def part(name: str, array: np.ndarray) -> StoredTensor:
    scheme: Scheme = {**SCHEMES, **PART_SCHEMES}[name]
    return StoredTensor("t", scheme, array.shape, memoryview(array.tobytes()))


def fp8(codes: np.ndarray, scale: np.ndarray, group: tuple[int, int]) -> QuantizedTensor:
    parts = {"weight": part("F8_E4M3", codes), "scale": part("F32", scale)}
    return QuantizedTensor("t.weight", MatrixScheme("fp8", 8, group), codes.shape, parts)


def test_every_layout_has_a_test() -> None:
    int8 = {"int8", "int8_packed", "int8_gptq", "int8_gptq_v2"}
    assert set(MATRICES) == {"fp8", "gptq", "gptq_v2", "awq", "packed", *int8}


def test_e4m3_is_what_torch_says_it_is() -> None:
    want = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float().numpy()
    np.testing.assert_array_equal(E4M3, want)
    assert np.isnan(E4M3).sum() == 2


@pytest.mark.parametrize("group", [(0, 0), (1, 0), (128, 128)])
@pytest.mark.parametrize("shape", [(1, 1), (129, 257), (256, 128), (3, 300)])
def test_fp8(group: tuple[int, int], shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(shape[0])
    codes = rng.integers(0, 256, shape, np.uint8)
    codes[(codes & 0x7F) == 0x7F] = 0
    scheme = MatrixScheme("fp8", 8, group)
    scale = rng.uniform(0.001, 0.1, scheme.scale_shape(shape)).astype(np.float32)
    want = np.empty(shape)
    for i in range(shape[0]):
        for j in range(shape[1]):
            row, column = (at // size if size else 0 for at, size in zip((i, j), group, strict=True))
            want[i, j] = float(E4M3[codes[i, j]]) * float(scale[row, column])
    got = dequantize_matrix(fp8(codes, scale, group))
    assert (got.dtype, got.shape) == (np.float32, shape)
    np.testing.assert_allclose(got, want, rtol=2**-23)


@pytest.mark.parametrize("name", {**INT4_FORMATS, **INT8_FORMATS})
@pytest.mark.parametrize("shape", [(8, 64), (24, 192), (11, 128)])
def test_integers(name: str, shape: tuple[int, int]) -> None:
    if shape[0] % 8 and name.startswith("awq"):
        pytest.skip("a word has eight rows")
    torch.manual_seed(shape[1])
    config, quantizer = {**INT4_FORMATS, **INT8_FORMATS}[name]
    stored, means = quantizer(torch.randn(shape) / 8)
    found = as_found(config, stored, shape)
    got = dequantize_matrix(found)
    assert (got.dtype, got.shape) == (np.float32, shape)
    np.testing.assert_allclose(got, means.double().numpy(), rtol=2**-23)


def test_as_plain_rounds_to_bfloat16() -> None:
    codes = np.arange(256, dtype=np.uint8).reshape(2, 128)
    tensor = fp8(codes, np.array([[0.3], [7.1]], np.float32), (1, 0))
    plain = as_plain(tensor, "BF16")
    values = torch.from_numpy(dequantize_matrix(tensor)).bfloat16()
    got = torch.frombuffer(bytearray(plain.data), dtype=torch.bfloat16).view(2, 128)
    torch.testing.assert_close(got, values, rtol=0, atol=0, equal_nan=True)
    np.testing.assert_array_equal(
        np.frombuffer(as_plain(tensor, "F32").data, np.float32), dequantize_matrix(tensor).ravel()
    )


def test_sizes() -> None:
    assert MatrixScheme("fp8", 8, (0, 0)).num_bytes((300, 200)) == 300 * 200 + 4
    assert MatrixScheme("fp8", 8, (1, 0)).num_bytes((300, 200)) == 300 * 200 + 4 * 300
    assert MatrixScheme("fp8", 8, (128, 128)).num_bytes((300, 200)) == 300 * 200 + 4 * 6
    assert MatrixScheme("x", 4, (1, 128), zeros=True).num_bytes((8, 256)) == 8 * 128 + 16 * 4 + 8


def test_unknown_layout_is_refused_by_name() -> None:
    tensor = QuantizedTensor("a.weight", MatrixScheme("q9", 9, (0, 0)), (1, 1), {})
    with pytest.raises(UnsupportedError, match=r"a\.weight.*q9"):
        dequantize_matrix(tensor)

"""Products with weights in bytes, E4M3 and int8, against float64 of what they hold: every form of kernel and scale."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from products_inputs import DEVICE, plan_of, poisoned, random
from scaled_matrices import check, integers, matrix, product, scaled

from octavo.backends.torch.kernels import fp8_matmul, widening
from octavo.backends.torch.kernels.byte_matmul import MOST
from octavo.backends.torch.kernels.direct_choice import Direct
from octavo.backends.torch.kernels.fp8_matmul import MOST_ROWS, choose_fp8, quantize_rows, scaled_matmul, widen
from octavo.backends.torch.kernels.gated import gated
from octavo.backends.torch.kernels.skinny_choice import MAX_ROWS, Variant
from octavo.backends.torch.kernels.skinny_matmul import Norm, scratch_sizes, skinny_matmul
from octavo.backends.torch.ops.products import gated_product, product_of
from octavo.backends.torch.quant.fp8 import quantize_fp8
from octavo.backends.torch.quant.scaled import ScaledMatrix

EPS = 1e-5
WHOLE = Variant("vector", 32, 512, 4)
LONG = Variant("vector", 32, 128, 4)
FORMS = {
    "whole": WHOLE,
    "long": LONG,
    "dot": Variant("dot", 32, 64, 4, 2),
    "swap": Variant("dot", 32, 64, 4, 2, swap=True),
    "split": Variant("dot", 64, 64, 4, 2, split=3),
    "split_swap": Variant("dot", 32, 128, 4, 2, split=2, swap=True),
}
OTHER_GPU = pytest.mark.skipif(DEVICE == "cuda", reason="kernels are compiled for the GPU that is there")
GROUPS = [(1, 0), (128, 128), (1, 128)]
TOLERANCE = {torch.float32: 2e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("group", GROUPS, ids=str)
def test_the_product_alone_of_odd_shapes(form: str, group: tuple[int, int]) -> None:
    dtype = torch.float32
    m, n, k = (3, 135, 400) if FORMS[form].form == "vector" else (17, 135, 400)
    x, weight = random(m, k, dtype=dtype), matrix(n, k, group)
    out = poisoned(m + 1, n, dtype=dtype)
    skinny_matmul(x, scaled(weight), out[:m], plan_of(FORMS[form], m, n))
    check(out[:m], product(x, weight), TOLERANCE[dtype])
    assert out[m].isnan().all()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("group", [(1, 0), (1, 128)], ids=str)
def test_integers(form: str, group: tuple[int, int]) -> None:
    m = 3 if FORMS[form].form == "vector" else 17
    for dtype in (torch.float32, torch.bfloat16):
        x, weight = random(m, 400, dtype=dtype), integers(135, 400, group)
        out = poisoned(m, 135, dtype=dtype)
        skinny_matmul(x, scaled(weight), out, plan_of(FORMS[form], m, 135))
        check(out, product(x, weight), TOLERANCE[dtype])


@pytest.mark.parametrize("m", [65, 128, 129])
@pytest.mark.parametrize("group", GROUPS, ids=str)
@pytest.mark.parametrize("form", ["dot", "split_swap"])
def test_tokens_in_blocks(m: int, group: tuple[int, int], form: str) -> None:
    """Neighbours of x and out stay untouched, and what does not count beside them is not read."""
    n, k, dtype = 70, 272, torch.bfloat16
    wide, out = random(m + 1, k + 8, dtype=dtype), poisoned(m + 1, n + 2, dtype=dtype)
    wide[m] = wide[:, k:] = float("nan")
    for weight in (matrix(n, k, group), integers(n, k, group)):
        out.fill_(float("nan"))
        skinny_matmul(wide[:m, :k], scaled(weight), out[:m, :n], plan_of(FORMS[form], m, n))
        check(out[:m, :n], product(wide[:m, :k], weight), TOLERANCE[dtype])
        assert out.isnan().sum() == out.numel() - m * n


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_integer_has_its_value(dtype: torch.dtype) -> None:
    codes = torch.arange(-128, 128, dtype=torch.int8, device=DEVICE).view(32, 8)
    weight = ScaledMatrix(codes, torch.ones(32, 1, device=DEVICE), (1, 0))
    out = poisoned(8, 32, dtype=torch.float32)
    for form in FORMS:
        rows = 4 if FORMS[form].form == "vector" else 8
        eye = torch.eye(8, device=DEVICE, dtype=dtype)[:rows]
        skinny_matmul(eye, scaled(weight), out[:rows], plan_of(FORMS[form], rows, 32))
        assert torch.equal(out[:rows], codes.float().t()[:rows])


def test_between_few_and_many_tokens_weights_alone_are_widened_in_registers() -> None:
    whole = matrix(48, 256, (1, 0))
    whole = replace(whole, scale=whole.scale.contiguous())
    for weight in (matrix(48, 256, (1, 128)), matrix(48, 256, (128, 128)), whole):
        weight = replace(weight, both=False)
        variant = product_of(weight).choose(MOST_ROWS, weight, gated=False)
        assert variant is not None
        assert product_of(weight).choose(MOST_ROWS, weight, gated=True) is None
        assert product_of(weight).choose(MOST_ROWS + 1, weight, gated=False) is None
        x, out = random(MAX_ROWS + 1, 256, dtype=torch.bfloat16), poisoned(MAX_ROWS + 1, 48, dtype=torch.bfloat16)
        product_of(weight).few(x, weight, out, plan_of(variant, len(x), 48))
        check(out, product(x, weight), 2e-2)


def test_what_many_tokens_are_rounded_for_is_no_kernels_of_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a library has the product it takes many; where none has, no more are widened either."""
    monkeypatch.setattr(fp8_matmul, "_has_scaled_mm", lambda device: True)
    monkeypatch.setattr(fp8_matmul, "_has_blocks", lambda device: True)
    for group in ((1, 0), (128, 128)):
        weight = matrix(48, 512, group)
        assert product_of(weight).choose(MAX_ROWS, weight, gated=False) is not None
        assert product_of(weight).choose(MOST, weight, gated=False) is None
    for weight in (matrix(48, 512, (1, 128)), matrix(48, 256, (128, 128)), matrix(40, 512, (128, 128))):
        variant = product_of(weight).choose(MOST, weight, gated=False)
        assert variant is not None
        assert variant.form == "bytes"


@pytest.mark.parametrize("group", [(1, 0), (1, 128)], ids=str)
def test_many_tokens_beside_integers_of_weights_alone_are_not_rounded(group: tuple[int, int]) -> None:
    weight, x = replace(integers(48, 256, group), both=False), random(70, 256, dtype=torch.bfloat16)
    check(product_of(weight).many(x, weight, None), product(x, weight), 2e-2)
    inner = random(70, 512, dtype=torch.bfloat16)
    gate, up = inner.chunk(2, dim=-1)
    check(gated_product(inner, weight, None, "silu"), product(F.silu(gate) * up, weight), 2e-2)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("group", GROUPS, ids=str)
def test_gated_activation_and_bias(form: str, group: tuple[int, int]) -> None:
    m, width, k, dtype = 2, 69, 272, torch.float16
    x, weight, bias = random(m, k, dtype=dtype) / 8, matrix(2 * width, k, group), random(2 * width, dtype=dtype)
    out = poisoned(m, width, dtype=dtype)
    plan = plan_of(FORMS[form], m, 2 * width, gated=True)
    skinny_matmul(x, scaled(weight), out, plan, bias=bias, act="silu")
    gate, up = product(x, weight, bias).chunk(2, dim=-1)
    check(out, F.silu(gate) * up, TOLERANCE[dtype])


@pytest.mark.parametrize("form", ["whole", "long"])
@pytest.mark.parametrize("group", [(1, 0), (128, 128)], ids=str)
def test_norm_before_the_product(form: str, group: tuple[int, int]) -> None:
    m, n, k, dtype = 2, 40, 272, torch.float16
    x, delta, weight = random(m, k, dtype=dtype), random(m, k, dtype=dtype), matrix(n, k, group)
    norm = Norm(random(k) + 1, EPS, delta, poisoned(m, k, dtype=dtype))
    out = poisoned(m, n, dtype=dtype)
    skinny_matmul(x, scaled(weight), out, plan_of(FORMS[form], m, n), norm=norm)
    normed = F.rms_norm((x + delta).float(), (k,), norm.weight, EPS).to(dtype)
    check(out, product(normed, weight), TOLERANCE[dtype])
    assert norm.x_out is not None
    assert torch.equal(norm.x_out, x + delta)


@pytest.mark.parametrize("native", [True, pytest.param(False, marks=OTHER_GPU)])
@pytest.mark.parametrize("form", FORMS)
def test_every_element_has_its_value(form: str, native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """All 254 numbers of E4M3 exactly, subnormals and zeros of both signs among them."""
    if not native:
        monkeypatch.setattr(widening, "NATIVE", widening.tl.constexpr(False))
    codes = torch.arange(256, dtype=torch.uint8)
    codes[(codes & 0x7F) == 0x7F] = 0
    weight = ScaledMatrix(
        codes.view(16, 16).to(DEVICE).view(torch.float8_e4m3fn), torch.ones(16, 1, device=DEVICE), (1, 0)
    )
    out = poisoned(4, 16, dtype=torch.float32)
    eye = torch.eye(16, device=DEVICE)
    for first in range(0, 16, 4):
        skinny_matmul(eye[first : first + 4], scaled(weight), out, plan_of(FORMS[form], 4, 16))
        assert torch.equal(out, weight.weight.float().t()[first : first + 4])


def test_bfloat16() -> None:
    x, weight = random(2, 256, dtype=torch.bfloat16), matrix(40, 256, (1, 0))
    for variant in (WHOLE, LONG, FORMS["swap"]):
        out = poisoned(2, 40, dtype=torch.bfloat16)
        check(skinny_matmul(x, scaled(weight), out, plan_of(variant, 2, 40)), product(x, weight), 2e-2)


@pytest.mark.parametrize("act", ["silu", "gelu_tanh"])
def test_rows_behind_a_gate(act: str) -> None:
    inner = random(3, 2 * 90, dtype=torch.float16)
    y = poisoned(3, 90, dtype=torch.float16)
    gated(inner, y, act)
    for got, wanted in zip(quantize_rows(inner, act=act), quantize_rows(y), strict=True):
        assert torch.equal(got.float(), wanted.float())


@pytest.mark.parametrize("group", GROUPS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_widening(group: tuple[int, int], dtype: torch.dtype) -> None:
    for weight in (matrix(135, 272, group), integers(135, 272, group)):
        out = widen(weight.weight, weight.scale, group, dtype)
        assert torch.equal(out, weight.dequantize(dtype))


@pytest.mark.parametrize("k", [16, 100, 513])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_rows_are_quantized_to_the_nearest(k: int, dtype: torch.dtype) -> None:
    x = random(5, k, dtype=dtype) * torch.tensor([[1.0], [1e-4], [300.0], [0.0], [1.0]], device=DEVICE).to(dtype)
    rows, scale = quantize_rows(x)
    assert (rows.dtype, scale.shape) == (torch.float8_e4m3fn, (5, 1))
    largest = x.float().abs().amax(1, keepdim=True)
    torch.testing.assert_close(scale, torch.where(largest > 0, largest / 448, 1.0))
    step = torch.maximum(rows.float().abs() / 16, torch.tensor(2.0**-10))  # half of a step between neighbours
    assert ((rows.float() - x.float() / scale).abs() <= step * 1.01).all()
    assert (rows[3].float() == 0).all()


@pytest.mark.parametrize("columns", [0, 32])
def test_a_row_that_is_not_finite_stays_alone(columns: int) -> None:
    x = random(3, 64, dtype=torch.float16)
    x[1, 5] = float("nan")
    x[2, 7] = float("inf")
    rows, scale = quantize_rows(x, columns=columns)
    values = rows.float() * scale.repeat_interleave(columns or 64, 1)
    assert values[0].isfinite().all()
    assert values[1:3].isnan().all()
    assert quantize_rows(x[:0])[0].shape == (0, 64)


def scales_of_blocks(a: torch.Tensor, b: torch.Tensor, **more: Any) -> torch.Tensor:
    """torch._scaled_mm with a scale for 1 x 128 of a and 128 x 128 of b, which PyTorch has on a GPU alone.

    Raises where sizes and strides are not those that it wants.
    """
    scale_a, scale_b = more["scale_a"], more["scale_b"].t()
    (m, k), n = a.shape, b.shape[1]
    assert a.is_contiguous()
    assert b.t().is_contiguous()
    assert m % 4 == 0
    assert k % 512 == 0  # in between, releases differ in how far rows of the weight's scales lie apart
    assert (scale_a.shape, scale_a.stride()) == ((m, k // 128), (1, m))
    assert (scale_b.shape, scale_b.stride()) == ((-(-n // 128), k // 128), (k // 128, 1))
    wide = ScaledMatrix(b.t(), scale_b, (128, 128)).dequantize(torch.float64)
    rows = a.double() * scale_a.double().repeat_interleave(128, 1)
    made: torch.Tensor = (rows @ wide.t()).to(more["out_dtype"])
    return made


@pytest.mark.parametrize("tokens", [1, 70])
@pytest.mark.parametrize("act", ["", "silu"])
def test_scaled_matmul_by_blocks(monkeypatch: pytest.MonkeyPatch, tokens: int, act: str) -> None:
    if DEVICE == "cpu":
        monkeypatch.setattr(torch, "_scaled_mm", scales_of_blocks)
        monkeypatch.setattr(fp8_matmul, "_has_scaled_mm", lambda device: True)
    elif not fp8_matmul.scaled_matmul_takes(matrix(16, 512, (128, 128)).weight, (128, 128)):
        pytest.skip("this GPU has no scales by block")
    weight, bias = matrix(144, 1024, (128, 128)), random(144, dtype=torch.bfloat16)
    weight = replace(weight, scale=weight.scale.contiguous())
    x = random(tokens, 2048 if act else 1024, dtype=torch.bfloat16)
    x[0, 7] = 1000.0  # of its own group's scale alone
    wanted = x
    if act:
        wanted = poisoned(tokens, 1024, dtype=torch.bfloat16)
        gated(x, wanted, act)
    out = gated_product(x, weight, bias, act) if act else product_of(weight).many(x, weight, bias)
    assert out.shape == (tokens, 144)
    rows, scale = quantize_rows(wanted, columns=128)
    assert rows.shape[0] == scale.shape[0] == -(-tokens // 4) * 4
    assert not rows[tokens:].float().any()
    rounded = rows.double() * scale.double().repeat_interleave(128, 1)
    torch.testing.assert_close(rounded[:tokens], wanted.double(), rtol=0.07, atol=0.02)
    check(out, product(rounded[:tokens], weight, bias), 2e-2)
    check(out, product(wanted, weight, bias), 8e-2)


def test_scaled_matmul_says_where_it_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = matrix(32, 64, (1, 0))
    x = random(3, 64, dtype=torch.bfloat16)
    monkeypatch.setattr(fp8_matmul, "_has_scaled_mm", lambda device: False)
    assert scaled_matmul(x, weight.weight, weight.scale, None) is None
    monkeypatch.setattr(fp8_matmul, "_has_scaled_mm", lambda device: True)
    assert scaled_matmul(x.half(), weight.weight, weight.scale, None) is None
    assert scaled_matmul(x[:, :40], weight.weight[:, :40], weight.scale, None) is None
    assert scaled_matmul(x, weight.weight[:20], weight.scale[:20], None) is None
    blocks = matrix(32, 512, (128, 128))
    monkeypatch.setattr(fp8_matmul, "_has_blocks", lambda device: False)
    assert (
        scaled_matmul(random(3, 512, dtype=torch.bfloat16), blocks.weight, blocks.scale, None, group=blocks.group)
        is None
    )


def scales_by_row() -> bool:
    """Whether this PyTorch has the product with a scale a row on a CPU: 2.11 has not, 2.13 has."""
    rows, scale = torch.zeros(16, 16, dtype=torch.float8_e4m3fn), torch.ones(16, 1)
    try:
        torch._scaled_mm(rows, rows.t(), scale_a=scale, scale_b=scale.t(), out_dtype=torch.bfloat16)
    except RuntimeError:
        return False
    return True


@pytest.mark.skipif(not scales_by_row(), reason="this PyTorch scales by row on a GPU alone")
@pytest.mark.parametrize("tokens", [1, 70])
def test_scaled_matmul(monkeypatch: pytest.MonkeyPatch, tokens: int) -> None:
    """On both sides in FP8; PyTorch has the product on a CPU too."""
    weight, bias = matrix(48, 160, (1, 0)), random(48, dtype=torch.bfloat16)
    x = random(tokens, 160, dtype=torch.bfloat16)
    monkeypatch.setattr(fp8_matmul, "_has_scaled_mm", lambda device: True)
    out = scaled_matmul(x, weight.weight, weight.scale.contiguous(), bias)
    assert out is not None
    rows, scale = quantize_rows(x)
    check(out, product(rows.double() * scale, weight, bias), 2e-2)
    check(out, product(x, weight, bias), 8e-2)


def test_quantizing_a_plain_matrix() -> None:
    plain = random(37, 50, dtype=torch.bfloat16)
    plain[4] = 0
    made = quantize_fp8(plain)
    assert (made.shape, made.group, made.scale.shape) == ((37, 50), (1, 0), (37, 1))
    back = made.dequantize(torch.float32)
    assert (back[4] == 0).all()
    largest = plain.float().abs().amax(1, keepdim=True)
    assert ((back - plain.float()).abs() <= (plain.float().abs() / 16 + largest / 448 * 2**-10) * 1.001).all()
    assert made.tensors()[0] is made.weight


def test_choice_fits_its_limits() -> None:
    assert choose_fp8(0, 4096, 4096, columns=0) is None
    assert choose_fp8(MOST_ROWS + 1, 4096, 4096, columns=0) is None
    assert choose_fp8(1, 4096, 4097, columns=0) is None
    for n, k in ((4096, 1024), (1024, 3072), (6144, 4096), (28672, 4096), (4096, 14336)):
        for m in (1, 2, 4, 8, 16, 17, 32, 48, 64, 65, 128, 129, 256):
            for paired in (False, True):
                for columns in (0, 128):
                    variant = choose_fp8(m, n, k, columns=columns, gated=paired)
                    if paired and m > 16:
                        assert variant is None
                        continue
                    assert variant is not None
                    assert isinstance(variant, Direct) == (2 <= m <= 16)
                    if isinstance(variant, Direct):
                        continue
                    assert variant.form == ("vector" if m == 1 else "dot")
                    if columns:
                        whole = (
                            variant.block_k % columns == 0
                            if variant.form == "vector"
                            else columns % variant.block_k == 0
                        )
                        assert whole
                    assert scratch_sizes(variant, m, n, gated=paired)[0] * 4 <= 64 << 20

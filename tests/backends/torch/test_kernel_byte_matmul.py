"""Products of tens of tokens with both sides in bytes, against float64 of what the rounded x and the weight hold."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from products_inputs import DEVICE, plan_of, poisoned, random
from scaled_matrices import check, integers, matrix, product, scaled

from octavo.backends.torch.kernels import byte_matmul as byte_module
from octavo.backends.torch.kernels import fp8_matmul
from octavo.backends.torch.kernels.byte_matmul import FEWEST, MOST, byte_matmul, bytes_take, choose_bytes, many_bytes
from octavo.backends.torch.kernels.fp8_matmul import quantize_rows
from octavo.backends.torch.kernels.gated import gated
from octavo.backends.torch.kernels.skinny_choice import MAX_ROWS, Variant
from octavo.backends.torch.kernels.skinny_matmul import Plan, scratch_sizes
from octavo.backends.torch.ops.products import gated_product, product_of
from octavo.backends.torch.quant.scaled import ScaledMatrix

pytestmark = pytest.mark.skipif(
    DEVICE == "cuda" and torch.cuda.get_device_capability() < (9, 0), reason="such products are not taken here"
)
GROUPS = [(1, 0), (128, 128), (1, 128)]
KINDS = {"e4m3": matrix, "int8": integers}
VARIANTS = {
    "whole": Variant("bytes", 64, 128, 4, 3, swap=True),
    "parts": Variant("bytes", 64, 128, 4, 2, split=2, swap=True),
    "uneven": Variant("bytes", 64, 128, 4, 2, split=4, swap=True),
    "wide": Variant("bytes", 128, 128, 8, 2, swap=True),
}


def made(kind: str, n: int, k: int, group: tuple[int, int]) -> ScaledMatrix:
    """Scales by row as they are stored, contiguous."""
    weight = KINDS[kind](n, k, group)
    return replace(weight, scale=weight.scale if group[1] else weight.scale.contiguous())


def rounded(x: torch.Tensor, weight: ScaledMatrix) -> torch.Tensor:
    """x in float64 after it was rounded beside this weight."""
    columns = weight.group[1]
    rows, scale = quantize_rows(x.contiguous(), dtype=weight.weight.dtype, columns=columns)
    return (rows.double() * scale.double().repeat_interleave(columns or x.shape[1], 1))[: len(x)]


@pytest.mark.parametrize("m", [9, 33, 70])
@pytest.mark.parametrize("group", GROUPS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", VARIANTS)
def test_odd_shapes(name: str, kind: str, group: tuple[int, int], m: int) -> None:
    """Neighbours of out stay untouched."""
    n, k, variant = 135, 640, VARIANTS[name]
    weight, x, bias = made(kind, n, k, group), random(m, k, dtype=torch.bfloat16), random(n)
    x[m // 2] = 0
    for dtype in (torch.float32, torch.bfloat16):
        out = poisoned(m + 1, n + 2, dtype=dtype)
        byte_matmul(x, scaled(weight), out[:m, :n], plan_of(variant, m, n), bias=bias)
        # on a GPU sums of E4M3 keep some 14 bits
        tolerance = 2e-2 if dtype == torch.bfloat16 else 3e-3 if DEVICE == "cuda" and kind == "e4m3" else 1e-5
        check(out[:m, :n], product(rounded(x, weight), weight, bias), tolerance)
        assert out.isnan().sum() == out.numel() - m * n


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("group", GROUPS, ids=str)
def test_behind_a_gate(kind: str, group: tuple[int, int]) -> None:
    m, n, k = 17, 70, 256
    weight, inner, bias = made(kind, n, k, group), random(m, 2 * k, dtype=torch.bfloat16), random(n)
    y = poisoned(m, k, dtype=torch.bfloat16)
    gated(inner, y, "silu")
    wanted = product(rounded(y, weight), weight, bias)
    check(gated_product(inner, weight, bias, "silu", plan_of(VARIANTS["parts"], m, n)), wanted, 2e-2)
    gate, up = inner.double().chunk(2, dim=-1)
    check(wanted, product(F.silu(gate) * up, weight, bias), 8e-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_row_that_is_not_finite_stays_alone(dtype: torch.dtype) -> None:
    for kind in KINDS:
        for group in GROUPS:
            weight, x = made(kind, 64, 256, group), random(20, 256, dtype=dtype)
            x[7, 130] = float("nan")
            out = poisoned(20, 64, dtype=dtype)
            byte_matmul(x, scaled(weight), out, plan_of(VARIANTS["whole"], 20, 64))
            assert out[7].isnan().all()
            assert out[:7].isfinite().all()
            assert out[8:].isfinite().all()


def test_sums_of_integers_are_exact() -> None:
    """-128 times -128, 4,096 times over, beside what makes the sum odd."""
    weight = torch.full((64, 4096), -128, dtype=torch.int8, device=DEVICE)
    weight[:, 1] = torch.arange(64) - 32
    x = torch.full((9, 4096), -127.0, device=DEVICE)
    x[:, 1] = 1.0
    out = poisoned(9, 64, dtype=torch.float32)
    matrix = ScaledMatrix(weight, torch.ones(64, 1, device=DEVICE), (1, 0))
    byte_matmul(x, scaled(matrix), out, plan_of(VARIANTS["parts"], 9, 64))
    wanted = (4095 * 127 * 128 + weight[:, 1].double()).expand(9, 64)
    assert (out.double() - wanted).abs().max() <= 4  # half of float32's step there


def test_no_tokens_and_too_little_scratch() -> None:
    weight = made("e4m3", 64, 256, (1, 0))
    out = poisoned(0, 64, dtype=torch.float32)
    assert byte_matmul(random(0, 256), scaled(weight), out, Plan(VARIANTS["parts"])) is out
    with pytest.raises(ValueError, match="make_scratch"):
        byte_matmul(random(9, 256), scaled(weight), poisoned(9, 64, dtype=torch.float32), Plan(VARIANTS["parts"]))


@pytest.mark.parametrize("kind", KINDS)
def test_many_blocks_of_tokens(kind: str) -> None:
    """More than follow each other, and the last of them not whole."""
    weight, x = made(kind, 200, 64, (1, 0)), random(9 * 128 + 3, 64, dtype=torch.bfloat16)
    variant = Variant("bytes", 128, 64, 8, 2, swap=True)
    out = poisoned(len(x), 200, dtype=torch.bfloat16)
    byte_matmul(x, scaled(weight), out, Plan(variant))
    check(out, product(rounded(x, weight), weight), 2e-2)


def test_choice_fits_its_limits() -> None:
    for n, k in ((4096, 1024), (1024, 3072), (6144, 4096), (28672, 4096), (4096, 14336), (2048, 128), (576, 576)):
        for columns in (0, 128):
            takes = bytes_take(k, columns=columns, integers=False)
            assert takes == (k % (columns or 64) == 0)
            assert not bytes_take(k, columns=64, integers=False)
            assert not bytes_take(k + 32, columns=columns, integers=False)
            assert choose_bytes(FEWEST - 1, n, k, columns=columns) is None
            assert choose_bytes(MOST + 1, n, k, columns=columns) is None
            for m in (9, 16, 17, 32, 48, 64, 65, 128, 256):
                for library in (False, True):
                    variant = choose_bytes(m, n, k, columns=columns, library=library)
                    if not takes or (library and m > 128) or (columns and 32 < m <= 64):
                        assert variant is None
                    elif not library or m <= 32:
                        assert variant is not None
                    if variant is not None:
                        fits(variant, k, columns)
                        assert scratch_sizes(variant, m, n)[0] * 4 <= 64 << 20
                if takes:
                    many = many_bytes(m, k, columns=columns)
                    fits(many, k, columns)
                    assert many.split == 1


def fits(variant: Variant, k: int, columns: int) -> None:
    assert k % variant.block_k == 0
    assert not columns or variant.block_k == columns
    assert variant.split == 1 or k >= 4 * variant.split * variant.block_k


@pytest.mark.parametrize("tokens", [1, 70])
@pytest.mark.parametrize("group", GROUPS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_many_tokens_where_no_library_has_the_product(
    monkeypatch: pytest.MonkeyPatch, kind: str, group: tuple[int, int], tokens: int
) -> None:
    monkeypatch.setattr(fp8_matmul, "_has_scaled_mm", lambda device: False)
    weight, bias = made(kind, 70, 256, group), random(70, dtype=torch.float16)
    x = random(tokens, 256, dtype=torch.float16)
    check(product_of(weight).many(x, weight, bias), product(rounded(x, weight), weight, bias), 1e-2)
    inner = random(tokens, 512, dtype=torch.float16)
    gate, up = inner.double().chunk(2, dim=-1)
    check(gated_product(inner, weight, bias, "silu"), product(F.silu(gate) * up, weight, bias), 8e-2)


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (8, 9), (9, 0)], ids=str)
def test_which_gpus_take_it(capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where shared memory is small no program has 256 rows of weights."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    room = SimpleNamespace(shared_memory_per_block_optin=101_376 if capability == (8, 9) else 232_448)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda: room)
    for function in (byte_module.capable, byte_module._roomy):
        monkeypatch.setattr(byte_module, function.__name__, function.__wrapped__)
    assert bytes_take(4096, columns=0, integers=True) == (capability >= (8, 0))
    assert bytes_take(4096, columns=0, integers=False) == (capability >= (9, 0))
    assert many_bytes(8192, 4096).block_n == (64 if capability == (8, 9) else 256)
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert not bytes_take(4096, columns=0, integers=True)


def test_where_products_take_it() -> None:
    """Beside weights alone activations keep their bits, and a gate's activation is made on the way into the next."""
    for kind in KINDS:
        weight = made(kind, 64, 256, (1, 0))
        for m in (FEWEST, MAX_ROWS):
            variant = product_of(weight).choose(m, weight, gated=False)
            assert variant is not None
            assert variant.form == "bytes"
            assert product_of(weight).choose(m, weight, gated=True) is None
            x, out = random(m, 256, dtype=torch.bfloat16), poisoned(m, 64, dtype=torch.bfloat16)
            product_of(weight).few(x, weight, out, plan_of(variant, m, 64))
            check(out, product(rounded(x, weight), weight), 2e-2)
        alone = replace(weight, both=False)
        chosen = product_of(alone).choose(FEWEST, alone, gated=False)
        assert chosen is not None
        assert chosen.form != "bytes"

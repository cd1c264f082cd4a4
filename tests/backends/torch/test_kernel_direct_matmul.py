"""direct_matmul against float64: every kind of weight, tokens in one block and two, rows and K that nothing divides."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from int4_matrices import draw
from products_inputs import DEVICE, plan_of, poisoned, random

from octavo.backends.torch.kernels.capability import capable
from octavo.backends.torch.kernels.direct_choice import MAX_ROWS, Direct, choose_direct
from octavo.backends.torch.kernels.int4_matmul import int4_matmul
from octavo.backends.torch.kernels.skinny_matmul import Norm, Scaled, skinny_matmul

ONE = Direct(16, 4, 1, 128)
TWO = Direct(32, 2, 2, 128)
DEEP = Direct(16, 1, 4, 128)
VARIANTS = {"one": ONE, "two": TWO, "deep": DEEP}
HALVES = [torch.float16, torch.bfloat16]
TOLERANCE = {torch.float32: 2e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}
GROUPS = [(1, 0), (1, 64), (128, 128)]


def weight_in_bytes(
    n: int, k: int, group: tuple[int, int], kind: torch.dtype, largest: float = 10.0
) -> tuple[Scaled, torch.Tensor]:
    """Every finite element, scales that tell groups apart; and what they mean, in float64."""
    codes = torch.arange(n * k).mul(7919).remainder(256).to(torch.uint8).view(n, k)
    if kind != torch.int8:
        codes[(codes & 0x7F) == 0x7F] = 8
    weight = codes.view(kind).to(DEVICE)
    rows, columns = (-(-size // step) if step else 1 for size, step in zip((n, k), group, strict=True))
    scale = ((torch.rand(rows, columns) + 0.01) * largest / 448).to(DEVICE)
    wide = scale.double().repeat_interleave(group[0], 0)[:n].repeat_interleave(group[1] or k, 1)
    return Scaled(weight, scale, group), weight.to(torch.float32).double() * wide


def check(out: torch.Tensor, wanted: torch.Tensor) -> None:
    error = (out.double() - wanted).abs().max().item() / (wanted.abs().max().item() + 1e-9)
    assert error <= TOLERANCE[out.dtype], error  # NaN, where nothing was written, fails too


def acted(y: torch.Tensor, act: str) -> torch.Tensor:
    gate, up = y.chunk(2, dim=-1)
    return (F.silu(gate) if act == "silu" else F.gelu(gate, approximate="tanh" if act == "gelu_tanh" else "none")) * up


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("group", GROUPS, ids=str)
@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.int8], ids=str)
@pytest.mark.parametrize(
    ("dtype", "m"), [(torch.float16, 1), (torch.float16, 9), (torch.bfloat16, 8), (torch.bfloat16, 16)]
)
def test_weights_in_bytes(variant: str, group: tuple[int, int], kind: torch.dtype, dtype: torch.dtype, m: int) -> None:
    n, k = (135, 128) if m == 8 else (18, 320 if group[1] < 128 else 256)
    weight, values = weight_in_bytes(n, k, group, kind)
    x, out = random(m, k, dtype=dtype), poisoned(m, n, dtype=torch.float32)
    skinny_matmul(x, weight, out, plan_of(VARIANTS[variant], m, n))
    check(out, x.double() @ values.T)


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.int8], ids=str)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_every_byte_has_its_value(kind: torch.dtype, dtype: torch.dtype) -> None:
    codes = torch.arange(256, dtype=torch.uint8).repeat(4).view(16, 64)
    if kind != torch.int8:
        codes[(codes & 0x7F) == 0x7F] = 0
    weight = codes.view(kind).to(DEVICE)
    scaled = Scaled(weight, torch.ones(16, 1, device=DEVICE), (1, 0))
    for begin in range(0, 64, 16):
        eye = torch.eye(64, device=DEVICE, dtype=dtype)[begin : begin + 16]
        out = poisoned(16, 16, dtype=torch.float32)
        skinny_matmul(eye, scaled, out, plan_of(ONE, 16, 16))
        assert torch.equal(out, weight.float().t()[begin : begin + 16])


@pytest.mark.parametrize(
    ("variant", "group", "m"), [("one", 128, 1), ("one", 256, 16), ("two", -1, 7), ("deep", 128, 9)]
)
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_weights_in_4_bits(variant: str, group: int, m: int, zeros: bool, dtype: torch.dtype) -> None:
    n, k = 19, 768 if variant == "one" else 384
    case = draw(n, k, group=group, zeros=zeros, device=DEVICE)
    x, out = random(m, k, dtype=dtype), poisoned(m, n, dtype=torch.float32)
    int4_matmul(x, case.matrix, out, VARIANTS[variant])
    check(out, x.double() @ case.values.T)


@pytest.mark.parametrize("scales", [torch.bfloat16, torch.float32], ids=str)
def test_scales_of_each_type(scales: torch.dtype) -> None:
    case = draw(48, 256, group=128, scales=scales, zeros=True, device=DEVICE)
    x, out = random(5, 256, dtype=torch.bfloat16), poisoned(5, 48, dtype=torch.float32)
    check(int4_matmul(x, case.matrix, out, ONE), x.double() @ case.values.T)


@pytest.mark.parametrize(("variant", "act", "m"), [("one", "silu", 4), ("two", "gelu_tanh", 11), ("deep", "gelu", 2)])
def test_gated_activation_and_bias(variant: str, act: str, m: int) -> None:
    width, k, dtype = 37, 128, torch.float16
    x, bias = random(m, k, dtype=dtype), random(2 * width, dtype=dtype)
    case = draw(2 * width, k, group=128, zeros=True, device=DEVICE)
    out = poisoned(m, width, dtype=dtype)
    int4_matmul(x, case.matrix, out, VARIANTS[variant], bias=bias, act=act)
    check(out, acted(F.linear(x.double(), case.values, bias.double()), act))
    for group in GROUPS:
        weight, values = weight_in_bytes(2 * width, k, group, torch.int8, largest=0.03)
        out = poisoned(m, width, dtype=dtype)
        skinny_matmul(x, weight, out, plan_of(VARIANTS[variant], m, width, True), bias=bias, act=act)
        check(out, acted(F.linear(x.double(), values, bias.double()), act))


@pytest.mark.parametrize(("shift", "m"), [(0, 10), (2, 10), (8, 10), (2, 1)])
def test_neighbours_stay_and_are_not_read(shift: int, m: int) -> None:
    """Also where x does not lie as the kernel loads it."""
    n, k, dtype = 18, 64, torch.bfloat16
    wide_x, wide_out = random(m + 1, k + 16, dtype=dtype), poisoned(m + 1, n + 4, dtype=torch.float32)
    weight, values = weight_in_bytes(n, k, (1, 0), torch.float8_e4m3fn)
    wide = torch.full((n + 1, k + 16), 0x7F, dtype=torch.uint8, device=DEVICE)
    wide[:n, :k] = weight.weight.view(torch.uint8)
    x, out = wide_x[:m, shift : k + shift], wide_out[:m, 1 : n + 1]
    for rest in (wide_x[m:], wide_x[:, :shift], wide_x[:, k + shift :]):
        rest.fill_(float("nan"))
    inside = weight._replace(weight=wide.view(torch.float8_e4m3fn)[:n, :k])
    skinny_matmul(x, inside, out, plan_of(ONE, m, n))
    check(out, x.double() @ values.T)
    assert wide_out.isnan().sum() == wide_out.numel() - m * n


def test_a_row_that_is_not_finite_is_alone() -> None:
    x = random(12, 64, dtype=torch.bfloat16)
    weight, values = weight_in_bytes(16, 64, (1, 0), torch.int8)
    x[3, 5] = float("inf")
    out = poisoned(12, 16, dtype=torch.float32)
    skinny_matmul(x, weight, out, plan_of(ONE, 12, 16))
    assert not out[3].isfinite().any()
    others = [row for row in range(12) if row != 3]
    check(out[others], x[others].double() @ values.T)


def test_what_it_does_not_take() -> None:
    (weight, _), plan = weight_in_bytes(16, 64, (1, 0), torch.int8), plan_of(ONE, 1, 16)
    out = poisoned(MAX_ROWS + 1, 16, dtype=torch.float32)
    with pytest.raises(ValueError, match="16 tokens"):
        skinny_matmul(random(MAX_ROWS + 1, 64, dtype=torch.float16), weight, out, plan)
    with pytest.raises(ValueError, match="float32"):
        skinny_matmul(random(1, 64), weight, out[:1], plan)
    x = random(1, 64, dtype=torch.float16)
    with pytest.raises(ValueError, match="no norm"):
        skinny_matmul(x, weight, out[:1], plan, norm=Norm(random(64), 1e-5))
    with pytest.raises(ValueError, match="no plain weights"):
        skinny_matmul(x, random(16, 64, dtype=torch.float16), out[:1], plan)
    assert skinny_matmul(x[:0], weight, out[:0], plan).shape == (0, 16)


@pytest.mark.parametrize("bits", [4, 8])
def test_choice_fits_its_limits(bits: int) -> None:
    assert choose_direct(0, 4096, 4096, bits=bits, gated=False) is None
    assert choose_direct(MAX_ROWS + 1, 4096, 4096, bits=bits, gated=False) is None
    assert choose_direct(4, 4096, 4096 + 32, bits=bits, gated=False) is None
    for n, k in ((1024, 128), (4096, 1024), (1024, 3072), (6144, 4096), (4096, 14336), (28672, 4096)):
        for m in (1, 8, 9, 16):
            for gated in (False, True):
                variant = choose_direct(m, n, k, bits=bits, gated=gated)
                assert variant is not None
                assert variant.block_n in (16, 32)
                assert variant.warps * 512 // bits <= k or gated
                assert variant.warps * 32 * variant.registers <= 65536


@pytest.mark.parametrize(("hip", "capability"), [(None, (7, 5)), ("7.0", (9, 4))])
def test_gpus_that_lack_the_instruction(
    hip: str | None, capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.version, "hip", hip)
    capable.cache_clear()
    try:
        assert choose_direct(4, 4096, 4096, bits=8, gated=False) is None
    finally:
        capable.cache_clear()

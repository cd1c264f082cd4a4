"""skinny_matmul against float64 products of the same rounded inputs: every form, every addition around the product."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from products_inputs import DEVICE, plan_of, poisoned, random

from octavo.backends.torch.kernels.skinny_choice import MAX_ROWS, Variant, choose
from octavo.backends.torch.kernels.skinny_matmul import Norm, Plan, make_scratch, scratch_sizes, skinny_matmul

VECTOR = Variant("vector", 16, 128, 4)
DOT = Variant("dot", 16, 32, 4, 2)
SWAP = Variant("dot", 32, 32, 4, 2, swap=True)
SPLIT = Variant("dot", 16, 32, 4, 2, split=3)
SPLIT_SWAP = Variant("dot", 32, 16, 4, 2, split=2, swap=True)
HELD = Variant("held", 16, 64, 4, split=3)
HELD_WHOLE = Variant("held", 32, 256, 4)
GATING = {"vector": VECTOR, "dot": DOT, "swap": SWAP, "split": SPLIT, "split_swap": SPLIT_SWAP}
FORMS = GATING | {"held": HELD, "held_whole": HELD_WHOLE}
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
EPS = 1e-5


def normed(x: torch.Tensor, norm: Norm) -> torch.Tensor:
    """x: of its type, delta already added -> the same type."""
    return F.rms_norm(x.float(), norm.weight.shape, norm.weight, norm.eps).to(x.dtype)


def product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """float64."""
    return F.linear(x.double(), weight.double(), None if bias is None else bias.double())


def check(out: torch.Tensor, wanted: torch.Tensor, dtype: torch.dtype) -> None:
    scale = wanted.abs().max().item() + 1e-9
    error = (out.double() - wanted).abs().max().item() / scale  # NaN, where nothing was written, fails too
    assert error <= TOLERANCE[dtype], error


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_product_alone_of_odd_shapes(form: str, dtype: torch.dtype) -> None:
    m, n, k = (3, 37, 150) if form == "vector" else (17, 37, 150)
    x, weight = random(m, k, dtype=dtype), random(n, k, dtype=dtype)
    out = poisoned(m, n, dtype=dtype)
    plan = plan_of(FORMS[form], m, n)
    assert skinny_matmul(x, weight, out, plan) is out
    check(out, product(x, weight), dtype)
    assert plan.scratch is None or not plan.scratch.arrivals.any()


@pytest.mark.parametrize("m", [1, 2, 3, 4])
def test_vector_form_of_each_number_of_rows(m: int) -> None:
    x, weight = random(m, 128), random(9, 128)
    out = poisoned(m, 9, dtype=torch.float32)
    check(skinny_matmul(x, weight, out, plan_of(VECTOR, m, 9)), product(x, weight), torch.float32)


@pytest.mark.parametrize("m", [1, 16, 33, 64])
def test_dot_form_of_each_padding(m: int) -> None:
    x, weight = random(m, 64), random(20, 64)
    for variant in (DOT, SPLIT_SWAP, HELD):
        out = poisoned(m, 20, dtype=torch.float32)
        check(skinny_matmul(x, weight, out, plan_of(variant, m, 20)), product(x, weight), torch.float32)


@pytest.mark.parametrize("form", FORMS)
def test_strides_and_neighbours_are_respected(form: str) -> None:
    m, n, k = 2, 18, 96
    wide_x, wide_weight, wide_out = random(m, k + 5), random(n, k + 3), poisoned(m + 1, n + 4, dtype=torch.float32)
    x, weight, out = wide_x[:, :k], wide_weight[:, 2 : k + 2], wide_out[:m, 1 : n + 1]
    wide_x[:, k:] = wide_weight[:, :2] = wide_weight[:, k + 2 :] = float("nan")
    skinny_matmul(x, weight, out, plan_of(FORMS[form], m, n))
    check(out, product(x, weight), torch.float32)
    assert wide_out.isnan().sum() == wide_out.numel() - m * n


@pytest.mark.parametrize("with_delta", [False, True])
def test_norm_before_the_product(with_delta: bool) -> None:
    m, n, k, dtype = 3, 24, 150, torch.float16  # the interpreter truncates to bfloat16
    x, weight = random(m, k, dtype=dtype), random(n, k, dtype=dtype)
    delta = random(m, k, dtype=dtype) if with_delta else None
    x_out = poisoned(m + 1, k, dtype=dtype) if with_delta else None
    norm = Norm(random(k) + 1, EPS, delta, None if x_out is None else x_out[:m])
    before = x.clone()
    out = poisoned(m, n, dtype=dtype)
    skinny_matmul(x, weight, out, plan_of(VECTOR, m, n), norm=norm)
    summed = x if delta is None else x + delta
    check(out, product(normed(summed, norm), weight), dtype)
    assert torch.equal(x, before)
    if x_out is not None:
        assert torch.equal(x_out[:m], summed)
        assert x_out[m].isnan().all()


def test_norm_rounds_as_a_separate_kernel_would() -> None:
    k = 64
    x = random(2, k, dtype=torch.float16)  # the interpreter truncates to bfloat16
    norm = Norm(random(k) + 1, EPS)
    eye = torch.eye(k, device=DEVICE, dtype=torch.float16)
    out = poisoned(2, k, dtype=torch.float16)
    skinny_matmul(x, eye, out, plan_of(VECTOR, 2, k), norm=norm)
    same = (out == normed(x, norm)).float().mean()  # all but those that the sum's order tips over
    assert same > 0.97


@pytest.mark.parametrize("form", GATING)
@pytest.mark.parametrize("act", ["silu", "gelu", "gelu_tanh"])
def test_gated_activation(form: str, act: str) -> None:
    m, width, k, dtype = 2, 21, 64, torch.float16
    x, weight = random(m, k, dtype=dtype) / 4, random(2 * width, k, dtype=dtype)
    bias = random(2 * width, dtype=dtype) if act == "gelu" else None
    out = poisoned(m, width, dtype=dtype)
    plan = plan_of(FORMS[form], m, 2 * width, gated=True)
    skinny_matmul(x, weight, out, plan, bias=bias, act=act)
    gate, up = product(x, weight, bias).chunk(2, dim=-1)
    acted = F.silu(gate) if act == "silu" else F.gelu(gate, approximate="tanh" if act == "gelu_tanh" else "none")
    check(out, acted * up, dtype)


@pytest.mark.parametrize("form", FORMS)
def test_bias(form: str) -> None:
    m, n, k, dtype = 4, 23, 64, torch.bfloat16
    x, weight, bias = random(m, k, dtype=dtype), random(n, k, dtype=dtype), random(n, dtype=dtype)
    out = poisoned(m, n, dtype=dtype)
    skinny_matmul(x, weight, out, plan_of(FORMS[form], m, n), bias=bias)
    check(out, product(x, weight, bias), dtype)


@pytest.mark.parametrize("form", FORMS)
def test_float32_out_of_bfloat16_is_not_rounded(form: str) -> None:
    m, n, k = 2, 33, 64
    x, weight = random(m, k, dtype=torch.bfloat16), random(n, k, dtype=torch.bfloat16)
    out = poisoned(m, n, dtype=torch.float32)
    skinny_matmul(x, weight, out, plan_of(FORMS[form], m, n))
    check(out, product(x, weight), torch.float32)


@pytest.mark.parametrize(("k", "block_n"), [(128, 2), (100, 2), (100, 1)])
def test_vector_form_of_rows_in_one_block(k: int, block_n: int) -> None:
    x, weight, delta = (random(rows, k, dtype=torch.float16) for rows in (2, 14, 2))
    variant = Variant("vector", block_n, 128, 4)
    norm = Norm(random(k) + 1, EPS, delta, poisoned(2, k, dtype=torch.float16))
    out = poisoned(2, 7, dtype=torch.float16)
    skinny_matmul(x, weight, out, plan_of(variant, 2, 14, gated=True), norm=norm, act="silu")
    gate, up = product(normed(x + delta, norm), weight).chunk(2, dim=-1)
    check(out, F.silu(gate) * up, torch.float16)
    assert norm.x_out is not None
    assert torch.equal(norm.x_out, x + delta)


def test_split_serves_again_and_gives_the_same_bits() -> None:
    m, n, k = 5, 50, 100
    x, weight = random(m, k), random(n, k)
    plan = plan_of(SPLIT, m, n)
    outs = [skinny_matmul(x, weight, poisoned(m, n, dtype=torch.float32), plan) for _ in range(2)]
    assert torch.equal(outs[0], outs[1])
    check(outs[0], product(x, weight), torch.float32)


def test_more_parts_than_steps_of_k() -> None:
    x, weight = random(2, 40), random(16, 40)
    variant = Variant("dot", 16, 32, 4, 2, split=4)
    out = skinny_matmul(x, weight, poisoned(2, 16, dtype=torch.float32), plan_of(variant, 2, 16))
    check(out, product(x, weight), torch.float32)


def test_split_refuses_scratch_that_is_too_small() -> None:
    x, weight, out = random(2, 64), random(16, 64), poisoned(2, 16, dtype=torch.float32)
    for scratch in (None, make_scratch(8, 1, DEVICE)):
        with pytest.raises(ValueError, match="too small"):
            skinny_matmul(x, weight, out, Plan(SPLIT, scratch))


def test_what_a_variant_does_not_do_is_refused() -> None:
    x, weight, out = random(2, 64), random(16, 64), poisoned(2, 16, dtype=torch.float32)
    with pytest.raises(ValueError, match="takes no norm"):
        skinny_matmul(x, weight, out, plan_of(DOT, 2, 16), norm=Norm(random(64), EPS))
    with pytest.raises(ValueError, match="no activation"):
        skinny_matmul(x, weight, out[:, :8], plan_of(HELD, 2, 16, gated=True), act="silu")
    with pytest.raises(ValueError, match="in one block"):
        skinny_matmul(x, weight, out, plan_of(Variant("held", 16, 32, 4), 2, 16))


def test_no_rows() -> None:
    out = torch.empty(0, 8, device=DEVICE)
    assert skinny_matmul(random(0, 16), random(8, 16), out, Plan(VECTOR)) is out


def test_choice_fits_its_limits() -> None:
    assert choose(0, 4096, 4096) is None
    assert choose(MAX_ROWS + 1, 4096, 4096) is None
    for n, k in ((4096, 1024), (1024, 3072), (1024, 2048), (6144, 4096), (4096, 14336)):
        for m in (1, 2, 3, 4, 5, 16, 17, 32, 33, 48, 49, 64):
            for gated in (False, True):
                variant = choose(m, n, k, gated=gated)
                if variant is None:
                    continue
                assert variant.form != "vector" or m <= 4
                elements, tiles = scratch_sizes(variant, m, n, gated=gated)
                assert (tiles > 0) == (variant.split > 1)
                assert variant.form != "held" or variant.split * variant.block_k >= k
                assert elements * 4 <= 64 << 20

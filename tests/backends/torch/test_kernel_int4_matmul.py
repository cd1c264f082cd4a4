"""int4_matmul and dequantize against float64: both forms, every group size, with zeros and without."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from int4_matrices import draw
from products_inputs import DEVICE, poisoned, random

from octavo.backends.torch.kernels.direct_choice import Direct
from octavo.backends.torch.kernels.int4_matmul import (
    MAX_ROWS,
    Variant,
    choose,
    dequantize,
    int4_matmul,
    scratch_sizes,
)
from octavo.backends.torch.kernels.skinny_matmul import make_scratch
from octavo.backends.torch.quant.int4 import Int4Matrix

VECTOR = Variant("vector", 8, 1, 2, repeat=2)
DEEP = Variant("vector", 16, 4, 1, repeat=4)
DOT = Variant("dot", 64, 4, 2)
SPLIT = Variant("dot", 64, 4, 2, split=3)
FORMS = {"vector": VECTOR, "deep": DEEP, "dot": DOT, "split": SPLIT}
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 2e-3}


def rows_of(variant: Variant, m: int) -> int:
    return 1 if variant.form == "vector" else m


def multiply(variant: Variant, x: torch.Tensor, weight: Int4Matrix, out: torch.Tensor, **more: Any) -> torch.Tensor:
    """With poisoned scratch, which is left as a next product needs it."""
    sizes = scratch_sizes(variant, len(x), weight.shape[0], gated="act" in more)
    scratch = make_scratch(*sizes, DEVICE)
    scratch.partial.fill_(float("nan"))
    assert int4_matmul(x, weight, out, variant, scratch=scratch, **more) is out
    assert not scratch.arrivals.any()
    return out


def check(out: torch.Tensor, wanted: torch.Tensor, dtype: torch.dtype) -> None:
    error = (out.double() - wanted).abs().max().item() / (wanted.abs().max().item() + 1e-9)
    assert error <= TOLERANCE[dtype], error  # NaN, where nothing was written, fails too


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("group", [32, 64, 128, -1])
@pytest.mark.parametrize("zeros", [False, True])
def test_groups_of_each_size(form: str, group: int, zeros: bool) -> None:
    m, n, k, dtype = rows_of(FORMS[form], 3), 77, 384, torch.bfloat16 if zeros else torch.float16
    case = draw(n, k, group=group, zeros=zeros, device=DEVICE)
    x, out = random(m, k, dtype=dtype), poisoned(m, n, dtype=torch.float32)
    multiply(FORMS[form], x, case.matrix, out)
    check(out, x.double() @ case.values.T, torch.float32)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("k", [32, 96, 352])
def test_rows_of_odd_lengths(form: str, k: int) -> None:
    m, n, dtype = rows_of(FORMS[form], 2), 9, torch.bfloat16
    case = draw(n, k, group=-1 if k != 96 else 32, device=DEVICE)
    x, out = random(m, k, dtype=dtype), poisoned(m, n, dtype=dtype)
    check(multiply(FORMS[form], x, case.matrix, out), x.double() @ case.values.T, dtype)


@pytest.mark.parametrize("m", [1, 16, 33, 65, 129])
def test_dot_form_of_each_padding(m: int) -> None:
    case = draw(20, 128, group=64, device=DEVICE)
    x, out = random(m, 128, dtype=torch.float16), poisoned(m, 20, dtype=torch.float32)
    for variant in (DOT, SPLIT):
        check(multiply(variant, x, case.matrix, out), x.double() @ case.values.T, torch.float32)


@pytest.mark.parametrize("m", [65, 130])
@pytest.mark.parametrize(("group", "k"), [(32, 96), (64, 192), (128, 640), (-1, 352)])
def test_zeros_beside_many_tokens(m: int, group: int, k: int) -> None:
    """By sums of x, which no NaN beside x gets into."""
    case = draw(77, k, group=group, zeros=True, device=DEVICE)
    wide = random(m + 1, k + 8, dtype=torch.bfloat16)
    wide[m] = wide[:, k:] = float("nan")
    x = wide[:m, :k]
    for variant in (DOT, SPLIT):
        out = poisoned(m, 77, dtype=torch.float32)
        check(multiply(variant, x, case.matrix, out), x.double() @ case.values.T, torch.float32)
    pair, x = draw(2 * 38, k, group=group, zeros=True, device=DEVICE), x.half()
    gate, up = (x.double() @ pair.values.T).chunk(2, dim=-1)
    out = poisoned(m, 38, dtype=torch.float16)
    check(multiply(SPLIT, x, pair.matrix, out, act="silu"), F.silu(gate) * up, torch.float16)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("act", ["silu", "gelu_tanh"])
def test_gated_activation_and_bias(form: str, act: str) -> None:
    m, width, k, dtype = rows_of(FORMS[form], 2), 70, 128, torch.float16
    case = draw(2 * width, k, group=32, zeros=act == "silu", device=DEVICE)
    x, bias = random(m, k, dtype=dtype), random(2 * width, dtype=dtype)
    out = poisoned(m, width, dtype=dtype)
    multiply(FORMS[form], x, case.matrix, out, bias=bias, act=act)
    gate, up = F.linear(x.double(), case.values, bias.double()).chunk(2, dim=-1)
    acted = F.silu(gate) if act == "silu" else F.gelu(gate, approximate="tanh")
    check(out, acted * up, dtype)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("scales", [torch.bfloat16, torch.float32], ids=str)
def test_strides_neighbours_and_scales_of_each_type(form: str, scales: torch.dtype) -> None:
    m, n, k = rows_of(FORMS[form], 2), 18, 96
    case = draw(n, k, group=32, scales=scales, zeros=True, device=DEVICE)
    wide_x, wide_out = random(m, k + 6, dtype=torch.bfloat16), poisoned(m + 1, n + 4, dtype=torch.float32)
    x, out = wide_x[:, 2 : k + 2], wide_out[:m, 1 : n + 1]
    wide_x[:, :2] = wide_x[:, k + 2 :] = float("nan")
    multiply(FORMS[form], x, case.matrix, out)
    check(out, x.double() @ case.values.T, torch.float32)
    assert wide_out.isnan().sum() == wide_out.numel() - m * n


def test_split_serves_again_and_gives_the_same_bits() -> None:
    case, x = draw(50, 256, group=64, device=DEVICE), random(5, 256, dtype=torch.float16)
    scratch = make_scratch(*scratch_sizes(SPLIT, 5, 50), DEVICE)
    outs = [poisoned(5, 50, dtype=torch.float32) for _ in range(2)]
    for out in outs:
        int4_matmul(x, case.matrix, out, SPLIT, scratch=scratch)
    assert torch.equal(*outs)
    for small in (None, make_scratch(8, 1, DEVICE)):
        with pytest.raises(ValueError, match="too small"):
            int4_matmul(x, case.matrix, outs[0], SPLIT, scratch=small)


def test_no_rows() -> None:
    out = torch.empty(0, 8, device=DEVICE)
    weight = draw(8, 32, group=32, device=DEVICE).matrix
    assert int4_matmul(random(0, 32, dtype=torch.float16), weight, out, VECTOR) is out


@pytest.mark.parametrize("group", [32, 128, -1])
@pytest.mark.parametrize("zeros", [False, True])
def test_dequantize_rounds_once(group: int, zeros: bool) -> None:
    n, k, dtype = 70, 256 if group == 128 else 160, torch.float16
    case = draw(n, k, group=group, zeros=zeros, device=DEVICE)
    out = poisoned(n + 1, k, dtype=dtype)
    assert dequantize(case.matrix, out[:n]).shape == (n, k)
    assert torch.equal(out[:n], case.values.to(dtype))
    assert out[n].isnan().all()


def test_choice_fits_its_limits() -> None:
    assert choose(0, 4096, 4096, group=128) is None
    assert choose(MAX_ROWS + 1, 4096, 4096, group=128) is None
    for n, k in ((4096, 1024), (1024, 3072), (6144, 4096), (4096, 14336), (28672, 4096)):
        for m in (1, 2, 3, 16, 17, 32, 33, 64, 65, 128, 129, 256):
            for gated in (False, True):
                for group in (64, 128):
                    variant = choose(m, n, k, group=group, gated=gated)
                    assert (variant is None) == (gated and m > 64)
                    if variant is None:
                        continue
                    assert isinstance(variant, Direct) == (m <= 16 and group == 128)
                    if isinstance(variant, Variant):
                        assert variant.form == "dot" or m == 1
                        assert not gated or variant.form == "dot" or variant.repeat % 2 == 0
                    elements, tiles = scratch_sizes(variant, m, n, gated=gated)
                    assert (tiles > 0) == (variant.split > 1)
                    assert elements * 4 <= 64 << 20

"""Int4Matrix: its packing, stored matrices of every layout in it, and products that take it for a plain matrix."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from int4_matrices import draw, pack
from quantized_checkpoints import INT4_FORMATS, Quantizer, as_found, gptq

from octavo.backends.torch.kernels.skinny_matmul import Plan, make_scratch
from octavo.backends.torch.ops.products import product_of
from octavo.backends.torch.quant import JOINS, REQUANTIZE
from octavo.backends.torch.quant import int4 as module
from octavo.backends.torch.quant.int4 import Int4Matrix
from octavo.base.errors import UnsupportedError
from octavo.base.types.tensor import MatrixScheme, QuantizedTensor

HOST = torch.device("cpu")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def stored(name: str, matrix: torch.Tensor, quantizer: Quantizer | None = None) -> tuple[QuantizedTensor, torch.Tensor]:
    """A matrix as a file of this format has it, and what it means."""
    config, usual = INT4_FORMATS[name]
    parts, means = (quantizer or usual)(matrix)
    return as_found(config, parts, tuple(matrix.shape)), means


def test_packing_is_what_it_says() -> None:
    q = torch.randint(0, 16, (9, 96), dtype=torch.uint8)
    words = module.pack(q)
    assert torch.equal(words, pack(q))
    assert torch.equal(module.unpack(words), q)


@pytest.mark.parametrize(("group", "zeros"), [(32, False), (64, True), (-1, True)])
def test_dequantize(group: int, zeros: bool) -> None:
    case = draw(11, 192, group=group, zeros=zeros)
    assert case.matrix.shape == (11, 192)
    assert case.matrix.group == (192 if group == -1 else group)
    torch.testing.assert_close(case.matrix.dequantize(torch.float32).double(), case.values, rtol=2**-23, atol=0)
    assert torch.equal(case.matrix.dequantize(torch.float16), case.values.half())


@pytest.mark.parametrize("name", INT4_FORMATS)
def test_stored_matrices_one_below_the_other(name: str) -> None:
    pieces = [stored(name, torch.randn(out, 128) / 8) for out in (8, 24, 16)]
    joined = JOINS[pieces[0][0].scheme.layout]([piece for piece, _ in pieces], HOST)
    assert isinstance(joined, Int4Matrix)
    assert joined.shape == (48, 128)
    assert (joined.order is not None) == (name in ("gptq_shuffled", "packed_zeros"))
    assert (joined.zeros is None) == (
        name in ("gptq", "gptq_shuffled", "packed_group", "packed_channel", "packed_sharded")
    )
    means = torch.cat([means for _, means in pieces])
    torch.testing.assert_close(joined.dequantize(torch.float32), means, rtol=2**-22, atol=0)


def test_matrices_that_do_not_go_together() -> None:
    matrix = torch.randn(8, 128)
    shuffled, _ = stored("gptq_shuffled", matrix)
    ordered, _ = stored("gptq_shuffled", matrix, gptq(32))
    assert JOINS["gptq"]([shuffled, shuffled], HOST) is not None
    assert JOINS["gptq"]([shuffled, ordered], HOST) is None
    rows, _ = stored("gptq_row", matrix)
    assert JOINS["gptq"]([ordered, rows], HOST) is None


def test_zeros_of_some_are_zeros_of_all() -> None:
    plain, first = stored("gptq", torch.randn(8, 128))
    with_zeros, second = stored("gptq", torch.randn(16, 128) + 0.5, gptq(32, symmetric=False))
    joined = JOINS["gptq"]([plain, with_zeros], HOST)
    assert isinstance(joined, Int4Matrix)
    assert joined.zeros is not None
    torch.testing.assert_close(joined.dequantize(torch.float32), torch.cat([first, second]), rtol=2**-22, atol=0)


@pytest.mark.parametrize("zeros", [False, True])
def test_random_numbers_become_4_bit_ones(zeros: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PIECE", 1000)
    matrix = torch.randn(21, 256).bfloat16()
    matrix[3] = 0
    made = REQUANTIZE["gptq"](matrix, MatrixScheme("gptq", 4, (1, 128), zeros))
    assert isinstance(made, Int4Matrix)
    assert (made.group, made.zeros is not None) == (128, zeros)
    step = made.scales.T.float().repeat_interleave(128, 1)
    assert ((made.dequantize(torch.float32) - matrix.float()).abs() <= 0.51 * step + 1e-6).all()
    with pytest.raises(UnsupportedError, match="rows of 256"):
        REQUANTIZE["gptq"](matrix, MatrixScheme("gptq", 4, (1, 96)))


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("m", [1, 3])
def test_products(m: int, shuffled: bool) -> None:
    """Few tokens and many, against float64."""
    case = draw(40, 128, group=32, zeros=True, device=DEVICE)
    order = torch.randperm(128).to(DEVICE) if shuffled else None
    values = case.values if order is None else torch.empty_like(case.values).index_copy_(1, order, case.values)
    matrix = Int4Matrix(case.matrix.words, case.matrix.scales, case.matrix.zeros, order)
    x, bias = torch.randn(m, 128).to(DEVICE, torch.float16), torch.randn(40).to(DEVICE, torch.float16)
    product = product_of(matrix)
    wanted = F.linear(x.double(), values, bias.double())
    variant = product.choose(m, matrix, gated=False)
    plan = Plan(variant, make_scratch(*product.scratch_sizes(variant, m, matrix, gated=False), DEVICE))
    few = product.few(x, matrix, torch.full((m, 40), float("nan"), device=DEVICE).half(), plan, bias=bias)
    for out in (few, product.many(x, matrix, bias)):
        assert (out.double() - wanted).abs().max() <= 3e-3 * wanted.abs().max()
    exact = product.many(x.float(), matrix, bias.float())
    torch.testing.assert_close(exact.double(), wanted, rtol=1e-5, atol=1e-5)

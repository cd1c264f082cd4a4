"""FusedOps against PlainOps, operation by operation, in float16: few tokens (one product a launch) and more.

With plain matrices and with FP8 ones, of which PlainOps multiplies the dequantized numbers.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch_driver import arrays, layer, spec, stored

from octavo.backends.torch.batch import padded_sizes
from octavo.backends.torch.kernels.byte_matmul import FEWEST
from octavo.backends.torch.ops import fused as fused_module
from octavo.backends.torch.ops.fused import FusedOps
from octavo.backends.torch.ops.plain import PlainOps
from octavo.backends.torch.ops.port import Stream
from octavo.backends.torch.ops.products import product_of
from octavo.backends.torch.quant import ONLINE
from octavo.backends.torch.quant.int4 import Int4Matrix, quantize_int4
from octavo.backends.torch.quant.scaled import ScaledMatrix
from octavo.backends.torch.weights import load_weights
from octavo.base.types.tensor import MatrixScheme
from octavo.models.spec import RMSNorm

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
MODEL = spec(layer({"qkv_bias": True}, {"bias": True, "width": 64}))
NORM = RMSNorm(1e-5)
TOKENS = (1, 4, 11, 13)  # of which 11 are the fullest step, and 13 no step of single tokens


@pytest.fixture(scope="module", params=[None, "fp8", "int4"], ids=["plain", "fp8", "int4"])
def made(request: pytest.FixtureRequest) -> tuple[FusedOps, PlainOps, Any]:
    weights = {name: stored(name, array) for name, array in arrays(MODEL).items()}
    with torch.inference_mode(), pytest.MonkeyPatch.context() as patch:
        patch.setitem(ONLINE, "int4", partial(quantize_int4, scheme=MatrixScheme("gptq", 4, (1, 32), zeros=True)))
        loaded = load_weights(MODEL, weights, dtype=torch.float16, device=DEVICE, quantization=request.param)
        fused = FusedOps(MODEL, device=DEVICE, max_model_len=32, max_num_seqs=11, quantized=loaded.quantized())
        return fused, PlainOps(), loaded


def half(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).half().to(DEVICE)


def streams(tokens: int) -> list[Stream]:
    return [Stream(half(tokens, 32), None), Stream(half(tokens, 32), half(tokens, 32, seed=1))]


def close(one: Any, other: Any, *, rounded: bool = False) -> None:
    """rounded: to E4M3 on the way, on one side."""
    for a, b in zip(one, other, strict=True):
        assert a.dtype == b.dtype
        if rounded:
            assert (a.float() - b.float()).norm() <= 0.06 * b.float().norm()
        else:
            torch.testing.assert_close(a.float(), b.float(), rtol=4e-3, atol=1e-2)


def copy(stream: Stream) -> Stream:
    return Stream(*(None if part is None else part.clone() for part in stream))


@pytest.mark.parametrize("tokens", TOKENS)
def test_norms_and_products(tokens: int, made: tuple[FusedOps, PlainOps, Any]) -> None:
    fused, plain, weights = made
    first = weights.layers[0]
    rounded = isinstance(first.o, ScaledMatrix) and tokens >= FEWEST
    for stream in streams(tokens):
        for name, arguments in {
            "add_norm": (first.pre_ffn, NORM),
            "norm_linear": (first.pre_mixer, NORM, first.qkv, first.qkv_bias),
            "norm_mlp": (first.pre_ffn, NORM, first.ffn, "silu"),
        }.items():
            got, expected = (getattr(ops, name)(copy(stream), *arguments) for ops in (fused, plain))
            close(got, expected, rounded=rounded)
    h = half(tokens, 32, seed=2)
    close([fused.norm(h, first.pre_ffn, NORM)], [plain.norm(h, first.pre_ffn, NORM)])
    close([fused.linear(h, first.o, None)], [plain.linear(h, first.o, None)], rounded=rounded)
    close([fused.mlp(h, first.ffn, "gelu_tanh")], [plain.mlp(h, first.ffn, "gelu_tanh")], rounded=rounded)
    close([fused.logits(h, weights.head)], [plain.logits(h, weights.head)])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("scale", [1.0, 5.5])
def test_ends(scale: float, made: tuple[FusedOps, PlainOps, Any]) -> None:
    fused, plain, weights = made
    ids = torch.tensor([3, 0, 60], dtype=torch.int32, device=DEVICE)
    assert torch.equal(fused.embed(ids, weights.embed, scale), plain.embed(ids, weights.embed, scale))
    last = torch.tensor([4, 1], device=DEVICE)
    for stream in streams(5):
        stream.x[1, 7] = torch.inf
        got, expected = (ops.finish(copy(stream), last, weights.final_norm, NORM) for ops in (fused, plain))
        assert got[1].tolist() == expected[1].tolist() == [1, 0]
        close([got[0][:1]], [expected[0][:1]])


def meta(*shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


MATRICES = {
    "plain": meta(4096, 4096),
    "fp8": ScaledMatrix(meta(4096, 4096, dtype=torch.float8_e4m3fn), meta(32, 32, dtype=torch.float32), (128, 128)),
    "int4": Int4Matrix(meta(128, 4096, 4, dtype=torch.int32), meta(32, 4096), None),
}


@pytest.mark.parametrize("most", [1, 3, 10, 12, 20, 30, 40, 50, 60, 64, 65, 100, 200, 256, 257])
@pytest.mark.parametrize("kind", MATRICES)
def test_steps_up_to_the_fullest_have_plans(kind: str, most: int) -> None:
    """Of the sizes that they are padded to, the fullest's own among them, with scratch that is large enough; others,
    whose kernels are not compiled ahead, have none.
    """
    weight = MATRICES[kind]
    product = product_of(weight)
    plans = fused_module._make_plans([weight], most, torch.device("cpu"))
    for m in {most, *padded_sizes(product.rows)}:
        for act in (False, True):
            variant = product.choose(m, weight, gated=act) if m <= min(product.rows, most) else None
            plan = plans.get((m, fused_module._kind(weight), act))
            assert (plan and plan.variant) == variant
            if plan is not None and plan.scratch is not None:
                elements, tiles = product.scratch_sizes(variant, m, weight, gated=act)
                assert plan.scratch.partial.numel() >= elements
                assert plan.scratch.arrivals.numel() >= tiles
    if kind != "plain":
        assert ((most, fused_module._kind(weight), False) in plans) == (most <= product.rows)

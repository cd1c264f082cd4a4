"""Gate and up projections side by side in, act(gate) * up out."""

# ruff: noqa: N803 (in capitals: what a kernel is compiled for)
from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from octavo.backends.torch.kernels import pdl

COLUMNS, WARPS = 1024, 4
"""Of a program: 8 elements a thread, so that bfloat16 moves in accesses of 16 bytes, gate and up at the same time."""


def gated(gate_up: Tensor, out: Tensor, act: str) -> None:
    """gate_up: [tokens, 2 * width], the gates first; out: [tokens, width] of the same type; both contiguous.

    act: silu, gelu (of erf) or gelu_tanh, in float32, rounded to the type before the product, as layers/mlp.py does.
    """
    launch_gated(gate_up, out, act, COLUMNS, WARPS)


def launch_gated(gate_up: Tensor, out: Tensor, act: str, columns: int, warps: int) -> None:
    """`gated` with the width of a program and its warps given (benchmarks)."""
    tokens, width = out.shape
    if tokens:
        # tokens on the first axis: the second ends at 65535, and a mixture has top_k rows for each token
        grid = (tokens, triton.cdiv(width, columns))
        _gated[grid](gate_up, out, WIDTH=width, ACT=act, BLOCK=columns, num_warps=warps, **pdl.options())


@triton.jit
def _gated(gate_up, out, WIDTH: tl.constexpr, ACT: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < WIDTH
    gates = gate_up + token * (2 * WIDTH) + column
    pdl.wait(PDL)
    gate = tl.load(gates, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gates + WIDTH, mask=inside, other=0.0).to(tl.float32)
    kind: tl.constexpr = out.dtype.element_ty
    y = activate(gate, ACT).to(kind).to(tl.float32) * up
    tl.store(out + token * WIDTH + column, y.to(kind), mask=inside)


@triton.jit
def activate(x, ACT: tl.constexpr):
    """float32 in and out."""
    if ACT == "silu":
        y = x / (1.0 + tl.exp(-x))
    elif ACT == "gelu":
        y = 0.5 * x * (1.0 + tl.math.erf(x * 0.7071067811865476))
    else:
        tl.static_assert(ACT == "gelu_tanh", "act is none of silu, gelu, gelu_tanh")
        # (1 + tanh(u)) / 2 = 1 / (1 + exp(-2 u)), with u = sqrt(2 / pi) * (x + 0.044715 x^3)
        y = x / (1.0 + tl.exp(-1.5957691216057308 * (x + 0.044715 * x * x * x)))
    return y

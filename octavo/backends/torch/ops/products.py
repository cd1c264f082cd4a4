"""How a kind of matrix is multiplied: one row a class of matrix. Few tokens by our kernels, many by a library's."""

from __future__ import annotations

from typing import Any, Protocol

import torch.nn.functional as F
from torch import Tensor

from octavo.backends.torch.kernels import skinny_matmul as skinny
from octavo.backends.torch.kernels.skinny_matmul import Norm, Plan
from octavo.backends.torch.ops.int4 import Int4
from octavo.backends.torch.quant.int4 import Int4Matrix
from octavo.backends.torch.quant.matrix import Matrix, QuantizedMatrix


class Product(Protocol):
    """x: [tokens, in] in a 16-bit type; tokens at most skinny_matmul.MAX_ROWS for `choose` and `few`.

    norms: whether `few` takes a norm.
    """

    norms: bool

    def choose(self, m: int, weight: Any, *, gated: bool) -> Any | None:
        """The kernel's variant for m tokens, for Plan.variant; None: what `many` does is at least as fast."""

    def scratch_sizes(self, variant: Any, m: int, weight: Any, *, gated: bool) -> tuple[int, int]:
        """As skinny_matmul.scratch_sizes: float32 elements and counters."""

    def few(
        self,
        x: Tensor,
        weight: Any,
        out: Tensor,
        plan: Plan,
        *,
        norm: Norm | None = None,
        bias: Tensor | None = None,
        act: str = "",
    ) -> Tensor:
        """out = f(x) @ weight.T and what is asked for, as skinny_matmul.skinny_matmul; returns out."""

    def many(self, x: Tensor, weight: Any, bias: Tensor | None) -> Tensor:
        """x @ weight.T + bias in x's type, for any number of tokens."""


class Dense:
    """Plain matrices."""

    norms = True

    def choose(self, m: int, weight: Tensor, *, gated: bool) -> skinny.Variant | None:
        """As Product."""
        return skinny.choose(m, *weight.shape, gated=gated)

    def scratch_sizes(self, variant: skinny.Variant, m: int, weight: Tensor, *, gated: bool) -> tuple[int, int]:
        """As Product."""
        return skinny.scratch_sizes(variant, m, len(weight), gated=gated)

    def few(
        self,
        x: Tensor,
        weight: Tensor,
        out: Tensor,
        plan: Plan,
        *,
        norm: Norm | None = None,
        bias: Tensor | None = None,
        act: str = "",
    ) -> Tensor:
        """As Product."""
        return skinny.skinny_matmul(x, weight, out, plan, norm=norm, bias=bias, act=act)

    def many(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """As Product."""
        return F.linear(x, weight, bias)


class Dequantized(Dense):
    """What there is no kernel for: a plain matrix is made of it each time."""

    def choose(self, m: int, weight: QuantizedMatrix, *, gated: bool) -> None:  # type: ignore[override]
        """As Product."""

    def many(self, x: Tensor, weight: QuantizedMatrix, bias: Tensor | None) -> Tensor:  # type: ignore[override]
        """As Product."""
        return F.linear(x, weight.dequantize(x.dtype), bias)


PRODUCTS: dict[type, Product] = {Tensor: Dense(), Int4Matrix: Int4()}
"""By class; for others, Dequantized."""


def product_of(weight: Matrix) -> Product:
    """How to multiply with it."""
    return PRODUCTS.get(type(weight), _DEQUANTIZED)


_DEQUANTIZED: Product = Dequantized()

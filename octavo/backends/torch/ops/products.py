"""How a kind of matrix is multiplied: one row a class of matrix. Few tokens by our kernels, many by a library's."""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.backends.torch.kernels.direct_choice import Direct
from octavo.backends.torch.kernels.fp8_matmul import (
    MOST_ROWS,
    choose_fp8,
    quantize_rows,
    scaled_matmul,
    scaled_matmul_takes,
    widen,
)
from octavo.backends.torch.kernels.gated import gated
from octavo.backends.torch.kernels.int8_matmul import integer_matmul, takes
from octavo.backends.torch.kernels.skinny_choice import MAX_ROWS, Variant, choose
from octavo.backends.torch.kernels.skinny_matmul import Norm, Plan, Scaled, scratch_sizes, skinny_matmul
from octavo.backends.torch.ops.int4 import Int4
from octavo.backends.torch.quant.int4 import Int4Matrix
from octavo.backends.torch.quant.matrix import Matrix
from octavo.backends.torch.quant.scaled import ScaledMatrix
from octavo.base.errors import UnsupportedError


class Product(Protocol):
    """x: [tokens, in] in a 16-bit type.

    rows: the most tokens that `few` takes.  norms: whether it takes a norm.
    """

    rows: int
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

    rows = MAX_ROWS
    norms = True

    def choose(self, m: int, weight: Any, *, gated: bool) -> Variant | Direct | None:
        """As Product."""
        return choose(m, *weight.shape, gated=gated)

    def scratch_sizes(self, variant: Variant | Direct, m: int, weight: Any, *, gated: bool) -> tuple[int, int]:
        """As Product."""
        return scratch_sizes(variant, m, weight.shape[0], gated=gated)

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
        """As Product."""
        return skinny_matmul(x, weight, out, plan, norm=norm, bias=bias, act=act)

    def many(self, x: Tensor, weight: Any, bias: Tensor | None) -> Tensor:
        """As Product."""
        return F.linear(x, weight, bias)


class Bytes(Dense):
    """Few tokens keep their 16 bits; many are rounded as the weight is, where the format and the device have that."""

    rows = MOST_ROWS
    norms = False  # a norm hides behind what a plain product reads, not behind half of it

    def choose(self, m: int, weight: Any, *, gated: bool) -> Variant | Direct | None:
        """As Product."""
        integers = weight.weight.dtype == torch.int8
        # asked for any m, as the first answer takes a product, which no graph is to hold
        both = weight.both and (not weight.group[1] if integers else scaled_matmul_takes(weight.weight, weight.group))
        if both and m > MAX_ROWS:
            return None
        return choose_fp8(m, *weight.shape, columns=weight.group[1], gated=gated)

    def few(self, x: Tensor, weight: Any, out: Tensor, plan: Plan, **more: Any) -> Tensor:
        """As Product."""
        return super().few(x, Scaled(weight.weight, weight.scale, weight.group), out, plan, **more)

    def many(self, x: Tensor, weight: Any, bias: Tensor | None) -> Tensor:
        """As Product."""
        out = _on_both_sides(x, weight, bias)
        if out is None:
            out = F.linear(x, widen(weight.weight, weight.scale, weight.group, x.dtype), bias)
        return out


def _on_both_sides(x: Tensor, weight: ScaledMatrix, bias: Tensor | None, act: str = "") -> Tensor | None:
    """The product with x rounded to what the weight's elements are; None where it is not to be, or cannot.

    act: x is what quantize_rows takes with it.
    """
    if not weight.both:
        return None
    if weight.weight.dtype != torch.int8:
        return scaled_matmul(x, weight.weight, weight.scale, bias, group=weight.group, act=act)
    if weight.group[1] or not takes(x, weight.weight):
        return None
    rows, row_scale = quantize_rows(x, act=act, dtype=torch.int8)
    return integer_matmul(rows, row_scale, weight.weight, weight.scale, bias, x.dtype)


def gated_product(inner: Tensor, weight: Matrix, bias: Tensor | None, act: str) -> Tensor:
    """act(first half of inner's columns) * second half, times weight.T: for any number of tokens."""
    if isinstance(weight, ScaledMatrix):
        out = _on_both_sides(inner, weight, bias, act)
        if out is not None:
            return out
    y = inner.new_empty(len(inner), inner.shape[1] // 2)
    gated(inner, y, act)
    return product_of(weight).many(y, weight, bias)


PRODUCTS: dict[type, Product] = {Tensor: Dense(), ScaledMatrix: Bytes(), Int4Matrix: Int4()}
"""By class of matrix."""


def product_of(weight: Matrix) -> Product:
    """How to multiply with it. UnsupportedError for a class without a product."""
    product = PRODUCTS.get(type(weight))
    if product is None:
        raise UnsupportedError(f"there is no kernel for matrices of {type(weight).__name__}")
    return product

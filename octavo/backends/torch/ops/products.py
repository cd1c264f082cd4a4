"""How a kind of matrix is multiplied: one row a class of matrix. Few tokens by our kernels, many by a library's."""

from __future__ import annotations

from typing import Any, Protocol

import torch.nn.functional as F
from torch import Tensor

from octavo.backends.torch.kernels.byte_matmul import byte_matmul, bytes_take, choose_bytes, many_bytes
from octavo.backends.torch.kernels.direct_choice import Direct
from octavo.backends.torch.kernels.fp8_matmul import (
    MOST_ROWS,
    choose_fp8,
    scaled_matmul,
    scaled_matmul_takes,
    widen,
)
from octavo.backends.torch.kernels.gated import gated
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
    """Few tokens keep their 16 bits; more are rounded as the weight is, where the format and the device have that."""

    rows = MOST_ROWS
    norms = False  # a norm hides behind what a plain product reads, not behind half of it

    def choose(self, m: int, weight: Any, *, gated: bool) -> Variant | Direct | None:
        """As Product."""
        columns = weight.group[1]
        if weight.both:
            # asked for any m, as the first answer takes a product, which no graph is to hold
            library = scaled_matmul_takes(weight.weight, weight.group)
            variant = choose_bytes(m, *weight.shape, columns=columns, integers=weight.integers, library=library)
            if variant is not None:
                return None if gated else variant
            if library and m > MAX_ROWS:
                return None
        return choose_fp8(m, *weight.shape, columns=columns, gated=gated)

    def few(self, x: Tensor, weight: Any, out: Tensor, plan: Plan, **more: Any) -> Tensor:
        """As Product."""
        if plan.variant.form == "bytes":
            return byte_matmul(x, _scaled(weight), out, plan, **more)
        return super().few(x, _scaled(weight), out, plan, **more)

    def many(self, x: Tensor, weight: Any, bias: Tensor | None) -> Tensor:
        """As Product."""
        out = _on_both_sides(x, weight, bias)
        if out is None:
            out = F.linear(x, widen(weight.weight, weight.scale, weight.group, x.dtype), bias)
        return out


def _scaled(weight: ScaledMatrix) -> Scaled:
    return Scaled(weight.weight, weight.scale, weight.group)


def _on_both_sides(x: Tensor, weight: ScaledMatrix, bias: Tensor | None, act: str = "") -> Tensor | None:
    """The product with x rounded to what the weight's elements are; None where it is not to be, or cannot.

    act: x is what quantize_rows takes with it.
    """
    if not weight.both:
        return None
    out = scaled_matmul(x, weight.weight, weight.scale, bias, group=weight.group, act=act)
    (n, k), columns = weight.shape, weight.group[1]
    if out is None and x.element_size() == 2 and bytes_take(k, columns=columns, integers=weight.integers):
        plan = Plan(many_bytes(len(x), k, columns=columns))
        out = byte_matmul(x, _scaled(weight), x.new_empty(len(x), n), plan, bias=bias, act=act)
    return out


def gated_product(inner: Tensor, weight: Matrix, bias: Tensor | None, act: str, plan: Plan | None = None) -> Tensor:
    """act(first half of inner's columns) * second half, times weight.T: for any number of tokens.

    plan: of this product, or None for Product.many.
    """
    if isinstance(weight, ScaledMatrix):
        if plan is not None and plan.variant.form == "bytes":
            out = inner.new_empty(len(inner), weight.shape[0])
            return byte_matmul(inner, _scaled(weight), out, plan, bias=bias, act=act)
        rounded = _on_both_sides(inner, weight, bias, act) if plan is None else None
        if rounded is not None:
            return rounded
    y = inner.new_empty(len(inner), inner.shape[1] // 2)
    gated(inner, y, act)
    if plan is None:
        return product_of(weight).many(y, weight, bias)
    return product_of(weight).few(y, weight, y.new_empty(len(y), weight.shape[0]), plan, bias=bias)


PRODUCTS: dict[type, Product] = {Tensor: Dense(), ScaledMatrix: Bytes(), Int4Matrix: Int4()}
"""By class of matrix."""


def product_of(weight: Matrix) -> Product:
    """How to multiply with it. UnsupportedError for a class without a product."""
    product = PRODUCTS.get(type(weight))
    if product is None:
        raise UnsupportedError(f"there is no kernel for matrices of {type(weight).__name__}")
    return product

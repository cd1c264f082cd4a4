"""How 4-bit matrices are multiplied: few tokens by our kernels, many by a library's product of them dequantized."""

from __future__ import annotations

from typing import cast

import torch.nn.functional as F
from torch import Tensor

from octavo.backends.torch.kernels import int4_matmul as kernels
from octavo.backends.torch.kernels.direct_choice import Direct
from octavo.backends.torch.kernels.skinny_matmul import Norm, Plan
from octavo.backends.torch.quant.int4 import Int4Matrix


class Int4:
    """products.Product."""

    rows = kernels.MAX_ROWS
    norms = False

    def choose(self, m: int, weight: Int4Matrix, *, gated: bool) -> kernels.Variant | Direct | None:
        """As Product."""
        return kernels.choose(m, *weight.shape, group=weight.group, gated=gated)

    def scratch_sizes(
        self, variant: kernels.Variant | Direct, m: int, weight: Int4Matrix, *, gated: bool
    ) -> tuple[int, int]:
        """As Product."""
        return kernels.scratch_sizes(variant, m, weight.shape[0], gated=gated)

    def few(
        self,
        x: Tensor,
        weight: Int4Matrix,
        out: Tensor,
        plan: Plan,
        *,
        norm: Norm | None = None,
        bias: Tensor | None = None,
        act: str = "",
    ) -> Tensor:
        """As Product."""
        x, variant = _ordered(x, weight), cast("kernels.Variant | Direct", plan.variant)
        return kernels.int4_matmul(x, weight, out, variant, scratch=plan.scratch, bias=bias, act=act)

    def many(self, x: Tensor, weight: Int4Matrix, bias: Tensor | None) -> Tensor:
        """As Product."""
        if x.element_size() != 2:
            return F.linear(x, weight.dequantize(x.dtype), bias)
        plain = kernels.dequantize(weight, x.new_empty(weight.shape))
        return F.linear(_ordered(x, weight), plain, bias)


def _ordered(x: Tensor, weight: Int4Matrix) -> Tensor:
    """x's columns as the weight's lie."""
    return x if weight.order is None else x.index_select(1, weight.order)

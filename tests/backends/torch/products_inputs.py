"""What the tests of products share: random and poisoned tensors, and plans whose scratch is poisoned."""

from __future__ import annotations

import torch

from octavo.backends.torch.kernels.direct_choice import Direct
from octavo.backends.torch.kernels.skinny_choice import Variant
from octavo.backends.torch.kernels.skinny_matmul import Plan, make_scratch, scratch_sizes

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def random(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape).to(DEVICE, dtype)


def poisoned(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.full(shape, float("nan"), dtype=dtype, device=DEVICE)


def plan_of(variant: Variant | Direct, m: int, n: int, gated: bool = False) -> Plan:
    elements, tiles = scratch_sizes(variant, m, n, gated=gated)
    scratch = make_scratch(elements, tiles, DEVICE) if tiles else None
    if scratch is not None:
        scratch.partial.fill_(float("nan"))
    return Plan(variant, scratch)

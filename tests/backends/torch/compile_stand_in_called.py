"""A function that a kernel of another module calls, with a constant that is another one where torch is absent."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

WITH_TORCH = tl.constexpr(torch.version.hip is None)


@triton.jit
def _marked(value, ABSENT: tl.constexpr):  # noqa: N803
    if not WITH_TORCH:
        value = ABSENT
    return value


@triton.jit
def marked(value, ABSENT: tl.constexpr):  # noqa: N803
    return _marked(value, ABSENT)

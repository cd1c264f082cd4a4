"""RMSNorm of the vocabulary: x of any type in, the same type out, computed in float32."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from octavo.models.spec import RMSNorm


def rms_norm(x: Tensor, weight: Tensor, norm: RMSNorm) -> Tensor:
    """x: [..., width]; weight: float32 [width], norm.offset already added to it (weights.py)."""
    return F.rms_norm(x.float(), weight.shape, weight, norm.eps).to(x.dtype)

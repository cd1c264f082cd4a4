"""GatedMLP of the vocabulary."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor

from octavo.backends.torch.layers.linear import linear
from octavo.backends.torch.weights import MlpWeights

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
}


def gated_mlp(x: Tensor, weights: MlpWeights, act: str) -> Tensor:
    """x: [tokens, hidden] -> the same."""
    gate, up = linear(x, weights.gate_up, weights.gate_up_bias).chunk(2, dim=-1)
    return linear(ACTIVATIONS[act](gate) * up, weights.down, weights.down_bias)

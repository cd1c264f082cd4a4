"""What a decoder asks of a device: one method an operation, tensors in, tensors out."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor

from octavo.backends.torch.attention.cache import KVCache
from octavo.backends.torch.batch import Batch
from octavo.backends.torch.quant import Matrix
from octavo.backends.torch.weights import LayerWeights, MlpWeights, MoEWeights
from octavo.models.spec import Attention, MoE, RMSNorm


class Stream(NamedTuple):
    """[tokens, hidden], each. The residual stream is x + delta; delta None: x alone."""

    x: Tensor
    delta: Tensor | None

    def total(self) -> Tensor:
        """x + delta."""
        return self.x if self.delta is None else self.x + self.delta


class Ops(Protocol):
    """x: the residual stream, [tokens, hidden]; h: what a branch reads; delta: a branch's result, not yet added to x.

    A Stream (x, delta) stands for x + delta. What an operation returns as x is that sum; x given may be overwritten.
    fused: whether operations are kernels of their own, which make little that they do not return.
    """

    fused: bool

    def embed(self, token_ids: Tensor, table: Tensor, scale: float) -> Tensor:
        """Rows of the table times scale, which is rounded to the arithmetic's type first."""

    def norm(self, x: Tensor, weight: Tensor, norm: RMSNorm) -> Tensor:
        """RMS norm over the last axis."""

    def add_norm(self, stream: Stream, weight: Tensor, norm: RMSNorm) -> tuple[Tensor, Tensor]:
        """x and h = norm(x)."""

    def linear(self, h: Tensor, weight: Matrix, bias: Tensor | None) -> Tensor:
        """[tokens, in] @ [out, in].T + bias."""

    def norm_linear(
        self, stream: Stream, norm_weight: Tensor, norm: RMSNorm, weight: Matrix, bias: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """x and norm(x) @ weight.T + bias."""

    def attention_inputs(
        self, qkv: Tensor, weights: LayerWeights, mixer: Attention, batch: Batch, *, cache: KVCache, layer: int
    ) -> Tensor:
        """Norms of q and k and rope; k and v go to the layer's cache. Returns q [tokens, heads, head_dim]."""

    def mlp(self, h: Tensor, weights: MlpWeights, act: str) -> Tensor:
        """GatedMLP of the vocabulary."""

    def norm_mlp(
        self, stream: Stream, norm_weight: Tensor, norm: RMSNorm, weights: MlpWeights, act: str
    ) -> tuple[Tensor, Tensor]:
        """x and mlp(norm(x))."""

    def mixture(self, h: Tensor, weights: MoEWeights, moe: MoE) -> Tensor:
        """MoE of the vocabulary."""

    def finish(self, stream: Stream, last: Tensor, weight: Tensor, norm: RMSNorm) -> tuple[Tensor, Tensor]:
        """For tokens `last` [n]: norm(x + delta), and int32 [n], 1 where x + delta is finite throughout."""

    def logits(self, h: Tensor, head: Tensor) -> Tensor:
        """float32 [n, vocab]."""

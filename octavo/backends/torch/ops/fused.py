"""The decoder's operations as fused kernels; large matrix products are PyTorch's."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.backends.torch.attention.cache import KVCache
from octavo.backends.torch.batch import Batch, padded_sizes
from octavo.backends.torch.kernels.moe_matmul import mixture
from octavo.backends.torch.kernels.norm import add_rms_norm, finish_norm, rms_norm
from octavo.backends.torch.kernels.rope_cache import rope_cache, rope_table
from octavo.backends.torch.kernels.skinny_choice import NORM_ROWS
from octavo.backends.torch.kernels.skinny_matmul import Norm, Plan, make_scratch
from octavo.backends.torch.ops.port import Stream
from octavo.backends.torch.ops.products import gated_product, product_of
from octavo.backends.torch.quant import Matrix, QuantizedMatrix
from octavo.backends.torch.weights import LayerWeights, MlpWeights, MoEWeights
from octavo.models.spec import Attention, GatedMLP, ModelSpec, MoE, RMSNorm, Rope


class FusedOps:
    """port.Ops. Tables of cosines and sines are made once, for positions below max_model_len."""

    fused = True

    def __init__(
        self,
        spec: ModelSpec,
        *,
        device: torch.device,
        max_model_len: int,
        max_num_seqs: int,
        quantized: Sequence[QuantizedMatrix] = (),
    ) -> None:
        ropes = {layer.mixer.rope for layer in spec.layers if layer.mixer.rope is not None}
        self._tables: dict[Rope, Tensor] = {rope: rope_table(rope, max_model_len, device) for rope in ropes}
        self._plans = _make_plans([*_dense(spec), *quantized], max_num_seqs, device)

    def embed(self, token_ids: Tensor, table: Tensor, scale: float) -> Tensor:
        """As port.Ops.embed."""
        x = F.embedding(token_ids, table)
        # a number that lies on the host, unlike a tensor, can be part of a graph
        return x if scale == 1.0 else x * torch.tensor(scale, dtype=x.dtype).item()

    def norm(self, x: Tensor, weight: Tensor, norm: RMSNorm) -> Tensor:
        """As port.Ops.norm."""
        h = torch.empty_like(x)
        rms_norm(x, weight, norm.eps, h)
        return h

    def add_norm(self, stream: Stream, weight: Tensor, norm: RMSNorm) -> tuple[Tensor, Tensor]:
        """As port.Ops.add_norm."""
        h = torch.empty_like(stream.x)
        if stream.delta is None:
            rms_norm(stream.x, weight, norm.eps, h)
        else:
            add_rms_norm(stream.x, stream.delta, weight, norm.eps, h)
        return stream.x, h

    def linear(self, h: Tensor, weight: Matrix, bias: Tensor | None) -> Tensor:
        """As port.Ops.linear."""
        product, plan = product_of(weight), self._plan(h, weight)
        if plan is None:
            return product.many(h, weight, bias)
        return product.few(h, weight, h.new_empty(len(h), weight.shape[0]), plan, bias=bias)

    def norm_linear(
        self, stream: Stream, norm_weight: Tensor, norm: RMSNorm, weight: Matrix, bias: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """As port.Ops.norm_linear."""
        plan = self._plan(stream.x, weight)
        if plan is None or len(stream.x) > NORM_ROWS or not product_of(weight).norms:
            x, h = self.add_norm(stream, norm_weight, norm)
            return x, self.linear(h, weight, bias)
        x, before = _norm_before(stream, norm_weight, norm)
        y = x.new_empty(len(x), weight.shape[0])
        return x, product_of(weight).few(stream.x, weight, y, plan, norm=before, bias=bias)

    def attention_inputs(
        self, qkv: Tensor, weights: LayerWeights, mixer: Attention, batch: Batch, *, cache: KVCache, layer: int
    ) -> Tensor:
        """As port.Ops.attention_inputs."""
        table = None if mixer.rope is None else self._tables[mixer.rope]
        norms = (weights.q_norm, weights.k_norm)
        rope_cache(qkv, batch.positions, batch.slots, table, cache.layer(layer), mixer, norms, finite=cache.finite)
        return qkv.view(len(qkv), -1, mixer.head_dim)[:, : mixer.heads]

    def mlp(self, h: Tensor, weights: MlpWeights, act: str) -> Tensor:
        """As port.Ops.mlp."""
        gate_up = weights.gate_up
        plan = self._plan(h, gate_up, gated=True)
        if plan is None:
            inner = self.linear(h, gate_up, weights.gate_up_bias)
            return gated_product(inner, weights.down, weights.down_bias, act, self._plan(inner, weights.down))
        y = h.new_empty(len(h), gate_up.shape[0] // 2)
        product_of(gate_up).few(h, gate_up, y, plan, bias=weights.gate_up_bias, act=act)
        return self.linear(y, weights.down, weights.down_bias)

    def norm_mlp(
        self, stream: Stream, norm_weight: Tensor, norm: RMSNorm, weights: MlpWeights, act: str
    ) -> tuple[Tensor, Tensor]:
        """As port.Ops.norm_mlp."""
        gate_up = weights.gate_up
        plan = self._plan(stream.x, gate_up, gated=True)
        if plan is None or len(stream.x) > NORM_ROWS or not product_of(gate_up).norms:
            x, h = self.add_norm(stream, norm_weight, norm)
            return x, self.mlp(h, weights, act)
        x, before = _norm_before(stream, norm_weight, norm)
        y = x.new_empty(len(x), gate_up.shape[0] // 2)
        product_of(gate_up).few(stream.x, gate_up, y, plan, norm=before, bias=weights.gate_up_bias, act=act)
        return x, self.linear(y, weights.down, weights.down_bias)

    def mixture(self, h: Tensor, weights: MoEWeights, moe: MoE) -> Tensor:
        """As port.Ops.mixture."""
        return mixture(h, self.linear(h, weights.router, None), weights, moe)

    def finish(self, stream: Stream, last: Tensor, weight: Tensor, norm: RMSNorm) -> tuple[Tensor, Tensor]:
        """As port.Ops.finish."""
        x, delta = stream
        h = x.new_empty(len(last), x.shape[1])
        finite = torch.empty(len(last), dtype=torch.int32, device=x.device)
        finish_norm(x, torch.zeros_like(x) if delta is None else delta, last, weight, norm.eps, h, finite)
        return h, finite

    def logits(self, h: Tensor, head: Tensor) -> Tensor:
        """As port.Ops.logits."""
        plan = self._plan(h, head)
        if plan is not None:
            out = torch.empty(len(h), len(head), dtype=torch.float32, device=h.device)
            return product_of(head).few(h, head, out, plan)
        if h.device.type == "cuda" and h.dtype != torch.float32:
            return torch.mm(h, head.t(), out_dtype=torch.float32)
        return F.linear(h, head).float()

    def _plan(self, x: Tensor, weight: Matrix, *, gated: bool = False) -> Plan | None:
        if x.element_size() != 2:
            return None
        return self._plans.get((len(x), _kind(weight), gated))


def _norm_before(stream: Stream, weight: Tensor, norm: RMSNorm) -> tuple[Tensor, Norm]:
    """x, where the product writes it (unchanged if nothing is added to it), and the norm that it begins with."""
    x = stream.x if stream.delta is None else torch.empty_like(stream.x)
    return x, Norm(weight, norm.eps, stream.delta, None if stream.delta is None else x)


def _kind(weight: Matrix) -> Hashable:
    """Equal for matrices that one plan is for."""
    return (None if isinstance(weight, Tensor) else weight.kind, tuple(weight.shape))


def _dense(spec: ModelSpec) -> list[Tensor]:
    """A matrix without numbers for every shape of the spec's."""
    shapes = {(spec.vocab_size, spec.hidden_size)}
    for layer in spec.layers:
        a = layer.mixer
        shapes.add(((a.heads + 2 * a.kv_heads) * a.head_dim, spec.hidden_size))
        shapes.add((spec.hidden_size, a.heads * a.head_dim))
        if isinstance(layer.ffn, MoE):
            shapes.add((layer.ffn.experts, spec.hidden_size))
        if isinstance(layer.ffn, GatedMLP):
            shapes |= {(2 * layer.ffn.width, spec.hidden_size), (spec.hidden_size, layer.ffn.width)}
    return [torch.empty(shape, device="meta") for shape in sorted(shapes)]


def _make_plans(
    weights: Sequence[Matrix], max_num_seqs: int, device: torch.device
) -> dict[tuple[int, Hashable, bool], Plan]:
    """(tokens, kind and shape, gated) -> how; what is not there is Product.many's. They share one scratch, in turn.

    For the sizes of decode steps alone, the fullest of which has max_num_seqs rows: other numbers of tokens would have
    kernels compiled while requests wait.
    """
    chosen: dict[tuple[int, Hashable, bool], Any] = {}
    sizes = [(0, 0)]
    for weight in {_kind(weight): weight for weight in weights}.values():
        product = product_of(weight)
        for m in padded_sizes(min(product.rows, max_num_seqs)):
            for act in (False, True):
                variant = product.choose(m, weight, gated=act)
                if variant is not None:
                    chosen[m, _kind(weight), act] = variant
                    sizes.append(product.scratch_sizes(variant, m, weight, gated=act))
    scratch = make_scratch(max(size[0] for size in sizes), max(size[1] for size in sizes), device)
    return {key: Plan(variant, scratch) for key, variant in chosen.items()}

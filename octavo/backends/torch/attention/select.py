"""The implementations in order of preference; a model's layers in, one PagedAttention for all of them out."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import cast

from torch import Tensor

from octavo.backends.torch.attention import flash4
from octavo.backends.torch.attention.cache import KVCache
from octavo.backends.torch.attention.paged import KERNELS, KernelAttention
from octavo.backends.torch.attention.port import CapturableAttention, Case, Implementation, PagedAttention, Tile
from octavo.backends.torch.attention.reference import REFERENCE
from octavo.backends.torch.attention.sdpa import SDPA
from octavo.backends.torch.batch import Queries
from octavo.base.errors import UnsupportedError
from octavo.models.spec import Attention, ModelSpec

logger = logging.getLogger(__name__)

IMPLEMENTATIONS: tuple[Implementation, ...] = (KERNELS, SDPA, REFERENCE)


def choose(case: Case, implementations: Sequence[Implementation] = IMPLEMENTATIONS) -> tuple[Implementation, list[str]]:
    """The first that takes the case, and what the ones before it said. Raises UnsupportedError if none does."""
    refusals: list[str] = []
    for implementation in implementations:
        reasons = implementation.supports(case)
        if not reasons:
            return implementation, refusals
        refusals.append(f"{implementation.name}: {', '.join(reasons)}")
    raise UnsupportedError(f"no attention implementation runs {case} ({'; '.join(refusals)})")


class AttentionStack:
    """Each layer by the first implementation that takes it. names: the one chosen, by layer; spans: who runs spans.

    capturable: it is a port.CapturableAttention.
    """

    def __init__(self, spec: ModelSpec, cache: KVCache, *, max_num_seqs: int) -> None:
        self.names: list[str] = []
        chosen: dict[str, tuple[Implementation, dict[int, Attention]]] = {}
        told: set[str] = set()
        for i, layer in enumerate(spec.layers):
            if not layer.mixer.causal:
                continue  # an encoder attends without a cache
            case = Case(layer.mixer, cache.dtype, cache.device.type, cache.block_size)
            implementation, refusals = choose(case)
            chosen.setdefault(implementation.name, (implementation, {}))[1][i] = layer.mixer
            self.names.append(implementation.name)
            line = f"attention: {implementation.name}" + (f" (not {'; '.join(refusals)})" if refusals else "")
            if line not in told:
                told.add(line)
                logger.info("%s, from layer %d", line, i)
        made = {
            name: implementation.make(layers, cache, max_num_seqs) for name, (implementation, layers) in chosen.items()
        }
        self._used = list(made.values())
        self.spans = list(self.names)
        self.capturable = all(implementation.capturable for implementation, _ in chosen.values())
        self._by_layer: list[PagedAttention] = [made[name] for name in self.names]

    def use_flash(self, kernels: Mapping[int, flash4.Function]) -> None:
        """Spans of these layers run by these kernels from the next plan on, where `kernels` runs the layer."""
        for attention in self._used:
            if isinstance(attention, KernelAttention):
                attention.use_flash(kernels)
        flash = {i for i in kernels if self.names[i] == KERNELS.name}
        self.spans = [flash4.NAME if i in flash else name for i, name in enumerate(self.names)]

    def plan(self, batch: Queries) -> None:
        """As port.PagedAttention.plan."""
        for attention in self._used:
            attention.plan(batch)

    def span_tiles(self, batch: Queries) -> dict[int, list[Tile]]:
        """As port.CapturableAttention.span_tiles."""
        used = cast(list[CapturableAttention], self._used)
        return {queries: tiles for attention in used for queries, tiles in attention.span_tiles(batch).items()}

    def run(self, q: Tensor, layer: int) -> Tensor:
        """As port.PagedAttention.run."""
        return self._by_layer[layer].run(q, layer)

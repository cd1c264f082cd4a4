"""Attention by gathering each row's keys and values from its blocks: tiles of queries to a dense kernel.

Only slots that the row has written are read, so what lies in the rest of its blocks never matters; rows are computed
one by one, so a row's numbers do not depend on its neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.backends.torch.attention.cache import KVCache
from octavo.backends.torch.batch import Queries
from octavo.models.spec import Attention

TILE = 128
"""Queries a tile: bounds the mask and the scores."""

Kernel = Callable[[Tensor, Tensor, Tensor, Tensor | None, Attention], Tensor]
"""q [kv_heads, m, head_dim], k and v [kv_heads, n, head_dim], mask bool [m, n] (True: seen) or None -> like q.

m counts the query heads of a group too: queries outermost, then heads.
"""


@dataclass(frozen=True)
class _Span:
    """A row's part of a batch: `count` tokens from index `first`, at positions from `start`; its slots from 0 on."""

    first: int
    count: int
    start: int
    slots: Tensor


@dataclass(frozen=True)
class _Tile:
    """Queries [begin, end) of the batch see keys [low, high) of the row; mask: [queries, keys], None if all do."""

    begin: int
    end: int
    low: int
    high: int
    mask: Tensor | None


class GatherAttention:
    """port.PagedAttention over a dense kernel. `layers`: those it runs, by index."""

    def __init__(self, layers: Mapping[int, Attention], cache: KVCache, kernel: Kernel) -> None:
        self._layers, self._cache, self._kernel = layers, cache, kernel
        self._batch: Queries | None = None
        self._spans: list[_Span] = []
        self._tiles: dict[int | None, list[list[_Tile]]] = {}

    def plan(self, batch: Queries) -> None:
        """Slots of every row, and for each distinct window the tiles with their masks."""
        self._batch = batch
        self._spans = []
        first = 0
        for i, step in enumerate(batch.steps):
            end = step.start + step.count
            self._spans.append(_Span(first, step.count, step.start, batch.row_slots(i, end)))
            first += step.count
        windows = {layer.window for layer in self._layers.values()}
        self._tiles = {w: [list(_tiles(span, w)) for span in self._spans] for w in windows}

    def run(self, q: Tensor, layer: int) -> Tensor:
        """As port.PagedAttention.run."""
        if self._batch is None:
            raise RuntimeError("attention: run before plan")
        mixer = self._layers[layer]
        out = q.new_empty(q.shape)
        for span, tiles in zip(self._spans, self._tiles[mixer.window], strict=True):
            base = tiles[0].low
            k, v = self._cache.read(layer, span.slots[base:], q.dtype)
            row_k, row_v = k.transpose(0, 1), v.transpose(0, 1)
            for tile in tiles:
                part = slice(tile.low - base, tile.high - base)
                queries = q[tile.begin : tile.end]
                out[tile.begin : tile.end] = self._attend(queries, row_k[:, part], row_v[:, part], tile.mask, mixer)
        return out

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, mixer: Attention) -> Tensor:
        """q: [m, heads, head_dim]; the heads that share a kv head are folded into its queries."""
        m, group = q.shape[0], mixer.heads // mixer.kv_heads
        folded = q.view(m, mixer.kv_heads, group, -1).transpose(0, 1).flatten(1, 2)
        if mask is not None and group > 1:
            mask = mask.repeat_interleave(group, dim=0)
        out = self._kernel(folded, k, v, mask, mixer)
        return out.view(mixer.kv_heads, m, group, -1).transpose(0, 1).flatten(1, 2)


def _tiles(span: _Span, window: int | None) -> list[_Tile]:
    tiles = []
    for begin in range(0, span.count, TILE):
        end = min(begin + TILE, span.count)
        low = 0 if window is None else max(0, span.start + begin - window + 1)
        high = span.start + end
        mask = None
        if end - begin > 1:
            device = span.slots.device
            query = torch.arange(span.start + begin, high, device=device)[:, None]
            key = torch.arange(low, high, device=device)
            mask = key <= query
            if window is not None:
                mask &= key > query - window
        tiles.append(_Tile(span.first + begin, span.first + end, low, high, mask))
    return tiles

"""Attention by kernels, from the cache's blocks: ours for single tokens, ours or flash-attn-4 for spans of them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from octavo.backends.torch.attention import flash4
from octavo.backends.torch.attention.cache import KVCache
from octavo.backends.torch.attention.port import CapturableAttention, Case, Implementation, Tile
from octavo.backends.torch.batch import Queries
from octavo.backends.torch.device.device import CACHE_DTYPES
from octavo.backends.torch.device.transfer import upload
from octavo.models.spec import Attention

LARGEST_HEAD, LARGEST_GROUP = 256, 16


class KernelAttention:
    """port.PagedAttention. A plan's tensors are made anew each step, so that steps may overlap on a stream."""

    def __init__(self, layers: Mapping[int, Attention], cache: KVCache, max_num_seqs: int) -> None:
        from octavo.backends.torch.kernels import decode_attention, decode_choice, prefill_attention

        self._decode, self._prefill = decode_attention, prefill_attention
        self._choose, self._processors = decode_choice.choose, _multiprocessors(cache.device)
        self._layers, self._cache = layers, cache
        shapes = {_shape(layer) for layer in layers.values()}
        self._workspaces = {
            shape: decode_attention.make_workspace(
                max_rows=max_num_seqs,
                kv_heads=shape[0],
                group=shape[1],
                head_dim=shape[2],
                processors=self._processors,
                device=cache.device,
            )
            for shape in shapes
        }
        self._num_single, self._whole = 0, True
        self._plans: dict[tuple[int | None, int], decode_attention.Plan] = {}
        self._tables: Tensor | None = None
        self._tiles: Mapping[int, Tensor] = {}
        self._flash: Mapping[int, flash4.Function] = {}
        self._spans: flash4.Spans | None = None

    def use_flash(self, kernels: Mapping[int, flash4.Function]) -> None:
        """Spans run by these kernels, by layer, from the next plan on; those of other layers by our own."""
        self._flash = {layer: kernel for layer, kernel in kernels.items() if layer in self._layers}

    def plan(self, batch: Queries) -> None:
        """As port.PagedAttention.plan."""
        self._num_single, self._plans, self._tiles, self._spans = batch.num_single, {}, {}, None
        self._whole = batch.tiles is None
        self._tables = batch.block_tables
        if batch.num_single:
            rows, seq_lens = batch.rows[: batch.num_single], batch.seq_lens[: batch.num_single]
            for window, tile in {self._cut(layer, batch.num_single) for layer in self._layers.values()}:
                tiles = torch.empty(batch.num_single + 2, dtype=torch.int32, device=rows.device)
                self._decode.plan_tiles(seq_lens, tiles, window=window, tile=tile)
                self._plans[window, tile] = self._decode.Plan(batch.block_tables, rows, seq_lens, tiles)
        if batch.tiles is not None:
            self._tiles = batch.tiles
        elif len(batch.steps) > batch.num_single:
            lists = self.span_tiles(batch)
            self._tiles = {n: upload(tiles, torch.int32, batch.rows.device) for n, tiles in lists.items()}
        if flash4.WHOLE in self._tiles:
            self._spans = flash4.make_spans(self._tiles[flash4.WHOLE], batch.block_tables)

    def span_tiles(self, batch: Queries) -> dict[int, list[Tile]]:
        """As port.CapturableAttention.span_tiles."""
        first, spans = batch.num_single, []
        for step in batch.steps[batch.num_single :]:
            spans.append((step.row, first, step.start, step.count))
            first += step.count
        ours = [layer for i, layer in self._layers.items() if i not in self._flash]
        most = {self._prefill.tile_queries(layer, self._cache.dtype) for layer in ours}
        tiles = {queries: self._prefill.make_tiles(spans, queries) for queries in most}
        return {**tiles, flash4.WHOLE: spans} if self._flash else tiles

    def run(self, q: Tensor, layer: int) -> Tensor:
        """As port.PagedAttention.run."""
        if self._tables is None:
            raise RuntimeError("attention: run before plan")
        mixer, cache, single = self._layers[layer], self._cache.layer(layer), self._num_single
        out = q.new_empty(q.shape) if self._whole else q.new_zeros(q.shape)
        if single:
            self._decode.decode_attention(
                q[:single],
                cache,
                self._plans[self._cut(mixer, single)],
                out[:single],
                layer=mixer,
                workspace=self._workspaces[_shape(mixer)],
            )
        if self._spans is not None and layer in self._flash:
            flash4.attend(self._flash[layer], q, cache, self._spans, out, mixer)
        elif self._tiles:
            tiles = self._tiles[self._prefill.tile_queries(mixer, self._cache.dtype)]
            self._prefill.prefill_attention(q, cache, self._tables, tiles, out, layer=mixer)
        return out

    def _cut(self, layer: Attention, batch: int) -> tuple[int | None, int]:
        """Layers of one cut share a plan: window, keys a tile."""
        kv_heads, group, head_dim = _shape(layer)
        itemsize, pairs = self._cache.dtype.itemsize, batch * kv_heads
        choice = self._choose(head_dim, itemsize, group, batch=batch, pairs=pairs, processors=self._processors)
        return layer.window, choice.tile


def _shape(layer: Attention) -> tuple[int, int, int]:
    """(kv heads, query heads of each, head_dim)."""
    return layer.kv_heads, layer.heads // layer.kv_heads, layer.head_dim


def _multiprocessors(device: torch.device) -> int:
    return 1 if device.type == "cpu" else torch.cuda.get_device_properties(device).multi_processor_count


def supports(case: Case) -> list[str]:
    """All but wide heads, large groups, and devices without the kernels."""
    reasons = []
    if case.device == "cpu":
        reasons.append("device cpu")
    if case.layer.head_dim > LARGEST_HEAD:
        reasons.append(f"head_dim {case.layer.head_dim} above {LARGEST_HEAD}")
    if case.layer.heads // case.layer.kv_heads > LARGEST_GROUP:
        reasons.append(f"{case.layer.heads // case.layer.kv_heads} query heads a kv head, above {LARGEST_GROUP}")
    if case.dtype not in CACHE_DTYPES.values():
        reasons.append(f"a cache of {case.dtype}")
    if case.dtype.itemsize == 1 and case.layer.head_dim % 2:
        reasons.append(f"an odd head_dim, {case.layer.head_dim}, over a cache of {case.dtype}")
    try:
        import triton  # noqa: F401
    except ImportError:
        reasons.append("triton is not installed")
    return reasons


def make(layers: Mapping[int, Attention], cache: KVCache, max_num_seqs: int) -> CapturableAttention:
    """For Implementation.make."""
    return KernelAttention(layers, cache, max_num_seqs)


KERNELS = Implementation("kernels", supports, make, capturable=True)

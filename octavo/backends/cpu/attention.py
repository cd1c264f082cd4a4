"""In: a step's spans over the paged KV cache. Out: attention outputs. An AttentionPlan a step, `attend` once a layer.

Layer cache (keys and values alike), C order, so that one block of one head is one contiguous piece:

    [kv_heads, blocks, block_size, D]   slot = block * block_size + offset; scales likewise, without D
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from octavo.backends.cpu.cache import Cells, decode
from octavo.backends.cpu.rows import Span
from octavo.backends.cpu.team import Team

SCORES = 1 << 20
"""Most scores (heads x queries x keys) that a thread holds at once; a tile of one query may take more."""


@dataclass(frozen=True)
class Tile:
    """Queries of one row, batch tokens [first, first + count) at positions from `position`, and the keys they can see.

    Keys lie at positions [low, position + count). blocks: a slice of slots where the row's blocks lie side by side
    (no copy is made), else the ids of the blocks that hold them, whose first holds position `low` at `offset`.
    """

    first: int
    count: int
    position: int
    low: int
    blocks: slice | np.ndarray
    offset: int

    @property
    def num_keys(self) -> int:
        """Keys that the last query sees, together with those that only earlier ones see."""
        return self.position + self.count - self.low


@dataclass
class Tiles:
    """One window's tiles: `single` of one query each (decoding), `many` of more (prompts)."""

    single: list[Tile] = field(default_factory=list)
    many: list[Tile] = field(default_factory=list)


@dataclass
class AttentionPlan:
    """What a step's attention needs, whatever the layer.

    scratch: float32 [team.size, room for SCORES and for any query's scores].
    """

    spans: list[Span]
    block_size: int
    heads: int
    scratch: np.ndarray
    team: Team
    _tiles: dict[int | None, Tiles] = field(default_factory=dict)

    def tiles(self, window: int | None) -> Tiles:
        """Tiles for a window, made once."""
        found = self._tiles.get(window)
        if found is None:
            found = self._tiles[window] = self._cut(window)
        return found

    def _cut(self, window: int | None) -> Tiles:
        tiles = Tiles()
        for span in self.spans:
            done = 0
            while done < span.count:
                position = span.start + done
                low = 0 if window is None else max(0, position - window + 1)
                count = min(span.count - done, self._most_queries(position - low))
                tile = self._tile(span, done, count, low)
                (tiles.single if count == 1 else tiles.many).append(tile)
                done += count
        return tiles

    def _most_queries(self, history: int) -> int:
        """The largest n with heads * n * (history + n) <= SCORES, but at least 1."""
        area = SCORES / self.heads
        return max(1, int(((history * history + 4 * area) ** 0.5 - history) / 2))

    def _tile(self, span: Span, done: int, count: int, low: int) -> Tile:
        size = self.block_size
        position = span.start + done
        high = position + count
        blocks = span.blocks[low // size : -(-high // size)]
        offset = low % size
        base = int(blocks[0]) * size + offset
        lies_together = len(blocks) == 1 or bool((np.diff(blocks) == 1).all())
        where = slice(base, base + high - low) if lies_together else blocks
        return Tile(span.first + done, count, position, low, where, offset)


def attend(
    out: np.ndarray,
    q: np.ndarray,
    keys: Cells,
    values: Cells,
    plan: AttentionPlan,
    *,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> None:
    """out, q [T, heads, D]; meanings as in ops.paged_attention."""
    tiles = plan.tiles(window)

    def single(some: list[Tile], member: int) -> None:
        _attend_single(out, q, keys, values, some, plan.scratch[member], (scale, softcap))

    def many(tile: Tile, member: int) -> None:
        _attend_many(out, q, keys, values, tile, plan.scratch[member], (scale, window, softcap))

    if tiles.single:
        plan.team.each(single, _groups(tiles.single, plan, keys))
    plan.team.each(many, tiles.many[::-1])  # those with the most history first


def _groups(tiles: list[Tile], plan: AttentionPlan, keys: Cells) -> list[list[Tile]]:
    """Cut tiles of one query for the team, and so that a group's scores fit into a member's scratch."""
    longest = max(tile.num_keys for tile in tiles)
    most = max(1, plan.scratch.shape[1] // (plan.heads * longest))
    work = sum(tile.num_keys for tile in tiles) * keys.data.shape[0] * keys.data.shape[3] * 2
    groups = []
    for part in plan.team.parts(len(tiles), work=work):
        some = tiles[part]
        groups += [some[at : at + most] for at in range(0, len(some), most)]
    return groups


def _gather(cache: Cells, tile: Tile) -> np.ndarray:
    """float32 [kv_heads, num_keys, D]: never reads a slot that the row has not written."""
    return decode(_pick(cache.data, tile), None if cache.scales is None else _pick(cache.scales, tile))


def _pick(array: np.ndarray, tile: Tile) -> np.ndarray:
    """[kv_heads, blocks, block_size, ...] -> [kv_heads, num_keys, ...]"""
    kv_heads, _, size = array.shape[:3]
    if isinstance(tile.blocks, slice):
        return array.reshape(kv_heads, -1, *array.shape[3:])[:, tile.blocks]
    found: np.ndarray = array[:, tile.blocks].reshape(kv_heads, len(tile.blocks) * size, *array.shape[3:])
    return found[:, tile.offset : tile.offset + tile.num_keys]


def _cap(scores: np.ndarray, softcap: float | None) -> None:
    if softcap is not None:
        scores /= np.float32(softcap)
        np.tanh(scores, out=scores)
        scores *= np.float32(softcap)


def _exp_rows(scores: np.ndarray) -> np.ndarray:
    """scores = exp(scores - max) along the last axis; returns its sums, with that axis kept. -inf becomes 0."""
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    sums: np.ndarray = scores.sum(axis=-1, keepdims=True)
    return sums


def _attend_single(
    out: np.ndarray,
    q: np.ndarray,
    keys: Cells,
    values: Cells,
    tiles: list[Tile],
    scratch: np.ndarray,
    options: tuple[float, float | None],
) -> None:
    """Rows of one query each: products row by row without padding, one softmax for all of them."""
    scale, softcap = options
    heads, dim, kv_heads = q.shape[1], q.shape[2], keys.data.shape[0]
    group = heads // kv_heads
    longest = max(tile.num_keys for tile in tiles)
    scores = scratch[: len(tiles) * heads * longest].reshape(len(tiles), kv_heads, group, longest)
    for row, tile in zip(scores, tiles, strict=True):
        n = tile.num_keys
        query = (q[tile.first] * np.float32(scale)).reshape(kv_heads, group, dim, 1)
        # matrix x vector: OpenBLAS is several times slower at [group, D] x [D, n] with so few rows
        np.matmul(_gather(keys, tile)[:, None], query, out=row[:, :, :n, None])
        _cap(row[:, :, :n], softcap)
        row[:, :, n:] = -np.inf
    sums = _exp_rows(scores)
    for row, total, tile in zip(scores, sums, tiles, strict=True):
        result = np.matmul(row[:, :, : tile.num_keys], _gather(values, tile))
        result /= total
        out[tile.first] = result.reshape(heads, dim)


def _attend_many(
    out: np.ndarray,
    q: np.ndarray,
    keys: Cells,
    values: Cells,
    tile: Tile,
    scratch: np.ndarray,
    options: tuple[float, int | None, float | None],
) -> None:
    """Several queries of one row: the queries of a group's heads are stacked, so that each KV head is one product."""
    scale, window, softcap = options
    heads, dim, kv_heads, count, n = q.shape[1], q.shape[2], keys.data.shape[0], tile.count, tile.num_keys
    group = heads // kv_heads
    rows = slice(tile.first, tile.first + count)
    queries = (q[rows] * np.float32(scale)).reshape(count, kv_heads, group, dim).transpose(1, 2, 0, 3)
    stacked = scratch[: heads * count * n].reshape(kv_heads, group * count, n)
    np.matmul(queries.reshape(kv_heads, group * count, dim), _gather(keys, tile).transpose(0, 2, 1), out=stacked)
    _cap(stacked, softcap)
    _mask(stacked.reshape(kv_heads, group, count, n), tile, window)
    sums = _exp_rows(stacked)
    result = np.matmul(stacked, _gather(values, tile))
    result /= sums
    out[rows] = result.reshape(kv_heads, group, count, dim).transpose(2, 0, 1, 3).reshape(count, heads, dim)


def _mask(scores: np.ndarray, tile: Tile, window: int | None) -> None:
    """-inf where query i may not see key j: j > position + i, or j <= position + i - window.  [..., count, keys]

    Only the last `count` keys can lie ahead of a query, and only the first few behind its window.
    """
    count, n = scores.shape[-2:]
    i = np.arange(count)[:, None]
    np.copyto(scores[..., n - count :], -np.inf, where=np.arange(count) > i)
    if window is not None:
        passed = tile.position - window + 1 - tile.low  # keys before this one are behind query 0's window: <= 0
        behind = min(n, max(0, count - 1 + passed))
        np.copyto(scores[..., :behind], -np.inf, where=np.arange(behind) < i + passed)


def attend_spans(out: np.ndarray, qkv: np.ndarray, plan: AttentionPlan, *, scale: float, window: int | None) -> None:
    """out [T, heads, D], qkv [T, heads + 2 kv_heads, D]; meanings as in ops.span_attention."""
    heads, kv_heads = out.shape[1], (qkv.shape[1] - out.shape[1]) // 2

    def one(span: Span, member: int) -> None:
        rows = slice(span.first, span.first + span.count)
        keys = qkv[rows, heads : heads + kv_heads].transpose(1, 2, 0)  # [kv_heads, D, n]
        values = qkv[rows, heads + kv_heads :].transpose(1, 0, 2)  # [kv_heads, n, D]
        most = max(1, SCORES // (heads * span.count))
        for at in range(0, span.count, most):
            count = min(most, span.count - at)
            tile = slice(span.first + at, span.first + at + count)
            queries = qkv[tile, :heads] * np.float32(scale)
            near, far = slice(None), None
            if window is not None:
                near = slice(max(0, at - window + 1), at + count + window - 1)
                places = np.arange(span.count)[near]
                far = abs(np.arange(at, at + count)[:, None] - places) >= window
            _attend_dense(out[tile], queries, keys[..., near], values[:, near], plan.scratch[member], far)

    plan.team.each(one, sorted(plan.spans, key=lambda span: -span.count))


def _attend_dense(
    out: np.ndarray, q: np.ndarray, keys: np.ndarray, values: np.ndarray, scratch: np.ndarray, far: np.ndarray | None
) -> None:
    """Every query sees every key, but for `far` [count, n]. The queries of a group's heads are stacked, as in
    _attend_many.
    """
    count, heads, dim = q.shape
    kv_heads, _, n = keys.shape
    group = heads // kv_heads
    stacked = scratch[: heads * count * n].reshape(kv_heads, group * count, n)
    queries = q.reshape(count, kv_heads, group, dim).transpose(1, 2, 0, 3).reshape(kv_heads, group * count, dim)
    np.matmul(queries, keys, out=stacked)
    if far is not None:
        np.copyto(stacked.reshape(kv_heads, group, count, n), -np.inf, where=far)
    sums = _exp_rows(stacked)
    result = np.matmul(stacked, values)
    result /= sums
    out[...] = result.reshape(kv_heads, group, count, dim).transpose(2, 0, 1, 3).reshape(count, heads, dim)

"""q, k, v of a layer side by side in; q normed and turned in place, k (normed and turned) and v in the cache's slots.

One launch: a program takes one token and some of its heads; q, k and v heads are one axis, each knows its kind.
"""

# ruff: noqa: N803 (in capitals: what a kernel is compiled for)
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.backends.torch.kernels import float8, pdl
from octavo.backends.torch.layers.rope import rope_turns
from octavo.models.spec import Attention, Rope

ELEMENTS, WARPS = 1024, 2
"""Of a program: 8 heads of 128, 16 elements a thread. Small enough to spread one token over the machine, wide enough
that the start of a program is not what a long prompt waits for."""


def rope_table(rope: Rope, max_position: int, device: torch.device | str) -> Tensor:
    """float32 [max_position, 2, rope.dim / 2]: cosines, then sines, of each position; made once, at load."""
    return torch.cat(rope_turns(rope, torch.arange(max_position, device=device)), dim=1)


def rope_cache(
    qkv: Tensor,
    positions: Tensor,
    slots: Tensor,
    table: Tensor | None,
    cache: Tensor,
    mixer: Attention,
    norms: tuple[Tensor | None, Tensor | None],
    *,
    finite: bool = False,
) -> None:
    """qkv: [tokens, (heads + 2 * kv_heads) * head_dim], contiguous; of it q alone is written.

    positions: int32 [tokens], below the table's length.  slots: int32 or int64 [tokens], < 0: k and v are kept nowhere.
    table: rope_table's of mixer.rope, None where that is None.  cache: [2, blocks, block_size, kv_heads, head_dim].
    mixer: its head counts are those of this qkv.  norms: of mixer.qk_norm, float32 [head_dim], offset added.
    finite: as KVCache has it.
    """
    launch_rope_cache((qkv, positions, slots, table, cache), mixer, norms, (ELEMENTS, WARPS), finite=finite)


def launch_rope_cache(
    tensors: tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor],
    mixer: Attention,
    norms: tuple[Tensor | None, Tensor | None],
    cut: tuple[int, int],
    *,
    finite: bool = False,
) -> None:
    """`rope_cache` with the elements and warps of a program given (benchmarks)."""
    elements, warps = cut
    tokens, cache = tensors[0].shape[0], tensors[4]
    if not tokens:
        return
    rope, dim, total = mixer.rope, mixer.head_dim, mixer.heads + 2 * mixer.kv_heads
    turned = rope.dim if rope else 0
    heads = min(max(elements // _power(dim), 1), _power(total))
    groups = triton.cdiv(total, heads)
    _rope_cache[(tokens * groups,)](
        *tensors,
        *norms,
        mixer.qk_norm.eps if mixer.qk_norm else 0.0,
        cache.stride(0),
        HEADS=mixer.heads,
        KV_HEADS=mixer.kv_heads,
        DIM=dim,
        TURNED=turned,
        INTERLEAVED=rope.interleaved if rope else False,
        GROUPS=groups,
        BLOCK=heads,
        HALF=_power(turned // 2),
        REST=_power(dim - turned),
        WIDTH=_power(dim),
        FINITE=finite,
        num_warps=warps,
        **pdl.options(),
    )


def _power(n: int) -> int:
    """The power of two that is at least n and at least 1."""
    return 1 << max(n - 1, 0).bit_length()


@triton.jit(do_not_specialize_on_alignment=["positions", "slots"])
def _rope_cache(
    qkv, positions, slots, table, cache, q_norm, k_norm, eps,
    values,  # elements of the cache before its values
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, TURNED: tl.constexpr, INTERLEAVED: tl.constexpr,
    GROUPS: tl.constexpr, BLOCK: tl.constexpr, HALF: tl.constexpr, REST: tl.constexpr,
    WIDTH: tl.constexpr, FINITE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    token = (tl.program_id(0) // GROUPS).to(tl.int64)
    head = tl.program_id(0) % GROUPS * BLOCK + tl.arange(0, BLOCK)
    inside = head < HEADS + 2 * KV_HEADS
    is_q = head < HEADS
    is_v = head >= HEADS + KV_HEADS
    # a head is read in parts: a and b are the first and the second of each turned pair (a both, where they alternate),
    # c the rest, which passes through
    first = tl.arange(0, 2 * HALF if INTERLEAVED else HALF)
    first_real = first < (TURNED if INTERLEAVED else TURNED // 2)
    second = first + TURNED // 2
    rest = TURNED + tl.arange(0, REST)
    slot = tl.load(slots + token).to(tl.int64)
    if TURNED > 0:
        cos, sin = _cos_sin(table + tl.load(positions + token).to(tl.int64) * TURNED, is_v, TURNED, HALF)
        a_weight = _weight(q_norm, k_norm, first, first_real, is_q, is_v)
        if not INTERLEAVED:
            b_weight = _weight(q_norm, k_norm, second, first_real, is_q, is_v)
    if TURNED < DIM:
        c_weight = _weight(q_norm, k_norm, rest, rest < DIM, is_q, is_v)
    pdl.wait(PDL, EARLY=True)
    # where each head is read, and where in the cache it goes
    source = qkv + token * ((HEADS + 2 * KV_HEADS) * DIM) + head[:, None] * DIM
    kv_head = head - HEADS - tl.where(is_v, KV_HEADS, 0)
    kept = cache + (slot * KV_HEADS + kv_head[:, None]) * DIM + tl.where(is_v[:, None], values, 0)
    keep = inside & (head >= HEADS) & (slot >= 0)
    square = tl.zeros((BLOCK,), tl.float32)
    if TURNED > 0:
        a = _part(source, first, inside, first_real)
        square += tl.sum(a * a, axis=1)
        if not INTERLEAVED:
            b = _part(source, second, inside, first_real)
            square += tl.sum(b * b, axis=1)
    if TURNED < DIM:
        c = _part(source, rest, inside, rest < DIM)
        square += tl.sum(c * c, axis=1)
    scale = tl.rsqrt(square / DIM + eps)
    if TURNED > 0:
        a = _normed(a, scale, a_weight, q_norm, k_norm, is_q, is_v, qkv)
        if INTERLEAVED:
            a = _turn_alternate(a, cos, sin, is_v, BLOCK, HALF)
        else:
            a, b = _turn(a, _normed(b, scale, b_weight, q_norm, k_norm, is_q, is_v, qkv), cos, sin, is_v)
    if TURNED < DIM:
        c = _normed(c, scale, c_weight, q_norm, k_norm, is_q, is_v, qkv)
    bad = _has_bad(source + KV_HEADS * DIM, inside & ((is_q | is_v) == 0), DIM, WIDTH, FINITE)
    # q is overwritten: no thread may read what another has written, should a part be smaller than the threads are many
    tl.debug_barrier()
    if TURNED > 0:
        _write(source, kept, a, first, first_real, is_q, is_v, keep, bad, True, FINITE)
        if not INTERLEAVED:
            _write(source, kept, b, second, first_real, is_q, is_v, keep, bad, True, FINITE)
    if TURNED < DIM:
        _write(source, kept, c, rest, rest < DIM, is_q, is_v, keep, bad, q_norm is not None, FINITE)


@triton.jit
def _cos_sin(turns, is_v, TURNED: tl.constexpr, HALF: tl.constexpr):
    """The cosines and sines at `turns`, [heads, pairs] each; of v's heads 0."""
    pair = tl.arange(0, HALF)
    real = pair < TURNED // 2
    return _row(turns, pair, is_v == 0, real), _row(turns + TURNED // 2, pair, is_v == 0, real)


@triton.jit
def _turn(a, b, cos, sin, is_v):
    """Pairs a, b [heads, pairs] turned; those of v as they were."""
    return tl.where(is_v[:, None], a, a * cos - b * sin), tl.where(is_v[:, None], b, b * cos + a * sin)


@triton.jit
def _turn_alternate(x, cos, sin, is_v, BLOCK: tl.constexpr, HALF: tl.constexpr):
    """The same of pairs whose two elements are neighbours: x [heads, 2 * pairs]."""
    a, b = tl.split(tl.reshape(x, (BLOCK, HALF, 2)))
    a, b = _turn(a, b, cos, sin, is_v)
    return tl.reshape(tl.join(a, b), (BLOCK, 2 * HALF))


@triton.jit
def _part(source, column, inside, real):
    return tl.load(source + column[None, :], mask=inside[:, None] & real[None, :], other=0.0).to(tl.float32)


@triton.jit
def _has_bad(source, heads, DIM: tl.constexpr, WIDTH: tl.constexpr, FINITE: tl.constexpr):
    """Whether one of a head's values at `source` is not finite: [heads], False but for `heads`; not FINITE: False."""
    bad = tl.zeros((heads.shape[0],), tl.int1)
    if FINITE:
        column = tl.arange(0, WIDTH)
        value = _part(source, column, heads, column < DIM)
        bad = tl.max(tl.where(tl.abs(value) < float("inf"), 0, 1), axis=1) != 0
    return bad


@triton.jit
def _weight(q_norm, k_norm, column, real, is_q, is_v):
    """[heads, columns]: the weight of each head's norm, 0 where it has none."""
    weight = tl.zeros((is_q.shape[0], column.shape[0]), tl.float32)
    if q_norm is not None:
        weight += _row(q_norm, column, is_q, real)
    if k_norm is not None:
        weight += _row(k_norm, column, (is_q | is_v) == 0, real)
    return weight


@triton.jit
def _normed(x, scale, weight, q_norm, k_norm, is_q, is_v, like):
    """x [heads, columns] times scale and weight, rounded to the type of `like`, where its kind of head has a norm."""
    y = (x * scale[:, None] * weight).to(like.dtype.element_ty).to(tl.float32)
    if q_norm is not None:
        x = tl.where(is_q[:, None], y, x)
    if k_norm is not None:
        x = tl.where(((is_q | is_v) == 0)[:, None], y, x)
    return x


@triton.jit
def _row(row, column, heads, real):
    """The same row for each of the heads, [heads, columns]: loaded as their elements lie, so none are exchanged."""
    places = tl.broadcast_to(row + column[None, :], heads.shape[0], column.shape[0])
    return tl.load(places, mask=heads[:, None] & real[None, :], other=0.0)


@triton.jit
def _write(source, kept, x, column, real, is_q, is_v, keep, bad, CHANGED: tl.constexpr, FINITE: tl.constexpr):
    """x rounded to the type of qkv, to q's place where it has CHANGED, to the cache where kept.

    FINITE: there a value of v that is not finite is 0, and k of a `bad` head NaN.
    """
    x = x.to(source.dtype.element_ty)
    if CHANGED:
        tl.store(source + column[None, :], x, mask=is_q[:, None] & real[None, :])
    x = x.to(tl.float32)
    if FINITE:
        x = tl.where((is_v == 0)[:, None] | (tl.abs(x) < float("inf")), x, 0.0)
        x = tl.where(bad[:, None], float("nan"), x)
    x = float8.narrow(x, kept.dtype.element_ty)
    tl.store(kept + column[None, :], x, mask=keep[:, None] & real[None, :])

"""In: arrays. Out: `out` (or the named array) filled. One pure function an op: its definition for native kernels.

T is the step's number of tokens, D the head size. All floats are float32. Outputs are written whole, never read first.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from octavo.backends.cpu.attention import AttentionPlan, attend, attend_spans
from octavo.backends.cpu.cache import Cells, encode

Op = Callable[..., None]


def embed(out: np.ndarray, tokens: np.ndarray, weight: np.ndarray, *, scale: float, offset: int = 0) -> None:
    """out [T, hidden] = weight[:, tokens + offset].T * scale; weight [hidden, rows], tokens [T] + offset in [0, rows).

    tokens may be the tokens' positions or types, and weight the table of those.
    """
    np.multiply(weight[:, tokens + offset if offset else tokens].T, np.float32(scale), out=out)


def add(x: np.ndarray, delta: np.ndarray) -> None:
    """x += delta, both [T, hidden]."""
    x += delta


def rms_norm(
    out: np.ndarray, x: np.ndarray, weight: np.ndarray, delta: np.ndarray | None = None, *, eps: float, offset: float
) -> None:
    """x += delta where given; out = x / sqrt(mean(x^2) + eps) * (offset + weight).  [T, width]; out may be x."""
    if delta is not None:
        x += delta
    scale = np.einsum("ij,ij->i", x, x)
    scale /= x.shape[1]
    scale += np.float32(eps)
    np.sqrt(scale, out=scale)
    np.divide(x, scale[:, None], out=out)
    out *= weight + np.float32(offset) if offset else weight


def layer_norm(
    out: np.ndarray, x: np.ndarray, weight: np.ndarray, bias: np.ndarray, delta: np.ndarray, *, eps: float
) -> None:
    """x += delta; out = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias.  [T, width]; out may be x."""
    x += delta
    np.subtract(x, x.mean(axis=1, keepdims=True), out=out)
    scale = np.einsum("ij,ij->i", out, out)
    scale /= x.shape[1]
    scale += np.float32(eps)
    np.sqrt(scale, out=scale)
    out /= scale[:, None]
    out *= weight
    out += bias


def linear(out: np.ndarray, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None) -> None:
    """out [T, ...] = x [T, ...] @ weight + bias, with trailing axes taken as one; weight [in, out], bias [out]."""
    flat = out.reshape(len(out), -1)
    np.matmul(x.reshape(len(x), -1), weight, out=flat)
    if bias is not None:
        flat += bias


def qk_norm(qkv: np.ndarray, weight: np.ndarray, *, eps: float, offset: float) -> None:
    """RMSNorm over D, in place, of the first heads of qkv [T, heads + 2 kv_heads, D]; weight [heads + kv_heads, D]."""
    qk = qkv[:, : len(weight)]
    scale = np.einsum("thd,thd->th", qk, qk)
    scale /= qk.shape[2]
    scale += np.float32(eps)
    np.sqrt(scale, out=scale)
    qk /= scale[:, :, None]
    qk *= weight + np.float32(offset) if offset else weight


def rope(qkv: np.ndarray, cos: np.ndarray, sin: np.ndarray, *, heads: int, interleaved: bool) -> None:
    """Turn the pairs of the first `heads` heads of qkv [T, *, D], in place; cos, sin [T, pairs] (rope_tables).

    Pair j is (2j, 2j + 1) where interleaved, else (j, j + pairs); what lies past 2 * pairs stays.
    """
    pairs = cos.shape[1]
    if interleaved:
        first, second = qkv[:, :heads, 0 : 2 * pairs : 2], qkv[:, :heads, 1 : 2 * pairs : 2]
    else:
        first, second = qkv[:, :heads, :pairs], qkv[:, :heads, pairs : 2 * pairs]
    cos, sin = cos[:, None], sin[:, None]
    turned = first * cos
    turned -= second * sin
    second *= cos
    second += first * sin
    first[...] = turned


def rope_tables(
    positions: np.ndarray, inv_freq: np.ndarray, *, attention_factor: float
) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin, float32 [T, pairs], of positions [T] * inv_freq [pairs], taken in float64."""
    angles = np.multiply.outer(positions.astype(np.float64), inv_freq)
    cos, sin = np.cos(angles), np.sin(angles)
    return (cos * attention_factor).astype(np.float32), (sin * attention_factor).astype(np.float32)


def write_kv(keys: Cells, values: Cells, qkv: np.ndarray, slots: np.ndarray) -> None:
    """Put each token's K and V, as the cache keeps them, into its slot (block * block_size + offset) of keys, values.

    Their data [kv_heads, blocks, block_size, D]; qkv [T, heads + 2 kv_heads, D]; slots [T].
    """
    kv_heads, blocks, size, dim = keys.data.shape
    for cache, x in ((keys, qkv[:, -2 * kv_heads : -kv_heads]), (values, qkv[:, -kv_heads:])):
        data, scales = encode(x, cache.data.dtype)
        cache.data.reshape(kv_heads, blocks * size, dim)[:, slots] = data.transpose(1, 0, 2)
        if cache.scales is not None and scales is not None:
            cache.scales.reshape(kv_heads, blocks * size)[:, slots] = scales.T


def paged_attention(
    out: np.ndarray,
    qkv: np.ndarray,
    keys: Cells,
    values: Cells,
    plan: AttentionPlan,
    *,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> None:
    """out [T, heads, D]: each token's heads attend to the keys of its own row up to itself (window: the last ones).

    scores = scale * q.k, then softcap * tanh(scores / softcap) where set; keys, values as in write_kv, run first.
    """
    attend(out, qkv[:, : out.shape[1]], keys, values, plan, scale=scale, window=window, softcap=softcap)


def span_attention(out: np.ndarray, qkv: np.ndarray, plan: AttentionPlan, *, scale: float, window: int | None) -> None:
    """out [T, heads, D]: each token's heads attend to all tokens of its own row in this step, which is all of the row,
    or to those less than `window` places before and behind it.

    qkv [T, heads + 2 kv_heads, D]; scores = scale * q.k. Nothing is kept.
    """
    attend_spans(out, qkv, plan, scale=scale, window=window)


def activate(out: np.ndarray, x: np.ndarray, *, act: str) -> None:
    """out [T, width] = act(x [T, width])."""
    ACTIVATIONS[act](out, x)


def gated(out: np.ndarray, gate_up: np.ndarray, *, act: str) -> None:
    """out [T, width] = act(gate) * up, where gate_up [T, 2 * width] is gate | up."""
    width = out.shape[1]
    ACTIVATIONS[act](out, gate_up[:, :width])
    out *= gate_up[:, width:]


def add_gated(x: np.ndarray, delta: np.ndarray, logit: np.ndarray) -> None:
    """x [T, hidden] += sigmoid(logit [T, 1]) * delta [T, hidden]."""
    x += delta / (1 + np.exp(-logit))


def experts(
    out: np.ndarray,
    x: np.ndarray,
    router: np.ndarray,
    gate_up: np.ndarray,
    down: np.ndarray,
    *,
    act: str,
    top_k: int,
    renormalize: bool,
) -> None:
    """out [T, hidden] = sum of p_e * gated(x @ gate_up_e) @ down_e over the experts that `route` chooses, in order.

    x [T, hidden], router [T, experts]; gate_up [hidden, experts * 2 * width], down [width, experts * hidden].
    """
    chosen, shares = route(router, top_k=top_k, renormalize=renormalize)
    width, hidden = len(down), out.shape[1]
    out[...] = 0
    for e in np.unique(chosen):
        tokens, places = np.nonzero(chosen == e)
        wide = np.empty((len(tokens), width), np.float32)
        gated(wide, x[tokens] @ gate_up[:, e * 2 * width : (e + 1) * 2 * width], act=act)
        out[tokens] += shares[tokens, places, None] * (wide @ down[:, e * hidden : (e + 1) * hidden])


def route(router: np.ndarray, *, top_k: int, renormalize: bool) -> tuple[np.ndarray, np.ndarray]:
    """Experts [T, top_k] with the largest logits router [T, experts], of equals the lowest; their p = softmax(router).

    renormalize: p of the chosen are divided by their sum.
    """
    p = np.exp(router - router.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    chosen = np.argsort(-router, axis=1, kind="stable")[:, :top_k]
    shares = np.take_along_axis(p, chosen, axis=1)
    if renormalize:
        shares /= shares.sum(axis=1, keepdims=True)
    return chosen, shares


def _silu(out: np.ndarray, x: np.ndarray) -> None:
    """x / (1 + exp(-x))"""
    np.negative(x, out=out)
    np.exp(out, out=out)
    out += 1
    np.divide(x, out, out=out)


def _gelu(out: np.ndarray, x: np.ndarray) -> None:
    """x * (1 + erf(x / sqrt 2)) / 2"""
    np.multiply(x, np.float32(math.sqrt(0.5)), out=out)
    out[...] = _erf(out)
    out += 1
    out *= x
    out *= np.float32(0.5)


def _gelu_tanh(out: np.ndarray, x: np.ndarray) -> None:
    """x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))) / 2"""
    np.multiply(x, x, out=out)
    out *= np.float32(0.044715)
    out += 1
    out *= x
    out *= np.float32(math.sqrt(2 / math.pi))
    np.tanh(out, out=out)
    out += 1
    out *= x
    out *= np.float32(0.5)


ACTIVATIONS: dict[str, Callable[[np.ndarray, np.ndarray], None]] = {
    "silu": _silu,
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
}

_ERF_STEPS = 64  # knots a unit
_ERF_END = 6  # erf is 1 in float32 from 4 on
_ERF_KNOTS = np.arange(_ERF_STEPS * _ERF_END + 2) / _ERF_STEPS
_ERF_VALUES = np.array([math.erf(x) for x in _ERF_KNOTS])
_ERF_SLOPES = 2 / math.sqrt(math.pi) * np.exp(-(_ERF_KNOTS**2)) / _ERF_STEPS


def _erf(x: np.ndarray) -> np.ndarray:
    """The error function by cubic Hermite interpolation of exact values and slopes; off by less than 1e-8.

    NumPy has none. NaN stays NaN.
    """
    place = np.minimum(np.abs(x), _ERF_END).astype(np.float64) * _ERF_STEPS
    knot = np.nan_to_num(place).astype(np.int64)
    t = place - knot
    y0, y1, d0, d1 = _ERF_VALUES[knot], _ERF_VALUES[knot + 1], _ERF_SLOPES[knot], _ERF_SLOPES[knot + 1]
    y = y0 + t * (d0 + t * (3 * (y1 - y0) - 2 * d0 - d1 + t * (2 * (y0 - y1) + d0 + d1)))
    result: np.ndarray = np.copysign(y, x)
    return result


def check(finite: np.ndarray, x: np.ndarray) -> None:
    """finite [T] = whether all of x [T, width] is."""
    np.isfinite(x).all(axis=1, out=finite)


def gather(last: np.ndarray, x: np.ndarray, tails: np.ndarray) -> None:
    """last [N, hidden] = x[tails]."""
    np.take(x, tails, axis=0, out=last)


def head(out: np.ndarray, x: np.ndarray, weight: np.ndarray, *, scale: float, softcap: float | None) -> None:
    """Logits: out [N, vocab] = x [N, hidden] @ weight * scale, then softcap * tanh(out / softcap) where set.

    weight [hidden, vocab].
    """
    np.matmul(x, weight, out=out)
    if scale != 1.0:
        out *= np.float32(scale)
    if softcap is not None:
        out /= np.float32(softcap)
        np.tanh(out, out=out)
        out *= np.float32(softcap)


def scan(finite: np.ndarray, best: np.ndarray, logits: np.ndarray) -> None:
    """finite [N] = whether all of logits [N, vocab] is; best [N] = where its largest value comes first."""
    np.isfinite(logits).all(axis=1, out=finite)
    np.argmax(logits, axis=1, out=best)


OPS: dict[str, Op] = {
    op.__name__: op
    for op in (
        *(embed, add, rms_norm, linear, qk_norm, rope, write_kv, paged_attention, gated, experts, add_gated),
        *(layer_norm, span_attention, activate),
        *(check, gather, head, scan),
    )
}
"""Every op that a program may name."""

BY_OUTPUT = frozenset({"linear", "head"})
"""Ops (out [T, outputs], x, weight [in, outputs], bias [outputs] ...) whose outputs can be computed part by part."""

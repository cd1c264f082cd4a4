"""In: a row's seed and a position. Out: the key of the noise by which its token is drawn there, alike on every backend.

The token drawn is, of those that the filters leave, the one whose score - log(e) is largest (an exponential race: a
draw from softmax(scores)). Each token has its own e, from (seed, position, token) alone, exponentially distributed:

    bits = mix(key + (token + 1) * GOLDEN)      modulo 2^64
    u = ((bits >> 12) + 1/2) / 2^52
    e = -log(1 - u)

So noise in the logits, other filters or another backend rarely change the outcome. mix is the finalizer of SplitMix64
(Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014).
"""

from __future__ import annotations

GOLDEN = 0x9E3779B97F4A7C15
MIX = (30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)
MIX_LAST = 31
_WORD = (1 << 64) - 1


def mix(x: int) -> int:
    """A 64-bit word to another, one to one: x ^= x >> shift, x *= factor for each of MIX, then x ^= x >> MIX_LAST."""
    for shift, factor in MIX:
        x = ((x ^ x >> shift) * factor) & _WORD
    return x ^ x >> MIX_LAST


def draw_key(seed: int, position: int) -> int:
    """The key of a draw, 0 <= key < 2^64; seed is any 64-bit integer, signed or not."""
    return mix((mix((seed + GOLDEN) & _WORD) + position * GOLDEN) & _WORD)

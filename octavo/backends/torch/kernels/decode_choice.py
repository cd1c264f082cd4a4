"""How kernels/decode_attention.py cuts a launch: the shape in, the Choice that was fastest out."""

from __future__ import annotations

from typing import NamedTuple

import triton

TILE = 64
"""Keys a tile, a power of two, at least 16; _decode may take half of it. Tiles lie at multiples of it, so that a block
of as many keys or more holds whole tiles; larger ones waste more at the end of short sequences, smaller ones more on
barriers."""

PROGRAMS = 4
"""Programs of _decode a multiprocessor, at most."""

FEW_PROGRAMS = 3
"""Of _decode_few, that tiles are shared among."""

FEW = 64
"""Sequences that _decode_few takes at most."""

NARROW, WIDE = 128, 256
"""Bytes of a key up to which, and beyond which, the pipeline is another."""

MAX_SPLITS = 32
"""Parts of a (sequence, kv head) in _decode_few: more take longer to merge than they save."""

SLACK = 12
"""Percent, Choice.slack."""


class Choice(NamedTuple):
    """How a launch is cut.

    tile: keys a tile, as in the plan.  warps: of a program.  stages: of its pipeline, one more than tiles in memory.
    min_share: tiles that a program takes at least; below that, splitting costs more than it gains.
    splits: parts that a (sequence, kv head) has at most, each a program of _decode_few; 0: _decode.
    slack: percent of its share that a program of _decode may go without or take in addition, to cut nothing.
    each: programs of _decode a multiprocessor, as many as run at once (by registers and shared memory).
    even: whether programs of _decode go without where that gives the others whole sequences of like length.
    """

    tile: int
    warps: int
    stages: int
    min_share: int
    splits: int = 0
    slack: int = 0
    each: int = FEW_PROGRAMS
    even: bool = False


def choose(head_dim: int, itemsize: int, group: int, *, batch: int, pairs: int, processors: int) -> Choice:
    """What launches with these heads use. itemsize: the cache's bytes a number; group: query heads a kv head;
    pairs: (sequence, kv head)s; processors: the device's multiprocessors.

    About 130 KB of keys and values are on their way to a multiprocessor, by programs enough to cover each other's
    waits. With so few pairs that each has several programs, what counts is how soon a program starts: _decode_few. Each
    pair may have twice its share of them, for where lengths differ; launch lowers that where there is one sequence.
    Measured within steps, of Qwen3-0.6B and 30B-A3B, Llama-3.2-1B and 3.1-8B, as launches one after another hide some
    programs' start (benchmarks/README.md).
    """
    width = padded(head_dim) * itemsize
    stages = max(1, min(3, 70 * 1024 // (2 * TILE * width))) + 1
    if batch <= FEW and 4 * pairs <= FEW_PROGRAMS * processors:
        return Choice(TILE, 4, stages, 1, splits=min(MAX_SPLITS, 2 * FEW_PROGRAMS * processors // pairs))
    large_group = triton.next_power_of_2(group) >= 8
    if itemsize > 1 and width <= WIDE and not large_group and pairs > FEW_PROGRAMS * processors:
        return Choice(TILE // 2, 4, 3, 8, slack=SLACK, each=4, even=True)
    if width <= NARROW:
        tile = 2 * TILE if batch > 2 * FEW else TILE
        return Choice(tile, 4, stages, 4 * TILE // tile, slack=SLACK, each=2)
    if width > WIDE:
        return Choice(TILE, 4, stages, 4, slack=SLACK, each=2 if width <= 2 * WIDE else 1)
    # two programs of so many query heads fill the registers
    return Choice(TILE, 4, stages, 4, slack=SLACK, each=2 if large_group else 3, even=large_group)


def places(processors: int) -> int:
    """For parts, on a device of so many multiprocessors."""
    return 2 * PROGRAMS * processors


def padded(head_dim: int) -> int:
    """A width that tl.dot takes."""
    return max(16, triton.next_power_of_2(head_dim))

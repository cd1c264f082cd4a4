"""In: pieces of one op's work. Out: all of them done, by a few threads of which the caller is one.

BLAS's own threads spin while they wait for each other: on a core that is shared with other work, a step then takes
ten times as long. These sleep, and whoever is free takes the next piece.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import TypeVar

import numpy as np

Item = TypeVar("Item")

WORTHWHILE = 1 << 18
"""Multiplications below which waking another thread costs more than it saves."""


class Team:
    """`size` threads, the caller's included."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._pool = ThreadPoolExecutor(size - 1, "octavo-team", initializer=_quiet) if size > 1 else None

    def each(self, work: Callable[[Item, int], None], items: Sequence[Item]) -> None:
        """work(item, member) for every item, in any order; member < size tells the threads apart.

        Raises an error of `work`, once no thread works any more.
        """
        if self._pool is None or len(items) < 2:
            for item in items:
                work(item, 0)
            return
        queue = iter(items)  # next() on a list's iterator is atomic
        others = [self._pool.submit(_drain, work, queue, member) for member in range(1, min(self.size, len(items)))]
        try:
            _drain(work, queue, 0)
        finally:
            for other in others:
                other.exception()  # waits: no thread may still write when the caller goes on
        for other in others:
            other.result()

    def parts(self, length: int, *, work: int) -> list[slice]:
        """Cut range(length) for `each`; `work`: multiplications in all."""
        count = 1 if self.size == 1 or work < WORTHWHILE else self.size * (1 if work < 16 * WORTHWHILE else 2)
        edges = [length * i // count for i in range(count + 1)]
        return [slice(low, high) for low, high in pairwise(edges) if low < high]

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown(wait=True)


def _drain(work: Callable[[Item, int], None], queue: Iterator[Item], member: int) -> None:
    for item in queue:
        work(item, member)


def _quiet() -> None:
    # a thread begins with NumPy's default; step.py's setting is the calling thread's alone
    np.seterr(all="ignore")

"""Samples taken while the machine's memory is as fast as it mostly is: other guests of a host halve it for a while.

Both engines' samples are chosen alike, by the memory alone, never by what they show.
"""

from __future__ import annotations

import time
from bisect import insort
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

WORDS = 8 << 20  # of 8 bytes, a thread: beyond any cache
LEAST = 0.75  # of the median of all looks so far
PAUSE = 0.5  # seconds between two looks
PATIENCE = 20.0  # seconds a sample waits at most
TURNS = 3  # times a sample is taken at most


class Calm:
    """Reads memory before and after samples.

    waited: seconds, those of the looks before samples among them.  again: samples that were taken once more.
    """

    def __init__(self, threads: int) -> None:
        self._memory = [np.ones(WORDS, np.int64) for _ in range(threads)]
        self._pool = ThreadPoolExecutor(threads)
        self._looks = sorted(self._read() for _ in range(20))
        self.waited, self.again = 0.0, 0

    def measure(self, sample: Callable[[], float]) -> float:
        """A sample with fast memory before and after it; the last of some, where there was none."""
        for turn in range(TURNS):
            self._wait()
            value = sample()
            if self._is_fast():
                break
            self.again += turn + 1 < TURNS
        return value

    def _wait(self) -> None:
        begun = time.monotonic()
        while not self._is_fast() and time.monotonic() - begun < PATIENCE:
            time.sleep(PAUSE)
        self.waited += time.monotonic() - begun

    def _is_fast(self) -> bool:
        speed = self._read()
        insort(self._looks, speed)
        return speed >= LEAST * self._looks[len(self._looks) // 2]

    def _read(self) -> float:
        """Bytes read a second by all threads, the best of three."""
        least = min(self._seconds() for _ in range(3))
        return sum(array.nbytes for array in self._memory) / least

    def _seconds(self) -> float:
        begun = time.perf_counter()
        list(self._pool.map(np.max, self._memory))
        return time.perf_counter() - begun

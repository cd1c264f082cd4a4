"""How fast the queue moves in; seconds after which a refused request may come again out."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable

WINDOW = 30.0  # seconds over which the rate is measured, or longer where samples are further apart
_APART = 1.0  # seconds between samples, and least time to measure over
_STILL = 10.0  # seconds in which nothing begins that tell of a jam: before, long answers may just hold every place
LONGEST = 60


class QueueRate:
    """Prompt tokens that leave the queue a second, while there is one.

    `note` whenever a request comes; done: prompt tokens begun so far, over all requests.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._samples: deque[tuple[float, int]] = deque()

    def note(self, done: int, *, empty: bool) -> None:
        """empty: nobody waits, so that what was measured before tells nothing of a queue."""
        now = self._clock()
        if empty:
            self._samples.clear()
        if not self._samples or now - self._samples[-1][0] >= _APART:
            self._samples.append((now, done))
        while len(self._samples) > 1 and now - self._samples[1][0] >= WINDOW:
            self._samples.popleft()

    def seconds(self, waiting: int, done: int) -> int | None:
        """Until `waiting` tokens have left, 1 to LONGEST; None where too little was measured."""
        then, before = self._samples[0] if self._samples else (self._clock(), done)
        elapsed = self._clock() - then
        if elapsed < _APART:
            return None
        if done <= before:
            return LONGEST if elapsed >= _STILL else None
        return min(max(math.ceil(waiting * elapsed / (done - before)), 1), LONGEST)

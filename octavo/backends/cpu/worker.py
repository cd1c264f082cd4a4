"""In: plans. Out: what became of each, in their order, worked out on a thread of its own."""

from __future__ import annotations

from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread
from typing import Generic, TypeVar

import numpy as np

Plan = TypeVar("Plan")
Result = TypeVar("Result")


class Worker(Generic[Plan, Result]):
    """A queue to the thread and one back: a step's hand-over costs a fraction of what futures take."""

    def __init__(self, name: str) -> None:
        self._plans: SimpleQueue[tuple[Callable[[Plan], Result], Plan] | None] = SimpleQueue()
        self._results: SimpleQueue[Result | Exception] = SimpleQueue()
        self._thread = Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def begin(self, run: Callable[[Plan], Result], plan: Plan) -> None:
        """run(plan), after all that was begun before."""
        self._plans.put((run, plan))

    def finish(self) -> Result:
        """Wait for the oldest that was begun and not finished; raises what it raised."""
        result = self._results.get()
        if isinstance(result, Exception):
            raise result
        return result

    def close(self) -> None:
        """Let what was begun end, then end the thread; idempotent."""
        self._plans.put(None)
        self._thread.join()

    def _work(self) -> None:
        # what overflows becomes inf or NaN and is found where rows are checked
        np.seterr(all="ignore")
        while (work := self._plans.get()) is not None:
            run, plan = work
            try:
                self._results.put(run(plan))
            except Exception as error:
                self._results.put(error)

"""In: plans, whole or in parts. Out: what became of each, in their order, worked out on a thread of its own."""

from __future__ import annotations

import os
from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread
from typing import Any, Generic, TypeVar

import numpy as np

from octavo.base.errors import RequestFailedError

Item = TypeVar("Item")
Result = TypeVar("Result")


class Worker(Generic[Result]):
    """A queue to the thread and one back: a step's hand-over costs a fraction of what futures take.

    A fork of its process does not have the thread: there begin and finish raise RequestFailedError.
    """

    def __init__(self, name: str) -> None:
        self._items: SimpleQueue[tuple[Callable[[Any], Result | None], Any] | None] = SimpleQueue()
        self._results: SimpleQueue[Result | Exception] = SimpleQueue()
        self._thread = Thread(target=self._work, name=name, daemon=True)
        self._thread.start()
        self._process = os.getpid()

    def begin(self, run: Callable[[Item], Result | None], item: Item) -> None:
        """run(item), after all that was begun before. None is no result: more work will give it."""
        self._check_process()
        self._items.put((run, item))

    def finish(self) -> Result:
        """Wait for the oldest result that was not taken; raises what its work raised."""
        self._check_process()
        result = self._results.get()
        if isinstance(result, Exception):
            raise result
        return result

    def close(self) -> None:
        """Let what was begun end, then end the thread; idempotent."""
        self._items.put(None)
        self._thread.join()

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            raise RequestFailedError(
                "this process is a fork of the one that loaded the model, whose threads it does not have; load the "
                "model where it is used, or begin processes by spawn in place of fork"
            )

    def _work(self) -> None:
        # what overflows becomes inf or NaN and is found where rows are checked
        np.seterr(all="ignore")
        while (work := self._items.get()) is not None:
            run, item = work
            try:
                result = run(item)
            except Exception as error:
                self._results.put(error)
            else:
                if result is not None:
                    self._results.put(result)

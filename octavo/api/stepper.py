"""Rows of many calls in, one engine in this process under them all; whichever thread waits runs the next step."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from typing import Any, Protocol, TypeVar
from weakref import WeakMethod

from octavo.api.interrupt import interrupt_after
from octavo.base.errors import ConfigError, OverloadedError, RequestFailedError
from octavo.base.types.output import Output
from octavo.base.types.request import Request
from octavo.engine.engine import Engine

Result = TypeVar("Result", covariant=True)


class Row(Protocol[Result]):
    """One request under way: outputs.RequestProgress and pooling.PoolingProgress."""

    @property
    def request(self) -> Request: ...
    @property
    def finished(self) -> bool: ...
    def push(self, output: Output) -> list[str]: ...
    def take(self) -> Result | None: ...


class _Batch:
    """The rows of one call. Threads step in turns, so any of them may end a row: on_end is called by that one.

    error: what taking an output in, or on_end, raised; it ends this call, whichever thread it came up in.
    """

    def __init__(self, rows: Sequence[Row[Any]], on_end: Callable[[Any], None]) -> None:
        self.waiting = deque(rows)
        self.left = len(rows)
        self.on_end = on_end
        self.error: Exception | None = None


class Stepper:
    """open_engine: its owner's method: the engine that is there now, or an error that says why there is none.

    lock: held by whoever steps.
    """

    def __init__(self, open_engine: Callable[[], Engine]) -> None:
        self.lock = threading.Lock()
        self._open_engine = WeakMethod(open_engine)  # no cycle: an owner that nobody has frees its files at once
        self._alive: dict[str, tuple[Row[Any], _Batch]] = {}

    @property
    def idle(self) -> bool:
        """True if the engine has nothing of anybody's."""
        return not self._alive

    def run(
        self,
        rows: Sequence[Row[Result]],
        *,
        on_end: Callable[[Any], None] = lambda row: None,
        on_output: Callable[[Any], None] | None = None,
    ) -> list[Result]:
        """Run rows to their ends; what came of them, in order. on_end: called with each row that ends; on_output: with
        what came of it, which the row must give again."""

        def end(row: Row[Result]) -> None:
            on_end(row)
            if on_output is not None:
                on_output(row.take())

        batch = _Batch(rows, end)
        try:
            while batch.left and batch.error is None:
                self._advance(batch)
            if batch.error is not None:
                raise batch.error
        finally:
            self._forget(batch)
        return [result for row in rows if (result := row.take()) is not None]

    def stream(
        self, row: Row[Result], *, on_step: Callable[[int], None] = lambda num_read: None
    ) -> Generator[Result, None, None]:
        """What comes of a row, as it comes. Closing it aborts. on_step: called after steps, with Engine.num_read."""
        batch = _Batch([row], lambda row: None)
        try:
            while True:
                finished = row.finished
                if (result := row.take()) is not None:
                    yield result
                if finished:
                    return
                if batch.error is not None:
                    raise batch.error
                if result is None:
                    on_step(self._advance(batch).num_read(row.request.request_id))
        finally:
            self._forget(batch)

    def _engine(self) -> Engine:
        open_engine = self._open_engine()
        if open_engine is None:
            raise ConfigError("the LLM of this call is gone")
        return open_engine()

    def _advance(self, batch: _Batch) -> Engine:
        """Queue what the engine takes of the batch, then run one step, for whichever batches are under way."""
        with self.lock, interrupt_after():
            engine = self._engine()
            while batch.waiting and _try_add(engine, batch.waiting[0].request, alone=self.idle):
                row = batch.waiting.popleft()
                self._alive[row.request.request_id] = (row, batch)
            if batch.left and not engine.has_work():
                raise RequestFailedError(f"the engine is idle and {batch.left} requests have not ended")
            for output in engine.step():
                self._take(engine, output)
        return engine

    def _take(self, engine: Engine, output: Output) -> None:
        row, batch = self._alive.get(output.request_id, (None, None))
        if row is None or batch is None:
            return
        try:
            if names := row.push(output):
                engine.abort(names)
            if row.finished:
                del self._alive[output.request_id]
                batch.left -= 1
                batch.on_end(row)
        except Exception as error:  # the step's other outputs come but once
            batch.error = batch.error or error

    def _forget(self, batch: _Batch) -> None:
        """Whatever ended a batch early leaves nothing behind in the engine."""
        with self.lock:
            names = [name for name, (_, owner) in self._alive.items() if owner is batch]
            for name in names:
                del self._alive[name]
            if names:
                with suppress(ConfigError):  # closed meanwhile
                    self._engine().abort(names)


def _try_add(engine: Engine, request: Request, *, alone: bool) -> bool:
    try:
        engine.add(request)
    except OverloadedError:
        if alone:
            raise
        return False
    return True

"""A request under way, as its reader sees it: Outputs pushed in on one side, RequestOutputs out on the other.

Its reader awaits them one by one (`read`), or is called with each as soon as a step's Outputs are in (`hand_to`), which
spares a token the waking of a task.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, cast

from octavo.api.outputs import RequestProgress
from octavo.api.pooling import PoolingProgress
from octavo.api.socket_client import News, make_error
from octavo.base.errors import OctavoError
from octavo.base.types.output import Output

_OWN_FAULTS = (None, "RequestFailedError", "NumericalError")  # told by the output; others are raised

logger = logging.getLogger(__name__)

Take = Callable[[Any], "asyncio.Future[Any] | None"]


class Stream:
    """One request: its progress, who waits for it, and what ended it early.

    name: what its caller calls it, if anything.
    num_crashes: engine processes that have ended while they had it.  begun: its reader was told of an Output.
    tell: call it after `push`es, once for those of a step: there is something to take.
    """

    def __init__(self, progress: RequestProgress | PoolingProgress, name: str | None = None) -> None:
        self.progress = progress
        self.name = name
        self.failure: OctavoError | None = None
        self.num_crashes = 0
        self.begun = False
        self._news = News()
        self.tell: Callable[[], None] = self._news.set

    @property
    def going_on(self) -> bool:
        """True while the engine has something to do for it."""
        return self.failure is None and not self.progress.finished

    def fail(self, error: OctavoError) -> None:
        """End it with `error`, unless it has ended with another."""
        self.failure = self.failure or error
        self.tell()

    def abort(self) -> None:
        """End it with what has come."""
        request = self.progress.request
        for index in range(request.params.n):
            self.push(Output(request_id=request.request_id, index=index, finish_reason="abort"))
        self.tell()

    def push(self, output: Output) -> list[str]:
        """Take one Output in; returns the names that the engine must abort because of it."""
        if output.finish_reason == "error" and output.error_kind not in _OWN_FAULTS:
            error = make_error(output.error_kind, output.error or "", retry_after=output.retry_after)
            self.failure = self.failure or error
            return [output.request_id] if self.progress.request.params.n > 1 else []  # its others have not ended
        try:
            return self.progress.push(output)
        except Exception as error:  # one request's text must never end another's stream
            logger.exception("request %s failed while its text was made", self.progress.request_id)
            what = make_error(None, f"the output could not be made into text ({type(error).__name__})")
            self.failure = self.failure or what
            return [output.request_id]

    async def read(self) -> AsyncIterator[Any]:
        """What has come, merged since the last time, until it has ended. Raises what ended it early."""
        while True:
            await self._news.wait()
            self._news.clear()
            # what has come is handed out before the failure that cut it short is raised
            if (output := self.progress.take()) is not None:
                yield output
                if output.finished:
                    return
            if self.failure is not None:
                raise self.failure

    def hand_to(self, take: Take) -> asyncio.Future[None]:
        """Call `take` with what has come from now on, at every `tell`. Done with the last; fails as `read` raises, or
        with what `take` raises.

        take: returns None, or a future: until that is done nothing is handed out, and what comes is merged.
        """
        handing = _Handing(self, take)
        self.tell = handing.go_on
        handing.ended.add_done_callback(self._let_go)
        return handing.ended

    def _let_go(self, ended: asyncio.Future[None]) -> None:
        # a cycle would be left to the collector, whose walks hold all streams up
        self.tell = self._news.set


async def hand_out(outputs: AsyncIterator[Any], take: Take) -> None:
    """As `hand_to`, of an iterator's outputs."""
    async with aclosing(cast("AsyncGenerator[Any, None]", outputs)):
        async for output in outputs:
            if (full := take(output)) is not None:
                await asyncio.wait([full])
                full.result()


class _Handing:
    """A stream's outputs on their way to its reader's function."""

    def __init__(self, stream: Stream, take: Take) -> None:
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._stream = stream
        self._take = take
        self._full: asyncio.Future[Any] | None = None

    def go_on(self) -> None:
        if self._full is not None or self.ended.done():
            return
        try:
            if (output := self._stream.progress.take()) is not None:
                self._full = self._take(output)
                if output.finished:
                    self.ended.set_result(None)
                    return
                if self._full is not None:
                    self._full.add_done_callback(self._emptied)
                    return
        except Exception as error:
            self.ended.set_exception(error)
            return
        if self._stream.failure is not None:
            self.ended.set_exception(self._stream.failure)

    def _emptied(self, full: asyncio.Future[Any]) -> None:
        self._full = None
        if self.ended.done():
            return
        if full.cancelled():
            self.ended.cancel()
        elif (error := full.exception()) is not None:
            self.ended.set_exception(error)
        else:
            self.go_on()

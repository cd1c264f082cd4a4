"""A request under way, as its reader sees it: Outputs pushed in on one side, RequestOutputs awaited on the other."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from typing import Any

from octavo.api.outputs import RequestProgress
from octavo.api.pooling import PoolingProgress
from octavo.api.socket_client import News, make_error
from octavo.base.errors import OctavoError
from octavo.base.types.output import Output

_OWN_FAULTS = (None, "RequestFailedError", "NumericalError")  # told by the output; others are raised

logger = logging.getLogger(__name__)


class Stream:
    """One request: its progress, who waits for it, and what ended it early.

    num_crashes: engine processes that have ended while they had it.
    """

    def __init__(self, progress: RequestProgress | PoolingProgress) -> None:
        self.progress = progress
        self.failure: OctavoError | None = None
        self.num_crashes = 0
        self._news = News()

    @property
    def going_on(self) -> bool:
        """True while the engine has something to do for it."""
        return self.failure is None and not self.progress.finished

    def fail(self, error: OctavoError) -> None:
        """End it with `error`, unless it has ended with another."""
        self.failure = self.failure or error
        self._news.set()

    def push(self, output: Output) -> list[str]:
        """Take one Output in; returns the names that the engine must abort because of it."""
        if output.finish_reason == "error" and output.error_kind not in _OWN_FAULTS:
            self.fail(make_error(output.error_kind, output.error or "", retry_after=output.retry_after))
            return []
        try:
            names = self.progress.push(output)
        except Exception as error:  # one request's text must never end another's stream
            logger.exception("request %s failed while its text was made", self.progress.request_id)
            self.fail(make_error(None, f"the output could not be made into text ({type(error).__name__})"))
            return [output.request_id]
        self._news.set()
        return names

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

"""A config in, an engine process kept alive: it is started again when it ends or hangs, and goes on with its requests.

Tokens are a function of the request alone (its seed is drawn before it is sent), so a new process makes from the
prompt and the tokens that have come what the old one would have made, and a reader sees but a pause.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Coroutine, Set
from contextlib import suppress
from typing import Any, Literal

from octavo.api.engine_process import EngineProcess
from octavo.api.poison import Poison
from octavo.api.prompts import SHORT, SHORT_AMONG_MANY
from octavo.api.socket_client import SocketClient
from octavo.api.streams import Stream
from octavo.base.config.config import EngineConfig
from octavo.base.config.resolve import fixed_length
from octavo.base.errors import ConfigError, EngineDeadError, OctavoError, OverloadedError, RequestFailedError
from octavo.base.types.messages import EngineStats, Loading, Outputs

logger = logging.getLogger(__name__)

State = Literal["loading", "ready", "restarting", "sleeping", "draining", "dead"]

FAILED_STARTS = 5  # in a row, then the engine is given up
STEADY = 60.0  # seconds of life after which the next death counts as the first, as it does where tokens had come
LONGEST_PAUSE = 30.0
MAX_CRASHES = 2  # that a request may meet: it may be what they come from
_LOOKS = 4  # a watchdog's, in its time
FEW_STREAMS = 100  # so many leave the event loop time to spare; 256 with steps of 8 ms do not

_REASONS: dict[State, str] = {
    "loading": "the model is loading; try again",
    "restarting": "the engine is restarting; try again",
    "sleeping": "the engine is asleep",
    "draining": "the server is shutting down",
}


class Supervisor:
    """One engine process after another, and the requests that outlive them.

    process: one that was spawned ahead, for the first life.  watchdog_timeout: seconds of silence after which a
    process is taken to hang and is killed.  hung: that happened, and no new one is ready yet.  on_life_end: called
    before what a process counted is forgotten.  started: AsyncLLM.start was called.  Other attributes are AsyncLLM's.
    All methods belong to one event loop.
    """

    def __init__(self, config: EngineConfig, process: EngineProcess | None, *, watchdog_timeout: float) -> None:
        self.config = config
        self.state: State = "loading"
        self.started = False
        self.loading: tuple[str, int, int] = ("starting", 0, 1)
        self.info: dict[str, Any] = {}
        self.stats = EngineStats()
        self.on_life_end: Callable[[], None] = lambda: None
        self.num_restarts = 0
        self.hung = False
        self.client: SocketClient | None = None
        self.streams: dict[str, Stream] = {}
        self._reached: dict[Stream, None] = {}  # by what was read, and not told yet
        self._process = process
        self._watchdog_timeout = watchdog_timeout
        self._watchdog: asyncio.Task[None] | None = None
        self._restart: asyncio.Task[None] | None = None
        self._loading: asyncio.Task[None] | None = None
        self._poison = Poison()
        self._idle = asyncio.Event()
        self._ending = False
        self._deaths = 0
        self._born = 0.0
        self._worked = False  # tokens have come in this life

    @property
    def few_streams(self) -> bool:
        """True while the event loop has time to spare."""
        return len(self.streams) <= FEW_STREAMS

    @property
    def short(self) -> int:
        """Characters of a text that are tokenized on the event loop."""
        return SHORT if self.few_streams else SHORT_AMONG_MANY

    def heartbeat_age(self) -> float:
        """Seconds since the process was last heard of; 0 while there is none."""
        return time.monotonic() - self.client.last_heard if self.client else 0.0

    def admit(self) -> SocketClient:
        """The client that takes requests now. Raises `refusal()`."""
        if self.state == "ready" and self.client is not None:
            return self.client
        raise self.refusal()

    def refusal(self) -> OctavoError:
        """OverloadedError, saying what is going on; EngineDeadError for good; ConfigError where nothing was begun."""
        if self.state == "dead":
            return EngineDeadError("the engine has ended")
        if self.state == "loading" and not self.started:
            return ConfigError("this AsyncLLM was not started; await its start() first")
        return OverloadedError(_REASONS.get(self.state, "the engine is not ready"), retry_after=2)

    def open(self, stream: Stream, *, further: bool = False) -> None:
        """Send a stream's request; `forget` it afterwards, whatever becomes of it.

        further: it is part of work that was let in before: a full queue and a drain take it too, and a process that is
        being started again gets it once it is ready.
        """
        request = stream.progress.request
        going_on = further and self.state in ("restarting", "draining") and not self._ending
        client = self.client if going_on else self.admit()
        self._poison.check(request)
        self.streams[request.request_id] = stream
        if client is None:
            return
        try:
            client.add(request, [[]] * request.params.n if further else None)
        except EngineDeadError:  # the connection closes: `_on_lost` is about to come, and the next process gets it
            stream.num_crashes -= 1  # it does not meet this one

    def forget(self, stream: Stream) -> None:
        """Nobody reads it any more: it is aborted unless it has ended."""
        number = stream.progress.request.request_id
        self.streams.pop(number, None)
        if stream.going_on:
            self._abort([number])
        if not self.streams:
            self._idle.set()

    def go_on(self, before: list[Stream], streams: list[Stream]) -> None:
        """Open a search's next streams, then let go of its last ones: a drain waits while there are any."""
        try:
            for stream in streams:
                self.open(stream, further=bool(before))
        finally:
            for stream in before:
                self.forget(stream)

    def abort(self, names: Set[str]) -> None:
        """End streams by what their callers call them, with what has come of them."""
        for number, stream in self.streams.items():
            if stream.name in names and stream.going_on:
                self._abort([number])
                stream.abort()

    async def unless_closed(self, loading: Coroutine[Any, Any, None]) -> None:
        """Await what is to end with a process that is ready. EngineDeadError, at once, where `close` comes between."""
        self._loading = asyncio.get_running_loop().create_task(loading)
        try:
            await self._loading
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
        if self.state in ("draining", "dead"):
            raise EngineDeadError("the engine was closed while the model was loading")
        if self.client is None:
            raise EngineDeadError("the engine process ended as soon as it was ready")

    async def spawn(self) -> None:
        """Start a process; returns when it is ready. Raises what prevents it."""
        client = SocketClient(on_message=self._on_message, on_read=self._tell, on_lost=self._on_lost)
        process, self._process = self._process, None
        try:
            self.info = await client.start(self.config, process)
            self.config = fixed_length(self.config, self.info)
        except BaseException:
            await client.close(grace=0)
            raise
        if client.lost:  # it told that it was ready and died before this task ran again
            raise EngineDeadError("the engine process ended as soon as it was ready")
        self.client, self._born, self._worked, self.hung = client, time.monotonic(), False, False
        self._watchdog = asyncio.get_running_loop().create_task(self._watch(client))

    async def sleep(self) -> None:
        """End the process until `wake_up`; requests under way fail."""
        if self.state == "sleeping":
            return
        client = self.admit()
        self.state, self.client = "sleeping", None
        self.fail_all(OverloadedError("the engine was put to sleep; try again later", retry_after=5))
        try:
            await client.close()
        finally:  # until then the process goes on counting
            self._end_life()

    async def close(self, timeout: float) -> None:  # noqa: ASYNC109 - a grace period, not a deadline of the call
        """Give running requests `timeout` seconds, then end the process, and the one that is being started."""
        self.state = "draining"
        if self.streams and timeout > 0:
            self._idle.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), timeout)
        self._ending = True
        for task in (self._loading, self._restart, self._watchdog):
            if task is not None:
                task.cancel()
                await asyncio.wait([task])
        self.fail_all(EngineDeadError("the server is shutting down; the request was cut off"))
        client, self.client = self.client, None
        if client is not None:
            await client.close()
        if self._process is not None:
            self._process.drop()

    def fail_all(self, error: OctavoError) -> None:
        """End every stream with `error`, after what was read."""
        self._tell()
        for stream in self.streams.values():
            stream.fail(error)

    def _on_message(self, message: Loading | Outputs) -> bool:
        """Whether streams begin, which has been told; the others are told when all that was read is in."""
        if isinstance(message, Loading):
            self.loading = (message.what, message.done, message.total)
            return False
        self.stats, began = message.stats, False
        self._worked = self._worked or any(output.token_ids or output.pooled for output in message.outputs)
        for output in message.outputs:
            stream = self.streams.get(output.request_id)
            if stream is None:
                continue
            if not stream.begun:
                stream.begun = began = True
            self._reached[stream] = None
            if names := stream.push(output):
                self._abort(names)
        if began:
            self._tell()
            if self.few_streams:
                # a thread of the HTTP server sends them, and waits for this one to let go
                asyncio.get_running_loop().call_soon(os.sched_yield)
        return began

    def _tell(self) -> None:
        """Where this process is behind, what several steps brought is in, and goes out together."""
        reached, self._reached = self._reached, {}
        for stream in reached:
            stream.tell()

    def _end_life(self) -> None:
        """The next process counts from 0."""
        self.on_life_end()
        self.stats = EngineStats()

    def _abort(self, names: list[str]) -> None:
        if self.client is not None:
            with suppress(EngineDeadError):  # then there is nothing left to abort
                self.client.abort(names)

    async def _watch(self, client: SocketClient) -> None:
        """Kill a process that is silent for too long. Time counts in looks: this process may have been stopped too."""
        pause, silent, heard = self._watchdog_timeout / _LOOKS, 0, 0.0
        while client is self.client:
            silent, heard = silent + 1 if client.last_heard == heard else 0, client.last_heard
            if silent >= _LOOKS:
                logger.error("the engine process hangs: silent for %.1f s; it is killed", self.heartbeat_age())
                self.hung = True
                client.kill()
                return
            await asyncio.sleep(pause)

    def _on_lost(self, error: OctavoError) -> None:
        logger.error("the engine process is lost: %s", error.message)
        self._end_life()
        self.client = None
        self._tell()
        for stream in self.streams.values():
            stream.num_crashes += 1
            if stream.going_on and stream.num_crashes >= MAX_CRASHES:
                self._poison.add(stream.progress.request)
                stream.fail(
                    RequestFailedError(
                        f"the engine process ended {stream.num_crashes} times while this request was under way; it "
                        "is not tried again"
                    )
                )
        if self.state == "ready":
            self.state = "restarting"
        if self.state in ("restarting", "draining") and not self._ending:
            steady = self._worked or time.monotonic() - self._born >= STEADY
            self._deaths = 1 if steady else self._deaths + 1
            self._restart = asyncio.get_running_loop().create_task(self._start_again())
        else:
            self.fail_all(error if isinstance(error, EngineDeadError) else EngineDeadError(error.message))

    async def _start_again(self) -> None:
        """Start the process again, after pauses that double; after FAILED_STARTS failed starts in a row it is dead."""
        for attempt in range(FAILED_STARTS):
            pause = min(0.1 * 2 ** (self._deaths - 1 + attempt), LONGEST_PAUSE) if self._deaths + attempt > 1 else 0.0
            await asyncio.sleep(pause)
            try:
                await self.spawn()
            except (OctavoError, OSError) as error:
                logger.error("the engine process does not start: %s", error)
                continue
            self.num_restarts += 1
            if self.state == "restarting":
                self.state = "ready"
            logger.warning("the engine process is back (restart %d)", self.num_restarts)
            self._resume()
            return
        self.fail_all(EngineDeadError("the engine process ended and does not start again; try another server"))
        self.state = "dead"

    def _resume(self) -> None:
        """Give the new process what the old one had not ended."""
        if self.client is None:
            return
        with suppress(EngineDeadError):  # lost again: it will be told
            for stream in self.streams.values():
                if stream.going_on:
                    self.client.add(stream.progress.request, stream.progress.resume())

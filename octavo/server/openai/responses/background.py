"""Responses that are made whether or not somebody waits: a task each, ended by its client, by a drain, or by itself."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from dataclasses import replace

import msgspec

from octavo.base.errors import OctavoError, OverloadedError
from octavo.base.types.output import RequestOutput
from octavo.base.types.sampling import RequestOutputKind
from octavo.server.batch.run import PATIENCE_S
from octavo.server.errors import describe
from octavo.server.exchange import Exchange
from octavo.server.openai.convert import Generation
from octavo.server.openai.generate import KEEP_ALIVE_S
from octavo.server.openai.responses.build import ResponseBuilder
from octavo.server.openai.responses.events import EventLog
from octavo.server.openai.responses.store import Stored
from octavo.server.openai.results import Results
from octavo.server.openai.sse import KEEP_ALIVE
from octavo.server.services import Services

MAX_RUNNING = 256


def start(
    services: Services, exchange: Exchange, generation: Generation, *, builder: ResponseBuilder, entry: Stored
) -> None:
    """Begin to make a response, and keep it from now on as `entry`. OverloadedError where too many are being made."""
    if len(services.responses.jobs) >= MAX_RUNNING:
        raise OverloadedError(f"{MAX_RUNNING} responses are being made in the background", retry_after=5)
    # token by token, so that it can be shown on its way, and is there where it is cancelled
    params = msgspec.structs.replace(generation.params, output_kind=RequestOutputKind.DELTA)
    if builder.streamed:
        entry.events = EventLog(services.responses.room)
    entry.job = _Job(services, exchange, replace(generation, params=params), builder=builder, entry=entry)
    services.responses.put(entry)


async def follow(exchange: Exchange, log: EventLog, after: int = -1) -> None:
    """Stream the events after this number, until there are no more. A client that leaves ends nothing but this."""
    number = after + 1
    events = log.since(number)
    exchange.begin_stream()
    while not log.over:
        if events:
            number += len(events)
            await exchange.send_events(b"".join(events))
        elif not await log.wait(KEEP_ALIVE_S):
            await exchange.send_events(KEEP_ALIVE)
        events = log.since(number)
    await exchange.send_events(b"".join(events), last=True)


class _Job:
    """One response's task. It counts as in flight, so that a drain waits for it, or ends it with an error."""

    def __init__(
        self, services: Services, exchange: Exchange, generation: Generation, *, builder: ResponseBuilder, entry: Stored
    ) -> None:
        self._services, self._generation, self._builder, self._entry = services, generation, builder, entry
        self._request_id, self.names = exchange.request_id, exchange.names
        self._interruption: OctavoError | None = None
        services.responses.jobs.add(self)
        self._in_flight = ExitStack()  # from now on: who asked for it may leave before it runs
        self._in_flight.enter_context(services.traffic.entered(self))
        self._keep(builder.start())
        self._task = asyncio.create_task(self._make())
        self._task.add_done_callback(self._ended)

    def interrupt(self, error: OctavoError) -> None:
        """End it with an error, now."""
        self._interruption = error
        self._task.cancel()

    def update(self) -> None:
        """The response holds all that has come."""
        self._builder.fill()

    async def cancel(self) -> None:
        """End it, unless it has ended; returns when it has."""
        self._task.cancel()
        await asyncio.wait([self._task])

    def _ended(self, task: asyncio.Task[None]) -> None:
        builder, entry = self._builder, self._entry
        error = self._interruption if task.cancelled() else task.exception()
        if error is not None:
            events = builder.fail(describe(error, request_id=self._request_id))
        elif task.cancelled():
            events = builder.cancel()
        else:
            events = builder.end()
            entry.messages = [*entry.messages, *builder.said()]
        entry.job = None
        responses, name = self._services.responses, builder.response.id
        responses.jobs.discard(self)
        if name in responses:
            responses.put(entry)
        self._keep(events, over=True)
        if entry.events is not None and name not in responses:  # it gave way; who follows it is told of the end first
            asyncio.get_running_loop().call_soon(responses.room.forget, entry.events)
        self._in_flight.close()

    def _keep(self, events: bytes, *, over: bool = False) -> None:
        if self._entry.events is not None:
            self._entry.events.add(events, over=over)

    def _take(self, number: int, output: RequestOutput) -> None:
        self._keep(self._builder.piece(number, output))

    async def _make(self) -> None:
        patience = PATIENCE_S
        while True:
            try:
                async with Results(self._services, self._generation) as results:
                    return await results.collect(self._take)
            except OverloadedError as error:
                patience -= error.retry_after
                if self._builder.response.status != "queued" or patience < 0 or self._services.traffic.draining:
                    raise
                await asyncio.sleep(error.retry_after)

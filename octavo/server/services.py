"""What every route works with, in one value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import msgspec
from starlette.routing import Route

from octavo.api.async_llm import AsyncLLM
from octavo.base.config.config import ServerConfig
from octavo.base.errors import EngineDeadError, OverloadedError
from octavo.base.metrics.registry import Metrics
from octavo.server.batch.batches import Batches
from octavo.server.canary import Canary
from octavo.server.exchange import Exchange
from octavo.server.limits import Traffic
from octavo.server.names import ModelNames
from octavo.server.openai.decode import decode
from octavo.server.openai.responses.store import ResponseStore

LOADING_RETRY_S = 5

Request = TypeVar("Request", bound=msgspec.Struct)


@dataclass(frozen=True)
class Services:
    """The engine's front, the options, and what the routes share."""

    llm: AsyncLLM
    config: ServerConfig
    metrics: Metrics
    names: ModelNames
    traffic: Traffic
    started_at: int
    responses: ResponseStore
    batches: Batches
    canary: Canary
    routes: Sequence[Route]

    @property
    def ready(self) -> bool:
        """True if requests are let in now."""
        return self.llm.state == "ready" and not (self.traffic.draining or self.traffic.paused)

    @property
    def idle(self) -> bool:
        """True if requests are let in, and there is none."""
        stats = self.llm.stats
        return self.ready and not (len(self.traffic) or stats.num_running or stats.num_waiting)

    async def read(self, exchange: Exchange, kind: type[Request]) -> Request:
        """The body as `kind`, its model checked; from now on a client that goes away ends the work."""
        request = decode(await self.traffic.read_body(exchange), kind)
        self.names.check(getattr(request, "model", None))
        exchange.watch()
        return request

    def check_ready(self) -> None:
        """Raise a 503 with Retry-After unless requests can be taken now."""
        if self.traffic.draining or self.llm.state == "draining":
            raise OverloadedError("the server is shutting down; try another one", retry_after=LOADING_RETRY_S)
        if self.traffic.paused:
            raise OverloadedError("the server is paused; try again later", retry_after=LOADING_RETRY_S)
        if self.llm.state == "ready":
            return
        if self.llm.state == "sleeping":
            raise OverloadedError("the engine is asleep; try again later", retry_after=LOADING_RETRY_S)
        if self.llm.state == "loading":
            raise OverloadedError("the model is still loading; GET /readyz tells how far", retry_after=LOADING_RETRY_S)
        if self.llm.state == "restarting":
            raise EngineDeadError("the engine is starting again after a failure; try again")
        raise EngineDeadError("the engine has ended and does not come back; the server must be restarted")

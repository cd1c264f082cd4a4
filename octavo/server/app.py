"""ASGI calls in, answers out: the route table, and what holds for every route (keys, origins, errors, counting)."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.routing import Match, Route

from octavo.api.async_llm import AsyncLLM
from octavo.base.config import env
from octavo.base.config.config import ServerConfig
from octavo.base.errors import EngineDeadError, OverloadedError
from octavo.server import health
from octavo.server.auth import Keys
from octavo.server.errors import ClientGoneError, HttpError, describe
from octavo.server.exchange import Exchange, Receive, Reply, Scope, Send
from octavo.server.limits import Traffic
from octavo.server.metrics import Metrics, Rejection
from octavo.server.names import ModelNames
from octavo.server.openai.chat import create_chat_completion
from octavo.server.openai.completions import create_completion
from octavo.server.openai.models import list_models, show_model
from octavo.server.openai.parsing import check_parsers
from octavo.server.openai.sse import error_events
from octavo.server.openai.tokenize import detokenize, tokenize
from octavo.server.origins import Origins
from octavo.server.services import Services
from octavo.server.web import files

log = logging.getLogger(__name__)

Handler = Callable[[Services, Exchange], Awaitable[Reply | None]]

PAGE: dict[str, Handler] = {"/": files.show, files.PREFIX + "{name}": files.show}
"""GET routes of the page, unless it is turned off."""

WORK: dict[str, Handler] = {
    "/v1/completions": create_completion,
    "/v1/chat/completions": create_chat_completion,
    "/tokenize": tokenize,
    "/detokenize": detokenize,
}
"""POST routes that need a ready engine, and that a drain waits for."""

ASK: dict[str, Handler] = {
    "/v1/models": list_models,
    "/v1/models/{model:path}": show_model,
    "/health": health.live,
    "/livez": health.live,
    "/ping": health.live,
    "/readyz": health.ready,
    "/version": health.show_version,
    "/metrics": health.metrics,
}
"""GET routes: answered at once, whatever the engine does."""


def create_app(llm: AsyncLLM, config: ServerConfig) -> App:
    """The server as an ASGI application. It neither starts nor closes `llm`."""
    return App(llm, config)


class App:
    """routes: every route.  traffic: what is in flight, for the drain.  model: the name that replies carry."""

    def __init__(self, llm: AsyncLLM, config: ServerConfig) -> None:
        check_parsers(config)
        names = ModelNames(llm.config.model.model, config.served_model_name)
        self.model = names.first
        self.traffic = Traffic(config.max_body_bytes)
        page = {} if config.disable_ui else PAGE
        self.keys = Keys([*config.api_key, env.read("OCTAVO_API_KEY")], also_open=files.files() if page else ())
        self.routes = [
            *(Route(path, handler, methods=["GET"]) for path, handler in page.items()),
            *(Route(path, handler, methods=["POST"]) for path, handler in WORK.items()),
            *(Route(path, handler, methods=["GET"]) for path, handler in ASK.items()),
        ]
        self._origins = Origins(config.host, config.allowed_origins)
        self._services = Services(
            llm=llm,
            config=config,
            metrics=Metrics(names.first, stats=lambda: llm.stats, info=lambda: llm.info),
            names=names,
            traffic=self.traffic,
            started_at=int(time.time()),
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI's entry."""
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
        if scope["type"] != "http":
            return
        exchange = Exchange(scope, receive, send, request_id=_request_id(scope))
        try:
            await self._guarded(scope, exchange)
        finally:
            exchange.release()
            self._count(exchange)

    async def _guarded(self, scope: Scope, exchange: Exchange) -> None:
        """Answer; whatever goes wrong becomes the client's error, or nothing where the client is gone."""
        try:
            await self._answer(scope, exchange)
        except asyncio.CancelledError:
            if exchange.interruption is None:
                if exchange.gone:
                    return
                raise
            await self._fail(exchange, exchange.interruption)
        except ClientGoneError:
            return
        except Exception as error:
            await self._fail(exchange, error)

    async def _fail(self, exchange: Exchange, error: Exception) -> None:
        if isinstance(error, OverloadedError | EngineDeadError) and not exchange.streaming:
            self._services.metrics.rejected(self._rejection())
        told = describe(error, request_id=exchange.request_id)
        if exchange.streaming:
            await exchange.send_events(error_events(told.body), last=True)
        elif not exchange.status:
            await exchange.reply(Reply(told.body, told.status, headers=told.headers))

    def _rejection(self) -> Rejection:
        if self.traffic.draining:
            return "draining"
        return "overloaded" if self._services.llm.state == "ready" else "unavailable"

    async def _answer(self, scope: Scope, exchange: Exchange) -> None:
        origin = exchange.header(b"origin")
        self._origins.check(exchange.header_values(b"host"), origin)
        exchange.reply_headers += self._origins.headers(origin)
        asked = exchange.header(b"access-control-request-method")
        preflight = self._origins.preflight(exchange.method, origin, asked)
        if preflight is not None:
            await exchange.reply(Reply(b"", 204, headers=preflight))
            return
        self.keys.check(exchange.path, exchange.header_values(b"authorization"))
        handler = self._find(scope, exchange)
        if exchange.route not in WORK:
            reply = await handler(self._services, exchange)
        else:
            self._services.check_ready()
            with self.traffic.entered(exchange):
                reply = await handler(self._services, exchange)
        if reply is not None:
            await exchange.reply(reply)

    def _find(self, scope: Scope, exchange: Exchange) -> Handler:
        allowed: set[str] = set()
        for route in self.routes:
            match, found = route.matches(scope)
            if match is Match.FULL:
                exchange.route = route.path
                exchange.path_params = found["path_params"]
                handler: Handler = route.endpoint
                return handler
            if match is Match.PARTIAL:
                allowed |= route.methods or set()
        if allowed:
            exchange.reply_headers.append((b"allow", ", ".join(sorted(allowed)).encode()))
            raise HttpError(405, f"send {' or '.join(sorted(allowed))} to this path", kind="MethodNotAllowedError")
        raise HttpError(404, "there is no such path; the API is under /v1", kind="NotFoundError")

    def _count(self, exchange: Exchange) -> None:
        seconds = time.monotonic() - exchange.started_at
        self._services.metrics.answered(exchange.method, exchange.route, exchange.status, seconds)
        level = logging.INFO if exchange.route in WORK else logging.DEBUG
        shown = exchange.status or "closed by the client"
        log.log(
            level,
            "%s %s: %s in %.3f s, request %s",
            exchange.method,
            exchange.route,
            shown,
            seconds,
            exchange.request_id,
        )


_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")


def _request_id(scope: Scope) -> str:
    """The client's X-Request-Id where it is one that can be logged and repeated as it is; else a new one."""
    given = next((value for name, value in scope["headers"] if name.lower() == b"x-request-id"), b"")
    return given.decode() if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


async def _lifespan(receive: Receive, send: Send) -> None:
    message: Any = await receive()
    while message["type"] != "lifespan.shutdown":
        await send({"type": "lifespan.startup.complete"})
        message = await receive()
    await send({"type": "lifespan.shutdown.complete"})

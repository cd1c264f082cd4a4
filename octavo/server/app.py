"""ASGI calls in, answers out: the route table, and what holds for every route (keys, origins, errors, counting)."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any

from starlette.routing import Match, Route

from octavo import __version__
from octavo.api.async_llm import AsyncLLM
from octavo.api.log import REQUEST_ID
from octavo.base.config import env
from octavo.base.config.config import ServerConfig
from octavo.base.config.resolve import queue_length
from octavo.base.errors import EngineDeadError, OverloadedError
from octavo.base.metrics.registry import METHODS, Metrics, Rejection
from octavo.server import admin, health
from octavo.server.anthropic.errors import AnthropicErrors
from octavo.server.anthropic.models import VERSION, list_models, show_model
from octavo.server.anthropic.routes import count_tokens, create_message
from octavo.server.auth import Keys
from octavo.server.batch import routes as batch
from octavo.server.batch.batches import Batches
from octavo.server.batch.run import Answer
from octavo.server.batch.store import BatchStore
from octavo.server.canary import Canary
from octavo.server.docs_page import show_docs
from octavo.server.errors import ClientGoneError, HttpError, describe
from octavo.server.exchange import Exchange, Receive, Reply, Scope
from octavo.server.inside import InsideCall
from octavo.server.invocations import invoke
from octavo.server.limits import Traffic
from octavo.server.names import ModelNames
from octavo.server.openai.chat import create_chat_completion
from octavo.server.openai.completions import create_completion
from octavo.server.openai.parsing import check_chats
from octavo.server.openai.pooling import routes as pooling
from octavo.server.openai.responses import listing
from octavo.server.openai.responses import routes as responses
from octavo.server.openai.responses.store import ResponseStore
from octavo.server.openai.tokenize import detokenize, show_tokenizer, tokenize
from octavo.server.openapi import show_openapi
from octavo.server.origins import Origins
from octavo.server.sending import Outbox, Send
from octavo.server.services import Services
from octavo.server.tracing import open_tracer
from octavo.server.web import files

log = logging.getLogger(__name__)

Handler = Callable[[Services, Exchange], Awaitable[Reply | None]]

PAGE: dict[str, Handler] = {"/": files.show, files.PREFIX + "{name}": files.show}
"""GET routes of the page, unless it is turned off."""

ELSEWHERE: dict[str, str] = {
    "/api/chat": "/v1/chat/completions",
    **dict.fromkeys(("/api/generate", "/completion"), "/v1/completions"),
    **dict.fromkeys(("/api/embed", "/api/embeddings", "/embedding"), "/v1/embeddings"),
    **dict.fromkeys(("/api/tags", "/api/ps", "/api/show", "/props"), "/v1/models"),
    "/api/version": "/version",
    "/slots": "/load",
}
"""Paths of Ollama and llama.cpp's server -> where the like is answered here, in OpenAI's protocol."""

NOT_HERE: dict[str, str] = {
    "/v1/responses/compact": "conversations are not compacted here; shorten the input yourself",
    "/v1/messages/batches": "batches are OpenAI's: /v1/files and /v1/batches, with the url /v1/messages",
    "/v1/conversations": "conversations are not kept; use previous_response_id, or send all items in input",
}
"""Paths of OpenAI's and Anthropic's that their clients may try -> what to do instead."""

WORK: dict[str, Handler] = {
    "/v1/chat/completions": create_chat_completion,
    "/v1/completions": create_completion,
    "/v1/responses": responses.create_response,
    "/v1/responses/input_tokens": responses.count_input_tokens,
    "/v1/messages": create_message,
    "/v1/messages/count_tokens": count_tokens,
    "/tokenize": tokenize,
    "/detokenize": detokenize,
    "/v1/embeddings": pooling.create_embeddings,
    "/v2/embed": pooling.create_cohere_embeddings,
    **dict.fromkeys(("/rerank", "/v1/rerank", "/v2/rerank"), pooling.create_rerank),
    **dict.fromkeys(("/score", "/v1/score"), pooling.create_scores),
    "/classify": pooling.create_classes,
    "/pooling": pooling.create_pooling,
    "/invocations": invoke,
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
    "/load": health.load,
    "/tokenizer_info": show_tokenizer,
    "/openapi.json": show_openapi,
    "/docs": show_docs,
}
"""GET routes: answered at once, whatever the engine does."""

CONTROL: list[tuple[str, str, Handler]] = [
    ("POST", "/v1/files", batch.upload_file),
    ("GET", "/v1/files", batch.list_files),
    ("GET", "/v1/files/{id}", batch.show_file),
    ("DELETE", "/v1/files/{id}", batch.delete_file),
    ("GET", "/v1/files/{id}/content", batch.fetch_file),
    ("POST", "/v1/batches", batch.create_batch),
    ("GET", "/v1/batches", batch.list_batches),
    ("GET", "/v1/batches/{id}", batch.show_batch),
    ("POST", "/v1/batches/{id}/cancel", batch.cancel_batch),
    ("GET", "/v1/responses/{id}", responses.show_response),
    ("DELETE", "/v1/responses/{id}", responses.delete_response),
    ("POST", "/v1/responses/{id}/cancel", responses.cancel_response),
    ("GET", "/v1/responses/{id}/input_items", listing.list_input_items),
]
"""Method, path: what is stored, asked for and changed; answered at once."""


ADMIN: list[tuple[str, str, Handler]] = [
    ("POST", "/reset_prefix_cache", admin.reset_prefix_cache),
    ("POST", "/pause", admin.pause),
    ("POST", "/resume", admin.resume),
    ("GET", "/is_paused", admin.is_paused),
    ("POST", "/sleep", admin.sleep),
    ("POST", "/wake_up", admin.wake_up),
    ("GET", "/is_sleeping", admin.is_sleeping),
    ("POST", "/abort_requests", admin.abort_requests),
]
"""Method, path: there only with admin keys, and for them only."""


class App:
    """The server as an ASGI application. It neither starts nor closes `llm`.

    routes: every route.  traffic: what is in flight, for the drain.  model: the name that replies carry.
    """

    def __init__(self, llm: AsyncLLM, config: ServerConfig) -> None:
        check_chats(config, llm.config.model)
        names = ModelNames(llm.config.model.model, config.served_model_name)
        self.model = names.first
        self.traffic = Traffic(config.max_body_bytes)
        # twice what the engine takes: what is on its way there, and what needs no place in it, comes on top
        self.traffic.max_at_work = 2 * (llm.config.scheduler.max_num_seqs + queue_length(llm.config.scheduler))
        self.admin_keys = Keys([*config.admin_api_key, env.read("OCTAVO_ADMIN_API_KEY")])
        managed = ADMIN if self.admin_keys else []
        page = {} if config.disable_ui else PAGE
        self.keys = Keys([*config.api_key, env.read("OCTAVO_API_KEY")], also_open=files.files() if page else ())
        self._managed = [Route(path, handler, methods=[method]) for method, path, handler in managed]
        self.routes = [  # each is tried until one matches: what is asked most stands first
            *(Route(path, handler, methods=["POST"]) for path, handler in WORK.items()),
            *(Route(path, handler, methods=["GET"]) for path, handler in ASK.items()),
            *(Route(path, handler, methods=["GET"]) for path, handler in page.items()),
            *(Route(path, handler, methods=[method]) for method, path, handler in CONTROL),
            *self._managed,
        ]
        self.batches = Batches(
            self.ask,
            BatchStore(config.batch_dir),
            ready=lambda: self._services.ready,
            urls=WORK.keys(),
            at_once=max(1, llm.config.scheduler.max_num_seqs // 2),
            max_body_bytes=config.max_body_bytes,
        )
        self.tracer = open_tracer(config.otlp_traces_endpoint, model=names.first, version=__version__)
        self._outbox = Outbox()
        self._origins = Origins(config.host, config.allowed_origins)
        metrics = Metrics(
            names.first,
            stats=lambda: llm.stats,
            info=lambda: llm.info,
            asleep=lambda: llm.state == "sleeping",
        )
        llm.on_engine_end(metrics.settle)
        self.canary = Canary(
            llm, idle=lambda: self._services.idle, count=metrics.checked, interval=config.canary_interval
        )
        self._services = Services(
            llm=llm,
            config=config,
            metrics=metrics,
            canary=self.canary,
            names=names,
            traffic=self.traffic,
            started_at=int(time.time()),
            responses=ResponseStore(),
            batches=self.batches,
            routes=self.routes,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI's entry."""
        if scope["type"] != "http":
            return
        scope = self._tidied(scope)
        exchange = Exchange(scope, receive, send, request_id=_request_id(scope), outbox=self._outbox)
        await self._handle(exchange, self._admit(scope, exchange))

    def _tidied(self, scope: Scope) -> Scope:
        """The call with single slashes in its path and none at the end, where no route has the path as it is.

        Before anything looks at the path, so that all see the same. Names of models may hold any slashes.
        """
        path: str = scope["path"]
        if "//" not in path and not path.endswith("/"):
            return scope
        found = (route.matches(scope) for route in self.routes)
        if any(match is not Match.NONE and all(told["path_params"].values()) for match, told in found):
            return scope
        return {**scope, "path": "/" + "/".join(part for part in path.split("/") if part)}

    async def ask(self, path: str, body: bytes, *, owner: bytes = b"") -> Answer:
        """Answer a POST of this process to itself as one over HTTP. owner: a key's digest, as Exchange's."""
        call = InsideCall(path, body)
        exchange = Exchange(call.scope, call.receive, call.send, request_id=secrets.token_hex(16), outbox=self._outbox)
        exchange.owner = owner
        await self._handle(exchange, self._answer(call.scope, exchange))
        retry_after = float(call.headers.get(b"retry-after", b"1"))
        return Answer(call.status, call.answer, exchange.request_id, retry_after)

    async def _handle(self, exchange: Exchange, answering: Coroutine[Any, Any, None]) -> None:
        asked = exchange.header(VERSION) is not None and exchange.path.startswith("/v1/models")
        if asked or exchange.path.startswith("/v1/messages"):
            exchange.errors = AnthropicErrors(exchange.request_id)
            exchange.reply_headers.append((b"request-id", exchange.request_id.encode("latin-1")))
        context = REQUEST_ID.set(exchange.request_id)
        try:
            await self._guarded(exchange, answering)
        finally:
            exchange.release()
            self._count(exchange)
            REQUEST_ID.reset(context)

    async def _guarded(self, exchange: Exchange, answering: Coroutine[Any, Any, None]) -> None:
        """Answer; whatever goes wrong becomes the client's error, or nothing where the client is gone."""
        try:
            await answering
        except asyncio.CancelledError:
            if exchange.interruption is None:
                if exchange.gone:
                    return
                raise
            await self._fail(exchange, exchange.interruption)
        except ClientGoneError:
            # it may be there still: to the server, chunks that are not well formed look as if it were gone
            what = HttpError(400, "the body ended early, or its chunks are not well formed", kind="BadRequestError")
            await self._fail(exchange, what)
        except Exception as error:
            await self._fail(exchange, error)

    async def _fail(self, exchange: Exchange, error: Exception) -> None:
        if isinstance(error, OverloadedError) and self._services.ready:
            self.traffic.retry_after = error.retry_after
        if isinstance(error, OverloadedError | EngineDeadError) and not exchange.streaming:
            self._services.metrics.rejected(self._rejection())
        told = describe(error, request_id=exchange.request_id)
        if exchange.streaming:
            await exchange.send_events(exchange.errors.events(told), last=True)
        elif not exchange.status:
            status, body = exchange.errors.whole(told)
            await exchange.reply(Reply(body, status, headers=told.headers))

    def _rejection(self) -> Rejection:
        if self.traffic.draining:
            return "draining"
        return "overloaded" if self._services.ready else "unavailable"

    async def _admit(self, scope: Scope, exchange: Exchange) -> None:
        origin = exchange.header(b"origin")
        self._origins.check(exchange.header_values(b"host"), origin)
        exchange.reply_headers += self._origins.headers(origin)
        asked = exchange.header(b"access-control-request-method")
        preflight = self._origins.preflight(exchange.method, origin, asked)
        if preflight is not None:
            await exchange.reply(Reply(b"", 204, headers=preflight))
            return
        authorizations, api_keys = exchange.header_values(b"authorization"), exchange.header_values(b"x-api-key")
        # by the router's own reading of the path
        managed = any(route.matches(scope)[0] is not Match.NONE for route in self._managed)
        keys = self.admin_keys if managed else self.keys
        exchange.owner = keys.check(exchange.path, authorizations, api_keys)
        await self._answer(scope, exchange)

    async def _answer(self, scope: Scope, exchange: Exchange) -> None:
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
        if allowed and exchange.path not in NOT_HERE:
            exchange.reply_headers.append((b"allow", ", ".join(sorted(allowed)).encode()))
            raise HttpError(405, f"send {' or '.join(sorted(allowed))} to this path", kind="MethodNotAllowedError")
        likely = ELSEWHERE.get(exchange.path, "/v1" + exchange.path)
        known = any(route.path == likely for route in self.routes)
        hint = f"did you mean {likely}?" if known else "the API is under /v1, GET /openapi.json tells what there is"
        hint = NOT_HERE.get(exchange.path, hint)
        raise HttpError(404, f"there is no such path; {hint}", kind="NotFoundError")

    def _count(self, exchange: Exchange) -> None:
        seconds = time.monotonic() - exchange.started_at
        self._services.metrics.answered(exchange.method, exchange.route, exchange.status, seconds)
        level = logging.INFO if exchange.route in WORK else logging.DEBUG
        if self.tracer is not None and exchange.route in WORK:
            self.tracer.record(exchange, seconds)
        log.log(
            level,
            "%s %s: %s in %.3f s, request %s",
            exchange.method,
            exchange.route,
            exchange.status or "closed by the client",
            seconds,
            exchange.request_id,
            extra={"fields": partial(_fields, exchange, seconds)},
        )


def _fields(exchange: Exchange, seconds: float) -> dict[str, Any]:
    """Of a JSON line."""
    fields: dict[str, Any] = {
        "method": exchange.method if exchange.method in METHODS else "other",
        "route": exchange.route,
        "status": exchange.status or None,
        "seconds": round(seconds, 6),
    }
    if exchange.timing is not None and (metrics := exchange.timing.metrics()) is not None:
        fields["metrics"] = metrics
    return fields


_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")


def _request_id(scope: Scope) -> str:
    """The client's X-Request-Id where it is one that can be logged and repeated as it is; else a new one."""
    given = next((value for name, value in scope["headers"] if name.lower() == b"x-request-id"), b"")
    return given.decode() if _REQUEST_ID.fullmatch(given) else secrets.token_hex(16)

"""Routes for whoever runs the server, behind a key of their own: caches, pauses, sleep, requests ended from outside."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from octavo.base.errors import EndedByOperatorError, OverloadedError
from octavo.server.exchange import Exchange, Reply, json_reply
from octavo.server.openai.decode import decode, decode_query
from octavo.server.services import LOADING_RETRY_S, Services
from octavo.server.strict import Strict


class Done(msgspec.Struct, frozen=True):
    """It is done."""

    success: bool = True


class Paused(msgspec.Struct, frozen=True):
    """GET /is_paused."""

    is_paused: bool


class Sleeping(msgspec.Struct, frozen=True):
    """GET /is_sleeping."""

    is_sleeping: bool


class AbortRequest(Strict, frozen=True, kw_only=True):
    """POST /abort_requests: X-Request-Ids, as answers carry them."""

    request_ids: Annotated[list[str], Meta(min_length=1, max_length=10_000)]


class Aborted(msgspec.Struct, frozen=True):
    """Those that were under way."""

    aborted: list[str]


class _PauseQuery(Strict, frozen=True, kw_only=True):
    mode: Literal["abort", "wait"] = "abort"


class _SleepQuery(Strict, frozen=True, kw_only=True):
    level: Annotated[int, Meta(ge=1, le=2)] = 1


class _NoQuery(Strict, frozen=True, kw_only=True):
    pass


async def reset_prefix_cache(services: Services, exchange: Exchange) -> Reply:
    """Forget every cached prefix that no request uses."""
    decode_query(exchange.query(), _NoQuery)
    services.check_ready()
    await services.llm.call("reset_prefix_cache")
    return json_reply(Done())


async def pause(services: Services, exchange: Exchange) -> Reply:
    """Let no requests in. mode=abort ends those under way with a 503, mode=wait answers when they have ended, or when
    requests are let in again."""
    query = decode_query(exchange.query(), _PauseQuery)
    services.traffic.pause()
    if query.mode == "abort":
        services.traffic.interrupt_all(OverloadedError("the server was paused", retry_after=LOADING_RETRY_S))
    exchange.watch()
    await services.traffic.wait_paused()
    return json_reply(Done())


async def resume(services: Services, exchange: Exchange) -> Reply:
    """Let requests in again."""
    decode_query(exchange.query(), _NoQuery)
    services.traffic.resume()
    return json_reply(Done())


async def is_paused(services: Services, exchange: Exchange) -> Reply:
    """Whether requests are kept out."""
    return json_reply(Paused(services.traffic.paused))


async def sleep(services: Services, exchange: Exchange) -> Reply:
    """End the engine process: weights and cache leave the device. Both of vLLM's levels free and reload all."""
    decode_query(exchange.query(), _SleepQuery)
    if services.llm.state != "sleeping":
        services.check_ready()
        await services.llm.sleep()
    return json_reply(Done())


async def wake_up(services: Services, exchange: Exchange) -> Reply:
    """Load the model again; the answer comes when it is ready."""
    decode_query(exchange.query(), _NoQuery)
    await services.llm.wake_up()
    return json_reply(Done())


async def is_sleeping(services: Services, exchange: Exchange) -> Reply:
    """Whether the engine sleeps."""
    return json_reply(Sleeping(services.llm.state == "sleeping"))


async def abort_requests(services: Services, exchange: Exchange) -> Reply:
    """End requests by their X-Request-Id, request_id or answer's id, with an error for whoever waits."""
    request = decode(await services.traffic.read_body(exchange), AbortRequest)
    error = EndedByOperatorError("the request was ended by the server's operator")
    return json_reply(Aborted(services.traffic.interrupt(frozenset(request.request_ids), error)))

"""GET /health, /livez, /ping, /readyz, /version, /metrics and /load: what operators and their probes ask."""

from __future__ import annotations

from typing import Any

import msgspec

from octavo import __version__
from octavo.base.metrics.registry import CONTENT_TYPE
from octavo.server.exchange import Exchange, Reply, json_reply
from octavo.server.services import LOADING_RETRY_S, Services


async def live(services: Services, exchange: Exchange) -> Reply:
    """200 unless the engine is dead for good or hangs: silent too long, as it speaks every second, idle or not."""
    state, age = services.llm.state, services.llm.heartbeat_age()
    silent = state in ("ready", "draining") and age > services.config.watchdog_timeout
    alive = state != "dead" and not (silent or services.llm.hung)
    return _json({"status": "ok" if alive else "failed", "engine": state, "heartbeat_age": round(age, 3)}, alive)


async def ready(services: Services, exchange: Exchange) -> Reply:
    """200 while requests are let in; else 503, with how far loading is, or what the canary found."""
    paused = services.traffic.paused and services.llm.state == "ready"
    state = "draining" if services.traffic.draining else "paused" if paused else services.llm.state
    body: dict[str, Any] = {"status": state}
    fault = services.canary.fault
    if state == "ready" and fault is not None:
        return _json({"status": "corrupted", "reason": fault}, False)
    if state == "loading":
        what, done, total = services.llm.loading
        body["loading"] = {"what": what, "done": done, "total": total}
    return _json(body, state == "ready")


async def show_version(services: Services, exchange: Exchange) -> Reply:
    """Octavo's version."""
    return _json({"version": __version__}, True)


async def metrics(services: Services, exchange: Exchange) -> Reply:
    """Prometheus text."""
    return Reply(services.metrics.render(), content_type=CONTENT_TYPE)


class Load(msgspec.Struct, frozen=True):
    """GET /load. server_load: requests that are being answered, of any kind; the others are the engine's sequences."""

    server_load: int
    num_requests_running: int
    num_requests_waiting: int
    kv_cache_usage_perc: float


async def load(services: Services, exchange: Exchange) -> Reply:
    """How much is going on."""
    stats = services.llm.stats
    told = Load(len(services.traffic), stats.num_running, stats.num_waiting, stats.kv_usage)
    return json_reply(told)


def _json(body: dict[str, Any], good: bool) -> Reply:
    retry = () if good else ((b"retry-after", str(LOADING_RETRY_S).encode()),)
    return Reply(msgspec.json.encode(body), 200 if good else 503, headers=retry)

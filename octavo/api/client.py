"""The engine in this process, as its users see it; socket_client.py is the same over a socket."""

from __future__ import annotations

from typing import Any

from octavo.base import heap
from octavo.base.types.messages import EngineStats
from octavo.base.types.output import Output
from octavo.base.types.request import Request
from octavo.engine.engine import Engine


class InProcessClient:
    """Requests go straight in; Outputs come when `step` is called."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.info = engine.info()

    def add(self, request: Request) -> None:
        """Queue a request; raises InputError, or OverloadedError where the queue is full."""
        self._engine.add(request)

    def abort(self, names: list[str]) -> None:
        """Forget requests ("id") or single sequences ("id:index")."""
        self._engine.abort(names)

    def has_work(self) -> bool:
        """True while `step` can bring something."""
        return self._engine.has_work()

    def step(self) -> list[Output]:
        """One step's Outputs."""
        return self._engine.step()

    def call(self, name: str, **arguments: Any) -> Any:
        """A rare thing by name."""
        return self._engine.call(name, arguments)

    def stats(self) -> EngineStats:
        """EngineStats now."""
        return self._engine.stats()

    def close(self) -> None:
        """Free the device, and give memory back to the system; idempotent."""
        self._engine.close()
        heap.trim()

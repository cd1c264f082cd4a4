"""Whom the Supervisor tells what of frames that were read together, and when."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from octavo.api.streams import Stream
from octavo.api.supervisor import Supervisor
from octavo.base.config.config import EngineConfig, ModelConfig
from octavo.base.types.messages import EngineStats, Outputs
from octavo.base.types.output import Output


class Progress:
    """Takes what comes."""

    finished = False

    def __init__(self, seen: list[str], name: str) -> None:
        self._seen, self._name = seen, name

    def push(self, output: Output) -> list[str]:
        self._seen.append(f"push {self._name}")
        return []


def test_first_outputs_are_told_at_once_and_others_after_what_those_send() -> None:
    seen: list[str] = []

    async def read(supervisor: Supervisor, *frames: str) -> list[str]:
        seen.clear()
        for names in frames:
            supervisor._on_message(Outputs([Output(request_id=name, token_ids=[1]) for name in names], EngineStats()))
        supervisor._on_read()
        for _ in range(3):
            await asyncio.sleep(0)
        return seen

    async def test() -> None:
        supervisor = Supervisor(EngineConfig(model=ModelConfig(model="none")), None, watchdog_timeout=1)
        for name in "abc":
            supervisor.streams[name] = stream = Stream(cast(Any, Progress(seen, name)))

            def tell(name: str = name) -> None:
                seen.append(f"tell {name}")
                asyncio.get_running_loop().call_soon(seen.append, f"sent {name}")  # as server/sending.py does

            stream.tell = tell
        sent = ["sent a", "sent c"]
        assert await read(supervisor, "a") == ["push a", "tell a", "sent a"]
        first = ["push b", "tell b", "push c", "tell c", "sent b", "sent c"]
        assert await read(supervisor, "bca", "c") == [*first, "push a", "push c", "tell a", "tell c", *sent]
        assert await read(supervisor, "ca", "ac") == [
            "push c",
            "push a",
            "push a",
            "push c",
            "tell c",
            "tell a",
            *sent[::-1],
        ]

    asyncio.run(test())

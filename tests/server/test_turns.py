"""Turns: one an iteration of the loop, in order; who gives up is passed over."""

from __future__ import annotations

import asyncio

from octavo.server.turns import Turns


def test_what_the_loop_has_to_do_goes_between_two() -> None:
    async def test() -> None:
        turns, seen, loop = Turns(), [], asyncio.get_running_loop()

        async def take(name: str) -> None:
            await turns.take()
            seen.append(name)

        def tick() -> None:
            seen.append("-")
            if len(seen) < 16:
                loop.call_soon(tick)

        tasks = [asyncio.create_task(take(name)) for name in "abcd"]
        loop.call_soon(tick)
        tasks[2].cancel()
        await asyncio.wait(tasks)
        told = "".join(seen)
        assert told.replace("-", "") == "abd"
        assert "ab" not in told
        assert "bd" not in told
        for _ in range(20):
            await asyncio.sleep(0)
        await take("e")
        assert seen[-1] == "e"

    asyncio.run(test())

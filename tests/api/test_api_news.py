"""News: what asyncio.Event gives to one that waits."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from octavo.api.socket_client import News


def test_news_wake_who_waits_and_are_kept_for_who_comes_later() -> None:
    async def use() -> None:
        news = News()
        news.set()
        await news.wait()  # at once
        await news.wait()  # nobody took it
        news.clear()
        waiting = asyncio.create_task(news.wait())
        await asyncio.sleep(0)
        assert not waiting.done()
        news.set()
        news.set()
        await waiting

    asyncio.run(use())


def test_news_outlive_one_that_stopped_waiting() -> None:
    async def use() -> None:
        news = News()
        waiting = asyncio.create_task(news.wait())
        await asyncio.sleep(0)
        waiting.cancel()
        news.set()
        with suppress(asyncio.CancelledError):
            await waiting
        news.clear()
        again = asyncio.create_task(news.wait())
        await asyncio.sleep(0)
        news.set()
        await again

    asyncio.run(use())

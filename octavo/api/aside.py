"""Functions that block, run where they hold up neither the event loop nor the end of the process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from octavo.base.errors import EngineDeadError

Value = TypeVar("Value")


async def aside(function: Callable[..., Value], *arguments: Any, **options: Any) -> Value:
    """In a thread that the interpreter does not wait for: a download must not hold up the end of the process."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Value] = loop.create_future()

    def settle(set_it: Callable[[Any], None], value: Any) -> None:
        if not future.done():
            set_it(value)

    def work() -> None:
        try:
            outcome = partial(settle, future.set_result, function(*arguments, **options))
        except BaseException as error:
            outcome = partial(settle, future.set_exception, error)
        with suppress(RuntimeError):  # the loop was closed: nobody waits
            loop.call_soon_threadsafe(outcome)

    threading.Thread(target=work, name="octavo-load", daemon=True).start()
    return await future


async def in_pool(pool: Executor, function: Callable[..., Value], *arguments: Any, **options: Any) -> Value:
    """In one of a pool's threads. EngineDeadError where the pool is shut down before it comes to that."""
    try:
        work = asyncio.get_running_loop().run_in_executor(pool, partial(function, *arguments, **options))
    except RuntimeError:
        raise EngineDeadError("the engine has ended") from None
    try:
        return await work
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise EngineDeadError("the engine has ended") from None
    finally:
        del work  # it holds its error, and the error this frame: a cycle would be left to the collector


async def both(first: Any, second: Any) -> tuple[Any, Any]:
    """Await two coroutines at once; where one fails, the other is cancelled and waited for."""
    tasks = [asyncio.ensure_future(first), asyncio.ensure_future(second)]
    try:
        one, two = await asyncio.gather(*tasks)
        return one, two
    finally:
        await end_all(tasks)


async def end_all(tasks: list[asyncio.Task[Any]]) -> None:
    """Cancel tasks and wait for them. None is kept: their errors hold the frames that hold them (`in_pool`)."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    tasks.clear()

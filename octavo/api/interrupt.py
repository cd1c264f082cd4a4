"""Ctrl-C, and SIGTERM where something catches it, held back while a step runs: the engine is never left half way
through one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def interrupt_after() -> Iterator[None]:
    """The signals' handlers are called at the end of the block instead of in it (the main thread, where they run)."""
    main = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM) if main}
    held = {int(number): handler for number, handler in handlers.items() if callable(handler)}
    came: dict[int, FrameType | None] = {}

    def note(number: int, frame: FrameType | None) -> None:
        came[number] = frame

    for number in held:
        signal.signal(number, note)
    try:
        yield
    finally:
        for number, handler in held.items():
            signal.signal(number, handler)
    for number, frame in came.items():
        held[number](number, frame)

"""A second Ctrl-C, which ends the command at once, whatever native code the first one waits for; SIGTERM as a first."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from octavo.cli import INTERRUPTED, Terminated

PATIENCE = 1.0


@contextmanager
def second_interrupt_exits() -> Iterator[None]:
    """The first Ctrl-C in the block is a KeyboardInterrupt, as ever; one more before the block's end is exit code 130.

    Python runs signal handlers between the main thread's bytecodes alone, so not while a step is computed: what C's
    handler writes to the wake-up descriptor is read by a thread.
    """
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):
        yield
        return
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    watcher = threading.Thread(target=_watch, args=(reader,), name="octavo-interrupt", daemon=True)
    watcher.start()
    before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        writer.close()
        watcher.join()
        reader.close()


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """SIGTERM in the block raises Terminated there, so that what has been done can be kept."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return

    def end(*_: object) -> None:
        raise Terminated

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _watch(reader: socket.socket) -> None:
    """Until the other end is closed. A byte is a signal's number."""
    came = 0
    while True:
        try:
            numbers = reader.recv(64)
        except TimeoutError:
            print("\n(stopping as soon as it can; Ctrl-C again leaves at once)", file=sys.stderr, flush=True)
            reader.settimeout(None)
            continue
        if not numbers:
            return
        came += numbers.count(signal.SIGINT)
        if came == 1:
            reader.settimeout(PATIENCE)
        elif came:
            with suppress(OSError):
                os.write(2, b"\n")
            os._exit(INTERRUPTED)

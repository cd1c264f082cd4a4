"""Log records in, lines on stderr out, by a thread of its own: who logs never waits for whoever reads stderr.

A pipe that nobody reads takes 64 kB, and the next write blocks: on the event loop or in the engine's step it would
stop everything.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections import deque

MAX_BYTES = 1 << 20  # that wait to be written; lines that come then are dropped, and counted
GATHER_S = 0.05  # between two writes: to wake the thread for each line would hold up who logs
FLUSH_S = 1.0  # so long the end of the process waits for what is not written yet


class BackgroundHandler(logging.Handler):
    """Formats where it is called (a line knows its request), writes elsewhere. What was dropped is told later.

    It writes to what sys.stderr is by then; a stream that was closed takes nothing, and that is no error.
    """

    def __init__(self) -> None:
        super().__init__()
        self._lines: deque[bytes] = deque()
        self._num_bytes = 0  # in _lines, and of the line that is being written
        self._num_dropped = 0
        self._changed = threading.Condition()
        self._hurry = threading.Event()
        self._thread: threading.Thread | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """logging: queue a record, or count it where too much waits."""
        try:
            line = self.format(record).encode(errors="backslashreplace") + b"\n"
        except Exception:
            self.handleError(record)
            return
        with self._changed:
            if self._num_bytes + len(line) > MAX_BYTES:
                self._num_dropped += 1
                return
            first = not self._num_bytes
            self._put(line)
            if self._thread is None:
                self._thread = threading.Thread(target=self._write_all, name="octavo-log", daemon=True)
                self._thread.start()
            if first:
                self._changed.notify_all()

    def flush(self) -> None:
        """Wait until all is written, FLUSH_S seconds at most."""
        end = time.monotonic() + FLUSH_S
        self._hurry.set()
        with self._changed:
            while self._num_bytes and (left := end - time.monotonic()) > 0:
                self._changed.wait(left)
        self._hurry.clear()

    def _put(self, line: bytes) -> None:
        self._lines.append(line)
        self._num_bytes += len(line)

    def _write_all(self) -> None:
        while True:
            with self._changed:
                while not self._lines:
                    self._changed.wait()
                lines = b"".join(self._lines)
                self._lines.clear()
            _write(lines)
            with self._changed:
                self._num_bytes -= len(lines)
                if self._num_dropped:
                    self._put(self._notice())
                self._changed.notify_all()
            self._hurry.wait(GATHER_S)

    def _notice(self) -> bytes:
        text = f"{self._num_dropped} log lines were dropped here: nothing read stderr"
        self._num_dropped = 0
        told = {"name": __name__, "levelno": logging.WARNING, "levelname": "WARNING", "msg": text}
        return self.format(logging.makeLogRecord(told)).encode() + b"\n"


def _write(line: bytes) -> None:
    """Past the stream's buffer: its lock would be held while a full pipe blocks, and the process's end takes it."""
    try:
        stream = sys.stderr
        try:
            number = stream.fileno()
        except (AttributeError, OSError, ValueError):
            stream.write(line.decode())
            stream.flush()
            return
        while line:
            try:
                line = line[os.write(number, line) :]
            except BlockingIOError:  # full, where whoever shares it has made writes not wait
                time.sleep(0.01)
    except (AttributeError, OSError, ValueError):
        return  # there is no stderr, or no longer

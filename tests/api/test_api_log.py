"""Log lines where nobody reads them: who logs goes on, what is dropped is counted, what can be written comes."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import IO

import pytest

from octavo.api import log_handler
from octavo.api.log_handler import BackgroundHandler


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    made = logging.Logger("apart")
    handler = BackgroundHandler()
    made.addHandler(handler)
    yield made
    handler.close()


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands in for stderr here is for these tests' lines alone, not for what others' threads still log."""
    for other in (*logging.getLogger("octavo").handlers, *logging.getLogger().handlers):
        if isinstance(other, BackgroundHandler):
            other.flush()
            monkeypatch.setattr(other, "level", logging.CRITICAL + 1)


def stderr(monkeypatch: pytest.MonkeyPatch, stream: IO[str] | None) -> None:
    monkeypatch.setattr(sys, "stderr", stream)


def test_a_pipe_that_nobody_reads(logger: logging.Logger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_handler, "FLUSH_S", 0.05)
    out, into = os.pipe()
    with os.fdopen(into, "w") as stream, os.fdopen(out, "rb") as pipe:
        stderr(monkeypatch, stream)
        for number in range(3000):
            logger.warning("line %d %s", number, "x" * 1000)
        logger.handlers[0].flush()  # does not wait for ever
        got, kept, told = b"", 0, 0
        while kept + told < 3000:  # a notice comes whenever the pipe takes a line again
            got += os.read(pipe.fileno(), 1 << 16)
            lines = got.decode().splitlines()
            told = sum(int(line.split()[0]) for line in lines if "were dropped here" in line)
            kept = sum(line.startswith("line ") and line.endswith("x" * 1000) for line in lines)
        assert kept + told == 3000
        assert told > 1000
        monkeypatch.setattr(log_handler, "FLUSH_S", 10)
        logger.warning("on")
        logger.handlers[0].flush()
        assert os.read(pipe.fileno(), 1 << 16).decode().splitlines()[-1] == "on"
        stderr(monkeypatch, None)


def test_a_pipe_whose_writes_do_not_wait(logger: logging.Logger, monkeypatch: pytest.MonkeyPatch) -> None:
    out, into = os.pipe()
    os.set_blocking(into, False)
    with os.fdopen(into, "w") as stream, os.fdopen(out, "rb") as pipe:
        stderr(monkeypatch, stream)
        for number in range(300):
            logger.warning("line %d %s", number, "x" * 1000)
        got = b""
        while got.count(b"\n") < 300:
            got += os.read(pipe.fileno(), 1 << 16)
        assert [line.split()[1] for line in got.decode().splitlines()] == [str(number) for number in range(300)]
        stderr(monkeypatch, None)


def test_lines_that_come_together_are_written_together(
    logger: logging.Logger, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    written: list[bytes] = []
    write = log_handler._write
    monkeypatch.setattr(log_handler, "_write", lambda lines: (written.append(lines), write(lines)))
    monkeypatch.setattr(log_handler, "GATHER_S", 60)
    monkeypatch.setattr(log_handler, "FLUSH_S", 10)
    for number in range(100):
        logger.warning("line %d", number)
    logger.handlers[0].flush()  # waits for no more to gather
    assert capfd.readouterr().err == "".join(f"line {number}\n" for number in range(100))
    assert len(written) < 10


def test_a_stream_that_is_closed(
    logger: logging.Logger, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    out, into = os.pipe()
    os.close(out)
    with os.fdopen(into, "w") as unread:
        closed = io.StringIO()
        closed.close()
        for stream in (closed, unread, None):
            stderr(monkeypatch, stream)
            logger.warning("lost")
            logger.handlers[0].flush()
            monkeypatch.undo()
    assert capfd.readouterr().err == ""
    logger.warning("seen \ud800")
    logger.handlers[0].flush()
    assert capfd.readouterr().err == "seen \\ud800\n"


PROGRAM = """
import logging, sys
from octavo.api.log import set_up_logging
set_up_logging()
logging.getLogger("octavo.here").error("%s", "ours")
logging.getLogger("library").warning("%s", "theirs")
for _ in range(int(sys.argv[1])):
    logging.getLogger("library").warning("x" * 1000)
"""


def test_what_is_logged_last_is_written_and_a_full_pipe_holds_no_end_up() -> None:
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run([*command, "0"], stderr=subprocess.PIPE, check=True, timeout=60, text=True)
    assert [line.split(": ", 1)[1] for line in done.stderr.splitlines()] == ["ours", "theirs"]
    with subprocess.Popen([*command, "3000"], stderr=subprocess.PIPE) as full:
        assert full.wait(60) == 0


CONFIGURED = """
import logging, logging.config, os, time
from octavo.api import log, log_handler
log.set_up_logging()
logging.config.dictConfig({"version": 1, "disable_existing_loggers": False})  # as the HTTP server does
write = log_handler._write
log_handler._write = lambda line: (time.sleep(0.2), write(line))
logging.getLogger("octavo.here").error("last")
log.end_logging()
os._exit(0)
"""


def test_what_is_logged_last_is_written_where_a_library_has_configured_logging() -> None:
    done = subprocess.run([sys.executable, "-c", CONFIGURED], stderr=subprocess.PIPE, check=True, timeout=60, text=True)
    assert done.stderr.endswith("last\n")

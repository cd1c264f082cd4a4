"""The process's standard streams: there, whatever the shell closed; able to show any text; quiet once they fail."""

from __future__ import annotations

import io
import os
import select
import sys
from contextlib import suppress

from octavo.base.errors import ConfigError

PATIENCE = 2.0
PIPED = "piped stdin comes before it, and is all where it is left out or -"  # in helps


def prepare() -> None:
    """Put the null device where a stream is closed, and show characters that stdout's encoding lacks as escapes."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            opened = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: the stream's own
            file = open(opened, "w" if number else "r", encoding="utf-8", closefd=opened > 2)  # noqa: SIM115
            setattr(sys, name, file)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def give_up() -> None:
    """Drop what a stream could not write: the interpreter must not try once more when it ends."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def read_stdin() -> str:
    """All of stdin, which a person who types is told of, and one who waits for a pipe that stays open. ConfigError
    where it is no text."""
    if sys.stdin.isatty():
        print("(reading from the terminal: Ctrl-D on a line of its own ends it)", file=sys.stderr)
    elif _is_silent():
        print("(reading stdin, which is open and brings nothing yet; </dev/null is none)", file=sys.stderr)
    try:
        text = sys.stdin.read()
        text.encode()  # in some locales, bytes that are no text come as surrogates
    except UnicodeError as error:
        raise ConfigError(
            f"stdin is not text in {sys.stdin.encoding}: {error.reason if hasattr(error, 'reason') else error}; "
            "convert it to UTF-8",
            param="stdin",
        ) from None
    return text.removeprefix("\ufeff")


def _is_silent() -> bool:
    """Nothing has come, nor an end, for a while."""
    try:
        return not select.select([sys.stdin], [], [], PATIENCE)[0]
    except (OSError, ValueError):  # no descriptor, or none that can be waited for
        return False

"""The `octavo` command: arguments in, an exit code out. Subcommands are imported only when they are called."""

from __future__ import annotations

import errno
import sys
from contextlib import suppress
from importlib import import_module

from octavo.cli import streams

COMMANDS: dict[str, str] = {
    "serve": "Serve a model over HTTP (OpenAI's protocol)",
    "chat": "Talk to a model in the terminal, or ask it one question",
    "complete": "Continue a text, streaming",
    "generate": "Run prompts from arguments, a file or stdin",
    "run-batch": "Answer a file of requests (OpenAI's batch JSONL), resumable",
    "bench": "Measure throughput, latency, startup, or a running server",
    "plan": "What a model takes and whether it fits, before a weight is read",
    "doctor": "Why a start fails or is slow, and what to do about it",
    "collect-env": "Versions and hardware, for a bug report",
}

FAILED = 1
USER_ERROR = 2
INTERRUPTED = 130
TERMINATED = 143
FULL = (errno.ENOSPC, errno.EDQUOT)


class Terminated(KeyboardInterrupt):
    """SIGTERM, where a command catches it."""


def main(argv: list[str] | None = None) -> int:
    """Run a subcommand; its exit code. A user's mistake is one line on stderr and exit code 2, what the system does
    not grant (a full disk) one line and 1 (--debug: the trace)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments[1:]
    streams.prepare()
    try:
        return _dispatch(arguments, debug=debug)
    except KeyboardInterrupt as error:
        if debug:
            raise
        if notes := _notes(error):
            _tell(f"octavo {arguments[0]}: {notes}")
        return TERMINATED if isinstance(error, Terminated) else INTERRUPTED
    except BrokenPipeError:  # the reader of our output is gone
        streams.give_up()
        return FAILED
    except OSError as error:
        if debug:
            raise
        streams.give_up()
        notes = _notes(error)
        hint = "make room" + ("" if notes else ", then run this again")
        _tell(f"octavo {arguments[0]}: {error}", hint if error.errno in FULL else "", notes)
        return FAILED


def _dispatch(arguments: list[str], *, debug: bool) -> int:
    """The exit code; what was printed is written out by then, so that a failure of it is met here."""
    try:
        if arguments[:1] == ["help"] and len(arguments) > 1:
            arguments = [*arguments[1:], "--help"]
        if not arguments or arguments[0] in ("-h", "--help", "help"):
            print(_help())
            return 0 if arguments else USER_ERROR
        if arguments[0] in ("-V", "--version"):
            from octavo import __version__

            print(f"octavo {__version__}")
            return 0
        name, rest = arguments[0], [argument for argument in arguments[1:] if argument != "--debug"]
        return _run(name, rest, debug=debug) if name in COMMANDS else _unknown(name)
    finally:
        sys.stdout.flush()


def _run(name: str, arguments: list[str], *, debug: bool) -> int:
    from octavo.base.errors import OctavoError

    try:
        command = import_module(f"octavo.cli.{name.replace('-', '_')}")
        return int(command.main(arguments))
    except OctavoError as error:
        if debug:
            raise
        _tell(f"octavo {name}: {error.message}", _notes(error))
        return USER_ERROR


def _notes(error: BaseException) -> str:
    """What a command added to what ended it: how much was done."""
    return "; ".join(getattr(error, "__notes__", []))


def _tell(*parts: str) -> None:
    """Those that are not empty, as a line."""
    with suppress(OSError):
        print("; ".join(filter(None, parts)), file=sys.stderr)


def _help() -> str:
    lines = ["usage: octavo COMMAND ...", "", "Runs and serves large language models.", ""]
    lines += [f"  {name:<13}{text}" for name, text in COMMANDS.items()]
    return "\n".join([*lines, "", "octavo COMMAND --help lists a command's options, octavo --version the version."])


def _unknown(name: str) -> int:
    import difflib

    near = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.65)  # launch is no plan, create no chat
    if name == "run" or "/" in name or name.lower().endswith(".gguf"):  # Ollama's word, or a model
        near = ["chat" if name == "run" else f"chat {name}"]
    hint = f"; did you mean {near[0]}?" if near else f"; known are {', '.join(COMMANDS)}"
    print(f"octavo: unknown command {name!r}{hint}", file=sys.stderr)
    return USER_ERROR

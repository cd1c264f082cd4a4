"""Standard streams that are closed, full, gone or of another encoding: a line and an exit code, never a trace."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading

import pytest

import octavo
from octavo.cli import main, streams


def run(command: str, **options: str) -> tuple[int, str, str]:
    """A shell's exit code, stdout and stderr; `octavo` is the command, FULL a device that takes nothing."""
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(path for path in sys.path if path), **options)
    environment.pop("PYTHONUNBUFFERED", None)
    text = command.replace("octavo", f"{sys.executable} -m octavo").replace("FULL", "/dev/full")
    done = subprocess.run(["bash", "-c", text], env=environment, capture_output=True, timeout=120, check=False)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        ("octavo --help >FULL", 1, "octavo --help: [Errno 28] No space left on device"),
        ("octavo collect-env --help >FULL", 1, "No space left on device"),
        ("octavo serve --help >FULL", 1, "No space left on device"),  # more than a buffer takes
        ("octavo serv 2>FULL", 1, ""),
        ("octavo --help >&-", 0, ""),
        ("octavo serv >&- 2>&-", 2, ""),
        ("octavo complete m <&-", 2, "the text to continue is empty"),
        ("octavo --help | (exec <&-; sleep 2); exit ${PIPESTATUS[0]}", 1, ""),
    ],
)
def test_streams_that_fail(command: str, code: int, words: str) -> None:
    ended, out, err = run(command)
    assert (ended, out) == (code, "")
    assert words in err if words else not err
    assert len(err.splitlines()) == bool(words)


def test_characters_that_an_encoding_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    streams.prepare()
    out.write("é")
    out.flush()
    assert out.buffer.getvalue() == rb"\xe9"  # type: ignore[attr-defined]


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
def test_stdin_that_is_no_text(
    errors: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("complete", "chat", "generate"):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\xff"), encoding="utf-8", errors=errors))
        assert main([name, "m", "-"] if name != "generate" else [name, "m"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "stdin is not text in utf-8" in line


def test_a_byte_order_mark_is_no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xef\xbb\xbfhi"), encoding="utf-8"))
    assert streams.read_stdin() == "hi"


def test_a_pipe_that_stays_open_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(streams, "PATIENCE", 0.1)
    reader, writer = os.pipe()
    threading.Timer(1.0, os.close, [writer]).start()
    with open(reader) as pipe:
        monkeypatch.setattr(sys, "stdin", pipe)
        assert streams.read_stdin() == ""
    assert "</dev/null" in capsys.readouterr().err


def test_what_the_system_does_not_grant_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from octavo.cli import plan

    def full(arguments: list[str]) -> int:
        raise OSError(28, "No space left on device", "/some/file")

    monkeypatch.setattr(plan, "main", full)
    assert main(["plan", "m"]) == 1
    reason = "[Errno 28] No space left on device: '/some/file'; make room, then run this again"
    assert capsys.readouterr().err == f"octavo plan: {reason}\n"
    with pytest.raises(OSError, match="No space"):
        main(["plan", "m", "--debug"])


def test_the_package_is_a_command() -> None:
    assert run("octavo --version") == (0, f"octavo {octavo.__version__}\n", "")

"""Ctrl-C twice while native code runs, which Python's signal handlers wait for: the command ends at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from octavo.cli.interrupt import second_interrupt_exits

# PBKDF2 is native code without the GIL that no signal breaks off, as a step of the CPU backend is
COMMAND = """
import hashlib, sys
from octavo.cli import main
from octavo.engine.engine import Engine

def step(self):
    print("stepping", file=sys.stderr, flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)

Engine.step = step
sys.exit(main(sys.argv[1:]))
"""


def _interruptible() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # it may be ignored here


@pytest.mark.parametrize("arguments", [["complete"], ["chat"], ["generate"], ["bench", "latency"]])
def test_the_second_ends_the_command_at_once(arguments: list[str], llama: str) -> None:
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(path for path in sys.path if path))
    small = ["--device", "cpu", "--max-model-len", "200", "--kv-cache-memory-bytes", "1M"]
    asked = ["--model", llama] if arguments[0] == "bench" else [llama, "Hello"]
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, *arguments, *asked, *small],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        text=True,
        start_new_session=True,
        preexec_fn=_interruptible,
    )
    assert process.stderr is not None
    try:
        seen = ""
        for words in ("stepping", "Ctrl-C again leaves at once"):
            while words not in seen:
                line = process.stderr.readline()
                assert line, seen
                seen += line
            process.send_signal(signal.SIGINT)
        _, rest = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "Traceback" not in seen + rest
    with pytest.raises(ProcessLookupError):  # nothing is left of its group
        os.killpg(process.pid, 0)


def test_one_is_an_exception_and_nothing_stays() -> None:
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    before = threading.active_count()
    try:
        for _ in range(3):
            with pytest.raises(KeyboardInterrupt), second_interrupt_exits():
                signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert threading.active_count() == before
    assert signal.set_wakeup_fd(-1) == -1

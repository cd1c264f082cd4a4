"""`octavo generate` that is ended early: what was answered is written, in order, and how much that is, is told."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from octavo.base.types.output import CompletionOutput, RequestOutput
from octavo.cli import main
from octavo.cli.answers import Answers

SMALL = ["--device", "cpu", "--threads", "1", "--kv-cache-memory-bytes", "2M", "--temperature", "0", "--ignore-eos"]
ONE_BY_ONE = [*SMALL, "--max-num-seqs", "1", "--max-tokens", "8", "--jsonl"]
PROMPTS = [f"Story {number}" for number in range(6)]


def output(number: int, *, error: str | None = None) -> RequestOutput:
    completion = CompletionOutput(0, f"text {number}", [1], None, None, "stop", None)
    return RequestOutput(str(number), PROMPTS[number], [1], None, [] if error else [completion], True, error=error)


def rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("jsonl", [False, True])
def test_answers_are_written_in_order_and_at_once(jsonl: bool, tmp_path: Path) -> None:
    out = tmp_path / "out"
    answers = Answers(PROMPTS, str(out), jsonl=jsonl)
    for number, written in ((1, 0), (0, 2), (4, 2), (5, 2)):
        answers.add(output(number))
        assert (out.read_text().count("\n") if out.exists() else 0) == written
    told = f"4 of 6 prompts are answered, in {out}; to go on, give it the others (3-4) and another --output"
    assert answers.stop() == told
    answers.close()
    if not jsonl:
        assert out.read_text() == "text 0\ntext 1\ntext 4\ntext 5\n"
        return
    assert [row["prompt"] for row in rows(out)] == PROMPTS
    assert [row["error"] for row in rows(out)] == [None] * 2 + ["not answered: the run was ended"] * 2 + [None] * 2


def test_failed_prompts_are_not_answered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answers = Answers(PROMPTS, str(tmp_path / "out"), jsonl=True)
    for number in (0, 1, 2):
        answers.add(output(number, error="not a number" if number == 1 else None))
    assert answers.failed
    assert capsys.readouterr().err == "prompt 2 failed: not a number\n"
    assert "2 of 6 prompts" in (told := answers.stop())
    assert "(2, 4-6)" in told
    answers.close()


def interrupted(after: int) -> Callable[[Answers, RequestOutput], None]:
    add = Answers.add

    def add_and_interrupt(self: Answers, output: RequestOutput) -> None:
        add(self, output)
        if int(output.request_id) == after:
            signal.raise_signal(signal.SIGINT)

    return add_and_interrupt


@pytest.mark.parametrize("to_file", [True, False])
def test_ctrl_c_keeps_what_is_answered(
    to_file: bool, llama: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert main(["generate", llama, *PROMPTS, *ONE_BY_ONE, "-o", str(whole)]) == 0
    out.write_text("older\n" * 1000)
    monkeypatch.setattr(Answers, "add", interrupted(1))
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert main(["generate", llama, *PROMPTS, *ONE_BY_ONE, *(["-o", str(out)] if to_file else [])]) == 130
    finally:
        signal.signal(signal.SIGINT, handler)
    shown = capsys.readouterr()
    if to_file:
        where, again, text = f"in {out}", " and another --output", out.read_text()
    else:
        where, again, text = "on stdout", "", shown.out
    assert text.splitlines() == whole.read_text().splitlines()[:2]
    told = f"2 of 6 prompts are answered, {where}; to go on, give it the others (3-6){again}"
    assert shown.err.splitlines() == [f"octavo generate: {told}"]


def start(llama: str, *more: str, prepare: Callable[[], None]) -> subprocess.Popen[str]:
    """A process with prompts that take minutes."""
    endless = ["--hf-overrides", '{"max_position_embeddings": 100000}', "--kv-cache-memory-bytes", "64M"]
    asked = [*PROMPTS, *SMALL, *endless, "--max-num-seqs", "1", "--jsonl", *more]
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(path for path in sys.path if path))
    return subprocess.Popen(
        [sys.executable, "-m", "octavo.cli", "generate", llama, *asked],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=environment,
        text=True,
        preexec_fn=prepare,
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_signals_keep_what_is_answered(number: signal.Signals, llama: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    # a shell's background process ignores Ctrl-C
    process = start(
        llama, "--max-tokens", "3000", "-o", str(out), prepare=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)
    )
    end = time.monotonic() + 120
    try:
        while not out.exists() or b"\n" not in out.read_bytes():
            assert time.monotonic() < end
            assert process.poll() is None
            time.sleep(0.002)
        process.send_signal(number)
        _, told = process.communicate(timeout=60)
    finally:
        process.kill()
    found = rows(out)
    assert [row["prompt"] for row in found] == PROMPTS[: len(found)]
    assert 1 <= len(found) < len(PROMPTS)
    if number == signal.SIGTERM:
        assert process.returncode == 143
        assert f"octavo generate: {len(found)} of 6 prompts are answered, in {out}" in told
        assert len(told.splitlines()) == 1


def test_a_full_disk_ends_it_with_whole_lines(llama: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    room = 2000  # the system's limit of a file's bytes, as a disk has one
    process = start(
        llama,
        "--max-tokens",
        "60",
        "-o",
        str(out),
        prepare=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (room, room)),
    )
    _, told = process.communicate(timeout=120)
    assert process.returncode == 1
    found = rows(out)
    assert 1 <= len(found) < len(PROMPTS)
    assert out.read_text().endswith("\n")
    assert f"'{out}'; {len(found)} of 6 prompts are answered, in {out}; to go on" in told
    assert len(told.splitlines()) == 1

"""A disk that is full when results are written: one line that names the file; what was there before stays whole."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from octavo.cli import main
from octavo.cli.bench import plot
from octavo.cli.bench.figures import write_json

SMALL = ["--device", "cpu", "--threads", "1", "--kv-cache-memory-bytes", "2M"]
LATENCY = ["--batch-size", "1", "--input-len", "4", "--output-len", "2", "--num-iters", "1", "--num-iters-warmup", "0"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", "Hello", "--max-tokens", "2", "-o", "/dev/full"],
        ["run-batch", "-i", "IN", "-o", "/dev/full"],
        ["bench", "latency", *LATENCY, "--output-json", "/dev/full"],
    ],
)
def test_the_file_is_named(
    arguments: list[str], llama: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "in.jsonl"
    line = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": "Hello", "max_tokens": 2}}
    source.write_text(json.dumps(line) + "\n")
    asked = [str(source) if argument == "IN" else argument for argument in arguments]
    assert main([*asked, "--model", llama, *SMALL]) == 1
    (told,) = capsys.readouterr().err.splitlines()
    reason = "[Errno 28] No space left on device: '/dev/full'; make room, then run this again"
    assert told == f"octavo {arguments[0]}: {reason}"


def test_a_batch_goes_on_where_the_disk_was_full(llama: str, tmp_path: Path) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    body = {"prompt": "Hello", "max_tokens": 2}
    lines = [{"custom_id": f"{n}", "method": "POST", "url": "/v1/completions", "body": body} for n in range(8)]
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(path for path in sys.path if path))
    files = ["-i", str(source), "-o", str(out)]
    counts = []
    for room in (1500, 2800, 1 << 20):  # the system's limit of a file's bytes, as a disk has one
        ended = subprocess.run(
            [sys.executable, "-m", "octavo.cli", "run-batch", *files, "--model", llama, *SMALL, "--max-num-seqs", "1"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=environment,
            text=True,
            check=False,
            preexec_fn=lambda room=room: resource.setrlimit(resource.RLIMIT_FSIZE, (room, room)),
        )
        found = [json.loads(line)["custom_id"] for line in out.read_text().splitlines()]
        counts.append(len(found))
        if room < 1 << 20:
            assert ended.returncode == 1
            told = f"'{out}'; {len(found)} of 8 requests are answered, in {out}; run this again to go on"
            assert ended.stderr.splitlines()[-1].endswith(told)
    assert ended.returncode == 0
    assert 0 < counts[0] < counts[1] < 8
    assert sorted(found) == [line["custom_id"] for line in lines]


def test_results_replace_older_ones_when_they_are_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Figure:
        def savefig(self, file: Any, **options: Any) -> None:
            file.write(b"half")
            raise OSError(28, "No space left on device")

    def dump(result: Any, file: Any, **options: Any) -> None:
        file.write("half")
        raise OSError(28, "No space left on device")

    target = tmp_path / "r.png"
    target.write_text("whole")
    monkeypatch.setattr(json, "dump", dump)
    with pytest.raises(OSError, match=r"r\.png"):
        write_json(target, {"a": 1})
    with pytest.raises(OSError, match=r"r\.png"):
        plot._save(Figure(), str(target))
    assert [path.read_text() for path in tmp_path.iterdir()] == ["whole"]

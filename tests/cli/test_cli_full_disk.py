"""A disk that is full when results are written: one line that names the file; what was there before stays whole."""

from __future__ import annotations

import json
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

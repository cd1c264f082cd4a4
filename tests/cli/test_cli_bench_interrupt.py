"""Ctrl-C in a benchmark: figures, JSON and chart of what was measured until then, and exit code 130."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from test_cli_bench import SMALL, chart, check_chart

import octavo
from octavo.cli import main
from octavo.cli.bench import startup
from octavo.cli.bench.client import Client, Outcome
from octavo.cli.bench.startup import Start


@pytest.fixture(autouse=True)
def handler() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupted(call: Callable[..., Any], number: int) -> Callable[..., Any]:
    """The call of this number is one with Ctrl-C."""
    calls = []

    def count(*given: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == number:
            signal.raise_signal(signal.SIGINT)
        return call(*given, **options)

    return count


def run(tmp_path: Path, capsys: pytest.CaptureFixture[str], *arguments: str, told: str) -> Any:
    path = tmp_path / "r.json"
    assert main(["bench", *arguments, "--output-json", str(path), *chart(tmp_path / "c.png"), *SMALL]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == f"interrupted: the figures are of {told}"
    check_chart(tmp_path / "c.png")
    result = json.loads(path.read_text())
    assert result["interrupted"] is True
    return result


LATENCY = ["latency", "--input-len", "4", "--output-len", "2", "--num-iters-warmup", "1", "--num-iters", "5", "--model"]


def test_latency(
    llama: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(octavo.LLM, "generate", interrupted(octavo.LLM.generate, 4))
    result = run(tmp_path, capsys, *LATENCY, llama, told="2 of 5 iterations")
    assert len(result["latencies"]) == 2


@pytest.mark.parametrize("number", [1, 2])
def test_nothing_measured_is_no_result(
    number: int, llama: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(octavo.LLM, "generate", interrupted(octavo.LLM.generate, number))
    (tmp_path / "r.json").write_text("older")
    assert main(["bench", *LATENCY, llama, "--output-json", str(tmp_path / "r.json"), *SMALL]) == 130
    assert (tmp_path / "r.json").read_text() == "older"
    assert capsys.readouterr() == ("", "")


def test_throughput(
    llama: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    generate = octavo.LLM.generate

    def ended(*given: Any, on_output: Callable[..., None], **options: Any) -> Any:
        return generate(*given, on_output=interrupted(on_output, 3), **options)

    monkeypatch.setattr(octavo.LLM, "generate", ended)
    load = ["--num-prompts", "6", "--input-len", "8", "--output-len", "4", "--max-num-seqs", "1"]
    result = run(tmp_path, capsys, "throughput", llama, *load, told="3 of 6 requests")
    assert (result["num_requests"], result["total_output_tokens"]) == (3, 12)


def test_startup(
    llama: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(startup, "start_once", interrupted(lambda *_: Start(0.1, 0.2), 3))
    result = run(tmp_path, capsys, "startup", llama, "--num-iters-cold", "2", told="2 of 5 starts")
    assert result["cold_startup_times"] == [0.1, 0.1]
    assert "warm_startup_times" not in result


@pytest.mark.parametrize("warmups", [0, 9])
def test_serve(
    warmups: int,
    server: Any,
    llama: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sent: list[Outcome] = []
    send = Client.send

    async def noted(self: Client, *given: Any, **options: Any) -> Outcome:
        outcome = await send(self, *given, **options)
        sent.append(outcome)
        if len(sent) == 4:
            signal.raise_signal(signal.SIGINT)
        return outcome

    monkeypatch.setattr(Client, "send", noted)
    path = tmp_path / "r.json"
    load = ["--num-prompts", "8", "--input-len", "8", "--output-len", "12", "--max-concurrency", "2"]
    files = ["--save-result", "--result-filename", str(path), *chart(tmp_path / "c.png")]
    asked = ["--port", str(server.port), "--tokenizer", llama, "--num-warmups", str(warmups), *load, *files]
    assert main(["bench", "serve", *asked]) == 130
    if warmups:
        assert not path.exists()
        return
    result = json.loads(path.read_text())
    assert result["interrupted"] is True
    assert 3 <= result["completed"] < 8
    assert result["failed"] == 0
    assert f"interrupted: the figures are of {result['completed']} of 8 requests" in capsys.readouterr().err
    check_chart(tmp_path / "c.png")

"""`octavo run-batch` on a small model: every line answered, a run that was killed gone on with, mistakes told."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from io import FileIO
from pathlib import Path
from typing import Any

import pytest

from octavo.api.async_llm import AsyncLLM
from octavo.base.files import write_whole
from octavo.cli import main, run_batch
from octavo.server.batch import run

SMALL = ["--device", "cpu", "--threads", "1", "--kv-cache-memory-bytes", "2M", "--served-model-name", "gpt"]
ASK = {"model": "gpt", "prompt": "The quick brown", "max_tokens": 8, "temperature": 0, "ignore_eos": True}


def line(name: str, body: dict[str, Any] = ASK, url: str = "/v1/completions") -> dict[str, Any]:
    return {"custom_id": name, "method": "POST", "url": url, "body": body}


def write(path: Path, lines: list[Any]) -> str:
    path.write_text("".join((item if isinstance(item, str) else json.dumps(item)) + "\n" for item in lines))
    return str(path)


def read(path: Path) -> list[Any]:
    return [json.loads(text) for text in path.read_text().splitlines()]


def test_every_line_is_answered(llama: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chat = {"model": "gpt", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}
    source = write(
        tmp_path / "in",
        [
            line("text"),
            "",
            line("chat", chat, "/v1/chat/completions"),
            line("responses", {"model": "gpt", "input": "Hi", "max_output_tokens": 3}, "/v1/responses"),
            line("messages", chat, "/v1/messages"),
            line("wrong value", {**ASK, "max_tokens": -1}),
            line("wrong url", url="/v1/models"),
            line("stream", {**ASK, "stream": True}),
            line("background", {"input": "hi", "background": True}, "/v1/responses"),
        ],
    )
    out = tmp_path / "out"
    assert main(["run-batch", "-i", source, "-o", str(out), "--model", llama, *SMALL]) == 1
    assert "4 of 8 requests have errors" in capsys.readouterr().err
    found = {row["custom_id"]: row for row in read(out)}
    for name in ("text", "chat", "responses", "messages"):
        assert found[name]["error"] is None
        assert found[name]["response"]["status_code"] == 200
        assert found[name]["response"]["body"]["model"] == "gpt"
    assert len({row["id"] for row in found.values()}) == 8
    assert found["wrong value"]["response"]["body"]["error"]["param"] == "max_tokens"
    assert found["wrong value"]["error"]["code"] == "400"
    assert [found[name]["error"]["code"] for name in ("wrong url", "stream", "background")] == [
        "invalid_url",
        "invalid_request",
        "invalid_request",
    ]


def test_a_killed_run_goes_on(llama: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"request {number}" for number in range(24)]
    source, out = write(tmp_path / "in", [line(name, {**ASK, "max_tokens": 48}) for name in names]), tmp_path / "out"
    command = ["run-batch", "-i", source, "-o", str(out), "--model", llama, *SMALL, "--max-num-seqs", "1"]
    process = subprocess.Popen([sys.executable, "-m", "octavo.cli", *command], stderr=subprocess.DEVNULL)
    end = time.monotonic() + 120
    while not out.exists() or out.read_bytes().count(b"\n") < 2:
        assert time.monotonic() < end
        assert process.poll() is None
        time.sleep(0.002)
    process.kill()
    process.wait()
    done = out.read_bytes()
    kept = done[: done.rindex(b"\n") + 1]
    out.write_bytes(kept + b'{"id":"batch_req_torn","custom_id":"request 23","resp')
    assert main(command) == 0
    assert "of 24 requests are answered already" in capsys.readouterr().err
    assert out.read_bytes().startswith(kept)
    rows = read(out)
    assert sorted(row["custom_id"] for row in rows) == sorted(names)
    assert len({row["response"]["body"]["choices"][0]["text"] for row in rows}) == 1
    before = out.read_bytes()
    assert main(command) == 0
    assert out.read_bytes() == before


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (["{"], "line 1: the body is not valid JSON"),
        ([line("a"), {"custom_id": "b"}], "line 2: method is required"),
        ([line("a"), line("b"), line("a")], "line 3: the custom_id 'a' came before"),
        ([{**line("a"), "method": "GET"}], "line 1: method"),
        ([{**line("a"), "metod": "POST"}], "line 1: unknown field 'metod'; did you mean 'method'?"),
        ([line("a", {"prompt": "x" * 200_000})], "line 1: longer than"),
        ([], "holds no request"),
    ],
)
def test_mistakes_end_it_before_anything_is_loaded(
    lines: list[Any], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(tmp_path / "in", lines)
    command = ["run-batch", "-i", source, "-o", str(tmp_path / "out"), "--model", "/none", "--max-body-bytes", "2000"]
    assert main(command) == 2
    assert told in capsys.readouterr().err


def test_outputs_that_are_not_of_this_batch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = write(tmp_path / "in", [line("a")]), tmp_path / "out"
    command = ["run-batch", "-i", source, "-o", str(out), "--model", "/none"]
    other = '{"id":"batch_req_1","custom_id":"z","response":null,"error":null}\n'
    for content, told in (
        ("hello\n", "no output of a batch"),
        ("notes without a last newline", "no output of a batch"),
        (other.replace("z", "a") + "hello", "no output of a batch"),
        ('{"custom_id":"a"}\n', "no output of a batch"),
        (json.dumps(line("a")) + "\n", "no output of a batch"),
        (other, "results of another batch"),
        (other + '{"id":"batch_req_2","cust', "results of another batch"),
    ):
        out.write_text(content)
        assert main(command) == 2
        told_at_all = capsys.readouterr().err
        assert told in told_at_all
        assert str(out) in told_at_all
        assert out.read_text() == content
    assert main(["run-batch", "-i", str(tmp_path / "none"), "-o", str(out), "--model", "/none"]) == 2
    assert "none: No such file" in capsys.readouterr().err


@pytest.mark.parametrize("torn", ["{", '{"id":"bat', '{"id":"batch_req_1","custom_id":"a","resp'])
def test_a_torn_line_is_cut_off(torn: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = write(tmp_path / "in", [line("a"), line("b")]), tmp_path / "out"
    whole = '{"id":"batch_req_1","custom_id":"b","response":null,"error":null}\n'
    out.write_text(whole + torn)
    assert main(["run-batch", "-i", source, "-o", str(out), "--model", "/none"]) == 2
    assert "1 of 2 requests are answered already" in capsys.readouterr().err
    assert out.read_text() == whole


@pytest.mark.parametrize("link", [False, True])
def test_the_input_is_not_the_output(link: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "in", tmp_path / ("out" if link else "in")
    content = json.dumps(line("a")) + "\n" + json.dumps(line("b"))  # a last line without its newline
    source.write_text(content)
    if link:
        out.symlink_to(source)
    assert main(["run-batch", "-i", str(source), "-o", str(out), "--model", "/none"]) == 2
    assert f"{out} is the input file, too" in capsys.readouterr().err
    assert source.read_text() == content


@pytest.mark.parametrize(
    ("state", "code", "told"),
    [
        ("dead", 2, "the engine has ended and does not come back"),
        ("restarting", 1, "of 8 requests found the engine busy; run this again"),
    ],
)
def test_lines_that_the_engine_did_not_take_are_left_to_the_next_run(
    state: str, code: int, told: str, llama: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [f"request {number}" for number in range(8)]
    source, out = write(tmp_path / "in", [line(name) for name in names]), tmp_path / "out"
    command = ["run-batch", "-i", source, "-o", str(out), "--model", llama, *SMALL, "--max-num-seqs", "1"]

    def shown(llm: AsyncLLM) -> str:
        return state if out.read_bytes().count(b"\n") >= 2 else llm._supervisor.state

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "PATIENCE_S", 0.0)
        patch.setattr(AsyncLLM, "state", property(shown))
        assert main(command) == code
    assert told in capsys.readouterr().err
    rows = read(out)
    assert 2 <= len(rows) <= 4  # two more were under way
    assert all(row["error"] is None for row in rows)
    assert main(command) == 0
    assert sorted(row["custom_id"] for row in read(out)) == names


def test_ctrl_c_tells_how_many_are_answered(
    llama: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = write(tmp_path / "in", [line(str(number)) for number in range(4)]), tmp_path / "out"
    command = ["run-batch", "-i", source, "-o", str(out), "--model", llama, *SMALL, "--max-num-seqs", "1"]

    def interrupted(file: FileIO, data: bytes) -> None:
        if out.read_bytes().count(b"\n") == 2:
            raise KeyboardInterrupt
        write_whole(file, data)

    monkeypatch.setattr(run_batch, "write_whole", interrupted)
    assert main(command) == 130
    told = f"2 of 4 requests are answered, in {out}; run this again to go on"
    assert capsys.readouterr().err.splitlines()[-1] == f"octavo run-batch: {told}"
    monkeypatch.undo()
    assert main(command) == 0
    assert sorted(row["custom_id"] for row in read(out)) == ["0", "1", "2", "3"]


def test_a_pipe_is_no_input_and_no_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, pipe = write(tmp_path / "in", [line("a")]), tmp_path / "pipe"
    os.mkfifo(pipe)
    for given, out in ((str(pipe), str(tmp_path / "out")), (source, str(pipe))):
        assert main(["run-batch", "-i", given, "-o", out, "--model", "/none"]) == 2
        assert f"{pipe} is no regular file" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_input_that_is_cut_meanwhile_is_told(
    llama: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = Path(write(tmp_path / "in", [line("a"), line("b")])), tmp_path / "out"
    start = AsyncLLM.start

    async def cut(llm: AsyncLLM) -> None:
        write(source, [line("a")])
        await start(llm)

    monkeypatch.setattr(AsyncLLM, "start", cut)
    assert main(["run-batch", "-i", str(source), "-o", str(out), "--model", llama, *SMALL]) == 1
    assert "1 of 2 requests were there" in capsys.readouterr().err
    assert [row["custom_id"] for row in read(out)] == ["a"]


def test_one_output_has_one_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = write(tmp_path / "in", [line("a")]), tmp_path / "out"
    with out.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert main(["run-batch", "-i", source, "-o", str(out), "--model", "/none"]) == 2
    assert f"another run writes to {out}" in capsys.readouterr().err

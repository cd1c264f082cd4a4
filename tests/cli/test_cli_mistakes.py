"""What a person types wrong, or a shell leaves to the command: told before a model is loaded, or understood."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from weight_files import write_gguf

from octavo.cli import COMMANDS, chat, main, run_batch
from octavo.cli.output import as_path

SMALL = ["--device", "cpu", "--threads", "1", "--kv-cache-memory-bytes", "2M"]


@pytest.mark.parametrize("name", ["plan", "run-batch"])
def test_help_of_a_command_by_its_name(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["help", name])
    assert ended.value.code == 0
    assert f"usage: octavo {name}" in capsys.readouterr().out
    assert name in COMMANDS
    assert main(["help", "pla"]) == 2
    assert "did you mean plan?" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["chat", "/nowhere", "-"], ["complete", "/nowhere"], ["generate", "/nowhere"]])
def test_sampling_is_checked_before_anything_is_read(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("text"))
    monkeypatch.setattr(sys.stdin, "read", lambda: pytest.fail("it is read"), raising=False)
    assert main([*arguments, "--top-p", "3"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "top_p must be" in line


def test_a_model_that_cannot_chat_says_so_before_it_asks(
    checkpoint: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    for file in Path(checkpoint("llama")).iterdir():
        if file.name not in ("chat_template.jinja", "tokenizer_config.json"):
            (folder / file.name).symlink_to(file)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda prompt: pytest.fail("a question is asked for"))
    assert main(["chat", str(folder), *SMALL]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "no chat template" in line


def test_who_types_is_told_what_is_waited_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("complete", "generate"):
        monkeypatch.setattr(sys, "stdin", io.StringIO(""))
        monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
        assert main([name, "/nowhere"]) == 2
        hint, fault = capsys.readouterr().err.splitlines()
        assert "Ctrl-D" in hint
        assert fault.startswith(f"octavo {name}: ")


def test_a_text_without_quotes_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", "m", "what", "is", "love"]) == 2
    assert "too many arguments (a text of several words needs quotes): is love" in capsys.readouterr().err


def test_a_question_that_looks_like_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    conversation: Any = None
    assert chat._command(conversation, "/etc/hosts: what is it?")
    assert capsys.readouterr().err.startswith("there is no command /etc/hosts:; /exit leaves")
    assert chat._command(conversation, "/help")
    assert capsys.readouterr().err == chat.HELP + "\n"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("OCTAVO_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_a_tilde_is_the_home_in_every_path(llama: str, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "p.txt").write_text("one\n")
    (home / "t.jinja").write_text("{{ messages[0].content }}")
    (home / "c.yaml").write_text(f"port: 0\nbatch_dir: '~/batches'\nmodel: {llama}\n")
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
    (home / "in.jsonl").write_text(json.dumps(line) + "\n")
    short = [*SMALL, "--max-tokens", "2", "--chat-template=~/t.jinja"]
    assert main(["generate", llama, "--input=~/p.txt", "--output=~/o.txt", *short]) == 0
    assert main(["run-batch", "--input-file=~/in.jsonl", "--output-file=~/out.jsonl", "--model", llama, *SMALL]) == 0
    assert '"status_code":200' in (home / "out.jsonl").read_text()
    assert (home / "o.txt").exists()
    capsys.readouterr()
    main(["doctor", "--config=~/c.yaml", "--json"])
    (options,) = [found for found in json.loads(capsys.readouterr().out) if found["check"] == "options"]
    assert options["status"] == "ok"
    assert as_path("~nobody-of-this-name/x") == Path("~nobody-of-this-name/x")


def test_a_batch_into_a_device_reads_nothing_from_it(
    llama: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """/dev/full gives zeros without end, a terminal what will be typed."""
    lines = tmp_path / "in.jsonl"
    body = {"prompt": "hi", "max_tokens": 2}
    lines.write_text(json.dumps({"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": body}) + "\n")
    monkeypatch.setattr("octavo.server.batch.lines.read_done", lambda path: pytest.fail("it is read"))
    count, skipped = run_batch._go_on(Path(os.devnull), {"a"})
    assert (count.lines, count.done, skipped) == (1, 0, frozenset())
    assert main(["run-batch", "-i", str(lines), "-o", os.devnull, "--model", llama, *SMALL]) == 0


def test_a_batch_logs_warnings_alone(llama: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The engine process, too: it told of its device and its cache."""
    lines = tmp_path / "in.jsonl"
    body = {"prompt": "hi", "max_tokens": 2}
    lines.write_text(json.dumps({"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": body}) + "\n")
    assert main(["run-batch", "-i", str(lines), "-o", str(tmp_path / "out"), "--model", llama, *SMALL]) == 0
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(("name", "code"), [("plan", 2), ("doctor", 1)])
def test_a_gguf_file_that_broke_off_is_told(
    name: str, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, torn = tmp_path / "m.gguf", tmp_path / "torn.gguf"
    write_gguf(whole)
    torn.write_bytes(whole.read_bytes()[:-5000])
    assert main([name, str(torn), *SMALL]) == code
    shown = capsys.readouterr()
    assert "the file is damaged, download it again" in shown.out + shown.err
    main(["plan", str(whole), *SMALL, "--json"])
    assert json.loads(capsys.readouterr().out)["stored_bytes"] > 0

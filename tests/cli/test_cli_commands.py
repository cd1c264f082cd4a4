"""The `octavo` command end to end on a small model: what it prints, its exit codes, one clear line for a mistake."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import pytest

import octavo
from octavo.api import engine_process
from octavo.api.engine_process import EngineProcess
from octavo.base.types.ports import DeviceMemory
from octavo.cli import COMMANDS, main
from octavo.cli.output import replacing
from octavo.engine.cache import sizing

SMALL = ["--device", "cpu", "--threads", "1", "--kv-cache-memory-bytes", "2M", "--temperature", "0"]
PLAN = SMALL[:2]
PROMPT = b"> "


def test_help_version_and_unknown_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert main([]) == 2
    shown = capsys.readouterr().out
    assert all(name in shown for name in COMMANDS)
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"octavo {octavo.__version__}\n"
    assert main(["serv"]) == 2
    assert "did you mean serve?" in capsys.readouterr().err
    for given in ("launch", "create", "interactive"):
        assert main([given]) == 2
        assert "known are serve, " in capsys.readouterr().err
    for given, meant in (("run", "chat"), ("./m.gguf", "chat ./m.gguf"), ("batch", "run-batch")):
        assert main([given]) == 2
        assert f"did you mean {meant}?" in capsys.readouterr().err


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    assert f"octavo {name}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["chat"], "name a model"),
        (["plan", "/nowhere"], "/nowhere"),
        (["complete", "/nowhere", "text"], "/nowhere"),
        (["serve", "m", "--max-num-seq", "3"], "did you mean --max-num-seqs"),
        (["generate", "m", "p", "--input", "file"], "one of the two"),
        (["generate", "m", "--input", "/nowhere/prompts.txt"], "cannot be read"),
        (["complete", "m", ""], "empty"),
        (["chat", "m", " "], "the question is empty"),
        (["serve", "m", "--host", "a..b"], "host='a..b' is no address"),
        (["serve", "m", "--host", ""], "host='' is empty"),
        (["complete", "m", "text", "--seed", "9" * 20], "seed=" + "9" * 20 + ": must be int of 64 bits"),
        (["plan", "m", "--max-model-len", "infk"], "invalid whole number"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    (line,) = shown.err.strip().splitlines()
    assert line.startswith(f"octavo {arguments[0]}: ")
    assert words in line


def test_debug_shows_the_trace() -> None:
    with pytest.raises(octavo.base.errors.OctavoError):
        main(["plan", "/nowhere", "--debug"])


def test_generate_text_and_jsonl(llama: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["generate", llama, "The quick", "An octavo", "--max-tokens", "5", *SMALL, "--jsonl"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["prompt"] for row in rows] == ["The quick", "An octavo"]
    assert all(len(row["outputs"][0]["token_ids"]) <= 5 and row["error"] is None for row in rows)
    lines = tmp_path / "prompts.jsonl"
    messages = '{"messages": [{"role": "user", "content": "Hi"}]}'
    lines.write_text(f'{{"prompt": "The quick"}}\n"An octavo"\n{messages}\n{{"prompt_token_ids": [5]}}\n')
    out = tmp_path / "out.jsonl"
    arguments = ["--input", str(lines), "--output", str(out), "--max-tokens", "5", "--jsonl", "-n", "2", *SMALL]
    assert main(["generate", llama, *arguments]) == 0
    again = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["outputs"][0] for row in again[:2]] == [row["outputs"][0] for row in rows]
    assert [len(row["outputs"]) for row in again] == [2] * 4


def test_generate_reads_lines_from_stdin(
    llama: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for more in ([], ["-"]):
        monkeypatch.setattr(sys, "stdin", io.StringIO("one\n\ntwo\n"))
        assert main(["generate", llama, *more, "--max-tokens", "3", "--jsonl", *SMALL]) == 0
        assert [json.loads(line)["prompt"] for line in capsys.readouterr().out.splitlines()] == ["one", "two"]


def test_only_a_newline_ends_a_line(llama: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """JSON text may hold other characters that some call ends of lines; --jsonl itself writes them."""
    for name, text in (("p.jsonl", '{"prompt": "a\u2028b"}\r\n"c\x85d"\r\n'), ("p.txt", "a\u2028b\r\nc\x85d\r\n")):
        path = tmp_path / name
        path.write_bytes(text.encode())
        assert main(["generate", llama, "--input", str(path), "--max-tokens", "3", "--jsonl", *SMALL]) == 0
        rows = [json.loads(line) for line in capsys.readouterr().out.split("\n") if line]
        assert [row["prompt"] for row in rows] == ["a\u2028b", "c\x85d"]


@pytest.mark.parametrize(
    ("more", "words"),
    [(["a", "--top-p", "3"], "top_p"), (["--input", "OUT"], "is the input file, too"), (["a"], "")],
)
def test_generate_leaves_the_output_until_it_has_answers(
    more: list[str],
    words: str,
    llama: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out"
    out.write_text("precious\n")
    more = [str(out) if one == "OUT" else one for one in more]
    if words:
        assert main(["generate", "/none", *more, "--output", str(out)]) == 2
        assert words in capsys.readouterr().err
    else:

        def interrupted(*given: Any, **options: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(octavo.LLM, "generate", interrupted)
        assert main(["generate", llama, *more, "--output", str(out), *SMALL]) == 130
    assert out.read_text() == "precious\n"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_output_replaces_a_file_whole(tmp_path: Path) -> None:
    out, link = tmp_path / "out", tmp_path / "link"
    out.write_text("old")
    out.chmod(0o640)
    link.symlink_to(out)
    with pytest.raises(UnicodeEncodeError), replacing(str(link)) as file:
        file.write("half \ud800")
    assert out.read_text() == "old"
    with replacing(str(link)) as file:
        file.write("new")
        assert out.read_text() == "old"
    assert (out.read_text(), out.stat().st_mode & 0o777, link.is_symlink()) == ("new", 0o640, True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "out"]
    with replacing("/dev/null") as file:
        file.write("gone")
    assert Path("/dev/null").is_char_device()


@pytest.mark.parametrize("line", ["{", "{}", "[1]", "3", '{"messages": [], "max_tokens": 5}'])
def test_generate_names_a_bad_line(line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "fine"}\n' + line + "\n")
    assert main(["generate", "m", "--input", str(path)]) == 2
    assert "line 2" in capsys.readouterr().err


def test_complete_streams_what_generate_returns(llama: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", llama, "The quick", "--max-tokens", "12", *SMALL]) == 0
    whole = capsys.readouterr().out
    assert main(["complete", llama, "The quick", "--max-tokens", "12", *SMALL]) == 0
    assert capsys.readouterr().out == whole


def test_chat_answers_one_question(
    llama: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ["--system", "Be brief", "--max-tokens", "8", *SMALL]
    assert main(["chat", llama, "Hello", *asked]) == 0
    answer = capsys.readouterr().out
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\n"))
    assert main(["chat", llama, *asked]) == 0
    assert capsys.readouterr().out == answer
    monkeypatch.setattr(sys, "stdin", io.StringIO(" "))
    assert main(["chat", llama, *asked]) == 2
    assert "empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "piped", "asked", "continued"),
    [
        ([], " a\nb\n", "a\nb", " a\nb"),
        (["-"], " a\nb\n", "a\nb", " a\nb"),
        (["c? "], " a\nb\n", "a\nb\n\nc?", " a\nb\nc? "),
        (["c?"], "", "c?", "c?"),
    ],
)
def test_what_is_piped_in_comes_before_the_text(
    given: list[str], piped: str, asked: str, continued: str, llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def note(self: octavo.LLM, prompt: Any, *more: Any, **options: Any) -> Any:
        seen.append(prompt)
        return iter(())

    monkeypatch.setattr(octavo.LLM, "stream", note)
    monkeypatch.setattr(octavo.LLM, "render_chat", lambda self, messages: messages[-1]["content"])
    for name in ("chat", "complete"):
        monkeypatch.setattr(sys, "stdin", io.StringIO(piped))
        assert main([name, llama, *given, *SMALL]) == 0
    assert seen == [asked, continued]


@pytest.mark.parametrize("name", ["complete", "chat"])
def test_ctrl_c_ends_a_single_answer(
    name: str, llama: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = octavo.LLM.stream

    def interrupted(self: octavo.LLM, *given: Any, **options: Any) -> Any:
        yield next(iter(stream(self, *given, **options)))
        raise KeyboardInterrupt

    monkeypatch.setattr(octavo.LLM, "stream", interrupted)
    assert main([name, llama, "Hello", "--max-tokens", "40", *SMALL]) == 130
    assert capsys.readouterr().out.endswith("\n")


def test_ctrl_c_before_an_answer_keeps_the_conversation(
    llama: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    render, seen = octavo.LLM.render_chat, []

    def interrupted(self: octavo.LLM, messages: list[dict[str, Any]], **options: Any) -> list[int]:
        seen.append([message["content"] for message in messages if message["role"] == "user"])
        if messages[-1]["content"] == "two":
            raise KeyboardInterrupt
        return render(self, messages, **options)

    lines = iter(["one", "two", "three", "/exit"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(octavo.LLM, "render_chat", interrupted)
    assert main(["chat", llama, "--max-tokens", "3", *SMALL]) == 0
    assert seen[1:] == [["one"], ["one", "two"], ["one", "three"]]
    assert "(stopped; /exit" in capsys.readouterr().err


def test_a_byte_order_mark_begins_no_prompt(llama: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, text in (("p.txt", "one"), ("p.jsonl", '"one"')):
        (tmp_path / name).write_text(text, "utf-8-sig")
        arguments = ["--input", str(tmp_path / name), "--max-tokens", "2", "--jsonl", *SMALL]
        assert main(["generate", llama, *arguments]) == 0
        assert json.loads(capsys.readouterr().out)["prompt"] == "one"


def test_chat_conversation(llama: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    rendered: list[list[dict[str, Any]]] = []
    lines = iter(
        ["Hello", "/help", "and?", "/system Be brief", "again", "/clear", "last", "x " * 400, "/exit", "never"]
    )
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    render = octavo.LLM.render_chat

    def note(self: octavo.LLM, messages: list[dict[str, Any]], **options: Any) -> list[int]:
        rendered.append(messages)
        return render(self, messages, **options)

    monkeypatch.setattr(octavo.LLM, "render_chat", note)
    assert main(["chat", llama, "--max-tokens", "4", *SMALL]) == 0
    roles = [[message["role"] for message in messages] for messages in rendered]
    assert roles == [
        ["user"],  # whether the model can chat
        ["user"],
        ["user", "assistant", "user"],
        ["system", "user"],
        ["system", "user"],
        ["system", "user", "assistant", "user"],
    ]
    assert "max_model_len" in capsys.readouterr().err
    assert next(lines) == "never"


def test_plan_reads_headers_only(llama: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", llama, *PLAN, "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert (row["family"], row["max_model_len"], row["device"]) == ("llama", 256, "cpu")
    assert row["stored_bytes"] > 0
    assert main(["plan", llama, *PLAN, "--max-model-len", "64"]) == 0
    assert "Fits" in capsys.readouterr().out
    (tmp_path / "config.json").write_bytes((Path(llama) / "config.json").read_bytes())
    assert main(["plan", str(tmp_path), *PLAN, "--load-format", "dummy"]) == 0


def test_plan_refuses_what_an_engine_refuses(llama: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", llama, *PLAN, "--dtype", "bfloat16"]) == 2
    assert "dtype=bfloat16 is not supported on device cpu" in capsys.readouterr().err


def test_an_empty_log_level_is_none(
    llama: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OCTAVO_LOG_LEVEL", "")
    assert main(["plan", llama, *PLAN]) == 0


def test_more_cache_than_memory_is_one_line(llama: str, capsys: pytest.CaptureFixture[str]) -> None:
    for order in (["--kv-cache-memory-bytes", "4000000G"], ["--num-gpu-blocks-override", "9" * 18]):
        assert main(["complete", llama, "text", *PLAN, *order]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{order[0]} orders" in line


def test_plan_counts_the_cache_that_an_engine_would_make(
    llama: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def sequences(*more: str, code: int = 0) -> int:
        assert main(["plan", llama, *PLAN, "--max-model-len", "100", *more, "--json"]) == code
        return int(json.loads(capsys.readouterr().out)["sequences"])

    assert sequences("--num-gpu-blocks-override", "21") == 3  # of 7 blocks of 16 tokens
    order = ("--num-gpu-blocks-override", "6")
    assert sequences(*order, code=1) == 0
    assert sequences("--max-num-seqs", "5") == 5
    for auto in ("auto", "-1"):
        found = json.loads(_printed(capsys, "plan", llama, *PLAN, "--max-model-len", auto, *order, "--json"))
        assert (found["max_model_len"], found["sequences"]) == (96, 1)
    assert main(["plan", llama, *PLAN, "--num-gpu-blocks-override", "6"]) == 1
    assert "raise --num-gpu-blocks-override" in capsys.readouterr().out
    monkeypatch.setattr(sizing, "HOST_CACHE_BYTES", 1 << 20)
    per_token = json.loads(_printed(capsys, "plan", llama, *PLAN, "--json"))["kv_bytes_per_token"]
    many = ("--max-num-seqs", "4096", "--max-num-batched-tokens", "4096")
    assert sequences(*many) == (1 << 20) // (16 * per_token) // 7
    assert "tokens in a KV cache of 1 MiB, beside the weights; " in _printed(capsys, "plan", llama, *PLAN, *many)


def test_what_is_ordered_may_take_all_that_is_free(
    llama: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = DeviceMemory(total=100 << 20, free=90 << 20, weights=0)
    monkeypatch.setattr("octavo.cli.plan.device_memory", lambda device: memory)
    unasked = json.loads(_printed(capsys, "plan", llama, *PLAN, "--gpu-memory-utilization", "0.5", "--json"))
    assert unasked["free_bytes"] == 40 << 20
    assert unasked["weight_bytes"] + unasked["cache_bytes"] <= 40 << 20
    order = ("--gpu-memory-utilization", "0.5", "--kv-cache-memory-bytes", "60M")
    assert "90 MiB are free for both" in _printed(capsys, "plan", llama, *PLAN, *order)


def _printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(list(arguments)) == 0
    return capsys.readouterr().out


def test_collect_env_hides_secrets(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret_value")
    monkeypatch.setenv("HF_ENDPOINT", "https://me:hf_secret_value@example.org/x")
    monkeypatch.setenv("OCTAVO_LOG_LEVEL", "WARNING")
    monkeypatch.setenv("OMP_NUM_THREADS", "97")
    assert main(["collect-env"]) == 0
    shown = capsys.readouterr().out
    assert "hf_secret_value" not in shown
    assert "https://***@example.org/x" in shown
    assert octavo.__version__ in shown
    assert "numpy" in shown
    assert "97 threads by default" in shown


def _read_until(fd: int, words: bytes) -> bytes:
    """What a terminal shows up to and with `words`."""
    seen = b""
    while words not in seen:
        ready, _, _ = select.select([fd], [], [], 60)
        assert ready, seen
        seen += os.read(fd, 4096)
    return seen


def _take_terminal() -> None:
    """Make stdin the controlling terminal, so that Ctrl-C typed there becomes SIGINT, which may be ignored here."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def test_ctrl_c_stops_the_answer_not_the_chat(llama: str) -> None:
    """In a real terminal: Ctrl-C while an answer streams brings the prompt back; /exit leaves with 0."""
    parent, child = pty.openpty()
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(path for path in sys.path if path), TERM="dumb")
    # an answer that would take minutes
    endless = [
        "--ignore-eos",
        "--hf-overrides",
        '{"max_position_embeddings": 100000}',
        "--kv-cache-memory-bytes",
        "64M",
    ]
    arguments = [sys.executable, "-m", "octavo.cli", "chat", llama, *SMALL, *endless]
    process = subprocess.Popen(
        arguments,
        stdin=child,
        stdout=child,
        stderr=child,
        env=environment,
        start_new_session=True,
        preexec_fn=_take_terminal,
    )
    os.close(child)
    try:
        _read_until(parent, PROMPT)
        os.write(parent, b"Hello\n")
        seen = _read_until(parent, b"Hello\r\n").partition(b"Hello\r\n")[2]
        while len(seen) < 20:
            seen += os.read(parent, 4096)
        os.write(parent, b"\x03")
        _read_until(parent, b"stopped]\r\n" + PROMPT)
        os.write(parent, b"/exit\n")
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
        os.close(parent)


def test_a_server_that_cannot_listen_leaves_no_process(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import octavo.cli.serve as command

    started = []

    def spawn(device: str) -> EngineProcess:
        started.append(engine_process.spawn(device))
        return started[0]

    monkeypatch.setattr(command, "spawn", spawn)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["serve", "m", "--device", "cpu", "--port", str(taken.getsockname()[1])]) == 2
    assert "--port" in capsys.readouterr().err
    assert started[0].process.returncode is not None

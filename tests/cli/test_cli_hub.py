"""`octavo plan` and dummy weights of a model on the hub: headers and configs are fetched, weights are not."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import termios
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import weight_files as make
from fake_hub import FakeHub
from safetensors.torch import load_file, save_file

from octavo.cli import main

DEVICE = ["--device", "cpu", "--threads", "1"]


@pytest.fixture
def octavo(hub: FakeHub, tmp_path: Path) -> Callable[..., str]:
    """octavo(*arguments) -> stdout of the command, in a process of its own that knows only this hub."""

    def run(*arguments: str) -> str:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()}
        kept |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "*"}
        kept |= {"OCTAVO_CACHE": str(tmp_path / "octavo")}
        command = [sys.executable, "-m", "octavo.cli", *arguments, *DEVICE]
        done = subprocess.run(command, env=kept, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def without_place(row: dict[str, Any]) -> dict[str, Any]:
    """A report less what the machine's free memory decides."""
    return {key: value for key, value in row.items() if key not in ("free_bytes", "sequences", "stored_bytes")}


def local_plan(path: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main(["plan", str(path), *DEVICE, "--json"]) == 0
    row: dict[str, Any] = json.loads(capsys.readouterr().out)
    return row


def test_plan_of_safetensors(
    hub: FakeHub, octavo: Callable[..., str], checkpoint: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = checkpoint("llama")
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    commit = hub.add("org/name", files, revision="v2")
    row = json.loads(octavo("plan", "org/name", "--revision", "v2", "--json"))
    assert without_place(row) == without_place(local_plan(folder, capsys))
    assert row["stored_bytes"] == len(files["model.safetensors"])
    assert hub.bodies()
    assert not [seen for seen in hub.seen if (seen.file or "").endswith(".safetensors")]
    assert {seen.revision for seen in hub.seen if "org/name" in seen.path} <= {"v2", commit}


def test_plan_of_a_config_without_dtype(
    hub: FakeHub,
    octavo: Callable[..., str],
    checkpoint: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Half of float32's bytes are numbers of two bytes, in the cache, too; here the headers tell, there they do not."""
    local, tensors = tmp_path / "local", load_file(checkpoint("llama") / "model.safetensors")
    local.mkdir()
    save_file({name: tensor.bfloat16() for name, tensor in tensors.items()}, local / "model.safetensors")
    config = json.loads((checkpoint("llama") / "config.json").read_text())
    config.pop("dtype", None)
    (local / "config.json").write_text(json.dumps(config))
    hub.add("org/name", {path.name: path.read_bytes() for path in local.iterdir()})
    row, known = json.loads(octavo("plan", "org/name", "--json")), local_plan(local, capsys)
    assert row.pop("weight_bytes") == pytest.approx(known.pop("weight_bytes"), rel=0.02)  # the hub's has the header
    assert without_place(row) == without_place(known)
    assert row["kv_bytes_per_token"] < local_plan(checkpoint("llama"), capsys)["kv_bytes_per_token"]


def test_plan_of_a_gguf(
    hub: FakeHub, octavo: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "m.gguf"
    make.write_gguf(path, kind="Q4_0")
    padded = path.read_bytes() + bytes(4 << 20)
    commit = hub.add("org/name", {"m.gguf": padded, "other.gguf": b"x"})
    row = json.loads(octavo("plan", "org/name:m.gguf", "--json"))
    local = local_plan(path, capsys)
    assert without_place(row) == without_place(local)
    assert row["stored_bytes"] == local["stored_bytes"] > 0
    assert "  as stored" in octavo("plan", "org/name:m.gguf")
    (body,) = hub.bodies()
    assert (body.range, body.revision) == (f"bytes=0-{(256 << 10) - 1}", commit)


def test_dummy_weights_and_a_tokenizer_from_elsewhere(
    hub: FakeHub, octavo: Callable[..., str], checkpoint: Callable[[str], Path]
) -> None:
    folder = checkpoint("llama")
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    words = {name: raw for name, raw in files.items() if name.startswith("tokenizer")}
    hub.add("org/words", words)
    hub.add("org/name", {name: raw for name, raw in files.items() if name not in words})
    options = ["--tokenizer", "org/words", "--load-format", "dummy", "--max-tokens", "3", "--jsonl"]
    row = json.loads(octavo("generate", "org/name", "The quick", *options, "--kv-cache-memory-bytes", "2M"))
    assert len(row["outputs"][0]["token_ids"]) <= 3
    assert not [seen for seen in hub.seen if (seen.file or "").endswith(".safetensors")]


def test_a_download_draws_one_bar(hub: FakeHub, tmp_path: Path, checkpoint: Callable[[str], Path]) -> None:
    """On a terminal; a second bar would stand below the first, whose line the cursor must go back to."""
    hub.add("org/name", {path.name: path.read_bytes() for path in checkpoint("llama").iterdir() if path.is_file()})
    environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    environment |= {"NO_PROXY": "*", "OCTAVO_CACHE": str(tmp_path / "octavo"), "TERM": "xterm"}
    parent, child = pty.openpty()
    termios.tcsetwinsize(child, (24, 80))
    command = [sys.executable, "-m", "octavo.cli", "complete", "org/name", "hi", "--max-tokens", "2", *DEVICE]
    process = subprocess.Popen(command, env={**os.environ, **environment}, stdin=child, stdout=child, stderr=child)
    os.close(child)
    seen = b""
    with suppress(OSError):  # the terminal's last user is gone
        while data := os.read(parent, 4096):
            seen += data
    os.close(parent)
    assert process.wait(60) == 0, seen
    assert b"org/name: " in seen
    assert b"\x1b[A" not in seen

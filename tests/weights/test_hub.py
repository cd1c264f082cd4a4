"""Downloads from a small hub on localhost, each in a process of its own, as a user's would be."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import weight_files as make
from fake_hub import FakeHub

from octavo.base.errors import ModelFormatError, ModelNotFoundError
from octavo.weights.hub import choose

DRIVER = """
import json, sys
from octavo.weights.source import resolve_source
calls = []
try:
    path = resolve_source(progress=lambda what, done, total: calls.append((what, done, total)), **json.load(sys.stdin))
    print(json.dumps({"path": str(path), "calls": calls, "requests": "requests" in sys.modules}))
except Exception as error:
    print(json.dumps({"error": type(error).__name__, "message": str(error), "param": getattr(error, "param", None)}))
"""


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub() as running:
        yield running


@pytest.fixture
def resolve(hub: FakeHub, tmp_path: Path) -> Any:
    """resolve(model, env={...}, **arguments): resolve_source in a fresh process; its path or its error as a dict."""

    def run(model: str, *, env: dict[str, str] | None = None, **arguments: Any) -> dict[str, Any]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()}
        kept |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
        kept |= {"NO_PROXY": "*"} | (env or {})
        done = subprocess.run(
            [sys.executable, "-c", DRIVER],
            input=json.dumps({"model": model, **arguments}),
            env=kept,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


def folder_files(**extra: bytes) -> dict[str, bytes]:
    """A repository with all that is needed, and much that is not."""
    needed = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
    return {
        **{name: json.dumps({"this": name}).encode() for name in needed},
        "chat_template.jinja": b"T",
        "special_tokens_map.json": b"{}",
        "model.safetensors": make.safetensors_bytes(make.small_safetensors()),
        "pytorch_model.bin": b"pickle",
        "README.md": b"#",
        "modeling_evil.py": b"raise SystemExit",
        "onnx/model.onnx": b"x",
        "original/consolidated.safetensors": b"x",
        "consolidated.safetensors": b"x",
        **extra,
    }


NEEDED = {
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "model.safetensors",
}


def test_folder_progress_and_offline_after_the_first(hub: FakeHub, resolve: Any) -> None:
    commit = hub.add("org/name", folder_files())
    first = resolve("org/name")
    folder = Path(first["path"])
    assert {path.name for path in folder.iterdir()} == NEEDED
    assert {seen.file for seen in hub.bodies()} == NEEDED
    assert {seen.revision for seen in hub.seen if seen.file} == {commit}
    size = sum(len(hub.files[commit][name]) for name in NEEDED)
    assert first["calls"][-1] == ["org/name", size, size]
    assert all(0 <= done <= total == size for _, done, total in first["calls"])
    hub.seen.clear()
    assert resolve("org/name")["path"] == str(folder)
    assert hub.bodies() == []
    hub.seen.clear()
    assert resolve("org/name", env={"HF_HUB_OFFLINE": "1"})["path"] == str(folder)
    assert hub.seen == []
    hub.down = True
    assert resolve("org/name")["path"] == str(folder)


def test_revision_goes_to_every_file(hub: FakeHub, resolve: Any) -> None:
    hub.add("org/name", folder_files())
    commit = hub.add("org/name", folder_files(**{"tokenizer.json": b'{"other": 1}'}), revision="v2")
    path = Path(resolve("org/name", revision="v2")["path"])
    assert (path / "tokenizer.json").read_bytes() == b'{"other": 1}'
    assert hub.seen
    asked = {seen.revision for seen in hub.seen if "org/name" in seen.path}
    assert asked <= {"v2", commit}
    assert {seen.revision for seen in hub.bodies()} == {commit}
    assert resolve("org/name", revision="v2", env={"HF_HUB_OFFLINE": "1"})["path"] == str(path)
    missing = resolve("org/name", revision="v3")
    assert (missing["error"], missing["param"]) == ("ModelNotFoundError", "revision")
    assert "v3" in missing["message"]


def test_one_gguf_file(hub: FakeHub, resolve: Any, tmp_path: Path) -> None:
    hub.add("org/name", {"a.gguf": b"A", "b.gguf": b"B", "config.json": b"{}"})
    cache = tmp_path / "elsewhere"
    path = Path(resolve("org/name:b.gguf", download_dir=str(cache))["path"])
    assert path.read_bytes() == b"B"
    assert path.is_relative_to(cache)
    assert [seen.file for seen in hub.bodies()] == ["b.gguf"]
    offline = {"HF_HUB_OFFLINE": "1"}
    assert resolve("org/name:b.gguf", download_dir=str(cache), env=offline)["path"] == str(path)
    other = resolve("org/name:a.gguf", download_dir=str(cache), env=offline)
    assert other["error"] == "ModelNotFoundError"
    several = resolve("org/name")
    assert "org/name:a.gguf, org/name:b.gguf" in several["message"]
    missing = resolve("org/name:c.gguf")
    assert "no file c.gguf" in missing["message"]
    assert "a.gguf, b.gguf" in missing["message"]


BODY = bytes(range(256)) * 4096


def test_a_download_that_was_cut_off_goes_on_in_another_process(hub: FakeHub, resolve: Any) -> None:
    hub.add("org/name", {"m.gguf": BODY})
    hub.cut_after, hub.after_cut = 600_000, 403
    failed = resolve("org/name")
    assert failed["error"] == "ModelNotFoundError"
    assert "could not be downloaded" in failed["message"]
    hub.cut_after = None
    hub.seen.clear()
    done = resolve("org/name")
    assert Path(done["path"]).read_bytes() == BODY
    assert [seen.range for seen in hub.bodies()] == ["bytes=600000-"]
    assert done["calls"][0] == ["org/name", 600_000, len(BODY)]
    assert done["calls"][-1] == ["org/name", len(BODY), len(BODY)]


def test_a_cut_is_mended_in_the_same_process(hub: FakeHub, resolve: Any) -> None:
    hub.add("org/name", {"m.gguf": BODY})
    hub.cut_after, hub.after_cut = 600_000, None
    assert Path(resolve("org/name")["path"]).read_bytes() == BODY
    assert [seen.range for seen in hub.bodies()] == [None, "bytes=600000-"]


def test_a_server_without_ranges_begins_again(hub: FakeHub, resolve: Any) -> None:
    hub.add("org/name", {"m.gguf": BODY})
    hub.cut_after, hub.after_cut, hub.ranges = 600_000, None, False
    done = resolve("org/name")
    assert Path(done["path"]).read_bytes() == BODY
    assert done["calls"][-1] == ["org/name", len(BODY), len(BODY)]
    assert all(0 <= now <= total for _, now, total in done["calls"])


def test_a_wrong_sum_is_found_and_not_kept(hub: FakeHub, resolve: Any, tmp_path: Path) -> None:
    commit = hub.add("org/name", {"m.gguf": BODY})
    hub.etags["m.gguf"] = hashlib.sha256(BODY).hexdigest()
    hub.files[commit]["m.gguf"] = BODY[:-1] + b"x"
    refused = resolve("org/name")
    assert refused["error"] == "ModelFormatError"
    assert "SHA-256" in refused["message"]
    assert not [path for path in (tmp_path / "home").rglob("*") if path.is_file() and path.stat().st_size > 100_000]
    hub.files[commit]["m.gguf"] = BODY
    assert Path(resolve("org/name")["path"]).read_bytes() == BODY


def test_token(hub: FakeHub, resolve: Any) -> None:
    hub.add("org/private", folder_files())
    hub.token = "hf_secret"
    refused = resolve("org/private")
    assert refused["error"] == "ModelNotFoundError"
    assert "HF_TOKEN" in refused["message"]
    assert "path" in resolve("org/private", hf_token="hf_secret")
    assert {seen.token for seen in hub.bodies()} == {"Bearer hf_secret"}
    hub.add("org/other", folder_files())
    hub.seen.clear()
    assert "path" in resolve("org/other", env={"HF_TOKEN": "hf_secret"})
    assert {seen.token for seen in hub.bodies()} == {"Bearer hf_secret"}


def test_what_is_not_there(hub: FakeHub, resolve: Any) -> None:
    missing = resolve("org/nothing")
    assert (missing["error"], missing["param"]) == ("ModelNotFoundError", "model")
    assert hub.url in missing["message"]
    offline = resolve("org/nothing", env={"HF_HUB_OFFLINE": "1"})
    assert offline["error"] == "ModelNotFoundError"
    assert "HF_HUB_OFFLINE" in offline["message"]
    unreachable = resolve("org/nothing", env={"HF_ENDPOINT": "http://127.0.0.1:9"})
    assert unreachable["error"] == "ModelNotFoundError"
    assert "cannot be reached" in unreachable["message"]
    hub.add("org/pickled", {"config.json": b"{}", "pytorch_model.bin": b"x"})
    pickled = resolve("org/pickled")
    assert pickled["error"] == "ModelFormatError"
    assert "safetensors" in pickled["message"]
    hub.gated = True
    assert "accept its terms" in resolve("org/pickled")["message"]


# Which files are taken, without a process.


def test_shards_are_taken_and_other_weights_left() -> None:
    shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    names = ["config.json", "model.safetensors.index.json", "consolidated.safetensors", "x/y.safetensors", *shards]
    wanted, gguf = choose("o/n", dict.fromkeys(names, 1), None)
    assert gguf is None
    assert set(wanted) == {"config.json", "model.safetensors.index.json", *shards}


def test_all_parts_of_a_split_gguf() -> None:
    names = dict.fromkeys(["q/m-00001-of-00002.gguf", "q/m-00002-of-00002.gguf"], 1)
    assert choose("o/n", names, None) == (list(names), "q/m-00001-of-00002.gguf")
    with pytest.raises(ModelNotFoundError, match="m-00002-of-00002"):
        choose("o/n", {"q/m-00001-of-00002.gguf": 1}, "q/m-00001-of-00002.gguf")
    with pytest.raises(ModelFormatError, match="not the first part"):
        choose("o/n", names, "q/m-00002-of-00002.gguf")


def test_safetensors_without_a_config_do_not_hide_a_gguf() -> None:
    assert choose("o/n", {"lora.safetensors": 1, "m.gguf": 1}, None) == (["m.gguf"], "m.gguf")

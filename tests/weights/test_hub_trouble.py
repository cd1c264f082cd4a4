"""Hubs and repositories as they should not be: refusals, hiccups, expired addresses, indexes that do not fit."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import weight_files as make
from fake_hub import FakeHub, folder_files

from octavo.weights.checkpoint import open_checkpoint
from octavo.weights.transfer import Body, RemoteFile, fetch_blob

BODY = bytes(range(256)) * 4096
INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize("status", [401, 403, 404, 408, 429, 503])
def test_what_was_downloaded_is_used_where_the_hub_refuses(hub: FakeHub, resolve: Any, status: int) -> None:
    hub.add("org/name", folder_files())
    path = resolve("org/name")["path"]
    hub.refusal = status
    assert resolve("org/name")["path"] == path
    assert resolve("org/name", function="resolve_tokenizer")["path"] == path
    assert resolve("org/other")["error"] == "ModelNotFoundError"


def test_a_refusal_is_told_as_such(hub: FakeHub, resolve: Any) -> None:
    hub.refusal = 429
    assert "429" in resolve("org/name")["message"]
    hub.refusal = 404
    assert "check the name" in resolve("org/name")["message"]
    assert "check the name" in resolve("org/name", function="resolve_tokenizer")["message"]


def test_why_a_hub_cannot_be_reached_is_told(hub: FakeHub, resolve: Any) -> None:
    encrypted = resolve("org/name", env={"HF_ENDPOINT": hub.url.replace("http:", "https:")})
    assert "cannot be reached (ConnectError: [SSL" in encrypted["message"]
    mistyped = resolve("org/name", env={"HF_ENDPOINT": "hub.example"})
    assert "missing an 'http://' or 'https://' protocol" in mistyped["message"]
    quoted = resolve("org/name", hf_token="hf_se\ncret")
    assert "Illegal header value" in quoted["message"]
    assert "cret" not in quoted["message"]


@pytest.mark.parametrize("token", ["", " ", "\n"])
def test_an_empty_token_is_none(hub: FakeHub, resolve: Any, token: str) -> None:
    hub.add("org/name", folder_files())
    assert "path" in resolve("org/name", hf_token=token)
    assert {seen.token for seen in hub.seen} == {None}


def test_a_token_may_end_in_a_newline(hub: FakeHub, resolve: Any) -> None:
    hub.add("org/name", folder_files())
    hub.token = "hf_secret"
    assert "path" in resolve("org/name", hf_token="hf_secret\n")


def test_an_empty_download_dir_is_none(hub: FakeHub, resolve: Any, tmp_path: Path) -> None:
    hub.add("org/name", {"m.gguf": BODY})
    found = resolve("org/name", download_dir="", env={"HF_HUB_CACHE": str(tmp_path / "hub")})
    assert found["path"].startswith(str(tmp_path / "hub"))
    assert len(hub.bodies()) == 1


def test_an_address_that_expired_is_asked_for_again(hub: FakeHub, resolve: Any) -> None:
    hub.add("org/name", {"m.gguf": BODY})
    hub.token, hub.signed, hub.cut_after = "hf_secret", True, 600_000
    assert Path(resolve("org/name", hf_token="hf_secret")["path"]).read_bytes() == BODY
    stored = [seen for seen in hub.seen if seen.signature]
    assert [seen.range for seen in stored] == [None, "bytes=600000-"]
    assert {seen.token for seen in stored} == {None}


def test_a_hub_that_is_busy_is_asked_again(hub: FakeHub, resolve: Any) -> None:
    hub.add("org/name", {"m.gguf": BODY})
    hub.busy = 2
    assert Path(resolve("org/name")["path"]).read_bytes() == BODY


def test_a_hub_that_never_answers_is_waited_for_seconds_only(hub: FakeHub, resolve: Any) -> None:
    hub.add("org/name", folder_files())
    path = resolve("org/name")["path"]
    with socket.create_server(("127.0.0.1", 0)) as silent:
        env = {"HF_ENDPOINT": f"http://127.0.0.1:{silent.getsockname()[1]}", "HF_HUB_ETAG_TIMEOUT": "1"}
        assert resolve("org/name", env=env)["path"] == path
        assert "cannot be reached (ReadTimeout" in resolve("org/other", env=env)["message"]


def test_a_revision_with_slashes(hub: FakeHub, resolve: Any) -> None:
    hub.add("org/name", folder_files(), revision="refs/pr/1")
    path = resolve("org/name", revision="refs/pr/1")["path"]
    assert resolve("org/name", revision="refs/pr/1", env={"HF_HUB_OFFLINE": "1"})["path"] == path


def test_every_file_that_the_index_names_is_taken(hub: FakeHub, resolve: Any, tmp_path: Path) -> None:
    make.write_sharded(tmp_path / "made")
    files = {path.name: path.read_bytes() for path in (tmp_path / "made").iterdir()}
    index = json.loads(files[INDEX])
    index["weight_map"]["z.a"] = "model_extra_tensors.safetensors"
    extra = make.safetensors_bytes({"z.a": make.small_safetensors()["a"]})
    other = {"consolidated-00001-of-00001.safetensors": b"x", "model_extra_tensors.safetensors": extra}
    hub.add("org/name", {**files, **other, INDEX: json.dumps(index).encode()})
    folder = Path(resolve("org/name")["path"])
    assert {path.name for path in folder.iterdir()} == {*files, "model_extra_tensors.safetensors"}
    assert "z.a" in open_checkpoint(folder).tensors


def test_an_index_left_over_beside_a_whole_file(hub: FakeHub, resolve: Any) -> None:
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    hub.add("org/name", folder_files(**{INDEX: json.dumps(index).encode()}))
    folder = Path(resolve("org/name")["path"])
    assert [path.name for path in folder.glob("*.safetensors")] == ["model.safetensors"]
    assert set(open_checkpoint(folder).tensors) == {"a", "b", "c"}
    assert set(open_checkpoint(folder, with_weights=False).tensors) == {"a", "b", "c"}


def test_a_place_that_takes_no_files_is_named(hub: FakeHub, resolve: Any, tmp_path: Path) -> None:
    hub.add("org/name", folder_files())
    (tmp_path / "file").write_bytes(b"")
    refused = resolve("org/name", download_dir=str(tmp_path / "file" / "cache"))
    assert refused["error"] == "ModelNotFoundError"
    assert str(tmp_path / "file") in refused["message"]
    assert "another folder by download_dir" in refused["message"]


@pytest.mark.parametrize("file", ["Model (v2) [x], 7b.gguf", "a folder/b@c.gguf", "a..b.gguf", "模型.gguf"])
def test_the_names_that_are_listed_can_be_given(hub: FakeHub, resolve: Any, file: str) -> None:
    hub.add("org/name", {file: BODY, "other.gguf": b"x"})
    assert f"org/name:{file}" in resolve("org/name")["message"]
    assert Path(resolve(f"org/name:{file}")["path"]).read_bytes() == BODY


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def read(start: int, stop: int | None) -> Iterator[Body]:
        yield Body(resumed=False, chunks=iter([BODY]))

    named: list[bool] = []
    monkeypatch.setattr(os, "fsync", lambda file: named.append((tmp_path / "etag").exists()))
    fetch_blob(RemoteFile("m.gguf", "etag", len(BODY), read), tmp_path, count=lambda size: None)
    assert named == [False]
    assert (tmp_path / "etag").read_bytes() == BODY

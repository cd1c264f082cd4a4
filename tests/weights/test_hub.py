"""Downloads from a small hub on localhost, each in a process of its own, as a user's would be."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import weight_files as make
from fake_hub import FakeHub, folder_files

from octavo.base.errors import ModelFormatError, ModelNotFoundError
from octavo.weights.checkpoint import GgufTokenizer, open_checkpoint, open_tokenizer
from octavo.weights.gguf import read_header
from octavo.weights.repository import choose

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


def test_further_chat_templates_come_along(hub: FakeHub, resolve: Any) -> None:
    hub.add("org/name", folder_files(**{"additional_chat_templates/tool_use.jinja": b"U"}))
    folder = Path(resolve("org/name")["path"])
    assert (folder / "additional_chat_templates" / "tool_use.jinja").read_text() == "U"


def test_how_an_older_checkpoint_is_quantized_comes_along(hub: FakeHub, resolve: Any) -> None:
    hub.add("org/name", folder_files(**{"quantize_config.json": b"{}", "quant_config.json": b"[]"}))
    folder = Path(resolve("org/name")["path"])
    assert [(folder / name).read_text() for name in ("quantize_config.json", "quant_config.json")] == ["{}", "[]"]


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
    hub.add("org/capitals", {"C.GGUF": b"C"})
    for name in ("org/capitals:C.GGUF", "org/capitals"):
        assert Path(resolve(name, download_dir=str(cache))["path"]).read_bytes() == b"C"
    missing = resolve("org/name:c.gguf")
    assert "no file c.gguf" in missing["message"]
    assert "a.gguf, b.gguf" in missing["message"]


def test_a_gguf_by_its_format(hub: FakeHub, resolve: Any) -> None:
    hub.add("org/name", {"m-Q4_K_M.gguf": b"4", "m-Q8_0.gguf": b"8", "mmproj-m-Q8_0.gguf": b"p", "config.json": b"{}"})
    assert Path(resolve("org/name:Q4_K_M")["path"]).read_bytes() == b"4"
    assert Path(resolve("hf.co/org/name:q8_0")["path"]).read_bytes() == b"8"
    assert Path(resolve("https://huggingface.co/org/name:Q4_K_M")["path"]).read_bytes() == b"4"
    assert Path(resolve("org/name:Q4_K_M", env={"HF_HUB_OFFLINE": "1"})["path"]).read_bytes() == b"4"
    missing = resolve("org/name:Q5_0")
    assert missing["error"] == "ModelNotFoundError"
    assert "no .gguf file of the format Q5_0" in missing["message"]
    assert "org/name:m-Q4_K_M.gguf, org/name:m-Q8_0.gguf" in missing["message"]


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


# Headers only.


def large_gguf(folder: Path, *, name: str = "m.gguf") -> bytes:
    """A header of some 700 KB (a vocabulary's size), then 4 MB of weights."""
    writer = make.gguf_writer(folder / name, "llama")
    writer.add_array("x.words", [f"{i:042}" for i in range(14_000)])
    make.finish(writer, {**make.random_tensors(make.matrices("llama")), "extra": np.zeros((1024, 1024), np.float32)})
    return (folder / name).read_bytes()


def header_size(raw: bytes) -> int:
    header = read_header(memoryview(raw), where="m.gguf")
    return min(tensor.begin for tensor in header.tensors.values())


def spans(hub: FakeHub) -> list[tuple[int, int]]:
    """The bytes that were asked for, each as the first and the one after the last; no request goes without a range."""
    ranges = [(seen.range or "").removeprefix("bytes=").split("-") for seen in hub.bodies()]
    return [(int(first), int(last) + 1) for first, last in ranges]


def test_a_folder_without_its_weights(hub: FakeHub, resolve: Any) -> None:
    commit = hub.add("org/name", folder_files(), revision="v2")
    hub.add("org/name", folder_files(**{"config.json": b"{}"}))
    size = len(hub.files[commit]["model.safetensors"])
    planned = resolve("org/name", revision="v2", with_weights=False)
    folder = Path(planned["path"])
    assert {path.name for path in folder.iterdir()} == NEEDED - {"model.safetensors"}
    assert {seen.file for seen in hub.bodies()} == NEEDED - {"model.safetensors"}
    assert {seen.revision for seen in hub.seen if seen.file} == {commit}
    assert {seen.revision for seen in hub.seen if "org/name" in seen.path} <= {"v2", commit}
    assert planned["listed"] == [size]
    offline = {"HF_HUB_OFFLINE": "1"}
    assert resolve("org/name", revision="v2", with_weights=False, env=offline)["path"] == str(folder)
    refused = resolve("org/name", revision="v2", env=offline)
    assert refused["error"] == "ModelNotFoundError"
    assert "was not (wholly) downloaded" in refused["message"]
    hub.seen.clear()
    assert resolve("org/name", revision="v2")["path"] == str(folder)
    assert [seen.file for seen in hub.bodies()] == ["model.safetensors"]
    assert (folder / "model.safetensors").stat().st_size == size
    assert resolve("org/name", revision="v2", with_weights=False)["path"] == str(folder)


def test_the_header_of_a_gguf(hub: FakeHub, resolve: Any, tmp_path: Path) -> None:
    raw = large_gguf(tmp_path)
    commit = hub.add("org/name", {"q/m.gguf": raw, "README.md": b"#"}, revision="v2")
    planned = resolve("org/name:q/m.gguf", revision="v2", with_weights=False)
    path, header = Path(planned["path"]), header_size(raw)
    assert 512 << 10 < header < 1 << 20
    assert spans(hub) == [(0, 256 << 10), (256 << 10, 512 << 10), (512 << 10, 1 << 20)]
    assert {seen.revision for seen in hub.seen if seen.file} == {commit}
    assert {seen.revision for seen in hub.seen if "org/name" in seen.path} <= {"v2", commit}
    assert planned["listed"] == [len(raw)]
    assert path.is_relative_to(tmp_path / "octavo")
    assert path.read_bytes() == raw[: 1 << 20]
    assert {file.name for file in path.parent.iterdir()} - {"lock"} == {"m.gguf"}
    hub.seen.clear()
    assert resolve("org/name:q/m.gguf", revision="v2", with_weights=False)["path"] == str(path)
    assert hub.bodies() == []
    whole = Path(resolve("org/name:q/m.gguf", revision="v2")["path"])
    assert whole.read_bytes() == raw
    assert [seen.range for seen in hub.bodies()] == [None]
    hub.seen.clear()
    assert resolve("org/name:q/m.gguf", revision="v2", with_weights=False)["path"] == str(whole)
    assert hub.bodies() == []


def test_a_header_alone_is_opened_for_its_description_only(hub: FakeHub, resolve: Any, tmp_path: Path) -> None:
    hub.add("org/name", {"m.gguf": large_gguf(tmp_path)})
    path = Path(resolve("org/name", with_weights=False)["path"])
    whole = open_checkpoint(tmp_path / "m.gguf")
    for options in ({"with_weights": False}, {"load_format": "dummy"}):
        opened = open_checkpoint(path, **options)
        assert (opened.config, opened.total_bytes) == (whole.config, whole.total_bytes)
        assert opened.tokenizer == whole.tokenizer
        assert opened.tensors == {}
    with pytest.raises(ModelFormatError, match="takes"):
        open_checkpoint(path)


def test_all_headers_of_a_split_gguf(hub: FakeHub, resolve: Any, tmp_path: Path) -> None:
    names = [f"m-{i:05d}-of-00002.gguf" for i in (1, 2)]
    hub.add("org/name", {name: large_gguf(tmp_path, name=name) for name in names})
    path = Path(resolve("org/name", with_weights=False)["path"])
    assert path.name == names[0]
    assert {file.name for file in path.parent.glob("*.gguf")} == set(names)
    assert max(stop for _, stop in spans(hub)) <= 1 << 20


@pytest.mark.parametrize("ranges", [True, False])
def test_a_header_that_is_cut_off(hub: FakeHub, resolve: Any, tmp_path: Path, ranges: bool) -> None:
    raw = large_gguf(tmp_path)
    hub.add("org/name", {"m.gguf": raw})
    hub.cut_after, hub.ranges = 100_000, ranges
    path = Path(resolve("org/name", with_weights=False)["path"])
    assert path.read_bytes() == raw[: 1 << 20]
    assert spans(hub)[:2] == [(0, 256 << 10), (100_000, 256 << 10)]
    assert max(stop for _, stop in spans(hub)) <= 1 << 20


def test_a_damaged_header_does_not_fetch_the_file(hub: FakeHub, resolve: Any, tmp_path: Path) -> None:
    raw = large_gguf(tmp_path)
    hub.add("org/name", {"m.gguf": raw[:24] + (1 << 40).to_bytes(8, "little") + raw[32:]})
    refused = resolve("org/name", with_weights=False)
    assert refused["error"] == "ModelFormatError"
    assert "name of key 0" in refused["message"]
    assert spans(hub) == [(0, 256 << 10)]
    assert not list((tmp_path / "octavo").rglob("*.part"))


def test_a_small_gguf_is_one_request(hub: FakeHub, resolve: Any, tmp_path: Path) -> None:
    make.write_gguf(tmp_path / "m.gguf")
    raw = (tmp_path / "m.gguf").read_bytes()
    hub.add("org/name", {"m.gguf": raw})
    assert Path(resolve("org/name", with_weights=False)["path"]).read_bytes() == raw[: 256 << 10]
    assert len(hub.bodies()) == 1


# Tokenizers.


def test_a_repository_with_a_tokenizer_only(hub: FakeHub, resolve: Any) -> None:
    files = {"tokenizer.json": b"{}", "tokenizer_config.json": b"{ }", "vocab.txt": b"", "m.bin": b"x"}
    commit = hub.add("org/words", files, revision="v2")
    asked: dict[str, Any] = {"function": "resolve_tokenizer", "revision": "v2"}
    folder = Path(resolve("org/words", **asked)["path"])
    assert {path.name for path in folder.iterdir()} == {"tokenizer.json", "tokenizer_config.json"}
    assert {(seen.file, seen.revision) for seen in hub.bodies()} == {(path.name, commit) for path in folder.iterdir()}
    assert resolve("org/words", **asked, env={"HF_HUB_OFFLINE": "1"})["path"] == str(folder)


def test_a_tokenizer_needs_no_weights(hub: FakeHub, resolve: Any, tmp_path: Path) -> None:
    hub.add("org/model", folder_files(**{"a.gguf": b"A", "b.gguf": b"B"}))
    assert "path" in resolve("org/model", function="resolve_tokenizer")
    assert {seen.file for seen in hub.bodies()} == NEEDED - {"model.safetensors"}
    hub.seen.clear()
    hub.add("org/gguf", {"m.gguf": large_gguf(tmp_path)})
    for source in ("org/gguf", "org/gguf:m.gguf"):
        path = Path(resolve(source, function="resolve_tokenizer")["path"])
        assert isinstance(open_tokenizer(path).tokenizer, GgufTokenizer)
    assert max(stop for _, stop in spans(hub)) <= 1 << 20
    hub.add("org/none", {"config.json": b"{}", "pytorch_model.bin": b"x"})
    refused = resolve("org/none", function="resolve_tokenizer")
    assert (refused["error"], refused["param"]) == ("ModelFormatError", "tokenizer")
    assert "tokenizer.json" in refused["message"]


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


def test_a_format_names_one_model() -> None:
    names = dict.fromkeys(["BF16/m-BF16-00001-of-00002.gguf", "BF16/m-BF16-00002-of-00002.gguf", "m.Q4_0.gguf"], 1)
    assert choose("o/n", names, "bf16")[1] == "BF16/m-BF16-00001-of-00002.gguf"
    assert choose("o/n", names, "Q4_0") == (["m.Q4_0.gguf"], "m.Q4_0.gguf")
    with pytest.raises(ModelNotFoundError, match=r"2 \.gguf files of the format Q4_0"):
        choose("o/n", {"a-Q4_0.gguf": 1, "b-Q4_0.gguf": 1}, "Q4_0")


def test_safetensors_without_a_config_do_not_hide_a_gguf() -> None:
    assert choose("o/n", {"lora.safetensors": 1, "m.gguf": 1}, None) == (["m.gguf"], "m.gguf")

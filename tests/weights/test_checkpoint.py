"""Folders and files opened: what is taken from where, and what is refused with which words."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import weight_files as make

from octavo.base.errors import ConfigError, ModelFormatError, ModelNotFoundError
from octavo.quant import dequantize
from octavo.weights.checkpoint import GgufTokenizer, TokenizerFiles, open_checkpoint, open_tokenizer
from octavo.weights.dummy import DummyWeights
from octavo.weights.files import map_file, release
from octavo.weights.names import map_names


def folder_with(tmp_path: Path, *, name: str = "model.safetensors", **config) -> Path:
    make.write_config(tmp_path, **config)
    (tmp_path / name).write_bytes(make.safetensors_bytes(make.small_safetensors()))
    return tmp_path


def test_gguf(tmp_path: Path) -> None:
    written = make.write_gguf(tmp_path / "m.gguf", kind="Q8_0")
    checkpoint = open_checkpoint(tmp_path / "m.gguf")
    assert checkpoint.format == "gguf"
    assert checkpoint.chat_template == make.TEMPLATE
    assert checkpoint.total_bytes == sum(
        values.nbytes if values.ndim < 2 else values.size // 32 * 34 for values in written.values()
    )
    tokenizer = checkpoint.tokenizer
    assert isinstance(tokenizer, GgufTokenizer)
    assert tokenizer.model == "gpt2"
    assert tokenizer.tokens[-1] == "héllo ▁"
    assert len(tokenizer.tokens) == len(tokenizer.token_types) == make.VOCAB
    assert (tokenizer.scores, tokenizer.merges) == ([], ["t 0", "t 1"])
    assert tokenizer.metadata["tokenizer.ggml.pre"] == "smollm"
    query = checkpoint.tensors["model.layers.1.self_attn.q_proj.weight"]
    assert np.abs(dequantize(query) - written["blk.1.attn_q.weight"]).max() < 0.02


def test_without_the_tokenizer(tmp_path: Path) -> None:
    make.write_gguf(tmp_path / "m.gguf")
    whole, without = open_checkpoint(tmp_path / "m.gguf"), open_checkpoint(tmp_path / "m.gguf", with_tokenizer=False)
    assert without.tokenizer is None
    assert (without.config, without.chat_template) == (whole.config, whole.chat_template)
    assert without.generation_config == whole.generation_config
    assert {name: bytes(tensor.data) for name, tensor in without.tensors.items()} == {
        name: bytes(tensor.data) for name, tensor in whole.tensors.items()
    }
    (tmp_path / "folder").mkdir()
    folder = folder_with(tmp_path / "folder")
    (folder / "tokenizer.json").write_text("{}")
    assert open_checkpoint(folder).tokenizer is not None
    assert open_checkpoint(folder, with_tokenizer=False).tokenizer is None


def test_mapped_files_know_what_they_are_of(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("real")
    first, second = map_file(tmp_path / "real"), map_file(tmp_path / "link")
    release(first, second, memoryview(b"not mapped"))
    assert bytes(first) == bytes(second) == b"abc"
    assert first.obj.path == second.obj.path == (tmp_path / "real").resolve()
    assert first.obj.identity == second.obj.identity
    (tmp_path / "real").write_bytes(b"abd")
    assert map_file(tmp_path / "real").obj.identity != first.obj.identity


def test_gguf_in_a_folder(tmp_path: Path) -> None:
    make.write_gguf(tmp_path / "m.gguf")
    assert open_checkpoint(tmp_path).path == tmp_path / "m.gguf"
    make.write_gguf(tmp_path / "n.gguf")
    with pytest.raises(ModelFormatError, match=r"2 models \(m\.gguf, n\.gguf\)"):
        open_checkpoint(tmp_path)


def test_gguf_in_capitals(tmp_path: Path) -> None:
    make.write_gguf(tmp_path / "M.GGUF")
    assert open_checkpoint(tmp_path / "M.GGUF").format == "gguf"
    assert open_checkpoint(tmp_path).path == tmp_path / "M.GGUF"
    assert open_tokenizer(tmp_path).tokenizer is not None
    first, second = split(tmp_path, end="Gguf")
    assert len(open_checkpoint(first).tensors) == len(make.matrices("llama"))
    with pytest.raises(ModelFormatError, match=r"give m-00001-of-00002\.Gguf"):
        open_checkpoint(second)


def test_safetensors_win_over_gguf_unless_asked(tmp_path: Path) -> None:
    make.write_gguf(folder_with(tmp_path) / "m.gguf")
    assert open_checkpoint(tmp_path).format == "safetensors"
    assert open_checkpoint(tmp_path, load_format="gguf").format == "gguf"


def split(tmp_path: Path, *, count: int = 2, end: str = "gguf") -> list[Path]:
    """A tiny model over two files, as llama.cpp's splitter names and marks them."""
    tensors = list(make.random_tensors(make.matrices("llama")).items())
    paths = [tmp_path / f"m-{i + 1:05d}-of-00002.{end}" for i in range(2)]
    for i, path in enumerate(paths):
        writer = make.gguf_writer(path, "llama")
        writer.add_uint16("split.count", count)
        writer.add_uint16("split.no", i)
        writer.add_int32("split.tensors.count", len(tensors))
        make.finish(writer, dict(tensors[i::2]))
    return paths


def test_split_gguf(tmp_path: Path) -> None:
    first, second = split(tmp_path)
    assert len(open_checkpoint(first).tensors) == len(make.matrices("llama"))
    assert open_checkpoint(tmp_path).path == first
    with pytest.raises(ModelFormatError, match="m-00001-of-00002"):
        open_checkpoint(second)
    second.unlink()
    with pytest.raises(ModelFormatError, match=r"m-00002-of-00002\.gguf is missing"):
        open_checkpoint(first)


def test_split_gguf_that_contradicts_itself(tmp_path: Path) -> None:
    first, second = split(tmp_path, count=3)
    with pytest.raises(ModelFormatError, match="one of 3 parts"):
        open_checkpoint(first)
    first, second = split(tmp_path)
    second.write_bytes(first.read_bytes())
    with pytest.raises(ModelFormatError, match="in two parts"):
        open_checkpoint(first)


def test_folder_files(tmp_path: Path) -> None:
    folder_with(tmp_path, auto_map={"AutoModel": "evil.Model"}, eos_token_id=2)
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    (tmp_path / "generation_config.json").write_text('{"temperature": 0.7}')
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<s>", "chat_template": "T"}')
    (tmp_path / "special_tokens_map.json").write_text('{"bos_token": "<other>", "eos_token": "</s>"}')
    checkpoint = open_checkpoint(tmp_path, hf_overrides={"eos_token_id": 5})
    assert checkpoint.format == "safetensors"
    assert checkpoint.config["eos_token_id"] == 5
    assert checkpoint.generation_config == {"temperature": 0.7}
    assert isinstance(checkpoint.tokenizer, TokenizerFiles)
    assert checkpoint.tokenizer.path == tmp_path / "tokenizer.json"
    assert checkpoint.tokenizer.config == {"bos_token": "<s>", "eos_token": "</s>", "chat_template": "T"}
    assert checkpoint.chat_template == "T"
    assert checkpoint.total_bytes == sum(len(raw) for _, _, raw in make.small_safetensors().values())


def test_chat_templates(tmp_path: Path) -> None:
    folder_with(tmp_path)
    assert open_checkpoint(tmp_path).chat_template is None
    config = tmp_path / "tokenizer_config.json"
    named = [{"name": "tool_use", "template": "A"}, {"name": "default", "template": "B"}]
    config.write_text(json.dumps({"chat_template": named}))
    assert open_checkpoint(tmp_path).chat_template == "B"
    config.write_text(json.dumps({"chat_template": named[:1]}))
    assert open_checkpoint(tmp_path).chat_template is None
    config.write_text(json.dumps({"chat_template": 7}))
    with pytest.raises(ModelFormatError, match="chat_template"):
        open_checkpoint(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("C")
    assert open_checkpoint(tmp_path).chat_template == "C"


def test_chat_templates_for_tools(tmp_path: Path) -> None:
    folder_with(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    config = tmp_path / "tokenizer_config.json"

    def found() -> str | None:
        opened = open_checkpoint(tmp_path).tool_template
        assert opened == open_tokenizer(tmp_path).tool_template
        return opened

    assert found() is None
    config.write_text(json.dumps({"chat_template": "T"}))
    assert found() is None
    named = [7, {"name": "default", "template": "B"}, {"name": "tool_use", "template": "A"}]
    config.write_text(json.dumps({"chat_template": named}))
    assert found() == "A"
    config.write_text(json.dumps({"chat_template": named[:2]}))
    assert found() is None
    config.write_text(json.dumps({"chat_template": [{"name": "tool_use", "template": 7}]}))
    with pytest.raises(ModelFormatError, match="chat_template"):
        open_checkpoint(tmp_path)
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("D")
    assert found() == "D"


def test_gguf_chat_template_for_tools(tmp_path: Path) -> None:
    for name, value in (("none", None), ("text", "U"), ("wrong", 7)):
        writer = make.gguf_writer(tmp_path / f"{name}.gguf", "llama")
        if isinstance(value, str):
            writer.add_chat_template([{"name": "tool_use", "template": value}])
        elif value is not None:
            writer.add_uint32("tokenizer.chat_template.tool_use", value)
        make.finish(writer, make.random_tensors(make.matrices("llama")))
    assert open_checkpoint(tmp_path / "none.gguf").tool_template is None
    assert open_checkpoint(tmp_path / "text.gguf").tool_template == "U"
    with pytest.raises(ModelFormatError, match=r"tokenizer\.chat_template\.tool_use must be a string"):
        open_checkpoint(tmp_path / "wrong.gguf")


def test_sharded(tmp_path: Path) -> None:
    make.write_sharded(tmp_path)
    assert set(open_checkpoint(tmp_path).tensors) == {f"{p}.{n}" for p in "xy" for n in "abc"}
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelFormatError, match="model-00002-of-00002"):
        open_checkpoint(tmp_path)


def test_index_that_names_a_tensor_its_shard_lacks(tmp_path: Path) -> None:
    make.write_sharded(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(index.read_text().replace('"x.a"', '"x.z"'))
    with pytest.raises(ModelFormatError, match=r"x\.z"):
        open_checkpoint(tmp_path)


def test_buffers_that_the_index_names_are_passed_over(tmp_path: Path) -> None:
    make.write_sharded(tmp_path)
    before = set(open_checkpoint(tmp_path).tensors)
    name = "model-00003-of-00003.safetensors"
    buffers = {"x.position_ids": ("I64", (1, 4), bytes(32)), "x.mask": ("BOOL", (2,), bytes(2))}
    (tmp_path / name).write_bytes(make.safetensors_bytes(buffers))
    index = tmp_path / "model.safetensors.index.json"
    table = json.loads(index.read_text())
    table["weight_map"] |= dict.fromkeys(buffers, name)
    index.write_text(json.dumps(table))
    assert set(open_checkpoint(tmp_path).tensors) == before
    index.write_text(index.read_text().replace("x.mask", "x.other"))
    with pytest.raises(ModelFormatError, match=r"x\.other"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("pickled", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickled_weights_are_never_read(tmp_path: Path, pickled: str) -> None:
    make.write_config(tmp_path)
    canary = tmp_path / "canary"
    (tmp_path / pickled).write_bytes(b"cos\nsystem\n(S'touch %b'\ntR." % bytes(canary))
    with pytest.raises(ModelFormatError, match=rf"{pickled}.*safetensors"):
        open_checkpoint(tmp_path)
    assert not canary.exists()


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="does not exist"):
        open_checkpoint(tmp_path / "nowhere")
    with pytest.raises(ModelFormatError, match=r"no config\.json"):
        open_checkpoint(tmp_path)
    (tmp_path / "m.bin").write_bytes(b"x")
    with pytest.raises(ModelFormatError, match=r"not a \.gguf file"):
        open_checkpoint(tmp_path / "m.bin")
    (tmp_path / "m.gguf").write_bytes(b"")
    with pytest.raises(ModelFormatError, match=r"m\.gguf is empty"):
        open_checkpoint(tmp_path / "m.gguf")
    (tmp_path / "m.gguf").unlink()
    (tmp_path / "m.bin").unlink()
    make.write_config(tmp_path)
    with pytest.raises(ModelFormatError, match="no safetensors files"):
        open_checkpoint(tmp_path)
    for name in ("a.safetensors", "b.safetensors"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ModelFormatError, match=r"2 safetensors files and no model\.safetensors\.index\.json"):
        open_checkpoint(tmp_path)


def test_load_format_that_contradicts_the_files(tmp_path: Path) -> None:
    folder_with(tmp_path)
    with pytest.raises(ConfigError, match=r"holds no \.gguf"):
        open_checkpoint(tmp_path, load_format="gguf")
    with pytest.raises(ConfigError, match="load_format must be one of"):
        open_checkpoint(tmp_path, load_format="pickle")
    make.write_gguf(tmp_path / "m.gguf")
    with pytest.raises(ConfigError, match="is a GGUF file"):
        open_checkpoint(tmp_path / "m.gguf", load_format="safetensors")


def test_overrides_of_a_config_within_the_config(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, text_config={"hidden_size": 8, "rope_scaling": {"factor": 2}})
    changed = open_checkpoint(folder, hf_overrides={"text_config": {"rope_scaling": {"rope_type": "default"}}}).config
    assert changed["text_config"] == {"hidden_size": 8, "rope_scaling": {"rope_type": "default"}}
    assert open_checkpoint(folder, hf_overrides={"text_config": None}).config["text_config"] is None


@pytest.mark.parametrize("text", ["", "{", "[]", "1", '{"a": ' + "[" * 50_000 + "]" * 50_000 + "}", "\udcff"])
@pytest.mark.parametrize("file", ["config.json", "generation_config.json", "tokenizer_config.json"])
def test_damaged_json_names_the_file(tmp_path: Path, file: str, text: str) -> None:
    folder_with(tmp_path)
    (tmp_path / file).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ModelFormatError, match=file):
        open_checkpoint(tmp_path)


def test_quantization_config_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ModelFormatError, match="'bitsandbytes'"):
        open_checkpoint(folder_with(tmp_path, quantization_config={"quant_method": "bitsandbytes"}))


def test_dummy_needs_no_weights(tmp_path: Path) -> None:
    make.write_config(tmp_path / "folder", vocab_size=7)
    checkpoint = open_checkpoint(tmp_path / "folder", load_format="dummy")
    assert (checkpoint.format, checkpoint.tensors, checkpoint.config["vocab_size"]) == ("dummy", {}, 7)
    make.write_gguf(tmp_path / "m.gguf")
    checkpoint = open_checkpoint(tmp_path / "m.gguf", load_format="dummy")
    assert (checkpoint.format, checkpoint.tensors, checkpoint.config["vocab_size"]) == ("dummy", {}, make.VOCAB)


def test_without_weights(tmp_path: Path) -> None:
    make.write_config(tmp_path, vocab_size=7)
    alone = open_checkpoint(tmp_path, with_weights=False)
    assert (alone.tensors, alone.total_bytes, alone.config["vocab_size"]) == ({}, 0, 7)
    with pytest.raises(ModelFormatError, match="no safetensors"):
        open_checkpoint(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ModelFormatError, match="pickled"):
        open_checkpoint(tmp_path, with_weights=False)
    (tmp_path / "pytorch_model.bin").unlink()
    make.write_sharded(tmp_path)
    assert open_checkpoint(tmp_path, with_weights=False).total_bytes == 148
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    assert open_checkpoint(tmp_path, with_weights=False).total_bytes == 0
    make.write_config(tmp_path, quantization_config={"quant_method": "bitsandbytes"})
    with pytest.raises(ModelFormatError, match="'bitsandbytes'"):
        open_checkpoint(tmp_path, with_weights=False)


def test_a_header_has_no_rope_factors(tmp_path: Path) -> None:
    """They are a tensor, which may lie beyond what is here; a dummy leaves them out even where they are."""
    writer = make.gguf_writer(tmp_path / "m.gguf", "llama")
    tensors = make.random_tensors(make.matrices("llama"))
    make.finish(writer, {**tensors, "rope_freqs.weight": np.ones(make.HEAD_DIM // 2, np.float32)})
    assert open_checkpoint(tmp_path / "m.gguf").config["rope_freq_factors"] == [1.0] * 8
    assert "rope_freq_factors" not in open_checkpoint(tmp_path / "m.gguf", load_format="dummy").config


def test_a_tokenizer_without_a_model(tmp_path: Path) -> None:
    folder = tmp_path / "words"
    folder.mkdir()
    assert open_tokenizer(folder).tokenizer is None
    (folder / "tokenizer.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    opened = open_tokenizer(folder)
    assert isinstance(opened.tokenizer, TokenizerFiles)
    assert (opened.tokenizer.config, opened.config) == ({"eos_token": "</s>"}, {})
    make.write_gguf(tmp_path / "m.gguf")
    for path in (tmp_path / "m.gguf", tmp_path):
        assert isinstance(open_tokenizer(path).tokenizer, GgufTokenizer)
    with pytest.raises(ModelNotFoundError, match="does not exist"):
        open_tokenizer(tmp_path / "nowhere")


def test_dummy_weights() -> None:
    shapes = {"embed": (100, 64), "layers.0.pre_mixer": (64,), "layers.0.q_bias": (64,)}
    weights, same = DummyWeights(shapes, seed=1), DummyWeights(shapes, seed=1)
    other = DummyWeights(shapes, seed=2)
    assert {name: tensor.shape for name, tensor in weights.items()} == shapes
    assert weights["embed"].scheme.name == "BF16"
    values = dequantize(weights["embed"])
    assert abs(values.std() - 0.02) < 0.001
    assert abs(values.mean()) < 0.001
    assert bytes(weights["embed"].data) == bytes(same["embed"].data) != bytes(other["embed"].data)
    assert (dequantize(weights["layers.0.pre_mixer"]) == 1).all()
    assert (dequantize(weights["layers.0.q_bias"]) != 1).all()
    with pytest.raises(KeyError):
        weights["head"]


@pytest.mark.parametrize("name", ["model.safetensors", "m.gguf"])
def test_a_pointer_of_git_lfs_is_named_as_such(tmp_path: Path, name: str) -> None:
    make.write_config(tmp_path)
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 123\n")
    with pytest.raises(ModelFormatError, match=f"{name} is a pointer of Git LFS.*git lfs pull"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, "bfloat16"),
        ({"torch_dtype": None}, "bfloat16"),
        ({"dtype": "float16"}, "float16"),
        ({"text_config": {"torch_dtype": "float16"}}, None),
    ],
)
def test_a_config_without_a_dtype_has_that_of_the_weights(
    tmp_path: Path, keys: dict[str, Any], expected: str | None
) -> None:
    make.write_config(tmp_path, **keys)
    tensors = {"norm": ("F32", (4,), bytes(16)), "matrix": ("BF16", (4, 4), bytes(32))}
    (tmp_path / "model.safetensors").write_bytes(make.safetensors_bytes(tensors))
    assert open_checkpoint(tmp_path).config.get("dtype") == expected
    assert open_checkpoint(tmp_path, load_format="dummy").config.get("dtype") == keys.get("dtype")


def test_names_are_mapped_and_checked(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(folder_with(tmp_path))
    names = {"embed": "a", "final_norm": "b"}
    weights = map_names(checkpoint, names, {"embed": (3, 4), "final_norm": (5,)})
    assert {key: tensor.name for key, tensor in weights.items()} == names
    with pytest.raises(ModelFormatError, match=r"tensor a has the shape \[3, 4\], expected \[4, 3\]"):
        map_names(checkpoint, names, {"embed": (4, 3), "final_norm": (5,)})
    with pytest.raises(ModelFormatError, match=r"no tensor zz \(expected shape \[2\]"):
        map_names(checkpoint, {"head": "zz"}, {"head": (2,)})


def test_only_headers_are_read(tmp_path: Path) -> None:
    """A checkpoint of 4 GB (a hole on the disk) opens in a process that may take 1 GB of anonymous memory."""
    size = 4 << 30
    text = json.dumps({"w": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}).encode()
    make.write_config(tmp_path)
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + size)
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_DATA, (1 << 30, 1 << 30));"
        "from pathlib import Path; from octavo.weights.checkpoint import open_checkpoint;"
        "print(open_checkpoint(Path(sys.argv[1])).total_bytes, 'numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(size), "False"]


def test_a_gguf_without_the_ending_is_one_by_its_first_bytes(tmp_path: Path) -> None:
    blob = tmp_path / "sha256-aabbcc"
    make.write_gguf(blob)
    assert open_checkpoint(blob).format == "gguf"
    assert open_tokenizer(blob).tokenizer is not None
    with pytest.raises(ConfigError, match="load_format is safetensors"):
        open_checkpoint(blob, load_format="safetensors")
    (tmp_path / "notes.txt").write_text("GG")
    with pytest.raises(ModelFormatError, match=r"is not a \.gguf file"):
        open_checkpoint(tmp_path / "notes.txt")

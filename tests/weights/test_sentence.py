"""sentence-transformers' files: what they say, and what is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import encoders
import pytest
import torch

from octavo.base.errors import ModelFormatError, OctavoError, UnsupportedError
from octavo.weights.hub import choose
from octavo.weights.sentence import DenseModule, SentenceFiles, check_dense, read_dense, read_sentence_files

DENSE: dict[str, Any] = {"in_features": 4, "out_features": 3}


def layer() -> torch.nn.Sequential:
    return torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU())


def test_dense_layers(tmp_path: Path) -> None:
    encoders.write_sentence_files(tmp_path, mode="mean_tokens", normalize=False, dense=[layer()])
    found = read_sentence_files(tmp_path)
    assert found is not None
    assert found.dense == (DenseModule("2_Dense", 4, 3, True, "relu"),)
    assert {name: tensor.shape for name, tensor in read_dense(tmp_path, found.dense).items()} == {
        "dense.0": (3, 4),
        "dense.0_bias": (3,),
    }
    check_dense(found.dense, 4)
    with pytest.raises(ModelFormatError, match="in_features is 4, and what comes before it makes 5"):
        check_dense(found.dense, 5)
    with pytest.raises(ModelFormatError, match=r"linear.weight has the shape \[3, 4\], expected \[2, 4\]"):
        read_dense(tmp_path, [DenseModule("2_Dense", 4, 2, False, "relu")])
    (tmp_path / "2_Dense" / "model.safetensors").unlink()
    with pytest.raises(ModelFormatError, match=r"2_Dense/model.safetensors is missing"):
        read_dense(tmp_path, found.dense)


def test_a_whole_set(tmp_path: Path) -> None:
    assert read_sentence_files(tmp_path) is None
    encoders.write_sentence_files(tmp_path, mode="lasttoken", normalize=True, max_length=77)
    prompts = {"query": "query: ", "document": ""}
    assert read_sentence_files(tmp_path) == SentenceFiles("last", True, 77, prompts)
    encoders.write_sentence_files(tmp_path, mode="cls_token", normalize=False)
    found = read_sentence_files(tmp_path)
    assert found is not None
    assert (found.kind, found.normalize) == ("cls", False)
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode": "mean"}')
    found = read_sentence_files(tmp_path)
    assert found is not None
    assert found.kind == "mean"


@pytest.mark.parametrize(
    ("file", "content", "kind", "text"),
    [
        ("modules.json", "[", ModelFormatError, "not valid JSON"),
        ("modules.json", "{}", ModelFormatError, "list of objects"),
        ("modules.json", '[{"path": "../x", "type": "a.Pooling"}]', ModelFormatError, "leaves the model's folder"),
        ("modules.json", '[{"path": "2_Conv", "type": "a.CNN"}]', UnsupportedError, "'CNN'"),
        ("modules.json", '[{"path": "2_Dense", "type": "a.Dense"}]', UnsupportedError, "between Pooling"),
        ("2_Dense/config.json", "{}", ModelFormatError, "2_Dense/config.json: in_features"),
        ("2_Dense/config.json", DENSE | {"bias": 1}, ModelFormatError, "bias"),
        ("2_Dense/config.json", DENSE | {"activation_function": "x.Tanh"}, UnsupportedError, "x.Tanh"),
        ("2_Dense/config.json", DENSE | {"activation_function": "torch.nn.X"}, UnsupportedError, "torch.nn.X"),
        ("2_Dense/config.json", DENSE | {"module_input_name": "token_embeddings"}, UnsupportedError, "input_name"),
        ("2_Dense/config.json", DENSE | {"use_residual": True}, UnsupportedError, "use_residual"),
        ("1_Pooling/config.json", '{"pooling_mode_max_tokens": true}', UnsupportedError, "max_tokens"),
        ("1_Pooling/config.json", "{}", UnsupportedError, "nothing"),
        (
            "1_Pooling/config.json",
            '{"pooling_mode": "cls", "include_prompt": false}',
            UnsupportedError,
            "include_prompt",
        ),
        ("sentence_bert_config.json", '{"max_seq_length": 0}', ModelFormatError, "max_seq_length"),
        ("sentence_bert_config.json", '{"do_lower_case": "no"}', ModelFormatError, "do_lower_case"),
        ("config_sentence_transformers.json", '{"prompts": {"a": 1}}', ModelFormatError, "prompts"),
    ],
)
def test_what_is_refused(tmp_path: Path, file: str, content: Any, kind: type[OctavoError], text: str) -> None:
    encoders.write_sentence_files(tmp_path, mode="mean_tokens", normalize=True, dense=[layer()])
    (tmp_path / file).write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(kind, match=text):
        read_sentence_files(tmp_path)


def test_errors_name_the_file_that_was_read(tmp_path: Path) -> None:
    encoders.write_sentence_files(tmp_path, mode="mean_tokens", normalize=True)
    (tmp_path / "1_Pooling").rename(tmp_path / "pool")
    (tmp_path / "modules.json").write_text('[{"path": "pool", "type": "sentence_transformers.models.Pooling"}]')
    (tmp_path / "pool" / "config.json").write_text("{}")
    with pytest.raises(UnsupportedError, match=r"^pool/config\.json: pooling by nothing"):
        read_sentence_files(tmp_path)


def test_a_cross_encoders_modules(tmp_path: Path) -> None:
    modules: list[dict[str, Any]] = [{"path": "", "type": "sentence_transformers.models.Transformer"}]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    assert read_sentence_files(tmp_path) is None


def test_the_hub_sends_them() -> None:
    files = ["modules.json", "sentence_bert_config.json", "config_sentence_transformers.json", "1_Pooling/config.json"]
    files += ["2_Dense/config.json", "2_Dense/model.safetensors"]
    names = ["config.json", "model.safetensors", "onnx/model.onnx", "pytorch_model.bin", *files]
    assert set(choose("o/n", dict.fromkeys(names, 1), None)[0]) == {"config.json", "model.safetensors", *files}

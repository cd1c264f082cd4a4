"""Files that keep all experts of a layer in one tensor: GGUF and Transformers' fused form, read expert by expert."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
import weight_files as make
from safetensors.numpy import load_file, save_file

from octavo.base.errors import ModelFormatError, UnsupportedError
from octavo.base.types.tensor import SCHEMES, StoredTensor
from octavo.models.registry import build_spec, find_family
from octavo.models.spec import ModelSpec, MoE
from octavo.quant import dequantize
from octavo.weights.checkpoint import Checkpoint, open_checkpoint
from octavo.weights.experts import find_expert
from octavo.weights.gguf_config import gguf_config
from octavo.weights.names import map_names

ARCHS = {"llama": "mixtral", "qwen2moe": "qwen2_moe", "qwen3moe": "qwen3_moe"}


def weights_of(checkpoint: Checkpoint) -> tuple[ModelSpec, dict[str, StoredTensor]]:
    family = find_family(checkpoint.config)
    spec = family.spec(checkpoint.config)
    shapes = {name: parameter.shape for name, parameter in spec.parameters().items()}
    return spec, dict(map_names(checkpoint, family.names(spec), shapes))


@pytest.mark.parametrize("arch", ARCHS)
def test_gguf(tmp_path: Path, arch: str) -> None:
    """Every weight is found, each expert's its own, as views of the file."""
    tensors = make.write_experts_gguf(tmp_path / "m.gguf", arch)
    checkpoint = open_checkpoint(tmp_path / "m.gguf")
    spec, weights = weights_of(checkpoint)
    assert spec.family == ARCHS[arch]
    moe = spec.layers[1].ffn
    assert isinstance(moe, MoE)
    width = make.WIDTH if arch == "llama" else make.EXPERT_WIDTH
    assert (moe.experts, moe.top_k, moe.width) == (make.EXPERTS, make.TOP_K, width)
    assert moe.renormalize == (arch != "qwen2moe")
    assert moe.shared_width == (make.SHARED_WIDTH if arch == "qwen2moe" else None)
    stored = set()
    for name, tensor in weights.items():
        stored.add(tensor.name)
        whole = tensors[tensor.name]
        want = whole[int(name.split(".")[3])] if ".experts." in name else whole.reshape(tensor.shape)
        np.testing.assert_array_equal(dequantize(tensor), want)
    assert stored == set(tensors)


def test_transformers_fused_form(tmp_path: Path) -> None:
    """experts.gate_up_proj and experts.down_proj mean what one tensor for each expert means."""
    plain = checkpoints.make_checkpoint("qwen3_moe", tmp_path / "plain")
    stored = load_file(plain / "model.safetensors")
    (tmp_path / "fused").mkdir()
    fused = {name: array for name, array in stored.items() if ".experts." not in name}
    for prefix in {name.partition(".experts.")[0] for name in stored if ".experts." in name}:
        experts: dict[str, Any] = {
            part: np.stack([stored[f"{prefix}.experts.{e}.{part}.weight"] for e in range(5)])
            for part in ("gate_proj", "up_proj", "down_proj")
        }
        gate_up = np.concatenate((experts["gate_proj"], experts["up_proj"]), axis=1)
        fused |= {f"{prefix}.experts.gate_up_proj": gate_up, f"{prefix}.experts.down_proj": experts["down_proj"]}
    save_file(fused, tmp_path / "fused" / "model.safetensors")
    (tmp_path / "fused" / "config.json").write_bytes((plain / "config.json").read_bytes())
    _, ours = weights_of(open_checkpoint(tmp_path / "fused"))
    _, theirs = weights_of(open_checkpoint(plain))
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        np.testing.assert_array_equal(dequantize(ours[name]), dequantize(tensor))


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("m.experts.gate_proj.weight", (4, 3)),
        ("m.experts.gate_proj.weight", (2, 3, 4)),
        ("m.experts.gate_up_proj", (5, 3, 4)),
        ("m.experts.other.weight", (5, 3, 4)),
        ("m.gate_proj.weight", (5, 3, 4)),
    ],
)
def test_stacks_that_do_not_have_the_expert(name: str, shape: tuple[int, ...]) -> None:
    data = memoryview(bytes(4 * int(np.prod(shape))))
    assert find_expert({name: StoredTensor(name, SCHEMES["F32"], shape, data)}, "m.experts.2.gate_proj.weight") is None


def test_fewer_experts_than_the_config_says(tmp_path: Path) -> None:
    make.write_experts_gguf(tmp_path / "m.gguf", "qwen3moe")
    checkpoint = open_checkpoint(tmp_path / "m.gguf")
    checkpoint.config["num_experts"] = make.EXPERTS + 1
    with pytest.raises(ModelFormatError, match=r"mlp\.gate\.weight has the shape \[5, 64\], expected \[6, 64\]"):
        weights_of(checkpoint)
    checkpoint.tensors["model.layers.0.mlp.gate.weight"] = StoredTensor(
        "router", SCHEMES["F32"], (6, 64), memoryview(bytes(6 * 64 * 4))
    )
    with pytest.raises(ModelFormatError, match=r"no tensor model\.layers\.0\.mlp\.experts\.5\.gate_proj\.weight"):
        weights_of(checkpoint)


@pytest.mark.parametrize(
    ("arch", "change", "expected"),
    [
        ("qwen2", {}, "qwen2 with experts"),
        ("qwen3moe", {"qwen3moe.expert_gating_func": 2}, "expert_gating_func is 2"),
        ("qwen2moe", {"qwen2moe.expert_weights_scale": 2.5}, "expert_weights_scale is 2.5"),
    ],
)
def test_what_is_not_supported_is_named(arch: str, change: dict[str, Any], expected: str) -> None:
    numbers = {"block_count": 2, "embedding_length": 64, "feed_forward_length": 96, "context_length": 256}
    keys = {**numbers, "attention.head_count": 4, "expert_count": 8}
    metadata = {"general.architecture": arch, **{f"{arch}.{key}": value for key, value in keys.items()}, **change}
    embedding = StoredTensor("token_embd.weight", SCHEMES["F32"], (2, 4), memoryview(bytes(32)))
    with pytest.raises(UnsupportedError, match=expected):
        gguf_config(metadata, {"token_embd.weight": embedding})


def test_dense_files_say_that_they_have_no_experts() -> None:
    assert build_spec(checkpoints.CASES["llama"]().to_dict() | {"num_experts": 0}).family == "llama"

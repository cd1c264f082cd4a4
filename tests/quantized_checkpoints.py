"""Small quantized checkpoints: a plain model folder in; the same model quantized, and what its numbers are, out."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from octavo.base.types.tensor import PART_SCHEMES, SCHEMES, QuantizedTensor, StoredTensor
from octavo.weights.quantization import read_quantization
from octavo.weights.quantization.read import Quantization

LINEAR = re.compile(r"^(.+\.(?:q|k|v|o|gate|up|down)_proj)\.weight$")
Parts = dict[str, Tensor]
Quantizer = Callable[[Tensor], tuple[Parts, Tensor]]
"""A float32 matrix -> what stands in the file for `weight` by the last word of its name, and what that means."""


def to_e4m3(matrix: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Elements, and the matrix that they mean; scale broadcasts to it."""
    weight = (matrix / scale).to(torch.float8_e4m3fn)
    return weight, weight.float() * scale


def per_tensor(matrix: Tensor) -> tuple[Parts, Tensor]:
    scale = matrix.abs().max() / 448
    weight, means = to_e4m3(matrix, scale)
    return {"weight": weight, "weight_scale": scale.reshape(()), "input_scale": torch.tensor(0.5)}, means


def per_channel(matrix: Tensor) -> tuple[Parts, Tensor]:
    scale = (matrix.abs().amax(1, keepdim=True) / 448).bfloat16()
    weight, means = to_e4m3(matrix, scale.float())
    return {"weight": weight, "weight_scale": scale}, means


def blocks(name: str) -> Quantizer:
    def quantize(matrix: Tensor) -> tuple[Parts, Tensor]:
        out, width = matrix.shape
        padded = torch.zeros(-(-out // 128) * 128, -(-width // 128) * 128)
        padded[:out, :width] = matrix
        scale = padded.unflatten(0, (-1, 128)).unflatten(2, (-1, 128)).abs().amax((1, 3)) / 448
        spread = scale.repeat_interleave(128, 0)[:out].repeat_interleave(128, 1)[:, :width]
        weight, means = to_e4m3(matrix, spread)
        return {"weight": weight, name: scale}, means

    return quantize


KINDS = {
    torch.int8: "I8",
    torch.int32: "I32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
}


def as_found(config: dict[str, Any], parts: Parts, shape: tuple[int, ...]) -> QuantizedTensor:
    """The matrix of these parts, as a file that has them and this quantization_config is read."""
    tensors = {}
    for key, value in parts.items():
        if value.dtype in KINDS:
            scheme = {**SCHEMES, **PART_SCHEMES}[KINDS[value.dtype]]
            raw = memoryview(value.contiguous().view(torch.uint8).numpy().tobytes())
            tensors[f"m.{key}"] = StoredTensor(f"m.{key}", scheme, tuple(value.shape), raw)
    found = read(config).find(tensors, "m", shape)
    assert found is not None
    return found


def read(config: dict[str, Any]) -> Quantization:
    found = read_quantization({"quantization_config": config})
    assert found is not None
    return found


def compressed(strategy: str, **more: Any) -> dict[str, Any]:
    """quantization_config of compressed-tensors for FP8."""
    group = {
        "targets": ["Linear"],
        "weights": {"num_bits": 8, "type": "float", "symmetric": True, "strategy": strategy, "dynamic": False, **more},
        "input_activations": {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True},
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head", r"re:.*layers\.1\.mlp\.down_proj"],
        "kv_cache_scheme": None,
    }


class Int4(NamedTuple):
    """q: 0..15 [out, in], scale: float16 and zero [out, groups], index: the group of each column; and what it means."""

    q: Tensor
    scale: Tensor
    zero: Tensor
    index: Tensor
    means: Tensor


def to_int4(matrix: Tensor, group: int, *, symmetric: bool = True, shuffled: bool = False) -> Int4:
    """group: -1 for a row. shuffled: columns are dealt to the groups at random, as in order of activations."""
    width = matrix.shape[1]
    groups = 1 if group == -1 else width // group
    index = torch.arange(width) // (width // groups)
    if shuffled:
        index = index[torch.randperm(width, generator=torch.Generator().manual_seed(width))]
    largest, smallest = (
        torch.stack([pick(matrix[:, index == g], 1).values for g in range(groups)], 1)
        for pick in (torch.max, torch.min)
    )
    if symmetric:
        scale = (torch.maximum(largest, -smallest) / 7).half()
        zero = torch.full_like(scale, 8, dtype=torch.int64)
    else:
        scale = ((largest - smallest) / 15).half()
        zero = (-smallest / scale.float()).round().clamp(1, 15).long()
    spread = scale.float()[:, index]
    q = ((matrix / spread).round().long() + zero[:, index]).clamp(0, 15)
    return Int4(q, scale, zero, index.int(), (q - zero[:, index]) * spread)


def words(values: Tensor, order: tuple[int, ...] = tuple(range(8))) -> Tensor:
    """[rows, n] -> int32 [rows, n / 8], rounded up: the i-th nibble of a word is its element order[i]."""
    eight = torch.nn.functional.pad(values, (0, -values.shape[1] % 8)).unflatten(1, (-1, 8))
    word = sum(eight[:, :, at] << 4 * i for i, at in enumerate(order))
    return torch.where(word >= 1 << 31, word - (1 << 32), word).int()


def gptq(group: int, *, minus: int = 1, **more: Any) -> Quantizer:
    def quantize(matrix: Tensor) -> tuple[Parts, Tensor]:
        made = to_int4(matrix, group, **more)
        parts = {"qweight": words(made.q).T, "qzeros": words(made.zero.T - minus), "scales": made.scale.T}
        return {**parts, "g_idx": made.index}, made.means

    return quantize


def awq(group: int) -> Quantizer:
    def quantize(matrix: Tensor) -> tuple[Parts, Tensor]:
        made = to_int4(matrix, group, symmetric=False)
        order = (0, 2, 4, 6, 1, 3, 5, 7)
        parts = {"qweight": words(made.q.T, order), "qzeros": words(made.zero.T, order), "scales": made.scale.T}
        return parts, made.means

    return quantize


def packed(group: int, **more: Any) -> Quantizer:
    def quantize(matrix: Tensor) -> tuple[Parts, Tensor]:
        made = to_int4(matrix, group, **more)
        parts = {"weight_packed": words(made.q), "weight_scale": made.scale, "weight_shape": torch.tensor(matrix.shape)}
        if more.get("symmetric") is False:
            parts["weight_zero_point"] = words(made.zero.T).T
        if more.get("shuffled"):
            parts["weight_g_idx"] = made.index
        return parts, made.means

    return quantize


def integers(strategy: str, **more: Any) -> dict[str, Any]:
    """quantization_config of compressed-tensors for 4-bit integers."""
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": strategy, "group_size": None, **more}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }


GPTQ: dict[str, Any] = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True, "desc_act": False}
AWQ: dict[str, Any] = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}
INT4_FORMATS: dict[str, tuple[dict[str, Any], Quantizer]] = {
    "gptq": (GPTQ, gptq(32)),
    "gptq_row": ({**GPTQ, "group_size": -1, "sym": False}, gptq(-1, symmetric=False)),
    "gptq_shuffled": ({**GPTQ, "desc_act": True}, gptq(32, shuffled=True)),
    "gptq_v2": ({**GPTQ, "sym": False, "checkpoint_format": "gptq_v2"}, gptq(32, minus=0, symmetric=False)),
    "awq": (AWQ, awq(32)),
    "awq_64": ({**AWQ, "group_size": 64, "modules_to_not_convert": ["lm_head"]}, awq(64)),
    "packed_group": (integers("group", group_size=32), packed(32)),
    "packed_sharded": (integers("group", group_size=32), packed(32)),
    "packed_channel": (integers("channel"), packed(-1)),
    "packed_zeros": (
        integers("group", group_size=64, symmetric=False, actorder="group"), packed(64, symmetric=False, shuffled=True)
    ),
}  # fmt: skip
"""As FORMATS. Modules whose rows are no multiple of 32 long stay plain."""


def to_int8(matrix: Tensor, group: int) -> tuple[Tensor, Tensor, Tensor]:
    """group: -1 for a row. q: -127..127 [out, in], scale: float32 [out, groups], and what they mean."""
    out, width = matrix.shape
    groups = matrix.reshape(out, -1, width if group == -1 else group)
    scale = groups.abs().amax(2) / 127
    q = (groups / scale[:, :, None]).round()
    return q.reshape(out, width).to(torch.int8), scale, (q * scale[:, :, None]).reshape(out, width)


def bytes_in_words(q: Tensor) -> Tensor:
    """int8 [rows, n] -> int32 [rows, n / 4]: q + 128, from a word's lowest byte up."""
    four = (q.long() + 128).unflatten(1, (-1, 4))
    word = sum(four[:, :, at] << 8 * at for at in range(4))
    return torch.where(word >= 1 << 31, word - (1 << 32), word).int()


def int8_rows(kind: torch.dtype) -> Quantizer:
    def quantize(matrix: Tensor) -> tuple[Parts, Tensor]:
        q, scale, _ = to_int8(matrix, -1)
        return {"weight": q, "weight_scale": scale.to(kind)}, q.float() * scale.to(kind).float()

    return quantize


def int8_tensor(matrix: Tensor) -> tuple[Parts, Tensor]:
    q, scale, means = to_int8(matrix.reshape(1, -1), -1)
    return {"weight": q.reshape(matrix.shape), "weight_scale": scale.reshape(1)}, means.reshape(matrix.shape)


def int8_packed(group: int) -> Quantizer:
    def quantize(matrix: Tensor) -> tuple[Parts, Tensor]:
        q, scale, means = to_int8(matrix, group)
        shape = torch.tensor(matrix.shape)
        return {"weight_packed": bytes_in_words(q), "weight_scale": scale, "weight_shape": shape}, means

    return quantize


def int8_gptq(group: int, *, zero: int = 127) -> Quantizer:
    def quantize(matrix: Tensor) -> tuple[Parts, Tensor]:
        q, scale, _ = to_int8(matrix, group)
        scale = scale.half()
        groups = scale.shape[1]
        zeros = bytes_in_words(torch.full((groups, -(-len(q) // 4) * 4), zero - 128, dtype=torch.int8))
        index = torch.arange(q.shape[1]) // (q.shape[1] // groups)
        parts = {"qweight": bytes_in_words(q).T, "qzeros": zeros, "scales": scale.T, "g_idx": index.int()}
        return parts, q.float() * scale.float()[:, index]

    return quantize


def eight_bits(strategy: Any, **more: Any) -> dict[str, Any]:
    """quantization_config of compressed-tensors for 8-bit integers on both sides."""
    config = integers(strategy, **{"num_bits": 8, **more})
    config["config_groups"]["group_0"]["input_activations"] = {
        "num_bits": 8,
        "type": "int",
        "symmetric": True,
        "strategy": "token",
        "dynamic": True,
    }
    return {**config, "format": "int-quantized"}


INT8_FORMATS: dict[str, tuple[dict[str, Any], Quantizer]] = {
    "int8_channel": (eight_bits("channel"), int8_rows(torch.bfloat16)),
    "int8_tensor": (eight_bits("tensor"), int8_tensor),
    "int8_packed": (integers("channel", num_bits=8), int8_packed(-1)),
    "int8_gptq": ({**GPTQ, "bits": 8, "group_size": -1}, int8_gptq(-1)),
    "int8_gptq_v2": ({**GPTQ, "bits": 8, "group_size": -1, "checkpoint_format": "gptq_v2"}, int8_gptq(-1, zero=128)),
}
"""As INT4_FORMATS."""

WORDS = (*INT4_FORMATS, *INT8_FORMATS)
SHARDED = ("packed_sharded",)
"""Those that are written as two files and an index."""

FORMATS: dict[str, tuple[dict[str, Any], Quantizer]] = {
    "fp8_tensor": ({"quant_method": "fp8", "activation_scheme": "static"}, per_tensor),
    "fp8_block": (
        {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128], "fmt": "e4m3"},
        blocks("weight_scale_inv"),
    ),
    "fbgemm": ({"quant_method": "fbgemm_fp8", "modules_to_not_convert": ["lm_head"]}, per_channel),
    "modelopt": ({"quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["lm_head", "*.1.mlp.down*"]}, per_tensor),
    "compressed_tensor": (compressed("tensor"), per_tensor),
    "compressed_channel": (compressed("channel"), per_channel),
    "compressed_block": (compressed("block", block_structure=[128, 128]), blocks("weight_scale")),
}
"""Name -> quantization_config and how a matrix is written."""


def quantize_folder(plain: Path, name: str, folder: Path) -> tuple[Path, Path]:
    """(the model quantized as FORMATS[name] says, a plain model of the numbers that it holds), both inside folder.

    The last layer's down projection stays plain, as a module that is to be ignored.
    """
    config, quantizer = {**FORMATS, **INT4_FORMATS, **INT8_FORMATS}[name]
    stored, means = Parts(), Parts()
    for key, tensor in load_file(plain / "model.safetensors").items():
        match = LINEAR.match(key)
        if match is None or "layers.1.mlp.down_proj" in key or (name in WORDS and tensor.shape[1] % 32):
            stored[key] = means[key] = tensor
            continue
        parts, means[key] = quantizer(tensor.float())
        stored |= {f"{match[1]}.{part}": value.contiguous() for part, value in parts.items()}
    folders = folder / "quantized", folder / "plain"
    for target, tensors in zip(folders, (stored, means), strict=True):
        shutil.copytree(plain, target)
        save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    if name in SHARDED:
        shard(folders[0], stored)
    settings = json.loads((folders[0] / "config.json").read_text())
    (folders[0] / "config.json").write_text(json.dumps({**settings, "quantization_config": config}))
    return folders


def shard(folder: Path, tensors: Parts) -> None:
    """Two files and an index in place of model.safetensors, as Transformers writes large models."""
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))

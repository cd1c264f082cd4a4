"""Small quantized checkpoints: a plain model folder in; the same model quantized, and what its numbers are, out."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

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


FORMATS: dict[str, tuple[dict[str, Any], Quantizer]] = {
    "fp8_tensor": ({"quant_method": "fp8", "activation_scheme": "static"}, per_tensor),
    "fp8_block": (
        {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128], "fmt": "e4m3"},
        blocks("weight_scale_inv"),
    ),
    "compressed_tensor": (compressed("tensor"), per_tensor),
    "compressed_channel": (compressed("channel"), per_channel),
    "compressed_block": (compressed("block", block_structure=[128, 128]), blocks("weight_scale")),
}
"""Name -> quantization_config and how a matrix is written."""


def quantize_folder(plain: Path, name: str, folder: Path) -> tuple[Path, Path]:
    """(the model quantized as FORMATS[name] says, a plain model of the numbers that it holds), both inside folder.

    The last layer's down projection stays plain, as a module that is to be ignored.
    """
    config, quantizer = FORMATS[name]
    stored, means = Parts(), Parts()
    for key, tensor in load_file(plain / "model.safetensors").items():
        match = LINEAR.match(key)
        if match is None or "layers.1.mlp.down_proj" in key:
            stored[key] = means[key] = tensor
            continue
        parts, means[key] = quantizer(tensor.float())
        stored |= {f"{match[1]}.{part}": value.contiguous() for part, value in parts.items()}
    folders = folder / "quantized", folder / "plain"
    for target, tensors in zip(folders, (stored, means), strict=True):
        shutil.copytree(plain, target)
        save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    settings = json.loads((folders[0] / "config.json").read_text())
    (folders[0] / "config.json").write_text(json.dumps({**settings, "quantization_config": config}))
    return folders

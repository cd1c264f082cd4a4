"""FP8 checkpoints: `weight` in E4M3 beside `weight_scale` or `weight_scale_inv`, by both of which it is multiplied.

quant_method fp8 (Transformers, DeepSeek, Qwen, vLLM), fbgemm_fp8, modelopt, and float-quantized of compressed-tensors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from fnmatch import translate
from math import prod
from typing import Any

from octavo.base.types.tensor import MatrixScheme, QuantizedTensor
from octavo.weights.quantization.rules import SCALES, Rule, Tensors, bad, matcher, misshapen, names_of, part_of

LAYOUT = "fp8"
ELEMENTS = {LAYOUT: "F8_E4M3", "int8": "I8"}
"""Layout -> the type of a weight of one byte an element, which has its scale beside it."""


def fp8_rules(config: Mapping[str, Any]) -> list[Rule]:
    """quant_method fp8: one scheme for all that is not listed; a scale a block, or as many as are stored.

    Whether activations are dynamic changes nothing: they are rounded by token, which is finer than a static scale.
    """
    if config.get("activation_scheme", "dynamic") not in ("dynamic", "static"):
        raise bad("activation_scheme", config["activation_scheme"], "dynamic or static")
    if config.get("fmt", "e4m3") not in ("e4m3", "float8_e4m3fn"):
        raise bad("fmt", config["fmt"], "e4m3")
    block = config.get("weight_block_size")
    group = (0, 0) if block is None else _block(block)
    ignored = matcher(names_of(config, "modules_to_not_convert", "ignored_layers"), inside=True)
    return [Rule(lambda module: not ignored(module), MatrixScheme(LAYOUT, 8, group))]


def modelopt_rules(config: Mapping[str, Any]) -> list[Rule]:
    """quant_method modelopt (NVIDIA): one scheme for all that no pattern of a file's names matches."""
    keys = config.get("quantization") or config  # a file of its own has them one level below
    algorithm = keys.get("quant_algo") if isinstance(keys, dict) else keys
    if algorithm not in ("FP8", "FP8_PER_CHANNEL_PER_TOKEN"):
        raise bad("quant_algo", algorithm, "FP8 or FP8_PER_CHANNEL_PER_TOKEN")
    ignored = [re.compile(translate(name)) for name in names_of(keys, "exclude_modules", "ignore")]
    scheme = MatrixScheme(LAYOUT, 8, (0, 0))
    return [Rule(lambda module: not any(pattern.match(module) for pattern in ignored), scheme)]


def float_scheme(weights: Mapping[str, Any]) -> MatrixScheme:
    """`weights` of a group of compressed-tensors whose format is float-quantized."""
    if (weights.get("num_bits"), weights.get("type")) != (8, "float"):
        raise bad("weights", f"{weights.get('num_bits')} bits of {weights.get('type')}", "8 bits of float")
    strategy = weights.get("strategy")
    if strategy == "block":
        return MatrixScheme(LAYOUT, 8, _block(weights.get("block_structure")))
    groups = {"tensor": (0, 0), "channel": (1, 0)}
    if not isinstance(strategy, str) or strategy not in groups:
        raise bad("strategy", strategy, "tensor, channel or block")
    return MatrixScheme(LAYOUT, 8, groups[strategy])


def find_bytes(tensors: Tensors, module: str, scheme: MatrixScheme, shape: tuple[int, ...]) -> QuantizedTensor | None:
    """rules.Find. The scale gets the shape that scheme.scale_shape tells."""
    weight = tensors.get(f"{module}.weight")
    if weight is None or weight.scheme.name != ELEMENTS[scheme.layout]:
        return None
    if weight.shape != shape or len(shape) != 2:
        raise misshapen(weight, str(list(shape)))
    scale = part_of(tensors, module, "weight_scale", "weight_scale_inv")
    if scheme.group == (0, 0) and prod(scale.shape) > 1:
        scheme = replace(scheme, group=(1, 0))
    wanted = scheme.scale_shape(shape)
    flat = tuple(size for size in scale.shape if size != 1)
    if flat != tuple(size for size in wanted if size != 1) or scale.scheme.name not in SCALES:
        raise misshapen(scale, f"{list(wanted)} of {', '.join(SCALES)}")
    return QuantizedTensor(weight.name, scheme, shape, {"weight": weight, "scale": replace(scale, shape=wanted)})


def _block(value: Any) -> tuple[int, int]:
    if not isinstance(value, list | tuple) or tuple(value) != (128, 128):
        raise bad("weight_block_size", value, "[128, 128]")
    return 128, 128

"""FP8 checkpoints: `weight` in E4M3 beside `weight_scale` or `weight_scale_inv`, by both of which it is multiplied.

quant_method fp8 (Transformers, DeepSeek, Qwen, vLLM), and float-quantized of compressed-tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import prod
from typing import Any

from octavo.base.types.tensor import MatrixScheme, QuantizedTensor
from octavo.weights.quantization.rules import Rule, Tensors, bad, matcher, misshapen, names_of, part_of

LAYOUT = "fp8"
_SCALES = ("F32", "BF16", "F16")


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


def find_fp8(tensors: Tensors, module: str, scheme: MatrixScheme, shape: tuple[int, ...]) -> QuantizedTensor | None:
    """rules.Find. The scale gets the shape that scheme.scale_shape tells."""
    weight = tensors.get(f"{module}.weight")
    if weight is None or weight.scheme.name != "F8_E4M3":
        return None
    if weight.shape != shape or len(shape) != 2:
        raise misshapen(weight, str(list(shape)))
    scale = part_of(tensors, module, "weight_scale", "weight_scale_inv")
    if scheme.group == (0, 0) and prod(scale.shape) > 1:
        scheme = replace(scheme, group=(1, 0))
    wanted = scheme.scale_shape(shape)
    flat = tuple(size for size in scale.shape if size != 1)
    if flat != tuple(size for size in wanted if size != 1) or scale.scheme.name not in _SCALES:
        raise misshapen(scale, f"{list(wanted)} of {', '.join(_SCALES)}")
    return QuantizedTensor(weight.name, scheme, shape, {"weight": weight, "scale": replace(scale, shape=wanted)})


def _block(value: Any) -> tuple[int, int]:
    if not isinstance(value, list | tuple) or tuple(value) != (128, 128):
        raise bad("weight_block_size", value, "[128, 128]")
    return 128, 128

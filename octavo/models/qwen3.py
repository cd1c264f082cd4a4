"""Qwen3 (dense): Qwen2's layers with RMS norms on q and k, and biases on all of attention's products or on none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from octavo.models import qwen2
from octavo.models.config import Config
from octavo.models.names import decoder_names as names
from octavo.models.parts import read_heads, read_norm
from octavo.models.spec import ModelSpec

__all__ = ["names", "spec"]


def spec(config: Mapping[str, Any]) -> ModelSpec:
    """head_dim is 128 where it is not given, whatever hidden_size is; attention_bias biases q, k, v and o."""
    c = Config(config)
    norm, bias = read_norm(c), c.flag("attention_bias")
    base = qwen2.spec({**config, "head_dim": read_heads(c, kv_default=32, dim_default=128).head_dim})
    layers = tuple(
        replace(layer, mixer=replace(layer.mixer, qk_norm=norm, qkv_bias=bias, output_bias=bias))
        for layer in base.layers
    )
    return replace(base, family="qwen3", layers=layers)

"""Qwen1.5 and Qwen2 with experts (A2.7B, 57B-A14B): Qwen2's layers with a mixture of experts, one of them shared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from octavo.models import qwen2
from octavo.models.config import Config
from octavo.models.names import decoder_names as names
from octavo.models.parts import qwen_ffns, read_layer_types, read_moe
from octavo.models.spec import ModelSpec

__all__ = ["names", "spec"]


def spec(config: Mapping[str, Any]) -> ModelSpec:
    """With use_sliding_window every second layer below max_window_layers has a window, unless layer_types says more."""
    c = Config({"num_key_value_heads": 16, "intermediate_size": 5632, **config})
    first_full = c.integer("max_window_layers", default=28, lowest=0) if c.flag("use_sliding_window") else 0
    default = [
        "sliding_attention" if i % 2 == 0 and i < first_full else "full_attention"
        for i in range(c.integer("num_hidden_layers"))
    ]
    dense = qwen2.spec({**c.values, "layer_types": read_layer_types(c, default=default)})
    bias = c.flag("qkv_bias", default=True)
    layers = [replace(layer, mixer=replace(layer.mixer, qkv_bias=bias)) for layer in dense.layers]
    moe = read_moe(
        c,
        experts=c.integer("num_experts", default=60),
        top_k=c.integer("num_experts_per_tok", default=4),
        width=c.integer("moe_intermediate_size", default=1408),
        renormalize=c.flag("norm_topk_prob"),
        shared_width=c.integer("shared_expert_intermediate_size", default=5632),
    )
    return replace(dense, family="qwen2_moe", layers=qwen_ffns(c, layers, moe))

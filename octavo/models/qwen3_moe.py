"""Qwen3 with experts (30B-A3B, 235B-A22B ...): Qwen3's layers, most or all of them with a mixture of experts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from octavo.models import qwen3
from octavo.models.config import Config
from octavo.models.names import decoder_names as names
from octavo.models.parts import qwen_ffns, read_heads, read_moe
from octavo.models.spec import ModelSpec

__all__ = ["names", "spec"]


def spec(config: Mapping[str, Any]) -> ModelSpec:
    """use_sliding_window puts a window on every layer; num_local_experts wins over num_experts."""
    defaults = {"num_key_value_heads": 4, "intermediate_size": 6144}
    c = Config({**defaults, **config, "max_window_layers": 0, "layer_types": None})
    dense = qwen3.spec({**c.values, "head_dim": read_heads(c).head_dim})
    moe = read_moe(
        c,
        experts=c.integer("num_local_experts", default=c.integer("num_experts", default=128)),
        top_k=c.integer("num_experts_per_tok", default=8),
        width=c.integer("moe_intermediate_size", default=768),
        renormalize=c.flag("norm_topk_prob"),
    )
    return replace(dense, family="qwen3_moe", layers=qwen_ffns(c, dense.layers, moe))

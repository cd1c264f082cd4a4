"""Mistral: Llama's layers with a sliding window in every one, or in none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from octavo.base.errors import UnsupportedError
from octavo.models import llama
from octavo.models.config import Config
from octavo.models.names import decoder_names as names
from octavo.models.parts import read_causal, refuse_true
from octavo.models.spec import ModelSpec

__all__ = ["names", "spec"]


def spec(config: Mapping[str, Any]) -> ModelSpec:
    """sliding_window: tokens seen, null for all. A key that is missing has Transformers' default for Mistral."""
    defaults = {"num_key_value_heads": 8, "max_position_embeddings": 131_072, "sliding_window": 4096}
    c = Config({**defaults, **config})
    refuse_true(c, "attention_bias")
    refuse_true(c, "mlp_bias")
    if c.has("layer_types"):
        raise UnsupportedError("config.json: layer_types is not supported for mistral; remove it", param="layer_types")
    window = c.integer("sliding_window") if c.has("sliding_window") else None
    read_causal(c, window=window is not None)
    base = llama.spec(c.values)
    layer = replace(base.layers[0], mixer=replace(base.layers[0].mixer, window=window))
    return replace(base, family="mistral", layers=(layer,) * len(base.layers))

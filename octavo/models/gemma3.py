"""Gemma 3 as published with a vision tower: its text part only (text_config, language_model.*)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from octavo.models import gemma3_text
from octavo.models.config import Config
from octavo.models.names import decoder_names
from octavo.models.spec import ModelSpec

# Keys that hold for the whole model and stand beside text_config.
SHARED = ("dtype", "torch_dtype", "tie_word_embeddings", "norm_weight_offset")


def spec(config: Mapping[str, Any]) -> ModelSpec:
    """Raises ModelFormatError if there is no text_config."""
    c = Config(config)
    if not c.has("text_config"):
        raise c.wrong("text_config", "an object")
    shared = {key: config[key] for key in SHARED if c.has(key)}
    return replace(gemma3_text.spec({**c.section("text_config").values, **shared}), family="gemma3")


def names(spec: ModelSpec) -> dict[str, str]:
    """Internal name -> Hugging Face name."""
    return decoder_names(spec, layer=gemma3_text.LAYER_NAMES, prefix="language_model.")

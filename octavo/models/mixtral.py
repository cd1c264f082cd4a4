"""Mixtral: Mistral's layers with a mixture of experts in every one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from octavo.models import mistral
from octavo.models.config import Config
from octavo.models.names import LLAMA_LAYER, decoder_names
from octavo.models.parts import read_moe
from octavo.models.spec import ModelSpec

LAYER_NAMES: dict[str, str] = {
    **LLAMA_LAYER,
    "router": "block_sparse_moe.gate.weight",
    "experts.gate": "block_sparse_moe.experts.{expert}.w1.weight",
    "experts.up": "block_sparse_moe.experts.{expert}.w3.weight",
    "experts.down": "block_sparse_moe.experts.{expert}.w2.weight",
}


def spec(config: Mapping[str, Any]) -> ModelSpec:
    """The chosen experts' probabilities are always divided by their sum; sliding_window is null where not given.

    num_experts is another name for num_local_experts, and wins as in Transformers.
    """
    defaults = {"sliding_window": None, "rms_norm_eps": 1e-5, "rope_theta": 1e6, "intermediate_size": 14_336}
    c = Config({**defaults, **config})
    dense = mistral.spec(c.values)
    moe = read_moe(
        c,
        experts=c.integer("num_experts", default=c.integer("num_local_experts", default=8)),
        top_k=c.integer("num_experts_per_tok", default=2),
        width=c.integer("intermediate_size"),
        renormalize=True,
    )
    return replace(dense, family="mixtral", layers=tuple(replace(layer, ffn=moe) for layer in dense.layers))


def names(spec: ModelSpec) -> dict[str, str]:
    """Internal name -> Hugging Face name."""
    return decoder_names(spec, layer=LAYER_NAMES)

"""Qwen3 (dense): Llama's layers with RMS norms on q and k, and an optional window in the later layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from octavo.models.config import Config
from octavo.models.names import decoder_names as names
from octavo.models.parts import (
    build_decoder,
    qwen_layer_types,
    read_activation,
    read_causal,
    read_heads,
    read_norm,
)
from octavo.models.rope import rope
from octavo.models.spec import Attention, GatedMLP, Head, Layer, ModelSpec

__all__ = ["names", "spec"]


def spec(config: Mapping[str, Any]) -> ModelSpec:
    """head_dim is 128 where it is not given, whatever hidden_size is; attention_bias biases q, k, v and o."""
    c = Config(config)
    norm, heads = read_norm(c), read_heads(c, kv_default=32, dim_default=128)
    ffn = GatedMLP(c.integer("intermediate_size"), read_activation(c))
    bias = c.flag("attention_bias")

    def layer(kind: str) -> Layer:
        mixer = Attention(
            heads=heads.heads,
            kv_heads=heads.kv_heads,
            head_dim=heads.head_dim,
            scale=heads.head_dim**-0.5,
            rope=rope(c, head_dim=heads.head_dim, layer_type=kind),
            window=c.integer("sliding_window", default=4096) if kind == "sliding_attention" else None,
            qk_norm=norm,
            qkv_bias=bias,
            output_bias=bias,
            causal=read_causal(c, window=kind == "sliding_attention"),
        )
        return Layer(mixer, ffn, pre_mixer=norm, pre_ffn=norm)

    types = qwen_layer_types(c)
    by_type = {kind: layer(kind) for kind in sorted(set(types))}
    return build_decoder(
        c,
        family="qwen3",
        layers=[by_type[kind] for kind in types],
        norm=norm,
        head=Head(tied=c.flag("tie_word_embeddings")),
        default_position=32_768,
    )

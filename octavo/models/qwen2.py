"""Qwen2 and Qwen2.5: Llama's layers with biases on q, k and v, and an optional window in the later layers."""

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
    """use_sliding_window, sliding_window and max_window_layers (or layer_types) say which layers have a window."""
    c = Config(config)
    norm, heads = read_norm(c), read_heads(c, kv_default=32)
    ffn = GatedMLP(c.integer("intermediate_size"), read_activation(c))

    def layer(kind: str) -> Layer:
        mixer = Attention(
            heads=heads.heads,
            kv_heads=heads.kv_heads,
            head_dim=heads.head_dim,
            scale=heads.head_dim**-0.5,
            rope=rope(c, head_dim=heads.head_dim, layer_type=kind),
            window=c.integer("sliding_window", default=4096) if kind == "sliding_attention" else None,
            qkv_bias=True,
            causal=read_causal(c, window=kind == "sliding_attention"),
        )
        return Layer(mixer, ffn, pre_mixer=norm, pre_ffn=norm)

    types = qwen_layer_types(c)
    by_type = {kind: layer(kind) for kind in sorted(set(types))}
    return build_decoder(
        c,
        family="qwen2",
        layers=[by_type[kind] for kind in types],
        norm=norm,
        head=Head(tied=c.flag("tie_word_embeddings")),
        default_position=32_768,
    )

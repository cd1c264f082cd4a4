"""Llama 2 and 3.x and what copies them (SmolLM2 ...): config in, ModelSpec out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from octavo.models.config import Config
from octavo.models.names import decoder_names as names
from octavo.models.parts import build_decoder, read_activation, read_causal, read_heads, read_norm
from octavo.models.rope import rope
from octavo.models.spec import Attention, GatedMLP, Head, Layer, ModelSpec

__all__ = ["names", "spec"]


def spec(config: Mapping[str, Any]) -> ModelSpec:
    """Pre-norm layers of grouped-query attention and a gated MLP; attention_bias puts biases on q, k, v and o."""
    c = Config(config)
    norm, heads, bias = read_norm(c), read_heads(c), c.flag("attention_bias")
    layer = Layer(
        mixer=Attention(
            heads=heads.heads,
            kv_heads=heads.kv_heads,
            head_dim=heads.head_dim,
            scale=heads.head_dim**-0.5,
            rope=rope(c, head_dim=heads.head_dim),
            qkv_bias=bias,
            output_bias=bias,
            causal=read_causal(c),
        ),
        ffn=GatedMLP(c.integer("intermediate_size"), read_activation(c), bias=c.flag("mlp_bias")),
        pre_mixer=norm,
        pre_ffn=norm,
    )
    return build_decoder(
        c,
        family="llama",
        layers=(layer,) * c.integer("num_hidden_layers"),
        norm=norm,
        head=Head(tied=c.flag("tie_word_embeddings")),
        default_position=2048,
    )

"""Gemma 3's text decoder: sandwich norms, q and k norms, five window layers to each full one, a rope for each kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from octavo.base.errors import UnsupportedError
from octavo.models.config import Config
from octavo.models.names import LLAMA_LAYER, decoder_names
from octavo.models.parts import (
    build_decoder,
    read_activation,
    read_causal,
    read_heads,
    read_layer_types,
    read_norm,
)
from octavo.models.rope import rope
from octavo.models.spec import Attention, GatedMLP, Head, Layer, ModelSpec

# Published configs leave out every key that has Transformers' default value.
DEFAULTS: dict[str, Any] = {
    "vocab_size": 262_208,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "sliding_window": 4096,
    "tie_word_embeddings": True,
}
LAYER_NAMES = {
    **LLAMA_LAYER,
    "post_mixer": "post_attention_layernorm.weight",
    "pre_ffn": "pre_feedforward_layernorm.weight",
    "post_ffn": "post_feedforward_layernorm.weight",
}


def spec(config: Mapping[str, Any]) -> ModelSpec:
    """embedding_scale is sqrt(hidden_size); a backend rounds it to its arithmetic type, as Transformers does.

    norm_weight_offset is 1 (weights are stored minus one) unless the config says otherwise. With
    use_bidirectional_attention (EmbeddingGemma) half of sliding_window lies on each side of a token.
    """
    c = Config({**DEFAULTS, **config})
    read_causal(c, window=True)
    causal = not c.flag("use_bidirectional_attention")
    window = c.integer("sliding_window") if causal else c.integer("sliding_window") // 2 + 1
    norm, heads = read_norm(c, offset=1.0), read_heads(c)
    ffn = GatedMLP(c.integer("intermediate_size"), read_activation(c, "hidden_activation", default="gelu_pytorch_tanh"))
    bias = c.flag("attention_bias")
    softcap = c.number("attn_logit_softcapping") if c.has("attn_logit_softcapping") else None
    if not causal and softcap is not None:
        raise UnsupportedError(
            "config.json: attn_logit_softcapping is not supported with use_bidirectional_attention",
            param="attn_logit_softcapping",
        )

    def layer(kind: str) -> Layer:
        local = kind == "sliding_attention"
        key, theta = ("rope_local_base_freq", 10_000.0) if local else ("rope_theta", 1_000_000.0)
        mixer = Attention(
            heads=heads.heads,
            kv_heads=heads.kv_heads,
            head_dim=heads.head_dim,
            scale=c.number("query_pre_attn_scalar", default=256.0) ** -0.5,
            rope=rope(
                c, head_dim=heads.head_dim, layer_type=kind, theta_key=key, default_theta=theta, scaled=not local
            ),
            window=window if local else None,
            softcap=softcap,
            qk_norm=norm,
            qkv_bias=bias,
            output_bias=bias,
            causal=causal,
        )
        return Layer(mixer, ffn, pre_mixer=norm, pre_ffn=norm, post_mixer=norm, post_ffn=norm)

    count = c.integer("num_hidden_layers")
    every = c.integer("sliding_window_pattern", default=6)
    pattern = ["sliding_attention" if (i + 1) % every else "full_attention" for i in range(count)]
    types = read_layer_types(c, default=pattern)
    by_type = {kind: layer(kind) for kind in sorted(set(types))}
    final = "final_logit_softcapping"
    return build_decoder(
        c,
        family="gemma3_text",
        layers=[by_type[kind] for kind in types],
        norm=norm,
        head=Head(tied=c.flag("tie_word_embeddings"), softcap=c.number(final) if c.has(final) else None),
        default_position=131_072,
        embedding_scale=c.integer("hidden_size") ** 0.5,
    )


def names(spec: ModelSpec) -> dict[str, str]:
    """Internal name -> Hugging Face name."""
    return decoder_names(spec, layer=LAYER_NAMES)

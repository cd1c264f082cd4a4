"""What the family files share: keys that mean the same in every decoder's config, read into spec words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import get_args

from octavo.base.errors import UnsupportedError
from octavo.models.config import Config, show
from octavo.models.rope import LAYER_TYPES, max_position
from octavo.models.spec import Activation, Head, Layer, ModelSpec, MoE, RMSNorm

# Names of activations in Transformers' ACT2FN that are the same function under several names.
ACTIVATIONS: dict[str, Activation] = {
    "swish": "silu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    **{name: name for name in get_args(Activation)},
}
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Heads:
    """Query heads, key/value heads and the elements of one head."""

    heads: int
    kv_heads: int
    head_dim: int


def read_heads(config: Config, *, kv_default: int | None = None, dim_default: int | None = None) -> Heads:
    """num_attention_heads, num_key_value_heads, head_dim; the defaults are for keys that are missing altogether."""
    heads = config.integer("num_attention_heads")
    kv_missing = "num_key_value_heads" not in config.values and kv_default is not None
    kv_heads = config.integer("num_key_value_heads", default=kv_default if kv_missing else heads)
    if heads % kv_heads:
        raise config.wrong("num_key_value_heads", f"a divisor of num_attention_heads ({heads})")
    if not config.has("head_dim") and dim_default is None:
        hidden = config.integer("hidden_size")
        if hidden % heads:
            raise config.wrong(
                "num_attention_heads", f"a divisor of hidden_size ({hidden}) where head_dim is not given"
            )
        dim_default = hidden // heads
    return Heads(heads, kv_heads, config.integer("head_dim", default=dim_default))


def read_activation(config: Config, key: str = "hidden_act", *, default: str = "silu") -> Activation:
    """The feed-forward's activation; UnsupportedError names one that is not in the vocabulary."""
    name = config.text(key, default=default)
    if name not in ACTIVATIONS:
        known = ", ".join(sorted(ACTIVATIONS))
        raise UnsupportedError(f"config.json: {key} {show(name)} is not supported; supported are {known}", param=key)
    return ACTIVATIONS[name]


def read_layer_types(config: Config, *, default: Sequence[str]) -> list[str]:
    """layer_types, one of rope.LAYER_TYPES for each layer; `default` (one for each layer) where it is not given."""
    if not config.has("layer_types"):
        return list(default)
    types = config.texts("layer_types", length=len(default))
    for kind in types:
        if kind not in LAYER_TYPES:
            raise UnsupportedError(
                f"config.json: layer_types has {show(kind)}; supported are {', '.join(LAYER_TYPES)}",
                param="layer_types",
            )
    return types


def qwen_layer_types(config: Config) -> list[str]:
    """Qwen's rule: with use_sliding_window, layers from max_window_layers on have a window, the others none."""
    count = config.integer("num_hidden_layers")
    first = config.integer("max_window_layers", default=28, lowest=0)
    windows = config.flag("use_sliding_window") and config.values.get("sliding_window", 4096) is not None
    default = ["sliding_attention" if windows and i >= first else "full_attention" for i in range(count)]
    types = read_layer_types(config, default=default)
    if "sliding_attention" in types and not windows:
        raise config.wrong("use_sliding_window", "true, with a sliding_window, where layer_types has sliding_attention")
    return types


def read_moe(
    config: Config, *, experts: int, top_k: int, width: int, renormalize: bool, shared_width: int | None = None
) -> MoE:
    """MoE of these sizes, once it is sure that a token has as many experts to go through as it is to."""
    if top_k > experts:
        default = "" if config.has("num_experts_per_tok") else f", and is {top_k} where it is not given"
        raise config.wrong("num_experts_per_tok", f"at most the number of experts ({experts}){default}")
    return MoE(experts, top_k, width, read_activation(config), renormalize, shared_width)


def qwen_ffns(config: Config, dense: Sequence[Layer], moe: MoE) -> tuple[Layer, ...]:
    """Qwen's rule: every decoder_sparse_step-th layer is a mixture of experts, but for mlp_only_layers."""
    step, only = config.integer("decoder_sparse_step", default=1), set(config.integers("mlp_only_layers"))
    return tuple(
        replace(layer, ffn=moe) if i not in only and (i + 1) % step == 0 else layer for i, layer in enumerate(dense)
    )


def read_causal(config: Config, *, window: bool = False) -> bool:
    """is_causal, false in decoders that were taught to embed: a token sees all of its prompt.

    window: the layer has one, or something else that attention both ways has not: false is an UnsupportedError.
    """
    causal = config.flag("is_causal", default=True)
    if window and not causal:
        raise UnsupportedError(
            "config.json: is_causal false is not supported with sliding windows, nor for Gemma 3", param="is_causal"
        )
    return causal


def read_norm(config: Config, *, offset: float = 0.0) -> RMSNorm:
    """rms_norm_eps; norm_weight_offset says where a file format already added the offset to the weights (GGUF)."""
    return RMSNorm(
        eps=config.number("rms_norm_eps", default=1e-6, highest=1.0, above=False),
        offset=config.number("norm_weight_offset", default=offset, highest=1.0, above=False),
    )


def refuse_true(config: Config, key: str) -> None:
    """UnsupportedError if this flag is set: it would change the arithmetic in a way that the family does not have."""
    if config.flag(key):
        raise UnsupportedError(
            f"config.json: {key} true is not supported for model_type {show(config.values.get('model_type'))}",
            param=key,
        )


def build_decoder(
    config: Config,
    *,
    family: str,
    layers: Sequence[Layer],
    norm: RMSNorm,
    head: Head,
    default_position: int,
    embedding_scale: float = 1.0,
) -> ModelSpec:
    """The ModelSpec around the layers: vocabulary, sizes, context and element type from the config."""
    return ModelSpec(
        family=family,
        vocab_size=config.integer("vocab_size"),
        hidden_size=config.integer("hidden_size"),
        layers=tuple(layers),
        final_norm=norm,
        head=head,
        max_position=max_position(config, default=default_position),
        embedding_scale=embedding_scale,
        dtype=read_dtype(config),
    )


def read_dtype(config: Config) -> str:
    """The checkpoint's element type: dtype, or torch_dtype as older configs call it."""
    dtype = config.text("dtype", default=config.text("torch_dtype", default="float32")).removeprefix("torch.")
    if dtype not in DTYPES:
        raise UnsupportedError(
            f"config.json: dtype {show(dtype)} is not supported; supported are {', '.join(DTYPES)}", param="dtype"
        )
    return dtype

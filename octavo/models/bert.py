"""BERT and what is built like it (all-MiniLM, bge, e5, cross-encoders): config in, an encoder's ModelSpec out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from octavo.base.errors import UnsupportedError
from octavo.models.config import Config, show
from octavo.models.names import encoder_names
from octavo.models.parts import read_activation, read_dtype, read_heads
from octavo.models.pooling import encoder_pooling
from octavo.models.spec import MLP, Attention, Layer, LayerNorm, LearnedEmbedding, ModelSpec

__all__ = ["build_encoder", "names", "spec"]

CLASSIFIER = {
    "dense.0": "pooler.dense.weight",
    "dense.0_bias": "pooler.dense.bias",
    "classifier": "classifier.weight",
    "classifier_bias": "classifier.bias",
}


def spec(config: Mapping[str, Any]) -> ModelSpec:
    """Learned positions from 0, two token types, post-norm layers with biases everywhere."""
    return build_encoder(Config(config), family="bert", offset=0)


def names(spec: ModelSpec) -> dict[str, str]:
    """Names of BertModel's tensors under "bert.", and of BertForSequenceClassification's head."""
    outer = {**CLASSIFIER, **{name: f"bert.{CLASSIFIER[name]}" for name in ("dense.0", "dense.0_bias")}}
    return encoder_names(spec, prefix="bert.", outer=outer)


def build_encoder(c: Config, *, family: str, offset: int) -> ModelSpec:
    """offset: the row of the position table that the first token takes."""
    kind = c.text("position_embedding_type", default="absolute")
    if kind != "absolute" or c.flag("is_decoder"):
        key = "is_decoder" if kind == "absolute" else "position_embedding_type"
        raise UnsupportedError(
            f"config.json: {key} {show(c.values[key])} is not supported for model_type {family}", param=key
        )
    norm, heads = LayerNorm(c.number("layer_norm_eps", default=1e-12, highest=1.0)), read_heads(c)
    positions = c.integer("max_position_embeddings", default=512)
    if positions <= offset:
        raise c.wrong("max_position_embeddings", f"above {offset}, the rows before the first position")
    layer = Layer(
        mixer=Attention(
            heads=heads.heads,
            kv_heads=heads.kv_heads,
            head_dim=heads.head_dim,
            scale=heads.head_dim**-0.5,
            rope=None,
            qkv_bias=True,
            output_bias=True,
            causal=False,
        ),
        ffn=MLP(c.integer("intermediate_size"), read_activation(c, default="gelu"), bias=True),
        pre_mixer=None,
        pre_ffn=None,
        after_mixer=norm,
        after_ffn=norm,
    )
    return ModelSpec(
        family=family,
        vocab_size=c.integer("vocab_size"),
        hidden_size=c.integer("hidden_size"),
        layers=(layer,) * c.integer("num_hidden_layers"),
        final_norm=None,
        head=None,
        max_position=positions - offset,
        dtype=read_dtype(c),
        learned=LearnedEmbedding(positions, offset, c.integer("type_vocab_size", default=2), norm),
        pooling=encoder_pooling(c),
    )

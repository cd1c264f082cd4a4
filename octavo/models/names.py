"""Tensor names: a ModelSpec in, a table from internal names to those in a Hugging Face checkpoint out."""

from __future__ import annotations

from collections.abc import Mapping

from octavo.models.spec import ModelSpec

# Names of a layer's tensors under model.layers.{i}., as Llama and all that follow it call them.
LLAMA_LAYER: dict[str, str] = {
    "pre_mixer": "input_layernorm.weight",
    "q": "self_attn.q_proj.weight",
    "k": "self_attn.k_proj.weight",
    "v": "self_attn.v_proj.weight",
    "o": "self_attn.o_proj.weight",
    "q_bias": "self_attn.q_proj.bias",
    "k_bias": "self_attn.k_proj.bias",
    "v_bias": "self_attn.v_proj.bias",
    "o_bias": "self_attn.o_proj.bias",
    "q_norm": "self_attn.q_norm.weight",
    "k_norm": "self_attn.k_norm.weight",
    "pre_ffn": "post_attention_layernorm.weight",
    "gate": "mlp.gate_proj.weight",
    "up": "mlp.up_proj.weight",
    "down": "mlp.down_proj.weight",
    "gate_bias": "mlp.gate_proj.bias",
    "up_bias": "mlp.up_proj.bias",
    "down_bias": "mlp.down_proj.bias",
    "router": "mlp.gate.weight",
    "experts.gate": "mlp.experts.{expert}.gate_proj.weight",
    "experts.up": "mlp.experts.{expert}.up_proj.weight",
    "experts.down": "mlp.experts.{expert}.down_proj.weight",
    "shared.gate": "mlp.shared_expert.gate_proj.weight",
    "shared.up": "mlp.shared_expert.up_proj.weight",
    "shared.down": "mlp.shared_expert.down_proj.weight",
    "shared_router": "mlp.shared_expert_gate.weight",
}


def decoder_names(spec: ModelSpec, *, layer: Mapping[str, str] = LLAMA_LAYER, prefix: str = "") -> dict[str, str]:
    """Internal name -> Hugging Face name, for every name in spec.parameters().

    layer: names inside a layer, with {expert} where the number of an expert stands.  prefix: stands before the names
    where the decoder is a part of a larger model, but not before a classifier's, which is the whole model's.
    """
    outer = {"embed": "model.embed_tokens.weight", "final_norm": "model.norm.weight", "head": "lm_head.weight"}
    table = {}
    for name in spec.parameters():
        if name == "classifier":
            table[name] = "score.weight"
        elif name in outer:
            table[name] = prefix + outer[name]
        else:
            _, index, part = name.split(".", 2)
            expert = ""
            if part.startswith("experts."):
                kind, expert, matrix = part.split(".")
                part = f"{kind}.{matrix}"
            table[name] = f"{prefix}model.layers.{index}.{layer[part].format(expert=expert)}"
    return table


# Names of a layer's tensors under encoder.layer.{i}., as BERT has them; each has a .weight and a .bias.
BERT_LAYER: dict[str, str] = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "o": "attention.output.dense",
    "after_mixer": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "after_ffn": "output.LayerNorm",
}


def encoder_names(spec: ModelSpec, *, prefix: str, outer: Mapping[str, str]) -> dict[str, str]:
    """As decoder_names, for BERT's layers. outer: names of what comes after them."""
    table = {
        "embed": f"{prefix}embeddings.word_embeddings.weight",
        "positions": f"{prefix}embeddings.position_embeddings.weight",
        "token_types": f"{prefix}embeddings.token_type_embeddings.weight",
        "embed_norm": f"{prefix}embeddings.LayerNorm.weight",
        "embed_norm_bias": f"{prefix}embeddings.LayerNorm.bias",
        **outer,
    }
    for i in range(len(spec.layers)):
        for part, name in BERT_LAYER.items():
            for ours, theirs in ((part, "weight"), (f"{part}_bias", "bias")):
                table[f"layers.{i}.{ours}"] = f"{prefix}encoder.layer.{i}.{name}.{theirs}"
    return {name: table[name] for name in spec.parameters()}

"""GGUF metadata and tensor names in, Hugging Face's config keys and tensor names out.

Three keys are Octavo's own: rope_interleaved (llama.cpp's converter permutes the q and k rows of arch `llama`),
norm_weight_offset (its converter has already added Gemma's 1) and gguf_pooling, how a model that was made to embed
pools. rope_freq_factors holds rope_freqs.weight.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from octavo.base.errors import ModelFormatError, UnsupportedError
from octavo.base.types.tensor import StoredTensor
from octavo.weights.gguf import TensorInfo

# Key behind "{arch}." -> (config key, needed, type).
ARCH_KEYS: dict[str, tuple[str, bool, type]] = {
    "block_count": ("num_hidden_layers", True, int),
    "embedding_length": ("hidden_size", True, int),
    "feed_forward_length": ("intermediate_size", True, int),
    "context_length": ("max_position_embeddings", True, int),
    "attention.head_count": ("num_attention_heads", True, int),
    "attention.head_count_kv": ("num_key_value_heads", False, int),
    "attention.key_length": ("head_dim", False, int),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps", False, float),
    "attention.sliding_window": ("sliding_window", False, int),
    "attention.causal": ("is_causal", False, bool),
    "expert_count": ("num_experts", False, int),
    "expert_used_count": ("num_experts_per_tok", False, int),
    "expert_feed_forward_length": ("moe_intermediate_size", False, int),
    "expert_shared_feed_forward_length": ("shared_expert_intermediate_size", False, int),
    "rope.freq_base": ("rope_theta", False, float),
    "rope.freq_base_swa": ("rope_local_base_freq", False, float),
    "attn_logit_softcapping": ("attn_logit_softcapping", False, float),
    "final_logit_softcapping": ("final_logit_softcapping", False, float),
}
SCALING_KEYS: dict[str, tuple[str, bool, type]] = {
    "factor": ("factor", False, float),
    "original_context_length": ("original_max_position_embeddings", False, int),
    "attn_factor": ("attention_factor", False, float),
    "yarn_beta_fast": ("beta_fast", False, float),
    "yarn_beta_slow": ("beta_slow", False, float),
}
TOKEN_KEYS = {"bos_token_id": "bos_token_id", "padding_token_id": "pad_token_id", "unknown_token_id": "unk_token_id"}
END_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")
POOLINGS = {1: "mean", 2: "cls", 3: "last"}
"""llama.cpp's pooling types -> ours."""
SAMPLING_KEYS = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}

# GGUF tensor names without ".weight" or ".bias" -> Hugging Face's; the first table is for blk.{i}.
LAYER_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.gate_proj",
    "ffn_up_exps": "mlp.experts.up_proj",
    "ffn_down_exps": "mlp.experts.down_proj",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
}
MIXTRAL_TENSORS = {
    "ffn_gate_inp": "block_sparse_moe.gate",
    "ffn_gate_exps": "block_sparse_moe.experts.w1",
    "ffn_up_exps": "block_sparse_moe.experts.w3",
    "ffn_down_exps": "block_sparse_moe.experts.w2",
}
SANDWICH_TENSORS = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
OTHER_TENSORS = {
    **dict.fromkeys(("gemma2", "gemma3", "gemma3n", "gemma-embedding"), SANDWICH_TENSORS),
    "llama": MIXTRAL_TENSORS,
}
"""general.architecture -> names that differ from LAYER_TENSORS."""
OUTER_TENSORS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER = re.compile(r"^blk\.(\d{1,6})\.([a-z0-9_]+)\.(weight|bias)$")
_OUTER = re.compile(r"^([a-z0-9_]+)\.(weight|bias)$")


@dataclass(frozen=True)
class _Metadata:
    """Typed look-up: a missing key is None (or an error if needed), a wrong type always an error."""

    values: Mapping[str, Any]

    def get(self, key: str, kind: type, *, needed: bool = False) -> Any:
        value = self.values.get(key)
        if value is None:
            if needed:
                raise ModelFormatError(f"the GGUF file lacks the key {key}; convert the model again", param=key)
            return None
        if kind is int and isinstance(value, list) and value and all(v == value[0] for v in value):
            value = value[0]  # one number for each layer, all the same
        fits = isinstance(value, int | float) if kind is float else isinstance(value, kind)
        if not fits or (isinstance(value, bool) and kind is not bool):
            raise ModelFormatError(
                f"the GGUF file's {key} must be of type {kind.__name__}, got {str(value)[:40]}; convert it again",
                param=key,
            )
        return value

    def table(self, prefix: str, keys: Mapping[str, tuple[str, bool, type]]) -> dict[str, Any]:
        """The keys that are there, under their config names."""
        found = {name: self.get(prefix + key, kind, needed=needed) for key, (name, needed, kind) in keys.items()}
        return {name: value for name, value in found.items() if value is not None}


def gguf_config(metadata: Mapping[str, Any], tensors: Mapping[str, StoredTensor | TensorInfo]) -> dict[str, Any]:
    """A config.json for the file; `tensors` by GGUF name. Raises ModelFormatError for missing or mistyped keys.

    rope_freq_factors lies in a tensor's data, so it is left out where only the header was read (TensorInfo).
    """
    m = _Metadata(metadata)
    _check_kind(m)
    arch = m.get("general.architecture", str, needed=True)
    if arch in SAFETENSORS_ONLY:
        raise UnsupportedError(
            f"GGUF files of the architecture {arch} are not supported; take the model's safetensors", param="model"
        )
    config = m.table(f"{arch}.", ARCH_KEYS)
    config.update(
        model_type=arch,
        vocab_size=_vocab_size(tensors),
        tie_word_embeddings="output.weight" not in tensors,
        attention_bias="blk.0.attn_output.bias" in tensors,
        mlp_bias="blk.0.ffn_down.bias" in tensors,
        dtype=_dtype(tensors),
        **_rope(m, arch, tensors),
    )
    if pooling := POOLINGS.get(m.get(f"{arch}.pooling_type", int)):
        config["gguf_pooling"] = pooling
    config.update(_token_ids(m))
    if arch in FAMILIES:
        FAMILIES[arch](config, m)
    if config.get("num_experts"):
        _check_experts(config["model_type"], arch, m)
    return config


def _check_kind(m: _Metadata) -> None:
    """An error that says so for a file that goes with a model, and for a model that is no decoder."""
    kind, arch = m.get("general.type", str), m.get("general.architecture", str)
    kind = "mmproj" if arch == "clip" else kind
    if kind in COMPANIONS:
        raise UnsupportedError(f"the GGUF file is {COMPANIONS[kind]}", param="model")
    if arch and arch not in FAMILIES and f"{arch}.block_count" not in m.values:
        raise ModelFormatError(
            f"the GGUF file's architecture {arch[:40]!r} is not supported; supported are {', '.join(FAMILIES)}"
        )


def gguf_generation_config(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Token ids that end a text (eos, end of turn, end of message) and the sampling defaults that the file carries."""
    m = _Metadata(metadata)
    sampling = {name: m.get(f"general.sampling.{key}", float) for key, name in SAMPLING_KEYS.items()}
    return {**_token_ids(m), **{name: value for name, value in sampling.items() if value is not None}}


def hugging_face_name(name: str, arch: str) -> str:
    """The name that the tensor has in a Hugging Face checkpoint; names that are in no table stay."""
    if match := _LAYER.match(name):
        index, part, kind = match.groups()
        table = {**LAYER_TENSORS, **OTHER_TENSORS.get(arch, {})}
        return f"model.layers.{int(index)}.{table[part]}.{kind}" if part in table else name
    if (match := _OUTER.match(name)) and match[1] in OUTER_TENSORS:
        return f"{OUTER_TENSORS[match[1]]}.{match[2]}"
    return name


def _vocab_size(tensors: Mapping[str, StoredTensor | TensorInfo]) -> int:
    embedding = tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise ModelFormatError("the GGUF file has no matrix token_embd.weight; it is no language model")
    return embedding.shape[0]


def _dtype(tensors: Mapping[str, StoredTensor | TensorInfo]) -> str:
    """float32 or float16 where all matrices are; quantized files were nearly always made from bfloat16."""
    kinds = {tensor.scheme.name for tensor in tensors.values() if len(tensor.shape) > 1}
    return {"F32": "float32", "F16": "float16"}.get(kinds.pop(), "bfloat16") if len(kinds) == 1 else "bfloat16"


def _token_ids(m: _Metadata) -> dict[str, Any]:
    ids = {name: m.get(f"tokenizer.ggml.{key}", int) for key, name in TOKEN_KEYS.items()}
    ends = [m.get(f"tokenizer.ggml.{key}", int) for key in END_KEYS]
    result: dict[str, Any] = {name: value for name, value in ids.items() if value is not None}
    if any(end is not None for end in ends):
        result["eos_token_id"] = list(dict.fromkeys(end for end in ends if end is not None))
    return result


def _rope(m: _Metadata, arch: str, tensors: Mapping[str, StoredTensor | TensorInfo]) -> dict[str, Any]:
    """rope_scaling, rope_freq_factors and partial_rotary_factor, where the file has them."""
    scaling = _rope_scaling(m, arch)
    result: dict[str, Any] = {"rope_scaling": scaling} if scaling else {}
    factors = tensors.get("rope_freqs.weight")
    if isinstance(factors, StoredTensor):
        if factors.scheme.name != "F32" or len(factors.shape) != 1:
            raise ModelFormatError("the GGUF file's rope_freqs.weight must be a vector of F32; convert the model again")
        result["rope_freq_factors"] = factors.data.cast("f").tolist()
    rotated = m.get(f"{arch}.rope.dimension_count", int)
    whole = m.get(f"{arch}.attention.key_length", int)
    if whole is None:
        heads = m.get(f"{arch}.attention.head_count", int, needed=True)
        whole = m.get(f"{arch}.embedding_length", int, needed=True) // max(heads, 1)
    if rotated is not None and 0 < rotated < whole:
        result["partial_rotary_factor"] = rotated / whole
    return result


def _rope_scaling(m: _Metadata, arch: str) -> dict[str, Any]:
    """As llama.cpp reads it: linear where no type is told; no factor, or one of 0, scales nothing. {}: none."""
    kind = m.get(f"{arch}.rope.scaling.type", str) or "linear"
    scaling = m.table(f"{arch}.rope.scaling.", SCALING_KEYS)
    factor = scaling.get("factor", m.get(f"{arch}.rope.scale_linear", float))  # the second is the key's old name
    if kind == "none" or (kind in ("linear", "yarn") and not factor) or (kind == "linear" and factor == 1):
        return {}
    if factor is not None:
        scaling["factor"] = factor
    if kind == "yarn" and "attention_factor" in scaling:
        # llama.cpp multiplies yarn's own factor by this one, Hugging Face replaces it
        scaling["attention_factor"] *= 1 + 0.1 * math.log(max(factor, 1.0))
    return {"rope_type": kind, **scaling}


def _llama(config: dict[str, Any], m: _Metadata) -> None:
    config.update(hidden_act="silu", rope_interleaved=True)
    if config.get("num_experts"):
        config["model_type"] = "mixtral"


def _qwen(config: dict[str, Any], m: _Metadata) -> None:
    config["hidden_act"] = "silu"


def _qwen_moe(config: dict[str, Any], m: _Metadata) -> None:
    """llama.cpp divides by the sum of the chosen experts' probabilities in qwen3moe and not in qwen2moe."""
    arch = config["model_type"]
    config.update(
        model_type={"qwen2moe": "qwen2_moe", "qwen3moe": "qwen3_moe"}[arch],
        hidden_act="silu",
        norm_topk_prob=arch == "qwen3moe",
    )


def _check_experts(model_type: str, arch: str, m: _Metadata) -> None:
    """Only families that have experts, chosen by a softmax, with their output as it is."""
    if model_type not in ("mixtral", "qwen2_moe", "qwen3_moe"):
        raise UnsupportedError(f"the GGUF file is of {arch} with experts, which is not supported; take a dense model")
    for key, kind, usual in (("expert_gating_func", int, (0, 1)), ("expert_weights_scale", float, (0, 1))):
        value = m.get(f"{arch}.{key}", kind)
        if value is not None and value not in usual:
            raise UnsupportedError(f"the GGUF file's {arch}.{key} is {value}, which is not supported", param=key)


def _gemma3(config: dict[str, Any], m: _Metadata) -> None:
    """llama.cpp takes 1/sqrt(key_length) as the scale of q.k in all sizes but 27B, known by its 62 layers."""
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    head_dim = config.setdefault("head_dim", 256)
    config.setdefault("rope_local_base_freq", 10_000.0)
    config.setdefault("rope_theta", 1_000_000.0)
    config.setdefault("num_key_value_heads", heads)
    pattern = m.values.get(f"{config['model_type']}.attention.sliding_window_pattern", 6)
    if isinstance(pattern, list):
        config["layer_types"] = ["sliding_attention" if local else "full_attention" for local in pattern]
    else:
        config["sliding_window_pattern"] = pattern
    config.update(
        model_type="gemma3_text",
        hidden_activation="gelu_pytorch_tanh",
        query_pre_attn_scalar=hidden // max(heads, 1) if config["num_hidden_layers"] == 62 else head_dim,
        norm_weight_offset=0,
    )


def _gemma_embedding(config: dict[str, Any], m: _Metadata) -> None:
    """Tokens see both ways, whatever attention.causal says."""
    if m.values.get(key := "gemma-embedding.dense_2_feat_in") is not None:
        raise UnsupportedError(
            "layers behind the pooling (dense_2 ...) are not supported in GGUF files; take the model's safetensors",
            param=key,
        )
    config.pop("is_causal", None)
    _gemma3(config, m)
    config["use_bidirectional_attention"] = True


FAMILIES: dict[str, Callable[[dict[str, Any], _Metadata], None]] = {
    "llama": _llama,
    "qwen2": _qwen,
    "qwen3": _qwen,
    "qwen2moe": _qwen_moe,
    "qwen3moe": _qwen_moe,
    "gemma3": _gemma3,
    "gemma-embedding": _gemma_embedding,
}
"""general.architecture -> what its config has beyond the generic keys."""
COMPANIONS = {
    "adapter": "a LoRA adapter, which is not supported; give a model, or merge the two with llama-export-lora",
    "imatrix": "an importance matrix, with which models are quantized; give the model itself",
    "mmproj": "the part of a model that reads images or sound (mmproj); give the .gguf file of its text model",
}
"""general.type -> what such a file is."""
SAFETENSORS_ONLY = ("bert",)
"""Architectures with the name of a family that runs, whose keys and tensors have no names here."""

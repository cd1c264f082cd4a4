"""Damaged and hostile configs: a typed error that names the key, never another exception."""

from __future__ import annotations

import copy
import random
from typing import Any

import checkpoints
import pytest

from octavo.base.errors import ModelFormatError, UnsupportedError
from octavo.models.registry import build_spec
from octavo.models.spec import ModelSpec

NOTHING = object()
BAD_VALUES = (
    None,
    NOTHING,
    -1,
    0,
    0.5,
    10**9,
    10**400,
    float("nan"),
    float("inf"),
    "x",
    True,
    [],
    {},
    [None],
    {"a": 1},
)


def config_of(name: str) -> dict[str, Any]:
    return checkpoints.CASES[name]().to_dict()


def changed(name: str, **values: Any) -> dict[str, Any]:
    config = {**config_of(name), **values}
    return {key: value for key, value in config.items() if value is not NOTHING}


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("qwen3_moe", "num_local_experts", 0),
        ("qwen3_moe", "num_local_experts", 1025),
        ("qwen3_moe", "num_experts_per_tok", 6),
        ("qwen3_moe", "moe_intermediate_size", "48"),
        ("qwen3_moe", "norm_topk_prob", 1),
        ("qwen3_moe", "decoder_sparse_step", 0),
        ("qwen3_moe", "mlp_only_layers", [-1]),
        ("qwen3_moe", "mlp_only_layers", [True]),
        ("qwen3_moe", "mlp_only_layers", 1),
        ("qwen2_moe", "num_experts", -1),
        ("qwen2_moe", "shared_expert_intermediate_size", 0),
        ("qwen2_moe", "qkv_bias", "yes"),
        ("mixtral", "num_local_experts", 1.5),
        ("mixtral", "num_experts_per_tok", 7),
    ],
)
def test_experts(name: str, key: str, value: object) -> None:
    with pytest.raises(ModelFormatError, match=rf"config\.json: {key} must be") as caught:
        build_spec(changed(name, **{key: value}))
    assert caught.value.param == key


def test_fewer_experts_than_a_token_goes_through_by_default() -> None:
    with pytest.raises(ModelFormatError, match=r"number of experts \(5\), and is 8 where it is not given, got nothing"):
        build_spec(changed("qwen3_moe", num_local_experts=5, num_experts_per_tok=NOTHING))


@pytest.mark.parametrize("value", [NOTHING, None, -4, 0, 1.5, 10**9, "64", True, [64]])
@pytest.mark.parametrize("key", ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"])
@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2", "qwen3"])
def test_sizes(name: str, key: str, value: object) -> None:
    with pytest.raises(ModelFormatError, match=rf"config\.json: {key} must be an integer from 1 to \d+") as caught:
        build_spec(changed(name, **{key: value}))
    assert caught.value.param == key


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("llama", "num_attention_heads", 0),
        ("llama", "num_attention_heads", None),
        ("llama", "num_key_value_heads", 3),
        ("llama", "num_key_value_heads", "2"),
        ("llama", "head_dim", 10**6),
        ("llama", "rms_norm_eps", -1e-6),
        ("llama", "rms_norm_eps", float("nan")),
        ("llama", "rms_norm_eps", "1e-6"),
        ("llama", "max_position_embeddings", 0),
        ("llama", "tie_word_embeddings", "yes"),
        ("llama", "attention_bias", 1),
        ("llama", "hidden_act", 3),
        ("llama", "rope_interleaved", "true"),
        ("llama", "norm_weight_offset", "1"),
        ("mistral", "sliding_window", 0),
        ("mistral", "sliding_window", -8),
        ("qwen2_window", "layer_types", ["full_attention"]),
        ("qwen2_window", "layer_types", "full_attention"),
        ("qwen2_window", "use_sliding_window", False),
        ("qwen2_window", "sliding_window", 0),
        ("qwen2", "max_window_layers", -1),
        ("gemma3_text", "query_pre_attn_scalar", 0),
        ("gemma3_text", "final_logit_softcapping", -30.0),
        ("gemma3_text", "attn_logit_softcapping", "50"),
        ("gemma3", "text_config", None),
        ("gemma3", "text_config", []),
    ],
)
def test_wrong_values(name: str, key: str, value: object) -> None:
    with pytest.raises(ModelFormatError, match=rf"config\.json: (\w+\.)*{key} must be") as caught:
        build_spec(changed(name, **{key: value}))
    assert caught.value.param == key


def test_heads_that_do_not_divide_the_hidden_size() -> None:
    with pytest.raises(ModelFormatError, match="num_attention_heads must be a divisor of hidden_size"):
        build_spec(changed("llama", num_attention_heads=6, head_dim=None))


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("llama", "hidden_act", "relu2"),
        ("gemma3_text", "hidden_activation", "quick_gelu"),
        ("qwen3", "layer_types", ["chunked_attention", "full_attention"]),
        ("mistral", "layer_types", ["full_attention"] * 2),
        ("mistral", "attention_bias", True),
        ("gemma3_text", "is_causal", False),
        ("mistral", "is_causal", False),
        ("qwen2_window", "is_causal", False),
        ("llama", "dtype", "float64"),
        ("llama", "head_dim", 17),
    ],
)
def test_what_would_change_the_arithmetic_is_refused_by_name(name: str, key: str, value: object) -> None:
    with pytest.raises(UnsupportedError, match=key) as caught:
        build_spec(changed(name, **{key: value}))
    assert caught.value.param == key


def test_activations_and_optional_keys() -> None:
    assert build_spec(changed("llama", hidden_act="gelu_pytorch_tanh")).layers[0].ffn.act == "gelu_tanh"
    assert build_spec(changed("llama", hidden_act="gelu")).layers[0].ffn.act == "gelu"
    assert build_spec(changed("mistral", sliding_window=None)).layers[0].mixer.window is None
    assert build_spec(changed("mistral", sliding_window=NOTHING)).layers[0].mixer.window == 4096
    assert build_spec(changed("llama", num_key_value_heads=NOTHING)).layers[0].mixer.kv_heads == 4
    assert build_spec(changed("llama", head_dim=NOTHING)).layers[0].mixer.head_dim == 16
    assert build_spec(changed("qwen3", head_dim=NOTHING)).layers[0].mixer.head_dim == 128
    capped = build_spec(changed("gemma3_text", attn_logit_softcapping=50.0))
    assert {layer.mixer.softcap for layer in capped.layers} == {50.0}


@pytest.mark.parametrize("name", checkpoints.CASES)
def test_mutations_end_in_a_spec_or_a_typed_error(name: str) -> None:
    """Every key set to every bad value, then 100 configs with three such changes, inner objects included."""
    original = config_of(name)
    keys = sorted(_paths(original))
    changes = [[(key, value)] for key in keys for value in BAD_VALUES]
    rng = random.Random(7)
    changes += [[(rng.choice(keys), rng.choice(BAD_VALUES)) for _ in range(3)] for _ in range(100)]
    refused = 0
    for change in changes:
        config = copy.deepcopy(original)
        for path, value in change:
            _set(config, path, value)
        try:
            spec = build_spec(config)
        except (ModelFormatError, UnsupportedError):
            refused += 1
        else:
            assert isinstance(spec, ModelSpec)
    assert refused > len(keys)


def _paths(config: dict[str, Any], prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    paths = []
    for key, value in config.items():
        if key not in ("vision_config", "model_type"):
            paths += [(*prefix, key), *(_paths(value, (*prefix, key)) if isinstance(value, dict) else [])]
    return paths


def _set(config: dict[str, Any], path: tuple[str, ...], value: object) -> None:
    for key in path[:-1]:
        if not isinstance(config.get(key), dict):
            return
        config = config[key]
    if value is NOTHING:
        config.pop(path[-1], None)
    else:
        config[path[-1]] = value

"""Rotary frequencies of every kind against Transformers' ROPE_INIT_FUNCTIONS, in both config forms."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from octavo.base.errors import ModelFormatError, UnsupportedError
from octavo.models.config import Config
from octavo.models.rope import KINDS, max_position, rope
from octavo.models.spec import Rope

LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
ROPES: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "linear, partial": {"rope_type": "linear", "factor": 4.0, "partial_rotary_factor": 0.5},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "llama3": {"rope_type": "llama3", **LLAMA3},
    "llama3, 32": {"rope_type": "llama3", **LLAMA3, "factor": 32.0},
    "llama3, no original": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
    "yarn, factor 1": {"rope_type": "yarn", "factor": 1.0, "original_max_position_embeddings": 32768},
    "yarn, betas": {"rope_type": "yarn", "factor": 8.0, "beta_fast": 64, "beta_slow": 2.5, "attention_factor": 0.9},
    "yarn, mscale": {"rope_type": "yarn", "factor": 40.0, "mscale": 1.0, "mscale_all_dim": 0.7},
    "yarn, not truncated": {"rope_type": "yarn", "factor": 32.0, "truncate": False},
    "yarn, short": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    "yarn, narrow": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 2.0, "beta_slow": 2.0, "truncate": False},
}
SIZES = {"hidden_size": 2048, "num_attention_heads": 16, "max_position_embeddings": 131_072}


def build(config: dict[str, Any], head_dim: int = 128, **more: Any) -> Rope:
    return rope(Config(config), head_dim=head_dim, **more)


@pytest.mark.parametrize("name", ROPES)
@pytest.mark.parametrize("theta", [10_000.0, 500_000.0])
def test_equals_transformers(name: str, theta: float) -> None:
    keys = {**ROPES[name], "rope_theta": theta}
    config = LlamaConfig(**SIZES, rope_parameters=copy.deepcopy(keys))
    inv_freq, attention_factor = ROPE_INIT_FUNCTIONS[keys["rope_type"]](config)
    ours = build({**SIZES, "rope_parameters": keys})
    np.testing.assert_allclose(np.array(ours.inv_freq), inv_freq.numpy(), rtol=2e-6, atol=0)
    assert ours.attention_factor == pytest.approx(attention_factor, rel=1e-12)
    assert ours.dim == 2 * len(ours.inv_freq)
    scaling = {"type" if key == "rope_type" else key: value for key, value in ROPES[name].items()}
    assert build({**SIZES, "rope_theta": theta, "rope_scaling": scaling}) == ours


def test_default_by_hand() -> None:
    ours = build({}, head_dim=8)
    assert ours == Rope(8, (1.0, 10_000**-0.25, 10_000**-0.5, 10_000**-0.75))
    assert build({"rope_theta": 1e6}, head_dim=4).inv_freq == (1.0, 1e6**-0.5)
    assert build(
        {"rope_scaling": None, "rope_parameters": {"rope_type": "default", "rope_theta": 100}}, 4
    ).inv_freq == (
        1.0,
        0.1,
    )
    assert {name.partition(",")[0] for name in ROPES} | {"default"} == set(KINDS), "every kind is listed above"


def test_partial_rotation_turns_the_first_share_only() -> None:
    assert build({"partial_rotary_factor": 0.25}, head_dim=32) == build({}, head_dim=8)
    assert build({"partial_rotary_factor": 58 / 100}, head_dim=100).dim == 58  # 57.99... in floating point
    with pytest.raises(UnsupportedError, match="leaves 3 elements"):
        build({"partial_rotary_factor": 0.1}, head_dim=32)


def test_dynamic_is_default_and_its_context_stays_the_original() -> None:
    config = {"max_position_embeddings": 2048, "rope_scaling": {"type": "dynamic", "factor": 4.0}}
    assert build(config) == build({})
    assert max_position(Config(config), default=1) == 2048


def test_yarn_extends_a_context_that_was_left_as_it_was() -> None:
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768}
    assert max_position(Config({"max_position_embeddings": 32_768, "rope_scaling": yarn}), default=1) == 131_072
    assert max_position(Config({"max_position_embeddings": 131_072, "rope_scaling": yarn}), default=1) == 131_072
    linear = {"type": "linear", "factor": 8.0}
    assert max_position(Config({"max_position_embeddings": 4096, "rope_scaling": linear}), default=1) == 4096


def test_parameters_of_each_layer_type() -> None:
    nested = {
        "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
        "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10_000.0},
    }
    config = {"rope_parameters": nested}
    assert build(config, 4, layer_type="sliding_attention").inv_freq == (1.0, 0.1)
    assert build(config, 4, layer_type="full_attention").inv_freq == (0.5, 0.005)


def test_scaling_beside_new_parameters_leaves_their_theta() -> None:
    """hf_overrides may put rope_scaling into a config of the new form."""
    linear = {"rope_type": "linear", "factor": 2.0}
    flat = {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}, "rope_scaling": linear}
    assert build(flat, 4, default_theta=5.0).inv_freq == (0.5, 0.005)
    assert build({**flat, "rope_scaling": {**linear, "rope_theta": 100.0}}, 4).inv_freq == (0.5, 0.05)
    nested = {"sliding_attention": {"rope_theta": 100.0}, "full_attention": {"rope_theta": 10_000.0}}
    both = {"rope_parameters": nested, "rope_scaling": linear}
    assert build(both, 4, layer_type="sliding_attention", scaled=False).inv_freq == (1.0, 0.1)
    assert build(both, 4, layer_type="full_attention").inv_freq == (0.5, 0.005)


@pytest.mark.parametrize("kind", ["llama3", "yarn"])
def test_max_position_embeddings_is_not_asked_for_where_the_original_is_told(kind: str) -> None:
    scaling = {**ROPES[kind], "original_max_position_embeddings": 64}
    assert build({"rope_scaling": scaling}) == build({**SIZES, "rope_scaling": scaling})
    with pytest.raises(ModelFormatError, match="max_position_embeddings must be"):
        build({"rope_scaling": {**scaling, "original_max_position_embeddings": None}})


def test_freq_factors_divide_and_must_fit() -> None:
    assert build({"rope_freq_factors": [2.0, 4.0]}, 4).inv_freq == (0.5, 0.0025)
    for bad in ([1.0], [1.0, 0.0], [1.0, float("nan")], "ab", [1.0, "2"]):
        with pytest.raises(ModelFormatError, match="rope_freq_factors"):
            build({"rope_freq_factors": bad}, 4)


@pytest.mark.parametrize("kind", ["longrope", "su", "mrope", "proportional", "spiral"])
@pytest.mark.parametrize("form", ["rope_scaling", "rope_parameters"])
def test_unknown_kinds_are_refused_by_name(kind: str, form: str) -> None:
    with pytest.raises(UnsupportedError, match=rf"{form}\.rope_type '{kind}' is not supported.*llama3") as caught:
        build({form: {"rope_type": kind, "factor": 2.0}})
    assert caught.value.param == "rope_type"


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"rope_type": "linear"}, "rope_scaling.factor"),
        ({"rope_type": "linear", "factor": 0}, "rope_scaling.factor"),
        ({"rope_type": "dynamic", "factor": "4"}, "rope_scaling.factor"),
        ({"rope_type": "llama3", "factor": 8.0, "high_freq_factor": 4.0}, "rope_scaling.low_freq_factor"),
        ({"rope_type": "llama3", **LLAMA3, "high_freq_factor": 0.5}, "rope_scaling.high_freq_factor"),
        ({"rope_type": "yarn", "factor": 4.0, "beta_fast": -1}, "rope_scaling.beta_fast"),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 0}, "original_max_position"),
        ({"rope_type": 7}, "rope_scaling.rope_type"),
        ({"rope_theta": 1.0}, "rope_scaling.rope_theta"),
        ({"rope_theta": float("inf")}, "rope_scaling.rope_theta"),
        ({"partial_rotary_factor": 1.5}, "rope_scaling.partial_rotary_factor"),
        ("linear", "rope_scaling"),
        ({"full_attention": 3}, "rope_scaling.full_attention"),
    ],
)
def test_wrong_values_name_the_key(keys: Any, named: str) -> None:
    with pytest.raises(ModelFormatError, match=named):
        build({**SIZES, "rope_scaling": keys})

"""Engine options by name: vLLM's own are taken, its neutral ones passed, the rest refused by name."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from octavo.api.arguments import FOREIGN, OPTION_NAMES, engine_config
from octavo.base.config.config import EngineConfig, ModelConfig
from octavo.base.errors import ConfigError, UnsupportedError


def test_options_land_in_their_parts() -> None:
    config = engine_config(
        "m", {"dtype": "float32", "seed": 3, "max_num_seqs": 7, "block_size": 32, "device": "cpu", "max_model_len": 9}
    )
    assert (config.model.model, config.model.dtype, config.model.seed, config.model.max_model_len) == (
        "m",
        "float32",
        3,
        9,
    )
    assert (config.scheduler.max_num_seqs, config.cache.block_size, config.device.device) == (7, 32, "cpu")
    assert engine_config(config, {}) is config


def test_paths_may_be_pathlibs() -> None:
    model = engine_config(Path("a") / "m.gguf", {"tokenizer": Path("t"), "download_dir": Path("d")}).model
    assert (model.model, model.tokenizer, model.download_dir) == (str(Path("a") / "m.gguf"), "t", "d")


@pytest.mark.parametrize(
    "given",
    [
        {"tensor_parallel_size": 1},
        {"pipeline_parallel_size": 1},
        {"trust_remote_code": False},
        {"quantization": None},
        {"cpu_offload_gb": 0},
        {"cpu_offload_gb": 0.0},
        {"tokenizer_mode": "auto"},
        {"speculative_config": None},
        {"enable_lora": False},
        {"disable_log_stats": True},
        {"enable_sleep_mode": True},
    ],
)
def test_vllms_neutral_values_pass_in_silence(given: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "octavo"):
        engine_config("m", given)
    assert not caplog.records


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tensor_parallel_size", 2),
        ("tensor_parallel_size", True),
        ("pipeline_parallel_size", 2),
        ("trust_remote_code", True),
        ("cpu_offload_gb", 4),
        ("speculative_config", {"method": "ngram"}),
        ("enable_lora", True),
        ("logits_processors", ["x"]),
    ],
)
def test_what_is_not_supported_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(UnsupportedError) as caught:
        engine_config("m", {name: value})
    assert caught.value.param == name
    assert name in caught.value.message
    assert repr(value) in caught.value.message


def test_harmless_options_warn(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "octavo"):
        engine_config("m", {"compilation_config": 3, "swap_space": 4})
    assert [record.getMessage().split("=")[0] for record in caplog.records] == ["compilation_config", "swap_space"]


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("max_modle_len", 5, "did you mean max_model_len"),
        ("context_length", 5, "did you mean max_model_len"),
        ("gpu_memory", 5, "did you mean gpu_memory_utilization"),
        ("colour", 5, "unknown option 'colour'"),
        ("max_num_seqs", 0, ">= 1"),
        ("max_num_seqs", "8", "int"),
        ("max_num_seqs", True, "int"),
        ("dtype", "float8", "auto, bfloat16, float16, float32"),
        ("kv_cache_dtype", "fp8_e5m2", "bfloat16, float16, float32, fp8, fp8_e4m3, int8_per_token_head"),
        ("block_size", 17, "8, 16, 32, 64, 128"),
        ("gpu_memory_utilization", float("nan"), "float"),
        ("gpu_memory_utilization", 1.5, "<= 1"),
        ("hf_overrides", [], "object"),
        ("max_model_len", -2, ">= -1"),
        ("reasoning_parser", "nope", "known are apertus, "),
    ],
)
def test_mistakes_name_option_and_remedy(name: str, value: Any, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        engine_config("m", {name: value})
    assert caught.value.param == name
    assert name in caught.value.message
    assert words in caught.value.message


def test_none_is_an_options_default(caplog: pytest.LogCaptureFixture) -> None:
    given = dict.fromkeys((*OPTION_NAMES, *FOREIGN))
    del given["model"]
    assert engine_config("x", given) == engine_config("x", {})
    assert not caplog.records
    with pytest.raises(ConfigError, match="unknown option"):
        engine_config("x", {"max_modellen": None})


@pytest.mark.parametrize(("name", "dtype"), [("half", "float16"), ("float", "float32"), ("bfloat16", "bfloat16")])
def test_dtypes_have_vllms_further_names(name: str, dtype: str) -> None:
    assert engine_config("x", {"dtype": name}).model.dtype == dtype


@pytest.mark.parametrize("method", ["awq", "gptq"])
def test_quantizations_have_vllms_further_names(method: str) -> None:
    assert engine_config("x", {"quantization": f"{method}_marlin"}).model.quantization == method


def test_no_option_is_both_ours_and_foreign() -> None:
    assert not set(OPTION_NAMES) & set(FOREIGN)
    assert len(set(OPTION_NAMES)) == len(OPTION_NAMES)


def test_a_whole_config_takes_no_options_beside_it() -> None:
    with pytest.raises(ConfigError, match="seed"):
        engine_config(engine_config("m", {}), {"seed": 1})


def test_a_whole_configs_reasoning_parser_is_known_too() -> None:
    config = EngineConfig(model=ModelConfig(model="m", reasoning_parser="nope"))
    with pytest.raises(ConfigError, match="reasoning_parser='nope' is not known; known are "):
        engine_config(config, {})

"""resolve: an EngineConfig without gaps, or an error that says which two numbers contradict each other."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from octavo.base.config.config import EngineConfig
from octavo.base.config.resolve import from_options, resolve
from octavo.base.errors import ConfigError


def resolved(max_position: int = 512, **given: Any) -> EngineConfig:
    return resolve(from_options({"model": "m", **given}), max_position=max_position)


def test_defaults() -> None:
    config = resolved()
    assert config.model.max_model_len == 512
    assert config.scheduler.max_num_batched_tokens == 512
    assert config.scheduler.max_num_mixed_tokens == 256
    assert config.scheduler.max_num_queued_reqs == 256
    assert resolved(max_num_seqs=100).scheduler.max_num_queued_reqs == 400
    assert resolved(max_num_seqs=4000).scheduler.max_num_batched_tokens == 4000
    whole = resolved(9000, enable_chunked_prefill=False).scheduler
    assert (whole.max_num_batched_tokens, whole.max_num_mixed_tokens) == (9000, 9000)
    assert resolved(max_num_mixed_tokens=9000).scheduler.max_num_mixed_tokens == 512


@pytest.mark.parametrize(
    ("given", "batched", "mixed"),
    [
        ({}, 8192, 704),
        ({"max_num_seqs": 256}, 8192, 896),
        ({"max_num_batched_tokens": 500}, 500, 500),
        ({"max_num_mixed_tokens": 2000}, 8192, 2000),
        ({"enable_chunked_prefill": False}, 8192, 8192),
    ],
)
def test_defaults_on_a_gpu(given: dict[str, Any], batched: int, mixed: int) -> None:
    config = resolve(from_options({"model": "m", **given}), max_position=512, on_gpu=True).scheduler
    assert (config.max_num_batched_tokens, config.max_num_mixed_tokens) == (batched, mixed)


@pytest.mark.parametrize(
    ("given", "own", "on_gpu", "expected"),
    [
        (None, None, False, 16),
        (None, None, True, 64),
        (None, 128, True, 128),
        (32, 128, True, 32),
    ],
)
def test_block_size(given: int | None, own: int | None, on_gpu: bool, expected: int) -> None:
    config = from_options({"model": "m", "block_size": given})
    made = resolve(config, max_position=512, on_gpu=on_gpu, block_size=own)
    assert made.cache.block_size == expected


def test_what_is_given_stays() -> None:
    config = resolved(max_model_len=9, max_num_batched_tokens=64, max_num_queued_reqs=0)
    assert (config.model.max_model_len, config.scheduler.max_num_batched_tokens) == (9, 64)
    assert config.scheduler.max_num_queued_reqs == 0
    assert resolve(config, max_position=512) == config


@pytest.mark.parametrize(
    ("given", "field", "words"),
    [
        ({"max_model_len": 513}, "max_model_len", "512"),
        ({"max_model_len": 0}, "max_model_len", "1 or more"),
        ({"max_num_batched_tokens": 63}, "max_num_batched_tokens", "max_num_seqs=64"),
        ({"max_num_mixed_tokens": 63}, "max_num_mixed_tokens", "max_num_seqs=64"),
        ({"max_num_batched_tokens": 500, "enable_chunked_prefill": False}, "max_num_batched_tokens", "512"),
    ],
)
def test_contradictions(given: dict[str, Any], field: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolved(**given)
    assert caught.value.param == field
    assert words in caught.value.message


def test_the_config_crosses_a_socket_unchanged() -> None:
    config = resolved(hf_overrides={"a": [1, {"b": None}]}, threads=3)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(config), type=EngineConfig) == config

"""An EngineConfig as a user gave it in; one without gaps, checked against the model, out. Pure functions."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import msgspec

from octavo.base.config.config import AUTO_LENGTH, PARTS, EngineConfig, ModelConfig, SchedulerConfig
from octavo.base.config.options import build_struct
from octavo.base.errors import ConfigError

DEFAULT_BATCHED_TOKENS, DEFAULT_BATCHED_TOKENS_GPU = 512, 8192
DEFAULT_MIXED_TOKENS = 256
MIXED_PROMPT_TOKENS_GPU = 640  # a step of 256 rows of a small model takes 1.4 times as long with them
DEFAULT_BLOCK_SIZE, DEFAULT_BLOCK_SIZE_GPU = 16, 64
MIN_QUEUED_REQUESTS = 256
# vLLM's further names for values, by option
VALUE_NAMES: dict[str, dict[str, Any]] = {
    "dtype": {"half": "float16", "float": "float32"},
    "max_model_len": {"auto": AUTO_LENGTH},
    "quantization": {"awq_marlin": "awq", "gptq_marlin": "gptq"},  # which kernels run a format is not told here
}


def from_options(options: dict[str, Any]) -> EngineConfig:
    """Flat option values by name -> EngineConfig. ConfigError names an option that is unknown or out of bounds."""
    parts: dict[str, Any] = {}
    left = dict(options)
    for name, names in VALUE_NAMES.items():
        if isinstance(left.get(name), str):
            left[name] = names.get(left[name], left[name])
    for name, kind in PARTS.items():
        own = {field: left.pop(field) for field in kind.__struct_fields__ if field in left}
        parts[name] = build_struct(kind, own)
    if left:
        raise ConfigError(f"unknown option {next(iter(left))!r}", param=next(iter(left)))
    return EngineConfig(**parts)


def fixed_length(config: EngineConfig, info: Mapping[str, Any]) -> EngineConfig:
    """The config with the length that an engine found, whose info this is, for those that come after it."""
    if config.model.max_model_len != AUTO_LENGTH:
        return config
    model = msgspec.structs.replace(config.model, max_model_len=info["max_model_len"])
    return msgspec.structs.replace(config, model=model)


def own_name(model: str) -> str:
    """What others are shown of a model's name: a path's last part, so that no folder is; else all of it."""
    is_path = model.startswith(("/", "./", "../", "~")) or os.path.exists(model)
    return os.path.basename(os.path.normpath(model)) if is_path else model


def resolve(
    config: EngineConfig,
    *,
    max_position: int,
    on_gpu: bool = False,
    block_size: int | None = None,
    pooling: bool = False,
) -> EngineConfig:
    """Fill in max_model_len, block_size, max_num_batched_tokens, max_num_mixed_tokens and max_num_queued_reqs.

    max_position: tokens the model was made for; AUTO_LENGTH is that, until there is a cache.  block_size: the device's
    own default.  pooling: prompts run whole, and their states cannot be found in a cache. ConfigError where options
    contradict each other or the model.
    """
    if pooling:
        whole = msgspec.structs.replace(config.scheduler, enable_chunked_prefill=False)
        uncached = msgspec.structs.replace(config.cache, enable_prefix_caching=False)
        config = msgspec.structs.replace(config, scheduler=whole, cache=uncached)
    max_model_len = _max_model_len(config.model, max_position)
    default = block_size or (DEFAULT_BLOCK_SIZE_GPU if on_gpu else DEFAULT_BLOCK_SIZE)
    return msgspec.structs.replace(
        config,
        model=msgspec.structs.replace(config.model, max_model_len=max_model_len),
        cache=msgspec.structs.replace(config.cache, block_size=config.cache.block_size or default),
        scheduler=_scheduler(config.scheduler, max_model_len, on_gpu=on_gpu),
    )


def _max_model_len(model: ModelConfig, max_position: int) -> int:
    asked = model.max_model_len
    if asked is None or asked == AUTO_LENGTH:
        return max_position
    if asked == 0:
        raise ConfigError("max_model_len=0: must be 1 or more, or -1 (auto)", param="max_model_len")
    if asked > max_position:
        raise ConfigError(
            f"max_model_len={asked} is above the {max_position} tokens that the model was made for; "
            f"lower it, or raise max_position_embeddings by hf_overrides if the model supports more",
            param="max_model_len",
        )
    return asked


def _scheduler(scheduler: SchedulerConfig, max_model_len: int, *, on_gpu: bool) -> SchedulerConfig:
    batched = scheduler.max_num_batched_tokens
    if batched is None:
        batched = DEFAULT_BATCHED_TOKENS_GPU if on_gpu else DEFAULT_BATCHED_TOKENS
        if not scheduler.enable_chunked_prefill:
            batched = max(batched, max_model_len)
        batched = max(batched, scheduler.max_num_seqs)
    if batched < scheduler.max_num_seqs:
        raise ConfigError(
            f"max_num_batched_tokens={batched} is below max_num_seqs={scheduler.max_num_seqs}: a step could not give "
            f"every sequence one token; raise the first or lower the second",
            param="max_num_batched_tokens",
        )
    if not scheduler.enable_chunked_prefill and batched < max_model_len:
        raise ConfigError(
            f"max_num_batched_tokens={batched} is below max_model_len={max_model_len} while chunked prefill is off (as "
            f"it is for models that pool): a long prompt could never run; raise it, lower max_model_len, or "
            f"enable_chunked_prefill",
            param="max_num_batched_tokens",
        )
    queued = queue_length(scheduler)
    mixed = scheduler.max_num_mixed_tokens
    if mixed is None:
        seqs = scheduler.max_num_seqs
        mixed = seqs + MIXED_PROMPT_TOKENS_GPU if on_gpu else max(DEFAULT_MIXED_TOKENS, seqs)
    if mixed < scheduler.max_num_seqs:
        raise ConfigError(
            f"max_num_mixed_tokens={mixed} is below max_num_seqs={scheduler.max_num_seqs}: a step could not give every "
            f"sequence one token; raise the first or lower the second",
            param="max_num_mixed_tokens",
        )
    mixed = min(mixed, batched) if scheduler.enable_chunked_prefill else batched
    return msgspec.structs.replace(
        scheduler, max_num_batched_tokens=batched, max_num_mixed_tokens=mixed, max_num_queued_reqs=queued
    )


def queue_length(scheduler: SchedulerConfig) -> int:
    """The most requests that may wait."""
    given = scheduler.max_num_queued_reqs
    return max(MIN_QUEUED_REQUESTS, 4 * scheduler.max_num_seqs) if given is None else given

"""Engine options by vLLM's names in, an EngineConfig out; what vLLM has and Octavo has not is refused by name."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import Any

import msgspec

from octavo.base.config.config import PARTS, EngineConfig
from octavo.base.config.resolve import from_options
from octavo.base.errors import ConfigError, UnsupportedError
from octavo.base.near import nearest

logger = logging.getLogger(__name__)

UNBOUNDED = 1 << 31


@dataclass(frozen=True)
class Foreign:
    """An option of vLLM's that Octavo has not. neutral: values that change nothing, taken in silence.

    harmless: any other value costs no correctness here, so it is taken with a warning; else it is refused.
    """

    neutral: tuple[Any, ...]
    remedy: str
    harmless: bool = False


_ONE_DEVICE = "this build runs on one device; leave it at 1"
# neutral values of a switch, of one that asks for what is there or for nothing, and of an option that takes an object
OFF: tuple[Any, ...] = (None, False)
SWITCH: tuple[Any, ...] = (True, False)
_NONE: tuple[Any, ...] = (None, {})
_TUNING = Foreign((), "it tunes vLLM's own machinery and has no counterpart here", harmless=True)
_TUNING_SWITCH = Foreign(OFF, _TUNING.remedy, harmless=True)
_TEXT_ONLY = "only text is supported"
_MEDIA = Foreign((), _TEXT_ONLY, harmless=True)
_NO_ADAPTERS = Foreign((), "there are no LoRA adapters here", harmless=True)
_MEASURED = "see docs/monitoring.md for what is measured here"
LATER = "this version does not have it; leave it out"

FOREIGN: dict[str, Foreign] = {
    "tensor_parallel_size": Foreign((1,), _ONE_DEVICE),
    "pipeline_parallel_size": Foreign((1,), _ONE_DEVICE),
    "data_parallel_size": Foreign((1,), _ONE_DEVICE),
    "prefill_context_parallel_size": Foreign((1,), _ONE_DEVICE),
    "decode_context_parallel_size": Foreign((1,), _ONE_DEVICE),
    "enable_expert_parallel": Foreign(OFF, _ONE_DEVICE),
    "distributed_executor_backend": Foreign((None, "uni", "mp"), _ONE_DEVICE),
    "trust_remote_code": Foreign(OFF, "code from a model's repository is never run; use a model that needs none"),
    "tokenizer_mode": Foreign(("auto", "hf", "fast"), "every tokenizer is read in one way; leave it at auto"),
    "tokenizer_revision": Foreign((None,), "revision holds for every file"),
    "code_revision": Foreign((None,), "code from a model's repository is never run"),
    "task": Foreign((None, "auto"), "use runner (generate, pooling) and convert (embed, classify)"),
    "cpu_offload_gb": Foreign((0, None), LATER),
    "speculative_config": Foreign(_NONE, LATER),
    "spec_method": Foreign((None,), LATER),
    "spec_model": Foreign((None,), LATER),
    "spec_tokens": Foreign((None,), LATER),
    "enable_lora": Foreign(OFF, LATER),
    "calculate_kv_scales": Foreign(OFF, "the scales of an fp8 cache are 1"),
    "structured_outputs_config": Foreign(
        (*_NONE, *({"backend": name} for name in ("auto", "xgrammar", "guidance", "outlines"))), LATER
    ),
    "logits_processors": Foreign((None, []), LATER),
    "logprobs_mode": Foreign((None, "raw_logprobs"), "log probabilities are those of the unprocessed logits"),
    "kv_transfer_config": Foreign(_NONE, LATER),
    "kv_offloading_size": Foreign((None, 0), LATER),
    "limit_mm_per_prompt": Foreign(_NONE, _TEXT_ONLY),
    "mm_processor_kwargs": Foreign(_NONE, _TEXT_ONLY),
    "allowed_local_media_path": Foreign((None, ""), _TEXT_ONLY),
    "allowed_media_domains": Foreign((None, []), _TEXT_ONLY),
    "max_num_queued_tokens": Foreign((None,), "bound the queue by max_num_queued_reqs"),
    "stream_interval": Foreign((1,), "every token is streamed at once", harmless=True),
    "prefix_caching_hash_algo": Foreign((), "block hashes are always cryptographic here", harmless=True),
    "swap_space": _TUNING,
    "disable_log_stats": Foreign(SWITCH, "", harmless=True),
    "enable_log_requests": Foreign((False,), "octavo serve logs requests", harmless=True),
    "disable_log_requests": Foreign(SWITCH, "", harmless=True),
    "compilation_config": Foreign(_NONE, _TUNING.remedy, harmless=True),
    "attention_config": Foreign(_NONE, _TUNING.remedy, harmless=True),
    "attention_backend": Foreign((None,), LATER),
    "disable_custom_all_reduce": Foreign(SWITCH, "", harmless=True),
    "max_parallel_loading_workers": _TUNING,
    "max_seq_len_to_capture": _TUNING,
    "num_scheduler_steps": Foreign((1,), _TUNING.remedy, harmless=True),
    "use_v2_block_manager": _TUNING_SWITCH,
    "enable_sleep_mode": Foreign(SWITCH, "", harmless=True),
    "otlp_traces_endpoint": Foreign((None,), "octavo serve sends traces; here see RequestOutput.metrics"),
    "nnodes": Foreign((1,), _ONE_DEVICE),
    "node_rank": Foreign((0,), _ONE_DEVICE),
    "data_parallel_size_local": Foreign((None, 1), _ONE_DEVICE),
    "data_parallel_hybrid_lb": Foreign(OFF, _ONE_DEVICE),
    "data_parallel_external_lb": Foreign(OFF, _ONE_DEVICE),
    "device_ids": Foreign((None,), "choose a device by CUDA_VISIBLE_DEVICES"),
    "worker_cls": Foreign((None, "auto"), LATER),
    "worker_extension_cls": Foreign((None, ""), LATER),
    "scheduler_cls": Foreign((None,), LATER),
    "io_processor_plugin": Foreign((None,), LATER),
    "kv_events_config": Foreign(_NONE, LATER),
    "ec_transfer_config": Foreign(_NONE, LATER),
    "reasoning_config": Foreign(_NONE, LATER),
    "reasoning_parser_plugin": Foreign((None, ""), "install a package with the entry point octavo.reasoning_parsers"),
    "enable_prompt_embeds": Foreign(OFF, "send text or token ids"),
    "enable_mm_embeds": Foreign(OFF, _TEXT_ONLY),
    "media_io_kwargs": Foreign(_NONE, _TEXT_ONLY),
    "language_model_only": Foreign(SWITCH, _TEXT_ONLY, harmless=True),
    "skip_mm_profiling": Foreign(SWITCH, _TEXT_ONLY, harmless=True),
    "model_impl": Foreign(("auto", "vllm"), "every model runs in Octavo's own code"),
    "config_format": Foreign(("auto", "hf"), "a model's config.json is read"),
    "disable_sliding_window": Foreign(OFF, "lower max_model_len"),
    "kv_cache_dtype_skip_layers": Foreign((None, []), LATER),
    "rope_scaling": Foreign(_NONE, "give it in hf_overrides"),
    "rope_theta": Foreign((None,), "give it in hf_overrides"),
    "guided_decoding_backend": Foreign(("auto", "guidance"), "grammars are llguidance's", harmless=True),
    "enable_reasoning": Foreign(SWITCH, "reasoning is told apart wherever it is marked", harmless=True),
    "show_hidden_metrics_for_version": Foreign((None,), _MEASURED, harmless=True),
    "collect_detailed_traces": Foreign((None,), _MEASURED, harmless=True),
    **dict.fromkeys(("kv_cache_metrics", "enable_mfu_metrics"), Foreign(OFF, _MEASURED, harmless=True)),
    **dict.fromkeys(("max_loras", "max_lora_rank", "max_cpu_loras", "lora_dtype"), _NO_ADAPTERS),
    **dict.fromkeys(("mm_processor_cache_gb", "mm_processor_cache_type", "mm_encoder_tp_mode"), _MEDIA),
    **dict.fromkeys(("optimization_level", "performance_mode", "max_cudagraph_capture_size", "kernel_config"), _TUNING),
    **dict.fromkeys(("moe_backend", "linear_backend", "all2all_backend", "eplb_config", "additional_config"), _TUNING),
    **dict.fromkeys(("safetensors_load_strategy", "model_loader_extra_config", "mamba_cache_dtype"), _TUNING),
    **dict.fromkeys(("max_num_partial_prefills", "max_long_partial_prefills", "long_prefill_token_threshold"), _TUNING),
    **dict.fromkeys(("watermark", "kv_offloading_backend"), _TUNING),
    **dict.fromkeys(("enable_dbo", "enable_eplb", "numa_bind", "disable_cascade_attn"), _TUNING_SWITCH),
    **dict.fromkeys(("scheduler_reserve_full_isl", "disable_hybrid_kv_cache_manager"), _TUNING_SWITCH),
    **dict.fromkeys(("enable_flashinfer_autotune", "disable_chunked_mm_input", "use_tqdm_on_load"), _TUNING_SWITCH),
}


def engine_config(model: str | os.PathLike[str] | EngineConfig, engine_args: dict[str, Any]) -> EngineConfig:
    """The EngineConfig that these options make, None being an option's default; one that is given whole is taken as it
    is.

    ConfigError for an unknown name (with a suggestion), a reasoning_parser that is not known or a value out of bounds,
    UnsupportedError for what vLLM has and Octavo has not.
    """
    config = model if isinstance(model, EngineConfig) else from_options({**_own(engine_args), "model": _text(model)})
    if config is model and engine_args:
        raise ConfigError(f"give {next(iter(engine_args))} inside the EngineConfig", param=next(iter(engine_args)))
    if config.model.reasoning_parser is not None:
        from octavo.text.tools.choose import reasoning_format

        reasoning_format(config.model.reasoning_parser, "")
    return config


def _own(engine_args: dict[str, Any]) -> dict[str, Any]:
    own: dict[str, Any] = {}
    for name, value in engine_args.items():
        if name not in OPTION_NAMES and name not in FOREIGN:
            raise ConfigError(f"unknown option {name!r}{suggest(name, OPTION_NAMES, refused=[*FOREIGN])}", param=name)
        if value is None:
            continue
        if name in OPTION_NAMES:
            own[name] = _text(value)
        else:
            check_foreign(name, value)
    return own


def _text(value: Any) -> Any:
    """A pathlib.Path as text, and all else as it is."""
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def check_foreign(name: str, value: Any, *, shown: str | None = None, table: dict[str, Foreign] | None = None) -> None:
    """Pass a neutral value, warn of a harmless one, refuse any other. shown: the name as the user wrote it."""
    foreign, shown = (FOREIGN if table is None else table)[name], shown or name
    if any(value == neutral and isinstance(value, bool) == isinstance(neutral, bool) for neutral in foreign.neutral):
        return
    if foreign.harmless:
        logger.warning("%s=%s has no effect: %s", shown, value, foreign.remedy)
        return
    raise UnsupportedError(f"{shown}={value!r} is not supported: {foreign.remedy}", param=name)


def suggest(name: str, known: list[str], *, refused: list[str] | None = None) -> str:
    """ "; did you mean X?" for the known name that it is likely meant for, or nothing.

    refused: names that are known, too, and are refused.
    """
    near = nearest(name, [*known, *(refused or [])], refused=refused or [])
    return "" if near is None else f"; did you mean {near}?"


OPTION_NAMES: list[str] = [name for part in PARTS.values() for name in part.__struct_fields__]


def offline_config(config: EngineConfig) -> EngineConfig:
    """A config for one caller's batches: every prompt waits in the engine's queue, as there is nobody to come back
    later, and prompts fill steps, as nobody sees a token come.
    """
    asked = config.scheduler
    scheduler = msgspec.structs.replace(
        asked,
        max_num_queued_reqs=UNBOUNDED if asked.max_num_queued_reqs is None else asked.max_num_queued_reqs,
        max_num_mixed_tokens=asked.max_num_mixed_tokens or UNBOUNDED,
    )
    return msgspec.structs.replace(config, scheduler=scheduler)

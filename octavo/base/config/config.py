"""Every option, once: type, default, bounds, description. Flags, LLM arguments and docs are made from these.

Names are vLLM's. Structs are frozen: resolved once (resolve.py), then handed to constructors part by part.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

# bounds of an optional field stand on its int: msgspec takes none on a union
AUTO_LENGTH = -1  # max_model_len that is not above what the cache has room for
Positive = Annotated[int, Meta(ge=1)]
Natural = Annotated[int, Meta(ge=0)]
Filled = Annotated[str, Meta(min_length=1)]  # an empty key, as of a variable that is not set, would open the server


def _d(text: str, **bounds: Any) -> Meta:
    return Meta(description=text, **bounds)


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which model, and how it is read."""

    model: Annotated[
        str, _d("Path, hub id (org/name[:file.gguf or :Q4_K_M]), package:NAME, or an alias such as smollm2.")
    ]
    runner: Annotated[
        Literal["auto", "generate", "pooling"],
        _d("pooling: vectors in place of text (docs/pooling.md); auto tells by the checkpoint."),
    ] = "auto"
    convert: Annotated[
        Literal["auto", "none", "embed", "classify"],
        _d("What a model that pools is for; auto: classify where the checkpoint has a classifier, else embed."),
    ] = "auto"
    pooler_config: Annotated[
        dict[str, Any],
        _d("Keys pooling_type (CLS, MEAN, LAST) and use_activation (normalize), in place of what the checkpoint says."),
    ] = {}
    tokenizer: Annotated[str | None, _d("Where the tokenizer comes from, if not from the model.")] = None
    skip_tokenizer_init: Annotated[bool, _d("No tokenizer: prompts and outputs are token ids.")] = False
    revision: Annotated[str | None, _d("Branch, tag or commit on the hub, for every file.")] = None
    hf_token: Annotated[str | None, _d("Hub token; HF_TOKEN is read where this is not given.")] = None
    download_dir: Annotated[str | None, _d("Where downloads are kept, in place of HF_HOME's cache.")] = None
    load_format: Annotated[
        Literal["auto", "safetensors", "gguf", "dummy"], _d("auto looks at the files; dummy makes random weights.")
    ] = "auto"
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        _d(
            "Type of the arithmetic (or half, float); auto is float32 on a CPU, the checkpoint's own elsewhere. Device "
            "cpu takes float32 alone."
        ),
    ] = "auto"
    quantization: Annotated[
        Literal["fp8", "compressed-tensors", "gptq", "awq", "gguf", "fbgemm_fp8", "modelopt"] | None,
        _d(
            "How the checkpoint is quantized, which is found without it. fp8 for one that is not: its layers' matrices "
            "are made E4M3 while they are loaded, a scale a row (torch, cuda)."
        ),
    ] = None
    max_model_len: Annotated[
        Annotated[int, Meta(ge=AUTO_LENGTH)] | None,
        _d("Longest prompt + output in tokens; the model's own where not given; auto or -1: what fits in the cache."),
    ] = None
    hf_overrides: Annotated[
        dict[str, Any], _d("Keys to replace in the checkpoint's config.json, and in its text_config.")
    ] = {}
    generation_config: Annotated[
        Literal["auto", "vllm"], _d("auto: sampling defaults from the model's generation_config.json; vllm: none.")
    ] = "auto"
    override_generation_config: Annotated[
        dict[str, Any],
        _d(
            "Sampling defaults over those of generation_config, by its names; null: none. max_new_tokens bounds what "
            "any request to a server gets."
        ),
    ] = {}
    chat_template: Annotated[str | None, _d("Jinja chat template: a file's path or the text itself.")] = None
    reasoning_parser: Annotated[
        str | None,
        _d("How the model's reasoning is marked (docs/tool-calling.md); by the chat template where not given."),
    ] = None
    max_logprobs: Annotated[
        int, _d("Most log probabilities a request may ask for per token; -1 is no limit.", ge=-1)
    ] = 20
    seed: Annotated[int, _d("Seeds the seeds of requests that bring none, and dummy weights.")] = 0


class DeviceConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where it runs."""

    device: Annotated[
        Literal["auto", "cpu", "torch", "torch:cpu", "cuda", "mlx"],
        _d(
            "auto takes cuda where it works here, else cpu, and logs why; torch: cuda, else torch:cpu (PyTorch on the "
            "CPU); mlx is refused, as there is no such backend yet."
        ),
    ] = "auto"
    threads: Annotated[
        Positive | None, _d("CPU threads; where not given, one for each physical core, of two kinds for each fast one.")
    ] = None
    activation_dtype: Annotated[
        Literal["auto", "float32", "int8"],
        _d("Products with quantized weights on a CPU: float32 is exact, int8 (what auto takes) several times faster."),
    ] = "auto"
    gpu_memory_utilization: Annotated[
        float, _d("Share of the device's memory for weights and cache, on every device.", gt=0, le=1)
    ] = 0.9
    enforce_eager: Annotated[bool, _d("No graph capture on accelerators.")] = False


class CacheConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The paged KV cache."""

    block_size: Annotated[
        Literal[8, 16, 32, 64, 128] | None,
        _d("Tokens a block; where not given 16 on a CPU, 64 on a GPU, 128 for flash-attn-4."),
    ] = None
    kv_cache_memory_bytes: Annotated[Positive | None, _d("Bytes for the cache; without it at most 4 GiB on a CPU.")] = (
        None
    )
    kv_cache_dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16", "fp8", "fp8_e4m3", "int8_per_token_head"],
        _d(
            "Type of K and V in the cache; auto is the arithmetic's; bfloat16 where a CPU rounds activations, unless "
            "the checkpoint is float32. int8_per_token_head is for device cpu, which takes no float16. fp8 (E4M3, the "
            "same as fp8_e4m3) is for torch:cpu and for cuda from compute capability 8.9; its scales are 1, whatever "
            "a checkpoint says."
        ),
    ] = "auto"
    num_gpu_blocks_override: Annotated[Positive | None, _d("Exactly this many blocks.")] = None
    enable_prefix_caching: Annotated[bool, _d("Keep finished blocks and share equal prefixes.")] = True


class SchedulerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What runs when."""

    max_num_seqs: Annotated[int, _d("Most sequences in one step.", ge=1, le=4096)] = 64
    max_num_batched_tokens: Annotated[
        Positive | None, _d("Most tokens in one step; where not given 512 on a CPU and 8192 on a GPU.")
    ] = None
    max_num_mixed_tokens: Annotated[
        Positive | None,
        _d(
            "Most tokens in a step in which sequences decode, which wait for the prompts beside them; where not given "
            "256 on a CPU, 640 more than max_num_seqs on a GPU, and no limit offline and without chunked prefill."
        ),
    ] = None
    enable_chunked_prefill: Annotated[bool, _d("A prompt may be split over steps.")] = True
    scheduling_policy: Annotated[Literal["fcfs", "priority"], _d("priority: lower values first, then arrival.")] = (
        "fcfs"
    )
    async_scheduling: Annotated[bool, _d("Start step N+1 before reading step N's tokens.")] = True
    max_num_queued_reqs: Annotated[
        Natural | None, _d("Most waiting requests; max(256, 4 x max_num_seqs) where not given. Beyond: 503.")
    ] = None


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The HTTP side."""

    host: Annotated[str, _d("Address to listen on.")] = "127.0.0.1"
    port: Annotated[int, _d("Port; 0 takes a free one.", ge=0, le=65535)] = 8000
    api_key: Annotated[list[Filled], _d("Accepted keys (repeatable, or OCTAVO_API_KEY); none: open.")] = []
    admin_api_key: Annotated[
        list[Filled], _d("Keys of the admin routes (or OCTAVO_ADMIN_API_KEY); none: the routes are not there.")
    ] = []
    served_model_name: Annotated[list[Filled], _d("Names the model answers to; the first is reported.")] = []
    max_body_bytes: Annotated[int, _d("Largest request body.", ge=1024)] = 32 << 20
    shutdown_timeout: Annotated[float, _d("Seconds that running requests get after SIGTERM.", ge=0)] = 30.0
    watchdog_timeout: Annotated[
        float,
        _d(
            "Seconds of silence after which the engine process is taken to hang: /livez is 503, the process is killed "
            "and started again. Longer than any step: a large model's prompts take minutes on a small CPU.",
            ge=2,
        ),
    ] = 300.0
    allowed_origins: Annotated[
        list[Filled], _d("Origins that browsers may call from, as https://app.example or file://, or * for all.")
    ] = []
    disable_ui: Annotated[bool, _d("No page at /: chat and the engine seen live, for a browser.")] = False
    log_format: Annotated[Literal["text", "json"], _d("Log lines; json: an object a line (docs/monitoring.md).")] = (
        "text"
    )
    enable_log_requests: Annotated[bool, _d("Log each request's parameters as it comes in, never its text.")] = False
    otlp_traces_endpoint: Annotated[
        str | None, _d("Send a span for each request there, as OTLP over HTTP (octavo[otel]; docs/monitoring.md).")
    ] = None
    canary_interval: Annotated[
        float, _d("Seconds between checks, while idle, that a prompt is answered as at the start; 0: none.", ge=0)
    ] = 300.0
    batch_dir: Annotated[str | None, _d("Folder of /v1/files and /v1/batches; a temporary one where not given.")] = None
    default_chat_template_kwargs: Annotated[
        dict[str, Any],
        _d("Variables of the chat template, such as enable_thinking; a request's own chat_template_kwargs win."),
    ] = {}
    trust_request_chat_template: Annotated[bool, _d("Allow chat_template in requests.")] = False
    tool_call_parser: Annotated[
        str | None, _d("Format of the model's tool calls (docs/tool-calling.md); the chat template's where not given.")
    ] = None
    reasoning_field: Annotated[
        Literal["both", "reasoning", "reasoning_content"],
        _d("Field of a chat's messages that reasoning comes in; some clients (Goose) fail where both are there."),
    ] = "both"


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All that an engine process needs; crosses to it as one message."""

    model: ModelConfig
    device: DeviceConfig = DeviceConfig()
    cache: CacheConfig = CacheConfig()
    scheduler: SchedulerConfig = SchedulerConfig()


PARTS: dict[str, type[msgspec.Struct]] = {
    "model": ModelConfig,
    "device": DeviceConfig,
    "cache": CacheConfig,
    "scheduler": SchedulerConfig,
}

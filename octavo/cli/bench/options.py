"""The benchmarks' own options, once: type, default, bounds, description; flags are made from these. vLLM's names."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from octavo.base.config.config import Natural, Positive
from octavo.base.config.options import build_struct, options
from octavo.cli.flags import Parser, add_options


def _d(text: str, **bounds: Any) -> Meta:
    return Meta(description=text, **bounds)


class OutputOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What becomes of the figures."""

    output_json: Annotated[str | None, _d("Write the result to this file.")] = None
    plot: Annotated[str | None, _d("Draw the result into this file (.png, .svg, .pdf); needs octavo[plot].")] = None


class LatencyOptions(msgspec.Struct, frozen=True, kw_only=True):
    """One batch, over and over."""

    input_len: Annotated[int, _d("Tokens of each prompt.", ge=1)] = 32
    output_len: Annotated[int, _d("Tokens of each output.", ge=1)] = 128
    batch_size: Annotated[int, _d("Prompts in the batch.", ge=1)] = 8
    n: Annotated[int, _d("Outputs of each prompt.", ge=1)] = 1
    num_iters_warmup: Annotated[int, _d("Runs before those that count.", ge=0)] = 10
    num_iters: Annotated[int, _d("Runs that count.", ge=1)] = 30
    disable_detokenize: Annotated[bool, _d("Make no text of the outputs.")] = False


class ThroughputOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How the prompts of a dataset are run."""

    n: Annotated[int, _d("Outputs of each prompt.", ge=1)] = 1
    num_warmups: Annotated[int, _d("Prompts run before those that count.", ge=0)] = 0
    disable_detokenize: Annotated[bool, _d("Make no text of the outputs.")] = False


class StartupOptions(msgspec.Struct, frozen=True, kw_only=True):
    """New processes."""

    num_iters_cold: Annotated[int, _d("Starts with nothing cached.", ge=0)] = 3
    num_iters_warmup: Annotated[int, _d("Starts that fill the caches and do not count.", ge=0)] = 1
    num_iters_warm: Annotated[int, _d("Starts with filled caches.", ge=0)] = 3


class DatasetOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Where prompts come from."""

    num_prompts: Annotated[int, _d("Prompts.", ge=1)] = 1000
    dataset_name: Annotated[
        Literal["random", "sharegpt", "custom", "prefix_repetition"],
        _d("random tokens; conversations of a ShareGPT file; a .jsonl file of prompts; few prefixes, random endings."),
    ] = "random"
    dataset_path: Annotated[str | None, _d("The file of sharegpt or custom.")] = None
    input_len: Annotated[Positive | None, _d("Tokens of each prompt, as --random-input-len.")] = None
    output_len: Annotated[Positive | None, _d("Tokens of each output, whatever the dataset.")] = None
    random_input_len: Annotated[int, _d("random: tokens of a prompt.", ge=1)] = 1024
    random_output_len: Annotated[int, _d("random: tokens of an output.", ge=1)] = 128
    random_range_ratio: Annotated[float, _d("random: lengths are drawn from length × (1 ± this).", ge=0, lt=1)] = 0.0
    random_prefix_len: Annotated[Natural, _d("random: tokens that all prompts begin with, besides.")] = 0
    prefix_repetition_prefix_len: Annotated[int, _d("prefix_repetition: tokens of a prefix.", ge=1)] = 256
    prefix_repetition_suffix_len: Annotated[int, _d("prefix_repetition: tokens after it.", ge=1)] = 256
    prefix_repetition_num_prefixes: Annotated[int, _d("prefix_repetition: different prefixes.", ge=1)] = 10
    prefix_repetition_output_len: Annotated[int, _d("prefix_repetition: tokens of an output.", ge=1)] = 128
    sharegpt_output_len: Annotated[
        Positive | None, _d("sharegpt: tokens of an output; those of the file's answer where not given.")
    ] = None
    custom_output_len: Annotated[int, _d("custom: tokens of an output; -1: each line's own output_tokens.", ge=-1)] = (
        256
    )
    skip_chat_template: Annotated[bool, _d("custom: the prompts are texts as they are, no user's messages.")] = False
    disable_shuffle: Annotated[bool, _d("Take a file's rows in its order.")] = False
    oversample: Annotated[bool, _d("Take a file's rows again where it has fewer than --num-prompts.")] = True


class ServeOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The server, the load and the report."""

    backend: Annotated[
        Literal["openai", "vllm", "openai-chat"], _d("Protocol: completions (both names), or chat completions.")
    ] = "openai"
    base_url: Annotated[str | None, _d("The server's address, in place of --host and --port.")] = None
    host: Annotated[str, _d("The server's host.")] = "127.0.0.1"
    port: Annotated[int, _d("The server's port.", ge=1, le=65535)] = 8000
    endpoint: Annotated[str | None, _d("Route; the backend's own where not given.")] = None
    header: Annotated[list[str], _d("Headers of every request, KEY=VALUE; OPENAI_API_KEY makes an Authorization.")] = []
    insecure: Annotated[bool, _d("Do not check the server's certificate.")] = False
    model: Annotated[str | None, _d("The model's name; the server's first where not given.")] = None
    served_model_name: Annotated[str | None, _d("Its name in requests, where that is another.")] = None
    tokenizer: Annotated[str | None, _d("Whose tokenizer makes and counts prompts; the model's where not given.")] = (
        None
    )
    skip_tokenizer_init: Annotated[bool, _d("No tokenizer: only datasets of texts, counted by the server.")] = False
    seed: Annotated[int, _d("Seeds prompts and arrivals.")] = 0
    request_rate: Annotated[float, _d("Requests a second; inf sends all at once.", gt=0)] = float("inf")
    burstiness: Annotated[
        float, _d("Shape of the gamma-distributed gaps: 1 is a Poisson process, less comes in bursts.", gt=0)
    ] = 1.0
    ramp_up_strategy: Annotated[
        Literal["linear", "exponential"] | None, _d("Let the rate grow over the run, in place of --request-rate.")
    ] = None
    ramp_up_start_rps: Annotated[Positive | None, _d("Rate at the beginning.")] = None
    ramp_up_end_rps: Annotated[Positive | None, _d("Rate at the end.")] = None
    max_concurrency: Annotated[Positive | None, _d("Most requests under way; further ones wait here.")] = None
    num_warmups: Annotated[int, _d("Requests before those that count.", ge=0)] = 0
    ready_check_timeout_sec: Annotated[int, _d("Wait so long for the server to start and answer a request.", ge=0)] = 0
    ignore_eos: Annotated[bool, _d("Go on to the full output length; the dataset random always does.")] = False
    logprobs: Annotated[Natural | None, _d("Log probabilities to ask for, per token.")] = None
    temperature: Annotated[float | None, _d("Sampling; the server's default where not given.")] = None
    top_p: Annotated[float | None, _d("Likewise.")] = None
    top_k: Annotated[int | None, _d("Likewise.")] = None
    min_p: Annotated[float | None, _d("Likewise.")] = None
    frequency_penalty: Annotated[float | None, _d("Likewise.")] = None
    presence_penalty: Annotated[float | None, _d("Likewise.")] = None
    repetition_penalty: Annotated[float | None, _d("Likewise.")] = None
    extra_body: Annotated[dict[str, Any], _d("Further fields of every request.")] = {}
    request_id_prefix: Annotated[str, _d("X-Request-Id is this and a number.")] = "bench-"
    percentile_metrics: Annotated[str, _d("Which of ttft, tpot, itl, e2el to print, with commas.")] = "ttft,tpot,itl"
    metric_percentiles: Annotated[str, _d("Which percentiles, with commas.")] = "99"
    goodput: Annotated[list[str], _d("Count requests that keep these bounds in ms: ttft:200 tpot:50 e2el:3000.")] = []
    disable_tqdm: Annotated[bool, _d("No progress bar.")] = False
    label: Annotated[str | None, _d("Begins the result file's name, in place of the backend.")] = None
    save_result: Annotated[bool, _d("Write a JSON file.")] = False
    append_result: Annotated[bool, _d("Append the result to the file as one more line.")] = False
    save_detailed: Annotated[bool, _d("With every request's times, lengths, text and error.")] = False
    metadata: Annotated[list[str], _d("Further fields of the result, KEY=VALUE.")] = []
    result_dir: Annotated[str | None, _d("Folder of the result file.")] = None
    result_filename: Annotated[str | None, _d("Its name; label, rate, model and date where not given.")] = None
    plot: Annotated[str | None, _d("Draw the result into this file (.png, .svg, .pdf); needs octavo[plot].")] = None


def add_struct(parser: Parser, title: str, struct: type[msgspec.Struct]) -> None:
    """A flag for each of the struct's fields."""
    add_options(parser.add_argument_group(f"{title} options"), list(options(struct).values()))


def take_struct(values: dict[str, Any], struct: type[msgspec.Struct]) -> Any:
    """The struct of what was given, taken out of `values`; ConfigError names field, value and bound."""
    return build_struct(struct, {name: values.pop(name) for name in struct.__struct_fields__ if name in values})

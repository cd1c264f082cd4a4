"""Flags are made from the config structs; vLLM's foreign ones warn or are refused; unknown ones get a suggestion."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from octavo.base.config.config import PARTS, EngineConfig, ServerConfig
from octavo.base.config.options import build_struct
from octavo.base.errors import ConfigError, UnsupportedError
from octavo.base.types.sampling import SamplingParams
from octavo.cli import serve
from octavo.cli.flags import Parser, add_engine, add_model, add_sampling, shift_model, take_engine, take_sampling


def engine(*arguments: str) -> EngineConfig:
    parser = Parser("test", "", foreign=serve.FOREIGN)
    add_model(parser)
    add_engine(parser)
    return take_engine(parser.parse(arguments))


def test_every_option_has_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        serve.main(["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    for struct in (*PARTS.values(), ServerConfig):
        for name in struct.__struct_fields__:
            assert name == "model" or "--" + name.replace("_", "-") in shown


@pytest.mark.parametrize("arguments", [["-q", "fp8"], ["-q=fp8"], ["--quantization", "fp8"]])
def test_quantization_by_both_its_names(arguments: list[str]) -> None:
    assert engine("m", *arguments).model.quantization == "fp8"
    with pytest.raises(ConfigError, match="awq, compressed-tensors, fbgemm_fp8, fp8, gguf, gptq"):
        engine("m", "-q", "fp9")


def test_values_land_in_the_config() -> None:
    config = engine(
        "m", "--dtype", "float32", "--max-model-len=4K", "--max_num_seqs", "3", "--no-enable-prefix-caching",
        "--enforce-eager", "--hf-overrides", '{"a": 1}', "--gpu-memory-utilization", "0.5", "--seed", "-3",
        "--block-size", "32", "--kv-cache-memory-bytes", "2G", "--tokenizer", "none",
    )  # fmt: skip
    assert (config.model.model, config.model.dtype, config.model.max_model_len) == ("m", "float32", 4096)
    assert config.model.hf_overrides == {"a": 1}
    assert (config.model.seed, config.model.tokenizer) == (-3, None)
    assert (config.scheduler.max_num_seqs, config.cache.block_size) == (3, 32)
    assert (config.cache.enable_prefix_caching, config.device.enforce_eager) == (False, True)
    assert config.cache.kv_cache_memory_bytes == 2 << 30
    assert engine("--model", "m", "--max-model-len", "4k").model.max_model_len == 4000


def test_foreign_flags_that_change_nothing_pass(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "octavo"):
        config = engine("-tp", "1", "--no-trust-remote-code", "--disable-log-stats", "--pipeline-parallel-size=1", "m")
    assert config.model.model == "m"
    assert not caplog.records


def test_harmless_foreign_flags_warn(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "octavo"):
        config = engine("--swap-space", "4", "--compilation-config", '{"level": 3}', "--enable-log-requests", "m")
    assert config.model.model == "m"
    flags = [record.getMessage().split("=")[0] for record in caplog.records]
    assert flags == ["--swap-space", "--compilation-config", "--enable-log-requests"]


@pytest.mark.parametrize(
    ("flag", "ours"),
    [
        ("-m", "--model"),
        ("-c", "--max-model-len"),
        ("--ctx-size=4096", "--max-model-len"),
        ("--ctx_size", "--max-model-len"),
        ("-ngl", "--device"),
        ("-t", "--threads"),
        ("--context-length", "--max-model-len"),
        ("--tp-size", "--tensor-parallel-size"),
        ("--gpu-memory", "--gpu-memory-utilization"),
        ("--max-batch", "--max-num-batched-tokens"),
        ("--tensor-parallel", "--tensor-parallel-size"),
        ("--eager", "--enforce-eager"),
    ],
)
def test_options_of_other_programs_are_told_by_their_name_here(flag: str, ours: str) -> None:
    with pytest.raises(ConfigError, match=f"did you mean {ours}\\?"):
        engine("m", flag, "99")
    with pytest.raises(ConfigError, match=r"--temp \(octavo test --help lists"):
        engine("m", "--temp", "0")  # a command that does not sample


def test_objects_come_in_parts(caplog: pytest.LogCaptureFixture) -> None:
    parts = ["--hf_overrides.rope_theta", "5e5", "--hf-overrides.text.act=silu", "--hf-overrides.text.n", "2"]
    config = engine(*parts, "m")
    assert config.model.hf_overrides == {"rope_theta": 5e5, "text": {"act": "silu", "n": 2}}
    with caplog.at_level(logging.WARNING, "octavo"):
        assert engine("--compilation-config.mode", "3", "-O3", "m").model.model == "m"
    flags = [record.getMessage().partition(" has ")[0] for record in caplog.records]
    assert flags == ["--optimization-level=3", "--compilation-config={'mode': 3}"]


@pytest.mark.parametrize("more", [["--language-model-only"], ["--model-impl", "auto"], ["--disable-cascade-attn"]])
def test_what_only_vllm_needs_to_be_told_passes(more: list[str]) -> None:
    assert engine("m", *more) == engine("m")


def test_a_command_line_of_vllms_starts_a_server(caplog: pytest.LogCaptureFixture) -> None:
    """What is there anyway is taken in silence, what only tunes vLLM with a warning; no switch takes the model for its
    value.
    """
    with caplog.at_level(logging.WARNING, "octavo"):
        anyway = ("--enable-tokenizer-info-endpoint", "--enable-server-load-tracking", "--enable-sleep-mode")
        assert engine(*anyway, "--enable-reasoning", "--language-model-only", "m").model.model == "m"
        assert not caplog.records
        assert engine("--use-v2-block-manager", "--enable-flashinfer-autotune", "--enable-dbo", "m").model.model == "m"
        dotted = ("--compilation-config.level", "3", "-cc.mode=3")
        assert engine("m", "-O3", *dotted, "--max-loras", "2").model.model == "m"
    flags = [record.getMessage().split("=")[0] for record in caplog.records]
    assert flags == [
        *("--use-v2-block-manager", "--enable-flashinfer-autotune", "--enable-dbo", "--optimization-level"),
        *("--max-loras", "--compilation-config"),
    ]


@pytest.mark.parametrize(
    ("arguments", "flag"),
    [
        (["m", "--enable-force-include-usage"], "stream_options.include_usage"),
        (["m", "--tensor-parallel-size", "2"], "--tensor-parallel-size"),
        (["m", "-tp", "2"], "--tensor-parallel-size"),
        (["m", "-tp=2"], "--tensor-parallel-size"),
        (["m", "--trust-remote-code"], "--trust-remote-code"),
        (["--cpu_offload_gb", "4", "m"], "--cpu-offload-gb"),
        (["m", "--enable-lora"], "--enable-lora"),
        (["m", "--enable-prompt-embeds"], "--enable-prompt-embeds"),
        (["m", "--speculative-config.method", "ngram"], "--speculative-config"),
        (["m", "--ssl-keyfile", "key.pem"], "--ssl-keyfile"),
    ],
)
def test_unsupported_flags_are_refused_by_name(arguments: list[str], flag: str) -> None:
    with pytest.raises(UnsupportedError, match=flag):
        engine(*arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["m", "--max-modle-len", "5"], "--max-modle-len; did you mean --max-model-len"),
        (["m", "--colour"], "unknown option --colour"),
        (["m", "--max-model-len"], "expected one argument"),
        (["m", "--max-model-len", "many"], "invalid whole number value: 'many'"),
        (["m", "--kv-cache-memory-bytes", "1GiB"], "value: '1GiB'; k, m, g behind it are thousands"),
        (["m", "--max-num-seqs", "0"], "max_num_seqs=0: must be int >= 1"),
        (["m", "--dtype", "int4"], "must be one of auto, bfloat16"),
        (["m", "--hf-overrides", "[1]"], "JSON object"),
        (["m", "--hf-overrides.a"], "--hf-overrides.a: expected one argument"),
        (["m", "--hf-overrides.a", "1", "--hf-overrides.a.b", "1"], "a has a value already"),
        (["m", "--hf-overrides", "{}", "--hf-overrides.a", "1"], "give it in one way"),
        (["m", "--hf-override.a", "1"], "unknown option --hf-override; did you mean --hf-overrides?"),
        (["m", "--gpu-memory-utilization", "2"], "<= 1"),
        ([], "name a model"),
        (["m", "--model", "other"], "two models"),
        (["m", "n"], "(a text of several words needs quotes): n"),
    ],
)
def test_mistakes(arguments: list[str], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        engine(*arguments)
    assert words in caught.value.message


def sampling(*arguments: str, **more: Any) -> SamplingParams:
    parser = Parser("test", "")
    add_sampling(parser)
    return take_sampling(parser.parse(arguments), SamplingParams(top_k=5), **more)


def test_sampling_flags() -> None:
    params = sampling("--temperature", "0", "--max-tokens", "9", "--stop", "a", "--stop", "b", "--ignore-eos", n=2)
    assert (params.temperature, params.max_tokens, params.stop, params.ignore_eos) == (0, 9, ["a", "b"], True)
    assert (params.top_k, params.n) == (5, 2)
    with pytest.raises(ConfigError, match="top_p must be"):
        sampling("--top-p", "3")


def texts(*arguments: str, nargs: str = "*") -> tuple[Any, ...]:
    """The model and the texts of a command that takes both."""
    parser = Parser("test", "")
    add_model(parser)
    parser.add_argument("texts", nargs=nargs)
    parser.add_argument("--system")
    parser.add_argument("--top-k", type=int)
    values = parser.parse(arguments)
    shift_model(values, "texts")
    return values["model_argument"] or values["model"], values["texts"], values["system"]


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["m", "-- select my_col from t where a_b=1"], ["-- select my_col from t where a_b=1"]),
        (["m", "--- my_rules\n"], ["--- my_rules\n"]),
        (["m", "--top_k", "3", "a_b", "c"], ["a_b", "c"]),
        (["m", "a", "--top-k", "3", "c", "--", "--top_k", "-x", "--", "-"], ["a", "c", "--top_k", "-x", "--", "-"]),
        (["--model", "m", "a", "b"], ["a", "b"]),
        (["--model", "m", "m", "a"], ["a"]),
        (["m", "-"], ["-"]),
    ],
)
def test_texts_stand_anywhere_and_stay_what_they_are(arguments: list[str], found: list[str]) -> None:
    assert texts(*arguments)[:2] == ("m", found)


def test_a_single_text() -> None:
    assert texts("--model", "m", "a", nargs="?")[:2] == ("m", "a")
    assert texts("m", "--top-k", "3", "a", nargs="?")[:2] == ("m", "a")
    assert texts("m", "--system", "--- be_kind", "a", nargs="?") == ("m", "a", "--- be_kind")
    assert texts("m", "--system", "-", nargs="?") == ("m", None, "-")
    with pytest.raises(ConfigError, match=r"too many arguments .*: -x"):
        texts("m", "a", "--", "-x", nargs="?")


def test_a_list_of_values_ends_at_two_dashes() -> None:
    parser = Parser("test", "")
    add_model(parser)
    parser.add_argument("--keys", nargs="+")
    assert parser.parse(["--keys", "a", "b", "--", "m"])["model_argument"] == "m"


@pytest.mark.parametrize("name", ["api_key", "admin_api_key", "served_model_name", "allowed_origins"])
def test_a_variable_that_is_not_set_opens_no_server(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}: must be a list of texts, none of them empty") as caught:
        build_struct(ServerConfig, {name: ["secret", ""]})
    assert "secret" not in str(caught.value)

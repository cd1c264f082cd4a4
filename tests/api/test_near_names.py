"""A name that is not known leads to the one that does the same here, whatever program it is of, or to none."""

from __future__ import annotations

import pytest

from octavo.api.arguments import FOREIGN, OPTION_NAMES
from octavo.base.near import nearest
from octavo.server.openai.types import ChatRequest

FIELDS = ChatRequest.__struct_fields__


@pytest.mark.parametrize(
    ("name", "option", "field"),
    [
        ("use_cache", None, None),
        ("use_mmap", None, None),
        ("num_tokens", None, "max_tokens"),
        ("max_new_tokens", None, "max_tokens"),
        ("max_output_tokens", None, "max_tokens"),
        ("n_predict", None, "max_tokens"),
        ("token_limit", None, "max_tokens"),
        ("max_length", "max_model_len", "max_tokens"),
        ("max_seq_len", "max_model_len", None),
        ("num_ctx", "max_model_len", None),
        ("ctx_size", "max_model_len", None),
        ("context_window", "max_model_len", None),
        ("repeat_penalty", None, "repetition_penalty"),
        ("rep_pen", None, "repetition_penalty"),
        ("top_n_sigma", None, None),
        ("tensor_parallel", "tensor_parallel_size", None),
        ("num_gpus", "tensor_parallel_size", None),
        ("gpu_layers", "device", None),
        ("n_gpu_layers", "device", None),
        ("num_gpu", "device", None),
        ("torch_dtype", "dtype", None),
        ("data_type", "dtype", None),
        ("precision", "dtype", None),
        ("dtyp", "dtype", None),
        ("kv_cache", "kv_cache_dtype", None),
        ("cache_type_k", "kv_cache_dtype", None),
        ("enable_prefix_cache", "enable_prefix_caching", None),
        ("prefix_cache", "enable_prefix_caching", None),
        ("split_mode", None, None),
        ("stop_token", None, "stop_token_ids"),
        ("stop_words", None, "stop"),
        ("bos_token_id", None, None),
        ("eos_token_id", None, "stop_token_ids"),
        ("num_return_sequences", None, "n"),
        ("response_schema", None, "response_format"),
        ("return_logprob", None, "top_logprobs"),
        ("draft_model", "spec_model", None),
        ("num_speculative_tokens", "spec_tokens", None),
        ("model_name", "model", "model"),
    ],
)
def test_names_of_other_programs(name: str, option: str | None, field: str | None) -> None:
    assert nearest(name, [*OPTION_NAMES, *FOREIGN], refused=list(FOREIGN)) == option
    assert nearest(name, FIELDS) == field


def test_flags_are_names() -> None:
    assert nearest("--max-new-tokens", ["--max-tokens", "--max-model-len"]) == "--max-tokens"
    assert nearest("--json-schema", ["--jsonl"]) is None
    assert nearest("--jsnol", ["--jsonl"]) == "--jsonl"

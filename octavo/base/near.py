"""A name that is not known in; the one that it is likely meant for out: of temp, topP, rep_penalty, max_new_tokens.

What another program calls it comes before what it looks like.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Collection

_ENOUGH = 0.55  # 0.5 is one word of two, as of use_cache and cache_salt
_ALIKE = 0.75  # letters of two words
_ABBREVIATED, _LENGTHENED = 0.9, 0.8
_SHORTEST = 3  # letters of an abbreviation
_SURE = 0.75  # of names that are refused

_MOST_TOKENS = ("max_tokens", "max_output_tokens", "max_new_tokens")
_CONTEXT = ("max_model_len", *_MOST_TOKENS)

ELSEWHERE: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("n", "predict", "n_predict", "num_predict", "num_tokens", "n_tokens", "new_tokens"), _MOST_TOKENS),
    **dict.fromkeys(
        ("max_tokens", "max_token", "max_new_tokens", "max_output_tokens", "max_completion_tokens"), _MOST_TOKENS
    ),
    **dict.fromkeys(
        ("max_tokens_to_sample", "max_gen_len", "max_gen_toks", "output_tokens", "token_limit"), _MOST_TOKENS
    ),
    **dict.fromkeys(("min_length", "min_new_tokens"), ("min_tokens",)),
    **dict.fromkeys(("num_return_sequences", "candidate_count", "num_completions"), ("n",)),
    **dict.fromkeys(("c", "ctx", "ctx_size", "n_ctx", "num_ctx", "context"), ("max_model_len",)),
    **dict.fromkeys(("context_length", "context_size", "context_window", "max_context"), ("max_model_len",)),
    **dict.fromkeys(("max_seq_len", "max_seq_length", "max_sequence_length", "max_total_tokens"), ("max_model_len",)),
    **dict.fromkeys(("max_position_embeddings", "max_context_len", "max_context_length"), ("max_model_len",)),
    **dict.fromkeys(("max_len", "max_length"), _CONTEXT),
    **dict.fromkeys(("m", "hf", "hf_repo", "model_path"), ("model",)),
    **dict.fromkeys(("t", "n_threads", "num_thread"), ("threads",)),
    **dict.fromkeys(("ngl", "gpu_layers", "n_gpu_layers", "num_gpu", "gpu"), ("device",)),
    **dict.fromkeys(("np", "parallel", "n_parallel", "max_running_requests", "max_batch_size"), ("max_num_seqs",)),
    **dict.fromkeys(("max_sequences", "max_concurrency"), ("max_num_seqs",)),
    **dict.fromkeys(("b", "batch", "batch_size", "n_batch", "chunked_prefill_size"), ("max_num_batched_tokens",)),
    **dict.fromkeys(("tp", "tp_size", "tensor_parallel", "num_gpus", "num_shard"), ("tensor_parallel_size",)),
    **dict.fromkeys(("ctk", "ctv", "cache_type_k", "cache_type_v", "type_k", "type_v"), ("kv_cache_dtype",)),
    **dict.fromkeys(("kv_bits", "kv_cache_type"), ("kv_cache_dtype",)),
    **dict.fromkeys(("torch_dtype", "data_type", "precision"), ("dtype",)),
    **dict.fromkeys(("prefix_cache", "cache_prompt"), ("enable_prefix_caching",)),
    **dict.fromkeys(("disable_radix_cache", "no_cache_prompt"), ("no_enable_prefix_caching",)),
    **dict.fromkeys(("draft", "draft_model", "md", "model_draft", "speculative_model"), ("spec_model",)),
    **dict.fromkeys(("draft_max", "num_speculative_tokens"), ("spec_tokens",)),
    **dict.fromkeys(("sys", "system_prompt"), ("system",)),
    **dict.fromkeys(("a", "alias", "model_alias"), ("served_model_name",)),
    **dict.fromkeys(("output_format", "response_schema", "response_type"), ("response_format",)),
    **dict.fromkeys(("truncate", "truncation"), ("truncate_prompt_tokens",)),
    **dict.fromkeys(("return_logprob", "top_logprob", "top_logprobs"), ("top_logprobs", "logprobs")),
    "early_stop": ("early_stopping",),
    "quantize": ("quantization",),
    "token": ("hf_token",),
    "mem_fraction_static": ("gpu_memory_utilization",),
    "temp": ("temperature",),
    "repeat_penalty": ("repetition_penalty",),
    "chat_template_file": ("chat_template",),
    "output_dimension": ("dimensions",),
    "embedding_type": ("encoding_format",),
    "texts": ("documents",),
    # what they look like is something else
    **dict.fromkeys(("use_cache", "bos_token_id", "pad_token_id", "options"), ()),
}
"""Names of llama.cpp, its Python binding, Ollama, SGLang, TGI, Transformers, Llama's own code and of APIs that pool
(Voyage's, Jina's, NIM's, TEI's) -> those that do the same, the first of which that is known is meant; or none.
"""


def nearest(name: str, known: Collection[str], *, refused: Collection[str] = ()) -> str | None:
    """The known name that shares the most words with `name`, abbreviated or misspelled ones too; None if none does.

    Flags count as the names that they are made of. refused: those of the known that are worth naming where `name` is
    hardly anything else.
    """
    own = _plain(name)
    if own in ELSEWHERE:
        plain = {_plain(one): one for one in known}
        return next((plain[one] for one in ELSEWHERE[own] if one in plain), None)
    words = _words(name)
    best, found = (0.0, 0.0), None
    for one in known:
        others = _words(one)
        share = 1.0 if "".join(words) == "".join(others) else _share(words, others)
        if share < (_SURE if one in refused else _ENOUGH) or share < best[0]:
            continue
        score = (share, difflib.SequenceMatcher(None, one, name).ratio())
        if score > best:
            best, found = score, one
    return found


def _plain(name: str) -> str:
    return name.lstrip("-").replace("-", "_")


@functools.lru_cache(1024)
def _words(name: str) -> list[str]:
    return [word.lower() for word in re.findall(r"[A-Z]?[a-z0-9]+|[A-Z]+", name)]


def _share(words: list[str], others: list[str]) -> float:
    """Of all words of two names, those that they share: 0 to 1. One word of several is itself or nothing: use_mmap has
    no `user` in it, nor token_limit a `tokenizer`."""
    if len(others) == 1 < len(words) and others[0] not in words:
        return 0.0
    shared = sum(max((_likeness(word, other) for other in others), default=0.0) for word in words if len(word) > 1)
    return 2 * shared / (len(words) + len(others)) if others else 0.0


def _likeness(word: str, other: str) -> float:
    if word == other:
        return 1.0
    if len(word) >= _SHORTEST and other.startswith(word):
        return _ABBREVIATED
    if len(other) > _SHORTEST and word.startswith(other):
        return _LENGTHENED
    if 2 * min(len(word), len(other)) < _ALIKE * (len(word) + len(other)):
        return 0.0
    letters = difflib.SequenceMatcher(None, other, word)
    ratio = letters.ratio() if letters.quick_ratio() >= _ALIKE else 0.0
    return ratio if ratio >= _ALIKE else 0.0

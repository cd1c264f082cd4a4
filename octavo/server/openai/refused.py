"""Fields of the protocol that this server does not support, with the values that ask for nothing (those pass)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta

from octavo.server.strict import Strict

Empty = Annotated[list[Any], Meta(max_length=0)]
EmptyObject = Annotated[dict[str, Any], Meta(max_length=0)]


class UnsupportedFields(Strict, frozen=True, kw_only=True):
    """Every known field that is not supported; a value outside its type is refused with the reason in REASONS."""

    best_of: Literal[1] | None = None
    suffix: Literal[""] | None = None
    early_stopping: Literal[False] | None = None
    logits_processors: Empty | None = None
    guided_decoding_backend: Literal["auto", "guidance"] | None = None
    structural_tag: None = None
    logprob_token_ids: Empty | None = None
    prompt_logprob_token_ids: Empty | None = None
    flat_logprobs: Literal[False] | None = None
    return_token_offsets: Literal[False] | None = None
    prompt_embeds: None = None
    truncation_side: Literal["left"] | None = None
    repetition_detection: None = None
    kv_transfer_params: None = None
    ec_transfer_params: None = None
    vllm_xargs: EmptyObject | None = None
    session_id: None = None
    mm_processor_kwargs: EmptyObject | None = None
    media_io_kwargs: EmptyObject | None = None
    functions: Empty | None = None
    function_call: Literal["none"] | None = None
    modalities: Annotated[list[Literal["text"]], Meta(max_length=1)] | None = None
    audio: None = None
    prediction: None = None
    web_search_options: None = None
    verbosity: Literal["medium"] | None = None
    moderation: None = None
    prompt_cache_options: None = None
    prompt_cache_retention: Literal["in_memory"] | None = None
    cache_prompt: Literal[True] | None = None
    store: Literal[False] | None = None
    service_tier: Literal["auto", "default"] | None = None


_TEXT_ONLY = "this server takes and gives text only"

REASONS: dict[str, str] = {
    "best_of": "ask for n completions and choose among them",
    "suffix": "filling in a middle is not available; put all the text into the prompt",
    "early_stopping": "a search ends when no beam can win any more, which changes no result; leave it out",
    "logits_processors": "use logit_bias, allowed_token_ids or bad_words",
    "guided_decoding_backend": "grammars are llguidance's; leave it out, or send 'auto' or 'guidance'",
    "structural_tag": "send it in structured_outputs, or as response_format",
    "logprob_token_ids": "ask for the most likely tokens with logprobs",
    "prompt_logprob_token_ids": "ask for the most likely tokens with prompt_logprobs",
    "flat_logprobs": "logprobs come as OpenAI's objects",
    "return_token_offsets": "compute them from /tokenize with return_token_strs",
    "prompt_embeds": "send text or token ids",
    "truncation_side": "prompts are cut at the left",
    "add_special_tokens": "it is true or false, with messages false only: the chat template writes them",
    "reasoning_effort": "it is for chats, one of none, minimal, low, medium, high, xhigh, max",
    "include_reasoning": "reasoning is told apart in chats only",
    "repetition_detection": "use repetition_penalty or stop",
    "kv_transfer_params": "the KV cache stays in this server",
    "ec_transfer_params": "the KV cache stays in this server",
    "vllm_xargs": "there are no plugins that would read it",
    "session_id": "send the whole conversation; its prefix is found in the cache",
    "mm_processor_kwargs": _TEXT_ONLY,
    "media_io_kwargs": _TEXT_ONLY,
    "functions": "use tools",
    "function_call": "use tools and tool_choice",
    "modalities": _TEXT_ONLY,
    "audio": _TEXT_ONLY,
    "prediction": "leave it out",
    "web_search_options": "there is no search here",
    "verbosity": "ask for it in the prompt",
    "moderation": "there is no moderation here",
    "prompt_cache_options": "prefixes are cached without being asked for",
    "prompt_cache_retention": "prefixes are kept in memory while there is room",
    "cache_prompt": "leave it out: prefixes are cached, but for a server started with --no-enable-prefix-caching",
    "store": "nothing is stored; leave it out or send false",
    "service_tier": "there is one tier; leave it out or send 'auto'",
    "tool_choice": 'send \'none\', \'auto\', \'required\', {"type": "function", "function": {"name": ...}}, or '
    '{"type": "allowed_tools", "allowed_tools": {"mode": "auto" or "required", "tools": [...]}}',
}
"""Why, or what to do instead, by field; tool_choice has values that are supported and values that are not."""

"""The JSON bodies that clients get, as types. UNSET fields do not appear; None appears as null."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType

from octavo.server.openai.timing import RequestMetrics


def told(flag: bool | None) -> bool | UnsetType:
    """A field that is there where there is something to tell."""
    return UNSET if flag is None else flag


class PromptTokensDetails(msgspec.Struct, frozen=True):
    """cached_tokens: found in the prefix cache."""

    cached_tokens: int


class CompletionTokensDetails(msgspec.Struct, frozen=True):
    """reasoning_tokens: of the completion's."""

    reasoning_tokens: int


class Usage(msgspec.Struct, frozen=True):
    """Token counts of a request over all its prompts and choices."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails | UnsetType = UNSET


class PromptLogprob(msgspec.Struct, frozen=True):
    """vLLM's form of one alternative at a prompt position."""

    logprob: float
    rank: int | None
    decoded_token: str | None


PromptLogprobs = list[dict[int, PromptLogprob] | None]


class CompletionLogprobs(msgspec.Struct, frozen=True):
    """Parallel lists, one entry a token; text_offset counts characters of the choice's text."""

    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


class TopLogprob(msgspec.Struct, frozen=True):
    """One alternative at one position; bytes: the token's text as UTF-8."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(msgspec.Struct, frozen=True):
    """The token that was taken at one position, and the most likely ones."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct, frozen=True):
    """Log probabilities of a message's tokens."""

    content: list[TokenLogprob]
    refusal: None = None


class CompletionChoice(msgspec.Struct, frozen=True, kw_only=True):
    """One choice of a completion, whole or as a piece of a stream."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    structured_outputs_valid: bool | UnsetType = UNSET
    token_ids: list[int] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET


class CompletionReply(msgspec.Struct, frozen=True, kw_only=True):
    """POST /v1/completions."""

    id: str
    object: str = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage
    metrics: RequestMetrics | UnsetType = UNSET


class ReplyFunction(msgspec.Struct, frozen=True, kw_only=True):
    """A call's function; arguments is JSON text, in a stream a piece of it."""

    name: str | UnsetType = UNSET
    arguments: str


class ReplyToolCall(msgspec.Struct, frozen=True, kw_only=True):
    """A tool call, or in a stream what comes to the one at `index`."""

    index: int | UnsetType = UNSET
    id: str | UnsetType = UNSET
    type: str | UnsetType = UNSET
    function: ReplyFunction


class ReplyMessage(msgspec.Struct, frozen=True, kw_only=True):
    """A message, or in a stream what comes to it. Reasoning has both its names, today's and the older one, unless
    ServerConfig.reasoning_field says otherwise; null where there is none, of a model that may have some. refusal is
    never told apart from content, but OpenAI's types want the field in whole messages.
    """

    role: str | UnsetType = UNSET
    content: str | UnsetType | None = UNSET
    refusal: UnsetType | None = UNSET
    reasoning: str | UnsetType | None = UNSET
    reasoning_content: str | UnsetType | None = UNSET
    tool_calls: list[ReplyToolCall] | UnsetType = UNSET


class ChatChoice(msgspec.Struct, frozen=True, kw_only=True):
    """One choice of a chat reply."""

    index: int
    message: ReplyMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    structured_outputs_valid: bool | UnsetType = UNSET
    token_ids: list[int] | UnsetType = UNSET


class ChatReply(msgspec.Struct, frozen=True, kw_only=True):
    """POST /v1/chat/completions. system_fingerprint is not told, but OpenRouter's client wants the field."""

    id: str
    object: str = "chat.completion"
    created: int
    model: str
    system_fingerprint: None = None
    choices: list[ChatChoice]
    usage: Usage
    metrics: RequestMetrics | UnsetType = UNSET
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET


class ChatDelta(msgspec.Struct, frozen=True, kw_only=True):
    """One choice's piece of a chat stream."""

    index: int
    delta: ReplyMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    structured_outputs_valid: bool | UnsetType = UNSET
    token_ids: list[int] | UnsetType = UNSET


class ModelCard(msgspec.Struct, frozen=True, kw_only=True):
    """One model of /v1/models. max_model_len is null until the model is loaded."""

    id: str
    object: str = "model"
    created: int
    owned_by: str = "octavo"
    root: str
    parent: str | None = None
    max_model_len: int | None


class ModelList(msgspec.Struct, frozen=True, kw_only=True):
    """GET /v1/models."""

    object: str = "list"
    data: list[ModelCard]


class TokenizeReply(msgspec.Struct, frozen=True, kw_only=True):
    """POST /tokenize."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class TokenizerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """GET /tokenizer_info, with the names of a checkpoint's tokenizer_config.json."""

    model_max_length: int
    vocab_size: int
    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    unk_token: str | None
    eos_token_ids: list[int]
    special_tokens: dict[str, int]
    chat_template: str | None


class DetokenizeReply(msgspec.Struct, frozen=True):
    """POST /detokenize."""

    prompt: str

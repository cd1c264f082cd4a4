"""The JSON bodies that clients send, as types. A field that is not here is refused by name.

Sampling fields carry no bounds here: SamplingParams checks them, the same for every way in. null means not given.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from octavo.server.openai.structured import StructuredFields
from octavo.server.strict import Strict, Tagged
from octavo.text.tools.reading import NAME

MAX_PROMPTS = 1024
MAX_MESSAGES = 16_384  # and parts of one, and calls: each is looked at on the event loop

Label = Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[\x21-\x7e]+\Z")]
Salt = Annotated[str, Meta(min_length=1, max_length=128)]
Identifier = Annotated[str, Meta(max_length=512)]
TokenId = Annotated[int, Meta(ge=0, lt=2**31)]
Priority = Annotated[int, Meta(ge=-(2**31), lt=2**31)]
Truncation = Annotated[int, Meta(ge=-1, lt=2**31)]


class StreamOptions(Strict, frozen=True, kw_only=True):
    """include_usage: a last chunk tells the token counts; continuous_usage_stats: every chunk does.

    include_obfuscation: padding against eavesdroppers, which this server does not add.
    """

    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None
    continuous_usage_stats: bool | None = None


class GenerationRequest(StructuredFields, frozen=True, kw_only=True):
    """What completions and chat share. Names and meanings are OpenAI's and vLLM's.

    user, metadata, safety_identifier and prompt_cache_key label a request for a provider's books; nothing here
    depends on them (prefixes are found by content).  include_metrics: tell where the time went (docs/monitoring.md).
    use_beam_search: n is the beam width; see beams.py.  return_tokens_as_token_ids: log probabilities name tokens by
    their ids ("token_id:5"), as parts of characters have one text.
    """

    model: Annotated[str, Meta(max_length=512)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    logit_bias: dict[int, float] | None = None
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    thinking_token_budget: int | None = None
    prompt_logprobs: int | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    use_beam_search: bool | None = None
    length_penalty: float | None = None
    truncate_prompt_tokens: Truncation | None = None
    echo: bool | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    include_metrics: bool | None = None
    priority: Priority | None = None
    cache_salt: Salt | None = None
    request_id: Label | None = None
    user: Identifier | None = None
    metadata: dict[str, str] | None = None
    safety_identifier: Identifier | None = None
    prompt_cache_key: Identifier | None = None


class CompletionRequest(GenerationRequest, frozen=True, kw_only=True):
    """POST /v1/completions. prompt: a text, token ids, or a list of either."""

    prompt: str | list[int | str | list[int]]
    logprobs: int | None = None
    add_special_tokens: bool | None = None
    include_reasoning: Literal[True] | None = None
    reasoning_effort: None = None


class CacheControl(Strict, frozen=True, kw_only=True):
    """Where a prefix to be cached ends. Every prefix is cached here while there is room, so this asks for nothing."""

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None
    scope: Literal["global"] | None = None


class TextPart(Tagged, frozen=True, tag="text", omit_defaults=True):
    """The one kind of message part that a text model takes. annotations: of the text, another server's; OpenAI's agents
    in JavaScript send an empty list of them with each text that was streamed to them.
    """

    text: str
    cache_control: CacheControl | None = None
    annotations: list[Any] | None = None


class RefusalPart(Tagged, frozen=True, tag="refusal"):
    """A part of the assistant's in which it refused, as OpenAI's models do."""

    refusal: str

    @property
    def text(self) -> str:
        """What it said."""
        return self.refusal


MessagePart = TextPart | RefusalPart


class FunctionCall(Strict, frozen=True):
    """A call that the assistant made before; arguments is JSON text, which parsed_arguments says once more: the openai
    client puts it into replies, and sends it back with them. go-openai leaves out what is empty.
    """

    name: str
    arguments: str = ""
    parsed_arguments: Any = None
    provider_specific_fields: dict[str, Any] | None = None


class ToolCall(Strict, frozen=True, kw_only=True):
    """One of an assistant message's tool_calls. Another server's marks (Gemini's thought signatures, which its own API
    has in extra_content, LiteLLM in provider_specific_fields) are left out.
    """

    function: FunctionCall
    id: Identifier | None = None
    type: Literal["function"] = "function"
    index: int | None = None
    extra_content: dict[str, Any] | None = None
    provider_specific_fields: dict[str, Any] | None = None


class Message(Strict, frozen=True, kw_only=True):
    """One message of a conversation. Replies of this server can be sent back as they are, with what clients put into
    them: openai's `parsed` says once more what content does, LiteLLM's thinking_blocks and provider_specific_fields
    what reasoning does. reasoning_details: reasoning as OpenRouter tells it, which Cline sends on to other servers.
    annotations: of the content, another server's.  copilot_cache_control: cache_control as VS Code's Copilot calls it.
    """

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[MessagePart], Meta(max_length=MAX_MESSAGES)] | None = None
    name: Identifier | None = None
    tool_calls: Annotated[list[ToolCall], Meta(max_length=MAX_MESSAGES)] | None = None
    tool_call_id: Identifier | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    reasoning_details: list[dict[str, Any]] | None = None
    refusal: str | None = None
    parsed: Any = None
    thinking_blocks: list[Any] | None = None
    provider_specific_fields: dict[str, Any] | None = None
    cache_control: CacheControl | None = None
    copilot_cache_control: CacheControl | None = None
    annotations: list[Any] | None = None
    audio: None = None
    function_call: None = None


class FunctionSpec(Strict, frozen=True, kw_only=True, omit_defaults=True):
    """A function that the model may call; parameters is a JSON schema, shown to the model as it is."""

    name: Annotated[str, Meta(max_length=128, pattern=rf"^{NAME}\Z")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Strict, frozen=True, kw_only=True):
    """An entry of `tools`. Templates print it in this order, without cache_control."""

    type: Literal["function"] = "function"
    function: FunctionSpec
    cache_control: CacheControl | None = None

    def shown(self) -> dict[str, Any]:
        """What the chat template gets."""
        return {"type": self.type, "function": msgspec.to_builtins(self.function)}


class NamedFunction(Strict, frozen=True):
    """A function by its name."""

    name: str


class NamedTool(Strict, frozen=True, kw_only=True):
    """One of `tools` by its function's name."""

    function: NamedFunction
    type: Literal["function"] = "function"


MAX_TOOLS = 512


class AllowedTools(Strict, frozen=True, kw_only=True):
    """Those of `tools` that may be called. mode: as the tool_choice of this name."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Meta(min_length=1, max_length=MAX_TOOLS)]


class ToolChoiceObject(Strict, frozen=True, kw_only=True):
    """tool_choice that demands a call of one function, or allows calls of some."""

    type: Literal["function", "allowed_tools"] = "function"
    function: NamedFunction | None = None
    allowed_tools: AllowedTools | None = None

    def __post_init__(self) -> None:
        for name in ("function", "allowed_tools"):
            if (getattr(self, name) is None) == (name == self.type):
                raise ValueError(f"{self.type} has a field of its name, and no other")


Tools = Annotated[list[Tool], Meta(max_length=MAX_TOOLS)]
ToolChoice = Literal["none", "auto", "required"] | ToolChoiceObject
ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
Messages = Annotated[list[Message], Meta(min_length=1, max_length=MAX_MESSAGES)]


class Thinking(Strict, frozen=True, kw_only=True):
    """Reasoning on or off, as GLM's, Kimi's and DeepSeek's own APIs have it."""

    type: Literal["enabled", "disabled"]


class ChatRequest(GenerationRequest, frozen=True, kw_only=True):
    """POST /v1/chat/completions. include_reasoning false leaves reasoning out of the reply; reasoning_effort goes to
    the chat template, which enable_thinking (as Qwen's own API has it) and thinking turn on or off.
    thinking_budget: Qwen's name of thinking_token_budget.
    """

    messages: Messages
    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    include_reasoning: bool | None = None
    reasoning_effort: ReasoningEffort | None = None
    enable_thinking: bool | None = None
    thinking: Thinking | None = None
    thinking_budget: int | None = None
    documents: list[dict[str, Any]] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    add_special_tokens: Literal[False] | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None


class TokenizeTextRequest(Strict, frozen=True, kw_only=True):
    """POST /tokenize of a text."""

    prompt: str
    messages: None = None
    model: Annotated[str, Meta(max_length=512)] | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None


class TokenizeChatRequest(Strict, frozen=True, kw_only=True):
    """POST /tokenize of a conversation."""

    messages: Messages
    prompt: None = None
    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    documents: list[dict[str, Any]] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    add_special_tokens: Literal[False] | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    model: Annotated[str, Meta(max_length=512)] | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(Strict, frozen=True, kw_only=True):
    """POST /detokenize."""

    tokens: list[TokenId]
    model: Annotated[str, Meta(max_length=512)] | None = None

"""Bodies of POST /v1/responses and /v1/responses/input_tokens, as types. A field not here is refused by name."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta

from octavo.server.openai.refused import Empty
from octavo.server.openai.structured import JsonObjectFormat, TextFormat
from octavo.server.openai.types import MAX_MESSAGES, MAX_TOOLS, Identifier, Priority, ReasoningEffort, Salt
from octavo.server.strict import Strict, Tagged

Metadata = Annotated[dict[str, str], Meta(max_length=16)]

_NOT_KEPT = "conversations are not kept; use previous_response_id, or send all items in input"


class SchemaFormat(Tagged, frozen=True, kw_only=True, tag="json_schema"):
    """JSON of a schema. It is enforced whatever `strict` says; name and description are the client's own."""

    schema: dict[str, Any]
    name: Annotated[str, Meta(max_length=64)] | None = ""
    description: str | None = None
    strict: bool | None = None


class TextConfig(Strict, frozen=True, kw_only=True):
    """The answer's form."""

    format: TextFormat | JsonObjectFormat | SchemaFormat | None = None
    verbosity: Literal["medium"] | None = None


class FunctionTool(Tagged, frozen=True, kw_only=True, tag="function"):
    """A function that the model may call; parameters is a JSON schema."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    allowed_callers: Annotated[list[Literal["direct"]], Meta(max_length=1)] | None = None
    defer_loading: Literal[False] | None = None
    output_schema: None = None
    not_async: Literal[False] | None = msgspec.field(name="async", default=None)


class NamespaceTool(Tagged, frozen=True, kw_only=True, tag="namespace"):
    """Functions of one origin, as Codex groups those of an MCP server; their calls tell the namespace."""

    name: Annotated[str, Meta(min_length=1, max_length=128)]
    tools: Annotated[list[FunctionTool], Meta(max_length=MAX_TOOLS)]
    description: str | None = ""


class FunctionChoice(Tagged, frozen=True, kw_only=True, tag="function"):
    """tool_choice that demands a call of one function."""

    name: str


class AllowedChoice(Tagged, frozen=True, kw_only=True, tag="allowed_tools"):
    """tool_choice that allows calls of some functions. mode: as the tool_choice of this name."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[FunctionChoice], Meta(min_length=1, max_length=MAX_TOOLS)]


class ReasoningConfig(Strict, frozen=True, kw_only=True):
    """effort goes to the chat template, which decides on earlier turns' reasoning, too. summary: none is made, as of
    some of OpenAI's models, whatever is asked for: the whole reasoning is told.
    """

    effort: ReasoningEffort | None = None
    summary: Literal["auto", "concise", "detailed", "none"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None
    context: Literal["auto"] | None = None
    mode: Literal["standard"] | None = None


Told = Literal[
    "reasoning.encrypted_content",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
]
"""Reasoning is told openly: there is none to encrypt. Of what the others are about there is none in any item."""
Includable = Literal[Told, "message.output_text.logprobs"]
"""More to be told of items."""
LOGPROBS: Includable = "message.output_text.logprobs"


class ResponseStreamOptions(Strict, frozen=True, kw_only=True):
    """include_obfuscation: padding against eavesdroppers, which this server does not add.

    include_usage: a chat's, which AIPerf sends here, too; the last event tells the usage anyhow.
    """

    include_obfuscation: Literal[False] | None = None
    include_usage: Literal[True] | None = None


Input = str | Annotated[list[dict[str, Any]], Meta(max_length=MAX_MESSAGES)]


class PromptFields(Strict, frozen=True, kw_only=True):
    """What both routes have: what makes the prompt, and what of an answer some clients send along with it."""

    REASONS: ClassVar[dict[str, str]] = {
        "conversation": _NOT_KEPT,
        "context_management": "shorten the input yourself",
        "personality": "ask for it in instructions",
        "prompt": "there are no stored prompts; send instructions and input",
        "include": "it is a list of OpenAI's names, of which message.output_text.logprobs adds to answers",
        "truncation": "it is 'auto', which leaves out the beginning of a conversation that does not fit, or 'disabled'",
        "service_tier": "there is one tier; leave it out or send 'auto'",
        "moderation": "there is no moderation here",
        "reasoning": "effort is one of none, minimal, low, medium, high, xhigh, max; summary one of auto, concise, "
        "detailed (none is made: the whole reasoning is told, as reasoning_text); context is 'auto', mode 'standard'",
        "text": "format is of type 'text', 'json_object' or 'json_schema', and verbosity 'medium'",
        "tools": "tools are functions that the client carries out, {'type': 'function', 'name': ...}, alone or in a "
        "namespace; leave out what a provider would (Codex: docs/protocols.md tells how)",
        "tool_choice": "send 'none', 'auto', 'required', {'type': 'function', 'name': ...}, or {'type': "
        "'allowed_tools', 'mode': 'auto' or 'required', 'tools': [{'type': 'function', 'name': ...}, ...]}",
        "stream_options": "no obfuscation is added, and the last event tells the usage; leave it out",
        "prompt_cache_options": "prefixes are cached without being asked for",
        "prompt_cache_retention": "prefixes are kept in memory while there is room",
    }

    model: Annotated[str, Meta(max_length=512)] | None = None
    instructions: str | None = None
    previous_response_id: Identifier | None = None
    text: TextConfig | None = None
    tools: Annotated[list[FunctionTool | NamespaceTool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | FunctionChoice | AllowedChoice | None = None
    reasoning: ReasoningConfig | None = None
    parallel_tool_calls: bool | None = None
    truncation: Literal["auto", "disabled"] | None = None
    conversation: None = None
    chat_template_kwargs: dict[str, Any] | None = None


class ResponseQuery(Strict, frozen=True, kw_only=True):
    """GET /v1/responses/{id}. What include may ask for is told anyhow.

    stream: the events of one made in the background as a stream, those after the sequence_number `starting_after`.
    """

    include: list[Includable] | None = None
    stream: bool | None = None
    starting_after: Annotated[int, Meta(ge=0)] | None = None
    include_obfuscation: Literal["false"] | None = None


class InputTokensRequest(PromptFields, frozen=True, kw_only=True):
    """POST /v1/responses/input_tokens. Without input it is the prompt of what previous_response_id names."""

    input: Input | None = None
    personality: None = None


class ResponsesRequest(PromptFields, frozen=True, kw_only=True):
    """POST /v1/responses. input: a text, or items (messages, calls, their outputs, reasoning).

    store: keep the answer for GET and previous_response_id, which it is unless false.  The fields from top_k on are
    the same as a chat's.  max_tool_calls bounds the calls that a provider carries out: there are none.  user, metadata,
    safety_identifier and prompt_cache_key are labels, told back, and client_metadata (Codex's) is one that is not.
    """

    input: Input
    store: bool | None = None
    background: bool | None = None
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: Annotated[int, Meta(ge=0)] | None = None
    include: list[Includable] | None = None
    metadata: Metadata | None = None
    client_metadata: dict[str, str] | None = None
    user: Identifier | None = None
    safety_identifier: Identifier | None = None
    prompt_cache_key: Identifier | None = None
    service_tier: Literal["auto", "default"] | None = None
    context_management: Empty | None = None
    prompt: None = None
    max_tool_calls: Annotated[int, Meta(ge=1)] | None = None
    moderation: None = None
    prompt_cache_options: None = None
    prompt_cache_retention: Literal["in_memory"] | None = None
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
    min_tokens: int | None = None
    logit_bias: dict[int, float] | None = None
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    skip_special_tokens: bool | None = None
    priority: Priority | None = None
    cache_salt: Salt | None = None

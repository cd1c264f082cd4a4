"""The JSON bodies that Anthropic's clients send, as types. A field that is not here is refused by name."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta

from octavo.server.openai.refused import Empty
from octavo.server.openai.types import MAX_MESSAGES, CacheControl, Identifier
from octavo.server.strict import Strict, Tagged

Name = Annotated[str, Meta(min_length=1, max_length=512)]


class TextBlock(Tagged, frozen=True, kw_only=True, tag="text"):
    """Text."""

    text: str
    cache_control: CacheControl | None = None
    citations: Empty | None = None


class ThinkingBlock(Tagged, frozen=True, kw_only=True, tag="thinking"):
    """What the model thought in an earlier turn, as it was told then; there is nothing that a signature would guard."""

    thinking: str
    signature: str | None = None


class RedactedThinkingBlock(Tagged, frozen=True, kw_only=True, tag="redacted_thinking"):
    """What another server's model thought, which that server alone can read; it is left out."""

    data: str


class DirectCaller(Tagged, frozen=True, tag="direct"):
    """The model itself."""


class ToolUseBlock(Tagged, frozen=True, kw_only=True, tag="tool_use"):
    """A call that the model made."""

    id: Name
    name: str
    input: dict[str, Any]
    cache_control: CacheControl | None = None
    caller: DirectCaller | None = None
    toolset_name: None = None


class ToolResultBlock(Tagged, frozen=True, kw_only=True, tag="tool_result"):
    """What came of a call. is_error: the model is told so, by "Error: " before the content."""

    tool_use_id: Name
    content: str | Annotated[list[TextBlock], Meta(max_length=MAX_MESSAGES)] | None = None
    is_error: bool | None = None
    cache_control: CacheControl | None = None
    toolset_name: None = None


Block = TextBlock | ThinkingBlock | RedactedThinkingBlock | ToolUseBlock | ToolResultBlock


class MessageParam(Strict, frozen=True, kw_only=True):
    """One turn. A last turn of the assistant is gone on from; the system's stay where they stand."""

    role: Literal["user", "assistant", "system"]
    content: str | Annotated[list[Block], Meta(max_length=MAX_MESSAGES)]


class ThinkingDisabled(Tagged, frozen=True, tag="disabled"):
    """No thinking: where the chat template can turn it off, it does; none is told. The same as no `thinking`."""


class BlockBinding(Strict, frozen=True, kw_only=True):
    """What happens to thinking that belongs elsewhere: nothing, as none is told from the model's own."""

    prefix_mismatch_behavior: Literal["error", "drop_block"] | None = None


class ThinkingAdaptive(Tagged, frozen=True, kw_only=True, tag="adaptive"):
    """The model thinks as it likes, or not at all. display: "omitted" keeps it from being told."""

    display: Literal["summarized", "omitted"] | None = None
    block_binding: BlockBinding | None = None
    budget_tokens: int | None = None


class ThinkingEnabled(Tagged, frozen=True, kw_only=True, tag="enabled"):
    """It thinks. budget_tokens bounds that where the model marks thinking by a token each; max_tokens bounds all."""

    budget_tokens: Annotated[int, Meta(ge=1024)]
    display: Literal["summarized", "omitted"] | None = None
    block_binding: BlockBinding | None = None


Thinking = ThinkingDisabled | ThinkingAdaptive | ThinkingEnabled


class ToolParam(Strict, frozen=True, kw_only=True):
    """A function that the model may call; input_schema is a JSON schema."""

    name: str
    input_schema: dict[str, Any]
    description: str | None = None
    type: Literal["custom"] | None = None
    strict: bool | None = None
    cache_control: CacheControl | None = None
    defer_loading: Literal[False] | None = None
    eager_input_streaming: bool | None = None
    input_examples: Empty | None = None
    allowed_callers: Annotated[list[Literal["direct"]], Meta(max_length=1)] | None = None


class ChooseAuto(Tagged, frozen=True, kw_only=True, tag="auto"):
    """The model decides."""

    disable_parallel_tool_use: bool | None = None


class ChooseAny(Tagged, frozen=True, kw_only=True, tag="any"):
    """At least one call."""

    disable_parallel_tool_use: bool | None = None


class ChooseTool(Tagged, frozen=True, kw_only=True, tag="tool"):
    """A call of this function."""

    name: str
    disable_parallel_tool_use: bool | None = None


class ChooseNone(Tagged, frozen=True, kw_only=True, tag="none"):
    """No call."""


class SchemaOutput(Tagged, frozen=True, kw_only=True, tag="json_schema"):
    """JSON of a schema."""

    schema: dict[str, Any]


class OutputConfig(Strict, frozen=True, kw_only=True):
    """format: the answer's form.  effort: goes to the chat template."""

    format: SchemaOutput | None = None
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None


class MessageMetadata(Strict, frozen=True, kw_only=True):
    """A label for a provider's books; nothing here depends on it."""

    user_id: Identifier | None = None


class TurnsKept(Tagged, frozen=True, kw_only=True, tag="thinking_turns"):
    """Of the last `value` turns of the assistant that hold thinking."""

    value: Annotated[int, Meta(ge=1)]


class AllKept(Tagged, frozen=True, tag="all"):
    """Of all turns."""


class ClearThinking(Tagged, frozen=True, kw_only=True, tag="clear_thinking_20251015"):
    """Earlier turns' thinking is left out but for those kept; without `keep` the chat template decides, as ever."""

    keep: Literal["all"] | TurnsKept | AllKept = "all"


class Amount(Strict, frozen=True, kw_only=True):
    """So many tokens of the prompt, or calls."""

    type: Literal["input_tokens", "tool_uses"]
    value: Annotated[int, Meta(ge=0)]


class ClearToolUses(Tagged, frozen=True, kw_only=True, tag="clear_tool_uses_20250919"):
    """Old results of calls are cleared from a prompt longer than the trigger: taken where no prompt can be."""

    trigger: Amount = Amount(type="input_tokens", value=100_000)
    keep: Amount | None = None
    clear_at_least: Amount | None = None
    exclude_tools: list[str] | None = None
    clear_tool_inputs: bool | list[str] | None = None


class ContextManagement(Strict, frozen=True, kw_only=True):
    """How the conversation is shortened before the model reads it."""

    edits: Annotated[list[ClearThinking | ClearToolUses], Meta(max_length=16)] = []


class Diagnostics(Strict, frozen=True, kw_only=True):
    """Why no more of the prompt was cached may be told, for which nothing is kept: it is not."""

    previous_message_id: Identifier | None = None


class PromptRequest(Strict, frozen=True, kw_only=True):
    """What makes the prompt; shared by both routes. betas: names of features, whose own fields ask for them.

    output_format: what output_config.format was called before; LiteLLM sends it.
    """

    REASONS: ClassVar[dict[str, str]] = {
        "tools": "tools are functions that the client carries out: {'name': ..., 'input_schema': {...}}",
        "tool_choice": "its type is auto, any, tool or none",
        "thinking": "its type is disabled, adaptive or enabled (budget_tokens from 1024), display null, 'summarized' "
        "or 'omitted'",
        "output_config": "format is of type 'json_schema', effort one of low, medium, high, xhigh, max",
        "output_format": "it is of type 'json_schema'",
        "speed": "there is one speed; leave it out or send 'standard'",
        "service_tier": "there is one tier; leave it out or send 'auto'",
        "container": "there are no containers here",
        "context_management": "edits are of type clear_thinking_20251015, or clear_tool_uses_20250919 with a trigger "
        "of input_tokens that no prompt reaches; shorten the conversation yourself",
        "mcp_servers": "this server calls no tools itself",
        "diagnostics": "it holds previous_message_id",
        "billing_policy": "nothing is billed here",
        "compaction": "shorten the conversation yourself",
        "fallbacks": "there is one model; leave it out or send 'default'",
        "fallback_credit_token": "there is one model; leave it out",
        "inference_geo": "the server is where it is; leave it out",
        "thread": "conversations are not kept; send all messages",
    }

    model: Annotated[str, Meta(max_length=512)]
    messages: Annotated[list[MessageParam], Meta(min_length=1, max_length=MAX_MESSAGES)]
    system: str | Annotated[list[TextBlock], Meta(max_length=MAX_MESSAGES)] | None = None
    tools: list[ToolParam] | None = None
    tool_choice: ChooseAuto | ChooseAny | ChooseTool | ChooseNone | None = None
    thinking: Thinking | None = None
    cache_control: CacheControl | None = None
    output_config: OutputConfig | None = None
    output_format: SchemaOutput | None = None
    context_management: ContextManagement | None = None
    mcp_servers: Empty | None = None
    betas: list[str] | None = None
    thread: None = None
    speed: Literal["standard"] | None = None


class CountTokensRequest(PromptRequest, frozen=True, kw_only=True):
    """POST /v1/messages/count_tokens."""


class MessagesRequest(PromptRequest, frozen=True, kw_only=True):
    """POST /v1/messages."""

    max_tokens: int
    stream: bool | None = None
    stop_sequences: list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    metadata: MessageMetadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
    container: None = None
    diagnostics: Diagnostics | None = None
    inference_geo: Literal["global"] | None = None
    billing_policy: None = None
    compaction: None = None
    fallbacks: Literal["default"] | Empty | None = None
    fallback_credit_token: None = None

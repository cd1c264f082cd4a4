"""The JSON bodies that Anthropic's clients send, as types. A field that is not here is refused by name."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta

from octavo.server.openai.refused import Empty
from octavo.server.openai.types import Identifier

Name = Annotated[str, Meta(min_length=1, max_length=512)]


class CacheControl(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a prefix to be cached ends. Every prefix is cached here while there is room, so this asks for nothing."""

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


class TextBlock(msgspec.Struct, frozen=True, kw_only=True, tag="text", tag_field="type", forbid_unknown_fields=True):
    """Text."""

    text: str
    cache_control: CacheControl | None = None
    citations: Empty | None = None


class ThinkingBlock(
    msgspec.Struct, frozen=True, kw_only=True, tag="thinking", tag_field="type", forbid_unknown_fields=True
):
    """What the model thought in an earlier turn, as it was told then; there is nothing that a signature would guard."""

    thinking: str
    signature: str = ""


class ToolUseBlock(
    msgspec.Struct, frozen=True, kw_only=True, tag="tool_use", tag_field="type", forbid_unknown_fields=True
):
    """A call that the model made."""

    id: Name
    name: str
    input: dict[str, Any]
    cache_control: CacheControl | None = None
    caller: None = None
    toolset_name: None = None


class ToolResultBlock(
    msgspec.Struct, frozen=True, kw_only=True, tag="tool_result", tag_field="type", forbid_unknown_fields=True
):
    """What came of a call. is_error: the model is told so, by "Error: " before the content."""

    tool_use_id: Name
    content: str | list[TextBlock] = ""
    is_error: bool = False
    cache_control: CacheControl | None = None
    toolset_name: None = None


Block = TextBlock | ThinkingBlock | ToolUseBlock | ToolResultBlock


class MessageParam(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One turn. A last turn of the assistant is gone on from."""

    role: Literal["user", "assistant"]
    content: str | list[Block]


class ThinkingDisabled(msgspec.Struct, frozen=True, tag="disabled", tag_field="type", forbid_unknown_fields=True):
    """No thinking is asked for."""


class MessageMetadata(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A label for a provider's books; nothing here depends on it."""

    user_id: Identifier | None = None


_TOOLS = "tools are not available on this route; use /v1/chat/completions"


class PromptRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What makes the prompt; shared by both routes."""

    REASONS: ClassVar[dict[str, str]] = {
        "tools": _TOOLS,
        "tool_choice": _TOOLS,
        "thinking": "thinking is not split from the answer; leave it out",
        "output_config": "ask for the form in the prompt",
        "speed": "there is one speed; leave it out or send 'standard'",
        "service_tier": "there is one tier; leave it out or send 'auto'",
        "container": "there are no containers here",
        "context_management": "shorten the conversation yourself",
        "mcp_servers": "this server calls no tools itself",
        "diagnostics": "see GET /metrics",
        "inference_geo": "the server is where it is; leave it out",
    }

    model: Annotated[str, Meta(max_length=512)]
    messages: Annotated[list[MessageParam], Meta(min_length=1)]
    system: str | list[TextBlock] | None = None
    tools: Empty | None = None
    tool_choice: None = None
    thinking: ThinkingDisabled | None = None
    cache_control: CacheControl | None = None
    output_config: None = None
    speed: Literal["standard"] | None = None


class CountTokensRequest(PromptRequest, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/messages/count_tokens."""


class MessagesRequest(PromptRequest, frozen=True, kw_only=True, forbid_unknown_fields=True):
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
    context_management: None = None
    mcp_servers: Empty | None = None
    diagnostics: None = None
    inference_geo: None = None

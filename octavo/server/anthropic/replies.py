"""The JSON bodies that Anthropic's clients get, as types."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"]


class TextReply(msgspec.Struct, kw_only=True, tag="text", tag_field="type"):
    """Text of the answer."""

    text: str


class ThinkingReply(msgspec.Struct, kw_only=True, tag="thinking", tag_field="type"):
    """What the model thought before; signature is empty, as there is nothing that it would guard."""

    thinking: str
    signature: str = ""


class ToolUseReply(msgspec.Struct, kw_only=True, tag="tool_use", tag_field="type"):
    """A call that the client is asked to carry out."""

    id: str
    name: str
    input: dict[str, Any]


ReplyBlock = TextReply | ThinkingReply | ToolUseReply


class OutputTokensDetails(msgspec.Struct, frozen=True):
    """thinking_tokens: of output_tokens, those of the thinking, be it told or not."""

    thinking_tokens: int


class MessageUsage(msgspec.Struct, frozen=True, kw_only=True):
    """Token counts. What was found in the prefix cache is told apart and not part of input_tokens."""

    input_tokens: int
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int
    output_tokens: int
    output_tokens_details: OutputTokensDetails | UnsetType = UNSET
    service_tier: str = "standard"


class MessageReply(msgspec.Struct, kw_only=True, tag="message", tag_field="type"):
    """POST /v1/messages."""

    id: str
    role: str = "assistant"
    model: str
    content: list[ReplyBlock] = []
    stop_reason: StopReason | None = None
    stop_sequence: str | None = None
    usage: MessageUsage


class TokenCount(msgspec.Struct, frozen=True):
    """POST /v1/messages/count_tokens."""

    input_tokens: int


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True, tag="model", tag_field="type"):
    """One model of /v1/models. The longest prompt and answer are null until the model is loaded."""

    id: str
    display_name: str
    created_at: datetime
    lifecycle: str = "active"
    max_input_tokens: int | None
    max_tokens: int | None


class ModelPage(msgspec.Struct, frozen=True, kw_only=True):
    """GET /v1/models."""

    data: list[ModelInfo]
    first_id: str
    last_id: str
    has_more: bool = False


class ErrorDetails(msgspec.Struct, frozen=True):
    """For programs: which error it is, and the fields that are to be left out."""

    error_code: str
    unsupported: list[str]


class AnthropicError(msgspec.Struct, frozen=True):
    """What went wrong."""

    type: str
    message: str
    details: ErrorDetails | UnsetType = UNSET


class AnthropicErrorBody(msgspec.Struct, frozen=True, kw_only=True, tag="error", tag_field="type"):
    """What every error answer of these routes holds."""

    error: AnthropicError
    request_id: str

"""The Response object that clients get, as types. None appears as null, as OpenAI's own does."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from octavo.server.openai.replies import TokenLogprob
from octavo.server.openai.responses.types import FunctionTool, NamespaceTool, ReasoningConfig

ResponseStatus = Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]


class OutputTextPart(msgspec.Struct, kw_only=True, tag="output_text", tag_field="type"):
    """The text of a message."""

    text: str
    annotations: list[Any] = []
    logprobs: list[TokenLogprob] = []


class ReasoningTextPart(msgspec.Struct, kw_only=True, tag="reasoning_text", tag_field="type"):
    """The text of a reasoning."""

    text: str


class OutputMessage(msgspec.Struct, kw_only=True, tag="message", tag_field="type"):
    """What the model answered."""

    id: str
    status: str
    role: str = "assistant"
    content: list[OutputTextPart]


class OutputReasoning(msgspec.Struct, kw_only=True, tag="reasoning", tag_field="type"):
    """What the model thought before."""

    id: str
    status: str
    summary: list[Any] = []
    content: list[ReasoningTextPart]


class OutputCall(msgspec.Struct, kw_only=True, tag="function_call", tag_field="type"):
    """A call that the client is asked to carry out; arguments is JSON text. namespace: where the function is in one."""

    id: str
    call_id: str
    name: str
    arguments: str
    status: str
    namespace: str | UnsetType = UNSET


OutputItem = OutputMessage | OutputReasoning | OutputCall


class InputTokensDetails(msgspec.Struct, frozen=True):
    """cached_tokens: found in the prefix cache. Writing to it costs nothing and is not counted."""

    cached_tokens: int
    cache_write_tokens: int = 0


class OutputTokensDetails(msgspec.Struct, frozen=True):
    """reasoning_tokens: of output_tokens, those of the reasoning."""

    reasoning_tokens: int


class ResponseUsage(msgspec.Struct, frozen=True):
    """Token counts."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class ResponseError(msgspec.Struct, frozen=True):
    """Why a response failed after it had begun."""

    code: str
    message: str


class IncompleteDetails(msgspec.Struct, frozen=True):
    """Why a response ended before the model had ended it."""

    reason: str


class ResponseObject(msgspec.Struct, kw_only=True):
    """What POST and GET answer with, and what a stream's first and last events hold."""

    id: str
    object: str = "response"
    created_at: int
    completed_at: int | None = None
    status: ResponseStatus
    background: bool
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None = None
    model: str
    output: list[OutputItem] = []
    parallel_tool_calls: bool
    previous_response_id: str | None
    prompt_cache_key: str | None
    reasoning: ReasoningConfig
    safety_identifier: str | None
    service_tier: str = "default"
    store: bool
    temperature: float
    presence_penalty: float
    frequency_penalty: float
    text: dict[str, Any]
    tool_choice: Any
    tools: list[FunctionTool | NamespaceTool]
    top_logprobs: int
    top_p: float
    truncation: str = "disabled"
    usage: ResponseUsage | None = None
    user: str | None
    metadata: dict[str, str]


class DeletedResponse(msgspec.Struct, frozen=True):
    """DELETE /v1/responses/{id}."""

    id: str
    object: str = "response"
    deleted: bool = True


class InputTokens(msgspec.Struct, frozen=True):
    """POST /v1/responses/input_tokens."""

    input_tokens: int
    object: str = "response.input_tokens"

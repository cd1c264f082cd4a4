"""A Messages request in; the same question as a chat out."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from octavo.base.errors import InputError
from octavo.server.anthropic.types import (
    Block,
    ChooseAny,
    ChooseAuto,
    ChooseNone,
    ChooseTool,
    MessageParam,
    MessagesRequest,
    OutputConfig,
    PromptRequest,
    RedactedThinkingBlock,
    TextBlock,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
)
from octavo.server.openai.functions import as_tools, named
from octavo.server.openai.structured import JsonSchema, JsonSchemaFormat
from octavo.server.openai.types import (
    ChatRequest,
    FunctionCall,
    Message,
    MessagePart,
    TextPart,
    ToolCall,
    ToolChoice,
)

_TERMS = {
    "stop": "stop_sequences",
    "messages": "messages",
    "continue_final_message": "messages",
    "reasoning_effort": "output_config.effort",
    "thinking_token_budget": "thinking.budget_tokens",
    "response_format.json_schema": "output_config.format",
    "response_format": "output_config.format",
    "parameters": "input_schema",
}
"""Fields of the chat -> fields of the request, for errors; the messages are not numbered alike."""

BILLING = "x-anthropic-billing-header:"
"""What Claude Code puts before its system text: a label for Anthropic's books, another one in each request, so that no
prefix would be found in the cache.
"""


def terms(request: PromptRequest) -> dict[str, str]:
    """_TERMS with the name that the request has for the answer's form."""
    if request.output_format is None:
        return _TERMS
    return _TERMS | {"response_format.json_schema": "output_format", "response_format": "output_format"}


def as_chat(request: PromptRequest, turns: Sequence[MessageParam]) -> ChatRequest:
    """The chat of these turns; InputError names a block that has no place where it stands."""
    messages = [] if request.system is None else _instructions(request.system)
    makers = {"user": _user, "assistant": _assistant, "system": _system}
    for index, turn in enumerate(turns):
        _append(messages, makers[turn.role](turn, f"messages[{index}]"))
    tools, output = request.tools or [], request.output_config or OutputConfig()
    choice, alone = _choice(request)
    if output.format is not None and request.output_format is not None:
        raise InputError("output_format is output_config.format; send one of them", param="output_format")
    schema = output.format or request.output_format
    chat = ChatRequest(
        messages=messages,
        continue_final_message=messages[-1].role == "assistant" or None,
        tools=as_tools(tools, [tool.input_schema for tool in tools]),
        tool_choice=choice,
        parallel_tool_calls=False if alone else None,
        reasoning_effort=output.effort,
        response_format=None if schema is None else JsonSchemaFormat(JsonSchema(schema=schema.schema)),
    )
    if not isinstance(request, MessagesRequest):
        return chat
    return msgspec.structs.replace(
        chat,
        model=request.model,
        stream=request.stream,
        max_tokens=request.max_tokens,
        stop=request.stop_sequences,
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=request.top_k,
    )


def _append(messages: list[Message], more: list[Message]) -> None:
    """Turns of one role that follow each other are one, as templates may want roles to alternate."""
    last, first = messages[-1] if messages else None, more[0]
    if last is not None and last.role == first.role != "tool" and last.tool_calls is None:
        thoughts = (last.reasoning or "") + (first.reasoning or "")
        content = [*_parts(last), *_parts(first)] or first.content
        more = [msgspec.structs.replace(first, content=content, reasoning=thoughts or None), *more[1:]]
        messages.pop()
    messages += more


def _parts(message: Message) -> list[MessagePart]:
    content = message.content or []
    return [TextPart(content)] if isinstance(content, str) else content


def _choice(request: PromptRequest) -> tuple[ToolChoice | None, bool]:
    """tool_choice, and whether at most one call may be made."""
    match request.tool_choice:
        case ChooseAuto(disable_parallel_tool_use=alone):
            return "auto", bool(alone)
        case ChooseAny(disable_parallel_tool_use=alone):
            return "required", bool(alone)
        case ChooseTool(name=name, disable_parallel_tool_use=alone):
            return named(name), bool(alone)
        case ChooseNone():
            return "none", False
    return None, False


def _text(content: str | Sequence[TextBlock]) -> str | list[MessagePart]:
    if isinstance(content, str):
        return content
    return content[0].text if len(content) == 1 else [TextPart(block.text) for block in content]


def _instructions(system: str | list[TextBlock]) -> list[Message]:
    blocks = [TextBlock(text=system)] if isinstance(system, str) else system
    texts = [block for block in blocks if not block.text.startswith(BILLING)]
    return [Message(role="system", content=_text(texts))] if texts else []


def _system(turn: MessageParam, where: str) -> list[Message]:
    if isinstance(turn.content, str):
        return [Message(role="system", content=turn.content)]
    texts: list[TextBlock] = []
    for index, block in enumerate(turn.content):
        if not isinstance(block, TextBlock):
            raise _misplaced(block, f"{where}.content[{index}]", turn.role)
        texts.append(block)
    if not texts:
        raise InputError(f"{where}.content is empty", param=f"{where}.content")
    return [Message(role="system", content=_text(texts))]


def _user(turn: MessageParam, where: str) -> list[Message]:
    """Results of calls are messages of their own; the texts between them are the user's."""
    if isinstance(turn.content, str):
        return [Message(role="user", content=turn.content)]
    messages: list[Message] = []
    texts: list[TextBlock] = []
    for index, block in enumerate(turn.content):
        if isinstance(block, TextBlock):
            texts.append(block)
        elif isinstance(block, ToolResultBlock):
            messages += [*_said(texts), _result(block)]
            texts = []
        else:
            raise _misplaced(block, f"{where}.content[{index}]", turn.role)
    if not messages and not texts:
        raise InputError(f"{where}.content is empty", param=f"{where}.content")
    return [*messages, *_said(texts)]


def _said(texts: list[TextBlock]) -> list[Message]:
    return [Message(role="user", content=_text(texts))] if texts else []


def _result(block: ToolResultBlock) -> Message:
    content = _text(block.content or "")
    if block.is_error:
        content = "Error: " + (content if isinstance(content, str) else "\n".join(part.text for part in content))
    return Message(role="tool", content=content, tool_call_id=block.tool_use_id)


def _assistant(turn: MessageParam, where: str) -> list[Message]:
    if isinstance(turn.content, str):
        return [Message(role="assistant", content=turn.content)]
    texts, thoughts, calls = [], [], []
    for index, block in enumerate(turn.content):
        if isinstance(block, TextBlock):
            texts.append(block)
        elif isinstance(block, ThinkingBlock):
            thoughts.append(block.thinking)
        elif isinstance(block, RedactedThinkingBlock):
            continue
        elif isinstance(block, ToolUseBlock):
            arguments = msgspec.json.encode(block.input).decode()
            calls.append(ToolCall(function=FunctionCall(block.name, arguments), id=block.id))
        else:
            raise _misplaced(block, f"{where}.content[{index}]", turn.role)
    return [
        Message(
            role="assistant",
            content=_text(texts) if texts else None,
            tool_calls=calls or None,
            reasoning="".join(thoughts) or None,
        )
    ]


def _misplaced(block: Block, where: str, role: str) -> InputError:
    kind = block.__struct_config__.tag
    return InputError(f"{where} is of type {kind!r}, which the {role} does not send", param=where)

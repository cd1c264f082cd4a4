"""A conversation in; the prompt that the chat template makes of it, as token ids, out. For /tokenize and chat alike."""

from __future__ import annotations

from typing import Any

import msgspec

from octavo.base.errors import InputError, UnsupportedError
from octavo.server.limits import check_depth
from octavo.server.openai.types import ChatRequest, Message, TokenizeChatRequest, Tool
from octavo.server.services import Services

# what a request may not put into a template's variables: the server sets them, or they are the template's own
RESERVED_KWARGS = frozenset(
    {
        *("messages", "tools", "documents", "conversation", "chat_template", "tokenize", "return_dict"),
        *("add_generation_prompt", "continue_final_message", "raise_exception", "strftime_now"),
        *("bos_token", "eos_token", "unk_token", "pad_token"),
    }
)


async def render(services: Services, request: ChatRequest | TokenizeChatRequest) -> list[int]:
    """A conversation as token ids, by the chat template."""
    if request.chat_template is not None and not services.config.trust_request_chat_template:
        raise UnsupportedError(
            "chat_template in a request is not allowed; start with --trust-request-chat-template", param="chat_template"
        )
    add, go_on = request.add_generation_prompt, bool(request.continue_final_message)
    if add and go_on:
        raise InputError(
            "continue_final_message and add_generation_prompt exclude each other", param="continue_final_message"
        )
    if request.chat_template is not None and "{" not in request.chat_template:
        raise InputError("chat_template must be a template's text", param="chat_template")
    extra = request.chat_template_kwargs or {}
    check_depth("chat_template_kwargs", extra)
    wrong = next((name for name in extra if name in RESERVED_KWARGS), None)
    if wrong is not None:
        raise InputError(f"chat_template_kwargs may not set {wrong}", param="chat_template_kwargs")
    check_depth("documents", request.documents)
    tools = None if request.tool_choice == "none" else _tools(request.tools)
    return await services.llm.render_chat(
        [_message(index, message) for index, message in enumerate(request.messages)],
        tools=tools,
        chat_template=request.chat_template,
        add_generation_prompt=not go_on if add is None else add,
        continue_final_message=go_on,
        chat_template_kwargs=extra if request.documents is None else {**extra, "documents": request.documents},
    )


def _tools(tools: list[Tool] | None) -> list[dict[str, Any]] | None:
    if not tools:
        return None
    for index, tool in enumerate(tools):
        check_depth(f"tools[{index}].function.parameters", tool.function.parameters)
    rendered: list[dict[str, Any]] = msgspec.to_builtins(tools)
    return rendered


def message_text(message: Message) -> str | None:
    """A message's text; its parts stand on lines of their own."""
    if isinstance(message.content, list):
        return "\n".join(part.text for part in message.content)
    return message.content


def echoed_message(request: ChatRequest) -> str:
    """What echo puts before a chat's answer: the last message, where the answer goes on in its role."""
    last = request.messages[-1]
    return (message_text(last) or "") if last.role == reply_role(request) else ""


def reply_role(request: ChatRequest) -> str:
    """The role that the answer has."""
    return request.messages[-1].role if request.continue_final_message else "assistant"


def _message(index: int, message: Message) -> dict[str, Any]:
    """As templates expect it: content is text, a call's arguments are an object, what was not given is absent."""
    content = message_text(message)
    if content is None and message.role != "assistant":
        raise InputError(f"messages[{index}].content is required", param=f"messages[{index}].content")
    shown: dict[str, Any] = {"role": message.role, "content": content or ""}
    for name in ("name", "tool_call_id", "reasoning", "reasoning_content"):
        if (value := getattr(message, name)) is not None:
            shown[name] = value
    if message.tool_calls:
        where = f"messages[{index}].tool_calls"
        shown["tool_calls"] = [
            {
                "id": call.id,
                "type": call.type,
                "function": {"name": call.function.name, "arguments": _arguments(where, call.function.arguments)},
            }
            for call in message.tool_calls
        ]
    return shown


def _arguments(where: str, text: str) -> dict[str, Any]:
    try:
        value: dict[str, Any] = msgspec.json.decode(text or "{}", type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError):
        raise InputError(f"{where}: arguments must be a JSON object as text", param=where) from None
    check_depth(where, value)
    return value

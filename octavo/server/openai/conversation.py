"""A conversation in; the prompt that the chat template makes of it, as token ids, out. For /tokenize and chat alike.

The template's side of the checks (nesting, reserved names, a call's arguments) is text/messages.py's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec

from octavo.base.errors import InputError, UnsupportedError
from octavo.server.openai.types import ChatRequest, Message, TokenizeChatRequest, Tool, ToolCall
from octavo.server.services import Services
from octavo.text.reasoning import Reasoning
from octavo.text.tools.choose import reasoning_format

MAX_TOOLS_BYTES = 1 << 20  # of all tools of a request, as JSON
_SWITCHES = {
    "enable_thinking": re.compile(r"enable_thinking"),
    "thinking": re.compile(r"\{%[-+]? *(?:el)?if (?:not )?thinking\b"),  # a message may have a field of this name
}
"""Variables by which templates (DeepSeek's, Kimi's and Granite's by the second) turn reasoning on and off, and how a
template is seen to read them.
"""
_SHOWN = ("role", "content", "name", "tool_calls", "tool_call_id", "reasoning", "reasoning_content")


async def render(services: Services, request: ChatRequest | TokenizeChatRequest) -> list[int]:
    """The conversation as token ids; InputError names the field that it cannot be made of."""
    if request.chat_template is not None:
        _check_template(request.chat_template, services.config.trust_request_chat_template)
    add, go_on = request.add_generation_prompt, bool(request.continue_final_message)
    if add and go_on:
        raise InputError(
            "continue_final_message and add_generation_prompt exclude each other", param="continue_final_message"
        )
    extra = request.chat_template_kwargs or {}
    if "documents" in extra:
        raise InputError("send documents as a field of the request", param="chat_template_kwargs")
    if isinstance(request, ChatRequest):
        extra = {**_effort(services, request), **_thinking(services, request), **extra}
    extra = {**services.config.default_chat_template_kwargs, **extra}
    _check_tools(request.tools or [])
    messages = [_message(index, message) for index, message in enumerate(request.messages)]
    if "developer" not in template_source(services, request):  # the protocol's newer name of the same
        messages = [{**one, "role": "system"} if one["role"] == "developer" else one for one in messages]
    tools = None if request.tool_choice == "none" else request.tools
    return await services.llm.render_chat(
        messages,
        tools=None if tools is None else [tool.shown() for tool in tools],
        chat_template=request.chat_template,
        add_generation_prompt=not go_on if add is None else add,
        continue_final_message=go_on,
        chat_template_kwargs=extra if request.documents is None else {**extra, "documents": request.documents},
        tool_call_parser=services.config.tool_call_parser,
    )


def template_source(services: Services, request: ChatRequest | TokenizeChatRequest) -> str:
    """The text of the template that the request is rendered by; "" where there is none."""
    if request.chat_template is not None:
        return request.chat_template
    template = services.llm.model.template_for(None if request.tool_choice == "none" else request.tools)
    return "" if template is None else template.source


def _check_tools(tools: Sequence[Tool]) -> None:
    size = 0
    for index, tool in enumerate(tools):
        where = f"tools[{index}]"
        try:
            size += len(msgspec.json.encode(tool))
        except RecursionError:
            raise InputError(f"{where} nests too deeply", param=where) from None
        if size > MAX_TOOLS_BYTES:
            raise InputError(
                f"tools are more than {MAX_TOOLS_BYTES} bytes of JSON with {where}; send fewer or shorter ones",
                param=where,
            )


def switched(source: str, on: bool) -> dict[str, Any]:
    """The variables that turn a template's reasoning on or off; none where it cannot be."""
    return {name: on for name, read in _SWITCHES.items() if read.search(source)}


def _effort(services: Services, request: ChatRequest) -> dict[str, Any]:
    """What tells the template of it. "none" turns reasoning off, and asks for nothing where there is none."""
    effort = request.reasoning_effort
    if effort is None:
        return {}
    source = template_source(services, request)
    found: dict[str, Any] = {"reasoning_effort": effort} if "reasoning_effort" in source else {}
    if effort == "none":
        found |= switched(source, False)
    if not found and (effort != "none" or known_reasoning(services, source) is not None):
        raise UnsupportedError(
            f"reasoning_effort={effort!r} is not supported by this model: its chat template does not know it; leave it "
            "out",
            param="reasoning_effort",
        )
    return found


def _thinking(services: Services, request: ChatRequest) -> dict[str, Any]:
    """What tells the template of enable_thinking and thinking, which ask for nothing where it is so anyway."""
    typed = None if request.thinking is None else request.thinking.type == "enabled"
    asked = {"enable_thinking": request.enable_thinking, "thinking": typed}
    given = {name: on for name, on in asked.items() if on is not None}
    if len({*given.values()}) > 1:
        raise InputError("thinking and enable_thinking contradict each other; send one of them", param="thinking")
    found = dict[str, Any]()
    for name, on in given.items():
        source = template_source(services, request)
        found = switched(source, on)
        if not found and on != (known_reasoning(services, source) is not None):
            raise UnsupportedError(
                f"{name}: reasoning cannot be turned {'on' if on else 'off'}: this model's chat template knows no such "
                "variable",
                param=name,
            )
    return found


def known_reasoning(services: Services, template: str) -> Reasoning | None:
    """How answers mark reasoning, by --reasoning-parser or this template; None where they do not."""
    return reasoning_format(services.llm.config.model.reasoning_parser, template)


def _check_template(template: str, trusted: bool) -> None:
    if not trusted:
        raise UnsupportedError(
            "chat_template in a request is not allowed; start with --trust-request-chat-template", param="chat_template"
        )
    # the engine's option of this name may be a file's path; a request never names files
    if "{" not in template:
        raise InputError("chat_template must be a template's text", param="chat_template")


def _message(index: int, message: Message) -> dict[str, Any]:
    """The message without what was not given: templates ask whether a field is there."""
    if message.content is None and message.role not in ("assistant", "tool"):
        raise InputError(f"messages[{index}].content is required", param=f"messages[{index}].content")
    shown: dict[str, Any] = {name: value for name in _SHOWN if (value := getattr(message, name)) is not None}
    if message.role == "tool":
        shown.setdefault("content", "")  # nothing came of the call: go-openai leaves out what is empty
    if "reasoning" not in shown and "reasoning_content" not in shown and message.reasoning_details:
        shown.update(_given({"reasoning": _told(message.reasoning_details)}))
    if message.tool_calls is not None:
        shown["tool_calls"] = [_call(call) for call in message.tool_calls]
        shown.setdefault("content", None)  # the protocol's null; templates tell calls by it
    if isinstance(message.content, list):
        shown["content"] = [{"type": "text", "text": part.text} for part in message.content]
    return shown


def _call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.function.name, "arguments": call.function.arguments}
    return _given({"function": function, "id": call.id, "type": call.type, "index": call.index})


def _told(details: Sequence[dict[str, Any]]) -> str | None:
    """The text in reasoning_details, some of which may be encrypted, or a summary."""
    texts = [one.get("text") for one in details if one.get("type") == "reasoning.text"]
    return "".join(text for text in texts if isinstance(text, str)) or None


def _given(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def echoed_message(request: ChatRequest) -> str:
    """What echo puts before a chat's answer: the last message, where the answer goes on in its role."""
    last = request.messages[-1]
    if last.role != reply_role(request):
        return ""
    return message_text(last)


def message_text(message: Message) -> str:
    """A message's content as one text."""
    content = message.content
    return "\n".join(part.text for part in content) if isinstance(content, list) else content or ""


def reply_role(request: ChatRequest) -> str:
    """The role that the answer has."""
    return request.messages[-1].role if request.continue_final_message else "assistant"

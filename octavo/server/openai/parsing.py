"""A chat request in; how its answers are read (content, reasoning, tool calls) out. The tools are checked."""

from __future__ import annotations

import secrets
import string

import msgspec

from octavo.base.config.config import ServerConfig
from octavo.base.errors import InputError, UnsupportedError
from octavo.base.types.output import ToolCall
from octavo.server.openai.conversation import message_text, template_source
from octavo.server.openai.types import ChatRequest, NamedToolChoice, Tool
from octavo.server.services import Services
from octavo.text.reasoning import Reasoning
from octavo.text.tools.choose import reasoning_format, tool_format
from octavo.text.tools.formats import Format
from octavo.text.tools.parser import Parsing

MAX_TOOL_BYTES = 1 << 18  # of one entry of `tools`, as JSON
_PROMPT_END = 16  # tokens in which a prompt that begins the reasoning does so
_MISTRAL_ID = string.ascii_letters + string.digits


def check_parsers(config: ServerConfig) -> None:
    """ConfigError for names that are not known."""
    tool_format(config.tool_call_parser, "")
    reasoning_format(config.reasoning_parser, "")


def answer_parsing(services: Services, request: ChatRequest, prompt_ids: list[int]) -> Parsing | None:
    """None where the model's answers are text alone. InputError for tools that cannot be honoured."""
    template = template_source(services, request)
    tools = _tools(request)
    tool = tool_format(services.config.tool_call_parser, template) if tools else None
    reasoning = reasoning_format(services.config.reasoning_parser, template)
    _check_choice(request)
    tokenizer = services.llm.tokenizer
    if tokenizer is None or (tool is None and reasoning is None):
        return None
    tokens = {*(tool.tokens if tool else ()), *(reasoning.tokens if reasoning else ())}
    end = tokenizer.decode(prompt_ids[-_PROMPT_END:], skip_special_tokens=False)
    return Parsing(
        tool=tool,
        reasoning=reasoning,
        tools={one.function.name: one.function.parameters or {} for one in tools},
        open=reasoning is not None and _left_open(reasoning, request, end),
        single=request.parallel_tool_calls is False,
        kept_tokens=frozenset(number for text, number in tokenizer.special_ids().items() if text in tokens),
    )


def call_id(call: ToolCall, tool: Format | None) -> str:
    """The call's own id, or a new one of the form that the model knows."""
    if call.id is not None:
        return call.id
    if tool is not None and tool.ids == "mistral":
        return "".join(secrets.choice(_MISTRAL_ID) for _ in range(9))
    return "call_" + secrets.token_hex(12)


def _tools(request: ChatRequest) -> list[Tool]:
    tools = request.tools or []
    for index, tool in enumerate(tools):
        size = len(msgspec.json.encode(tool))
        if size > MAX_TOOL_BYTES:
            where = f"tools[{index}]"
            raise InputError(f"{where} is {size} bytes of JSON; at most {MAX_TOOL_BYTES} are taken", param=where)
    return [] if request.tool_choice == "none" else tools


def _check_choice(request: ChatRequest) -> None:
    choice = request.tool_choice
    if isinstance(choice, NamedToolChoice) or choice == "required":
        raise UnsupportedError(
            "forcing a tool call is not supported yet; send tool_choice 'auto' or 'none'", param="tool_choice"
        )


def _left_open(reasoning: Reasoning, request: ChatRequest, prompt_end: str) -> bool:
    """True if the answer begins inside reasoning."""
    if not request.continue_final_message:
        return reasoning.left_open(prompt_end)
    said = message_text(request.messages[-1])
    begun = max((said.rfind(marker) for marker in reasoning.begins), default=-1)
    ended = max((said.rfind(marker) for marker in reasoning.ends), default=-1)
    return begun > ended or (reasoning.open and ended < 0)

"""Tools for a chat template that has no place for them: messages in, messages that tell of tools in plain text out."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from octavo.base.errors import UnsupportedError
from octavo.text.tools.choose import tool_format
from octavo.text.tools.format import Format, Spelling

TOLD = "hermes"  # the format of calls where neither template nor flag tells one, and the template no tools
_TOOLS = re.compile(r"""(?<![\w.'"])tools(?![\w'"])""")
_HEAD = "You can call functions. Each line below describes one, as JSON:"
_RESULT_END = "</tool_response>"
_HOW = "To call a function, answer with its name and its arguments in exactly this form:"


@lru_cache(maxsize=32)
def shows_tools(template: str) -> bool:
    """True if the template reads `tools`: not only a message's, as Phi-4-mini's does."""
    return _TOOLS.search(template) is not None


def calls_format(parser: str | None, template: str) -> Format | None:
    """How a model with tools writes its calls; None where that is not known. One told in plain text writes JSON.

    parser: a format's name, None for what the template shows.  template: its text, "" where there is none.
    UnsupportedError where the template has no place for tools, and the format is none that can be told.
    """
    if not template or shows_tools(template):
        return tool_format(parser, template)
    tool = _told_format(parser)
    if tool is None:
        raise UnsupportedError(
            "tools are not supported: the model's chat template has no place for them, and calls of the format of "
            "--tool-call-parser cannot be told in plain text; use hermes, or give another --chat-template",
            param="tools",
        )
    return tool


def place_tools(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None, template: str, parser: str | None
) -> tuple[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]] | None]:
    """The conversation and the tools as this template shall see them: told in plain text where it knows of none.

    messages: as in a chat request; a call's arguments as an object or as JSON text.  parser, template: as for
    calls_format, which says what raises. InputError names what cannot be told.
    """
    if not template or shows_tools(template):
        return messages, tools
    if tools:
        tool = calls_format(parser, template)
    else:
        called = any(message.get("tool_calls") or message.get("role") == "tool" for message in messages)
        tool = _told_format(parser) if called and "tool" not in template else None
    return (messages, tools) if tool is None else (_tell(messages, tools or [], tool), None)


def _told_format(parser: str | None) -> Format | None:
    """How calls are told in plain text; None where they cannot be: their arguments must be one JSON object."""
    tool = tool_format(TOLD if parser is None else parser, "")
    can_tell = tool is not None and tool.spelling is not None and "$ARGUMENTS" in tool.spelling.call
    return tool if tool is not None and can_tell and not tool.messages else None


def _tell(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]], tool: Format
) -> list[dict[str, Any]]:
    """The tools, where there are any, in the system message; earlier calls and results as text."""
    from octavo.text.messages import plain_list  # with the tokenizers' library, which a server loads beside its model

    spelling = tool.spelling or Spelling("$NAME$ARGUMENTS")
    lines = "\n".join(json.dumps(one, ensure_ascii=False) for one in plain_list(tools, "tools") or [])
    example = _spelled(spelling, [("NAME", '{"KEY": VALUE}')])
    told: list[dict[str, Any]] = []
    for index, message in enumerate(messages):
        _add(told, dict(message), spelling, f"messages[{index}]")
    if not tools:
        return told
    text = f"{_HEAD}\n<tools>\n{lines}\n</tools>\n{_HOW}\n{example}"
    if told and told[0].get("role") in ("system", "developer"):
        told[0]["content"] = _joined(told[0]["content"], text)
    else:
        told.insert(0, {"role": "system", "content": text})
    return told


def _add(told: list[dict[str, Any]], message: dict[str, Any], spelling: Spelling, where: str) -> None:
    from octavo.text.messages import plain_text

    content = message["content"] = plain_text(message.get("content"), f"{where}.content")
    calls = message.pop("tool_calls", None)
    if calls:
        message["content"] = _joined(content, _spelled(spelling, _pairs(calls, f"{where}.tool_calls")))
    result = message.get("role") == "tool"
    if result:
        message = {"role": "user", "content": f"<tool_response>\n{content}\n{_RESULT_END}"}
    last = told[-1] if told and told[-1].get("role") == "user" == message.get("role") else None
    if last is not None and (result or last["content"].endswith(_RESULT_END)):
        last["content"] = _joined(last["content"], message["content"])  # some templates want turns to change
        return
    told.append(message)


def _pairs(calls: Any, where: str) -> list[tuple[str, str]]:
    """Names and arguments, which are the caller's own where they came as JSON text."""
    from octavo.text.messages import plain_calls

    pairs = []
    for call, checked in zip(calls, plain_calls(calls, where), strict=True):
        function, given = checked.get("function", checked), call.get("function", call).get("arguments")
        as_text = given if isinstance(given, str) and given else json.dumps(function["arguments"], ensure_ascii=False)
        pairs.append((function["name"], as_text))
    return pairs


def _spelled(spelling: Spelling, calls: Sequence[tuple[str, str]]) -> str:
    written = [
        spelling.call.replace("$NUMBER", str(number)).replace("$NAME", name).replace("$ARGUMENTS", arguments)
        for number, (name, arguments) in enumerate(calls)
    ]
    return spelling.before + spelling.between.join(written) + spelling.after


def _joined(before: str, text: str) -> str:
    return f"{before}\n\n{text}" if before else text

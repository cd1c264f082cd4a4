"""Tools for a chat template that has no place for them: messages in, messages that tell of tools in plain text out."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from octavo.text.tools.formats import Format, Spelling

_TOOLS = re.compile(r"""(?<![\w.'"])tools(?![\w'"])""")
_HEAD = "You can call functions. Each line below describes one, as JSON:"
_HOW = "To call a function, answer with its name and its arguments in exactly this form:"


def shows_tools(template: str) -> bool:
    """True if the template reads `tools`: not only a message's, as Phi-4-mini's does."""
    return _TOOLS.search(template) is not None


def can_tell(tool: Format) -> bool:
    """True if calls of the format can be described in a sentence: their arguments are one JSON object."""
    return tool.spelling is not None and "$ARGUMENTS" in tool.spelling.call and not tool.messages


def tell_tools(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]], tool: Format
) -> list[dict[str, Any]]:
    """The conversation with the tools, where there are any, in its system message; earlier calls and results as text.

    messages, tools: as in a chat request; arguments as JSON text.  tool: one that can_tell.  InputError for tools that
    nest too deeply.
    """
    from octavo.text.messages import plain_list  # with the tokenizers' library, which a server loads beside its model

    spelling = tool.spelling or Spelling("$NAME$ARGUMENTS")
    lines = "\n".join(json.dumps(one, ensure_ascii=False) for one in plain_list(tools, "tools") or [])
    example = _spelled(spelling, [("NAME", '{"KEY": VALUE}')])
    told: list[dict[str, Any]] = []
    for message in messages:
        _add(told, dict(message), spelling)
    if not tools:
        return told
    text = f"{_HEAD}\n<tools>\n{lines}\n</tools>\n{_HOW}\n{example}"
    if told and told[0].get("role") in ("system", "developer"):
        told[0]["content"] = _joined(told[0].get("content"), text)
    else:
        told.insert(0, {"role": "system", "content": text})
    return told


def _add(told: list[dict[str, Any]], message: dict[str, Any], spelling: Spelling) -> None:
    calls = message.pop("tool_calls", None)
    if calls:
        pairs = [(call["function"]["name"], call["function"]["arguments"]) for call in calls]
        message["content"] = _joined(message.get("content"), _spelled(spelling, pairs))
    if message.get("role") == "tool":
        text = f"<tool_response>\n{_text(message.get('content'))}\n</tool_response>"
        if told and told[-1].get("role") == "user":  # results of one turn's calls; some templates want turns to change
            told[-1]["content"] = _joined(told[-1].get("content"), text)
            return
        message = {"role": "user", "content": text}
    told.append(message)


def _spelled(spelling: Spelling, calls: Sequence[tuple[str, str]]) -> str:
    written = [
        spelling.call.replace("$NUMBER", str(number)).replace("$NAME", name).replace("$ARGUMENTS", arguments)
        for number, (name, arguments) in enumerate(calls)
    ]
    return spelling.before + spelling.between.join(written) + spelling.after


def _joined(content: Any, text: str) -> str:
    before = _text(content)
    return f"{before}\n\n{text}" if before else text


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "\n".join(part["text"] for part in content)
    return content or ""

"""A conversation as callers give it in; plain JSON-like data in the form that the model's template expects out."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from octavo.base.errors import InputError, UnsupportedError
from octavo.text.tokenizer import check_text

MAX_DEPTH = 64
MAX_VALUES = 100_000  # of a conversation: each is copied, looked through and handed to the template's engine
_INT_LIMIT = 2**127  # the template engine's integers
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
# The names that templates read a message's reasoning by; the first is today's.
_REASONING = ("reasoning_content", "thinking", "reasoning")
_SYSTEM = ("system", "developer")


@dataclass(frozen=True)
class ContentForm:
    """What a template can take as a message's content: a string, a list of parts, or both.

    null: also null, in a message that only calls tools; else such a one is given an empty content.
    """

    string: bool = True
    parts: bool = False
    null: bool = True


@dataclass(frozen=True)
class TurnForm:
    """Which turns a template takes.

    several: the system's, one behind the other.  late: the system's behind others.  parted: the system's of several
    parts.  repeated: the user's, one behind the other.
    """

    several: bool = True
    late: bool = True
    parted: bool = True
    repeated: bool = True


def check_size(value: Any, where: str) -> None:
    """InputError where a value is made of more than MAX_VALUES values."""
    count, rest = 0, [value]
    while rest:
        item = rest.pop()
        inner = item.values() if isinstance(item, Mapping) else item if isinstance(item, list | tuple) else ()
        count += len(inner)
        if count > MAX_VALUES:
            raise InputError(f"{where} holds more than {MAX_VALUES} values; send fewer", param=where)
        rest += inner


def plain(value: Any, where: str, *, depth: int = 0) -> Any:
    """A copy made of dict, list, str, int, float, bool and None alone; InputError names where it is something else."""
    if depth > MAX_DEPTH:
        raise InputError(f"{where} is nested deeper than {MAX_DEPTH} levels", param=where)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        check_text(value)
        return str(value)
    if isinstance(value, int) and abs(value) < _INT_LIMIT:
        return int(value)
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {plain(key, where): plain(item, where, depth=depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, where, depth=depth + 1) for item in value]
    raise InputError(f"{where} holds {repr(value)[:80]} ({type(value).__name__}), which is not JSON", param=where)


def plain_list(value: Any, where: str) -> list[dict[str, Any]] | None:
    """tools or documents: a list of objects, or None; an empty list counts as none."""
    if value is None:
        return None
    copy = plain(value, where)
    if not isinstance(copy, list) or not all(isinstance(item, dict) for item in copy):
        raise InputError(f"{where} must be a list of objects", param=where)
    return copy or None


def plain_extra(extra: Mapping[str, Any] | None, reserved: frozenset[str]) -> dict[str, Any]:
    """chat_template_kwargs: any variable of the template but those that Octavo sets."""
    copy = plain(extra or {}, "chat_template_kwargs")
    for name in copy:
        if name in reserved or not _NAME.fullmatch(name):
            raise InputError(
                f"chat_template_kwargs may not set {name[:80]!r}: it is reserved, or no variable's name",
                param="chat_template_kwargs",
            )
    return dict(copy)


def plain_text(content: Any, where: str) -> str:
    """A message's content as one text, its parts a line each; raises as plain_messages."""
    return str(_content(content, where, ContentForm(), null=False))


def plain_messages(messages: Any, form: ContentForm) -> list[dict[str, Any]]:
    """The conversation, its contents in a form that the template takes, tool call arguments as objects.

    Parts become one text, a line each, where the template takes strings only. Raises InputError naming the field,
    UnsupportedError for parts that are not text.
    """
    if not isinstance(messages, list | tuple) or not messages:
        raise InputError("messages must be a list of at least one message", param="messages")
    return [_message(message, f"messages[{index}]", form) for index, message in enumerate(messages)]


def placed(messages: list[dict[str, Any]], form: TurnForm) -> list[dict[str, Any]]:
    """plain_messages' conversation in turns that the template takes.

    The system's that follow each other become one, and so do the user's. What a late one of the system's says becomes
    the user's, in one turn with what the user says beside it: there it changes nothing of the prompt before it, which
    may be cached.
    """
    result: list[dict[str, Any]] = []
    begun = moved = False  # a turn that is not the system's has come; the last turn holds what was the system's
    for message in messages:
        system = message["role"] in _SYSTEM
        begun = begun or not system
        late = system and begun and not form.late
        turn = {**message, "role": "user"} if late else message
        if system and not form.parted:
            turn = {**turn, "content": _joined(turn["content"])}
        last = result[-1]["role"] if result else ""
        joins = last == "user" == turn["role"] and (late or moved or not form.repeated)
        if joins or (system and not late and last in _SYSTEM and not form.several):
            result[-1] = {**result[-1], "content": _joined(result[-1]["content"], turn["content"])}
        else:
            result.append(turn)
        moved = late or (moved and joins)
    return result


def _joined(*contents: Any) -> Any:
    """Contents as one, a blank line between them: a string where one is, else a list of one part."""
    texts = [said if isinstance(said, str) else "\n".join(part["text"] for part in said) for said in contents]
    text = "\n\n".join(texts)
    return text if any(isinstance(said, str) for said in contents) else [{"type": "text", "text": text}]


def _message(message: Any, where: str, form: ContentForm) -> dict[str, Any]:
    if not isinstance(message, Mapping) or not all(isinstance(name, str) for name in message):
        raise InputError(f"{where} must be an object with role and content", param=where)
    copy: dict[str, Any] = {}
    for name, value in message.items():
        if name not in ("content", "tool_calls") and value is not None:  # templates ask whether a field is there
            copy[plain(name, where)] = plain(value, where)
    if not isinstance(copy.get("role"), str) or not copy["role"]:
        raise InputError(f"{where}.role must be a string", param=f"{where}.role")
    if message.get("tool_calls"):
        copy["tool_calls"] = plain_calls(message["tool_calls"], f"{where}.tool_calls")
    # Templates tell a message that only calls tools by its missing content, or by null.
    if "content" in message or "tool_calls" not in copy:
        null = form.null and "tool_calls" in copy
        copy["content"] = _content(message.get("content"), f"{where}.content", form, null)
    reasoning = next((copy[name] for name in _REASONING if copy.get(name) is not None), None)
    if reasoning is not None:
        copy = {"thinking": reasoning, **copy, "reasoning_content": reasoning}
    return copy


def _content(content: Any, where: str, form: ContentForm, null: bool) -> Any:
    if content is None:
        # Of a message without calls templates would print "None".
        return None if null else ("" if form.string else [])
    if isinstance(content, str):
        check_text(content)
        return str(content) if form.string else [{"type": "text", "text": str(content)}]
    if not isinstance(content, list | tuple):
        raise InputError(f"{where} must be a string or a list of parts", param=where)
    texts = [_part(part, f"{where}[{index}]") for index, part in enumerate(content)]
    return [{"type": "text", "text": text} for text in texts] if form.parts else "\n".join(texts)


def _part(part: Any, where: str) -> str:
    if isinstance(part, str):
        check_text(part)
        return str(part)
    kind = part.get("type") if isinstance(part, Mapping) else None
    if not isinstance(kind, str):
        raise InputError(f'{where} must be an object with a type, such as {{"type": "text", "text": ...}}', param=where)
    if kind not in _TEXT_PARTS:
        raise UnsupportedError(f"{where} is of type {kind[:80]!r}; this model takes text parts only", param=where)
    text = part.get(_TEXT_PARTS[kind])
    if not isinstance(text, str):
        raise InputError(f"{where}.{_TEXT_PARTS[kind]} must be a string", param=where)
    check_text(text)
    return str(text)


def plain_calls(calls: Any, where: str) -> list[dict[str, Any]]:
    """A message's calls, their arguments as objects; InputError names what is none."""
    copies = plain_list(calls, where) or []
    for index, call in enumerate(copies):
        # Some templates read the function's fields from the call itself.
        function = call.get("function", call)
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise InputError(f"{where}[{index}].function.name must be a string", param=where)
        arguments = function.get("arguments")
        if isinstance(arguments, str) or arguments is None:
            function["arguments"] = _arguments(arguments or "{}", f"{where}[{index}].function.arguments")
        elif not isinstance(arguments, dict):
            raise InputError(f"{where}[{index}].function.arguments must be a JSON object", param=where)
    return copies


def _arguments(text: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} must be a JSON object as text: {error}", param=where) from None
    if not isinstance(value, dict):
        raise InputError(f"{where} must be a JSON object, got {text[:80]!r}", param=where)
    copy: dict[str, Any] = plain(value, where)
    return copy

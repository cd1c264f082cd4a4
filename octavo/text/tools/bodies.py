"""The forms that a call's text has: how its end is found (a Scanner), and its calls read.

A reader takes the whole text of a call and gives its calls, or raises NotAValueError: then the text is no call.
Arguments come out as JSON text, made anew from what was read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from octavo.base.types.output import ToolCall
from octavo.text.tools.markers import Markers
from octavo.text.tools.scanners import ANY_HEAD, PYTHON_PLAIN, SPACE, Brackets, Scanner, Until, end_of
from octavo.text.tools.values import Literals, NotAValueError, dump_json, load_json, typed

NAME = r"[A-Za-z0-9_.:/-]{1,128}"
_NAME = re.compile(NAME)

Tools = Mapping[str, Mapping[str, Any]]
"""Name -> JSON schema of the parameters."""


@dataclass(frozen=True)
class Body:
    """scan: a new Scanner.  read(text, tools): the calls.  known: a call of a function that is not in tools is none."""

    scan: Callable[[], Scanner]
    read: Callable[[str, Tools], list[ToolCall]]
    known: bool = False


def json_body(*, known: bool = False) -> Body:
    """An object with name and arguments (or parameters), or a list of them."""
    return Body(partial(Brackets, "{["), _read_json, known)


def headed_body(head: str) -> Body:
    """A head, by a pattern with the groups name and perhaps id, then the arguments as a JSON object."""
    return Body(partial(Brackets, "{", head=ANY_HEAD), partial(_read_headed, re.compile(head)))


def message_body(head: str) -> Body:
    """The same where the head is a message's, and was read before: text begins with it."""
    return Body(partial(Brackets, "{"), partial(_read_headed, re.compile(head, re.DOTALL)), known=True)


def mistral_body(head: str) -> Body:
    """Either of the two before: a list, or a head and the arguments."""
    pattern = re.compile(head)

    def read(text: str, tools: Tools) -> list[ToolCall]:
        return _read_json(text, tools) if text.lstrip()[:1] in ("[", "{") else _read_headed(pattern, text, tools)

    return Body(_ListOrHead, read)


def python_body() -> Body:
    """A Python list of calls with keyword arguments: [f(a=1), g()]. Values are literals."""
    scan = partial(Brackets, "[", plain=PYTHON_PLAIN, quotes="\"'", inner="([{")
    return Body(scan, _read_python, known=True)


def xml_body(end: str, *, lead: str = "<function=") -> Body:
    """<function=NAME> <parameter=KEY> text </parameter> ... </function>, once or more, up to `end`."""
    return Body(partial(Until, Markers([end]), lead=lead), _read_xml)


def pairs_body(end: str) -> Body:
    """NAME <arg_key>KEY</arg_key> <arg_value>text</arg_value> ..., up to `end`."""
    return Body(partial(Until, Markers([end])), partial(_read_pairs, end))


def gemma_body(end: str, quote: str) -> Body:
    """call:NAME{key:value, ...}, strings within `quote`, up to `end`."""
    return Body(partial(Until, Markers([end]), lead="call:"), partial(_read_gemma, end, quote))


def arguments(value: Any) -> str:
    """Arguments as JSON text. An object, or its JSON text; NotAValueError for anything else."""
    if isinstance(value, str):
        value = load_json(value)
    if not isinstance(value, dict):
        raise NotAValueError
    return dump_json(value)


def checked_name(name: Any) -> str:
    """The name, or NotAValueError for one that no function can have."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise NotAValueError
    return name


def _read_json(text: str, tools: Tools) -> list[ToolCall]:
    value = load_json(text.strip())
    return [_json_call(item) for item in (value if isinstance(value, list) else [value])]


def _json_call(item: Any) -> ToolCall:
    if isinstance(item, dict) and isinstance(item.get("function"), dict):
        item = item["function"]
    if not isinstance(item, dict):
        raise NotAValueError
    given: Any = next((item[key] for key in ("arguments", "parameters") if item.get(key) is not None), {})
    own = item.get("id")
    own = own if isinstance(own, str) and _NAME.fullmatch(own) else None
    return ToolCall(checked_name(item.get("name")), arguments(given), own)


def _read_headed(pattern: re.Pattern[str], text: str, tools: Tools) -> list[ToolCall]:
    start = text.find("{")
    head = pattern.fullmatch(text[:start].strip()) if start >= 0 else None
    if head is None:
        raise NotAValueError
    own = head.groupdict().get("id")
    return [ToolCall(checked_name(head["name"]), arguments(load_json(text[start:])), own)]


class _ListOrHead(Brackets):
    """Which of the two comes is told by the first character that is not white space."""

    def __init__(self) -> None:
        super().__init__("{")
        self._decided = False

    def feed(self, text: str, at: int) -> tuple[int, bool | None]:
        """See scanners.Scanner."""
        if not self._decided:
            at = end_of(SPACE, text, at)
            if at == len(text):
                return at, None
            self._decided = True
            self.take_head("[", head=SPACE) if text[at] == "[" else self.take_head("{", head=ANY_HEAD)
        return super().feed(text, at)


def _read_python(text: str, tools: Tools) -> list[ToolCall]:
    literals = Literals(text)
    literals.need("[")
    calls = []
    while not literals.take("]"):
        name = checked_name(literals.word())
        literals.need("(")
        given: dict[str, Any] = {}
        while not literals.take(")"):
            key = literals.word()
            literals.need("=")
            given[key] = literals.value()
            if not literals.take(","):
                literals.need(")")
                break
        calls.append(ToolCall(name, dump_json(given)))
        if not literals.take(","):
            literals.need("]")
            break
    if literals.skip():
        raise NotAValueError
    return calls


_FUNCTION = re.compile(r"\s*<function=([^<>\s]*)>")
_PARAMETER = re.compile(r"\s*<parameter=([^<>]*)>")
_FUNCTION_END = re.compile(r"\s*</function>")


def _read_xml(text: str, tools: Tools) -> list[ToolCall]:
    calls, at = [], 0
    while (head := _FUNCTION.match(text, at)) is not None:
        name, at = checked_name(head[1]), head.end()
        schemas = _properties(tools, name)
        given: dict[str, Any] = {}
        while (key := _PARAMETER.match(text, at)) is not None:
            value, at = _between(text, key.end(), "</parameter>")
            given[key[1]] = typed(_without_line_ends(value), schemas.get(key[1], {}))
        end = _FUNCTION_END.match(text, at)
        if end is None:
            raise NotAValueError
        at = end.end()
        calls.append(ToolCall(name, dump_json(given)))
    return calls


def _without_line_ends(text: str) -> str:
    return text.removeprefix("\n").removesuffix("\n")


_KEY = re.compile(r"\s*<arg_key>([^<>]*)</arg_key>\s*<arg_value>")


def _read_pairs(end: str, text: str, tools: Tools) -> list[ToolCall]:
    if not text.endswith(end):
        raise NotAValueError
    first = text.find("<arg_key>")
    at = len(text) - len(end) if first < 0 else first
    name = checked_name(text[:at].strip())
    schemas = _properties(tools, name)
    given: dict[str, Any] = {}
    while (key := _KEY.match(text, at)) is not None:
        value, at = _between(text, key.end(), "</arg_value>")
        name_of = key[1].strip()
        given[name_of] = typed(value, schemas.get(name_of, {}))
    if text[at:].strip() != end:
        raise NotAValueError
    return [ToolCall(name, dump_json(given))]


def _read_gemma(end: str, quote: str, text: str, tools: Tools) -> list[ToolCall]:
    literals = Literals(text.removesuffix(end), quote=quote)
    literals.need("call:")
    start = literals.text.find("{", literals.at)
    if start < 0:
        raise NotAValueError
    name, literals.at = checked_name(literals.text[literals.at : start].strip()), start
    given = literals.value()
    if literals.skip():
        raise NotAValueError
    return [ToolCall(name, dump_json(given))]


def _between(text: str, start: int, end: str) -> tuple[str, int]:
    """text[start:] up to `end`, and the place behind it."""
    stop = text.find(end, start)
    if stop < 0:
        raise NotAValueError
    return text[start:stop], stop + len(end)


def _properties(tools: Tools, name: str) -> Mapping[str, Any]:
    found = tools.get(name, {}).get("properties")
    return {key: value for key, value in found.items() if isinstance(value, dict)} if isinstance(found, dict) else {}

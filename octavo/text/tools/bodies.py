"""The forms that a call's text has: readers, which pass over it as it comes and tell of its calls.

Where arguments are JSON they come out as the model wrote them (jsons.py); else they are made anew, value by value, bare
strings piece by piece. A call is told of with its first certain value: before, and where none comes, it is text.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from octavo.text.tools.items import Items, put, upto
from octavo.text.tools.jsons import JSON_SPACE, json_key, json_value, pass_json
from octavo.text.tools.literals import literal, sent_quoted
from octavo.text.tools.markers import Markers
from octavo.text.tools.reading import NAME, SPACE, Pattern, Reading, Steps
from octavo.text.tools.values import NotAValueError, dump_json, load_json

_NAME = re.compile(NAME)
_NAMES = ("name", "tool_name")
_ARGUMENTS = ("arguments", "parameters")

Reader = Callable[[Reading], Steps[None]]


@dataclass(frozen=True)
class Body:
    """read: reads a section's calls.  known: a call of a function that is not in tools is none."""

    read: Reader
    known: bool = False


def json_body(*, known: bool = False) -> Body:
    """An object with name and arguments (or parameters), or a list of them."""
    return Body(_read_json, known)


def keyed_body() -> Body:
    """A list of objects whose one key is the function's name, and its value the arguments."""
    return Body(_read_keyed)


def lines_body() -> Body:
    """Such objects, one behind the other."""
    return Body(_read_lines)


def headed_body(head: str) -> Body:
    """A head, by a pattern with the groups name and perhaps id, then the arguments as a JSON object."""
    return Body(partial(_read_headed, re.compile(head), re.compile(r"[^{]*")))


def message_body(head: str) -> Body:
    """The same where the head is a message's, and was read before: text begins with it."""
    return Body(partial(_read_headed, re.compile(head, re.DOTALL), SPACE), known=True)


def mistral_body(head: str) -> Body:
    """Either of json_body and headed_body."""
    headed = headed_body(head).read

    def read(reading: Reading) -> Steps[None]:
        char = yield from reading.char()
        yield from _read_json(reading) if char in ("[", "{") else headed(reading)

    return Body(read)


def python_body() -> Body:
    """A Python list of calls with keyword arguments: [f(a=1), g()]. Values are literals."""
    return Body(_read_python, known=True)


def python_lines_body() -> Body:
    """Such calls, one behind the other, without brackets around them."""
    return Body(_read_python_lines, known=True)


def list_body() -> Body:
    """Either of python_body and json_body."""
    return Body(_read_list, known=True)


def gemma_body(quote: str) -> Body:
    """call:NAME{key:value, ...}, strings within `quote`."""
    return Body(partial(_read_gemma, Markers([quote])))


def _read_json(reading: Reading) -> Steps[None]:
    if (yield from reading.char()) != "[":
        yield from _json_call(reading)
        return
    reading.at += 1
    yield from _json_calls(reading)


def _read_keyed(reading: Reading) -> Steps[None]:
    yield from reading.need("[", JSON_SPACE)
    more = True
    while more:
        yield from reading.need("{", JSON_SPACE)
        name = reading.named((yield from json_key(reading)))
        if (yield from reading.char(JSON_SPACE)) != "{":
            raise NotAValueError
        yield from sent_json(reading, name, None)
        yield from reading.need("}", JSON_SPACE)
        more = yield from reading.comma("]", JSON_SPACE)


def _read_lines(reading: Reading) -> Steps[None]:
    more = True
    while more:
        yield from _read_json(reading)
        reading.take()
        more = (yield from reading.char()) == "{"


def _json_calls(reading: Reading) -> Steps[None]:
    """What follows a list's bracket."""
    more = True
    while more:
        yield from _json_call(reading)
        more = yield from reading.comma("]", JSON_SPACE)


def _json_call(reading: Reading, own_id: str | None = None, *, inner: bool = False) -> Steps[None]:
    """An object. What stands behind its arguments is passed over."""
    yield from reading.need("{", JSON_SPACE)
    name = given = None
    done, more = False, True
    while more:
        key = yield from json_key(reading)
        char = yield from reading.char(JSON_SPACE)
        if done:
            yield from pass_json(reading)
        elif char == "{" and key == "function" and not inner:
            yield from _json_call(reading, own_id, inner=True)
            done = True
        elif char == "{" and key in _ARGUMENTS and name is not None:
            yield from sent_json(reading, name, own_id)
            done = True
        else:
            value = yield from json_value(reading)
            if key in _NAMES:
                name = reading.named(value)
            elif key == "id" and isinstance(value, str) and _NAME.fullmatch(value):
                own_id = value
            elif key in _ARGUMENTS and value is not None and given is None:
                given = _arguments(value)
        more = yield from reading.comma("}", JSON_SPACE)
    if not done:
        reading.begin(reading.named(name), own_id)
        put(reading, given or "{}", "")
        reading.end()


def sent_json(reading: Reading, name: str, own_id: str | None) -> Steps[None]:
    """Arguments as they come, of which the bracket is there."""
    reading.begin(name, own_id)
    reading.aside()
    yield from pass_json(reading, send=True)
    reading.end()


def _arguments(value: Any) -> str:
    """Arguments that are an object, or its JSON text; NotAValueError for anything else."""
    if isinstance(value, str):
        value = load_json(value)
    if not isinstance(value, dict):
        raise NotAValueError
    return dump_json(value)


def _read_headed(pattern: re.Pattern[str], before: Pattern, reading: Reading) -> Steps[None]:
    head = yield from reading.head(before)
    found = pattern.fullmatch(head.strip()) if reading.text[reading.at] == "{" else None
    if found is None:
        raise NotAValueError
    yield from sent_json(reading, found["name"], found.groupdict().get("id"))


_WORD = re.compile(r"[A-Za-z_][\w.\-]*")


def _read_list(reading: Reading) -> Steps[None]:
    if (yield from reading.char()) != "[":
        yield from _json_call(reading)
        return
    reading.at += 1
    char = yield from reading.char()
    yield from _json_calls(reading) if char == "{" else _python_calls(reading)


def _read_python(reading: Reading) -> Steps[None]:
    yield from reading.need("[")
    yield from _python_calls(reading)


def _python_calls(reading: Reading) -> Steps[None]:
    """What follows the list's bracket."""
    more = True
    while more and not (reading.told and (yield from reading.char()) == "]"):
        yield from _python_call(reading)
        more = yield from reading.comma("]")
    reading.at += more


def _read_python_lines(reading: Reading) -> Steps[None]:
    more = True
    while more:
        yield from _python_call(reading)
        reading.take()
        char = yield from reading.char()
        more = char == "_" or (char.isascii() and char.isalpha())


def _python_call(reading: Reading) -> Steps[None]:
    yield from reading.char()
    name = reading.named((yield from reading.word(_WORD)))
    yield from reading.need("(")
    items = Items(reading, name)
    another = True
    while another and (yield from reading.char()) != ")":
        key = yield from reading.word(_WORD)
        yield from reading.need("=")
        if (yield from reading.char()) in ("'", '"'):
            yield from sent_quoted(reading, items, key)
        else:
            items.add(key, (yield from literal(reading, ",)")))
        another = yield from reading.comma(")")
    reading.at += another  # the bracket, where no value stood before it
    items.end()


def _read_gemma(quote: Markers, reading: Reading) -> Steps[None]:
    if not (yield from reading.starts("call:")):
        raise NotAValueError
    reading.aside()
    items = Items(reading, reading.named((yield from reading.head(re.compile(r"[^{<]*"))).strip()))
    yield from reading.need("{")
    more = True
    while more and (yield from reading.char()) != "}":
        key = yield from literal(reading, ":", quote, key=True)
        reading.at += 1
        if (yield from reading.starts(quote.all[0])):
            items.open(key)
            yield from upto(reading, quote, items.piece)
            items.close()
        else:
            items.add(key, (yield from literal(reading, ",}", quote)))
        more = yield from reading.comma("}")
    reading.at += more
    items.end()

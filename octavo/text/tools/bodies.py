"""The forms that a call's text has: readers, which pass over it as it comes and tell of its calls.

Where arguments are JSON they come out as the model wrote them (jsons.py); else they are made anew, value by value, bare
strings piece by piece. A call is told of with its first certain value: before, and where none comes, it is text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from octavo.text.tools.items import Items, bare_value, put, upto
from octavo.text.tools.jsons import JSON_SPACE, json_key, json_value, pass_json
from octavo.text.tools.literals import literal, sent_quoted
from octavo.text.tools.markers import Markers
from octavo.text.tools.reading import NAME, SPACE, Pattern, Reading, Steps
from octavo.text.tools.values import NotAValueError, dump_json, load_json

_NAME = re.compile(NAME)
_ARGUMENTS = ("arguments", "parameters")
_PAIR_END = "</arg_value>"
MAX_OPENERS = 64  # of a function's parameters that are looked for inside a value

Reader = Callable[[Reading], Steps[None]]


@dataclass(frozen=True)
class Body:
    """read: reads a section's calls.  known: a call of a function that is not in tools is none."""

    read: Reader
    known: bool = False


def json_body(*, known: bool = False) -> Body:
    """An object with name and arguments (or parameters), or a list of them."""
    return Body(_read_json, known)


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


def list_body() -> Body:
    """Either of python_body and json_body."""
    return Body(_read_list, known=True)


def xml_body(end: str, *, kept: bool = False) -> Body:
    """<function=NAME> <parameter=KEY> text </parameter> ... </function>, once or more; `end` breaks a value off.

    kept: with the line ends around values.  Models forget </parameter>: a value is over, too, where the function's next
    parameter begins, or the call ends.  They write all parameters as one JSON object, too.
    """
    return Body(partial(_read_xml, _Tags("<function=", "</function>", "<parameter=", "</parameter>", kept=kept), end))


def invoke_body(end: str, prefix: str = "") -> Body:
    """<invoke name="NAME"> <parameter name="KEY"> text </parameter> ... </invoke>; likewise. prefix: of each tag.

    A parameter's attribute string="true" or "false" tells what the text is, before the tool's schema.
    """
    call, value = f"{prefix}invoke", f"{prefix}parameter"
    tags = _Tags(f'<{call} name="', f"</{call}>", f'<{value} name="', f"</{value}>", kept=True, quoted=True)
    return Body(partial(_read_xml, tags, end))


def pairs_body(end: str) -> Body:
    """NAME <arg_key>KEY</arg_key> <arg_value>text</arg_value> ..., up to `end`."""
    return Body(partial(_read_pairs, end, Markers([_PAIR_END, end])))


def gemma_body(quote: str) -> Body:
    """call:NAME{key:value, ...}, strings within `quote`."""
    return Body(partial(_read_gemma, Markers([quote])))


def _read_json(reading: Reading) -> Steps[None]:
    if (yield from reading.char()) != "[":
        yield from _json_call(reading)
        return
    reading.at += 1
    yield from _json_calls(reading)


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
            yield from _sent_json(reading, name, own_id)
            done = True
        else:
            value = yield from json_value(reading)
            if key == "name":
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


def _sent_json(reading: Reading, name: str, own_id: str | None) -> Steps[None]:
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
    yield from _sent_json(reading, found["name"], found.groupdict().get("id"))


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
        more = yield from reading.comma("]")
    reading.at += more


_TAG_NAME = re.compile(r"[^<>\s\"]*")
_TAG_KEY = re.compile(r"[^<>]*")
_QUOTED = re.compile(r"[^<>\"]*")
_TOLD: dict[str, dict[str, Any]] = {
    "true": {"type": "string"},
    "false": {"type": ["number", "boolean", "null", "array", "object"]},
}


@dataclass(frozen=True)
class _Tags:
    """What stands before a name and behind its call, before a key and behind its value. quoted: names are, in `"`."""

    call: str
    call_end: str
    value: str
    value_end: str
    kept: bool
    quoted: bool = False

    def ends(self, end: str, key: str, items: Items) -> Markers:
        """Of a value: its own, the call's, and what begins another one of the function's parameters."""
        others = [other for other in items.missing(MAX_OPENERS) if other != key and _TAG_KEY.fullmatch(other)]
        close = '"' if self.quoted else ">"
        openers = (self.value + other + close for other in others)
        # the call's end without its bracket, since one marker must not stand inside another
        return Markers([self.value_end, end, f"{self.call_end}\n{end[:-1]}", *openers])


def _read_xml(tags: _Tags, end: str, reading: Reading) -> Steps[None]:
    more = yield from reading.starts(tags.call)
    if not more:
        raise NotAValueError
    while more:
        name = reading.named((yield from reading.word(_TAG_NAME)))
        yield from _close_tag(tags, reading)
        items = None
        if (yield from reading.char()) == "{":
            yield from _sent_json(reading, name, None)
        else:
            items = Items(reading, name)
            yield from _read_values(tags, end, items)
        if not (yield from reading.starts(tags.call_end)):
            raise NotAValueError
        if items is not None:
            items.end()
        more = yield from reading.starts(tags.call)


def _read_values(tags: _Tags, end: str, items: Items) -> Steps[None]:
    reading = items.reading
    while (yield from reading.starts(tags.value)):
        key = yield from reading.word(_QUOTED if tags.quoted else _TAG_KEY)
        schema = yield from _close_tag(tags, reading)
        ends = tags.ends(end, key, items)
        yield from bare_value(items, key, ends, tags.value_end, end, kept=tags.kept, schema=schema)


def _close_tag(tags: _Tags, reading: Reading) -> Steps[Mapping[str, Any] | None]:
    """Pass over a tag's end, and tell the schema that it names."""
    told = None
    if tags.quoted:
        yield from reading.need('"')
        if (yield from reading.starts('string="')):
            told = _TOLD.get((yield from reading.word(_TAG_NAME)))
            yield from reading.need('"')
    yield from reading.need(">")
    return told


_UNTAGGED = re.compile(r"[^<]*")


def _read_pairs(end: str, ends: Markers, reading: Reading) -> Steps[None]:
    items = Items(reading, reading.named((yield from reading.head(_UNTAGGED)).strip()))
    while (yield from reading.starts("<arg_key>")):
        key = (yield from reading.word(_TAG_KEY)).strip()
        if not (yield from reading.starts("</arg_key>")) or not (yield from reading.starts("<arg_value>")):
            raise NotAValueError
        yield from bare_value(items, key, ends, _PAIR_END, end, kept=True)
    if not (yield from reading.starts(end)):
        raise NotAValueError
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

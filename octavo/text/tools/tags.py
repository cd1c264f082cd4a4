"""Readers of calls that are marked up: a tag before and behind each value, which is bare. See bodies.py."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

from octavo.text.tools.bodies import Body, sent_json
from octavo.text.tools.items import Items, bare_value, upto
from octavo.text.tools.markers import Markers
from octavo.text.tools.reading import Reading, Steps
from octavo.text.tools.values import MAX_DEPTH, NotAValueError, schema_parts, schema_types, typed

MAX_OPENERS = 64  # of a function's parameters that are looked for inside a value


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


def function_body() -> Body:
    """<function name="NAME"> <param name="KEY"> text </param> ... </function>; likewise. A text may be CDATA."""
    tags = _Tags('<function name="', "</function>", '<param name="', "</param>", kept=True, quoted=True, cdata=True)
    return Body(partial(_read_xml, tags, ""))


def pairs_body(end: str, *, suffix: str = "", behind_name: str = "") -> Body:
    """NAME <arg_key>KEY</arg_key> <arg_value>text</arg_value> ..., up to `end`. suffix: of these tags' names."""
    key, value = f"arg_key{suffix}>", f"arg_value{suffix}>"
    return Body(partial(_read_pairs, end, _Pairs(f"<{key}", f"</{key}", f"<{value}", f"</{value}", behind_name)))


def nested_body(space: str, end: str) -> Body:
    """<invoke name="NAME"> <KEY>text</KEY> ... </invoke>, once or more, with `space` before each tag; `end` behind all.

    A value that is an object is made of such tags itself, a list of tags <item>; either may be JSON, too.
    """
    return Body(partial(_read_nested, _Nested(space, end)))


def channel_body() -> Body:
    """Kimi K3's calls, whose tags tell the type of each value, or the arguments as one JSON object."""
    return Body(_read_channel)


_TAG_NAME = re.compile(r"[^<>\s\"]*")
_TAG_KEY = re.compile(r"[^<>]*")
_QUOTED = re.compile(r"[^<>\"]*")
_STRING: dict[str, Any] = {"type": "string"}
_NO_STRING: dict[str, Any] = {"type": ["number", "boolean", "null", "array", "object"]}
_TOLD = {"true": _STRING, "false": _NO_STRING}


@dataclass(frozen=True)
class _Tags:
    """What stands before a name and behind its call, before a key and behind its value. quoted: names are, in `"`."""

    call: str
    call_end: str
    value: str
    value_end: str
    kept: bool
    quoted: bool = False
    cdata: bool = False

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
            yield from sent_json(reading, name, None)
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
        ends, value_end = tags.ends(end, key, items), tags.value_end
        if tags.cdata and (yield from reading.starts("<![CDATA[")):
            value_end = f"]]>{tags.value_end}"
            ends = Markers([value_end])
        yield from bare_value(items, key, ends, value_end, end, kept=tags.kept, schema=schema)


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


@dataclass(frozen=True)
class _Pairs:
    """What stands around a key and around a value; behind_name: what may stand there."""

    key: str
    key_end: str
    value: str
    value_end: str
    behind_name: str


def _read_pairs(end: str, tags: _Pairs, reading: Reading) -> Steps[None]:
    items = Items(reading, reading.named((yield from reading.head(_UNTAGGED)).strip()))
    ends = Markers([tags.value_end, end])
    if tags.behind_name:
        yield from reading.starts(tags.behind_name)
    while (yield from reading.starts(tags.key)):
        key = (yield from reading.word(_TAG_KEY)).strip()
        if not (yield from reading.starts(tags.key_end)) or not (yield from reading.starts(tags.value)):
            raise NotAValueError
        yield from bare_value(items, key, ends, tags.value_end, end, kept=True)
    if not (yield from reading.starts(end)):
        raise NotAValueError
    items.end()


@dataclass(frozen=True)
class _Nested:
    """space: before each tag.  end: behind all calls."""

    space: str
    end: str

    def schema(self, outer: Mapping[str, Any], key: str, root: Mapping[str, Any]) -> Mapping[str, Any]:
        """Of a value in another one of the schema `outer`."""
        parts = schema_parts(outer, root)
        named = (some[key] for part in parts if isinstance(some := part.get("properties"), dict) and key in some)
        listed = (part["items"] for part in parts if key == "item" and "items" in part)
        found = next(chain(named, listed), None)
        return found if isinstance(found, dict) else {}


def _read_nested(tags: _Nested, reading: Reading) -> Steps[None]:
    call = f'{tags.space}<invoke name="'
    more = yield from reading.starts(call)
    if not more:
        raise NotAValueError
    while more:
        items = Items(reading, reading.named((yield from reading.word(_QUOTED))))
        yield from reading.need('"')
        yield from reading.need(">")
        while not (yield from reading.starts(f"{tags.space}</invoke>")):
            if not (yield from reading.starts(f"{tags.space}<")):
                raise NotAValueError
            key = yield from reading.word(_TAG_KEY)
            yield from reading.need(">")
            yield from _outer_value(tags, items, key)
        items.end()
        more = yield from reading.starts(call)


def _outer_value(tags: _Nested, items: Items, key: str) -> Steps[None]:
    schema = items.schema(key)
    close = f"{tags.space}</{key}>"
    if (yield from _has_tags(tags, items, schema)):
        items.add(key, (yield from _inner_values(tags, items, close, schema, 1)))
    else:
        yield from bare_value(items, key, Markers([close, tags.end]), close, tags.end, kept=True)


def _has_tags(tags: _Nested, items: Items, schema: Mapping[str, Any]) -> Steps[bool]:
    """Whether what follows is made of tags, or is an empty list or object; of a string nothing is passed over."""
    reading, kinds = items.reading, schema_types(schema, items.root)
    if kinds == {"string"}:
        return False
    yield from reading.char()
    if (yield from reading.next_is(f"{tags.space}</")):
        return bool(kinds) and kinds <= {"array", "object", "null"}
    return (yield from reading.next_is(f"{tags.space}<"))


def _inner_values(tags: _Nested, items: Items, close: str, schema: Mapping[str, Any], depth: int) -> Steps[Any]:
    """What tags up to `close` hold: a list where all are items, and the schema does not say otherwise."""
    reading, found = items.reading, []
    if depth > MAX_DEPTH:
        raise NotAValueError
    while not (yield from reading.starts(close)):
        if not (yield from reading.starts(f"{tags.space}<")):
            raise NotAValueError
        key = yield from reading.word(_TAG_KEY)
        yield from reading.need(">")
        inner, inner_close = tags.schema(schema, key, items.root), f"{tags.space}</{key}>"
        if (yield from _has_tags(tags, items, inner)):
            value = yield from _inner_values(tags, items, inner_close, inner, depth + 1)
        else:
            pieces: list[str] = []
            if (yield from upto(reading, Markers([inner_close, tags.end]), pieces.append)) != inner_close:
                raise NotAValueError
            value = typed("".join(pieces), inner, items.root)
        found.append((key, value))
    kinds = schema_types(schema, items.root)
    if all(key == "item" for key, _ in found) and (not kinds or "array" in kinds):
        return [value for _, value in found]
    return dict(found)


_OPEN, _CLOSE, _SEP = "<|open|>", "<|close|>", "<|sep|>"
_CALL, _CALL_END = f'{_OPEN}call tool="', f"{_CLOSE}call{_SEP}"
_VALUE, _VALUE_END = f'{_OPEN}argument key="', f"{_CLOSE}argument{_SEP}"
_VALUE_ENDS = Markers([_VALUE_END, _CALL_END])
_WHOLE, _WHOLE_END = f"{_OPEN}json", f"{_CLOSE}json{_SEP}"


def _read_channel(reading: Reading) -> Steps[None]:
    more = yield from reading.starts(_CALL)
    if not more:
        raise NotAValueError
    while more:
        name = reading.named(_unescaped((yield from reading.word(_QUOTED))))
        yield from _to_sep(reading)
        items = None
        if (yield from reading.starts(_WHOLE)):
            yield from _to_sep(reading)
            if (yield from reading.char()) != "{":
                raise NotAValueError
            yield from sent_json(reading, name, None)
            if not (yield from reading.starts(_WHOLE_END)):
                raise NotAValueError
        else:
            items = Items(reading, name)
            while (yield from reading.starts(_VALUE)):
                key = _unescaped((yield from reading.word(_QUOTED)))
                schema = _STRING if 'type="string"' in (yield from _to_sep(reading)) else _NO_STRING
                yield from bare_value(items, key, _VALUE_ENDS, _VALUE_END, _CALL_END, kept=True, schema=schema)
        if not (yield from reading.starts(_CALL_END)):
            raise NotAValueError
        if items is not None:
            items.end()
        more = yield from reading.starts(_CALL)


def _to_sep(reading: Reading) -> Steps[str]:
    """The rest of a tag's attributes; pass over its end."""
    attributes = ""
    if (yield from reading.char()) != "<":
        attributes = yield from reading.word(_TAG_KEY)
    if not (yield from reading.starts(_SEP)):
        raise NotAValueError
    return attributes


def _unescaped(text: str) -> str:
    return text.replace("&quot;", '"').replace("&amp;", "&")

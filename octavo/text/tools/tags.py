"""Readers of calls that are marked up: a tag before and behind each value, which is bare. See bodies.py."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from octavo.text.tools.bodies import Body, sent_json
from octavo.text.tools.items import Items, bare_value
from octavo.text.tools.markers import Markers
from octavo.text.tools.reading import Reading, Steps
from octavo.text.tools.values import NotAValueError

_PAIR_END = "</arg_value>"
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


def pairs_body(end: str) -> Body:
    """NAME <arg_key>KEY</arg_key> <arg_value>text</arg_value> ..., up to `end`."""
    return Body(partial(_read_pairs, end, Markers([_PAIR_END, end])))


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

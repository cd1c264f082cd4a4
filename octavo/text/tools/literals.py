"""Literals as Python and Gemma's formats write them, passed over as they come, and told when they are whole."""

from __future__ import annotations

import re
from typing import Any

from octavo.text.tools.items import Items, upto
from octavo.text.tools.markers import Markers
from octavo.text.tools.reading import Pattern, Reading, Steps, end_of
from octavo.text.tools.values import MAX_DEPTH, Literals, NotAValueError, escape, escape_come

_NO_QUOTE = Markers([])
_PLAIN = re.compile(r"[^\"'()\[\]{},:<]*")
_INSIDE = {quote: re.compile(rf"[^\\{quote}]*") for quote in "\"'"}
_CLOSING = {"{": "}", "[": "]", "(": ")"}


def sent_quoted(reading: Reading, items: Items, key: str) -> Steps[None]:
    """A Python string, which comes in pieces."""
    items.open(key)
    inside = _INSIDE[reading.text[reading.at]]
    reading.at += 1
    while True:
        text, at = reading.text, reading.at
        reading.at = end = end_of(inside, text, at)
        items.piece(text[at:end])
        if text[end : end + 1] not in ("", "\\"):
            reading.at += 1
            items.close()
            return
        if escape_come(text, end + 1):
            meant, reading.at = escape(text, end + 1)
            items.piece(meant)
        elif reading.ended:
            raise NotAValueError
        else:
            yield


def literal(reading: Reading, stops: str, quote: Markers = _NO_QUOTE, *, key: bool = False) -> Steps[Any]:
    """Pass over a value or a key, up to one of `stops`, and tell it. quote: what stands around strings."""
    yield from reading.char()
    reading.aside()
    yield from _pass_literal(reading, stops, quote)
    literals = Literals(reading.passed(), quote="".join(quote.all))
    value = literals.key() if key else literals.value()
    if literals.skip():
        raise NotAValueError
    return value


def _pass_literal(reading: Reading, stops: str, quote: Markers) -> Steps[None]:
    closing = ""
    while True:
        reading.at = end_of(_PLAIN, reading.text, reading.at)
        char = yield from reading.char()
        if not char:
            raise NotAValueError
        if not closing and char in stops:
            return
        if char in _CLOSING:
            if len(closing) == MAX_DEPTH:
                raise NotAValueError
            closing = _CLOSING[char] + closing
        elif char in ")]}":
            if char != closing[:1]:
                raise NotAValueError
            closing = closing[1:]
        elif char in _INSIDE:
            yield from _pass_quoted(reading, _INSIDE[char])
        elif quote.all and (yield from reading.starts(quote.all[0])):
            yield from upto(reading, quote)
            continue
        reading.at += 1


def _pass_quoted(reading: Reading, inside: Pattern) -> Steps[None]:
    """A string, up to its last quotation mark."""
    reading.at += 1
    while True:
        at = reading.at = end_of(inside, reading.text, reading.at)
        if reading.text[at : at + 1] not in ("", "\\"):
            return
        if at + 1 < len(reading.text):
            reading.at += 2
        elif reading.ended:
            raise NotAValueError
        else:
            yield

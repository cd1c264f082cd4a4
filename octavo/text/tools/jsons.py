"""JSON as it comes: passed over, or put into a call piece by piece, each a prefix of JSON whose end is known.

What is put is the text as the model wrote it. Held back is what says nothing yet (a comma, a key, an opening bracket, a
number that may go on), so that a call that breaks off ends with a value. In strings that are values, what JSON does not
allow is mended: control characters are escaped, an unknown escape stands for itself, half a surrogate pair is U+FFFD.
"""

from __future__ import annotations

import json
import re
from typing import Any

from octavo.text.tools.reading import Reading, Steps, end_of
from octavo.text.tools.values import MAX_DEPTH, MAX_DIGITS, NotAValueError, load_json

JSON_SPACE = re.compile(r"[ \t\n\r]*")
_INSIDE = re.compile('[^"\\\\\x00-\x1f\ud800-\udfff]*')
_SCALAR = re.compile(r"[-+.0-9A-Za-z]*")
_HIGH, _LOW = r"[dD][89abAB][0-9a-fA-F]{2}", r"[dD][c-fC-F][0-9a-fA-F]{2}"
_HALF = re.compile(r"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")
_ESCAPE = re.compile(rf'\\(?:["\\/bfnrt]|u(?:(?![dD][89a-fA-F])[0-9a-fA-F]{{4}}|{_HIGH}\\u{_LOW}))')
_BEGUN = re.compile(rf"\\(?:u(?:[0-9a-fA-F]{{0,3}}|{_HIGH}(?:\\(?:u(?:[dD](?:[c-fC-F][0-9a-fA-F]?)?)?)?)?))?")


def pass_json(reading: Reading, *, send: bool = False) -> Steps[None]:
    """Pass over one value. send: it is the arguments of the call that has begun."""
    closing = ""  # the brackets that are open, inner ones first
    while True:
        char = yield from reading.char(JSON_SPACE)
        begun = char == "{" or char == "["
        if begun:
            if len(closing) == MAX_DEPTH:
                raise NotAValueError
            closing = ("}" if char == "{" else "]") + closing
            reading.at += 1
        else:
            yield from _pass_string(reading, closing if send else None) if char == '"' else _pass_scalar(reading)
            if send:
                reading.put(reading.take(), closing)
        while closing:
            char = yield from reading.char(JSON_SPACE)
            if char == closing[0]:
                closing, begun = closing[1:], False
                reading.at += 1
                if send:
                    reading.put(reading.take(), closing)
                continue
            if not begun:
                if char != ",":
                    raise NotAValueError
                reading.at += 1
            if closing[0] == "}":
                yield from reading.need('"', JSON_SPACE)
                reading.at -= 1
                yield from _pass_string(reading, strict=send)
                yield from reading.need(":", JSON_SPACE)
            break
        if not closing:
            return


def json_value(reading: Reading) -> Steps[Any]:
    """Pass over one value, and tell it."""
    reading.aside()
    yield from pass_json(reading)
    return load_json(reading.passed())


def json_key(reading: Reading) -> Steps[Any]:
    """Pass over a key and its colon, and tell it."""
    yield from reading.need('"', JSON_SPACE)
    reading.at -= 1
    reading.aside()
    yield from _pass_string(reading)
    key = load_json(reading.passed())
    yield from reading.need(":", JSON_SPACE)
    return key


def _pass_scalar(reading: Reading) -> Steps[None]:
    while True:
        at, text = reading.at, reading.text
        end = end_of(_SCALAR, text, at, at + MAX_DIGITS + 1)
        if end < len(text) or end - at > MAX_DIGITS:
            break
        if reading.ended:
            raise NotAValueError
        yield
    if end - at > MAX_DIGITS:
        raise NotAValueError
    load_json(text[at:end])
    reading.at = end


def _pass_string(reading: Reading, closing: str | None = None, *, strict: bool = False) -> Steps[None]:
    """closing: what is open around a string that is put as it comes.  strict: another one must be all JSON."""
    reading.at += 1
    inside = None if closing is None else '"' + closing
    while True:
        text = reading.text
        reading.at = at = end_of(_INSIDE, text, reading.at)
        char = text[at : at + 1]
        if char == '"':
            reading.at += 1
            return
        if inside is not None:
            reading.put(reading.take(), inside)
        if char == "\\":
            found = _ESCAPE.match(text, at)
            if found is not None:
                reading.at = found.end()
                continue
        if not char or (char == "\\" and _BEGUN.fullmatch(text, at)):
            if reading.ended:
                raise NotAValueError
            yield
        elif inside is not None:
            _mend(reading, char, inside)
        elif strict or char == "\\":
            raise NotAValueError
        else:
            reading.at += 1


def _mend(reading: Reading, char: str, inside: str) -> None:
    text, at = reading.text, reading.at
    if char == "\\":
        half = _HALF.match(text, at)
        if half is not None:
            length, put = half.end() - at, "\ufffd"
        else:
            length, put = (2, "'") if text[at + 1] == "'" else (1, "\\\\")
    else:
        length, put = 1, "\ufffd" if char >= "\ud800" else json.dumps(char)[1:-1]
    reading.at += length
    reading.take()
    reading.put(put, inside)

"""Values as models write them in; JSON-like data out, or NotAValueError. Nothing is ever evaluated.

`load_json` takes JSON; `Literals` what Python and Gemma's formats write; `typed` a bare text whose type a schema tells.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any, NoReturn

MAX_DEPTH = 64
MAX_DIGITS = 400
_HALVES = re.compile("[\ud800-\udfff]")
_NUMBER = re.compile(r"[-+]?(?:\d[\d_]*)?(?:\.\d*)?(?:[eE][-+]?\d+)?")
_WORD = re.compile(r"[A-Za-z_][\w.\-]*")
_KEY = re.compile(r"[^\s:{}\[\],\"']+")
_SPACE = re.compile(r"\s*")
_WORDS = {"True": True, "False": False, "None": None, "true": True, "false": False, "null": None}
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "v": "\v", "a": "\a", "0": "\0", "\n": ""}
_HEX = {"x": 2, "u": 4, "U": 8}


class NotAValueError(ValueError):
    """The text is no value of the format."""


def load_json(text: str) -> Any:
    """JSON, with line breaks allowed inside strings; without NaN, infinities and numbers that no reader can hold."""
    try:
        value = _DECODER.decode(text)
    except (ValueError, RecursionError):
        raise NotAValueError from None
    return value


def dump_json(value: Any) -> str:
    """JSON text of plain data. Characters stay as they are; half a surrogate pair, which is none, becomes U+FFFD."""
    return _HALVES.sub("\ufffd", _ENCODER.encode(value))


def _refuse(_: str) -> NoReturn:
    raise NotAValueError


def _integer(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise NotAValueError
    return int(text)


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise NotAValueError
    return value


_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False)
_DECODER = json.JSONDecoder(strict=False, parse_constant=_refuse, parse_int=_integer, parse_float=_float)


class Literals:
    """Values one after another in a text, from `at` on: strings, numbers, words for constants, lists and objects.

    quote: what stands around strings, in place of quotation marks.  Keys of objects may be bare words.
    """

    def __init__(self, text: str, *, quote: str = "") -> None:
        self.text = text
        self.at = 0
        self._quote = quote

    def skip(self) -> str:
        """Pass over white space; the next character, or "" at the end."""
        at = _SPACE.match(self.text, self.at)
        self.at = self.at if at is None else at.end()
        return self.text[self.at : self.at + 1]

    def take(self, expected: str) -> bool:
        """Pass over white space and `expected`, if that is what follows."""
        self.skip()
        if not self.text.startswith(expected, self.at):
            return False
        self.at += len(expected)
        return True

    def need(self, expected: str) -> None:
        """`take`, or NotAValueError."""
        if not self.take(expected):
            raise NotAValueError

    def word(self, pattern: re.Pattern[str] = _WORD) -> str:
        """A name."""
        self.skip()
        found = pattern.match(self.text, self.at)
        if found is None:
            raise NotAValueError
        self.at = found.end()
        return found[0]

    def value(self, depth: int = 0) -> Any:
        """The next value."""
        if depth > MAX_DEPTH:
            raise NotAValueError
        char = self.skip()
        if self._quote and self.take(self._quote):
            return self._delimited()
        if char in ("'", '"'):
            return self._string(char)
        if char in ("[", "("):
            return self._items("]" if char == "[" else ")", depth)
        if char == "{":
            return self._object(depth)
        if char.isalpha():
            word = self.word()
            if word not in _WORDS:
                raise NotAValueError
            return _WORDS[word]
        return self._number()

    def key(self) -> str:
        """An object's key: a string, or a bare word."""
        char = self.skip()
        if self._quote and self.take(self._quote):
            return self._delimited()
        return self._string(char) if char in ("'", '"') else self.word(_KEY)

    def _delimited(self) -> str:
        end = self.text.find(self._quote, self.at)
        if end < 0:
            raise NotAValueError
        found, self.at = self.text[self.at : end], end + len(self._quote)
        return found

    def _items(self, end: str, depth: int) -> list[Any]:
        self.at += 1
        items: list[Any] = []
        while not self.take(end):
            items.append(self.value(depth + 1))
            if not self.take(","):
                self.need(end)
                break
        return items

    def _object(self, depth: int) -> dict[str, Any]:
        self.at += 1
        items: dict[str, Any] = {}
        while not self.take("}"):
            key = self.key()
            self.need(":")
            items[key] = self.value(depth + 1)
            if not self.take(","):
                self.need("}")
                break
        return items

    def _number(self) -> int | float:
        found = _NUMBER.match(self.text, self.at)
        if found is None or not found[0].strip("+-") or len(found[0]) > MAX_DIGITS:
            raise NotAValueError
        self.at = found.end()
        try:
            return int(found[0])
        except ValueError:
            pass
        try:
            return _float(found[0])
        except ValueError:
            raise NotAValueError from None

    def _string(self, quote: str) -> str:
        text, at, parts = self.text, self.at + 1, []
        stops = re.compile(rf"[\\{quote}]")
        while True:
            found = stops.search(text, at)
            if found is None:
                raise NotAValueError
            parts.append(text[at : found.start()])
            at = found.end()
            if found[0] == quote:
                self.at = at
                return "".join(parts)
            part, at = escape(text, at)
            parts.append(part)


def escape_length(char: str) -> int:
    """How many characters an escape has whose second one this is."""
    return 2 + _HEX.get(char, 0)


def escape(text: str, at: int) -> tuple[str, int]:
    """What the escape at text[at - 1] stands for, and where the text goes on; unknown ones stay as they are."""
    char = text[at : at + 1]
    if char in _HEX:
        digits = text[at + 1 : at + 1 + _HEX[char]]
        if len(digits) == _HEX[char] and re.fullmatch(r"[0-9a-fA-F]+", digits):
            code = int(digits, 16)
            if code <= 0x10FFFF:
                return chr(code), at + 1 + len(digits)
        raise NotAValueError
    if char in ("\\", "'", '"'):
        return char, at + 1
    return _ESCAPES.get(char, "\\" + char), at + 1


def typed(text: str, schema: Mapping[str, Any]) -> Any:
    """A bare text as the type that its schema names; the text itself where it is a string, or nothing else fits."""
    types = schema_types(schema)
    bare = text.strip()
    if "null" in types and bare in ("null", "None"):
        return None
    if "string" in types or (not types and bare[:1] not in ("{", "[")):
        return text
    try:
        return load_json(bare)
    except NotAValueError:
        pass
    try:
        literal = Literals(bare)
        value = literal.value()
    except NotAValueError:
        return text
    return text if literal.skip() else value


def schema_types(schema: Any, depth: int = 0) -> set[str]:
    """The types that a schema names, by itself or in its options; empty where it names none."""
    if not isinstance(schema, Mapping) or depth > MAX_DEPTH:
        return set()
    kind = schema.get("type")
    kinds = kind if isinstance(kind, list) else [kind]
    found = {one for one in kinds if isinstance(one, str)}
    for name in ("anyOf", "oneOf", "allOf"):
        options = schema.get(name)
        for option in options if isinstance(options, list) else ():
            found |= schema_types(option, depth + 1)
    if not found and isinstance(schema.get("enum"), list):
        return {"string"} if any(isinstance(one, str) for one in schema["enum"]) else {"number"}
    return found

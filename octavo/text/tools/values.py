"""Values as models write them in; JSON-like data out, or NotAValueError. Nothing is ever evaluated.

`load_json` takes JSON; `Literals` what Python and Gemma's formats write; `typed` a bare text whose type a schema tells.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any, NoReturn
from urllib.parse import unquote

MAX_DEPTH = 64
MAX_DIGITS = 400
MAX_PARTS = 4096  # of a schema, looked at for each bare value
_HALVES = re.compile("[\ud800-\udfff]")
_NUMBER = re.compile(r"[-+]?(?:\d[\d_]*)?(?:\.\d*)?(?:[eE][-+]?\d+)?")
_WORD = re.compile(r"[A-Za-z_][\w.\-]*")
_KEY = re.compile(r"[^\s:{}\[\],\"']+")
_SPACE = re.compile(r"\s*")
_WORDS = {"True": True, "False": False, "None": None, "true": True, "false": False, "null": None}
_NULLS = ("null", "none", "nil")
NOTES = ("title", "description", "$comment", "default", "examples")
_OPTIONS = {*NOTES, "anyOf", "oneOf", "$ref", "$defs", "definitions"}
_LOOKED_AT = {*NOTES, "type", "enum", "const", "items", "properties", "required", "additionalProperties"}
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "v": "\v", "a": "\a", "0": "\0", "\n": ""}
_HEX = {"x": 2, "u": 4, "U": 8}
_HIGH = re.compile(r"u[dD][89abAB][0-9a-fA-F]{2}")
_LOW = re.compile(r"\\u([dD][c-fC-F][0-9a-fA-F]{2})")
_LOW_BEGUN = re.compile(r"(?:\\(?:u(?:[dD](?:[c-fC-F][0-9a-fA-F]?)?)?)?)?")


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


def escape_come(text: str, at: int) -> bool:
    """Whether the escape at text[at - 1] is there to its end, which no more text can move."""
    end = at + 1 + _HEX.get(text[at : at + 1], 0)
    return at < len(text) and end <= len(text) and not (_HIGH.match(text, at) and _LOW_BEGUN.fullmatch(text, end))


def escape(text: str, at: int) -> tuple[str, int]:
    """What the escape at text[at - 1] stands for, and where the text goes on; unknown ones stay as they are.

    Two halves of a surrogate pair, one behind the other, are one character, as in JSON.
    """
    char = text[at : at + 1]
    if char in _HEX:
        digits = text[at + 1 : at + 1 + _HEX[char]]
        if len(digits) == _HEX[char] and re.fullmatch(r"[0-9a-fA-F]+", digits):
            code, end = int(digits, 16), at + 1 + len(digits)
            low = _LOW.match(text, end) if _HIGH.match(text, at) else None
            if low is not None:
                return chr(0x10000 + ((code & 0x3FF) << 10) + (int(low[1], 16) & 0x3FF)), low.end()
            if code <= 0x10FFFF:
                return chr(code), end
        raise NotAValueError
    if char in ("\\", "'", '"'):
        return char, at + 1
    return _ESCAPES.get(char, "\\" + char), at + 1


def typed(text: str, schema: Mapping[str, Any], root: Mapping[str, Any]) -> Any:
    """A bare text as the type that its schema names; the text itself where it is a string, or nothing else fits.

    root: the schema that references are resolved in.  Of a string or something else, it is that where it surely can be,
    as with vLLM's and SGLang's readers.
    """
    types = schema_types(schema, root)
    bare = text.strip()
    if "null" in types and (bare in ("null", "None") or ("string" not in types and bare.lower() in _NULLS)):
        return None
    if "string" in types:
        return text if types <= {"string", "null"} else _no_string(text, schema, root)
    if not types and bare[:1] not in ("{", "["):
        return text
    for read in (load_json, _literal, _escaped):
        try:
            return read(bare)
        except NotAValueError:
            pass
    return text


def _no_string(text: str, schema: Mapping[str, Any], root: Mapping[str, Any]) -> Any:
    """The JSON that a text is, if the schema surely takes it, else the text, which may be a string.

    What is not looked at leaves it a string: a strict call's grammar let any string be.
    """
    try:
        value = load_json(text.strip())
    except NotAValueError:
        return text
    kinds, parts = _types(value), schema_parts(schema, root)
    own = [part for part in parts if kinds & own_types(part)]
    others = [part for part in parts if not own_types(part)]
    if isinstance(value, str) or len(own) != 1 or any(part.keys() - _OPTIONS for part in others):
        return text
    return value if _takes(own[0], value) else text


def _takes(schema: Any, value: Any, depth: int = 0) -> bool:
    """Whether a schema of the keywords _LOOKED_AT alone takes a value."""
    if not isinstance(schema, Mapping) or depth > MAX_DEPTH:
        return schema is True
    listed, named = _own_values(schema), own_types(schema)
    if schema.keys() - _LOOKED_AT or (named and not named & _types(value)) or (listed and value not in listed):
        return False
    if isinstance(value, list):
        return all(_takes(schema.get("items", True), item, depth + 1) for item in value)
    if not isinstance(value, dict):
        return True
    properties, needed = schema.get("properties", {}), schema.get("required", [])
    if not isinstance(properties, dict) or not isinstance(needed, list) or not all(key in value for key in needed):
        return False
    rest = schema.get("additionalProperties", True)
    return all(_takes(properties.get(key, rest), one, depth + 1) for key, one in value.items())


def _literal(text: str) -> Any:
    literal = Literals(text)
    value = literal.value()
    if literal.skip():
        raise NotAValueError
    return value


def _escaped(text: str) -> Any:
    """A list or an object whose JSON was written as inside of a string."""
    if text[:1] not in ("{", "["):
        raise NotAValueError
    return load_json(load_json(f'"{text}"'))


def schema_types(schema: Any, root: Mapping[str, Any]) -> set[str]:
    """The types that a schema names, by itself, in its options or behind references; empty where it names none."""
    return {kind for part in schema_parts(schema, root) for kind in own_types(part)}


def schema_parts(schema: Any, root: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The schema and those that it is made of, by options and references, up to MAX_PARTS; each reference once."""
    found: list[Mapping[str, Any]] = []
    seen: set[str] = set()
    rest = [schema]
    while rest and len(found) < MAX_PARTS:
        part = rest.pop()
        if not isinstance(part, Mapping):
            continue
        found.append(part)
        for name in ("anyOf", "oneOf", "allOf"):
            options = part.get(name)
            rest += options if isinstance(options, list) else []
        reference = part.get("$ref")
        if isinstance(reference, str) and reference not in seen:
            seen.add(reference)
            rest.append(referred(reference, root))
    return found


def own_types(part: Mapping[str, Any]) -> set[str]:
    """The types that a schema names by `type`, or else those of the values that it lists."""
    kind = part.get("type")
    found = {one for one in (kind if isinstance(kind, list) else [kind]) if isinstance(one, str)}
    return found or {name for value in _own_values(part) or () for name in _types(value)}


def listed_values(schema: Any, root: Mapping[str, Any]) -> list[Any] | None:
    """The values that a schema leaves, where it lists them all; None where it does not."""
    return _listed(schema, root, set())


def _listed(schema: Any, root: Mapping[str, Any], seen: set[str]) -> list[Any] | None:
    if not isinstance(schema, Mapping):
        return None
    values = [None] if schema.get("type") == "null" else _own_values(schema)
    if values is None:
        reference = schema.get("$ref")
        if isinstance(reference, str) and reference not in seen:
            seen.add(reference)
            values = _listed(referred(reference, root), root, seen)
        else:
            values = _of_options(schema, root, seen)
    kinds = own_types(schema)
    return values and [value for value in values if not kinds or kinds & _types(value)]


def _of_options(schema: Mapping[str, Any], root: Mapping[str, Any], seen: set[str]) -> list[Any] | None:
    options = schema.get("anyOf", schema.get("oneOf", schema.get("allOf")))
    if not isinstance(options, list) or ("allOf" in schema and len(schema["allOf"]) != 1):
        return None
    values: list[Any] = []
    for option in options:
        found = _listed(option, root, seen)
        if found is None:
            return None
        values += found
    return values


def _own_values(part: Mapping[str, Any]) -> list[Any] | None:
    if "const" in part:
        return [part["const"]]
    return part["enum"] if isinstance(part.get("enum"), list) else None


def _types(value: Any) -> set[str]:
    if value is None:
        return {"null"}
    if isinstance(value, bool):
        return {"boolean"}
    if isinstance(value, int | float):
        return {"number", "integer"} if isinstance(value, int) or value.is_integer() else {"number"}
    return {"string" if isinstance(value, str) else "array" if isinstance(value, list) else "object"}


def referred(reference: str, root: Mapping[str, Any]) -> Any:
    """What a reference to a place in `root` stands for; None where there is none."""
    head, *names = unquote(reference).split("/")
    found: Any = root if head == "#" else None
    for name in names:
        found = found.get(name.replace("~1", "/").replace("~0", "~")) if isinstance(found, Mapping) else None
    return found

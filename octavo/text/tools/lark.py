"""Rules of a grammar of answers, in llguidance's Lark; functions in, the rules of their calls out.

Special tokens are named where the tokenizer has them, by their spelling (<...>) or else their id; other markers are
text. Source of the syntax: llguidance's docs/syntax.md.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from octavo.base.errors import InputError, UnsupportedError
from octavo.text.tools.format import Spelling
from octavo.text.tools.values import NOTES, listed_values, own_types, referred, schema_parts, schema_types

_PLACES = re.compile(r"(\$(?:ARGUMENTS|NUMBER|ID|VALUES|KEYWORDS))")
_TYPES = ("number", "boolean", "null", "array", "object")  # of values that are no strings
_TOKEN = re.compile(r"\S{3,}")
_NAME = re.compile(r"<[^<>\s\[\]]+>")
_UNENFORCED = ("pattern", "minLength", "maxLength", "format", "const", "enum", "not", "if")
# fmt: off
_UNENFORCED_OF_ALL = (
    "$ref", "anyOf", "oneOf", "allOf", "not", "if", "const", "enum", "minProperties", "maxProperties", "propertyNames",
    "patternProperties", "dependentRequired", "dependentSchemas", "dependencies",
)
# fmt: on
_BY_NAME = ("properties", "patternProperties", "dependentSchemas", "$defs", "definitions")
_JSON = {
    # as chat templates print JSON; these win over an "x-guidance" in the schema
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    "lenient": False,
    "coerce_one_of": False,
}


@dataclass(frozen=True)
class Function:
    """A function that may be called. where: its place in the request, for errors.  free: any arguments will do."""

    name: str
    schema: Mapping[str, Any]
    where: str
    free: bool = False


class Lark:
    """Rules of one grammar. special: tokens, spelling -> id."""

    def __init__(self, special: Mapping[str, int]) -> None:
        self._ids = special
        self._lengths = sorted({len(token) for token in special}, reverse=True)
        self._rules: dict[str, str] = {"TEXT": r"/(?s:.*)/"}

    def rule(self, name: str, body: str) -> str:
        """Add a rule, or a token by a name in capitals."""
        self._rules[name] = body
        return name

    def finish(self, start: str) -> str:
        """The grammar."""
        return "\n".join([f"start: {start}", *(f"{name}: {body}" for name, body in self._rules.items())])

    def text(self, text: str) -> str:
        """A fixed text."""
        parts, begin, at = [], 0, 0
        while at < len(text):
            token = self._token(text, at)
            if token:
                parts += [quoted(text[begin:at])] * (begin < at) + [self._named(token)]
                begin = at + len(token)
            at += len(token) or 1
        return " ".join(parts + [quoted(text[begin:])] * (begin < at))

    def _token(self, text: str, at: int = 0) -> str:
        """The longest special token that stands there; "" where none does."""
        # by lengths, not by one pattern of all: there may be thousands, of few lengths
        found = (text[at : at + length] for length in self._lengths)
        return next((part for part in found if part in self._ids and _TOKEN.fullmatch(part)), "")

    def _named(self, token: str) -> str:
        return token if _NAME.fullmatch(token) else f"<[{self._ids[token]}]>"

    def upto(self, end: str, text: str = "TEXT") -> str:
        """Any text up to and with a marker, which does not occur before. text: the name of what any text is."""
        if token := self._token(end):
            return f"{text} {self._named(token)} {self.text(end[len(token) :])}"
        name = f"upto_{len(self._rules)}"
        self.rule(f"{name}[lazy]", f"{text} {quoted(end)}")
        return name

    def call(self, spelling: Spelling, function: Function) -> str:
        """One function's call."""
        schema = _object_schema(function)
        parts = []
        for part in _PLACES.split(spelling.call.replace("$NAME", function.name)):
            match part:
                case "$ARGUMENTS":
                    parts.append(self.json(schema))
                case "$NUMBER":
                    parts.append("/[0-9]{1,3}/")
                case "$ID":
                    parts.append("/[a-z0-9]{10}/")
                case "$KEYWORDS":
                    parts.append(self._keywords(schema, function))
                case "$VALUES":
                    parts.append(self._bare_values(schema, function, *spelling.value.split("$VALUE")))
                case _:
                    parts.append(self.text(part))
        return " ".join(part for part in parts if part)

    def json(self, schema: Mapping[str, Any], options: Mapping[str, Any] = _JSON) -> str:
        """JSON of a schema."""
        return self.rule(f"json_{len(self._rules)}", "%json " + json.dumps({**_bare(schema), "x-guidance": options}))

    def _keywords(self, schema: Mapping[str, Any], function: Function) -> str:
        """key=value, ...: two rules a key, for whether one stands before it."""
        if function.free:
            one = f"/[A-Za-z_][0-9A-Za-z_]{{0,127}}=/ {self.json({})}"
            return f'({one} (", " {one})*)?'
        properties = list(_properties(schema, function, r"[A-Za-z_]\w*"))
        number = len(self._rules)
        first, later = [f"first_{number}_{i}" for i in range(len(properties) + 1)], ""
        rest = [f"rest_{number}_{i}" for i in range(len(properties) + 1)]
        for i, (key, sub, needed) in enumerate(properties):
            value = f"{quoted(key + '=')} {self.json(sub)} {rest[i + 1]}"
            later = f"{quoted(', ')} {value}"
            self.rule(first[i], value if needed else f"{value} | {first[i + 1]}")
            self.rule(rest[i], later if needed else f"{later} | {rest[i + 1]}")
        self.rule(first[-1], '""')
        self.rule(rest[-1], '""')
        return first[0]

    def _bare_values(self, schema: Mapping[str, Any], function: Function, head: str, end: str) -> str:
        """Strings as they are, other values as JSON."""
        char = r'[^<>"\n]' if '"$KEY"' in head else r"[^<>\n]"  # of a key
        if function.free:
            before, after = head.replace("$STRING", "true").replace("$TYPE", "string").split("$KEY")
            rest = self.upto(end.partition("$KEY")[0])
            rest += f" /{char}{{1,128}}/ {self.text(end.partition('$KEY')[2])}" if "$KEY" in end else ""
            return f"({self.text(before)} /{char}{{1,128}}/ {self.text(after)} {rest})*"
        parts = []
        for key, sub, needed in _properties(schema, function, char + "+"):
            value, is_string = self._bare_value(sub, function, key, end.replace("$KEY", key))
            before = self._told(head.replace("$KEY", key), sub, function, is_string=is_string)
            parts.append(f"({before} {value})" + ("" if needed else "?"))
        return " ".join(parts)

    def _told(self, head: str, sub: Mapping[str, Any], function: Function, *, is_string: bool) -> str:
        """What stands before a value, with what that says of the value's type."""
        before, told, after = head.replace("$STRING", str(is_string).lower()).partition("$TYPE")
        if not told:
            return self.text(before)
        kinds = {"number" if kind == "integer" else kind for kind in schema_types(sub, function.schema)}
        named = [kind for kind in _TYPES if kind in kinds] or _TYPES
        kind = quoted("string") if is_string else f"({' | '.join(map(quoted, named))})"
        return f"{self.text(before)} {kind} {self.text(after)}"

    def _bare_value(self, sub: Mapping[str, Any], function: Function, key: str, end: str) -> tuple[str, bool]:
        """And whether it is a string."""
        root = function.schema
        values = listed_values(sub, root) or ()
        words = ["null" if value is None else value for value in values]
        if any(isinstance(value, str) for value in values):
            if all(isinstance(word, str) for word in words):
                return f"({' | '.join(map(quoted, words))}) {self.text(end)}", True
        elif "string" not in schema_types(sub, root) and sub.keys() - {*NOTES, "$defs", "definitions"}:
            return f"{self.json(sub)} {self.text(end)}", False
        of_strings = [part for part in schema_parts(sub, root) if "string" in (own_types(part) or {"string"})]
        wrong = next((name for part in of_strings for name in _UNENFORCED if name in part), None)
        if wrong is not None:
            where = f"{function.where}.function.parameters"
            raise UnsupportedError(
                f"{where}: {wrong!r} of the string {key!r:.80} is not supported, as it could not be enforced in this "
                "model's format of tool calls; leave it out",
                param=where,
            )
        return self.upto(end), True


def _bare(schema: Any) -> Any:
    """The schema without what demands nothing: notes may be long."""
    if isinstance(schema, list):
        return [_bare(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    bare: dict[str, Any] = {}
    for key, value in schema.items():
        if key in _BY_NAME and isinstance(value, dict):
            bare[key] = {name: _bare(item) for name, item in value.items()}
        elif key not in NOTES:
            bare[key] = value if key in ("enum", "const") else _bare(value)
    return bare


def quoted(text: str) -> str:
    return json.dumps(text).replace("\x7f", "\\u007f") if text else ""


def _object_schema(function: Function) -> dict[str, Any]:
    if function.free:
        return {"type": "object"}
    schema = {**function.schema}
    if schema.setdefault("type", "object") != "object":
        where = f"{function.where}.function.parameters"
        raise InputError(f"{where}.type must be 'object': arguments are an object", param=where)
    return schema


def _properties(
    schema: Mapping[str, Any], function: Function, pattern: str
) -> list[tuple[str, Mapping[str, Any], bool]]:
    """(key, schema, required) in order; what is defined for references goes along."""
    behind = referred(str(schema.get("$ref")), schema)
    if isinstance(behind, Mapping):
        schema = {key: value for key, value in {**schema, **behind}.items() if key != "$ref" or "$ref" in behind}
    found = schema.get("properties") or {}
    needed = schema.get("required") or []
    where = f"{function.where}.function.parameters"
    if not isinstance(found, dict) or not isinstance(needed, list):
        raise InputError(f"{where} must have properties as an object and required as a list", param=where)
    wrong = [name for name in _UNENFORCED_OF_ALL if name in schema]
    wrong += [f"required property {name}" for name in needed if name not in found]
    if wrong:
        raise UnsupportedError(
            f"{where}: {wrong[0]!r:.80} is not supported, as it could not be enforced in this model's format of tool "
            "calls; leave it out",
            param=where,
        )
    shared = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    rows: list[tuple[str, Mapping[str, Any], bool]] = []
    for key, sub in found.items():
        if not re.fullmatch(pattern, key) or not isinstance(sub, dict):
            raise UnsupportedError(
                f"{where}: the property {key!r:.80} is not supported in this model's format of tool calls", param=where
            )
        rows.append((key, {**shared, **sub}, key in needed))
    return rows

"""Parts of JSON Schemas in, what excludes them and whether two exclude each other out. What is not sure is not said.

Source: JSON Schema Validation 2020-12, sections 6 (what each keyword says of which type) and JSON Schema Core, 10.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from itertools import combinations
from typing import Any
from urllib.parse import unquote

TYPES = ("null", "boolean", "number", "string", "array", "object")
MAX_DEPTH = 12
MAX_STEPS = 20_000  # of one document
MAX_WORDS = 2000  # characters of strings that a pattern excludes
# fmt: off
_ASSERTIONS = frozenset((
    "type", "const", "enum", "required", "properties", "allOf", "anyOf", "oneOf", "not", "$ref", "minimum",
    "maximum", "exclusiveMinimum", "exclusiveMaximum", "minLength", "maxLength", "minItems", "maxItems",
    "multipleOf", "pattern", "format", "items", "additionalItems", "prefixItems", "contains", "minContains",
    "maxContains", "uniqueItems", "minProperties", "maxProperties", "patternProperties", "additionalProperties",
    "propertyNames", "dependentRequired", "dependentSchemas", "dependencies", "if", "then", "else",
    "unevaluatedProperties", "unevaluatedItems", "$dynamicRef", "$recursiveRef", "$dynamicAnchor",
    "$recursiveAnchor", "$anchor",
))
# fmt: on
_OF_ARRAYS = {"items", "additionalItems", "prefixItems", "minItems", "maxItems", "uniqueItems", "contains"}
_OF_OBJECTS = {"properties", "required", "additionalProperties", "patternProperties", "minProperties", "maxProperties"}
_OF_STRINGS = {"minLength", "maxLength", "pattern"}
_BOUNDS = {  # keyword: its type, what excludes it, what is added to the bound
    "minimum": ("number", "exclusiveMaximum", 0),
    "maximum": ("number", "exclusiveMinimum", 0),
    "exclusiveMinimum": ("number", "maximum", 0),
    "exclusiveMaximum": ("number", "minimum", 0),
    "minLength": ("string", "maxLength", -1),
    "maxLength": ("string", "minLength", 1),
    "minItems": ("array", "maxItems", -1),
    "maxItems": ("array", "minItems", 1),
}


_FORMS: dict[type, tuple[str, ...]] = {
    list: ("allOf", "anyOf", "oneOf", "prefixItems", "required", "enum"),
    dict: ("properties", "patternProperties", "dependentRequired", "dependentSchemas", "dependencies"),
    int: ("minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties"),
    str: ("pattern", "format"),
}


def well_formed(schema: dict[str, Any]) -> bool:
    """What stands under the keywords that are read here has their form."""
    for form, names in _FORMS.items():
        if any(type(schema.get(name, form())) is not form for name in names):
            return False
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    words = [kinds, schema.get("required", [])]
    return all(isinstance(part, list) and all(isinstance(word, str) for word in part) for part in words)


class UnknownError(Exception):
    """It cannot be said in JSON Schema's words that are enforced."""


class Logic:
    """Of the schemas of one document, which references are resolved in."""

    def __init__(self, root: dict[str, Any]) -> None:
        self._root = root
        self._steps = 0

    def spend(self) -> bool:
        """False where enough has been done: references can multiply without end."""
        self._steps += 1
        return self._steps <= MAX_STEPS

    def resolve(self, reference: Any) -> Any:
        """What a reference to a place in the document stands for."""
        if reference == "#":
            return self._root
        if not isinstance(reference, str) or not reference.startswith("#/"):
            raise UnknownError
        found: Any = self._root
        for part in unquote(reference[2:]).split("/"):
            part = part.replace("~1", "/").replace("~0", "~")
            found = found.get(part) if isinstance(found, dict) else None
            if isinstance(found, dict) and ("$id" in found or "id" in found):  # references in it are not the document's
                raise UnknownError
        if not isinstance(found, dict | bool):
            raise UnknownError
        return found

    def negate(self, schema: Any, depth: int = 0) -> Any:
        """What is valid only where the schema is not: all of it, but for properties whose opposite has no words.

        So it must not be negated in its turn. Raises UnknownError.
        """
        if isinstance(schema, bool):
            return not schema
        if depth > MAX_DEPTH or not isinstance(schema, dict) or not well_formed(schema) or not self.spend():
            raise UnknownError
        parts = []
        for key, value in schema.items():
            if key in _ASSERTIONS:
                part = self._negate_keyword(key, value, depth + 1, schema.keys())
                if part is True:
                    return True
                parts += [] if part is False else [part]
        return any_of(parts)

    def _negate_property(self, name: str, part: Any, depth: int) -> Any:
        try:
            opposite = self.negate(part, depth)
        except UnknownError:
            return False
        return opposite and {"type": "object", "properties": {name: opposite}, "required": [name]}

    def _negate_keyword(self, key: str, value: Any, depth: int, beside: AbstractSet[str]) -> Any:
        match key:
            case "type":
                return _other_types(value)
            case "const":
                return not_among([value])
            case "enum":
                return not_among(value)
            case "required":
                return any_of([{"type": "object", "properties": {name: False}} for name in value])
            case "properties":
                return any_of([self._negate_property(name, part, depth) for name, part in value.items()])
            case "not":
                return value
            case "$ref":
                return self.negate(self.resolve(value), depth)
            case "allOf":
                return any_of([self.negate(part, depth) for part in value])
            case "anyOf":
                return all_of([self.negate(part, depth) for part in value])
            case "oneOf" if self.apart(value):
                return all_of([self.negate(part, depth) for part in value])
            case "items" | "additionalProperties" | "additionalItems" if value is True or value == {}:
                return False
            case "additionalProperties" if beside & {"properties", "required"}:
                return False
        if key in _BOUNDS and isinstance(value, int | float) and not isinstance(value, bool):
            kind, opposite, step = _BOUNDS[key]
            return {"type": kind, opposite: value + step} if value + step >= 0 or kind == "number" else False
        raise UnknownError

    def apart(self, schemas: list[Any]) -> bool:
        """No value is valid by two of them, for certain."""
        return all(self.disjoint(one, other) for one, other in combinations(schemas, 2))

    def marked(self, schemas: list[Any]) -> bool:
        """Each has a constant of its own, itself or in one required property, so that they are apart."""
        rows = [self._marks(schema) for schema in schemas]
        names = set(rows[0]).intersection(*rows[1:])
        return any(len({row[name] for row in rows}) == len(rows) for name in names)

    def _marks(self, schema: Any) -> dict[str | None, tuple[bool, Any]]:
        """By property, None for the value itself: a constant, told apart from a number that equals it."""
        try:
            if isinstance(schema, dict) and "$ref" in schema:
                schema = self.resolve(schema["$ref"])
        except UnknownError:
            return {}
        if not isinstance(schema, dict) or not well_formed(schema):
            return {}
        parts: dict[str | None, Any] = {None: schema}
        if schema.get("type") == "object":
            parts |= {name: schema.get("properties", {}).get(name) for name in schema.get("required", ())}
        found = {name: _values([part]) for name, part in parts.items() if isinstance(part, dict) and well_formed(part)}
        return {
            name: (isinstance(values[0], bool), values[0])
            for name, values in found.items()
            if values is not None and len(values) == 1 and not isinstance(values[0], list | dict)
        }

    def disjoint(self, one: Any, other: Any, depth: int = 0) -> bool:
        """No value is valid by both, for certain."""
        try:
            first, second = self._parts(one, depth), self._parts(other, depth)
        except UnknownError:
            return False
        if False in first or False in second:
            return True
        kinds = _kinds(first) & _kinds(second)
        if not kinds or depth > MAX_DEPTH:
            return not kinds
        for these, those in ((first, second), (second, first)):
            for part in these:
                for name in ("anyOf", "oneOf"):
                    options, rest = part.get(name), [p for p in these if p is not part]
                    if options is not None and all(
                        self.disjoint({"allOf": [option, *rest]}, {"allOf": those}, depth + 1) for option in options
                    ):
                        return True
        values, others = _values(first), _values(second)
        if values is not None and others is not None and not any(_same(a, b) for a in values for b in others):
            return True
        if kinds == {"object"}:
            names = {name for part in first + second for name in part.get("required", ())}
            return any(self.disjoint(_property(first, n), _property(second, n), depth + 1) for n in sorted(names))
        return kinds == {"array"} and self._arrays_apart(first, second, depth)

    def silent(self, schema: Any) -> set[str]:
        """Types of which every value is valid, for certain."""
        try:
            parts = self._parts(schema, 0)
        except UnknownError:
            return set()
        keys = {key for part in parts if isinstance(part, dict) for key in part.keys() & _ASSERTIONS}
        if False in parts or keys - _OF_ARRAYS - _OF_OBJECTS - _OF_STRINGS:
            return set()
        spoken = {"array"} if keys & _OF_ARRAYS else set()
        spoken |= ({"object"} if keys & _OF_OBJECTS else set()) | ({"string"} if keys & _OF_STRINGS else set())
        return set(TYPES) - spoken

    def _arrays_apart(self, first: list[Any], second: list[Any], depth: int) -> bool:
        least = max(part.get("minItems", 0) for part in first + second)
        most = min(_most_items(part) for part in first + second)
        if least > most:
            return True
        return any(self.disjoint(_item(first, i), _item(second, i), depth + 1) for i in range(min(least, 8)))

    def _parts(self, schema: Any, depth: int) -> list[Any]:
        """Schemas that hold together, in place of one with $ref and allOf."""
        if depth > MAX_DEPTH or not self.spend():
            raise UnknownError
        if not isinstance(schema, dict):
            return [] if schema is True else [False]
        if not well_formed(schema):
            raise UnknownError
        found: list[Any] = [{key: value for key, value in schema.items() if key not in ("$ref", "allOf")}]
        if "$ref" in schema:
            found += self._parts(self.resolve(schema["$ref"]), depth + 1)
        for part in schema.get("allOf", ()):
            found += self._parts(part, depth + 1)
        return found


def any_of(parts: list[Any]) -> Any:
    """One of them; False of none."""
    parts = [part for part in parts if part is not False]
    if any(part is True or part == {} for part in parts):
        return True
    return parts[0] if len(parts) == 1 else {"anyOf": parts} if parts else False


def all_of(parts: list[Any]) -> Any:
    """All of them; True of none."""
    parts = [part for part in parts if part is not True and part != {}]
    if False in parts:
        return False
    return parts[0] if len(parts) == 1 else {"allOf": parts} if parts else True


def _other_types(given: Any) -> Any:
    types = [given] if isinstance(given, str) else given
    if "integer" in types and "number" not in types:
        raise UnknownError  # numbers with a fraction have no word
    return _typed([kind for kind in TYPES if kind not in types])


def _typed(kinds: list[str]) -> Any:
    return {"type": kinds if len(kinds) > 1 else kinds[0]} if kinds else False


def not_among(values: list[Any]) -> Any:
    """Any value but these. Raises UnknownError where one is an array or an object."""
    if any(isinstance(value, list | dict) for value in values):
        raise UnknownError
    words = [value for value in values if isinstance(value, str)]
    flags = [value for value in values if isinstance(value, bool)]
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    rest = ["array", "object"] + ["null"] * (None not in values) + ["boolean"] * (not flags)
    parts = [_typed(rest + ["string"] * (not words) + ["number"] * (not numbers))]
    if words:
        parts.append({"type": "string", "pattern": f"^{but(words)}$"})
    if len(set(flags)) == 1:
        parts.append({"const": not flags[0]})
    if numbers:
        ends = [{"anyOf": [{"exclusiveMaximum": value}, {"exclusiveMinimum": value}]} for value in numbers]
        parts.append({"type": "number", "allOf": ends})
    return any_of(parts)


def but(words: list[str]) -> str:
    """A regular expression of every text that is none of these: along their trie, where it leaves it or ends within."""
    if sum(map(len, words)) > MAX_WORDS or any(len(word) > 100 for word in words):
        raise UnknownError
    rest: dict[str, list[str]] = {}
    for word in words:
        if word:
            rest.setdefault(word[0], []).append(word[1:])
    parts = [f"{_char(char)}{but(after)}" for char, after in rest.items()]
    parts.append(f"[^{''.join(map(_char, rest))}](?s:.)*" if rest else "(?s:.)+")
    return f"(?:{'|'.join(parts)})" + ("" if "" in words else "?")


def _char(char: str) -> str:
    return rf"\x{{{ord(char):X}}}"


def _kinds(parts: list[Any]) -> set[str]:
    """Types that a value can have."""
    found = {*TYPES, "integer"}
    for part in parts:
        if "type" in part:
            given = {part["type"]} if isinstance(part["type"], str) else set(part["type"])
            found &= given | ({"integer"} if "number" in given else set())
        values = _values([part])
        if values is not None:
            found &= {kind for value in values for kind in _kinds_of(value)}
    return found


def _kinds_of(value: Any) -> tuple[str, ...]:
    if value is None:
        return ("null",)
    if isinstance(value, bool):
        return ("boolean",)
    if isinstance(value, int | float):
        return ("number", "integer")
    return ("string",) if isinstance(value, str) else ("array",) if isinstance(value, list) else ("object",)


def _values(parts: list[Any]) -> list[Any] | None:
    """The values that one part leaves, where one does."""
    for part in parts:
        if "const" in part:
            return [part["const"]]
        if "enum" in part:
            return list(part["enum"])
    return None


def _same(one: Any, other: Any) -> bool:
    """Equal as JSON has it: true is no number. Of containers it is not told: True."""
    if isinstance(one, list | dict) or isinstance(other, list | dict):
        return type(one) is type(other)
    return isinstance(one, bool) == isinstance(other, bool) and one == other


def _property(parts: list[Any], name: str) -> Any:
    """What is said of a property that must be there."""
    found = []
    for part in parts:
        if name in part.get("properties", ()):
            found.append(part["properties"][name])
        elif part.get("additionalProperties") is False and "patternProperties" not in part:
            found.append(False)
    return {"allOf": found}


def _most_items(part: dict[str, Any]) -> float:
    most = part.get("maxItems", float("inf"))
    if isinstance(part.get("items"), list) and part.get("additionalItems") is False:
        return float(min(most, len(part["items"])))
    if "prefixItems" in part and part.get("items") is False:
        return float(min(most, len(part["prefixItems"])))
    return float(most)


def _item(parts: list[Any], i: int) -> Any:
    """What is said of an item that must be there."""
    found = []
    for part in parts:
        items = part.get("prefixItems", part.get("items"))
        if isinstance(items, list):
            found += items[i : i + 1]
        elif isinstance(items, dict):
            found.append(items)
    return {"allOf": found}

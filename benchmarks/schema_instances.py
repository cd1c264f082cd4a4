"""Instances of a JSON Schema, made at random, and changed; what is valid is for a validator to say."""

from __future__ import annotations

import copy
import random
import re._constants as regex
import re._parser
from typing import Any

import jsonschema_rs

FORMATS = {
    "date": "2024-02-29",
    "date-time": "2024-02-29T12:30:00Z",
    "time": "12:30:00Z",
    "duration": "P1DT2H",
    "email": "ada@example.org",
    "hostname": "www.example.org",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "uuid": "123e4567-e89b-12d3-a456-426614174000",
    "uri": "https://example.org/a?b=c#d",
    "uri-reference": "/a/b",
    "regex": "^a+$",
}
WORDS = ["", "a", "Ada Lovelace", "x-1", "日本", 'say "so"', "back\\slash", "https://example.org/", "2024-01-01", "1"]
SCALARS: list[Any] = [None, True, False, 0, 1, -1, 3, 12, 250, 0.5, -2.25, 100000, *WORDS, [], {}, ["a"], {"a": 1}]
DEEP = 6


def resolve(root: dict[str, Any], reference: str) -> Any:
    """What a reference inside the document stands for; {} where it leads elsewhere."""
    found: Any = root
    for part in reference.removeprefix("#").split("/")[1:] if reference.startswith("#") else ["?"]:
        part = part.replace("~1", "/").replace("~0", "~").replace("%24", "$").replace("%20", " ")
        found = found.get(part, {}) if isinstance(found, dict) else {}
    return found


class Maker:
    """Of one schema."""

    def __init__(self, root: dict[str, Any], rng: random.Random) -> None:
        self._root = root
        self._rng = rng
        self._most = 0.5

    def make(self) -> Any:
        """An instance; how many optional properties it has is drawn first."""
        self._most = self._rng.choice([0.0, 0.3, 0.7, 1.0])
        return self._make(self._root, 0)

    def _make(self, schema: Any, depth: int) -> Any:
        rng = self._rng
        if not isinstance(schema, dict):
            return rng.choice(SCALARS)
        schema = self._flat(schema, depth)
        if "const" in schema:
            return copy.deepcopy(schema["const"])
        if schema.get("enum"):
            return copy.deepcopy(rng.choice(schema["enum"]))
        kind = schema.get("type")
        if isinstance(kind, list):
            kind = rng.choice(kind)
        if kind is None:
            kind = self._guess(schema)
        match kind:
            case "object":
                return self._object(schema, depth)
            case "array":
                return self._array(schema, depth)
            case "string":
                return self._string(schema)
            case "integer" | "number":
                return self._number(schema, kind)
            case "boolean":
                return rng.random() < 0.5
            case "null":
                return None
        return copy.deepcopy(rng.choice(SCALARS))

    def _guess(self, schema: dict[str, Any]) -> str | None:
        marks = {
            "object": ("properties", "additionalProperties", "patternProperties", "required"),
            "array": ("items", "minItems", "prefixItems"),
            "string": ("pattern", "format", "minLength", "maxLength"),
            "number": ("minimum", "maximum"),
        }
        return next((kind for kind, keys in marks.items() if any(key in schema for key in keys)), None)

    def _flat(self, schema: dict[str, Any], depth: int) -> dict[str, Any]:
        """One way through $ref, anyOf, oneOf and allOf, merged."""
        for _ in range(40):
            parts = []
            if isinstance(schema.get("$ref"), str):
                parts.append(resolve(self._root, schema["$ref"]))
            for name in ("anyOf", "oneOf"):
                if schema.get(name):
                    options = schema[name]
                    if depth > DEEP:  # what may end it
                        options = [one for one in options if isinstance(one, dict) and "type" in one] or options
                    parts.append(self._rng.choice(options))
            parts += schema.get("allOf", [])
            if not parts:
                break
            schema = {key: value for key, value in schema.items() if key not in ("$ref", "anyOf", "oneOf", "allOf")}
            for part in parts:
                schema = merged(schema, part if isinstance(part, dict) else {})
        return schema

    def _object(self, schema: dict[str, Any], depth: int) -> dict[str, Any]:
        rng, found = self._rng, {}
        required = schema.get("required", ())
        required = required if isinstance(required, list) else ()
        known = schema.get("properties", {})
        for name, part in known.items():
            if name in required or (depth <= DEEP and rng.random() < self._most):
                found[name] = self._make(part, depth + 1)
        for name in required:
            if name not in found:
                found[name] = self._make(schema.get("additionalProperties", {}), depth + 1)
        for pattern, part in schema.get("patternProperties", {}).items():
            if rng.random() < 0.6 and depth <= DEEP:
                found.setdefault(of_pattern(pattern, rng), self._make(part, depth + 1))
        others = schema.get("additionalProperties", True)
        while others is not False and (rng.random() < 0.2 or len(found) < schema.get("minProperties", 0)):
            found.setdefault(f"key{rng.randrange(99)}", self._make(others, depth + 1))
        return found

    def _array(self, schema: dict[str, Any], depth: int) -> list[Any]:
        least = schema.get("minItems", 0)
        most = max(least, min(schema.get("maxItems", least + 3), least + 3))
        first = schema.get("prefixItems", [])
        items = schema.get("items", {})
        if isinstance(items, list):
            first, items = items, schema.get("additionalItems", {})
        count = self._rng.randint(least, most) if depth <= DEEP else least
        return [self._make(first[i] if i < len(first) else items, depth + 1) for i in range(count)]

    def _string(self, schema: dict[str, Any]) -> str:
        if isinstance(schema.get("pattern"), str):
            return of_pattern(schema["pattern"], self._rng)
        if schema.get("format") in FORMATS:
            return FORMATS[schema["format"]]
        text = self._rng.choice(WORDS)
        text += "z" * (schema.get("minLength", 0) - len(text))
        return text[: schema.get("maxLength", len(text))]

    def _number(self, schema: dict[str, Any], kind: str) -> float:
        low, high = schema.get("minimum"), schema.get("maximum")
        below, above = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
        if isinstance(below, int | float) and not isinstance(below, bool):
            low = below + 1
        if isinstance(above, int | float) and not isinstance(above, bool):
            high = above - 1
        low = low if low is not None else min(0, high if high is not None else 0) - 5
        high = high if high is not None else low + 100
        step = schema.get("multipleOf")
        if step:
            return step * self._rng.randint(0, 5)  # type: ignore[no-any-return]
        if kind == "integer" or self._rng.random() < 0.5:
            return self._rng.randint(-(-int(low) // 1), max(int(low), int(high)))
        return round(self._rng.uniform(low, high), 2)


def merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Roughly both."""
    found = {**one, **other}
    for name in ("properties", "patternProperties"):
        if name in one and name in other:
            both = one[name].keys() & other[name].keys()
            found[name] = {
                **one[name],
                **other[name],
                **{
                    key: {**one[name][key], **other[name][key]}
                    for key in both
                    if isinstance(one[name][key], dict) and isinstance(other[name][key], dict)
                },
            }
    if isinstance(one.get("required"), list) and isinstance(other.get("required"), list):
        found["required"] = list(dict.fromkeys(one["required"] + other["required"]))
    if False in (one.get("additionalProperties"), other.get("additionalProperties")):
        found["additionalProperties"] = False
    return found


def of_pattern(pattern: str, rng: random.Random) -> str:
    """A text that has the pattern in it, mostly; "?" where it cannot be read."""

    def draw(parts: Any) -> str:
        return "".join(one(code, value) for code, value in parts)

    def char(codes: Any) -> str:
        if codes[0][0] is regex.NEGATE:
            return rng.choice("aZ5_-~é")
        code, value = rng.choice(codes)
        if code is regex.RANGE:
            return chr(rng.randint(value[0], value[1]))
        if code is regex.CATEGORY:
            return {regex.CATEGORY_DIGIT: "7", regex.CATEGORY_SPACE: " "}.get(value, "w")
        return chr(value)

    def one(code: Any, value: Any) -> str:
        if code is regex.LITERAL:
            return chr(value)
        if code is regex.NOT_LITERAL or code is regex.ANY:
            return "q"
        if code is regex.IN:
            return char(value)
        if code is regex.BRANCH:
            return draw(rng.choice(value[1]))
        if code is regex.SUBPATTERN:
            return draw(value[3])
        if code in (regex.MAX_REPEAT, regex.MIN_REPEAT):
            least, most, part = value
            return "".join(draw(part) for _ in range(rng.randint(least, min(most, least + 3))))
        return ""

    try:
        return draw(re._parser.parse(pattern))
    except (re.error, RecursionError, OverflowError):
        return "?"


def mutate(instance: Any, rng: random.Random) -> Any:
    """A copy with one thing changed: a value, a key, an item, a length, a type."""
    changed = copy.deepcopy(instance)
    places: list[tuple[Any, Any]] = []

    def walk(value: Any) -> None:
        for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
            places.append((value, key))
            walk(value[key])

    walk(changed)
    if not places or rng.random() < 0.1:
        if isinstance(changed, dict) and rng.random() < 0.7:
            changed[rng.choice(["extra", "x-y", "1"])] = rng.choice(SCALARS)
            return changed
        return rng.choice(SCALARS)
    holder, key = rng.choice(places)
    value, way = holder[key], rng.random()
    if way < 0.3:
        del holder[key]
    elif way < 0.4 and isinstance(holder, dict):
        holder["extra"] = rng.choice(SCALARS)
    elif way < 0.4:
        holder.append(copy.deepcopy(value))
    elif way < 0.5 and isinstance(value, dict):
        value["extra"] = rng.choice(SCALARS)
    elif way < 0.75 and isinstance(value, str):
        holder[key] = rng.choice([value + "x", value[:-1], value.upper(), "", value * 40, " " + value])
    elif way < 0.75 and isinstance(value, int | float) and not isinstance(value, bool):
        holder[key] = rng.choice([-value, value + 1, value - 1, value * 1000, value + 0.5, str(value)])
    else:
        holder[key] = copy.deepcopy(rng.choice(SCALARS))
    return changed


def ordered(root: dict[str, Any], instance: Any) -> Any:
    """The instance with the properties of its objects in the schema's order, others behind."""
    shared = {key: root[key] for key in ("$schema", "$defs", "definitions") if key in root}

    def follow(schema: Any, value: Any, depth: int) -> list[dict[str, Any]]:
        """The schemas that apply to a value, in the order in which their properties come."""
        if not isinstance(schema, dict) or depth > 30:
            return []
        found = [schema]
        if isinstance(schema.get("$ref"), str):
            found += follow(root if schema["$ref"] == "#" else resolve(root, schema["$ref"]), value, depth + 1)
        for name in ("anyOf", "oneOf"):
            for part in schema.get(name, ()):
                if isinstance(part, dict) and fits({**shared, **part}, value):
                    found += follow(part, value, depth + 1)
        for part in schema.get("allOf", ()):
            found += follow(part, value, depth + 1)
        return found

    def sort(schemas: list[Any], value: Any) -> Any:
        whole = [one for schema in schemas for one in follow(schema, value, 0)]
        if isinstance(value, list):
            return [sort([part for one in whole for part in of_item(one, i)], item) for i, item in enumerate(value)]
        if not isinstance(value, dict):
            return value
        names = [name for one in whole for name in one.get("properties", ())]
        keys = [name for name in dict.fromkeys(names) if name in value] + [key for key in value if key not in names]
        return {key: sort([part for one in whole for part in of_key(one, key)], value[key]) for key in keys}

    return sort([root], instance)


def fits(schema: dict[str, Any], value: Any) -> bool:
    """Whether it is valid; False where the part cannot be read alone."""
    try:
        return bool(jsonschema_rs.is_valid(schema, value, validate_formats=True))
    except (ValueError, jsonschema_rs.ReferencingError):
        return False


def of_item(schema: dict[str, Any], i: int) -> list[Any]:
    """What a schema says of an item."""
    first, items = schema.get("prefixItems", []), schema.get("items")
    if isinstance(items, list):
        first, items = items, schema.get("additionalItems")
    return [first[i]] if i < len(first) else [items]


def of_key(schema: dict[str, Any], key: str) -> list[Any]:
    """What a schema says of a property."""
    if key in schema.get("properties", {}):
        return [schema["properties"][key]]
    return [*schema.get("patternProperties", {}).values(), schema.get("additionalProperties")]

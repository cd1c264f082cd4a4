"""Rewritten schemas: what they admit, beside an independent validator, over random schemas of the keywords that mix."""

from __future__ import annotations

import itertools
import json
import random
import re
from typing import Any

import jsonschema_rs
import pytest

from octavo.base.errors import InputError
from octavo.base.types.structured import StructuredOutputsParams
from octavo.engine.grammar.checker_main import small_vocabulary
from octavo.engine.grammar.llguidance import compile_matcher, make_tokenizer
from octavo.engine.grammar.logic import but
from octavo.engine.grammar.rewrite import FORMATS, rewrite

TOKENIZER = make_tokenizer(small_vocabulary({}))
VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    1,
    2,
    2.5,
    "",
    "a",
    "b",
    "ab",
    [],
    [1],
    ["a"],
    ["a", "b"],
    ["a", "a"],
    [1, "a"],
]
OBJECTS = [dict(zip("ab", pair, strict=True)) for pair in itertools.product([1, 2, "a", "b", None, []], repeat=2)] + [
    {},
    *({key: value} for key in "abc" for value in [1, "a", "b", True, {}]),
    {"a": 1, "c": "a"},
    {"a": {"a": 1}},
]
UNIVERSE = VALUES + OBJECTS


def judge(schema: dict[str, Any], instances: list[Any]) -> tuple[list[Any], list[Any]]:
    """Instances that are admitted and invalid; valid and admitted in no order of their properties."""
    matcher = compile_matcher(TOKENIZER, StructuredOutputsParams(json=schema), ())
    validator = jsonschema_rs.validator_for(schema, validate_formats=True)

    def admitted(instance: Any) -> bool:
        text = json.dumps(instance, separators=(",", ":"), ensure_ascii=False).encode()
        copy = matcher.deep_copy()
        return bool(copy.try_consume_tokens(list(text)) == len(text) and copy.is_accepting())

    def orders(instance: Any) -> list[Any]:
        return (
            [dict(items) for items in itertools.permutations(instance.items())]
            if isinstance(instance, dict)
            else [instance]
        )

    lax, strict = [], []
    for instance in instances:
        found = any(map(admitted, orders(instance)))
        if found != validator.is_valid(instance):
            (lax if found else strict).append(instance)
    return lax, strict


class Draw:
    """Random schemas over the names a, b, c and a few values."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)

    def schema(self, depth: int = 0) -> Any:
        rng = self.rng
        if depth > 2 or rng.random() < 0.05:
            return rng.choice([True, False, {}, {"type": "string"}, {"const": "a"}, {"enum": ["a", 1]}, {"minimum": 2}])
        found: dict[str, Any] = {}
        for _ in range(rng.choice([1, 1, 2, 3])):
            found.update(self.keyword(depth + 1))
        return found

    def keyword(self, depth: int) -> dict[str, Any]:
        rng = self.rng
        names = rng.sample("abc", rng.randint(1, 2))
        some = [self.schema(depth) for _ in range(rng.randint(1, 3))]
        return rng.choice(
            [
                {"type": rng.choice(["object", "string", "array", "integer", "number", ["object", "null"], "boolean"])},
                {"type": "object"},
                {"const": rng.choice(VALUES)},
                {"enum": rng.sample(["a", "b", "ab", "", 1, 2, None, True], rng.randint(1, 4))},
                {"required": names},
                {"properties": {name: self.schema(depth) for name in names}},
                {"properties": {name: self.schema(depth) for name in "ab"}, "additionalProperties": False},
                {"not": some[0]},
                {"if": some[0], "then": some[-1]},
                {"if": some[0], "else": some[-1]},
                {"if": some[0], "then": some[-1], "else": self.schema(depth)},
                {"oneOf": some},
                {"oneOf": [*some, self.schema(depth)]},
                {"anyOf": some},
                {"allOf": some},
                {"dependentRequired": {names[0]: rng.sample("abc", 1)}},
                {"dependentSchemas": {names[0]: some[0]}},
                {"$ref": "#/$defs/d"},
                {"minimum": 1},
                {"maximum": 1},
                {"minLength": 1},
                {"maxLength": 1},
                {"minItems": 1},
                {"maxItems": 1},
                {"items": some[0]},
                {"items": {"enum": ["a", "b"]}, "uniqueItems": True, "type": "array"},
                {
                    "propertyNames": rng.choice([{"enum": ["a", "c"]}, {"maxLength": 1}, {"pattern": "^a"}]),
                    "type": "object",
                },
                {"unevaluatedProperties": rng.choice([False, {"type": "integer"}])},
                {"format": rng.choice(["json-pointer", "mine"])},
            ]
        )


@pytest.mark.parametrize("part", range(2))
def test_random_schemas_admit_nothing_invalid(part: int) -> None:
    right = compiled = 0
    for seed in range(part * 80, part * 80 + 80):
        draw = Draw(seed)
        schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", "$defs": {"d": draw.schema(1)}}
        whole = draw.schema()
        schema |= whole if isinstance(whole, dict) else {"allOf": [whole]}
        before = json.dumps(schema)
        rewrite(schema)
        assert json.dumps(schema) == before
        try:
            jsonschema_rs.validator_for(schema)
            lax, strict = judge(schema, UNIVERSE)
        except (InputError, ValueError):
            continue
        assert not lax, (seed, before, lax)
        compiled, right = compiled + 1, right + (not strict)
    assert right > compiled * 0.9 > 30


KINDS = {"type": "object", "required": ["t"]}
SCHEMAS: list[tuple[dict[str, Any], list[Any], list[Any]]] = [
    ({"type": "string", "not": {"enum": ["no", "never", ""]}}, ["n", "nose", "yes", "日"], ["no", "never", "", 1]),
    ({"not": {"type": ["object", "array"]}}, [1, "a", None], [{}, []]),
    (
        {"properties": {"kind": {"enum": ["a", "b"]}, "x": {}}, "required": ["kind"], "type": "object"}
        | {"if": {"properties": {"kind": {"const": "a"}}}, "then": {"required": ["x"]}},
        [{"kind": "a", "x": 1}, {"kind": "b"}],
        [{"kind": "a"}, {}],
    ),
    ({"if": {"type": "string"}, "then": {"minLength": 2}, "else": {"type": "null"}}, ["ab", None], ["a", 1]),
    (
        {"type": "object", "oneOf": [{"required": ["a"]}, {"required": ["b"]}]},
        [{"a": 1}, {"b": 1}, {"a": 1, "c": 2}],
        [{}, {"a": 1, "b": 1}],
    ),
    (
        {"$defs": {"x": {"type": "object", "properties": {"t": {"const": "x"}}, "required": ["t"]}}}
        | {
            "oneOf": [{"$ref": "#/$defs/x"}, {"type": "object", "properties": {"t": {"const": "y"}}, "required": ["t"]}]
        },
        [{"t": "x"}, {"t": "y", "u": 1}],
        [{"t": "z"}, {}],
    ),
    ({"type": "array", "oneOf": [{"items": {"type": "string"}}, {"items": {"type": "integer"}}]}, [["a"], [1]], [[]]),
    ({"type": "object", "dependentRequired": {"a": ["b"]}}, [{}, {"b": 1}, {"a": 1, "b": 2}], [{"a": 1}]),
    ({"type": "array", "items": {"enum": ["r", "w", "x"]}, "uniqueItems": True}, [[], ["w", "r"]], [["r", "r"], ["y"]]),
    ({"type": "array", "items": {"enum": [1, 2]}, "uniqueItems": True}, [[], [2, 1]], [[1, 1], [3]]),
    ({"type": "object", "propertyNames": {"pattern": "^[a-z]+$"}}, [{"ab": 1}, {}], [{"A": 1}]),
    ({"type": "object", "properties": {"a": {}}, "unevaluatedProperties": False}, [{"a": 1}, {}], [{"b": 1}]),
    ({"type": "string", "format": "zip-code"}, ["any"], [1]),
    ({"$schema": "https://json-schema.org/draft-07/schema", "items": [{"type": "null"}]}, [[None, 1]], [[1]]),
    ({"oneOf": [{"const": i, "title": f"{i}"} for i in range(150)]}, [0, 149], [150, "0"]),
    (
        {"oneOf": [{"$ref": f"#/$defs/{i}"} for i in range(120)]}
        | {"$defs": {f"{i}": {**KINDS, "properties": {"t": {"const": i}}} for i in range(120)}},
        [{"t": 7}],
        [{"t": 120}, {}],
    ),
    ({"not": {"$ref": "#/$defs/a%20b"}, "$defs": {"a b": {"type": "string"}}}, [1], ["a"]),
    ({"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}, [0, 2**63 - 1, -(2**62)], [2**63, -(2**63) - 1]),
    ({"type": "number", "minimum": 0, "maximum": 1.5e300}, [0.5, 2**62], [-0.5]),
    ({"type": "integer", "exclusiveMaximum": 10**18}, [10**17], [10**18]),
    ({"type": "integer", "exclusiveMinimum": -(10**18)}, [-(10**17)], [-(10**18)]),
    ({"type": "integer", "maximum": 2**60 + 129}, [2**59], [2**60 + 256]),
    ({"not": {"type": ["integer", "number"]}}, ["a", []], [1, 2.5]),
    ({"not": {"properties": {"a": False}}}, [{"a": 1}], [{}, {"b": 1}, 1]),
]


@pytest.mark.parametrize(("schema", "valid", "invalid"), SCHEMAS)
def test_what_is_said_in_other_words(schema: dict[str, Any], valid: list[Any], invalid: list[Any]) -> None:
    assert judge(schema, valid + invalid) == ([], [])


A, B = {"type": "string", "pattern": "^a"}, {"type": "string", "pattern": "^b"}  # whose opposites have no words
WITH_A = {"type": "object", "properties": {"k": A}, "required": ["k"]}
APART: list[tuple[dict[str, Any], dict[str, Any], list[Any], list[Any]]] = [
    ({"enum": ["a", []]}, {"enum": ["b"], **B}, ["a", [], "b"], ["c", [1]]),
    (
        WITH_A,
        {"type": "object", "properties": {"k": {"type": "array", "items": B}}, "required": ["k"]},
        [{"k": "a"}, {"k": ["b"]}],
        [{"k": "b"}, {"k": ["a"]}, {}],
    ),
    (
        {**WITH_A, "additionalProperties": False},
        {"type": "object", "properties": {"l": B}, "required": ["l"]},
        [{"k": "a"}, {"l": "b"}, {"k": "b", "l": "b"}],
        [{"k": "a", "m": 1}, {}],
    ),
    (
        {"type": "array", "items": A, "maxItems": 1},
        {"type": "array", "items": B, "minItems": 2},
        [[], ["a"], ["b", "b"]],
        [["b"], ["a", "a"]],
    ),
    (
        {"type": "array", "prefixItems": [{}, A], "items": False},
        {"type": "array", "items": B, "minItems": 3},
        [[], [1, "a"], ["b"] * 3],
        [["b", "b"], [1, "a", 1]],
    ),
    (
        {"type": "array", "prefixItems": [{}, A], "minItems": 2},
        {"type": "array", "prefixItems": [{}, {"type": "array", "items": B}], "minItems": 2},
        [[1, "a"], [1, ["b"]]],
        [[1], [1, "b"], [1, ["a"]]],
    ),
    ({"minItems": 2, "items": A}, {"maxItems": 1}, [["a", "a"], [], ["b"]], [["b", "b"], "x", 1, {}]),
]


@pytest.mark.parametrize(("one", "other", "valid", "invalid"), APART)
def test_options_that_no_value_matches_together(
    one: dict[str, Any], other: dict[str, Any], valid: list[Any], invalid: list[Any]
) -> None:
    for options in ([one, other], [other, one]):
        assert judge({"oneOf": options}, valid + invalid) == ([], [])


FORMATTED = {
    "uri-reference": (["", "/a/b?c#d", "a/b", "//h/x", "https://example.org/%20"], [" ", "a b", "%zz", ":a"]),
    "iri": (["http://bücher.example/ä", "urn:x"], ["/a", "b"]),
    "iri-reference": (["ä/b", "#f", "?q"], ["a b", "\\x"]),
    "json-pointer": (["", "/a/~0~1", "/"], ["a", "/~", "/~2"]),
    "relative-json-pointer": (["0", "1/a", "20#"], ["/a", "01", "", "-1"]),
    "uri-template": (["", "/u{/user}{?page,per}", "{x:3}{y*}", "%20"], ["{", "{a", "}", "{a b}", "<"]),
}


@pytest.mark.parametrize("name", FORMATS)
def test_formats_have_their_form(name: str) -> None:
    valid, invalid = FORMATTED[name]
    assert judge({"type": "string", "format": name}, valid + invalid) == ([], [])
    for text in valid + invalid:
        assert jsonschema_rs.is_valid({"format": name}, text, validate_formats=True) == (text in valid)


def test_patterns_of_all_texts_but_some() -> None:
    letters = ["".join(text) for size in range(4) for text in itertools.product("ab-", repeat=size)]
    for words in ([""], ["a"], ["a", "ab", "b-"], ["", "-", "aa", "aab"]):
        assert [text for text in letters if not re.fullmatch(_python(but(words)), text)] == [
            w for w in letters if w in words
        ]


def _python(pattern: str) -> str:
    return re.sub(r"\\x\{([0-9A-F]+)\}", lambda found: re.escape(chr(int(found[1], 16))), pattern)


def test_what_came_is_not_lost_where_it_cannot_be_said() -> None:
    for schema in (
        {"not": {"pattern": "a"}},
        {"not": {"type": "integer"}},
        {"not": {"const": "a" * 101}},
        {"not": {"$ref": "#/$defs/a"}, "$defs": {"a": {"$id": "urn:a", "type": "string"}}},
        {"if": {"items": {"type": "string"}}, "then": {"minItems": 1}},
        {"type": "array", "uniqueItems": True, "items": {"type": "string"}},
        {"type": "array", "uniqueItems": True, "items": {"enum": list("abcdef")}},
        {"oneOf": [{"pattern": "a"}, {"pattern": "b"}]},
        {"oneOf": [{"type": "number"}, {"type": "integer"}]},
        {"type": "string", "format": "regex"},
    ):
        assert rewrite(schema) == schema


def test_malformed_and_multiplying_schemas_are_left_to_the_library() -> None:
    rng = random.Random(1)
    wrong = [3, "a", None, [3], {"a": 3}, [{"type": 3}], {"type": [{}]}, {"required": "ab"}, [[]], 2.5, True]
    keys = [
        "type",
        "required",
        "properties",
        "oneOf",
        "not",
        "if",
        "then",
        "enum",
        "allOf",
        "dependencies",
        "items",
        "$ref",
    ]
    for _ in range(400):
        schema = {key: rng.choice(wrong) for key in rng.sample([*keys, "propertyNames", "format", "minItems"], 3)}
        rewrite({"oneOf": [schema, {"not": schema, "uniqueItems": True, "items": schema}], "propertyNames": schema})
    chain = {"type": "object", "properties": {"k": {"$ref": "#/$defs/c"}}, "required": ["k"]}
    rewrite({"oneOf": [{"$ref": "#/$defs/c"}] * 2, "$defs": {"c": chain}})
    many = {f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 9} for i in range(9)}
    left = {"not": {"$ref": "#/$defs/d0"}, "$defs": {**many, "d9": {"const": 1}}}
    assert rewrite(left)["not"] == left["not"]

"""Schemas, tags and choices as grammars: what they admit and what they do not; what is refused, by name."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from octavo.base.errors import InputError, UnsupportedError
from octavo.base.types.structured import StructuredOutputsParams
from octavo.engine.grammar.checker_main import small_vocabulary
from octavo.engine.grammar.llguidance import LlguidanceGrammar, compile_matcher, make_tokenizer
from octavo.engine.grammar.schema import make_grammar
from octavo.engine.grammar.validation import is_valid

SPECIAL = {"<|call|>": 7, "<|end|>": 9}
TOKENIZER = make_tokenizer(small_vocabulary(SPECIAL))
EOS = 256 + len(SPECIAL)


def admits(text: str, **asked: Any) -> bool:
    matcher = compile_matcher(TOKENIZER, StructuredOutputsParams(**asked), SPECIAL)
    data = list(text.encode())
    return matcher.try_consume_tokens(data) == len(data) and matcher.is_accepting()


def obj(properties: dict[str, Any], *required: str, **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required), **more}


TEXT, WHOLE = {"type": "string"}, {"type": "integer"}
# name: schema, instances that it admits, instances that it does not
SCHEMAS: dict[str, tuple[dict[str, Any], list[Any], list[Any]]] = {
    "anything": ({}, [1, None, "x", [1, {}], {"a": {}}], []),
    "types": ({"type": ["string", "null"]}, ["a", None], [1, [], True]),
    "user": (
        obj({"id": WHOLE, "email": {"type": "string", "format": "email"}}, "id", additionalProperties=False),
        [{"id": 1}, {"id": 1, "email": "a@example.org"}],
        [{}, {"id": "1"}, {"id": 1, "email": "no"}, {"id": 1, "x": 2}, {"email": "a@example.org"}],
    ),
    "open object": (obj({"a": WHOLE}, "a"), [{"a": 1, "b": "x"}, {"a": 1}], [{"b": 1}, {"a": None}]),
    "extra typed": (
        obj({"a": WHOLE}, additionalProperties={"type": "boolean"}),
        [{}, {"a": 2, "b": True}],
        [{"b": 1}],
    ),
    "map": (
        {"type": "object", "patternProperties": {"^x-": TEXT}, "additionalProperties": False},
        [{"x-a": "b"}],
        [{"y": "b"}],
    ),
    "sizes": ({"type": "object", "minProperties": 1, "maxProperties": 2}, [{"a": 1}, {"a": 1, "b": 2}], [{}]),
    "enum": ({"enum": ["a", 2, None, {"k": [1]}]}, ["a", 2, None, {"k": [1]}], ["b", 3, {"k": []}]),
    "const": ({"const": {"v": "1.0"}}, [{"v": "1.0"}], [{"v": "2"}, "1.0"]),
    "range": ({"type": "integer", "minimum": -5, "exclusiveMaximum": 12}, [-5, 0, 11], [-6, 12, 1.5]),
    "decimals": ({"type": "number", "minimum": 0.5, "maximum": 2.25}, [0.5, 1, 2.25], [0.4, 2.26, -1]),
    "multiple": ({"type": "integer", "multipleOf": 15}, [0, 15, 300], [1, 20]),
    "cents": ({"type": "number", "multipleOf": 0.01}, [0.5, 12.25, 3], [0.125]),
    "lengths": ({"type": "string", "minLength": 2, "maxLength": 4}, ["ab", "日本", "abcd"], ["a", "abcde"]),
    "pattern": ({"type": "string", "pattern": "^[A-Z]{2}-\\d+$"}, ["AB-1"], ["AB-", "xAB-1", "ab-1"]),
    "inner pattern": ({"type": "string", "pattern": "b+"}, ["abbc"], ["ac"]),
    "dates": ({"type": "string", "format": "date-time"}, ["2024-02-28T10:00:00Z"], ["2024-02-28", "yesterday"]),
    "uuid": ({"type": "string", "format": "uuid"}, ["123e4567-e89b-12d3-a456-426614174000"], ["123"]),
    "list": (
        {"type": "array", "items": WHOLE, "minItems": 1, "maxItems": 3},
        [[1], [1, 2, 3]],
        [[], ["a"], [1, 2, 3, 4]],
    ),
    "tuple": (
        {"type": "array", "prefixItems": [TEXT, WHOLE], "items": False, "minItems": 2},
        [["a", 1]],
        [["a"], ["a", 1, 2]],
    ),
    "any of": ({"anyOf": [{"type": "integer"}, obj({"k": {"const": "z"}}, "k")]}, [3, {"k": "z"}], ["3", {"k": "y"}]),
    "one of types": ({"oneOf": [{"type": "string"}, {"type": "integer"}]}, ["a", 1], [1.5, None]),
    "one of tags": (
        {
            "oneOf": [
                obj({"kind": {"const": "circle"}, "r": {"type": "number"}}, "kind", "r", additionalProperties=False),
                obj({"kind": {"const": "square"}, "side": WHOLE}, "kind", "side", additionalProperties=False),
            ]
        },
        [{"kind": "circle", "r": 1.5}, {"kind": "square", "side": 2}],
        [{"kind": "circle", "side": 2}, {"kind": "line"}],
    ),
    "all of": (
        {"allOf": [obj({"a": WHOLE}, "a"), obj({"a": {"minimum": 3}, "b": TEXT}, "b")]},
        [{"a": 3, "b": "x"}],
        [{"a": 2, "b": "x"}, {"a": 3}],
    ),
    "tree": (
        {
            "$defs": {
                "node": obj({"v": WHOLE, "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}}, "v", "next")
            },
            "$ref": "#/$defs/node",
        },
        [{"v": 1, "next": None}, {"v": 1, "next": {"v": 2, "next": None}}],
        [{"v": 1}, {"v": 1, "next": {"v": "2", "next": None}}],
    ),
    "annotations": (
        {"title": "T", "description": "d", "examples": [1], "default": 3, "x-ours": {}, "type": "integer"},
        [1],
        ["1"],
    ),
    "escapes": (
        {"type": "object", "properties": {'a"b\\n': WHOLE}, "additionalProperties": False},
        [{'a"b\\n': 1}],
        [{"a": 1}],
    ),
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_instances(name: str) -> None:
    schema, valid, invalid = SCHEMAS[name]
    for separators in ((",", ":"), (", ", ": ")):
        for instance in valid:
            text = json.dumps(instance, ensure_ascii=False, separators=separators)
            assert admits(text, json=schema), text
            assert admits(text, json=json.dumps(schema)), text
    for instance in invalid:
        text = json.dumps(instance, ensure_ascii=False)
        assert not admits(text, json=schema), text


@pytest.mark.parametrize("name", [name for name in SCHEMAS if name not in ("anything", "sizes", "tree", "map")])
def test_what_is_drawn_from_masks_is_json(name: str) -> None:
    """Bytes drawn at random among those that may follow, until the end may: all of it is JSON."""
    rng = random.Random(name)
    params = StructuredOutputsParams(json=SCHEMAS[name][0], disable_any_whitespace=True)
    for _ in range(3):
        grammar = LlguidanceGrammar(compile_matcher(TOKENIZER, params, ()), -(-(EOS + 1) // 32) * 4)
        drawn: list[int] = []
        while len(drawn) < 300:
            mask = grammar.mask()
            may = [token for token in range(EOS + 1) if mask[token // 8] >> token % 8 & 1]
            if EOS in may:
                json.loads(bytes(drawn))
                break
            # ASCII that closes first, so that strings and numbers end
            token = min(may, key=lambda t: (t >= 127, t not in b'"]}' or rng.random() < 0.3, rng.random()))
            grammar.take([token])
            drawn.append(token)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"not": {"pattern": "a"}}, "'not'"),
    ({"if": {"pattern": "a"}, "then": {"minLength": 3}}, "'if', 'then'"),
    ({"type": "array", "uniqueItems": True}, "'uniqueItems'"),
    ({"type": "array", "contains": {}}, "'contains'"),
    ({"type": "object", "properties": {"a": {}}, "propertyNames": {"maxLength": 3}}, "'propertyNames'"),
    ({"type": "object", "allOf": [{}], "unevaluatedProperties": False}, "'unevaluatedProperties'"),
    ({"oneOf": [{"pattern": "a"}, {"pattern": "b"}]}, "'oneOf'"),
    ({"type": "string", "format": "regex"}, "'format': regex"),
    ({"multipleOf": 999983}, "'multipleOf': 999983"),
    ({"const": 2**53 + 1}, "constant 9007199254740993"),
    ({"enum": [{"id": -(2**63)}]}, "constant -9223372036854775808"),
    (obj({"deep": {"type": "array", "items": {"not": {"pattern": "a"}}}}), "'not'"),
]


@pytest.mark.parametrize(("schema", "named"), REFUSED, ids=lambda value: value if isinstance(value, str) else "")
def test_what_is_not_enforced_is_refused_by_name(schema: dict[str, Any], named: str) -> None:
    for asked in (schema, {**schema, "x-guidance": {"lenient": True, "coerce_one_of": True}}):
        with pytest.raises(UnsupportedError) as caught:
            admits("", json=asked)
        assert named in caught.value.message
        assert caught.value.param == "structured_outputs.json"


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "stsring"},
        {"minLength": "a"},
        {"$ref": "#/nowhere"},
        {"$ref": "https://example.org/schema.json"},
        {"pattern": "(?=a)", "type": "string"},
        {"enum": []},
        {"properties": 3},
        "[]",
        "nonsense",
        '{"a": ' * 5000 + "1" + "}" * 5000,
    ],
)
def test_broken_schemas_are_told(schema: Any) -> None:
    with pytest.raises(InputError) as caught:
        admits("", json=schema)
    assert caught.value.param == "structured_outputs.json"
    assert len(caught.value.message) < 500


def test_whitespace_and_additional_properties() -> None:
    schema = obj({"a": obj({"b": WHOLE})})
    assert admits('{"a":{"b":1}}', json=schema, disable_any_whitespace=True)
    assert not admits('{"a": {"b":1}}', json=schema, disable_any_whitespace=True)
    assert admits('{ "a":{"b": 1}}', json=schema, whitespace_pattern=" ?")
    assert not admits('{\n"a":{"b":1}}', json=schema, whitespace_pattern=" ?")
    assert admits('{"a":{"b":1,"c":2}}', json=schema)
    assert not admits('{"a":{"b":1,"c":2}}', json=schema, disable_additional_properties=True)
    named = obj({"default": obj({"b": WHOLE}), "const": obj({"b": WHOLE})})
    assert admits('{"default":{"b":1},"const":{}}', json=named, disable_additional_properties=True)
    assert not admits('{"default":{"c":2}}', json=named, disable_additional_properties=True)
    assert not admits('{"const":{"c":2}}', json=named, disable_additional_properties=True)
    assert admits('{"x": [1, {}]}', json_object=True)
    assert not admits("[]", json_object=True)


def test_objects_of_many_properties() -> None:
    schema = obj({f"p{number}": WHOLE for number in range(1500)}, additionalProperties=False)
    assert admits('{"p3":1,"p700":2,"p1499":3}', json=schema)
    assert not admits('{"p1500":1}', json=schema)


def test_choices_regexes_and_grammars() -> None:
    odd = ['say "hi"\\', "tab\tnew\nline", "日本 é", "\x7f\x00", "a|b", "(", "😀"]
    for text in odd:
        assert admits(text, choice=odd)
        assert not admits(text + "x", choice=odd)
    assert admits("a/b-12", regex=r"a/b-\d+")
    assert admits("ab", regex="^ab$")
    assert not admits("xab", regex="ab")
    arithmetic = 'start: sum\nsum: NUMBER | sum "+" NUMBER | "(" sum ")"\nNUMBER: /[0-9]+/\n'
    assert admits("(1+22)+3", grammar=arithmetic)
    assert not admits("1+", grammar=arithmetic)
    with pytest.raises(InputError, match='unknown name: "foo"') as caught:
        admits("", grammar="start: foo")
    assert "1 | start: foo" in caught.value.message
    assert "llguidance" not in caught.value.message


@pytest.mark.parametrize("name", ["Größe", "My Type", "Foo[int]", "100%25"])
def test_references_to_any_name(name: str) -> None:
    schema = obj({"a": {"$ref": f"#/$defs/{name}"}}, "a") | {"$defs": {name.replace("%25", "%"): WHOLE}}
    assert admits('{"a":1}', json=schema)
    assert not admits('{"a":"1"}', json=schema)
    lenient = StructuredOutputsParams(json=schema, lenient=True)
    assert [is_valid(lenient, text) for text in ('{"a":1}', '{"a":"1"}')] == [True, False]


def test_strings_that_are_too_long() -> None:
    long = "x" * 8193
    for asked in (
        {"json": {"enum": ["a", long]}},
        {"json": obj({long: TEXT})},
        {"json": obj({"title": {"const": long}})},
        {"json": {"const": {"title": long}}},
        {"choice": ["a", long]},
        {"regex": long},
        {"grammar": f'start: "a" | "{long}"'},
        {"grammar": f"start: A\nA: /{long}/"},
        {"structural_tag": tag("<a>", "", ["<a"]).replace('"integer"', f'"{long}"')},
    ):
        with pytest.raises(InputError, match="a string of 819"):
            admits("", **asked)
    assert admits("1", json={"description": long, "type": "integer"})
    assert admits("ab" * 300, grammar="start: X*\nX: " + " | ".join(f'"{chr(97 + i % 26)}b"' for i in range(3000)))


@pytest.mark.parametrize("grammar", ["x" * 20_000, 'start: "a"{' + "1" * 20_000 + "}", "start: <" + "x" * 20_000 + ">"])
def test_a_name_of_any_length_is_not_read_by_the_library(grammar: str) -> None:
    """Whose error for one takes seconds."""
    with pytest.raises(InputError, match="a name of 20000 characters; at most 512"):
        make_grammar(StructuredOutputsParams(grammar=grammar), ())
    literal = 'start: "' + "x" * 2000 + '" /' + "y" * 2000 + "/"
    assert make_grammar(StructuredOutputsParams(grammar=literal), ())


def tag(begin: str, end: str, triggers: list[str], **more: Any) -> str:
    structures = [{"begin": begin, "schema": obj({"a": WHOLE}, "a"), "end": end}]
    return json.dumps({"type": "structural_tag", "structures": structures, "triggers": triggers, **more})


def test_structural_tags() -> None:
    asked = tag("<fn=add>", "</fn>", ["<fn="])
    assert admits("Let me see. ", structural_tag=asked)
    assert admits('Well: <fn=add>{"a": 1}</fn> and <fn=add>{"a":2}</fn>.', structural_tag=asked)
    assert not admits('Well: <fn=add>{"b": 1', structural_tag=asked)
    assert not admits("<fn=sub>", structural_tag=asked)
    # a trigger that is a control token stands for the token, not for its spelling
    matcher = compile_matcher(
        TOKENIZER, StructuredOutputsParams(structural_tag=tag("<|call|>", "", ["<|call|>"])), SPECIAL
    )
    call = 256 + sorted(SPECIAL).index("<|call|>")
    tokens = [*b"so ", call, *b'{"a":1}']
    assert matcher.try_consume_tokens(tokens) == len(tokens)
    assert matcher.is_accepting()


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("{}", ".structures"),
        (tag("<a>", "", []), ".triggers"),
        (tag("<a>", "", ["<b"]), ".structures[0].begin"),
        (tag("<a>", "", ["<a"], extra=1), ""),
        (json.dumps({"format": {"type": "any_text"}}), ".format"),
        (json.dumps({"structures": [{"begin": "a"}], "triggers": ["a"]}), ".structures[0]"),
    ],
)
def test_bad_structural_tags(text: str, part: str) -> None:
    with pytest.raises(InputError) as caught:
        admits("", structural_tag=text)
    assert caught.value.param == "structured_outputs.structural_tag" + part

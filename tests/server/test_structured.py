"""Structured outputs over HTTP: every way to ask, with a real engine; what is refused, by the client's own field."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pydantic
import pytest
from serving import LiveServer, parse_events
from test_bad_input import check_form
from test_real_engine import MESSAGES, start

CHAT = {"messages": MESSAGES, "max_tokens": 60, "temperature": 0}
SCHEMA = {
    "type": "object",
    "properties": {"kind": {"enum": ["cat", "dog"]}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["kind", "age"],
    "additionalProperties": False,
}
TAGS = {
    "structures": [{"begin": "<f>", "schema": SCHEMA, "end": "</f>"}],
    "triggers": ["<f>"],
}


class Pet(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    kind: Literal["cat", "dog"]
    good: bool


@pytest.fixture(scope="module")
def real(checkpoint: Callable[[str], Path]) -> Iterator[LiveServer]:
    with start(checkpoint("llama")) as live:
        yield live


def content(server: LiveServer, **fields: Any) -> str:
    answer = server.post("/v1/chat/completions", {**CHAT, **fields})
    assert answer.status_code == 200, answer.text
    choice = answer.json()["choices"][0]
    assert choice["finish_reason"] == "stop"
    return choice["message"]["content"]  # type: ignore[no-any-return]


TIGHT = {"disable_any_whitespace": True}
BLANKS = ["\n", "\t", "  ", " \n"]


@pytest.mark.parametrize(
    "fields",
    [
        {"structured_outputs": {"json": SCHEMA, **TIGHT}},
        {"structured_outputs": {"json": json.dumps(SCHEMA), "whitespace_pattern": " ?", "regex": None}},
        {"guided_json": json.dumps(SCHEMA), "guided_whitespace_pattern": " ?", "guided_decoding_backend": "auto"},
        {"json_schema": SCHEMA, "bad_words": BLANKS},
        {"json_schema": json.dumps(SCHEMA), "bad_words": BLANKS},
        {"response_format": {"type": "json_object", "schema": SCHEMA}, "bad_words": BLANKS},
        {"response_format": {"type": "json_schema", "schema": SCHEMA}, "bad_words": BLANKS},
    ],
)
def test_json_of_a_schema(real: LiveServer, fields: dict[str, Any]) -> None:
    found = json.loads(content(real, **fields))
    assert found["kind"] in ("cat", "dog")
    assert 0 <= found["age"] <= 99
    assert found.keys() == {"kind", "age"}


@pytest.mark.parametrize(
    ("fields", "pattern"),
    [
        ({"structured_outputs": {"regex": "[0-9]{3}-[a-f]{2}"}}, "[0-9]{3}-[a-f]{2}"),
        ({"structured_outputs": {"choice": ["left hand", "right é"]}}, "left hand|right é"),
        ({"structured_outputs": {"grammar": 'start: "a" ("b" | "c")* "d"\n', "regex": None}}, "a[bc]*d"),
        ({"guided_regex": "^x{2,4}$"}, "x{2,4}"),
        ({"guided_choice": ["one"]}, "one"),
        ({"guided_grammar": 'start: "q" /[0-9]{2}/'}, "q[0-9]{2}"),
        ({"guided_grammar": 'root ::= "yes" | "no"'}, "yes|no"),
        ({"regex": "x{2,4}"}, "x{2,4}"),
        ({"ebnf": 'root ::= "yes" | "no"'}, "yes|no"),
        ({"grammar": 'root ::= "yes" | "no"'}, "yes|no"),
        ({"guided_regex": "x{2,4}", "structured_outputs": {"regex": "x{2,4}"}}, "x{2,4}"),  # as guidance sends them
        ({"structured_outputs": {"grammar": 'root ::= "(" (root | [a-c]) ")" | [é-ü]{2}'}}, r"\(*([a-c]|[é-ü]{2})\)*"),
    ],
)
def test_texts_of_a_form(real: LiveServer, fields: dict[str, Any], pattern: str) -> None:
    assert re.fullmatch(pattern, content(real, **fields, max_tokens=200))


def test_completions_and_n(real: LiveServer) -> None:
    asked = {"prompt": ["Hello", "Good day"], "n": 2, "max_tokens": 30, "temperature": 1.0, "seed": 3, "logprobs": 2}
    answer = real.post("/v1/completions", {**asked, "structured_outputs": {"regex": "[a-d]{4}"}})
    choices = answer.json()["choices"]
    assert len(choices) == 4
    for choice in choices:
        assert re.fullmatch("[a-d]{4}", choice["text"])
        assert len(choice["logprobs"]["tokens"]) == len(choice["logprobs"]["token_logprobs"])
    assert len({choice["text"] for choice in choices}) > 1


def test_streamed_equals_whole_and_stop_strings_cut(real: LiveServer) -> None:
    fields: dict[str, Any] = {**CHAT, "structured_outputs": {"regex": "[a-c]{3}XY[a-c]{5}"}}
    whole = content(real, **fields)
    events = parse_events(real.post("/v1/chat/completions", {**fields, "stream": True}).text)
    assert events.pop() == "[DONE]"
    pieces = [choice["delta"].get("content") or "" for event in events for choice in event["choices"]]
    assert "".join(pieces) == whole
    assert content(real, **fields, stop=["XY"]) == whole[:3]


def test_json_object_and_structural_tags(real: LiveServer) -> None:
    """Random weights seldom close a text by themselves: what there is must be the beginning of one."""
    answer = real.post("/v1/chat/completions", {**CHAT, "response_format": {"type": "json_object"}, "max_tokens": 5})
    assert answer.json()["choices"][0]["message"]["content"].lstrip().startswith("{")
    for fields in (
        {"response_format": {"type": "structural_tag", **TAGS}},
        {"structured_outputs": {"structural_tag": json.dumps({"type": "structural_tag", **TAGS})}},
    ):
        assert real.post("/v1/chat/completions", {**CHAT, **fields, "max_tokens": 5}).status_code == 200


@pytest.mark.parametrize("field", ["schema", "value"])
def test_objects_of_a_schema(real: LiveServer, field: str) -> None:
    """As llama.cpp has it, and as Hugging Face's client sends every schema."""
    schema = {**SCHEMA, "properties": {"kind": {"const": "cat"}}, "required": ["kind"]}
    asked = {"type": "json_object", field: schema}
    assert json.loads(content(real, response_format=asked, bad_words=["\n", "\t", "  ", " \n"])) == {"kind": "cat"}
    answer = real.post("/v1/responses", {"input": "a", "max_output_tokens": 5, "text": {"format": asked}}).json()
    assert answer["text"]["format"] == asked
    for wrong, param in (({field: {"type": "stsring"}}, f".{field}"), ({"schema": {}, "value": {}}, "")):
        ask = {**CHAT, "response_format": {"type": "json_object", **wrong}}
        assert check_form(real.post("/v1/chat/completions", ask))["param"] == "response_format" + param
    answer = real.post("/v1/chat/completions", {**CHAT, "max_tokens": 5, "response_format": {**asked, field: {}}})
    assert answer.json()["choices"][0]["message"]["content"].lstrip().startswith("{")


def test_parse_of_the_openai_client(real: LiveServer) -> None:
    with real.openai() as client:
        model = client.models.list().data[0].id
        answer = client.chat.completions.parse(
            model=model,
            messages=MESSAGES,  # type: ignore[arg-type]
            response_format=Pet,
            temperature=0.7,
            seed=1,
            max_tokens=100,
            logit_bias={"0": 0},
            extra_body={"bad_words": BLANKS},
        )
    assert isinstance(answer.choices[0].message.parsed, Pet)


TWICE = {"type": "array", "items": {"const": "a"}, "minItems": 2, "maxItems": 2}


@pytest.mark.parametrize(("more", "holds"), [({"uniqueItems": True}, False), ({"contains": {"const": "a"}}, True)])
def test_a_lenient_answer_is_told_to_be_valid_or_not(real: LiveServer, more: dict[str, Any], holds: bool) -> None:
    form = {"structured_outputs": {"json": TWICE | more, "lenient": True, **TIGHT}}
    (choice,) = real.post("/v1/chat/completions", {**CHAT, **form}).json()["choices"]
    assert (choice["message"]["content"], choice["structured_outputs_valid"]) == ('["a","a"]', holds)
    events = parse_events(real.post("/v1/chat/completions", {**CHAT, **form, "stream": True}).text)
    told = [part["choices"][0].get("structured_outputs_valid") for part in events if isinstance(part, dict)]
    assert told[-1] is holds
    assert set(told[:-1]) == {None}
    body = {"prompt": "a", "n": 2, "max_tokens": 60, "temperature": 1, **form}
    choices = real.post("/v1/completions", body).json()["choices"]
    assert [choice["structured_outputs_valid"] for choice in choices] == [holds, holds]
    cut = real.post("/v1/chat/completions", {**CHAT, **form, "max_tokens": 2}).json()["choices"][0]
    assert (cut["finish_reason"], cut["structured_outputs_valid"]) == ("length", False)
    strict = real.post("/v1/chat/completions", {**CHAT, "structured_outputs": {"json": TWICE}}).json()["choices"][0]
    assert "structured_outputs_valid" not in strict


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"structured_outputs": {"json": {"not": {"pattern": "a"}}}}, "structured_outputs.json", "'not'"),
    ({"structured_outputs": {"json": {"type": "array", "uniqueItems": True}}}, "structured_outputs.json", "uniqueI"),
    ({"structured_outputs": {"json": {"type": "stsring"}}}, "structured_outputs.json", "stsring"),
    ({"structured_outputs": {"json": "{"}}, "structured_outputs.json", "JSON"),
    ({"structured_outputs": {"json": "[1]"}}, "structured_outputs.json", "object"),
    ({"structured_outputs": {"json": {"multipleOf": 1234567}}}, "structured_outputs.json", "multipleOf"),
    ({"structured_outputs": {"json": {"format": "zip"}, "regex": "a"}}, "structured_outputs", "exactly one"),
    ({"structured_outputs": {}}, "structured_outputs", "exactly one"),
    ({"structured_outputs": {"regx": "a"}}, "structured_outputs.regx", "unknown field"),
    ({"structured_outputs": {"regex": "("}}, "structured_outputs.regex", "regex"),
    ({"structured_outputs": {"regex": "(?=a)b"}}, "structured_outputs.regex", "look-a"),
    ({"structured_outputs": {"grammar": "root ::= 'a'"}}, "structured_outputs.grammar", "line 1, at \"'a'\""),
    ({"structured_outputs": {"grammar": "start: <|nope|>"}}, "structured_outputs.grammar", "special token"),
    ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs.structural_tag.structures", "list"),
    ({"structured_outputs": {"lenient": 1, "json": {}}}, "structured_outputs.lenient", "bool"),
    ({"structured_outputs": {"lenient": True, "regex": "a"}}, "structured_outputs.lenient", "goes with json"),
    (
        {"structured_outputs": {"lenient": True, "json": {"contains": {"$ref": "http://127.0.0.1:9/"}}}},
        "structured_outputs.json",
        "validated",
    ),
    ({"guided_json": {"if": {"pattern": "a"}, "then": {"minLength": 3}}}, "guided_json", "'if', 'then'"),
    ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_choice", "exclude each other"),
    ({"guided_regex": "a", "structured_outputs": {"regex": "b"}}, "guided_regex", "exclude each other"),
    ({"guided_grammar": 'root ::= "a" b'}, "guided_grammar", "line 1: there is no rule 'b'"),
    ({"guided_choice": []}, "guided_choice", "at least one"),
    ({"guided_whitespace_pattern": " "}, "guided_whitespace_pattern", "guided_json"),
    ({"ebnf": 'root ::= "a" b'}, "ebnf", "line 1: there is no rule 'b'"),
    ({"regex": "a", "grammar": 'root ::= "a"'}, "grammar", "exclude each other"),
    ({"json_schema": {"not": {"pattern": "a"}}}, "json_schema", "'not'"),
    (
        {"response_format": {"type": "json_object", "schema": {"not": {"pattern": "a"}}}},
        "response_format.schema",
        "'not'",
    ),
    (
        {"response_format": {"type": "json_schema", "schema": {"not": {"pattern": "a"}}}},
        "response_format.schema",
        "'not'",
    ),
    (
        {"response_format": {"type": "json_schema", "schema": {}, "json_schema": {"schema": {}}}},
        "response_format.schema",
        "exclude each other",
    ),
    ({"response_format": {"type": "yaml"}}, "response_format.type", "yaml"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "required"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
        "response_format.json_schema.schema",
        "",
    ),
    (
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "a", "schema": {"not": {"pattern": "a"}}, "strict": True},
            }
        },
        "response_format.json_schema.schema",
        "'not'",
    ),
    (
        {"response_format": {"type": "structural_tag", "structures": [{"begin": "<g>"}], "triggers": ["<f>"]}},
        "response_format.structures[0]",
        "begin, schema and end",
    ),
]


@pytest.mark.parametrize(("fields", "param", "part"), REFUSED, ids=lambda value: None if isinstance(value, str) else "")
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_enforced_is_refused(
    real: LiveServer, fields: dict[str, Any], param: str, part: str, stream: bool
) -> None:
    answer = real.post("/v1/chat/completions", {**CHAT, **fields, "stream": stream})
    error = check_form(answer)
    assert (error["param"], part in error["message"]) == (param, True), error


DEEP = {"$defs": {f"d{i}": {"properties": {"a": {"$ref": f"#/$defs/d{i + 1}"}}} for i in range(3000)}}
BOMBS: list[dict[str, Any]] = [
    {"json": {**DEEP, "$ref": "#/$defs/d0"}},  # the library's stack
    {"json": {"enum": [f"v{i}" for i in range(100_000)]}},  # its memory
    {"regex": "(" * 30_000 + ")" * 30_000},
    {"grammar": "start: r0\n" + "\n".join(f'r{i}: r{i + 1} "a" | r{i + 1}' for i in range(9000)) + '\nr9000: "a"'},
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("bomb", BOMBS, ids=["refs", "enum", "parentheses", "rules"])
def test_bombs_end_alone(real: LiveServer, bomb: dict[str, Any], stream: bool) -> None:
    pid = real.llm.engine_pid
    error = check_form(real.post("/v1/chat/completions", {**CHAT, "structured_outputs": bomb, "stream": stream}))
    assert error["param"].startswith("structured_outputs.")
    assert re.fullmatch("ab", content(real, structured_outputs={"regex": "ab"}))
    assert real.llm.engine_pid == pid

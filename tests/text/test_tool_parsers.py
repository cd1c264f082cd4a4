"""Every tool call format and way of reasoning: what answers hold, however they are cut; hostile ones; linear time.

OCTAVO_TEST_SPLITS: random splits a format, 100 where not set; 10000 is the full proof.
"""

from __future__ import annotations

import gc
import json
import os
import random
import re
import sys
import weakref
from collections.abc import Iterable
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import msgspec
import pytest
from answers import HOSTILE, NS, RECORDED, TOOLS, WRITERS, Answer, generated
from chat_templates import ALL, CALLING

from octavo.base.errors import ConfigError
from octavo.base.types.output import ToolCall
from octavo.text import reasoning
from octavo.text.reasoning import REASONINGS, Reasoning
from octavo.text.template import ChatTemplate
from octavo.text.tokenizer import Tokenizer
from octavo.text.tools import choose
from octavo.text.tools.calls import JoinedCalls
from octavo.text.tools.choose import reasoning_format, tool_format
from octavo.text.tools.format import Format
from octavo.text.tools.formats import ALIASES, FORMATS
from octavo.text.tools.markers import Markers
from octavo.text.tools.parser import OutputParser, rules
from octavo.text.tools.values import MAX_DEPTH

SPLITS = int(os.environ.get("OCTAVO_TEST_SPLITS", "100"))
NAMES = [row.name for row in FORMATS]
THINKING = ["qwen3", "deepseek_r1", "granite", "kimi_k2", "mistral", None]

Read = tuple[str, str, list[ToolCall]]


def parser(name: str | None, reasoning: str | None = None, **more: Any) -> OutputParser:
    tool = tool_format(name, "") if name else None
    way = reasoning_format(reasoning, "") if reasoning else None
    return OutputParser(tool, way, **{"tools": TOOLS, **more})


def read(parser: OutputParser, pieces: Iterable[str]) -> Read:
    deltas = [*map(parser.feed, pieces), parser.finish()]
    calls = JoinedCalls()
    for delta in deltas:
        calls.add(delta.calls)
    return (
        "".join(delta.content for delta in deltas),
        "".join(delta.reasoning for delta in deltas),
        calls.take(delta=False),
    )


def cut(text: str, rng: random.Random) -> list[str]:
    pieces, at = [], 0
    most = rng.choice((1, 2, 5, 12, 60))
    while at < len(text):
        size = rng.randint(1, most)
        pieces.append(text[at : at + size])
        at += size
    return pieces


def check_arguments(calls: list[ToolCall]) -> None:
    for call in calls:
        assert isinstance(json.loads(call.arguments), dict)
        assert isinstance(msgspec.json.decode(call.arguments), dict)  # which takes no half of a surrogate pair
        assert call.status in ("completed", "incomplete")


def holds(answer: Answer) -> Read:
    content, reasoning, calls = read(parser(answer.format, answer.reasoning_parser), [answer.text])
    check_arguments(calls)
    assert content == answer.content
    assert reasoning == answer.reasoning
    assert [(call.name, json.loads(call.arguments)) for call in calls] == answer.calls
    return content, reasoning, calls


@pytest.mark.parametrize("answer", RECORDED, ids=lambda answer: f"{answer.format}-{len(answer.text)}")
def test_recorded(answer: Answer) -> None:
    whole = holds(answer)
    assert read(parser(answer.format, answer.reasoning_parser), answer.text) == whole
    assert "{" not in "".join(call.id or "" for call in whole[2])


def test_ids_that_models_give() -> None:
    kimi = next(answer for answer in RECORDED if answer.format == "kimi_k2")
    assert [call.id for call in holds(kimi)[2]] == ["functions.get_weather:0", "functions.search-all:1"]
    mistral = [answer for answer in RECORDED if answer.format == "mistral"][1]
    assert [call.id for call in holds(mistral)[2]] == ["abcDEF123", None]


def test_an_id_that_a_model_gives_twice_is_the_first_calls() -> None:
    """By two of one id openai's stream helper fails, and their results cannot be told apart."""
    call = '<tool_call>{"name": "noop", "id": "a", "arguments": {}}</tool_call>'
    for text in (2 * call, call + "\nSo.\n" + call):
        for pieces in ([text], text):
            assert [call.id for call in read(parser("hermes"), pieces)[2]] == ["a", None]


@pytest.mark.parametrize("name", NAMES)
def test_generated_in_random_pieces(name: str) -> None:
    rng = random.Random(name)
    for _ in range(SPLITS):
        answer = generated(name, rng)
        whole = holds(answer)
        assert read(parser(name), cut(answer.text, rng)) == whole


@pytest.mark.parametrize("name", NAMES)
def test_damaged_in_random_pieces(name: str) -> None:
    """Truncated, mixed with other formats, with pieces left out: no exception, and the same however it is cut."""
    rng = random.Random(name)
    for _ in range(SPLITS):
        text, reasoning = damaged(name, rng), None if name == "openai" else rng.choice(THINKING)
        more = {"open": reasoning is not None and rng.random() < 0.4, "single": rng.random() < 0.2}
        whole = read(parser(name, reasoning, **more), [text])
        check_arguments(whole[2])
        assert read(parser(name, reasoning, **more), cut(text, rng)) == whole, text


def damaged(name: str, rng: random.Random) -> str:
    text = generated(name, rng).text
    for _ in range(rng.randrange(4)):
        at, until = sorted((rng.randrange(len(text) + 1), rng.randrange(len(text) + 1)))
        other = generated(rng.choice(list(WRITERS)), rng).text
        part = rng.choice(
            ["", other, other[: rng.randrange(len(other))], "<think>", "</think>", '"', "}", "\ud800", "a" * 600]
        )
        text = text[:at] + part + text[rng.choice((at, until)) :]
    return text


@pytest.mark.parametrize("name", NAMES)
def test_truncated_everywhere(name: str) -> None:
    text = generated(name, random.Random(1)).text
    for end in range(len(text)):
        whole = read(parser(name, "qwen3" if name != "openai" else None), [text[:end]])
        check_arguments(whole[2])
        assert read(parser(name, "qwen3" if name != "openai" else None), text[:end]) == whole


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_evaluated(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    as_value = WRITERS[name]([("get_weather", {"city": HOSTILE, "deep": {HOSTILE.replace(":", ""): HOSTILE}})])
    for text in (as_value, as_value.replace(repr(HOSTILE), HOSTILE), as_value.replace(json.dumps(HOSTILE), HOSTILE)):
        for call in read(parser(name), [text])[2]:
            assert HOSTILE in call.arguments.replace('\\"', '"')
    for value in (HOSTILE, "(lambda: 1)()", "x", "[i for i in 'a']", "1+1", "f'{1}'", "f(g())", "...", "1j"):
        assert read(parser("pythonic"), [f"[noop(city={value})]"])[0] == f"[noop(city={value})]"
    assert list(tmp_path.iterdir()) == []


BAD_JSON = [
    *("NaN", "Infinity", "-Infinity", "1e999", "1" * 5000, "1.%s" % ("0" * 500), "01", "'a'", "undefined", "{a: 1}"),
    *("[,1]", "[" * 70 + "]" * 70, "", "+1", "tru"),
]


@pytest.mark.parametrize("value", BAD_JSON, ids=lambda value: value[:12])
def test_arguments_that_are_not_json_stay_text(value: str) -> None:
    text = f'<tool_call>{{"name": "noop", "arguments": {{"a": {value}}}}}</tool_call>'
    for pieces in ([text], text):
        assert read(parser("hermes"), pieces) == (text, "", [])


BROKEN = [
    # what the answer ends in or goes on with, behind the first value; the arguments; the content
    (', "b": NaN}}</tool_call>', '{"a": 1}', ', "b": NaN}}</tool_call>'),
    (", b: 2}}</tool_call>ok", '{"a": 1}', ", b: 2}}</tool_call>ok"),
    (",}}</tool_call>", '{"a": 1}', ",}}</tool_call>"),
    (" </tool_call>ok", '{"a": 1}', "ok"),
    (', "b": [1,]}}</tool_call>', '{"a": 1, "b": [1]}', ",]}}</tool_call>"),
    (', "b": "x" "y"}}', '{"a": 1, "b": "x"}', '"y"}}'),
    (', "b": {"c": [{"d": "x\\', '{"a": 1, "b": {"c": [{"d": "x"}]}}', ""),
    (', "b": "\\u00e', '{"a": 1, "b": ""}', ""),
    (', "b": "\\ud83d\\ude0', '{"a": 1, "b": ""}', ""),
    (', "b": [[', '{"a": 1}', ""),
    (', "b": 1', '{"a": 1}', ""),
    (', "b', '{"a": 1}', ""),
    (",", '{"a": 1}', ""),
    ("", "", '<tool_call>{"name": "noop", "arguments": {"a": 1'),
]


@pytest.mark.parametrize(("rest", "arguments", "content"), BROKEN, ids=lambda value: value[:16])
def test_a_call_that_breaks_off_is_closed(rest: str, arguments: str, content: str) -> None:
    text = f'<tool_call>{{"name": "noop", "arguments": {{"a": 1{rest}'
    calls = [ToolCall("noop", arguments, status="incomplete")] if arguments else []
    for pieces in ([text], text):
        assert read(parser("hermes"), pieces) == (content, "", calls)


def test_what_stands_behind_the_arguments_cannot_break_them() -> None:
    call = '{"name": "noop", "arguments": {"a": 1}'
    whole = [ToolCall("noop", '{"a": 1}')]
    for rest, content in (
        ("", ""),
        ("</tool_call>", ""),
        (', "x": nul}', ', "x": nul}'),
        ("} or", "or"),
        (', "x": 1}', ""),
    ):
        for pieces in ([f"<tool_call>{call}{rest}"], f"<tool_call>{call}{rest}"):
            assert read(parser("hermes"), pieces) == (content, "", whole)


def test_strings_are_mended() -> None:
    for given, meant in (
        ("line\nline\t\x00", "line\nline\t\0"),
        (r"\d+ \' \q \u12x \\ \"", "\\d+ ' \\q \\u12x \\ \""),
        (r"\ud83d\ude00 \ud83d \ude00\ud83d\n", "😀 \ufffd \ufffd\ufffd\n"),
        ("a\ud800b", "a\ufffdb"),
    ):
        text = f'<tool_call>{{"name": "noop", "arguments": {{"a": "{given}"}}}}</tool_call>'
        for pieces in ([text], text):
            (call,) = read(parser("hermes"), pieces)[2]
            assert (json.loads(call.arguments), call.status) == ({"a": meant}, "completed")


def test_two_escaped_halves_of_a_character_are_one() -> None:
    for value, meant in (
        (r"\ud83d\ude00 \U0001f600 \u00e9", "😀 😀 é"),
        (r"\ud83d\ud83d\ude00", "\ufffd😀"),
        (r"\ud83d \ude00\ud83d\n", "\ufffd \ufffd\ufffd\n"),
        (r"\ud83d\u0041", "\ufffdA"),
    ):
        for name, text in (
            ("pythonic", f"[noop(a='{value}', b={{'c': ['{value}']}})]"),
            ("gemma4", f"<|tool_call>call:noop{{a:'{value}',b:{{c:['{value}']}}}}<tool_call|>"),
        ):
            for pieces in ([text], text):
                (call,) = read(parser(name), pieces)[2]
                assert (json.loads(call.arguments), call.status) == ({"a": meant, "b": {"c": [meant]}}, "completed")


RAW = (
    "hermes",
    "llama3_json",
    "mistral",
    "deepseek_v3",
    "deepseek_v31",
    "kimi_k2",
    "granite",
    "phi4_mini_json",
    "openai",
)


@pytest.mark.parametrize("name", RAW)
def test_json_comes_as_it_was_written(name: str) -> None:
    given = '{ "city":"Zürich \\u00e9\\n",\n  "days" : 1.50e1, "deep":{"x": [ ]}, "city": "B" }'
    text = WRITERS[name]([("get_weather", {})]).replace("{}", given)
    for pieces in ([text], text):
        assert [call.arguments for call in read(parser(name), pieces)[2]] == [given]


@pytest.mark.parametrize("name", NAMES)
def test_calls_come_while_they_are_written(name: str) -> None:
    """The name with the first value; of a string all that cannot be a marker."""
    words = " ".join(f"word{number}" for number in range(50))
    text = WRITERS[name]([("get_weather", {"days": 2, "city": words, "exact": True})])
    one, seen, shown = parser(name), "", ""
    for char in text:
        delta = one.feed(char)
        seen += char
        assert delta.content == ""
        for call in delta.calls:
            assert (call.name == "get_weather") == (shown == "")
            assert call.status == ("completed" if call.arguments.endswith("}") else "in_progress")
            shown += call.arguments
        if "word40" in seen and "word49" not in seen:
            assert shown.endswith(seen[-15:])
        if "word49" in seen:
            assert '"days": 2' in shown
    one.finish()
    assert json.loads(shown) == {"days": 2, "city": words, "exact": True}


def test_arguments_as_models_spell_them() -> None:
    for given, arguments in (
        ('{"name": "noop", "arguments": "{\\"a\\": 1}"}', '{"a": 1}'),
        ('{"name": "noop"}', "{}"),
        ('{"name": "noop", "arguments": {"a": "line\nline"}}', '{"a": "line\\nline"}'),
        ('{"name": "noop", "arguments": {"a": "\\ud800"}}', '{"a": "\ufffd"}'),
        ('{"arguments": {"a":1}, "name": "noop"}', '{"a": 1}'),
        ('{"parameters": null, "name": "noop", "arguments": {"a":1}, "arguments": {"b": 2}}', '{"a":1}'),
        ('{"type": "function", "function": {"name": "noop", "arguments": {}}}', "{}"),
    ):
        (call,) = read(parser("hermes"), [f"<tool_call>{given}</tool_call>"])[2]
        assert (call.name, call.arguments) == ("noop", arguments)
    for given in (
        '["a"]',
        '{"name": "no op"}',
        '{"name": ""}',
        '{"arguments": {}}',
        '{"name": "noop", "arguments": [1]}',
        "[]",
    ):
        assert read(parser("hermes"), [f"<tool_call>{given}</tool_call>"])[2] == []


def test_types_of_bare_values() -> None:
    schema = {
        "properties": {
            "s": {"type": "string"},
            "n": {"type": "integer"},
            "b": {"type": "boolean"},
            "u": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
            "e": {"enum": ["1", "2"]},
            "bad": {"type": 5, "anyOf": "x"},
        }
    }
    values = {"s": "12", "n": "12", "b": "True", "u": "null", "e": "1", "bad": "7", "free": '{"a": [1]}', "word": "yes"}
    text = "<tool_call><function=f>" + "".join(f"<parameter={k}>{v}</parameter>" for k, v in values.items())
    (call,) = read(parser("qwen3_coder", tools={"f": schema}), [text + "</function></tool_call>"])[2]
    assert json.loads(call.arguments) == values | {"n": 12, "b": True, "u": None, "free": {"a": [1]}}
    assert read(
        parser("qwen3_coder", tools={"f": {"properties": {"n": {"type": "integer"}}}}),
        ["<tool_call><function=f><parameter=n>many</parameter></function></tool_call>"],
    )[2] == [ToolCall("f", '{"n": "many"}')]


STRING, INTEGER = {"type": "string", "pattern": "^[a-z]"}, {"type": "integer"}
STRINGS = {"type": "array", "items": {"type": "string"}}
DEEP: Any = INTEGER
for _ in range(90):
    DEEP = {"type": "array", "items": DEEP}
PAIR = {"type": "object", "properties": {"a": INTEGER}, "required": ["a"], "additionalProperties": False}


@pytest.mark.parametrize("value", ["[" * 3000 + "]" * 3000, "{'a':" * 3000 + "1" + "}" * 3000, "9" * 500, "-" * 9])
def test_a_bare_value_that_no_reader_can_hold_stays_text(value: str) -> None:
    for kind in ("array", "object", "integer", "number"):
        tools = {"f": {"properties": {"v": {"type": kind}}}}
        text = f"<tool_call><function=f><parameter=v>{value}</parameter></function></tool_call>"
        assert read(parser("qwen3_coder", tools=tools), [text])[2] == [ToolCall("f", json.dumps({"v": value}))]


def test_a_bare_value_may_be_as_deep_as_a_reader_holds() -> None:
    tools, deep = {"f": {"properties": {"v": {"type": "array"}}}}, "[" * MAX_DEPTH + "'a'" + "]" * MAX_DEPTH
    text = f"<tool_call><function=f><parameter=v>{deep}</parameter></function></tool_call>"
    told = json.dumps({"v": json.loads(deep.replace("'", '"'))})
    assert read(parser("qwen3_coder", tools=tools), [text])[2] == [ToolCall("f", told)]


@pytest.mark.parametrize("name", ["qwen3_coder", "glm45", "minimax_m2"])
@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        ({"type": ["string", "integer"]}, "7", 7),
        ({"type": ["string", "integer"]}, "007", "007"),
        ({"type": ["string", "integer"]}, "2.5", "2.5"),
        ({"type": ["string", "integer"]}, "true", "true"),
        ({"type": ["string", "number", "null"]}, "2.5", 2.5),
        ({"type": ["string", "boolean"]}, "false", False),
        ({"type": ["string", "object"]}, '{"a": [1]}', {"a": [1]}),
        ({"type": ["string", "null"]}, "7", "7"),
        ({"anyOf": [STRING, STRINGS], "title": "T"}, '["a", "b"]', ["a", "b"]),
        ({"anyOf": [STRING, STRINGS]}, "[1]", "[1]"),
        ({"anyOf": [STRING, STRINGS]}, "[a]", "[a]"),
        ({"oneOf": [STRING, {"$ref": "#/$defs/Pair"}]}, '{"a": 1}', {"a": 1}),
        ({"oneOf": [STRING, {"$ref": "#/$defs/Pair"}]}, '{"a": 1, "b": 2}', '{"a": 1, "b": 2}'),
        ({"oneOf": [STRING, {"$ref": "#/$defs/Pair"}]}, "{}", "{}"),
        ({"oneOf": [STRING, INTEGER, {"type": "number"}]}, "7", "7"),
        ({"anyOf": [STRING, {**INTEGER, "minimum": 10}]}, "7", "7"),  # it might be none
        ({"type": ["string", "integer"], "not": {"const": 7}}, "7", "7"),
        ({"anyOf": [STRING, DEEP]}, "[" * 90 + "]" * 90, "[" * 90 + "]" * 90),
        ({"enum": ["7", 8]}, "7", "7"),
        ({"enum": ["7", 8]}, "8", 8),
        ({"anyOf": [STRING, {"type": "array", "items": 5}]}, "[1]", "[1]"),
        ({"anyOf": [STRING, {"type": "object", "required": 5}]}, "{}", "{}"),
        ({"anyOf": [STRING, {"type": "object", "properties": 5}]}, "{}", "{}"),
    ],
)
def test_bare_values_that_may_be_strings_and_others(name: str, schema: Any, text: str, value: Any) -> None:
    """As vLLM's and SGLang's readers: a string where it is none of the others."""
    whole = {"$defs": {"Pair": PAIR}, "properties": {"x": schema}}
    call = WRITERS[name]([("f", {"x": text})])
    for pieces in ([call], call):
        (found,) = read(parser(name, tools={"f": whole}), pieces)[2]
        assert json.loads(found.arguments) == {"x": value}


def test_null_as_models_spell_it() -> None:
    """MiniMax-M2's own reader takes each; where a string may stand, they are strings."""
    schema = {
        "properties": {"n": {"type": ["integer", "null"]}, "s": {"type": ["string", "null"]}, "i": {"type": "integer"}}
    }
    for spelled in ("none", "nil", "NULL", "Null"):
        values = "".join(f'<parameter name="{key}">{spelled}</parameter>' for key in schema["properties"])
        text = f'<minimax:tool_call><invoke name="f">{values}</invoke></minimax:tool_call>'
        (call,) = read(parser("minimax_m2", tools={"f": schema}), [text])[2]
        assert json.loads(call.arguments) == {"n": None, "s": spelled, "i": spelled}


def test_json_that_is_escaped_as_in_a_string() -> None:
    """As GLM-4.6 writes lists at times."""
    schema = {"properties": {"a": {"type": "array"}, "o": {"type": "object"}, "s": {"type": "string"}}}
    values = {"a": r"[{\"x\": \"C:\\\\new \\n\"}]", "o": r"{\"x\": [1]}", "s": r"[\"x\"]"}
    pairs = "".join(f"<arg_key>{key}</arg_key><arg_value>{value}</arg_value>" for key, value in values.items())
    text = f"<tool_call>f{pairs}</tool_call>"
    for pieces in ([text], text):
        (call,) = read(parser("glm45", tools={"f": schema}), pieces)[2]
        assert json.loads(call.arguments) == {"a": [{"x": "C:\\new \n"}], "o": {"x": [1]}, "s": r"[\"x\"]"}
    for value in (r"[{\"x\": }]", r"[\"x\"] \"", r"\"x\""):
        text = f"<tool_call>f<arg_key>a</arg_key><arg_value>{value}</arg_value></tool_call>"
        (call,) = read(parser("glm45", tools={"f": schema}), [text])[2]
        assert json.loads(call.arguments) == {"a": value}


_CITY = "<parameter=city>\nParis\n"
_END = "</function>\n</tool_call>"
LEFT_OUT = [
    # of <tool_call>
    (f"I look.\n<function=get_weather>\n{_CITY}</parameter>\n{_END}", {"city": "Paris"}, "I look."),
    (f"<function=get_weather>\n{_END}\nDone.", {}, "Done."),
    ("Write <function=get_weather> first", None, "Write <function=get_weather> first"),
    (
        f"<function=unknown>\n{_CITY}</parameter>\n</function>",
        None,
        f"<function=unknown>\n{_CITY}</parameter>\n</function>",
    ),
    # of </parameter>: before another parameter of the function, and at the end
    (f"<tool_call>\n<function=get_weather>\n{_CITY}<parameter=days>\n2\n{_END}", {"city": "Paris", "days": 2}, ""),
    (f"<tool_call>\n<function=get_weather>\n{_CITY}{_END}", {"city": "Paris"}, ""),
    # and texts that look alike
    (
        "<tool_call><function=get_weather><parameter=city><parameter=a></parameter></function></tool_call>",
        {"city": "<parameter=a>"},
        "",
    ),
    (
        "<tool_call><function=get_weather><parameter=city><parameter=city></parameter></function></tool_call>",
        {"city": "<parameter=city>"},
        "",
    ),
    (
        "<tool_call><function=get_weather><parameter=city></function>\n</parameter></function></tool_call>",
        {"city": "</function>"},
        "",
    ),
]


@pytest.mark.parametrize("name", ["deepseek_v32", "deepseek_v4"])
def test_calls_of_deepseek_without_the_marker_around_them(name: str) -> None:
    """As V4 often writes them."""
    whole = WRITERS[name]([("get_weather", {"city": "Paris"}), ("get_weather", {"days": 2})])
    bare = "".join(whole.splitlines(keepends=True)[1:-1])
    for text in (f"I look. {bare}", f"I look.\n{bare}</{whole[1 : whole.index('>') + 1]}"):
        for pieces in ([text], text):
            content, _, calls = read(parser(name), pieces)
            assert (content.strip(), [call.name for call in calls]) == ("I look.", ["get_weather"] * 2)
            assert [json.loads(call.arguments) for call in calls] == [{"city": "Paris"}, {"days": 2}]
    unknown = bare.replace("get_weather", "unknown")
    assert read(parser(name), [unknown]) == (unknown, "", [])


@pytest.mark.parametrize(("text", "arguments", "content"), LEFT_OUT)
def test_tags_that_qwen3_coder_leaves_out(text: str, arguments: dict[str, Any] | None, content: str) -> None:
    for pieces in ([text], text):
        said, _, calls = read(parser("qwen3_coder", "qwen3"), pieces)
        assert said == content
        assert [json.loads(call.arguments) for call in calls] == ([] if arguments is None else [arguments])
        assert all((call.name, call.status) == ("get_weather", "completed") for call in calls)


def test_parameters_that_say_whether_they_are_strings() -> None:
    """Before the schema; a text that is no JSON is a string all the same."""
    given = (("city", "true", "12"), ("days", "true", "3"), ("exact", "false", "true"), ("x", "false", "1.5"))
    for name, block in (("deepseek_v32", "function_calls"), ("deepseek_v4", "tool_calls")):
        values = (
            f'<｜DSML｜parameter name="{key}" string="{told}">{value}</｜DSML｜parameter>\n'
            for key, told, value in (*given, ("ratio", "false", "null"), ("deep", "false", "{"))
        )
        text = (
            f'<｜DSML｜{block}>\n<｜DSML｜invoke name="noop">\n{"".join(values)}</｜DSML｜invoke>\n</｜DSML｜{block}>'
        )
        for pieces in ([text], text):
            (call,) = read(parser(name), pieces)[2]
            expected = {"city": "12", "days": "3", "exact": True, "x": 1.5, "ratio": None, "deep": "{"}
            assert json.loads(call.arguments) == expected


def test_kimi_may_put_space_around_what_it_writes() -> None:
    text = '<|tool_call_begin|> functions.noop:0 <|tool_call_argument_begin|> {"a": 1} <|tool_call_end|>'
    for pieces in ([text], text):
        assert read(parser("kimi_k2"), pieces) == ("", "", [ToolCall("noop", '{"a": 1}', "functions.noop:0")])


def test_gpt_oss_may_speak_to_itself() -> None:
    """`to=assistant` is no call; of two channels the last one is meant."""
    text = (
        "<|channel|>commentary to=assistant<|channel|>analysis<|message|>Hm.<|end|>"
        "<|start|>assistant<|channel|>commentary to=assistant<|channel|>final<|message|>Hello"
    )
    for pieces in ([text], text):
        assert read(parser("openai", "openai_gptoss"), pieces) == ("Hello", "Hm.", [])


@pytest.mark.parametrize("name", NAMES)
def test_text_that_ends_like_the_beginning_of_a_marker_is_content(name: str) -> None:
    row = tool_format(name, "")
    assert row is not None
    for marker in row.tokens:
        for length in range(1, len(marker)):
            text = "a " + marker[:length]
            assert read(parser(name), [text]) == (text, "", [])


def test_keys_of_gemma_4_may_be_quoted() -> None:
    text = '<|tool_call>call:noop{<|"|>a b<|"|>:1,c:{<|"|>d: {e<|"|>:2}}<tool_call|>'
    for pieces in ([text], text):
        assert read(parser("gemma4"), pieces)[2] == [ToolCall("noop", '{"a b": 1, "c": {"d: {e": 2}}')]


def test_a_broken_head_takes_no_other_call_along() -> None:
    broken = "<|tool_call>call:noop now<tool_call|>"
    for pieces in ([broken + "<|tool_call>call:noop{}<tool_call|>"], broken + "<|tool_call>call:noop{}<tool_call|>"):
        assert read(parser("gemma4"), pieces) == (broken, "", [ToolCall("noop", "{}", text_offset=len(broken))])


def test_one_call_where_only_one_is_wanted() -> None:
    for answer in RECORDED:
        calls = read(parser(answer.format, answer.reasoning_parser, single=True), answer.text)[2]
        assert [(call.name, json.loads(call.arguments)) for call in calls] == answer.calls[:1]


@pytest.mark.parametrize(
    ("text", "open", "reasoning", "content"),
    [
        ("<think>\nA\n</think>\n\nB\n", False, "A", "B\n"),
        ("\n<think>A</think>B", False, "A", "B"),
        ("A\n</think>\n\nB", True, "A", "B"),
        ("<think>A</think>B", True, "A", "B"),
        ("A, not B", True, "A, not B", ""),
        ("<think>A", False, "A", ""),
        ("<think></think>B", False, "", "B"),
        ("B says <think>A</think>", False, "", "B says <think>A</think>"),
        ("</think>B", True, "", "B"),
        ("A</thin", True, "A</thin", ""),
        ("", True, "", ""),
    ],
)
def test_think_tags(text: str, open: bool, reasoning: str, content: str) -> None:
    for pieces in ([text], text):
        assert read(parser(None, "qwen3", open=open), pieces) == (content, reasoning, [])


@pytest.mark.parametrize(
    ("tool", "way", "call"),
    [
        ("glm45", "glm45", "<tool_call>noop</tool_call>"),
        ("qwen3_coder", "nemotron_v3", "<tool_call><function=noop></function></tool_call>"),
        ("minimax_m2", "minimax_m2", '<minimax:tool_call><invoke name="noop"></invoke></minimax:tool_call>'),
    ],
)
def test_a_call_ends_reasoning_that_is_open(tool: str, way: str, call: str) -> None:
    for pieces in (["Hm. " + call], "Hm. " + call):
        assert read(parser(tool, way, open=True), pieces) == ("", "Hm.", [ToolCall("noop", "{}")])


@pytest.mark.parametrize(
    ("text", "reasoning", "content", "num_calls"),
    [
        ("A <tool_call> it is.\n</think>\nB", "A <tool_call> it is.", "B", 0),
        ("A <tool_call>{} it is, then <tool_call><function=noop></function></tool_call>B",) * 2 + ("", 0),
        ('A <tool_call> it is</think><tool_call>{"name": "noop"}</tool_call>', "A <tool_call> it is", "", 1),
        ('A <tool_call>\n<tool_call>{"name": "noop"}</tool_call>B', "A <tool_call>", "B", 1),
        ('A <tool_call>{"name": "no', 'A <tool_call>{"name": "no', "", 0),
        ("A <tool_call>", "A <tool_call>", "", 0),
    ],
)
def test_reasoning_may_speak_of_calls(text: str, reasoning: str, content: str, num_calls: int) -> None:
    """A call ends it where a call comes, not the marker alone."""
    for pieces in ([text], text):
        said, thought, calls = read(parser("hermes", "qwen3", open=True), pieces)
        assert (said, thought, len(calls)) == (content, reasoning, num_calls)


@pytest.mark.parametrize(
    ("text", "reasoning", "content"),
    [
        ("<|channel>thought\nA<channel|>B<channel|>", "A", "B"),
        ("B<|channel>thought\n<channel|>", "", "B"),
        ("B<|channel>thought\nA<channel|>C", "A", "B\nC"),
        ("<channel|>B", "", "B"),
        ("B <|channel>x", "", "B <|channel>x"),
    ],
)
def test_gemma_4_reasons_anywhere(text: str, reasoning: str, content: str) -> None:
    for pieces in ([text], text):
        assert read(parser("gemma4", "gemma4"), pieces) == (content, reasoning, [])


def test_kimi_calls_from_reasoning_without_the_section() -> None:
    call = '<|tool_call_begin|>functions.noop:0<|tool_call_argument_begin|>{"a": 1}'
    for pieces in (["Hm." + call], "Hm." + call):
        said, thought, calls = read(parser("kimi_k2", "kimi_k2", open=True), pieces)
        assert (said, thought, [call.arguments for call in calls]) == ("", "Hm.", ['{"a": 1}'])


def test_line_ends_around_bare_values() -> None:
    """Qwen's are a line's own; Seed-OSS and MiniMax write values between the tags."""
    for name, text, value in (
        ("qwen3_coder", "<tool_call>\n<function=noop>\n<parameter=city>\n\na\n\n</parameter>\n</function>", "\na\n"),
        ("seed_oss", "<seed:tool_call>\n<function=noop>\n<parameter=city>\na\n</parameter>\n</function>", "\na\n"),
        (
            "minimax_m2",
            '<minimax:tool_call><invoke name="noop"><parameter name="city">\na\n</parameter></invoke>',
            "\na\n",
        ),
    ):
        for pieces in ([text], text):
            (call,) = read(parser(name), pieces)[2]
            assert json.loads(call.arguments) == {"city": value}


def test_whether_a_prompt_began_the_reasoning() -> None:
    plain, eager = reasoning_format("qwen3", ""), reasoning_format("deepseek_r1", "")
    assert plain is not None
    assert eager is not None
    assert plain.opened("<|im_start|>assistant\n<think>\n") is True
    assert plain.opened("<|im_start|>assistant\n") is False
    assert plain.opened("<|im_start|>assistant\n<think>Hm", said="<think>Hm") is True
    assert plain.opened("<|im_start|>assistant\n<think>Hm</think>A", said="<think>Hm</think>A") is False
    assert eager.opened("<｜Assistant｜>") is True
    assert eager.opened("<｜Assistant｜>So", said="So") is True
    assert eager.opened("<｜Assistant｜>Hm</think>So", said="Hm</think>So") is False
    assert eager.opened("</think>So", said="</think>So") is False
    assert eager.opened("<think>\n\n</think>\n\n") is None


HOSTILE_UNITS = [
    f'{NS}<tool_call>{NS}<invoke name="noop">{NS}<tags>{NS}<item>',
    f"{NS}<item>",
    NS,
    '<|open|>tools<|sep|><|open|>call tool="noop" index="1"<|sep|><|open|>argument key="a" type="string"<|sep|>',
    "<function_calls>noop(a=",
    '<function name="noop"><param name="city"><![CDATA[',
    '<minimax:tool_call><invoke name="f"><parameter name="a">',
    '<parameter name="city">',
    *(
        "<tool_call>",
        "{",
        "[",
        "<",
        '<tool_call>{"',
        '"',
        "\\",
        "[TOOL_CALLS]",
        "[TOOL_CALLS]{",
        "<|channel|>",
        " ",
        "a",
    ),
    *(
        "<|start|>assistant<|channel|>analysis<|message|>",
        "<tool_call><function=f><parameter=a>",
        "<function=noop>",
        "[f(a=",
        "<think>",
    ),
    *(
        "<tool_call>f<arg_key>a</arg_key>",
        '[f(a="\\',
        "functools[",
        "<｜tool▁call▁begin｜>",
        "<｜tool▁call▁begin｜>f<｜tool▁sep｜>{",
    ),
    *(
        "<|tool_call>call:f{a:[",
        '{"name": "noop", "arguments": {"a": "',
        '{"name": "noop"};',
        "<|message|>",
        "</think>",
    ),
]


@pytest.mark.parametrize("unit", HOSTILE_UNITS)
def test_time_is_linear(unit: str) -> None:
    """Twice the text takes twice the calls."""
    for name in (
        "hermes",
        "mistral",
        "qwen3_coder",
        "minimax_m2",
        "glm45",
        "openai",
        "gemma4",
        "deepseek_v3",
        "llama3_json",
        "pythonic",
        "minimax_m3",
        "kimi_k3",
        "olmo3",
        "minicpm5",
    ):
        small, large = (steps(name, unit * (size // len(unit))) for size in (2_000, 4_000))
        assert large < 2.5 * small + 500, name


def steps(name: str, text: str) -> int:
    """Calls of Python functions and methods while the whole text is read, and while it comes by characters."""
    count = 0

    def note(frame: Any, event: str, arg: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    for pieces in ([text], text[: len(text) // 8]):
        one = parser(name, "qwen3" if name != "openai" else "openai_gptoss")
        sys.setprofile(note)
        try:
            read(one, pieces)
        finally:
            sys.setprofile(None)
    return count


def test_rows_fit_together() -> None:
    """Any format goes with any way of reasoning: no marker stands inside another. All names are different."""
    for tool in (*FORMATS, None):
        for way in (*REASONINGS, None):
            rules(tool, way)
    assert len(set(NAMES)) == len(NAMES)
    assert ALIASES.keys().isdisjoint(NAMES)
    with pytest.raises(ValueError, match="stands inside"):
        Markers(["<a>", "x<a>y"])


def test_special_tokens_inside_of_markers_are_kept() -> None:
    """Those of which a marker is only made in part, too: they must reach the parser."""
    for row in (*FORMATS, *REASONINGS):
        inside = {token for marker in row.tokens for token in re.findall(r"<\|[^<>]*>", marker)}
        assert inside <= set(row.tokens), row.name


NESTED = {
    "properties": {
        "rows": {"type": "array", "items": {"$ref": "#/$defs/Row"}},
        "one": {"$ref": "#/$defs/Row"},
        "any": {},
    },
    "$defs": {
        "Row": {
            "type": "object",
            "properties": {"n": {"type": "integer"}, "s": {"type": "string"}, "l": {"type": "array", "items": {}}},
        }
    },
}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (
            "<rows><item><n>1</n><s> 2\n</s></item><item><l></l></item></rows>",
            {"rows": [{"n": 1, "s": " 2\n"}, {"l": []}]},
        ),
        ("<rows></rows><one></one>", {"rows": [], "one": {}}),
        ("\n<one>\n<n>1</n>\n<l><item>a</item></l>\n</one>\n", {"one": {"n": 1, "l": ["a"]}}),
        ('<rows>[{"n": 1}]</rows><one>{"s": "x"}</one>', {"rows": [{"n": 1}], "one": {"s": "x"}}),
        ("<one><item>a</item></one>", {"one": {"item": "a"}}),
        ("<any><item>a</item><item><k>v</k></item></any>", {"any": ["a", {"k": "v"}]}),
        ("<any>" * 70, None),
    ],
)
def test_values_inside_of_values_of_minimax_m3(text: str, value: Any) -> None:
    call = f'<tool_call><invoke name="f">{text}</invoke></tool_call>'.replace("<", NS + "<")
    for pieces in ([call], call):
        content, _, calls = read(parser("minimax_m3", tools={"f": NESTED}), pieces)
        if value is None:
            assert (content, calls) == (call, [])
        else:
            assert (content, [json.loads(one.arguments) for one in calls]) == ("", [value])


@pytest.mark.parametrize(
    ("text", "open", "reasoning", "content"),
    [
        ("</mm:think>B", False, "", "B"),
        ("<mm:think>A</mm:think>B", False, "A", "B"),
        ("A</mm:think>B", True, "A", "B"),
        ("B", False, "", "B"),
    ],
)
def test_minimax_m3_may_say_that_it_does_not_reason(text: str, open: bool, reasoning: str, content: str) -> None:
    for pieces in ([text], text):
        assert read(parser("minimax_m3", "minimax_m3", open=open), pieces) == (content, reasoning, [])


def test_answers_of_ernie_stand_within_markers() -> None:
    text = (
        'Hm.\n</think>\n\n<response>\nOk.\n</response>\n<tool_call>\n{"name": "noop", "arguments": {}}\n</tool_call>\n'
    )
    for pieces in ([text], text):
        call = ToolCall("noop", "{}", text_offset=len("Ok."))
        assert read(parser("ernie45", "ernie45", open=True), pieces) == ("Ok.", "Hm.", [call])


def test_all_names_are_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "tool-calling.md").read_text("utf-8")
    for name in (*NAMES, *ALIASES, *(row.name for row in REASONINGS), *reasoning.ALIASES):
        assert f"`{name}`" in page


def test_by_template() -> None:
    signs = {row.name: " ".join(row.signs[0]) for row in FORMATS if row.signs}
    for name, text in signs.items():
        found = tool_format(None, f"{{# {text} #}}")
        assert found is not None
        assert found.name == name
    assert tool_format(None, "{{ messages }}") is None
    assert reasoning_format(None, "{{ messages }}") is None
    for row in REASONINGS:
        if row.signs:
            found_way = reasoning_format(None, " ".join(row.signs[0]))
            assert found_way is not None
            assert found_way.name == row.name


def test_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tool_format("qwen3_xml", "") is tool_format("qwen3_coder", "")
    assert tool_format("none", "<tool_call>") is None
    with pytest.raises(ConfigError, match="hermes"):
        tool_format("hermse", "")
    with pytest.raises(ConfigError, match="deepseek_r1"):
        reasoning_format("r1", "")
    own = replace(FORMATS[0], name="own")
    plugins = {"own": own, "bad": Reasoning("x")}

    class Point:
        def __init__(self, name: str) -> None:
            self.name = name

        def load(self) -> Any:
            return plugins[self.name]

    monkeypatch.setattr(choose, "entry_points", lambda group: map(Point, plugins) if "tool" in group else ())
    assert tool_format("own", "") is own
    assert isinstance(own, Format)
    with pytest.raises(ConfigError, match="Format"):
        tool_format("bad", "")


@pytest.mark.parametrize("name", NAMES)
def test_a_parser_is_freed_with_its_request(name: str) -> None:
    gc.disable()  # it would hold all streams up
    try:
        one = parser(name, "qwen3")
        one.feed("<think>a</think> <tool_call>")
        ref = weakref.ref(one)
        del one
        assert ref() is None
    finally:
        gc.enable()


PRINTED = [("hermes", ALL["qwen3"]), ("mistral", ALL["mistral"]), ("llama3_json", ALL["llama3"]), *CALLING.items()]


@pytest.mark.parametrize(("name", "source"), PRINTED, ids=[name for name, _ in PRINTED])
def test_what_a_template_prints_is_read(name: str, source: str, byte_level: Tokenizer) -> None:
    """Calls of earlier turns, as a template shows them to the model, are what the parser reads."""
    template = ChatTemplate(source, byte_level)
    arguments = {"city": 'Zürich "<b>"', "days": 2, "deep": {"x": [1.5, None, True]}}
    call = {"id": "abcdef123", "type": "function", "function": {"name": "get_weather", "arguments": arguments}}
    before = [{"role": "user", "content": "Weather?"}]
    asked = template.render(before, add_generation_prompt=True)
    talk = [*before, {"role": "assistant", "content": "", "tool_calls": [call]}]
    shown = template.render(talk, add_generation_prompt=False)
    common = takewhile(lambda pair: pair[0] == pair[1], zip(asked, shown, strict=False))
    answer = shown[len(list(common)) :]
    for end in ("<|im_end|>", "</s>", "<|eot_id|>"):
        answer = answer.partition(end)[0]
    answer = answer.removeprefix("assistant").lstrip()
    content, _, calls = read(parser(name, "qwen3"), [answer])
    assert content == ""
    assert [(one.name, json.loads(one.arguments)) for one in calls] == [("get_weather", arguments)]

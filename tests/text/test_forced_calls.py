"""Grammars of forced calls: what they admit, walked at random, is read back as calls of the schema."""

from __future__ import annotations

import json
import random
import re
from dataclasses import replace
from typing import Any

import pytest
from answers import WRITERS

from octavo.base.errors import InputError, UnsupportedError
from octavo.base.types.structured import StructuredOutputsParams
from octavo.engine.grammar.grammar import Vocabulary
from octavo.engine.grammar.llguidance import compile_matcher, make_tokenizer
from octavo.text.reasoning import REASONINGS, Reasoning
from octavo.text.tools.choose import reasoning_format, tool_format
from octavo.text.tools.forced import forced_grammar, free_grammar, reasoned_grammar
from octavo.text.tools.formats import FORMATS
from octavo.text.tools.lark import Function, Lark
from octavo.text.tools.parser import OutputParser

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": ["Paris", "Zürich <b>"]},
        "days": {"type": "integer", "minimum": 0, "maximum": 20},
        "note": {"type": "string"},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
FUNCTIONS = [Function("get_weather", SCHEMA, "tools[0]"), Function("noop", {}, "tools[1]")]
SPELLED = {token for row in (*FORMATS, *REASONINGS) for token in row.tokens}
PARTS = {token for token in SPELLED if token[0] in "<[]"}
MARKERS = sorted(token for token in PARTS if not any(one != token and one in token for one in PARTS))
EOS = 256
NAMES = [row.name for row in FORMATS]


class Vocabularies:
    """Bytes, and the markers as special tokens, or as others, or no such tokens at all."""

    def __init__(self, markers: list[str], *, special: bool = True) -> None:
        self.tokens = {"<eos>": EOS, **{marker: EOS + 1 + i for i, marker in enumerate(markers)}}
        self.special = self.tokens if special else {"<eos>": EOS}
        self.texts = [bytes([i]) for i in range(256)] + [name.encode() for name in self.tokens]
        vocabulary = Vocabulary(self.texts, self.special, (EOS,), len(self.texts))
        self.tokenizer = make_tokenizer(vocabulary)

    def matcher(self, grammar: str) -> Any:
        return compile_matcher(self.tokenizer, StructuredOutputsParams(grammar=grammar), self.special.keys())

    def walk(self, grammar: str, rng: random.Random, *, most: int = 3000) -> str | None:
        """A text that the grammar admits; None for one that did not end in time."""
        matcher = self.matcher(grammar)
        taken: list[int] = []
        while not matcher.is_stopped() and len(taken) < most:
            mask = matcher.compute_bitmask()
            free = [i for i in range(len(self.texts)) if mask[i // 8] >> i % 8 & 1]
            if EOS in free and (rng.random() < 0.3 or len(free) == 1):
                break
            plain = [i for i in free if i != EOS and (i > 256 or 32 <= i < 127 or i == 10)]
            # what ends something is likely to come, so that a walk ends
            ends = [i for i in plain if i > 256 or chr(i) in '"]}</,\n']
            token = rng.choice(ends if ends and rng.random() < 0.5 else plain or [i for i in free if i != EOS])
            assert matcher.consume_tokens([token])
            taken.append(token)
        if len(taken) == most:
            return None
        text = b"".join(self.texts[token] for token in taken).decode("utf-8", "replace")
        return None if re.search(r"\d[eE][-+]?\d{3}", text) else text  # numbers that no reader can hold

    def admits(self, grammar: str, text: str) -> bool:
        matcher = self.matcher(grammar)
        rest = text
        while rest:
            marker = next((m for m in self.tokens if rest.startswith(m)), None)
            tokens = [self.tokens[marker]] if marker else list(rest[0].encode())
            if not all(matcher.consume_tokens([token]) for token in tokens):
                return False
            rest = rest[len(marker) if marker else 1 :]
        return bool(matcher.is_accepting())


@pytest.fixture(scope="module", params=["special", "text"])
def vocabulary(request: pytest.FixtureRequest) -> Vocabularies:
    return Vocabularies(MARKERS if request.param == "special" else [])


def reading(name: str, text: str, way: Reasoning | None = None, *, open: bool = False) -> tuple[str, list[Any]]:
    tools = {function.name: function.schema for function in FUNCTIONS}
    parser = OutputParser(tool_format(name, ""), way, tools=tools, open=open)
    deltas = [parser.feed(text), parser.finish()]
    return "".join(delta.content for delta in deltas), [call for delta in deltas for call in delta.calls]


def check_calls(name: str, text: str, calls: list[Any], content: str) -> None:
    assert content == "", text
    assert calls, text
    for call in calls:
        given = json.loads(call.arguments)
        if call.name == "get_weather":
            assert {"city", "days"} <= given.keys() <= SCHEMA["properties"].keys(), text
            assert given["city"] in SCHEMA["properties"]["city"]["enum"]
            assert given["days"] in range(21)
            assert isinstance(given.get("note", ""), str)
            assert set(given.get("tags", [])) <= {"a", "b"}
        else:
            assert call.name == "noop"
            assert isinstance(given, dict)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_forced_is_read(name: str, vocabulary: Vocabularies) -> None:
    tool = tool_format(name, "")
    assert tool is not None
    grammar = forced_grammar(tool, FUNCTIONS, special=vocabulary.special)
    one = forced_grammar(tool, FUNCTIONS[:1], special=vocabulary.special, many=False)
    rng, ended = random.Random(name), 0
    for _ in range(6):
        if (text := vocabulary.walk(grammar, rng)) is not None:
            ended += 1
            content, calls = reading(name, text)
            check_calls(name, text, calls, content)
        if (text := vocabulary.walk(one, rng)) is not None:
            ended += 1
            content, calls = reading(name, text)
            check_calls(name, text, calls, content)
            assert [call.name for call in calls] == ["get_weather"]
    assert ended >= 3
    for text in ("", "Hello", "{}", '{"name": "other", "arguments": {}}', "<tool_call>", "[]"):
        assert not vocabulary.admits(grammar, text)


@pytest.mark.parametrize("way", ["qwen3", "granite", "mistral"])
@pytest.mark.parametrize("opened", [False, True, None])
def test_reasoning_comes_before(way: str, opened: bool | None, vocabulary: Vocabularies) -> None:
    tool, reasoning = tool_format("hermes", ""), reasoning_format(way, "")
    assert tool is not None
    assert reasoning is not None
    grammar = forced_grammar(tool, FUNCTIONS, special=vocabulary.special, reasoning=reasoning, opened=opened)
    call = '<tool_call>\n{"name": "noop", "arguments": {"a": [1, 2]}}\n</tool_call>'
    thought = f"Hm,\n<b>\n{reasoning.ends[0]}\n\n{call}"
    begun = reasoning.begins[0] + thought
    assert vocabulary.admits(grammar, call) is (opened is not True)
    assert vocabulary.admits(grammar, thought) is (opened is True)
    assert vocabulary.admits(grammar, begun) is (opened is not None)  # a prompt's marker may be repeated
    assert not vocabulary.admits(grammar, "Hm" + call)
    text = {True: thought, False: begun, None: call}[opened]
    assert [one.name for one in reading("hermes", text, reasoning, open=bool(opened))[1]] == ["noop"]


def test_harmony_thinks_first(vocabulary: Vocabularies) -> None:
    tool = tool_format("openai", "")
    assert tool is not None
    grammar = forced_grammar(tool, FUNCTIONS, special=vocabulary.special)
    call = '<|channel|>commentary to=functions.noop <|constrain|>json<|message|>{"a": 1}'
    assert vocabulary.admits(grammar, call)
    assert vocabulary.admits(grammar, "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant" + call)
    assert not vocabulary.admits(grammar, "<|channel|>final<|message|>Hm.")


FORMS = [
    (StructuredOutputsParams(json={"type": "object", "properties": {"a": {"type": "integer"}}}), '{"a": 1}'),
    (StructuredOutputsParams(choice=["yes", "no"]), "yes"),
]


@pytest.mark.parametrize(("form", "answer"), FORMS)
@pytest.mark.parametrize("opened", [False, True, None])
@pytest.mark.parametrize("way", ["granite", "hunyuan_a13b"])
def test_answers_may_stand_within_the_markers_of_their_way(
    way: str, opened: bool | None, form: StructuredOutputsParams, answer: str, vocabulary: Vocabularies
) -> None:
    tool, reasoning = tool_format("hermes", ""), reasoning_format(way, "")
    assert tool is not None
    assert reasoning is not None
    about: Any = {"special": vocabulary.special, "reasoning": reasoning, "opened": opened}
    formed = reasoned_grammar(form, **about)
    either = forced_grammar(tool, FUNCTIONS, **about, instead=form)
    forced = forced_grammar(tool, FUNCTIONS, **about)
    assert formed is not None
    assert either is not None
    assert forced is not None
    begin, end = reasoning.wraps
    thought = {None: "", False: f"{reasoning.begins[-1]}Hm.\n", True: "Hm.\n"}[opened]
    thought += "" if opened is None else f"{reasoning.ends[-1]}\n"
    call = '<tool_call>\n{"name": "noop", "arguments": {}}\n</tool_call>'
    for grammars, said in (((formed, either), answer), ((either, forced), call)):
        for grammar in grammars:
            for text in (f"{begin}{said}{end}", f"{begin}\n{said}\n{end}", said):
                assert vocabulary.admits(grammar, thought + text)
                content, calls = reading("hermes", thought + text, reasoning, open=bool(opened))
                assert (content, len(calls)) == (("", 1) if said == call else (answer, 0))
            for text in (f"{begin}{said}", f"{said}{end}", f"{begin}Hm{end}", begin + end):
                assert not vocabulary.admits(grammar, thought + text)


@pytest.mark.parametrize("begun", ["", "<|think|>Hm.<|end|><|begin|>assistant"])
def test_what_solar_writes_before_calls_and_answers(begun: str, vocabulary: Vocabularies) -> None:
    tool, reasoning = tool_format("solar_open", ""), reasoning_format("solar_open", "")
    assert tool is not None
    assert reasoning is not None
    form = StructuredOutputsParams(json={"type": "object", "properties": {"a": {"type": "integer"}}})
    about: Any = {"special": vocabulary.special, "reasoning": reasoning, "opened": False}
    call = WRITERS["solar_open"]([("noop", {"a": 1})])
    for grammar, said in (
        (forced_grammar(tool, FUNCTIONS, **about), call),
        (forced_grammar(tool, FUNCTIONS, **about, instead=form), '<|content|>{"a": 1}'),
        (reasoned_grammar(form, **about), '<|content|>{"a": 1}'),
    ):
        assert grammar is not None
        assert vocabulary.admits(grammar, begun + said)
        assert not vocabulary.admits(grammar, begun + "Hello" + said)
        content, calls = reading("solar_open", begun + said, reasoning)
        assert (content, len(calls)) == (("", 1) if said == call else ('{"a": 1}', 0))


@pytest.mark.parametrize("way", ["granite", "hunyuan_a13b"])
def test_free_text_with_strict_functions_may_stand_within_markers(way: str, vocabulary: Vocabularies) -> None:
    tool, reasoning = tool_format("hermes", ""), reasoning_format(way, "")
    assert tool is not None
    assert reasoning is not None
    grammar = free_grammar(tool, STRICT, special=vocabulary.special, reasoning=reasoning, opened=False)
    begin, end = reasoning.wraps
    call = CALLS["hermes"]("get_weather", {"city": "Paris", "days": 3})
    for text in (f"{begin}Hello{end}", f"<think>Hm.</think>\n{begin}\nHello {call}\n{end}", f"Hello {call}"):
        assert vocabulary.admits(grammar, text)
    assert not vocabulary.admits(grammar, begin + CALLS["hermes"]("get_weather", {"city": "Rome", "days": 3}) + end)


def test_harmony_may_say_that_the_answer_is_json(vocabulary: Vocabularies) -> None:
    tool, reasoning = tool_format("openai", ""), reasoning_format("openai_gptoss", "")
    assert tool is not None
    assert reasoning is not None
    form = StructuredOutputsParams(json_object=True)
    for grammar in (
        reasoned_grammar(form, special=vocabulary.special, reasoning=reasoning, opened=False),
        forced_grammar(tool, FUNCTIONS, special=vocabulary.special, reasoning=reasoning, instead=form),
    ):
        assert grammar is not None
        for head in ("final", "final <|constrain|>json", "final<|constrain|>JSON"):
            text = f'<|channel|>{head}<|message|>{{"a": 1}}'
            assert vocabulary.admits(grammar, text)
            assert reading("openai", text, reasoning) == ('{"a": 1}', [])
        assert not vocabulary.admits(grammar, '<|channel|>final <|constrain|>xml<|message|>{"a": 1}')
        assert not vocabulary.admits(grammar, "<|channel|>final <|constrain|>json<|message|>Hm.")


STRICT = [FUNCTIONS[0], Function("noop", {"properties": {"x": {"type": "integer"}}}, "tools[1]", free=True)]


NEWER = (
    *("minimax_m3", "kimi_k3", "hy_v3", "functionary_v31", "minicpm5", "cohere_command3", "solar_open", "apertus"),
    *("gigachat3", "olmo3", "internlm", "granite-20b-fc"),
)


@pytest.mark.parametrize(
    "name",
    [
        "hermes",
        "qwen3_coder",
        "glm45",
        "deepseek_v31",
        "kimi_k2",
        "granite",
        "gemma4",
        "jamba",
        "minimax",
        "minimax_m2",
        "mistral",
        "lfm2",
        *NEWER,
    ],
)
def test_strict_functions_in_free_text(name: str, vocabulary: Vocabularies) -> None:
    tool = tool_format(name, "")
    assert tool is not None
    grammar = free_grammar(tool, STRICT, special=vocabulary.special)
    assert vocabulary.admits(grammar, "Hello,\n <b>you</b> {")
    assert vocabulary.admits(grammar, "")
    spelled = CALLS[name]
    right = spelled("get_weather", {"city": "Paris", "days": 3})
    assert vocabulary.admits(grammar, "Well:\n" + right)
    assert vocabulary.admits(grammar, right + " and " + right)
    assert vocabulary.admits(grammar, spelled("noop", {"x": "any"}))
    for wrong in (
        spelled("get_weather", {"city": "Rome", "days": 3}),
        spelled("other", {}),
        spelled("get_weather", {}),
    ):
        assert not vocabulary.admits(grammar, wrong)


def test_strict_functions_where_the_marker_is_left_out(vocabulary: Vocabularies) -> None:
    tool = tool_format("qwen3_coder", "")
    assert tool is not None
    grammar = free_grammar(tool, STRICT, special=vocabulary.special)
    right, wrong = (
        CALLS["qwen3_coder"]("get_weather", {"city": city, "days": 3}).removeprefix("<tool_call>\n")
        for city in ("Paris", "Rome")
    )
    assert vocabulary.admits(grammar, "Well:\n" + right)
    assert [call.name for call in reading("qwen3_coder", right)[1]] == ["get_weather"]
    assert not vocabulary.admits(grammar, wrong)


@pytest.mark.parametrize("name", ["llama3_json", "pythonic", "llama4_pythonic"])
def test_strict_functions_where_calls_have_no_marker(name: str, vocabulary: Vocabularies) -> None:
    tool = tool_format(name, "")
    assert tool is not None
    grammar = free_grammar(tool, STRICT, special=vocabulary.special)
    for text in ("Hello, {you} [there]", "", "\n a"):
        assert vocabulary.admits(grammar, text)
    if name == "llama3_json":
        right, wrong = (
            f'{{"name": "get_weather", "parameters": {{"city": "{city}", "days": 3}}}}' for city in ("Paris", "Rome")
        )
        marked = "<|python_tag|>" + right
    else:
        right, wrong = (f'[get_weather(city="{city}", days=3)]' for city in ("Paris", "Rome"))
        marked = right if name == "pythonic" else f"<|python_start|>{right}<|python_end|>"
    assert vocabulary.admits(grammar, right)
    assert vocabulary.admits(grammar, marked)
    assert [call.name for call in reading(name, right)[1]] == ["get_weather"]
    assert not vocabulary.admits(grammar, wrong)


def test_strict_functions_in_harmony(vocabulary: Vocabularies) -> None:
    tool = tool_format("openai", "")
    assert tool is not None
    grammar = free_grammar(tool, STRICT, special=vocabulary.special)
    call = '<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{"city": "Paris", "days": 3}'
    said = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"
    for text in (call, said + call, said + said + "<|channel|>final<|message|>Hello!", "<|channel|>final<|message|>"):
        assert vocabulary.admits(grammar, text)
    for text in (call.replace("Paris", "Rome"), said + "Hello", call.replace("get_weather", "other")):
        assert not vocabulary.admits(grammar, text)


def _bare(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _json_call(name: str, given: dict[str, Any]) -> str:
    return json.dumps({"name": name, "arguments": given}, ensure_ascii=False)


CALLS: dict[str, Any] = {
    "hermes": lambda name, given: f"<tool_call>\n{_json_call(name, given)}\n</tool_call>",
    "granite": lambda name, given: f"<|tool_call|>[{_json_call(name, given)}]",
    "jamba": lambda name, given: f"<tool_calls>[{_json_call(name, given)}, {_json_call(name, given)}]</tool_calls>",
    "minimax": lambda name, given: f"<tool_calls>\n{_json_call(name, given)}\n{_json_call(name, given)}\n</tool_calls>",
    "qwen3_coder": lambda name, given: (
        f"<tool_call>\n<function={name}>\n"
        + "".join(f"<parameter={key}>\n{_bare(value)}\n</parameter>\n" for key, value in given.items())
        + "</function>\n</tool_call>"
    ),
    "glm45": lambda name, given: (
        f"<tool_call>{name}\n"
        + "".join(f"<arg_key>{k}</arg_key>\n<arg_value>{_bare(v)}</arg_value>\n" for k, v in given.items())
        + "</tool_call>"
    ),
    "deepseek_v31": lambda name, given: (
        f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>{name}<｜tool▁sep｜>{json.dumps(given)}<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
    ),
    "kimi_k2": lambda name, given: (
        f"<|tool_calls_section_begin|><|tool_call_begin|>functions.{name}:0<|tool_call_argument_begin|>"
        f"{json.dumps(given)}<|tool_call_end|><|tool_calls_section_end|>"
    ),
    "gemma4": lambda name, given: f"<|tool_call>call:{name}{json.dumps(given)}<tool_call|>",
    "minimax_m2": lambda name, given: (
        f'<minimax:tool_call>\n<invoke name="{name}">\n'
        + "".join(f'<parameter name="{key}">{_bare(value)}</parameter>\n' for key, value in given.items())
        + "</invoke>\n</minimax:tool_call>"
    ),
}


CALLS.update({name: lambda name, given, write=WRITERS[name]: write([(name, given)]) for name in NEWER})
CALLS["mistral"] = lambda name, given: f"[TOOL_CALLS][{_json_call(name, given)}]"
CALLS["olmo3"] = lambda name, given: f"<function_calls>{_keyword_call(name, given)}</function_calls>"
CALLS["lfm2"] = lambda name, given: f"<|tool_call_start|>[{_keyword_call(name, given)}]<|tool_call_end|>"


def _keyword_call(name: str, given: dict[str, Any]) -> str:
    return f"{name}({', '.join(f'{key}={json.dumps(value)}' for key, value in given.items())})"


def test_notes_may_be_long(vocabulary: Vocabularies) -> None:
    """They are no part of the grammar; a property may be called what a note is called."""
    tool = tool_format("hermes", "")
    assert tool is not None
    schema = {"description": "x" * 10_000, "properties": {"description": {"type": "integer", "title": "y" * 10_000}}}
    grammar = forced_grammar(tool, [Function("f", schema, "tools[0]")], special=vocabulary.special)
    assert len(grammar) < 1000
    assert vocabulary.admits(grammar, CALLS["hermes"]("f", {"description": 1}))
    assert not vocabulary.admits(grammar, CALLS["hermes"]("f", {"description": "1"}))


COLOR = {"$ref": "#/$defs/Color"}
REFERRED: dict[str, Any] = {
    "$defs": {"Color": {"type": "string", "enum": ["red", "blue"]}, "Size": {"type": "integer"}},
    "properties": {},
}


@pytest.mark.parametrize("name", ["qwen3_coder", "glm45", "hy_v3", "minimax_m3", "minicpm5"])
@pytest.mark.parametrize(
    ("schema", "values", "wrong"),
    [
        (COLOR, ["red", "blue"], ["green", '"red"']),
        ({"allOf": [COLOR], "default": "red"}, ["red"], ["green", '"red"']),
        ({"anyOf": [COLOR, {"type": "null"}]}, ["red", None], ["green", '"red"']),
        ({"type": ["string", "null"], "enum": ["red", None]}, ["red", None], ["green"]),
        ({"const": "red"}, ["red"], ["blue", '"red"']),
        ({"const": "red", "type": "string"}, ["red"], ["blue"]),
        ({"$ref": "#/$defs/Size"}, [12], ["red"]),
        ({"description": "anything"}, ["red", '"red"', {"a": 1}], []),
    ],
)
def test_bare_values_are_those_of_the_schema(
    vocabulary: Vocabularies, name: str, schema: Any, values: list[Any], wrong: list[str]
) -> None:
    """Whatever the schema says it by: options, constants, references."""
    tool = tool_format(name, "")
    assert tool is not None
    whole = {**REFERRED, "properties": {"x": schema}, "required": ["x"]}
    grammar = forced_grammar(tool, [Function("f", whole, "tools[0]")], special=vocabulary.special)
    for value in values:
        text = CALLS[name]("f", {"x": value})
        assert vocabulary.admits(grammar, text)
        parser = OutputParser(tool, None, tools={"f": whole})
        (call,) = [*parser.feed(text).calls, *parser.finish().calls]
        assert json.loads(call.arguments) == {"x": value}
    for value in wrong:
        assert not vocabulary.admits(grammar, CALLS[name]("f", {"x": value}))


ONE = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"], "additionalProperties": False}


@pytest.mark.parametrize("name", ["qwen3_coder", "glm45", "pythonic", "hermes"])
def test_parameters_behind_a_reference(vocabulary: Vocabularies, name: str) -> None:
    tool = tool_format(name, "")
    assert tool is not None
    schema = {"$ref": "#/definitions/one", "definitions": {"one": ONE}}
    grammar = forced_grammar(tool, [Function("f", schema, "tools[0]")], special=vocabulary.special)
    call = CALLS.get(name, lambda _, given: f"[f({', '.join(f'{key}={value}' for key, value in given.items())})]")
    assert vocabulary.admits(grammar, call("f", {"x": 12}))
    assert not vocabulary.admits(grammar, call("f", {}))
    (found,) = OutputParser(tool, None, tools={"f": schema}).feed(call("f", {"x": 12})).calls
    assert json.loads(found.arguments) == {"x": 12}


@pytest.mark.parametrize("name", ["qwen3_coder", "pythonic"])
@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"anyOf": [{"required": ["x"]}]}, "anyOf"),
        ({"allOf": [ONE]}, "allOf"),
        ({"maxProperties": 1}, "maxProperties"),
        ({"required": ["x", "z"]}, "required property z"),
    ],
)
def test_what_holds_of_all_arguments_is_enforced_or_refused(name: str, more: Any, named: str) -> None:
    tool = tool_format(name, "")
    assert tool is not None
    with pytest.raises(UnsupportedError, match=named):
        forced_grammar(tool, [Function("f", {**ONE, **more}, "tools[3]")], special={})


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"anyOf": [{"type": "string", "pattern": "a"}, {"type": "null"}]}, "pattern"),
        ({"enum": ["red", 5]}, "enum"),
        ({"type": "string", "not": {"const": "red"}}, "not"),
    ],
)
def test_bare_strings_of_which_not_all_can_be_enforced(schema: Any, named: str) -> None:
    coder = tool_format("qwen3_coder", "")
    assert coder is not None
    with pytest.raises(UnsupportedError, match=named):
        forced_grammar(coder, [Function("f", {"properties": {"x": schema}}, "tools[3]")], special={})


def test_what_cannot_be_forced_is_refused_by_name() -> None:
    coder, hermes = (tool_format(name, "") for name in ("qwen3_coder", "hermes"))
    assert coder is not None
    assert hermes is not None
    pattern = Function("f", {"properties": {"a": {"type": "string", "pattern": "x"}}}, "tools[3]")
    with pytest.raises(UnsupportedError, match="pattern") as caught:
        forced_grammar(coder, [pattern], special={})
    assert caught.value.param == "tools[3].function.parameters"
    with pytest.raises(UnsupportedError, match="hermes") as caught:
        forced_grammar(replace(hermes, spelling=None), FUNCTIONS, special={})
    assert caught.value.param == "tool_choice"
    with pytest.raises(InputError, match="type must be 'object'"):
        forced_grammar(hermes, [Function("f", {"type": "array"}, "tools[0]")], special={})


def test_special_tokens_that_texts_have_too_are_texts() -> None:
    """Some vocabularies list blanks, single characters and phrases among them."""
    special = {"{": 1, "\n": 2, "a b": 3, "<t>": 4, "[T]": 5}
    assert Lark(special).text("{a b\n<t>x[T]") == r'"{a b\n" <t> "x" <[5]>'

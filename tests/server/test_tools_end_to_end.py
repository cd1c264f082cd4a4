"""Tool calls and reasoning by openai's client: real tokenizer, template, engine and sockets, and scripted answers."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from replay import replay_model, replay_server
from serving import LiveServer

from octavo.text.reasoning import REASONINGS
from octavo.text.tools.formats import FORMATS

sys.path.insert(0, str(Path(__file__).parents[1] / "text"))

from answers import RECORDED, TOOLS, WEATHER, Answer

LONG = '{"text":"' + " ".join(map(str, range(100))) + '"}'
SCRIPTS = {
    **{f"answer {number}": answer.text for number, answer in enumerate(RECORDED)},
    "closed": "<think>\nHm, let me.\n</think>\n\nHello!",
    "open": "<think>\nHm, let me",
    "json": '<think>\nSo.\n</think>\n\n{"a": 12}',
    "json at once": '<think>\n\n</think>\n\n{"a": 12}',
    "call at once": '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris", "days": 2}}\n</tool_call>',
    "answer in json": '{"a": 12}',
    "plain": "A <b>plain</b> answer.\n",
    "broken": '<tool_call>{"name": "noop", "arguments": {"a": }}</tool_call>',
    "broken later": '<tool_call>{"name": "noop", "arguments": {"a": "x", b: 1}}</tool_call> then',
    "long": '<tool_call>\n{"name": "noop", "arguments": ' + LONG + "}\n</tool_call>",
    "other": "<|channel|>Hi<|python_tag|>!",
}
ASKED: list[Any] = [{"type": "function", "function": {"name": name, "parameters": one}} for name, one in TOOLS.items()]
OPENAI_ID = r"call_[0-9a-f]{24}"


@pytest.fixture(scope="module")
def folder(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return replay_model(checkpoint("llama"), tmp_path_factory.mktemp("replay") / "model", SCRIPTS)


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[LiveServer]:
    with replay_server(folder, trust_request_chat_template=True) as live:
        yield live


@pytest.fixture(scope="module")
def client(server: LiveServer) -> Iterator[openai.OpenAI]:
    with server.openai() as talking:
        yield talking


def template(answer: Answer, folder: Path, opening: str = "") -> str:
    """The model's template with the signs of the answer's formats. A script holds what the prompt begins, too."""
    rows = {row.name: row for row in FORMATS}
    ways = {"glm45": "deepseek_v3"}
    signs = [*rows[answer.format].signs[:1]]
    if answer.reasoning_parser:
        way = ways.get(answer.reasoning_parser, answer.reasoning_parser)
        signs += next(row.signs[:1] for row in REASONINGS if row.name == way)
    own = json.loads((folder / "tokenizer_config.json").read_text())["chat_template"]
    return f"{own}{{# {' '.join(sign for group in signs for sign in group)} #}}"


def ask(name: str, **more: Any) -> dict[str, Any]:
    return {"model": "model", "messages": [{"role": "user", "content": name}], "max_tokens": 1000, **more}


def joined(client: openai.OpenAI, **request: Any) -> dict[str, Any]:
    """A stream's first choice put together as the client sees it."""
    message: dict[str, Any] = {"content": "", "reasoning": "", "reasoning_content": "", "calls": []}
    for chunk in client.chat.completions.create(**request, stream=True, stream_options={"include_usage": True}):
        if not chunk.choices:
            message["usage"] = chunk.usage
            continue
        (choice,) = chunk.choices
        message["content"] += choice.delta.content or ""
        for name in ("reasoning", "reasoning_content"):
            message[name] += (choice.delta.model_extra or {}).get(name) or ""
        for call in choice.delta.tool_calls or []:
            if call.id is not None:
                assert call.index == len(message["calls"])
                assert (call.type, call.function and call.function.arguments) == ("function", "")
                message["calls"].append([call.function and call.function.name, ""])
            else:
                assert call.index == len(message["calls"]) - 1
                message["calls"][call.index][1] += call.function and call.function.arguments
        message["finish_reason"] = choice.finish_reason or message.get("finish_reason")
    return message


def check_same(streamed: dict[str, Any], reply: openai.types.chat.ChatCompletion) -> None:
    (choice,) = reply.choices
    message = choice.message
    assert streamed["content"] == (message.content or "")
    extra = message.model_extra or {}
    assert streamed["reasoning"] == streamed["reasoning_content"] == (extra.get("reasoning") or "")
    assert extra.get("reasoning_content") == extra.get("reasoning")
    calls = [[call.function.name, call.function.arguments] for call in message.tool_calls or []]
    assert streamed["calls"] == calls
    assert streamed["finish_reason"] == choice.finish_reason
    usage = reply.usage
    assert usage is not None
    assert streamed["usage"].completion_tokens == usage.completion_tokens
    assert streamed["usage"].completion_tokens_details == usage.completion_tokens_details


@pytest.mark.parametrize("number", range(len(RECORDED)), ids=lambda number: RECORDED[number].format)
def test_every_format(client: openai.OpenAI, folder: Path, number: int) -> None:
    answer = RECORDED[number]
    if answer.format == "pythonic":
        pytest.skip("no template tells it; see test_a_format_that_no_template_tells")
    request = ask(f"answer {number}", tools=ASKED, extra_body={"chat_template": template(answer, folder)})
    reply = client.chat.completions.create(**request)
    (choice,) = reply.choices
    calls = answer.calls[:1] if answer.format == "openai" else answer.calls  # <|call|> ends an answer
    assert [(c.function.name, json.loads(c.function.arguments)) for c in choice.message.tool_calls or []] == calls
    assert (choice.message.content or "") == answer.content
    assert ((choice.message.model_extra or {}).get("reasoning") or "") == answer.reasoning
    assert choice.finish_reason == ("tool_calls" if calls else "stop")
    assert len({call.id for call in choice.message.tool_calls or []}) == len(calls)
    assert reply.usage is not None
    assert reply.usage.completion_tokens_details is not None
    assert bool(reply.usage.completion_tokens_details.reasoning_tokens) == bool(answer.reasoning)
    check_same(joined(client, **request), reply)


def test_ids_are_of_the_form_that_the_model_knows(client: openai.OpenAI, folder: Path) -> None:
    for name, pattern in (("hermes", OPENAI_ID), ("mistral", r"[A-Za-z0-9]{9}"), ("kimi_k2", r"functions\.[\w-]+:\d")):
        number, answer = next((n, a) for n, a in enumerate(RECORDED) if a.format == name)
        request = ask(f"answer {number}", tools=ASKED, extra_body={"chat_template": template(answer, folder)})
        for call in client.chat.completions.create(**request).choices[0].message.tool_calls or []:
            assert re.fullmatch(pattern, call.id)


HERMES = next(answer for answer in RECORDED if answer.format == "hermes" and answer.reasoning)
TWO = next(answer for answer in RECORDED if answer.format == "hermes" and len(answer.calls) == 2)


@pytest.fixture(scope="module")
def by_flag(folder: Path) -> Iterator[openai.OpenAI]:
    with (
        replay_server(folder, tool_call_parser="hermes", reasoning_parser="qwen3") as live,
        live.openai() as talking,
    ):
        yield talking


@pytest.fixture(scope="module")
def without_reasoning(folder: Path) -> Iterator[openai.OpenAI]:
    with (
        replay_server(folder, tool_call_parser="hermes") as live,
        live.openai() as talking,
    ):
        yield talking


def script(answer: Answer) -> str:
    return f"answer {RECORDED.index(answer)}"


def test_by_flag(by_flag: openai.OpenAI) -> None:
    (choice,) = by_flag.chat.completions.create(**ask(script(HERMES), tools=ASKED)).choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    assert choice.message.model_extra == {"reasoning": HERMES.reasoning, "reasoning_content": HERMES.reasoning}


def test_a_format_that_no_template_tells(folder: Path) -> None:
    asked = [answer for answer in RECORDED if answer.format == "pythonic"]
    with replay_server(folder, tool_call_parser="pythonic") as live:
        for answer in asked:
            reply = live.post("/v1/chat/completions", {**ask(script(answer), tools=ASKED), "model": None}).json()
            message = reply["choices"][0]["message"]
            calls = [
                (c["function"]["name"], json.loads(c["function"]["arguments"])) for c in message.get("tool_calls", [])
            ]
            assert calls == answer.calls
            assert (message["content"] or "") == answer.content


def test_no_tools_no_calls(by_flag: openai.OpenAI) -> None:
    for more in ({}, {"tools": ASKED, "tool_choice": "none"}):
        (choice,) = by_flag.chat.completions.create(**ask(script(TWO), **more)).choices
        assert choice.message.tool_calls is None
        assert choice.finish_reason == "stop"
        assert '"get_weather"' in (choice.message.content or "")


def test_special_tokens_that_mark_nothing_are_not_shown(by_flag: openai.OpenAI) -> None:
    (choice,) = by_flag.chat.completions.create(**ask("other", tools=ASKED)).choices
    assert choice.message.content == "Hi!"
    (choice,) = by_flag.chat.completions.create(**ask("plain", tools=ASKED)).choices
    assert choice.message.content == SCRIPTS["plain"]
    (choice,) = by_flag.chat.completions.create(**ask("broken", tools=ASKED)).choices
    assert choice.message.content == SCRIPTS["broken"]
    assert choice.finish_reason == "stop"


@pytest.mark.parametrize("opening", ["<think>\\n", ""])
def test_a_prompt_that_begins_the_reasoning(client: openai.OpenAI, folder: Path, opening: str) -> None:
    body = {
        "chat_template": template(HERMES, folder).replace("{{ opening }}", "{{ '" + opening + "' }}"),
        "chat_template_kwargs": {},
    }
    for name, content in (("closed", "Hello!"), ("open", None)):
        request = ask(name, tools=ASKED, extra_body=body)
        reply = client.chat.completions.create(**request)
        message = reply.choices[0].message
        assert message.content == content
        assert (message.model_extra or {})["reasoning"].startswith("Hm, let me")
        check_same(joined(client, **request), reply)


def test_parallel_calls_stop_strings_several_choices_and_logprobs(by_flag: openai.OpenAI) -> None:
    request = ask(script(TWO), tools=ASKED)
    one = by_flag.chat.completions.create(**request, parallel_tool_calls=False)
    assert [call.function.name for call in one.choices[0].message.tool_calls or []] == ["get_weather"]
    stopped = by_flag.chat.completions.create(**request, stop=["search"])
    assert [call.function.name for call in stopped.choices[0].message.tool_calls or []] == ["get_weather"]
    assert stopped.choices[0].finish_reason == "tool_calls"
    check_same(joined(by_flag, **request, stop=["search"]), stopped)
    several = by_flag.chat.completions.create(**request, n=3, logprobs=True)
    assert [len(choice.message.tool_calls or []) for choice in several.choices] == [2, 2, 2]
    ids = [call.id for choice in several.choices for call in choice.message.tool_calls or []]
    assert len(set(ids)) == 6
    count = several.usage.completion_tokens if several.usage else 0
    assert sum(len((choice.logprobs and choice.logprobs.content) or []) for choice in several.choices) == count
    streamed: dict[int, int] = {}
    for chunk in by_flag.chat.completions.create(**request, n=3, logprobs=True, stream=True):
        for choice in chunk.choices:
            begun = [call for call in choice.delta.tool_calls or [] if call.id]
            streamed[choice.index] = streamed.get(choice.index, 0) + len(begun)
            count -= len((choice.logprobs and choice.logprobs.content) or [])
    assert streamed == {0: 2, 1: 2, 2: 2}
    assert count == 0


def test_cut_short(by_flag: openai.OpenAI) -> None:
    """Wherever an answer is cut, its arguments are JSON, streamed and whole."""
    statuses = set()
    for most in range(5, 110, 4):
        request = ask(script(TWO), tools=ASKED) | {"max_tokens": most}
        reply = by_flag.chat.completions.create(**request)
        assert reply.choices[0].finish_reason == "length"
        given = [json.loads(call.function.arguments) for call in reply.choices[0].message.tool_calls or []]
        statuses.add(str(given))
        check_same(joined(by_flag, **request), reply)
    assert str([{"city": "Paris"}]) in statuses
    assert str([WEATHER[1]]) in statuses


def test_arguments_come_as_they_are_written(by_flag: openai.OpenAI) -> None:
    request = ask("long", tools=ASKED)
    reply = by_flag.chat.completions.create(**request)
    (call,) = reply.choices[0].message.tool_calls or []
    assert call.function.arguments == LONG
    check_same(joined(by_flag, **request), reply)


def test_a_call_that_breaks_off_is_none_to_carry_out(by_flag: openai.OpenAI) -> None:
    request = ask("broken later", tools=ASKED)
    reply = by_flag.chat.completions.create(**request)
    (call,) = reply.choices[0].message.tool_calls or []
    assert call.function.arguments == '{"a": "x"}'
    assert reply.choices[0].message.content == ", b: 1}}</tool_call> then"
    assert reply.choices[0].finish_reason == "stop"
    check_same(joined(by_flag, **request), reply)


def test_reasoning_can_be_left_out(by_flag: openai.OpenAI) -> None:
    request = ask(script(HERMES), tools=ASKED, extra_body={"include_reasoning": False})
    reply = by_flag.chat.completions.create(**request)
    assert reply.choices[0].message.model_extra == {"reasoning": None, "reasoning_content": None}
    assert joined(by_flag, **request)["reasoning"] == ""


def test_no_reasoning_is_null_where_there_may_be_some(by_flag: openai.OpenAI, without_reasoning: openai.OpenAI) -> None:
    """`message.reasoning` is what vLLM's users read; the client raises AttributeError where it is not there."""
    message: Any = by_flag.chat.completions.create(**ask("plain")).choices[0].message
    assert message.reasoning is message.reasoning_content is None
    assert without_reasoning.chat.completions.create(**ask("plain")).choices[0].message.model_extra == {}


def test_a_conversation_with_calls_goes_back(by_flag: openai.OpenAI) -> None:
    said = by_flag.chat.completions.create(**ask(script(HERMES), tools=ASKED)).choices[0].message
    call = (said.tool_calls or [])[0]
    messages: list[Any] = [
        {"role": "user", "content": "Weather?"},
        said.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "Rain"},
        {"role": "user", "content": "plain"},
    ]
    reply = by_flag.chat.completions.create(**(ask("") | {"messages": messages}), tools=ASKED)
    assert reply.choices[0].message.content == SCRIPTS["plain"]


SMALL: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris"]}, "days": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
FORCED: list[Any] = [
    {"type": "function", "function": {"name": "get_weather", "parameters": SMALL}},
    {"type": "function", "function": {"name": "noop", "parameters": {"type": "object", "additionalProperties": False}}},
]
NAMED: Any = {"type": "function", "function": {"name": "get_weather"}}
NOOP: Any = {"type": "function", "function": {"name": "noop"}}


@pytest.mark.parametrize("script", ["plain", "other", "broken", script(TWO)])
def test_a_call_is_forced(without_reasoning: openai.OpenAI, script: str) -> None:
    """Whatever the model would say, what comes is a call of the schema."""
    by_flag = without_reasoning
    for choice in ("required", NAMED, NOOP):
        request = ask(script, tools=FORCED, tool_choice=choice)
        if choice == "required":  # a named one is called once
            request["parallel_tool_calls"] = False
        reply = by_flag.chat.completions.create(**request)
        assert reply.choices[0].finish_reason == "tool_calls"
        (call,) = reply.choices[0].message.tool_calls or []
        given = json.loads(call.function.arguments)
        if choice != "required":
            assert call.function.name == choice["function"]["name"]
        if call.function.name == "get_weather":
            assert given["city"] == "Paris"
            assert given["days"] in range(10)
        else:
            assert (call.function.name, given) == ("noop", {})
        check_same(joined(by_flag, **request), reply)


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content"])
def test_reasoning_under_one_name(folder: Path, field: str) -> None:
    with replay_server(folder, reasoning_parser="qwen3", reasoning_field=field) as server:
        request = ask("closed")
        message = server.post("/v1/chat/completions", request).json()["choices"][0]["message"]
        chunks = server.events("/v1/chat/completions", request)[:-1]
        deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
        assert message[field].strip() == "".join(delta.get(field, "") for delta in deltas).strip() == "Hm, let me."
        assert {name for told in (message, *deltas) for name in told if name.startswith("reasoning")} == {field}


def allowed(mode: str, *names: str) -> Any:
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


def test_some_calls_are_allowed(without_reasoning: openai.OpenAI) -> None:
    """The prompt is that of all tools; what the model may call is not."""
    usage = []
    for name in ("get_weather", "noop"):
        request = ask("plain", tools=FORCED, tool_choice=allowed("required", name), parallel_tool_calls=False)
        reply = without_reasoning.chat.completions.create(**request)
        assert [call.function.name for call in reply.choices[0].message.tool_calls or []] == [name]
        usage.append(reply.usage and reply.usage.prompt_tokens)
        said = without_reasoning.chat.completions.create(**request | {"tool_choice": allowed("auto", name)})
        assert (said.choices[0].message.content, said.choices[0].message.tool_calls) == (SCRIPTS["plain"], None)
        called = without_reasoning.chat.completions.create(
            **request | ask("call at once", tool_choice=allowed("auto", name))
        )
        assert [call.function.name for call in called.choices[0].message.tool_calls or []][:1] == [name]
        asked: dict[str, Any] = {"model": "model", "input": "plain", "tools": [one["function"] for one in FORCED]}
        asked["tools"] = [{"type": "function", "strict": False, **tool} for tool in asked["tools"]]
        choice: Any = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": name}]}
        answer = without_reasoning.responses.create(**asked, tool_choice=choice, parallel_tool_calls=False)
        assert [item.name for item in answer.output if item.type == "function_call"] == [name]
        assert answer.tool_choice.to_dict() == choice  # type: ignore[union-attr]
    all_of_them = allowed("required", "get_weather", "noop")
    reply = without_reasoning.chat.completions.create(**ask("plain", tools=FORCED, tool_choice=all_of_them))
    assert reply.choices[0].finish_reason == "tool_calls"
    assert {*usage} == {reply.usage and reply.usage.prompt_tokens}


def test_strict_functions(by_flag: openai.OpenAI) -> None:
    strict: list[Any] = [{**FORCED[0], "function": {**FORCED[0]["function"], "strict": True}}, FORCED[1]]
    reply = by_flag.chat.completions.create(**ask("plain", tools=strict))
    assert reply.choices[0].message.content == SCRIPTS["plain"]
    (call, *_) = by_flag.chat.completions.create(**ask(script(TWO), tools=strict)).choices[0].message.tool_calls or []
    assert json.loads(call.function.arguments).keys() == {"city", "days"}
    (call, *_) = by_flag.chat.completions.create(**ask("long", tools=strict)).choices[0].message.tool_calls or []
    assert "text" in json.loads(call.function.arguments)  # noop is not strict: its parameters are not enforced
    other: Any = {**SMALL, "properties": {**SMALL["properties"], "city": {"enum": ["Oslo"]}}}
    strict[0] = {"type": "function", "function": {"name": "get_weather", "parameters": other, "strict": True}}
    (call, *_) = by_flag.chat.completions.create(**ask(script(TWO), tools=strict)).choices[0].message.tool_calls or []
    assert json.loads(call.function.arguments)["city"] == "Oslo"  # not what the model would say
    reply = by_flag.chat.completions.create(**ask("plain", tools=strict, tool_choice="none"))  # then none is strict
    assert reply.choices[0].message.content == SCRIPTS["plain"]


def test_a_form_and_tools(without_reasoning: openai.OpenAI) -> None:
    """An answer is a call, or has the form."""
    schema: Any = {
        "name": "x",
        "schema": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
    }
    form: Any = {"type": "json_schema", "json_schema": schema}
    for tools in (FORCED, [{**FORCED[0], "function": {**FORCED[0]["function"], "strict": True}}]):
        request = ask("answer in json", tools=tools, response_format=form)
        said = without_reasoning.chat.completions.create(**request).choices[0].message
        assert (said.content, said.tool_calls) == ('{"a": 12}', None)
        request = ask("call at once", tools=tools, response_format=form)
        called = without_reasoning.chat.completions.create(**request).choices[0].message
        assert [call.function.name for call in called.tool_calls or []][:1] == ["get_weather"]
    forced = ask("answer in json", tools=FORCED, tool_choice=NAMED, response_format=form)
    (call,) = without_reasoning.chat.completions.create(**forced).choices[0].message.tool_calls or []
    assert json.loads(call.function.arguments)["city"] == "Paris"


@pytest.mark.parametrize(
    ("change", "param", "words"),
    [
        ({"tool_choice": "required", "tools": None}, "tool_choice", "tools are missing"),
        ({"tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice", "not in tools"),
        ({"tool_choice": "sometimes"}, "tool_choice", "required"),
        ({"tool_choice": allowed("auto", "noop", "x")}, "tool_choice", "not in tools"),
        ({"tool_choice": allowed("auto", "noop"), "tools": None}, "tool_choice", "not in tools"),
        ({"tool_choice": allowed("required")}, "tool_choice", "allowed_tools"),
        ({"tool_choice": {**allowed("auto", "noop"), "function": {"name": "noop"}}}, "tool_choice", "allowed_tools"),
        (
            {
                "tool_choice": "required",
                "tools": [{"type": "function", "function": {"name": "f", "parameters": {"contains": {}}}}],
            },
            "tools",
            "'contains'",
        ),
        ({"tools": [{"type": "function", "function": {"name": "no op"}}]}, "tools[0].function.name", "regex"),
        ({"tools": [FORCED[1]] * 513}, "tools", "512"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "description": "x" * 1_100_000}}]},
            "tools[0]",
            "JSON",
        ),
        ({"reasoning_effort": "high"}, "reasoning_effort", "template"),
    ],
)
def test_what_cannot_be_asked_for(by_flag: openai.OpenAI, change: dict[str, Any], param: str, words: str) -> None:
    body = {**ask("plain"), "tools": FORCED, **change}
    with pytest.raises(openai.BadRequestError, match=re.escape(words)) as caught:
        by_flag.post("/chat/completions", body=body, cast_to=object)
    assert caught.value.param == param


@pytest.mark.parametrize("opening", ["<think>\\n", "<think>\\n\\n</think>\\n\\n", ""])
def test_a_form_leaves_room_for_reasoning(client: openai.OpenAI, folder: Path, opening: str) -> None:
    template_text = template(HERMES, folder).replace("{{ opening }}", "{{ '" + opening + "' }}")
    schema = {"name": "x", "schema": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}}
    name = "json" if opening != "<think>\\n\\n</think>\\n\\n" else "json at once"
    request = ask(
        name,
        extra_body={"chat_template": template_text},
        response_format={"type": "json_schema", "json_schema": schema},
    )
    reply = client.chat.completions.create(**request)
    message = reply.choices[0].message
    assert json.loads(message.content or "") == {"a": 12}
    assert (message.model_extra or {}).get("reasoning") == ("So." if name == "json" else None)
    check_same(joined(client, **request), reply)
    body = {"chat_template": template_text, "structured_outputs": {"regex": "(yes|no)[.]"}}
    only = client.chat.completions.create(**ask(name, extra_body=body))
    assert only.choices[0].message.content in ("yes.", "no.")


BARE = "{{ '<s>' }}{% for message in messages[:-1] %}{{ message | tojson }}{% endfor %}" + (
    "{{ '<|user|>' + messages[-1].content + '<|assistant|>' }}"
)


def test_a_template_that_shows_no_tools(server: LiveServer, client: openai.OpenAI) -> None:
    """They are told in the system message, as hermes has them; so are calls and results of before."""
    call = {"id": "c", "type": "function", "function": {"name": "noop", "arguments": '{"a": 1}'}}
    talk: list[Any] = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Go"},
        {"role": "assistant", "content": "Well", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "12"},
        {"role": "assistant", "content": "Twelve"},
        {"role": "user", "content": script(TWO)},
    ]
    body = {"messages": talk, "tools": ASKED, "chat_template": BARE}
    ids = server.post("/tokenize", body).json()["tokens"]
    prompt = server.post("/detokenize", {"tokens": ids}).json()["prompt"]
    told = [json.loads(part) for part in re.findall(r"\{\"role\".*?\}(?=\{\"role\"|<\|user\|>)", prompt)]
    assert told[0]["content"].startswith("Be kind.\n\nYou can call")
    assert all(json.dumps(tool) in told[0]["content"] for tool in ASKED)
    assert told[2]["content"] == 'Well\n\n<tool_call>\n{"name": "noop", "arguments": {"a": 1}}\n</tool_call>'
    assert told[3] == {"role": "user", "content": "<tool_response>\n12\n</tool_response>"}
    reply = client.chat.completions.create(
        model="model", messages=talk, tools=ASKED, extra_body={"chat_template": BARE}
    )
    assert [one.function.name for one in reply.choices[0].message.tool_calls or []] == ["get_weather", "search-all"]


@pytest.mark.parametrize("more", [{}, {"tools": []}, {"tools": ASKED, "tool_choice": "none"}])
def test_earlier_calls_are_told_without_tools_too(server: LiveServer, more: dict[str, Any]) -> None:
    """By a template that knows of no tools; one that does has them as they are."""
    call = {"id": "c", "type": "function", "function": {"name": "noop", "arguments": '{"a": 1}'}}
    result = {"role": "tool", "tool_call_id": "c", "content": "12"}
    turns: list[Any] = [{"role": "assistant", "tool_calls": [call]}, result]
    body = {"messages": [{"role": "user", "content": "Go"}, *turns], **more}
    shown = []
    for read in ("m.content", "m.tool_calls | tojson if m.tool_calls else m.content"):
        source = "{% for m in messages %}{{ '<' + m.role + '>' + (" + read + ") }}{% endfor %}"
        ids = server.post("/tokenize", {**body, "chat_template": source}).json()["tokens"]
        shown.append(server.post("/detokenize", {"tokens": ids}).json()["prompt"])
    told = '<tool_call>\n{"name": "noop", "arguments": {"a": 1}}\n</tool_call>'
    assert shown[0].endswith(f"<user>Go<assistant>{told}<user><tool_response>\n12\n</tool_response>")
    assert "You can call" not in shown[0]
    assert shown[1].endswith("<tool>12")


@pytest.mark.parametrize("depth", [70, 400, 900])
def test_deep_schemas(client: openai.OpenAI, by_flag: openai.OpenAI, depth: int) -> None:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    tools: Any = [{"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": schema}}}}]
    for one, body in ((client, {"chat_template": BARE}), (by_flag, {})):
        for choice in ("auto", "required"):
            with pytest.raises(openai.BadRequestError, match=r"nest|deep"):
                one.chat.completions.create(**ask("plain", tools=tools, tool_choice=choice, extra_body=body))

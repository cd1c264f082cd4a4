"""Reasoning, tool calls and schemas by /v1/responses and /v1/messages: stock clients, real front, scripted answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import anthropic
import openai
import pydantic
import pytest
from replay import replay_model, replay_server
from serving import LiveServer
from test_bad_input import check_form
from test_real_engine import start

from octavo.base.types.output import CompletionOutput, RequestOutput
from octavo.base.types.sampling import SamplingParams
from octavo.server.anthropic.build import MessageBuilder
from octavo.server.openai.chat import ChatForm
from octavo.server.openai.conversation import _message
from octavo.server.openai.convert import Generation, Prompt
from octavo.server.openai.responses.build import ResponseBuilder
from octavo.server.openai.responses.tools import ToolNames
from octavo.server.openai.responses.types import ResponsesRequest
from octavo.server.openai.types import ChatRequest, FunctionCall, Message, ToolCall
from octavo.text.tools.calls import JoinedCalls
from octavo.text.tools.choose import tool_format
from octavo.text.tools.parser import OutputParser, Parsing

CALLS = (
    '<tool_call>{"name": "look", "arguments": {"at": "Paris"}}</tool_call>\n'
    '<tool_call>{"name": "look", "arguments": {"at": "Rome"}}</tool_call>'
)
SCRIPTS = {
    "all": f"<think>\nHm, let me.\n</think>\n\nI look. {CALLS}",
    "calls": CALLS,
    "behind": f"<think>\nHm.\n</think>\n\n{CALLS}\nSo <b>it</b> is.",
    "around": f"I look.\n{CALLS}\n So it is.",
    "thought": "<think>\nHm, let me.\n</think>\n\nHello!",
    "plain": "A plain answer.",
    "long": '<tool_call>{"name": "look", "arguments": {"at": "' + " ".join(map(str, range(60))) + '"}}</tool_call>',
    "broken": '<tool_call>{"name": "look", "arguments": {"at": "x", at: 1}}</tool_call>',
}
SCRIPTS["far"] = CALLS.replace("look", "mcp__maps__look")
SCRIPTS["near"] = CALLS
SCHEMA = {"type": "object", "properties": {"at": {"type": "string"}}, "required": ["at"]}
PLACES = [{"at": "Paris"}, {"at": "Rome"}]


@pytest.fixture(scope="module")
def folder(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return replay_model(checkpoint("llama"), tmp_path_factory.mktemp("replay") / "model", SCRIPTS)


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[LiveServer]:
    with replay_server(folder, tool_call_parser="hermes", reasoning_parser="qwen3", served_model_name=["m"]) as live:
        yield live


@pytest.fixture(scope="module")
def ours(server: LiveServer) -> Iterator[openai.OpenAI]:
    with server.openai() as client:
        yield client


@pytest.fixture(scope="module")
def theirs(server: LiveServer) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client:
        yield client


def respond(script: str) -> dict[str, Any]:
    tool = {"type": "function", "name": "look", "parameters": SCHEMA, "strict": False}
    return {"model": "m", "input": script, "tools": [tool], "max_output_tokens": 500}


def items(response: Any) -> list[Any]:
    """What a response holds, without the names made for it."""
    found: list[Any] = []
    for item in response.output:
        if item.type == "function_call":
            found.append((item.type, item.name, json.loads(item.arguments)))
        else:
            found.append((item.type, "".join(part.text for part in item.content)))
    return found


def messages_of(script: str, **more: Any) -> dict[str, Any]:
    tool = {"name": "look", "input_schema": SCHEMA}
    asked = {"model": "m", "messages": [{"role": "user", "content": script}], "tools": [tool], "max_tokens": 2000}
    return {**asked, **more}


def blocks(message: Any) -> list[Any]:
    return [block.model_dump(include={"type", "thinking", "text", "name", "input"}) for block in message.content]


EXPECTED: dict[str, list[Any]] = {
    "all": [
        ("reasoning", "Hm, let me."),
        ("message", "I look."),
        *(("function_call", "look", place) for place in PLACES),
    ],
    "calls": [("function_call", "look", place) for place in PLACES],
    "thought": [("reasoning", "Hm, let me."), ("message", "Hello!")],
    "plain": [("message", "A plain answer.")],
    "behind": [
        ("reasoning", "Hm."),
        *(("function_call", "look", place) for place in PLACES),
        ("message", "So <b>it</b> is."),
    ],
    "around": [
        ("message", "I look."),
        *(("function_call", "look", place) for place in PLACES),
        ("message", "So it is."),
    ],
}


@pytest.mark.parametrize("script", EXPECTED)
def test_responses(ours: openai.OpenAI, script: str) -> None:
    whole = ours.responses.create(**respond(script))
    assert whole.status == "completed"
    assert items(whole) == EXPECTED[script]
    with ours.responses.stream(**respond(script)) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert items(final) == items(whole)
    assert [event.sequence_number for event in events if hasattr(event, "sequence_number")] == list(range(len(events)))
    assert final.usage.output_tokens == whole.usage.output_tokens  # type: ignore[union-attr]
    told = whole.usage.output_tokens_details.reasoning_tokens  # type: ignore[union-attr]
    assert final.usage.output_tokens_details.reasoning_tokens == told  # type: ignore[union-attr]
    assert (told > 0) == (script in ("all", "thought", "behind"))
    names = [event.type for event in events]
    for kind, *_ in EXPECTED[script]:
        part = {"reasoning": "reasoning_text", "message": "output_text", "function_call": "function_call_arguments"}
        assert f"response.{part[kind]}.delta" in names
        assert f"response.{part[kind]}.done" in names
    joined = "".join(event.delta for event in events if event.type == "response.reasoning_text.delta")
    assert joined == "".join(text for kind, text, *_ in items(whole) if kind == "reasoning")


@pytest.mark.parametrize("script", ["all", "behind", "around", "thought", "plain", "calls", "broken"])
def test_log_probabilities_are_those_of_the_text(ours: openai.OpenAI, script: str) -> None:
    asked = {**respond(script), "top_logprobs": 1, "include": ["message.output_text.logprobs"]}
    events = list(ours.responses.create(**asked, stream=True))
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    for response in (ours.responses.create(**asked), events[-1].response):
        said = [item.content[0] for item in response.output if item.type == "message"]
        assert bool(said) == (script != "calls")
        for part in said:
            told = "".join(entry.token for entry in part.logprobs)
            assert "".join(told.split()) == "".join(part.text.split())
    streamed = [(entry.token, entry.logprob) for event in deltas for entry in event.logprobs]
    assert streamed == [(entry.token, entry.logprob) for part in said for entry in part.logprobs]


@pytest.mark.parametrize("most", [2000, 150, 90])
def test_arguments_come_while_they_are_written(ours: openai.OpenAI, theirs: anthropic.Anthropic, most: int) -> None:
    """Events of a call on both routes, also where it is cut short: what is told is what the whole answer has."""
    asked = {**respond("long"), "max_output_tokens": most}
    whole = ours.responses.create(**asked)
    with ours.responses.stream(**asked) as stream:
        events = list(stream)
    assert items(events[-1].response) == items(whole)  # type: ignore[union-attr]
    (call,) = [item for item in whole.output if item.type == "function_call"]
    assert call.status == ("completed" if most == 2000 else "incomplete")
    pieces = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    assert "".join(pieces) == call.arguments
    names = [event.type for event in events if getattr(event, "output_index", None) == 0]
    assert names[:1] == ["response.output_item.added"]
    assert names[-2:] == ["response.function_call_arguments.done", "response.output_item.done"]
    message = theirs.messages.create(**messages_of("long", max_tokens=most))
    with theirs.messages.stream(**messages_of("long", max_tokens=most)) as told:
        parts = [event.partial_json for event in told if event.type == "input_json"]
        assert blocks(told.get_final_message()) == blocks(message)
    assert json.loads("".join(parts)) == json.loads(call.arguments) == message.content[0].input  # type: ignore[union-attr]
    assert message.stop_reason == ("tool_use" if most == 2000 else "max_tokens")


def outputs(text: str) -> Iterator[RequestOutput]:
    """What an engine with a token a character gives, where each is read at once."""
    parser, calls = OutputParser(tool_format("hermes", ""), None, tools={"look": SCHEMA}), JoinedCalls()
    for char in text:
        delta = parser.feed(char)
        calls.add(delta.calls)
        one = CompletionOutput(0, delta.content, [5], tool_calls=calls.take(delta=True))
        yield RequestOutput("id", None, [1], None, [one], finished=False)


def test_templates_see_null_where_a_message_only_calls() -> None:
    """As clients send it back; many templates tell a call by `content is none`."""
    call = ToolCall(function=FunctionCall(name="look", arguments="{}"))
    assert _message(0, Message(role="assistant", tool_calls=[call]))["content"] is None
    assert "content" not in _message(0, Message(role="assistant"))


def test_events_follow_the_text() -> None:
    """A call's name comes before its arguments are over, and those in pieces: on every route."""
    text = SCRIPTS["calls"]
    request = ChatRequest(messages=[Message(role="user", content="x")])
    made = Generation(
        request,
        [Prompt([1])],
        SamplingParams(),
        "id",
        "m",
        "internal",
        0,
        Parsing(tool_format("hermes", ""), None),
    )
    chat, response, message = (
        ChatForm(made),
        ResponseBuilder(ResponsesRequest(input="x", stream=True), ToolNames([]), made),
        MessageBuilder(made, with_thinking=False, max_model_len=9),
    )
    told = [(chat.pieces(0, one), response.piece(0, one), message.piece(0, one)) for one in outputs(text)]
    chunks = [json.loads(piece)["delta"]["tool_calls"][0] for pieces, *_ in told[1:] for piece in pieces]
    heads = [chunk for chunk in chunks if "id" in chunk]
    assert [(head["index"], head["type"], head["function"]) for head in heads] == [
        (number, "function", {"name": "look", "arguments": ""}) for number in (0, 1)
    ]
    pieces = [chunk["function"]["arguments"] for chunk in chunks if "id" not in chunk and chunk["index"] == 0]
    assert pieces == ['{"at": "', *"Paris", '"', "}"]
    events = [json.loads(line[6:]) for _, sent, _ in told for line in sent.decode().splitlines() if line[:1] == "d"]
    assert [event["delta"] for event in events if event["type"].endswith("delta")][: len(pieces)] == pieces
    kinds = ["output_item.added", *["function_call_arguments.delta"] * len(pieces)]
    kinds += ["function_call_arguments.done", "output_item.done"]
    assert [event["type"] for event in events][: len(kinds)] == [f"response.{kind}" for kind in kinds]
    assert events[len(kinds) - 2]["name"] == "look"
    events = [json.loads(line[6:]) for *_, sent in told for line in sent.decode().splitlines() if line[:1] == "d"]
    kinds = ["content_block_start", *["content_block_delta"] * len(pieces), "content_block_stop"]
    assert [event["type"] for event in events][: len(kinds)] == kinds
    assert [event["delta"]["partial_json"] for event in events[1 : len(kinds) - 1]] == pieces


def test_a_call_that_breaks_off(ours: openai.OpenAI, theirs: anthropic.Anthropic) -> None:
    call, rest = ours.responses.create(**respond("broken")).output
    assert (call.arguments, call.status) == ('{"at": "x"}', "incomplete")  # type: ignore[union-attr]
    assert rest.type == "message"
    message = theirs.messages.create(**messages_of("broken"))
    assert [block.type for block in message.content] == ["tool_use", "text"]
    assert message.stop_reason == "end_turn"


def test_a_loop_of_calls(ours: openai.OpenAI, server: LiveServer) -> None:
    first = ours.responses.create(**respond("all"))
    calls = [item for item in first.output if item.type == "function_call"]
    assert len({call.call_id for call in calls}) == 2
    results: list[Any] = [
        {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"} for call in calls
    ]
    told = {**respond("plain"), "input": [*results, {"role": "user", "content": "plain"}]}
    by_store = ours.responses.create(**told, previous_response_id=first.id)
    sent_back: list[Any] = [{"role": "user", "content": "all"}, *first.output, *told["input"]]
    by_hand = ours.responses.create(**{**told, "input": sent_back})
    assert items(by_store) == items(by_hand) == [("message", "A plain answer.")]
    assert by_store.usage.input_tokens == by_hand.usage.input_tokens  # type: ignore[union-attr]


@pytest.mark.parametrize("script", ["far", "near"])
@pytest.mark.parametrize("name", ["mcp__maps", "mcp__maps__"])
def test_functions_in_a_namespace(ours: openai.OpenAI, server: LiveServer, script: str, name: str) -> None:
    """As Codex sends those of MCP servers. Models that leave the namespace out are understood."""
    tool = {"type": "function", "name": "look", "description": "Looks.", "parameters": SCHEMA, "strict": False}
    other = {**tool, "name": "go"}
    spaces: list[Any] = [other, {"type": "namespace", "name": name, "description": "Maps.", "tools": [tool, other]}]
    asked: dict[str, Any] = {**respond(script), "tools": spaces}
    first = ours.responses.create(**asked)
    calls = [item for item in first.output if item.type == "function_call"]
    assert [(call.namespace, call.name) for call in calls] == [(name, "look")] * 2
    assert first.tools[1].to_dict()["name"] == name
    with ours.responses.stream(**asked) as stream:
        streamed = [event.item for event in stream if event.type == "response.output_item.done"]
    assert [(item.namespace, item.name) for item in streamed if item.type == "function_call"] == [(name, "look")] * 2
    results: list[Any] = [
        {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"} for call in calls
    ]
    told = {**asked, "input": [*results, {"role": "user", "content": "plain"}]}
    by_store = ours.responses.create(**told, previous_response_id=first.id)
    sent_back = [{"role": "user", "content": script}, *first.output, *told["input"]]
    by_hand = ours.responses.create(**{**told, "input": sent_back})
    assert items(by_store) == items(by_hand) == [("message", "A plain answer.")]
    assert by_store.usage.input_tokens == by_hand.usage.input_tokens  # type: ignore[union-attr]
    listed = ours.responses.input_items.list(by_hand.id, order="asc").data
    assert [item.namespace for item in listed if item.type == "function_call"] == [name] * 2
    # the model is shown one function each, the namespace's description before the first
    shown = [other, {**tool, "name": "mcp__maps__look", "description": "Maps.\n\nLooks."}]
    shown.append({**other, "name": "mcp__maps__go"})
    counts = []
    for tools in (spaces, shown):
        counted = server.post("/v1/responses/input_tokens", {"model": "m", "input": "x", "tools": tools}).json()
        counts.append(counted["input_tokens"])
    assert counts[0] == counts[1]


def test_namespaces_that_cannot_be(server: LiveServer) -> None:
    tool = {"type": "function", "name": "look", "parameters": SCHEMA}

    def refused(*tools: Any, **more: Any) -> str | None:
        error = check_form(server.post("/v1/responses", {"input": "plain", "tools": tools, **more}))
        return error["param"]  # type: ignore[no-any-return]

    space = {"type": "namespace", "name": "a", "tools": [tool]}
    assert refused({**tool, "name": "a__look"}, space) == "tools"
    assert refused(space, {**space, "tools": [{**tool, "name": "a b"}]}) == "tools[1].tools[0]"
    assert refused(tool, {**space, "name": "a b"}) == "tools[1].tools[0]"
    assert refused({**space, "tools": [{"type": "custom", "name": "x"}]}) == "tools"
    assert refused({"type": "web_search", "external_web_access": False}) == "tools"
    assert refused(space, tool_choice={"type": "function", "name": "go"}) == "tool_choice"


def test_forced_calls(folder: Path) -> None:
    """Whatever the model would say, what comes is a call of the schema."""
    closed = {"type": "object", "properties": {"at": {"enum": ["Paris"]}}, "required": ["at"]}
    closed["additionalProperties"] = False
    with replay_server(folder, tool_call_parser="hermes", reasoning_parser="none", served_model_name=["m"]) as server:
        tool = {"type": "function", "name": "look", "parameters": closed, "strict": True}
        body = {**respond("plain"), "tools": [tool], "tool_choice": {"type": "function", "name": "look"}}
        made = server.post("/v1/responses", {**body, "parallel_tool_calls": False}).json()
        (call,) = made["output"]
        assert (call["name"], json.loads(call["arguments"])) == ("look", {"at": "Paris"})
        body = messages_of("plain", tool_choice={"type": "any", "disable_parallel_tool_use": True})
        made = server.post("/v1/messages", {**body, "tools": [{"name": "look", "input_schema": closed}]}).json()
        (block,) = made["content"]
        assert (block["name"], block["input"], made["stop_reason"]) == ("look", {"at": "Paris"}, "tool_use")
        wrong = {**tool, "parameters": {"type": "stsring"}}
        error = check_form(server.post("/v1/responses", {**respond("plain"), "tools": [wrong]}))
        assert error["param"] == "tools[0].parameters"


@pytest.mark.parametrize("script", EXPECTED)
@pytest.mark.parametrize("thinking", [True, False])
def test_messages(theirs: anthropic.Anthropic, script: str, thinking: bool) -> None:
    more = {"thinking": {"type": "enabled", "budget_tokens": 1024}} if thinking else {}
    whole = theirs.messages.create(**messages_of(script, **more))
    kinds = {"reasoning": "thinking", "message": "text", "function_call": "tool_use"}
    expected = [kinds[kind] for kind, *_ in EXPECTED[script] if thinking or kind != "reasoning"]
    assert [block.type for block in whole.content] == expected
    assert whole.stop_reason == ("tool_use" if "tool_use" in expected else "end_turn")
    assert [block.input for block in whole.content if block.type == "tool_use"] == PLACES * ("tool_use" in expected)
    with theirs.messages.stream(**messages_of(script, **more)) as stream:
        final = stream.get_final_message()
    assert blocks(final) == blocks(whole)
    assert (final.stop_reason, final.usage.output_tokens) == (whole.stop_reason, whole.usage.output_tokens)
    assert final.usage.output_tokens_details == whole.usage.output_tokens_details
    thought = whole.usage.output_tokens_details.thinking_tokens  # type: ignore[union-attr]
    assert (thought > 0) == (script in ("all", "thought", "behind"))
    assert thought < whole.usage.output_tokens


def test_thinking_is_signed_in_a_stream_too(server: LiveServer) -> None:
    """The AI SDK sends back no thinking of which it got no signature, be it an empty one."""
    events = server.events("/v1/messages", messages_of("thought", thinking={"type": "adaptive"}))
    told = [event.get("delta", event) for event in events if event.get("index") == 0]
    kinds = [one["type"] for one in told]
    assert kinds[:2] + kinds[-2:] == ["content_block_start", "thinking_delta", "signature_delta", "content_block_stop"]
    assert told[-2]["signature"] == ""


def test_a_loop_of_uses(theirs: anthropic.Anthropic) -> None:
    asked = messages_of("all", thinking={"type": "adaptive"})
    first = theirs.messages.create(**asked)
    uses = [block for block in first.content if block.type == "tool_use"]
    results = [{"type": "tool_result", "tool_use_id": use.id, "content": "sunny"} for use in uses]
    asked["messages"] += [
        {"role": "assistant", "content": first.content},
        {"role": "user", "content": [*results, {"type": "text", "text": "plain"}]},
    ]
    assert theirs.messages.create(**asked).content[0].text == "A plain answer."  # type: ignore[union-attr]
    counted = theirs.messages.count_tokens(model="m", messages=asked["messages"], tools=asked["tools"])
    assert counted.input_tokens > 20


def test_schemas_are_enforced_and_named_by_their_route(ours: openai.OpenAI, theirs: anthropic.Anthropic) -> None:
    wrong = {"type": "stsring"}
    with pytest.raises(openai.BadRequestError) as caught:
        ours.responses.create(
            model="m", input="plain", text={"format": {"type": "json_schema", "name": "a", "schema": wrong}}
        )
    assert str(caught.value.param).startswith("text.format")
    form = {"type": "json_schema", "schema": wrong}
    asked = messages_of("plain", tools=[])
    with pytest.raises(anthropic.BadRequestError, match=r"output_config\.format"):
        theirs.messages.create(**asked, output_config={"format": form})
    with pytest.raises(anthropic.BadRequestError, match=r"output_format\b.*stsring"):
        theirs.messages.create(**asked, extra_body={"output_format": form})


class Pet(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    kind: Literal["cat", "dog"]
    good: bool


def test_answers_of_a_schema(checkpoint: Callable[[str], Path]) -> None:
    with start(checkpoint("llama")) as real:
        with real.openai() as client:
            model = client.models.list().data[0].id
            asked: Any = {"model": model, "input": "A pet", "max_output_tokens": 90, "temperature": 0}
            assert isinstance(client.responses.parse(**asked, text_format=Pet).output_parsed, Pet)
            with client.responses.stream(**asked, text_format=Pet) as stream:
                assert isinstance(stream.get_final_response().output_parsed, Pet)
        form = {"type": "json_schema", "schema": Pet.model_json_schema()}
        with anthropic.Anthropic(base_url=real.url, api_key="none", max_retries=0) as theirs:
            for named in ({"output_config": {"format": form}}, {"output_format": form}):
                made = theirs.messages.create(
                    model=model,
                    messages=[{"role": "user", "content": "A pet"}],
                    max_tokens=90,
                    extra_body={"temperature": 0, **named},
                )
                assert isinstance(Pet.model_validate_json(made.content[0].text), Pet)  # type: ignore[union-attr]


def test_every_route_says_the_same(checkpoint: Callable[[str], Path]) -> None:
    """Greedy tokens do not depend on the protocol that asks for them."""
    said = [{"role": "system", "content": "Be brief"}, {"role": "user", "content": "The quick brown"}]
    common: dict[str, Any] = {"temperature": 0, "max_tokens": 24}
    with start(checkpoint("llama")) as real:
        chat = {"messages": said, **common}
        body = real.post("/v1/chat/completions", chat).json()
        expected, tokens = body["choices"][0]["message"]["content"], body["usage"]["prompt_tokens"]
        asked = {"input": said[1:], "instructions": "Be brief", "temperature": 0, "max_output_tokens": 24}
        body = real.post("/v1/responses", asked).json()
        assert (body["output"][0]["content"][0]["text"], body["usage"]["input_tokens"]) == (expected, tokens)
        asked = {"model": real.app.model, "system": "Be brief", "messages": said[1:], **common}
        body = real.post("/v1/messages", asked).json()
        usage = body["usage"]
        assert body["content"][0]["text"] == expected
        assert usage["input_tokens"] + usage["cache_read_input_tokens"] == tokens
        answer = real.run(lambda: real.app.ask("/v1/chat/completions", json.dumps(chat).encode()))
        assert json.loads(answer.body)["choices"][0]["message"]["content"] == expected

"""anthropic-python: create, the stream helper, a loop of tools, thinking, parse, count_tokens, errors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anthropic
import httpx2
import pytest
from conftest import admin
from pydantic import BaseModel
from serving import LiveServer

GREEDY: dict[str, Any] = {"extra_body": {"temperature": 0}}  # the client has no argument for it any more
PARIS: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]
TOOLS: list[Any] = [
    {
        "name": "get_weather",
        "description": "How warm it is.",
        "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    }
]


class Person(BaseModel):
    name: str
    age: int


@pytest.fixture(scope="module")
def client(smollm2: str) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=smollm2, api_key="none") as client:
        yield client


@pytest.fixture(scope="module")
def scripted(replay: LiveServer) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=replay.url, api_key="none") as client:
        yield client


def said(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def test_create(client: anthropic.Anthropic) -> None:
    reply = client.messages.create(model="smollm2", max_tokens=64, messages=PARIS, system="Be brief.", **GREEDY)
    assert "Paris" in "".join(block.text for block in reply.content if block.type == "text")
    assert (reply.type, reply.role, reply.stop_reason) == ("message", "assistant", "end_turn")
    assert reply.usage.input_tokens > 0
    assert reply.usage.output_tokens > 0


def test_stream(client: anthropic.Anthropic) -> None:
    ask: dict[str, Any] = {"model": "smollm2", "max_tokens": 64, "messages": PARIS, **GREEDY}
    with client.messages.stream(**ask) as stream:
        text = "".join(stream.text_stream)
        whole = stream.get_final_message()
    assert stream.get_final_text() == text == "The capital of France is Paris."
    same = client.messages.create(**ask)
    assert [block.text for block in same.content if block.type == "text"] == [text]
    assert (same.stop_reason, same.usage.output_tokens) == (whole.stop_reason, whole.usage.output_tokens)


def test_count_tokens(client: anthropic.Anthropic) -> None:
    count = client.messages.count_tokens(model="smollm2", messages=PARIS).input_tokens
    usage = client.messages.create(model="smollm2", max_tokens=1, messages=PARIS).usage
    assert count == usage.input_tokens + (usage.cache_read_input_tokens or 0)


def test_parse(client: anthropic.Anthropic) -> None:
    asked = said("Ada is 36 years old. Give her name and age as JSON.")
    reply = client.messages.parse(model="smollm2", max_tokens=100, messages=asked, output_format=Person, **GREEDY)
    assert isinstance(reply.parsed_output, Person)


@pytest.mark.parametrize("stream", [False, True])
def test_a_loop_of_tools(scripted: anthropic.Anthropic, stream: bool) -> None:
    messages = said("What is the weather in Paris?")

    def turn() -> Any:
        ask: dict[str, Any] = {"model": "scripted", "max_tokens": 500, "messages": messages, "tools": TOOLS}
        if not stream:
            return scripted.messages.create(**ask)
        with scripted.messages.stream(**ask) as events:
            return events.get_final_message()

    reply = turn()
    assert reply.stop_reason == "tool_use"
    text, call = reply.content
    assert text.text == "I will look."
    assert (call.type, call.name, call.input) == ("tool_use", "get_weather", {"city": "Paris"})
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "22 degrees in Paris"}
    messages += [{"role": "assistant", "content": reply.content}, {"role": "user", "content": [result]}]
    last = turn()
    assert [block.text for block in last.content] == ["It is 22 degrees in Paris."]
    assert last.stop_reason == "end_turn"


def test_the_tool_runner(scripted: anthropic.Anthropic) -> None:
    @anthropic.beta_tool
    def get_weather(city: str) -> str:
        """How warm it is.

        Args:
            city: Where.
        """
        return f"22 degrees in {city}"

    runner = scripted.beta.messages.tool_runner(
        model="scripted", max_tokens=500, tools=[get_weather], messages=said("What is the weather in Paris?")
    )
    assert [block.text for block in runner.until_done().content] == ["It is 22 degrees in Paris."]


def test_thinking(scripted: anthropic.Anthropic) -> None:
    ask: dict[str, Any] = {"model": "scripted", "max_tokens": 2000, "messages": said("Think")}
    thinking = {"type": "enabled", "budget_tokens": 1024}
    with scripted.messages.stream(**ask, thinking=thinking) as stream:
        heard = "".join(event.thinking for event in stream if event.type == "thinking")
        streamed = stream.get_final_message()
    for reply in (streamed, scripted.messages.create(**ask, thinking=thinking)):
        thought, text = reply.content
        assert (thought.type, text.type) == ("thinking", "text")
        assert (thought.thinking, text.text) == ("Two and two.", "Four.")
    assert heard == "Two and two."
    again = [*ask["messages"], {"role": "assistant", "content": streamed.content}, *said("Hello")]
    reply = scripted.messages.create(**{**ask, "messages": again}, thinking={"type": "adaptive"})
    assert [block.text for block in reply.content if block.type == "text"] == ["Hello, there!"]


def test_models(client: anthropic.Anthropic) -> None:
    (model,) = client.models.list()
    assert model.id == "smollm2"


def test_a_paused_server_is_tried_again(smollm2: str) -> None:
    seen: list[httpx2.Response] = []

    def note(response: httpx2.Response) -> None:
        seen.append(response)
        if response.is_error:
            admin(smollm2, "/resume")

    admin(smollm2, "/pause")
    http = httpx2.Client(event_hooks={"response": [note]})
    with anthropic.Anthropic(base_url=smollm2, api_key="none", http_client=http) as client:
        reply = client.messages.create(model="smollm2", max_tokens=64, messages=PARIS, **GREEDY)
    assert [block.text for block in reply.content if block.type == "text"] == ["The capital of France is Paris."]
    assert [response.status_code for response in seen] == [529, 200]
    assert float(seen[0].headers["retry-after"]) > 0


def test_errors_are_the_clients_own(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError, match="none-such"):
        client.messages.create(model="none-such", max_tokens=64, messages=PARIS)
    with pytest.raises(anthropic.BadRequestError, match="thread"):
        client.beta.messages.create(model="smollm2", max_tokens=64, messages=PARIS, thread={"type": "create"})

"""truncation="auto" of /v1/responses: what of a conversation that the context does not hold is left out."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import openai
from fake_llm import MAX_MODEL_LEN, FakeLLM
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import LiveServer

from octavo.server.openai.responses import truncate
from octavo.server.openai.types import ChatRequest, FunctionCall, Message, ToolCall

MODEL = "fake/model"


def turns(count: int, length: int) -> list[Any]:
    return [
        {"role": role, "content": f"{number}{role[0]}" + "." * length}
        for number in range(count)
        for role in ("user", "assistant")
    ]


def calls(count: int, length: int) -> list[Any]:
    return [
        item
        for number in range(count)
        for item in (
            {"type": "function_call", "call_id": f"c{number}", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": f"c{number}", "output": f"{number}" + "." * length},
        )
    ]


def shown(llm: FakeLLM) -> list[str]:
    """The beginning of each message of the last prompt."""
    return [str(message.get("content") or message["role"])[:2] for message in llm.rendered[-1][0]]


def test_the_first_turns_go(client: openai.OpenAI, shared: LiveServer) -> None:
    given: list[Any] = [*turns(8, 40), {"role": "user", "content": "Go on"}]
    given.insert(3, {"role": "developer", "content": "D"})
    ask: dict[str, Any] = {"model": MODEL, "input": given, "instructions": "I", "truncation": "auto"}
    reply = client.responses.create(**ask, max_output_tokens=100)
    assert shown(shared.llm) == ["I", "D", "5u", "5a", "6u", "6a", "7u", "7a", "Go"]
    assert reply.usage is not None
    assert MAX_MODEL_LEN // 2 < reply.usage.input_tokens <= MAX_MODEL_LEN - 100
    assert reply.truncation == "auto"
    assert client.responses.input_tokens.count(**ask).input_tokens < MAX_MODEL_LEN * 3 // 4
    client.responses.create(**{**ask, "input": "Next"}, previous_response_id=reply.id)
    assert shown(shared.llm)[-3:] == ["Go", "Th", "Ne"]
    listed = [item.content[0].text[:2] for item in client.responses.input_items.list(reply.id, limit=100)]  # type: ignore[union-attr]
    assert listed[-1] == "0u"  # what was said is kept, whatever a prompt held of it


def test_what_fits_stays_whole(client: openai.OpenAI, shared: LiveServer) -> None:
    given: list[Any] = [*turns(4, 50), {"role": "user", "content": "x" * 11}]
    reply = client.responses.create(model=MODEL, input=given, truncation="auto", max_output_tokens=100)
    assert reply.usage is not None
    assert reply.usage.input_tokens == MAX_MODEL_LEN - 2
    assert shown(shared.llm)[0] == "0u"


def test_calls_go_with_their_outputs(client: openai.OpenAI, shared: LiveServer) -> None:
    given: list[Any] = [*turns(1, 100), {"role": "user", "content": "Work"}, *calls(9, 60)]
    client.responses.create(model=MODEL, input=given, truncation="auto")
    beginnings = shown(shared.llm)
    assert beginnings[0] == "Wo"
    assert beginnings[1:] == ["as", "5.", "as", "6.", "as", "7.", "as", "8."]


def test_what_cannot_be_cut_is_refused(client: openai.OpenAI, shared: LiveServer) -> None:
    for long in ([*turns(3, 10), {"role": "user", "content": "x" * 600}], turns(2, 300)[:1] + calls(1, 600)):
        answer = shared.post("/v1/responses", {"model": MODEL, "input": long, "truncation": "auto"})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "input")


def message(role: str, number: int) -> Message:
    if role == "call":
        made = [ToolCall(function=FunctionCall("f"), id=f"{number % 3}")]
        return Message(role="assistant", tool_calls=made)
    if role == "tool":
        return Message(role="tool", content="out", tool_call_id=f"{number % 3}")
    return Message(role=role, content=f"{number}")  # type: ignore[arg-type]


ROLES = st.lists(st.sampled_from(["user", "assistant", "call", "tool", "system"]), min_size=1, max_size=14)


@settings(deadline=None)
@given(ROLES, st.integers(1, 15))
def test_any_conversation(roles: list[str], most: int) -> None:
    """In order, with all instructions and the end, and no output whose call is gone."""
    messages = [message(role, number) for number, role in enumerate(roles)]

    async def render(services: Any, request: ChatRequest) -> list[int]:
        return [0] * len(request.messages)

    services: Any = SimpleNamespace(llm=SimpleNamespace(info={"max_model_len": most}))
    real, truncate.render = truncate.render, render  # type: ignore[assignment]
    try:
        cut = asyncio.run(truncate.truncated(services, ChatRequest(messages=messages), max_tokens=1))
    finally:
        truncate.render = real
    kept = cut.messages
    places = [next(place for place, one in enumerate(messages) if one is each) for each in kept]
    assert places == sorted(places)
    assert kept[-1] is messages[-1] or messages[-1].role == "system"
    assert [one for one in messages if one.role == "system"] == [one for one in kept if one.role == "system"]
    users = [one for one in messages if one.role == "user"]
    assert not users or users[-1] in kept
    gone = [place for place in range(len(messages)) if place not in places]
    if gone and users:  # as templates demand it
        assert next(one for one in kept if one.role != "system").role == "user"
    for place in gone:
        ids = {call.id for call in messages[place].tool_calls or []}
        for later in places:
            assert later < place or messages[later].tool_call_id not in ids or messages[later].role != "tool"

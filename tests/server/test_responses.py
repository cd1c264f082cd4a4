"""/v1/responses by the stock openai client: whole, streamed, stored, gone on from, in the background, failing."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import openai
import pytest
from fake_llm import ANSWER, FakeLLM
from openai.types.responses import ResponseItem
from pydantic import TypeAdapter
from serving import LiveServer, wait_for
from test_bad_input import check_form

from octavo.base.errors import RequestFailedError
from octavo.base.types.output import RequestOutput
from octavo.server.errors import HttpError
from octavo.server.openai.responses import background
from octavo.server.openai.responses.build import ResponseBuilder
from octavo.server.openai.responses.events import EventLog
from octavo.server.openai.responses.items import as_messages, read_items
from octavo.server.openai.responses.replies import OutputMessage, ResponseObject
from octavo.server.openai.responses.store import Job, ResponseStore, Stored
from octavo.server.openai.responses.types import ReasoningConfig
from octavo.server.openai.types import Message, TextPart

MODEL = "fake/model"
ASK: dict[str, Any] = {"model": MODEL, "input": "Hello"}


def test_whole(client: openai.OpenAI, shared: LiveServer) -> None:
    reply = client.responses.create(**ASK, instructions="Be brief", max_output_tokens=12, metadata={"a": "b"})
    assert reply.output_text == ANSWER[:12]
    assert (reply.object, reply.status, reply.model, reply.metadata) == ("response", "incomplete", MODEL, {"a": "b"})
    assert reply.incomplete_details is not None
    assert reply.incomplete_details.reason == "max_output_tokens"
    assert reply.usage is not None
    assert (reply.usage.input_tokens, reply.usage.output_tokens, reply.usage.total_tokens) == (29, 12, 41)
    assert reply.usage.input_tokens_details.cached_tokens == 4
    assert reply.usage.output_tokens_details.reasoning_tokens == 0
    assert shared.llm.rendered[-1][0] == [
        {"role": "system", "content": "Be brief"},
        {"role": "user", "content": "Hello"},
    ]


def test_ends_by_itself(client: openai.OpenAI) -> None:
    reply = client.responses.create(**ASK, extra_body={"stop": ["brown"]})
    assert (reply.status, reply.output_text, reply.incomplete_details) == ("completed", 'The "quick" ', None)
    assert reply.completed_at is not None
    assert reply.output[0].status == "completed"  # type: ignore[union-attr]


def test_stream_helper(client: openai.OpenAI) -> None:
    with client.responses.stream(**ASK, extra_body={"stop": ["lazy"]}) as stream:
        kinds, text = [], ""
        for event in stream:
            kinds.append(event.type)
            if event.type == "response.output_text.delta":
                text += event.delta
                assert event.snapshot == text
        final = stream.get_final_response()
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert set(kinds[4:-4]) == {"response.output_text.delta"}
    assert final.output_text == text == ANSWER[: ANSWER.index("lazy")]


def test_stream_equals_whole(client: openai.OpenAI) -> None:
    ask = {**ASK, "max_output_tokens": 40, "top_logprobs": 2, "include": ["message.output_text.logprobs"]}
    whole = client.responses.create(**ask)
    events = list(client.responses.create(**ask, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    last = events[-1]
    assert last.type == "response.incomplete"
    ignored = {"id": True, "created_at": True, "output": {0: {"id": True}}}
    assert last.response.model_dump(exclude=ignored) == whole.model_dump(exclude=ignored)
    part = whole.output[0].content[0]  # type: ignore[union-attr]
    assert [entry.token for entry in part.logprobs] == list(ANSWER[:40])  # type: ignore[union-attr]
    assert {len(entry.top_logprobs) for entry in part.logprobs} == {2}  # type: ignore[union-attr]
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    assert [entry.token for delta in deltas for entry in delta.logprobs] == list(ANSWER[:40])


def test_stored_and_gone_on_from(client: openai.OpenAI, shared: LiveServer) -> None:
    first = client.responses.create(**ASK, instructions="Be brief", max_output_tokens=9)
    assert client.responses.retrieve(first.id) == first
    with client.responses.stream(
        model=MODEL, input=[{"role": "user", "content": "More"}], previous_response_id=first.id, max_output_tokens=5
    ) as stream:
        second = list(stream)[-1].response  # type: ignore[union-attr]
    assert second.previous_response_id == first.id
    client.responses.create(**ASK, previous_response_id=second.id, max_output_tokens=2)
    contents = [message["content"] for message in shared.llm.rendered[-1][0]]
    assert contents == ["Hello", ANSWER[:9], "More", ANSWER[:5], "Hello"]
    client.responses.delete(first.id)
    for call in (client.responses.retrieve, client.responses.delete):
        with pytest.raises(openai.NotFoundError):
            call(first.id)
    with pytest.raises(openai.NotFoundError) as caught:
        client.responses.create(**ASK, previous_response_id=first.id)
    assert caught.value.param == "previous_response_id"


def test_items_by_reference(client: openai.OpenAI, shared: LiveServer) -> None:
    first = client.responses.create(**ASK, max_output_tokens=9)
    named: Any = {"type": "item_reference", "id": first.output[0].id}
    client.responses.create(model=MODEL, input=[named, {"role": "user", "content": "More"}], max_output_tokens=2)
    assert [message["content"] for message in shared.llm.rendered[-1][0]] == [ANSWER[:9], "More"]
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError) as caught:
        client.responses.create(model=MODEL, input=[{"role": "user", "content": "x"}, named])
    assert caught.value.param == "input[1].id"


def test_input_items(client: openai.OpenAI, shared: LiveServer) -> None:
    given: list[Any] = [
        {"role": "developer", "content": "d"},
        {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"role": "assistant", "content": "t"},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "1"},
    ]
    ask: dict[str, Any] = {"model": MODEL, "max_output_tokens": 2}
    first = client.responses.create(**ask, input=given, instructions="not an item")
    items = [*client.responses.input_items.list(first.id, order="asc")]
    kinds = ["message", "message", "reasoning", "message", "function_call", "function_call_output"]
    assert [item.type for item in items] == kinds
    assert [[part.text for part in items[number].content] for number in range(4)] == [["d"], ["a", "b"], ["hm"], ["t"]]  # type: ignore[union-attr]
    assert (items[4].call_id, items[4].arguments, items[5].output) == ("c", "{}", "1")  # type: ignore[union-attr]
    for item in items:
        TypeAdapter(ResponseItem).validate_json(item.model_dump_json(), strict=True)
    ids = [item.id for item in items]
    assert len(set(ids)) == 6
    page = client.responses.input_items.list(first.id, limit=4)
    assert ([item.id for item in page.data], page.has_more, page.last_id) == (ids[:1:-1], True, ids[2])
    assert [item.id for item in client.responses.input_items.list(first.id, limit=4)] == ids[::-1]  # page by page
    raw = shared.client.get(f"/v1/responses/{first.id}/input_items?after={ids[1]}").json()
    assert (raw["object"], raw["first_id"], raw["has_more"]) == ("list", ids[0], False)
    second = client.responses.create(**ask, input="go on", previous_response_id=first.id)
    listed = [*client.responses.input_items.list(second.id, order="asc")]
    assert [item.type for item in listed] == [*kinds, "message", "message"]
    assert listed[6].content[0].text == first.output_text  # type: ignore[union-attr]
    more: list[Any] = ["reasoning.encrypted_content", "file_search_call.results"]
    assert [*client.responses.input_items.list(second.id, order="asc", include=more)] == listed
    path = f"/v1/responses/{second.id}/input_items?order=asc&include={more[0]}&include={more[1]}"
    assert [item["id"] for item in shared.client.get(path).json()["data"]] == [item.id for item in listed]
    wrong = {"after": "x", "limit": "101", "order": "up", "before": "x", "include[]": "message.output_text.logprobs"}
    for query, param in ((f"{name}={value}", name.removesuffix("[]")) for name, value in wrong.items()):
        found = shared.client.get(f"/v1/responses/{first.id}/input_items?{query}")
        assert check_form(found)["param"] == param
    assert shared.client.get("/v1/responses/resp_0/input_items").status_code == 404


def test_not_stored(client: openai.OpenAI) -> None:
    reply = client.responses.create(**ASK, store=False, max_output_tokens=2)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(reply.id)
    with pytest.raises(openai.BadRequestError):
        client.responses.cancel(client.responses.create(**ASK, max_output_tokens=2).id)


def test_answers_belong_to_their_key() -> None:
    locked = LiveServer(FakeLLM(), api_key=["one", "two"])
    with locked as server, server.openai("one") as one, server.openai("two") as two:
        reply = one.responses.create(**ASK, max_output_tokens=2)
        assert one.responses.retrieve(reply.id).id == reply.id
        for call in (two.responses.retrieve, two.responses.cancel, two.responses.delete):
            with pytest.raises(openai.NotFoundError):
                call(reply.id)
        with pytest.raises(openai.NotFoundError):
            two.responses.create(**ASK, previous_response_id=reply.id)
        with pytest.raises(openai.NotFoundError):
            two.responses.create(model=MODEL, input=[{"type": "item_reference", "id": str(reply.output[0].id)}])


def test_background(server: LiveServer, llm: FakeLLM) -> None:
    with server.openai() as client:
        reply = client.responses.create(**ASK, background=True, max_output_tokens=5)
        assert (reply.status, reply.background) == ("queued", True)
        wait_for(lambda: client.responses.retrieve(reply.id).status == "incomplete")
        done = client.responses.retrieve(reply.id)
        assert (done.output_text, done.usage.output_tokens) == (ANSWER[:5], 5)  # type: ignore[union-attr]
        assert client.responses.cancel(reply.id).status == "incomplete"
        llm.delay = 0.05
        reply = client.responses.create(**ASK, background=True)
        with pytest.raises(openai.BadRequestError):
            client.responses.create(**ASK, previous_response_id=reply.id)
        assert client.responses.cancel(reply.id).status == "cancelled"
        assert client.responses.retrieve(reply.id).status == "cancelled"
        reply = client.responses.create(**ASK, background=True)
        wait_for(lambda: len(client.responses.retrieve(reply.id).output_text) >= 3)
        assert client.responses.retrieve(reply.id).status == "in_progress"
        ended = client.responses.cancel(reply.id)
        assert (ended.status, ended.output[0].status) == ("cancelled", "incomplete")  # type: ignore[union-attr]
        assert ANSWER.startswith(ended.output_text)
        assert ended.usage is not None
        assert ended.usage.output_tokens == len(ended.output_text) >= 3
        reply = client.responses.create(**ASK, background=True)
        client.responses.delete(reply.id)
        wait_for(lambda: not llm.running)
        assert len(server.app.traffic) == 0


def test_no_events_are_made_where_none_are_sent(server: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[bytes] = []
    piece = ResponseBuilder.piece

    def noted(builder: ResponseBuilder, number: int, output: RequestOutput) -> bytes:
        made.append(piece(builder, number, output))
        return made[-1]

    monkeypatch.setattr(ResponseBuilder, "piece", noted)
    with server.openai() as talking:
        reply = talking.responses.create(**ASK, background=True, max_output_tokens=5)
        wait_for(lambda: talking.responses.retrieve(reply.id).status == "incomplete")
        assert talking.responses.retrieve(reply.id).output_text == ANSWER[:5]
    assert set(made) == {b""}


def test_background_failures(server: LiveServer, llm: FakeLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    with server.openai() as client:
        llm.fail_at, llm.failure = 3, KeyError("secret")
        reply = client.responses.create(**ASK, background=True)
        wait_for(lambda: client.responses.retrieve(reply.id).status == "failed")
        failed = client.responses.retrieve(reply.id)
        assert failed.error is not None
        assert failed.error.code == "server_error"
        assert "secret" not in failed.error.message
        llm.fail_at, llm.delay = None, 0.05
        reply = client.responses.create(**ASK, background=True)
        wait_for(lambda: len(server.app.traffic) == 1)
        server.loop.call_soon_threadsafe(server.app.traffic.interrupt_all, RequestFailedError("shutting down"))
        wait_for(lambda: client.responses.retrieve(reply.id).status == "failed")
        monkeypatch.setattr(background, "MAX_RUNNING", 1)
        running = client.responses.create(**ASK, background=True)
        with pytest.raises(openai.InternalServerError) as caught:
            client.responses.create(**ASK, background=True)
        assert caught.value.response.headers["retry-after"] == "5"
        client.responses.cancel(running.id)
        assert client.responses.create(**ASK, background=True).status == "queued"


def test_a_stream_that_fails(server: LiveServer, llm: FakeLLM) -> None:
    llm.fail_at, llm.failure = 3, RequestFailedError("non-finite logits")
    with server.openai() as client:
        with client.responses.stream(**ASK) as stream:
            events = list(stream)
        assert events[-1].type == "response.failed"
        assert events[-1].response.error.message == "non-finite logits"  # type: ignore[union-attr]
        assert events[-1].response.output[0].status == "incomplete"  # type: ignore[union-attr]
        assert [event.type for event in events[-4:-1]] == [
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
        ]
        assert client.responses.retrieve(events[-1].response.id).status == "failed"  # type: ignore[union-attr]
        llm.fail_at = None
        llm.overloaded = True
        with pytest.raises(openai.InternalServerError):
            list(client.responses.create(**ASK, stream=True))


def test_a_client_that_leaves(server: LiveServer, llm: FakeLLM) -> None:
    llm.delay = 0.02
    with server.openai() as client, client.responses.stream(**ASK) as stream:
        next(iter(stream))
        wait_for(lambda: bool(llm.running))
    wait_for(lambda: not llm.running and len(server.app.traffic) == 0)
    assert llm.finished == []


def test_items_become_messages() -> None:
    items = read_items(
        [
            {"role": "developer", "content": "d"},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "u"}]},
            {"type": "reasoning", "id": "r", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
            {"role": "assistant", "content": [{"type": "output_text", "text": "t", "annotations": []}], "id": "m"},
            {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
            {"type": "function_call", "call_id": "c2", "name": "g", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "1"},
            {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "2"}]},
            {"role": "assistant", "content": "a"},
            {"role": "assistant", "content": "b"},
            {"type": "function_call", "call_id": "c3", "name": "f", "arguments": "{}"},
            {"role": "assistant", "content": "behind"},
            {"type": "function_call_output", "call_id": "c3", "output": "3"},
        ],
        lambda name, param: pytest.fail("nothing is named"),
    )
    messages = as_messages(items)
    assert [message.role for message in messages] == [
        *("developer", "user", "assistant", "tool", "tool", "assistant", "assistant", "tool")
    ]
    turn = messages[2]
    assert (turn.reasoning, turn.content) == ("hm", "t")
    assert [(call.id, call.function.name) for call in turn.tool_calls or []] == [("c1", "f"), ("c2", "g")]
    assert [(message.tool_call_id, message.content) for message in messages[3:5]] == [("c1", "1"), ("c2", "2")]
    assert messages[-2].content == [TextPart("b"), TextPart("behind")]  # the output follows its call
    assert [call.id for call in messages[-2].tool_calls or []] == ["c3"]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"input": []}, "input"),
        ({"input": [{"type": "web_search_call"}]}, "input[0].type"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": "x", "zap": 1}]}, "input[0].zap"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type"),
        ({"input": [{"type": "function_call", "call_id": "a", "name": "f", "arguments": "{"}]}, "input"),
        ({"input": "x" * 1000}, "input"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"top_logprobs": 21, "include": ["message.output_text.logprobs"]}, "top_logprobs"),
        ({"include": ["message.everything"]}, "include"),
        ({"background": True, "store": False}, "background"),
        ({"stream_options": {"include_obfuscation": False}}, "stream_options"),
        ({"stream": True, "stream_options": {"include_usage": False}}, "stream_options"),
        ({"truncation": "auto", "input": "x" * 1000}, "input"),  # there is but the user's last message
        ({"truncation": "middle"}, "truncation"),
        ({"max_tool_calls": 0}, "max_tool_calls"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"reasoning": {"effort": "high"}}, "reasoning.effort"),
        ({"reasoning": {"summary": "short"}}, "reasoning"),
        ({"text": {"format": {"type": "xml"}}}, "text"),
        ({"text": {"format": {"type": "json_schema", "name": "a"}}}, "text.format.schema"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"tools": [{"type": "function", "name": "a b"}]}, "tools[0].name"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": []}}, "tool_choice"),
        ({"service_tier": "flex"}, "service_tier"),
        ({"messages": []}, "messages"),
        ({"n": 2}, "n"),
    ],
)
def test_refused(shared: LiveServer, change: dict[str, Any], param: str) -> None:
    assert check_form(shared.post("/v1/responses", {**ASK, **change}))["param"] == param


def test_a_refusal_names_the_place(shared: LiveServer) -> None:
    tools = [{"type": "function", "name": "f"}, {"type": "custom", "name": "g"}]
    for change, place in (({"tools": tools}, "tools[1].type"), ({"text": {"verbosity": "low"}}, "text.verbosity")):
        assert f"value of {place} is" in check_form(shared.post("/v1/responses", {**ASK, **change}))["message"]
    image = {"type": "input_image", "image_url": "data:"}
    for item in (
        {"role": "user", "content": [image]},
        {"type": "function_call_output", "call_id": "c", "output": [image]},
    ):
        told = check_form(shared.post("/v1/responses", {**ASK, "input": [item]}))
        assert told["message"].endswith("content of type 'input_image' is not supported; send text")


def test_what_there_is_none_of_is_led_elsewhere(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="shorten the input"):
        client.responses.compact(**ASK)
    with pytest.raises(openai.NotFoundError, match="previous_response_id"):
        client.conversations.create()
    with pytest.raises(openai.NotFoundError, match=r"GET /openapi\.json"):
        client.images.generate(prompt="a")


def test_what_asks_for_nothing_passes(client: openai.OpenAI, shared: LiveServer) -> None:
    assert client.responses.create(**ASK, max_output_tokens=2, max_tool_calls=3).max_tool_calls == 3
    body = {**ASK, "max_output_tokens": 2, "stream_options": {"include_usage": True}}  # as AIPerf sends it
    assert shared.events("/v1/responses", body)[-2]["response"]["usage"]["output_tokens"] == 2


def test_what_retrieving_may_ask_for(shared: LiveServer, client: openai.OpenAI) -> None:
    reply = client.responses.create(**ASK, max_output_tokens=2)
    more: list[Any] = ["reasoning.encrypted_content", "message.output_text.logprobs"]
    assert client.responses.retrieve(reply.id, include=more, stream=False).output == reply.output
    assert check_form(shared.client.get(f"/v1/responses/{reply.id}?include=x"))["param"] == "include[0]"


def entry(name: str, text: str = "") -> Stored:
    response = ResponseObject(
        id=name,
        created_at=0,
        status="completed",
        background=False,
        instructions=text,
        max_output_tokens=None,
        model="m",
        parallel_tool_calls=True,
        previous_response_id=None,
        prompt_cache_key=None,
        reasoning=ReasoningConfig(),
        safety_identifier=None,
        store=True,
        temperature=1,
        presence_penalty=0,
        frequency_penalty=0,
        text={},
        tool_choice="auto",
        tools=[],
        top_logprobs=0,
        top_p=1,
        user=None,
        metadata={},
    )
    return Stored(b"", response, [Message(role="user", content="x")])


def test_the_store_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, most in (("MAX_ENTRIES", 3), ("MAX_BYTES", 20_000), ("KEEP_S", 0.05)):
        monkeypatch.setattr(f"octavo.server.openai.responses.store.{name}", most)
    store = ResponseStore()
    for number in range(5):
        store.put(entry(str(number)))
    assert ["2" in store, "1" in store, len(store)] == [True, False, 3]
    store.put(entry("2", "x" * 15_000))
    assert store.num_bytes <= 20_000
    store.put(entry("big", "x" * 30_000))
    assert (len(store), store.num_bytes) == (0, 0)
    store.put(entry("3"))
    asyncio.run(asyncio.sleep(0.06))
    with pytest.raises(HttpError):
        store.get("3", b"")
    assert (len(store), store.num_bytes) == (0, 0)


def test_a_long_conversation_takes_room_and_all_of_it_may_be_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    store, long = ResponseStore(), entry("1")
    long.messages[0] = Message(role="user", content="x" * 30_000)
    store.put(long)
    assert store.num_bytes > 30_000
    monkeypatch.setattr("octavo.server.openai.responses.store.MAX_BYTES", store.num_bytes)
    store.put(long)
    assert "1" in store
    monkeypatch.setattr("octavo.server.openai.responses.store.MAX_BYTES", store.num_bytes - 1)
    store.put(long)
    assert "1" not in store


def test_items_are_found_until_their_response_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("octavo.server.openai.responses.store.KEEP_S", 0.05)
    store, one = ResponseStore(), entry("1")
    one.response.output += [OutputMessage(id=name, status="completed", content=[]) for name in ("a", "b")]
    store.put(one)
    assert store.item("b", b"", param="p") is one.response.output[1]
    with pytest.raises(HttpError):
        store.item("b", b"another", param="p")
    with pytest.raises(HttpError):
        store.delete("1", b"another")
    assert "1" in store
    asyncio.run(asyncio.sleep(0.06))
    with pytest.raises(HttpError):
        store.item("b", b"", param="p")
    assert not store._items
    store.put(one)
    asyncio.run(asyncio.sleep(0.06))
    store.put(entry("2"))
    assert len(store) == 1


def test_events_of_one_that_gave_way_while_it_is_made_stay_for_who_follows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("octavo.server.openai.responses.store.MAX_ENTRIES", 1)
    store, making = ResponseStore(), entry("1")
    making.job, making.events = cast(Job, object()), EventLog(store.room)
    making.events.add(b"event: a\ndata: 1\n\n")
    store.put(making)
    store.put(entry("2"))
    assert "1" not in store
    assert making.events.since(0) == [b"event: a\ndata: 1\n\n"]

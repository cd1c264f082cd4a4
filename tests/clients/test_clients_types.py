"""Answers are of the types that openai, anthropic and cohere publish, strictly (wire.py); streams fold to them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from threading import Thread
from typing import Any

import anthropic
import httpx
import httpx2
import openai
import pytest
from anthropic.types import ErrorResponse, Message, MessageTokensCount, ModelInfo, RawMessageStreamEvent
from anthropic.types.beta import BetaMessage, BetaRawMessageStreamEvent
from cohere.types import EmbedByTypeResponse
from cohere.v2.types.v2rerank_response import V2RerankResponse
from conftest import ADMIN_KEY
from fake_llm import FakeLLM
from folding import fold_message, fold_response
from openai.types import (
    Batch,
    Completion,
    CreateEmbeddingResponse,
    ErrorObject,
    FileDeleted,
    FileObject,
    Model,
)
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import InputTokenCountResponse, Response, ResponseItemList, ResponseStreamEvent
from serving import LiveServer, parse_events, wait_for
from wire import faults, unknown

from octavo.base.errors import EngineDeadError, InputError, NumericalError, OverloadedError

PLACE = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FUNCTION = {"name": "get_weather", "parameters": PLACE}
SCRIPTS = ["Hello", "Think", "What is the weather in Paris?", "Both", "Call and say", "none such"]

# Fields that the types do not name: vLLM's, Open Responses', Jina's.
CHOICE = {".choices[].stop_reason", ".choices[].token_ids", ".metrics", ".prompt_logprobs", ".prompt_token_ids"}
PENALTIES = {".store", ".presence_penalty", ".frequency_penalty"}
EXTRAS: dict[Any, set[str]] = {
    ChatCompletion: CHOICE | {".choices[].message.reasoning", ".choices[].message.reasoning_content"},
    ChatCompletionChunk: CHOICE | {".choices[].delta.reasoning", ".choices[].delta.reasoning_content"},
    Completion: CHOICE | {".choices[].prompt_token_ids", ".choices[].prompt_logprobs"},
    Response: PENALTIES,
    ResponseStreamEvent: {
        *(f".response{name}" for name in PENALTIES),
        ".logprobs[].bytes",
        ".logprobs[].top_logprobs[].bytes",
        ".name",  # of arguments.done: OpenAI's specification and its JavaScript client have it
    },
    ResponseItemList: {".data[].phase", ".data[].content[].parsed"},  # null
    RawMessageStreamEvent: {".usage.service_tier"},
    BetaRawMessageStreamEvent: {".usage.service_tier"},
    Model: {".root", ".parent", ".max_model_len"},
    CreateEmbeddingResponse: {".id", ".created", ".usage.completion_tokens", ".usage.prompt_tokens_details"},
    V2RerankResponse: {".model", ".usage", ".results[].document"},
}
# OpenAI's own answers are so, too; the status as a number is vLLM's; Anthropic documents its kind of a 413.
OTHERWISE = (
    ".choices[].finish_reason is None, not one of ('stop', 'length', 'content_filter')",
    ".choices[].logprobs.token_logprobs[] is None",
    ".choices[].logprobs.top_logprobs[] is None",
    ".code is ",
    ".error.type is 'request_too_large'",
)


def check(kind: Any, told: Any) -> Any:
    """The JSON, which is of the type."""
    assert not [fault for fault in faults(kind, told) if not fault.startswith(OTHERWISE)]
    assert unknown(kind, told) <= EXTRAS.get(kind, set())
    return told


def said(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def ask(server: LiveServer, path: str, body: dict[str, Any], kind: Any, event_kind: Any) -> tuple[Any, list[Any], str]:
    """The whole answer, the events of a stream without its end, and that stream as text; all of their types."""
    whole = server.post(path, {name: value for name, value in body.items() if name != "stream_options"})
    assert whole.status_code == 200, whole.text
    text = server.post(path, {**body, "stream": True}).text
    events = [event for event in parse_events(text) if event != "[DONE]"]
    assert text.count("data: [DONE]") == (event_kind is not RawMessageStreamEvent)
    for event in events:
        if event.get("type") != "ping":
            check(event_kind, event)
    names = [line.removeprefix("event: ") for line in text.splitlines() if line.startswith("event: ")]
    assert names in ([], [event.get("type") for event in events])
    return check(kind, whole.json()), events, text


def replayed(text: str) -> httpx2.Client:
    """What a client gets by it is this stream."""
    headers = {"content-type": "text/event-stream"}
    return httpx2.Client(transport=httpx2.MockTransport(lambda _: httpx2.Response(200, text=text, headers=headers)))


def bare(value: Any) -> Any:
    """Without the names and times made for it, nulls, and what a client adds."""
    if isinstance(value, list):
        return [bare(item) for item in value]
    if not isinstance(value, dict):
        return value
    made = ("id", "call_id", "created", "created_at", "completed_at", "parsed", "parsed_arguments")
    return {name: bare(item) for name, item in value.items() if name not in made and item is not None}


def given(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value}


CHATS: list[dict[str, Any]] = [
    {},
    {"tools": [{"type": "function", "function": FUNCTION}]},
    {"tools": [{"type": "function", "function": FUNCTION}], "max_tokens": 60, "n": 2},
    {"tools": [{"type": "function", "function": FUNCTION}], "tool_choice": "required", "max_tokens": 80},
    {"logprobs": True, "top_logprobs": 2, "n": 2},
    {"stop": ["e"], "return_token_ids": True},
    {"stop_token_ids": [70], "include_metrics": True},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "place", "schema": PLACE}}, "max_tokens": 20},
    {"stream_options": {"include_usage": True, "continuous_usage_stats": True}},
]


@pytest.mark.parametrize("script", SCRIPTS)
def test_chats(replay: LiveServer, script: str) -> None:
    for more in CHATS:
        body = {"model": "scripted", "messages": said(script), "max_tokens": 400, "temperature": 0}
        body |= {"stream_options": {"include_usage": True}, **more}
        whole, _, text = ask(replay, "/v1/chat/completions", body, ChatCompletion, ChatCompletionChunk)
        for choice in whole["choices"]:
            assert choice["message"]["refusal"] is None
            assert not choice["logprobs"] or choice["logprobs"]["refusal"] is None
        client = openai.OpenAI(api_key="none", http_client=replayed(text))
        with client.chat.completions.stream(model="scripted", messages=said(script)) as stream:
            for _ in stream:
                pass
            folded: Any = stream.current_completion_snapshot.to_dict()
        assert folded["usage"]["total_tokens"] == whole["usage"]["total_tokens"]
        for one, other in zip(bare(folded["choices"]), bare(whole["choices"]), strict=True):
            calls = [call["function"] for call in one["message"].pop("tool_calls", None) or []]
            assert calls == [call["function"] for call in other["message"].pop("tool_calls", [])]
            assert one["finish_reason"] == other["finish_reason"]
            assert given(one["message"]) == given(other["message"])


def test_completions(replay: LiveServer) -> None:
    prompt = "<|user|>Hello<|assistant|>"
    for more in (
        {},
        {"prompt": [prompt, prompt], "n": 2},
        {"echo": True, "logprobs": 2},
        {"echo": True, "logprobs": 1, "max_tokens": 0},
        {"max_tokens": 2, "return_token_ids": True},
        {"stop": ["o"], "stream_options": {"include_usage": True}},
    ):
        body = {"model": "scripted", "prompt": prompt, "max_tokens": 50, "temperature": 0, **more}
        whole, chunks, _ = ask(replay, "/v1/completions", body, Completion, Completion)
        for choice in whole["choices"]:
            pieces = [each for chunk in chunks for each in chunk["choices"] if each["index"] == choice["index"]]
            assert "".join(each["text"] for each in pieces) == choice["text"]
            assert pieces[-1]["finish_reason"] == choice["finish_reason"]


RESPONSES: list[dict[str, Any]] = [
    {},
    {"tools": [{"type": "function", **FUNCTION}]},
    {"tools": [{"type": "function", **FUNCTION, "strict": True}], "max_output_tokens": 60, "background": True},
    {"tools": [{"type": "namespace", "name": "n", "tools": [{"type": "function", **FUNCTION}]}]},
    {"tools": [{"type": "function", **FUNCTION}], "tool_choice": {"type": "function", "name": "get_weather"}},
    {"top_logprobs": 2, "include": ["message.output_text.logprobs"], "instructions": "Be brief.", "user": "u"},
    {"stop": ["e"], "reasoning": {"summary": "auto"}, "metadata": {"a": "b"}, "truncation": "auto"},
    {"text": {"format": {"type": "json_schema", "schema": PLACE}}, "max_output_tokens": 30},
    {"text": {"format": {"type": "json_object"}}, "max_output_tokens": 30},
]


@pytest.mark.parametrize("script", SCRIPTS)
def test_responses(replay: LiveServer, script: str) -> None:
    for more in RESPONSES:
        body = {"model": "scripted", "input": script, "max_output_tokens": 200, "temperature": 0, **more}
        whole, events, text = ask(replay, "/v1/responses", body, Response, ResponseStreamEvent)
        path = "/v1/responses/" + whole["id"]
        wait_for(lambda path=path: replay.client.get(path).json()["status"] not in ("queued", "in_progress"))  # type: ignore[misc]
        whole = check(Response, replay.client.get(path).json())
        folded = fold_response(events)
        assert replay.client.get("/v1/responses/" + folded["id"]).json() == folded
        both = bare([whole, folded])
        for one in both:
            one["usage"].pop("input_tokens_details")
        assert both[0] == both[1]
        client = openai.OpenAI(api_key="none", http_client=replayed(text))
        with client.responses.stream(model="scripted", input=script) as stream:
            *_, last = stream
        assert bare(last.response.to_dict()) == bare(folded)  # type: ignore[union-attr]
        check(ResponseItemList, replay.client.get(f"{path}/input_items").json())


MESSAGES: list[dict[str, Any]] = [
    {},
    {"thinking": {"type": "enabled", "budget_tokens": 1024}},
    {"tools": [{"name": "get_weather", "input_schema": PLACE}], "thinking": {"type": "adaptive"}},
    {"tools": [{"name": "get_weather", "input_schema": PLACE}], "max_tokens": 60},
    {"tools": [{"name": "get_weather", "input_schema": PLACE}], "tool_choice": {"type": "any"}, "max_tokens": 80},
    {"stop_sequences": ["e"]},
]


@pytest.mark.parametrize("script", SCRIPTS)
def test_messages(replay: LiveServer, script: str) -> None:
    for more in MESSAGES:
        body = {"model": "scripted", "messages": said(script), "max_tokens": 2000, **more}
        whole, events, text = ask(replay, "/v1/messages", body, Message, RawMessageStreamEvent)
        check(BetaMessage, whole)
        assert [check(BetaRawMessageStreamEvent, event) for event in events if event["type"] != "ping"]
        client = anthropic.Anthropic(api_key="none", http_client=replayed(text))
        with client.messages.stream(model="scripted", messages=said(script), max_tokens=9) as stream:
            theirs = stream.get_final_message().to_dict()
        for one in (found := [whole, fold_message(events), theirs]):
            one["usage"]["input_tokens"] += one["usage"].pop("cache_read_input_tokens")
        assert bare(found[1]) == bare(found[0]) == bare(found[2])


def test_counts_and_models(replay: LiveServer) -> None:
    counted = {"model": "scripted", "messages": said("Hello")}
    check(MessageTokensCount, replay.post("/v1/messages/count_tokens", counted).json())
    check(InputTokenCountResponse, replay.post("/v1/responses/input_tokens", {"input": "Hello"}).json())
    for kind, headers in ((Model, {}), (ModelInfo, {"anthropic-version": "2023-06-01"})):
        (listed,) = replay.client.get("/v1/models", headers=headers).json()["data"]
        assert replay.client.get("/v1/models/scripted", headers=headers).json() == check(kind, listed)


BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": said("Hi")},
    "/v1/completions": {"prompt": "Hi", "max_tokens": 400},
    "/v1/responses": {"input": "Hi"},
    "/v1/messages": {"messages": said("Hi"), "max_tokens": 400, "model": "fake/model"},
}


@pytest.fixture
def llm() -> FakeLLM:
    return FakeLLM()


@pytest.fixture
def fake(llm: FakeLLM) -> Iterator[LiveServer]:
    with LiveServer(llm, admin_api_key=[ADMIN_KEY]) as live:
        yield live


def check_error(path: str, told: Any) -> None:
    anthropics = path.startswith("/v1/messages")
    check(ErrorResponse if anthropics else ErrorObject, told if anthropics else told["error"])


def check_broken(server: LiveServer, path: str, text: str) -> None:
    """A stream that ends with an error: all its events are of their types, and so is the last."""
    events = [event for event in parse_events(text) if event != "[DONE]"]
    if path == "/v1/responses":
        failed = fold_response([check(ResponseStreamEvent, event) for event in events])
        assert failed["error"]["message"]
        assert check(Response, server.client.get("/v1/responses/" + failed["id"]).json()) == failed
        return
    check_error(path, events.pop())
    kinds = {"/v1/messages": RawMessageStreamEvent, "/v1/completions": Completion}
    for event in events:
        if event.get("type") != "ping":
            check(kinds.get(path, ChatCompletionChunk), event)


@pytest.mark.parametrize("path", BODIES)
def test_errors(fake: LiveServer, llm: FakeLLM, path: str) -> None:
    body = BODIES[path]
    for wrong in ({**body, "model": "none"}, {**body, "temperature": -1}, {**body, "zap": 1}, b"{", b" " * (40 << 20)):
        check_error(path, fake.post(path, wrong).json())
    check_error(path, fake.client.get(path).json())
    llm.overloaded = True
    check_error(path, fake.post(path, {**body, "stream": True}).json())
    llm.overloaded = False
    for failure in (NumericalError("nan"), EngineDeadError("dead"), OverloadedError("full"), InputError("none")):
        llm.failure, llm.fail_at = failure, 3
        check_error(path, fake.post(path, body).json())
        check_broken(fake, path, fake.post(path, {**body, "stream": True}).text)


@pytest.mark.parametrize("path", BODIES)
def test_ended_by_the_operator(fake: LiveServer, llm: FakeLLM, path: str) -> None:
    told: list[httpx.Response] = []

    def end() -> None:
        wait_for(lambda: bool(llm.running))
        time.sleep(0.1)
        key = {"authorization": f"Bearer {ADMIN_KEY}", "content-type": "application/json"}
        httpx.post(fake.url + "/abort_requests", json={"request_ids": ["mine"]}, headers=key).raise_for_status()

    llm.delay = 0.01
    for stream in (False, True):
        ending = Thread(target=end)
        ending.start()
        told.append(fake.post(path, {**BODIES[path], "stream": stream}, **{"x-request-id": "mine"}))
        ending.join()
    check_error(path, told[0].json())
    check_broken(fake, path, told[1].text)


@pytest.mark.parametrize("stream", [False, True])
def test_cancelled(fake: LiveServer, llm: FakeLLM, stream: bool) -> None:
    llm.delay = 0.01
    with fake.openai() as client:
        begun: Any = client.responses.create(model="fake/model", input="Hi", background=True, stream=stream)
        name = next(iter(begun)).response.id if stream else begun.id
        path = "/v1/responses/" + name
        wait_for(lambda: bool(fake.client.get(path).json()["output"]))
        check(Response, fake.client.get(path).json())
        cancelled = check(Response, fake.post(path + "/cancel", {}).json())
        assert (cancelled["status"], cancelled["output"][0]["status"]) == ("cancelled", "incomplete")
        if stream:
            events = parse_events(fake.client.get(path, params={"stream": "true"}).text)[:-1]
            assert fold_response([check(ResponseStreamEvent, event) for event in events]) == cancelled
        assert fake.client.delete(path).json() == {"id": name, "object": "response", "deleted": True}
        check_error(path, fake.client.get(path).json())


def test_files_and_batches(fake: LiveServer) -> None:
    def line(number: int, **more: Any) -> bytes:
        body = {"model": "fake/model", "messages": said("Hi"), "max_tokens": 3, **more}
        asked = {"custom_id": str(number), "method": "POST", "url": "/v1/chat/completions", "body": body}
        return json.dumps(asked).encode() + b"\n"

    for content, status in ((line(0) + line(1, temperature=-1), "completed"), (b"{}\n", "failed")):
        form: dict[str, Any] = {"data": {"purpose": "batch"}, "files": {"file": ("in.jsonl", content)}}
        file = check(FileObject, fake.client.post("/v1/files", **form).json())
        asked = {"input_file_id": file["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        path = "/v1/batches/" + check(Batch, fake.post("/v1/batches", asked).json())["id"]
        wait_for(lambda path=path: fake.client.get(path).json()["status"] in ("completed", "failed"))  # type: ignore[misc]
        batch = check(Batch, fake.client.get(path).json())
        assert batch["status"] == status
        if status == "completed":
            names = [batch[f"{kind}_file_id"] for kind in ("output", "error")]
            good, bad = (json.loads(fake.client.get(f"/v1/files/{name}/content").text) for name in names)
            check(ChatCompletion, good["response"]["body"])
            check_error("/v1/chat/completions", bad["response"]["body"])
        check(Batch, fake.post(path + "/cancel", {}).json())
        check(FileDeleted, fake.client.delete("/v1/files/" + file["id"]).json())
    for path, kind in (("/v1/files", FileObject), ("/v1/batches", Batch)):
        assert [check(kind, row) for row in fake.client.get(path).json()["data"]]


def test_vectors(minilm: str) -> None:
    def post(path: str, **body: Any) -> Any:
        return httpx.post(minilm + path, json=body, timeout=60).json()

    check(CreateEmbeddingResponse, post("/v1/embeddings", model="minilm", input=["a", "b"]))
    kinds = ["float", "base64", "binary", "ubinary"]
    check(EmbedByTypeResponse, post("/v2/embed", texts=["a", "b"], input_type="search_query", embedding_types=kinds))
    check(V2RerankResponse, post("/v2/rerank", query="a", documents=["a", "b"]))
    check_error("/v1/embeddings", post("/v1/embeddings", input=3))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"type": "response.zap"}, ".type is 'response.zap', which no member of the union has"),
        ({"sequence_number": "1"}, ".sequence_number is '1', not <class 'int'>"),
        ({"sequence_number": True}, ".sequence_number is True, not <class 'int'>"),
        ({"item": None}, ".item.type is None, which no member of the union has"),
        ({"item": {"type": "reasoning", "id": "a"}}, ".item.summary of ResponseReasoningItem is missing"),
        ({"item": {"type": "reasoning", "id": "a", "summary": {}}}, ".item.summary is {}, not typing.List"),
        (
            {"item": {"type": "reasoning", "id": "a", "summary": [], "status": "odd"}},
            ".item.status is 'odd', not one of",
        ),
    ],
)
def test_what_is_wrong_is_found(change: dict[str, Any], told: str) -> None:
    event = {
        "type": "response.output_item.done",
        "sequence_number": 1,
        "output_index": 0,
        "item": {"type": "reasoning", "id": "a", "summary": [], "status": None},
        "zap": 1,
    }
    assert (faults(ResponseStreamEvent, event), unknown(ResponseStreamEvent, event)) == ([], {".zap"})
    (found,) = faults(ResponseStreamEvent, {**event, **change})
    assert found.startswith(told)

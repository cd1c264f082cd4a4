"""openai-python: chats, completions, parse(), a loop of tools, Responses, vectors, batches, and its retries."""

from __future__ import annotations

import asyncio
import io
import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import httpx2
import openai
import pytest
from conftest import admin, octavo_serve
from openai.types.chat import ChatCompletionMessage
from pydantic import BaseModel
from serving import LiveServer

PARIS: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]
WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}


class Person(BaseModel):
    name: str
    age: int


@pytest.fixture(scope="module")
def client(smollm2: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=smollm2 + "/v1", api_key="none") as client:
        yield client


@pytest.fixture(scope="module")
def scripted(replay: LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=replay.url + "/v1", api_key="none") as client:
        yield client


def said(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def test_models(client: openai.OpenAI) -> None:
    (model,) = client.models.list()
    assert (model.id, model.object, model.owned_by) == ("smollm2", "model", "octavo")
    assert 0 < model.created <= time.time()
    assert model.model_extra == {"root": "smollm2", "parent": None, "max_model_len": 8192}
    assert client.models.retrieve("smollm2") == model


def test_chat(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(model="smollm2", messages=PARIS, temperature=0)
    assert reply.choices[0].message.content == "The capital of France is Paris."
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage is not None
    with client.chat.completions.stream(
        model="smollm2", messages=PARIS, temperature=0, stream_options={"include_usage": True}
    ) as stream:
        deltas = [event.delta for event in stream if event.type == "content.delta"]
        whole = stream.get_final_completion()
    assert "".join(deltas) == whole.choices[0].message.content == reply.choices[0].message.content
    assert whole.usage is not None
    assert whole.usage.completion_tokens == reply.usage.completion_tokens


def test_chat_by_many_at_once(smollm2: str) -> None:
    async def ask() -> list[str | None]:
        async with openai.AsyncOpenAI(base_url=smollm2 + "/v1", api_key="none") as client:
            asked = [client.chat.completions.create(model="smollm2", messages=PARIS, temperature=0) for _ in range(4)]
            return [reply.choices[0].message.content for reply in await asyncio.gather(*asked)]

    assert asyncio.run(ask()) == ["The capital of France is Paris."] * 4


def test_completions(client: openai.OpenAI) -> None:
    ask: dict[str, Any] = {"model": "smollm2", "prompt": "The capital of France is", "max_tokens": 2, "temperature": 0}
    reply = client.completions.create(**ask, logprobs=2)
    assert reply.choices[0].text == " Paris."
    assert reply.choices[0].logprobs is not None
    assert reply.choices[0].logprobs.tokens == [" Paris", "."]
    assert "".join(chunk.choices[0].text for chunk in client.completions.create(**ask, stream=True)) == " Paris."


def test_parse(client: openai.OpenAI) -> None:
    asked = said("Ada is 36 years old. Give her name and age as JSON.")
    reply = client.chat.completions.parse(model="smollm2", messages=asked, response_format=Person, temperature=0)
    assert isinstance(reply.choices[0].message.parsed, Person)
    answer = client.responses.parse(model="smollm2", input=asked, text_format=Person, temperature=0)
    assert isinstance(answer.output_parsed, Person)
    with client.chat.completions.stream(
        model="smollm2", messages=asked, response_format=Person, temperature=0
    ) as stream:
        assert stream.get_final_completion().choices[0].message.parsed == reply.choices[0].message.parsed


def test_parse_tools(scripted: openai.OpenAI) -> None:
    tools = [openai.pydantic_function_tool(Person)]
    reply = scripted.chat.completions.parse(model="scripted", messages=said("Call Ada"), tools=tools)
    (call,) = reply.choices[0].message.tool_calls or []
    assert call.function.parsed_arguments == Person(name="Ada", age=36)


@pytest.mark.parametrize("stream", [False, True])
def test_a_loop_of_tools(scripted: openai.OpenAI, stream: bool) -> None:
    tools: list[Any] = [{"type": "function", "function": {"name": "get_weather", "parameters": WEATHER}}]
    messages = said("What is the weather in Paris?")

    def turn() -> ChatCompletionMessage:
        if not stream:
            reply = scripted.chat.completions.create(model="scripted", messages=messages, tools=tools)
            return reply.choices[0].message
        with scripted.chat.completions.stream(model="scripted", messages=messages, tools=tools) as events:
            return events.get_final_completion().choices[0].message

    message = turn()
    assert message.content == "I will look."
    (call,) = message.tool_calls or []
    assert call.type == "function"
    assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": "Paris"})
    messages += [message, {"role": "tool", "tool_call_id": call.id, "content": "22 degrees in Paris"}]
    assert turn().content == "It is 22 degrees in Paris."


def test_a_real_model_must_call(client: openai.OpenAI) -> None:
    parameters = {**WEATHER, "properties": {"city": {"enum": ["Rome", "Paris"]}}}
    reply = client.chat.completions.create(
        model="smollm2",
        messages=said("How warm is it in Paris?"),
        tools=[{"type": "function", "function": {"name": "get_weather", "parameters": parameters}}],
        tool_choice="required",
        parallel_tool_calls=False,
        max_tokens=100,
        temperature=0,
    )
    (call,) = reply.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert json.loads(call.function.arguments)["city"] in ("Rome", "Paris")
    assert reply.choices[0].finish_reason == "tool_calls"


def test_reasoning(scripted: openai.OpenAI) -> None:
    message = scripted.chat.completions.create(model="scripted", messages=said("Think")).choices[0].message
    assert message.content == "Four."
    assert message.model_extra == {"reasoning": "Two and two.", "reasoning_content": "Two and two."}


def test_responses(client: openai.OpenAI) -> None:
    first = client.responses.create(model="smollm2", input="What is the capital of France?", temperature=0)
    assert first.output_text == "The capital of France is Paris."
    assert client.responses.retrieve(first.id).output_text == first.output_text
    second = client.responses.create(
        model="smollm2", input="Say it again.", previous_response_id=first.id, temperature=0, max_output_tokens=8
    )
    assert second.usage is not None
    assert first.usage is not None
    assert second.usage.input_tokens > first.usage.total_tokens
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)


def test_responses_stream(client: openai.OpenAI) -> None:
    with client.responses.stream(model="smollm2", input="What is the capital of France?", temperature=0) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        assert stream.get_final_response().output_text == text == "The capital of France is Paris."


def test_responses_with_tools(scripted: openai.OpenAI) -> None:
    tools: list[Any] = [{"type": "function", "name": "get_weather", "parameters": WEATHER, "strict": True}]
    items: list[Any] = said("What is the weather in Paris?")
    with scripted.responses.stream(model="scripted", input=items, tools=tools) as stream:
        names = [event.type for event in stream]
        answer = stream.get_final_response()
    assert "response.function_call_arguments.done" in names
    call = next(item for item in answer.output if item.type == "function_call")
    assert json.loads(call.arguments) == {"city": "Paris"}
    items += answer.output
    items += [{"type": "function_call_output", "call_id": call.call_id, "output": "22 degrees in Paris"}]
    last = scripted.responses.create(model="scripted", input=items, tools=tools)
    assert last.output_text == "It is 22 degrees in Paris."


def test_embeddings(minilm: str) -> None:
    with openai.OpenAI(base_url=minilm + "/v1", api_key="none") as client:
        texts = ["a cat", "a kitten", "a tax return"]
        reply = client.embeddings.create(model="minilm", input=texts)  # the client asks for base64
        cat, kitten, tax = (item.embedding for item in reply.data)
        plain = client.embeddings.create(model="minilm", input=texts[0], encoding_format="float").data[0].embedding
    assert plain == pytest.approx(cat, abs=1e-6)
    assert sum(a * b for a, b in zip(cat, kitten, strict=True)) > sum(a * b for a, b in zip(cat, tax, strict=True))


def test_batches(client: openai.OpenAI) -> None:
    body = {"model": "smollm2", "messages": PARIS, "temperature": 0}
    lines = [
        {"custom_id": str(number), "method": "POST", "url": "/v1/chat/completions", "body": body} for number in range(3)
    ]
    data = "\n".join(map(json.dumps, lines)).encode()
    file = client.files.create(file=("in.jsonl", io.BytesIO(data)), purpose="batch")
    assert client.files.content(file.id).read() == data
    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={"who": "tests"}
    )
    for _ in range(600):
        batch = client.batches.retrieve(batch.id)
        if batch.status in ("completed", "failed", "expired"):
            break
        time.sleep(0.1)
    assert batch.status == "completed"
    assert batch.request_counts is not None
    assert (batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed) == (3, 3, 0)
    assert batch.output_file_id is not None
    results = [json.loads(line) for line in client.files.content(batch.output_file_id).text.splitlines()]
    assert {result["custom_id"] for result in results} == {"0", "1", "2"}
    for result in results:
        message = result["response"]["body"]["choices"][0]["message"]
        assert message["content"] == "The capital of France is Paris."
    assert batch.id in [each.id for each in client.batches.list()]
    assert client.files.delete(file.id).deleted
    assert file.id not in [each.id for each in client.files.list()]


def watched(url: str, then: Callable[[], object], seen: list[httpx2.Response]) -> openai.OpenAI:
    """A client that notes its answers, and does `then` after the first that is an error."""

    def note(response: httpx2.Response) -> None:
        seen.append(response)
        if response.is_error:
            then()

    return openai.OpenAI(
        base_url=url + "/v1", api_key="none", http_client=httpx2.Client(event_hooks={"response": [note]})
    )


def test_a_503_is_tried_again_after_retry_after(smollm2: str) -> None:
    seen: list[httpx2.Response] = []
    admin(smollm2, "/pause")
    begin = time.monotonic()
    with watched(smollm2, lambda: admin(smollm2, "/resume"), seen) as client:
        reply = client.chat.completions.create(model="smollm2", messages=PARIS, temperature=0)
    assert reply.choices[0].message.content == "The capital of France is Paris."
    assert [response.status_code for response in seen] == [503, 200]
    assert time.monotonic() - begin >= float(seen[0].headers["retry-after"]) > 0


def test_a_full_queue_is_tried_again() -> None:
    seen: list[httpx2.Response] = []
    flags = ("--max-num-seqs", "1", "--max-num-queued-reqs", "1")
    with octavo_serve("smollm2", *flags) as url, ExitStack() as stack:
        other = stack.enter_context(openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=0))
        long: dict[str, Any] = {"model": "smollm2", "prompt": "On", "extra_body": {"ignore_eos": True}}
        busy = [other.completions.create(**long, max_tokens=8000, stream=True)]
        next(iter(busy[0]))  # it runs: the one place in the queue is the next one's
        busy.append(other.completions.create(**long, max_tokens=8000, stream=True))
        with watched(url, lambda: [stream.close() for stream in busy], seen) as client:
            reply = client.chat.completions.create(model="smollm2", messages=PARIS, temperature=0)
    assert reply.choices[0].message.content == "The capital of France is Paris."
    assert seen[0].status_code == 503
    assert float(seen[0].headers["retry-after"]) > 0
    assert seen[-1].status_code == 200


def test_errors_are_the_clients_own(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="none-such"):
        client.chat.completions.create(model="none-such", messages=PARIS)
    with pytest.raises(openai.BadRequestError, match="temperature") as error:
        client.chat.completions.create(model="smollm2", messages=PARIS, temperature=-1)
    assert error.value.param == "temperature"
    assert error.value.request_id

"""The stock openai client, unmodified: sync, async, streaming, logprobs, n, stop, usage, errors."""

from __future__ import annotations

import asyncio

import openai
import pytest
from fake_llm import ANSWER
from serving import LiveServer

MESSAGES: list = [{"role": "user", "content": "Hello"}]  # 12 tokens with the fake template
MODEL = "fake/model"


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL


def test_chat(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=12)
    assert reply.choices[0].message.content == ANSWER[:12]
    assert reply.choices[0].message.role == "assistant"
    assert reply.choices[0].finish_reason == "length"
    assert reply.object == "chat.completion"
    assert reply.usage is not None
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens, reply.usage.total_tokens) == (12, 12, 24)
    assert reply.usage.prompt_tokens_details is not None
    assert reply.usage.prompt_tokens_details.cached_tokens == 4


def test_chat_uses_the_rest_of_the_context(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(model=MODEL, messages=MESSAGES)
    assert reply.usage is not None
    assert reply.usage.total_tokens == 512


def test_chat_stream_equals_whole(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=200).choices[0].message.content
    stream = list(client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=200, stream=True))
    assert stream[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == whole == ANSWER[:200]
    assert [chunk.choices[0].finish_reason for chunk in stream][-2:] == [None, "length"]
    assert len({chunk.id for chunk in stream}) == 1
    assert all(chunk.object == "chat.completion.chunk" for chunk in stream)


def test_stop_and_n(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(model=MODEL, messages=MESSAGES, n=3, stop=["brown", "lazy"])
    assert [choice.index for choice in reply.choices] == [0, 1, 2]
    assert {choice.message.content for choice in reply.choices} == {'The "quick" '}
    assert {choice.finish_reason for choice in reply.choices} == {"stop"}
    assert reply.choices[0].model_extra == {"stop_reason": "brown"}


def test_stream_n_and_usage(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model=MODEL, messages=MESSAGES, n=2, max_tokens=7, stream=True, stream_options={"include_usage": True}
        )
    )
    texts = {0: "", 1: ""}
    for chunk in chunks[:-1]:
        assert chunk.usage is None
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == {0: ANSWER[:7], 1: ANSWER[:7]}
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 14


def test_chat_logprobs(client: openai.OpenAI) -> None:
    ask = {"model": MODEL, "messages": MESSAGES, "max_tokens": 3, "logprobs": True, "top_logprobs": 2}
    reply = client.chat.completions.create(**ask)
    assert reply.choices[0].logprobs is not None
    content = reply.choices[0].logprobs.content
    assert content is not None
    assert [entry.token for entry in content] == list(ANSWER[:3])
    assert [len(entry.top_logprobs) for entry in content] == [2, 2, 2]
    assert content[0].logprob == content[0].top_logprobs[0].logprob == -0.25
    assert content[0].bytes == [ord("T")]
    streamed = [
        entry
        for chunk in client.chat.completions.create(**ask, stream=True)
        if chunk.choices[0].logprobs
        for entry in chunk.choices[0].logprobs.content
    ]
    assert streamed == content


def test_chat_logprobs_without_alternatives(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=1, logprobs=True)
    assert reply.choices[0].logprobs is not None
    assert reply.choices[0].logprobs.content is not None
    assert reply.choices[0].logprobs.content[0].top_logprobs == []


def test_completions(client: openai.OpenAI) -> None:
    reply = client.completions.create(model=MODEL, prompt="Once")
    assert reply.choices[0].text == ANSWER[:16]
    assert reply.object == "text_completion"
    assert reply.usage is not None
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (5, 16)


@pytest.mark.parametrize("prompt", [["Once", "upon"], [[1, 2], [3]], [[1], [2]]])
def test_completions_of_a_list(client: openai.OpenAI, prompt: list) -> None:
    reply = client.completions.create(model=MODEL, prompt=prompt, n=2, max_tokens=3)
    assert [choice.index for choice in reply.choices] == [0, 1, 2, 3]


def test_completions_of_token_ids(client: openai.OpenAI) -> None:
    reply = client.completions.create(model=MODEL, prompt=[1, 2, 3], max_tokens=3)
    assert reply.usage is not None
    assert reply.usage.prompt_tokens == 3


def test_completions_stream(client: openai.OpenAI) -> None:
    chunks = list(client.completions.create(model=MODEL, prompt=["a", "b"], max_tokens=100, stream=True))
    for index in (0, 1):
        assert "".join(c.choices[0].text for c in chunks if c.choices[0].index == index) == ANSWER[:100]


def test_completions_echo_and_logprobs(client: openai.OpenAI) -> None:
    ask: dict = {"model": MODEL, "prompt": "Once", "max_tokens": 2, "echo": True, "logprobs": 1}
    choice = client.completions.create(**ask).choices[0]
    assert choice.text == "Once" + ANSWER[:2]
    assert choice.logprobs is not None
    assert choice.logprobs.tokens == ["<bos>", *"Once", *ANSWER[:2]]
    assert choice.logprobs.token_logprobs == [None, *[-0.25] * 6]
    assert choice.logprobs.top_logprobs is not None
    assert choice.logprobs.top_logprobs[0] is None
    chunks = list(client.completions.create(**ask, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == choice.text
    assert [t for chunk in chunks for t in chunk.choices[0].logprobs.tokens] == choice.logprobs.tokens


def test_async_client(shared: LiveServer) -> None:
    async def talk() -> list[str]:
        async with openai.AsyncOpenAI(base_url=shared.url + "/v1", api_key="none") as client:

            async def one(number: int) -> str:
                text = ""
                async for chunk in await client.chat.completions.create(
                    model=MODEL, messages=MESSAGES, max_tokens=number, stream=True
                ):
                    text += chunk.choices[0].delta.content or ""
                return text

            return await asyncio.gather(*(one(number) for number in range(1, 21)))

    assert asyncio.run(talk()) == [ANSWER[:number] for number in range(1, 21)]


def test_errors_have_the_protocols_form(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=MODEL, messages=MESSAGES, temperature=-1)
    assert caught.value.param == "temperature"
    assert caught.value.type == "BadRequestError"
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-4", messages=MESSAGES)
    assert missing.value.param == "model"


def test_a_reply_can_be_sent_back(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=3).choices[0].message
    again = [*MESSAGES, reply.model_dump(), {"role": "user", "content": "Go on"}]
    assert client.chat.completions.create(model=MODEL, messages=again, max_tokens=3).choices[0].message.content


def test_retries_what_is_busy(server: LiveServer) -> None:
    server.llm.overloaded = True
    with (
        server.openai() as client,
        pytest.raises(openai.InternalServerError) as caught,
    ):
        client.completions.create(model=MODEL, prompt="a", stream=True)
    assert caught.value.status_code == 503
    assert caught.value.response.headers["retry-after"] == "7"

"""pydantic-ai: agents over chats, Responses and Anthropic's protocol; tools, output types, streams, vectors."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput, PromptedOutput
from pydantic_ai.messages import ThinkingPart
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider
from serving import LiveServer


class Person(BaseModel):
    name: str
    age: int


def model(kind: str, url: str, name: str = "scripted") -> Any:
    if kind == "anthropic":
        return AnthropicModel(name, provider=AnthropicProvider(base_url=url, api_key="none"))
    provider = OpenAIProvider(base_url=url + "/v1", api_key="none")
    return {"chat": OpenAIChatModel, "responses": OpenAIResponsesModel}[kind](name, provider=provider)


@pytest.fixture(params=["chat", "responses", "anthropic"])
def scripted(request: pytest.FixtureRequest, replay: LiveServer) -> Any:
    return model(request.param, replay.url)


def test_a_real_model(smollm2: str) -> None:
    agent = Agent(model("chat", smollm2, "smollm2"), model_settings={"temperature": 0})
    result = agent.run_sync("What is the capital of France?")
    assert result.output == "The capital of France is Paris."
    assert result.usage.output_tokens > 0


def test_tools(scripted: Any) -> None:
    agent = Agent(scripted)
    asked = []

    @agent.tool_plain
    def get_weather(city: str) -> str:
        """How warm it is."""
        asked.append(city)
        return f"22 degrees in {city}"

    assert agent.run_sync("What is the weather in Paris?").output == "It is 22 degrees in Paris."
    assert asked == ["Paris"]


def test_a_streamed_run(scripted: Any) -> None:
    agent = Agent(scripted)

    @agent.tool_plain
    def get_weather(city: str) -> str:
        """How warm it is."""
        return f"22 degrees in {city}"

    async def run() -> str:
        async with agent.run_stream("Hello") as result:
            return await result.get_output()

    assert asyncio.run(run()) == "Hello, there!"


def test_output_by_a_tool(scripted: Any) -> None:
    assert Agent(scripted, output_type=Person).run_sync("Give Ada").output == Person(name="Ada", age=36)


@pytest.mark.parametrize("form", [NativeOutput, PromptedOutput])
def test_output_as_json(replay: LiveServer, form: Any) -> None:
    agent = Agent(model("chat", replay.url), output_type=form(Person))
    assert agent.run_sync("Who is Ada?").output == Person(name="Ada", age=36)


def test_thinking(replay: LiveServer) -> None:
    agent = Agent(model("chat", replay.url))
    result = agent.run_sync("Think")
    (thought,) = [part for part in result.new_messages()[-1].parts if isinstance(part, ThinkingPart)]
    assert (thought.content, result.output) == ("Two and two.", "Four.")
    assert agent.run_sync("Hello", message_history=result.all_messages()).output == "Hello, there!"

"""What clients and frameworks put into requests beside what they ask for, and what they look for in answers."""

from __future__ import annotations

import re
from typing import Any, get_args

import anthropic
import pytest
from anthropic.types import ModelInfo
from fake_llm import ANSWER, FakeLLM
from openai.types.responses import (
    ParsedResponseFunctionToolCall,
    ParsedResponseOutputMessage,
    ResponseFunctionToolCall,
    ResponseIncludable,
)
from pydantic import TypeAdapter
from serving import LiveServer

from octavo.server.openai.responses.types import Includable

MESSAGES: list[Any] = [{"role": "user", "content": "Hello"}]
CACHED = {"cache_control": {"type": "ephemeral"}}
CHAT = "/v1/chat/completions"


def test_what_litellm_sends_back(server: LiveServer, llm: FakeLLM) -> None:
    said = {"role": "assistant", "content": "b", "reasoning_content": "hm"}
    told = {
        "provider_specific_fields": {"reasoning": "hm"},
        "thinking_blocks": [{"type": "thinking", "thinking": "hm", "signature": ""}],
    }
    body = {"messages": [*MESSAGES, {**said, **told}, *MESSAGES], "max_tokens": 1}
    assert server.post(CHAT, body).status_code == 200
    assert llm.rendered[0][0] == [*MESSAGES, said, *MESSAGES]


def test_marks_of_prefixes_to_be_cached(server: LiveServer, llm: FakeLLM) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    part = {"type": "text", "text": "Hello"}
    body = {
        "messages": [
            {"role": "system", "content": "kind", **CACHED},
            {"role": "user", "content": [{**part, **CACHED}]},
        ],
        "tools": [{**tool, **CACHED}],
        "max_tokens": 1,
    }
    assert server.post(CHAT, body).status_code == 200
    assert server.post("/tokenize", {name: body[name] for name in ("messages", "tools")}).status_code == 200
    for messages, options in llm.rendered:
        assert messages == [{"role": "system", "content": "kind"}, {"role": "user", "content": [part]}]
        assert options["tools"] == [tool]
    copilots = {"messages": [{**MESSAGES[0], "copilot_cache_control": CACHED["cache_control"]}], "max_tokens": 1}
    assert server.post(CHAT, copilots).status_code == 200
    assert llm.rendered[-1][0] == MESSAGES
    wrong = {"messages": [{**MESSAGES[0], "cache_control": {"type": "forever"}}]}
    assert server.post(CHAT, wrong).json()["error"]["param"] == "messages[0].cache_control.type"


@pytest.mark.parametrize("name", get_args(Includable))
def test_what_responses_may_include(shared: LiveServer, name: str) -> None:
    """Codex, and OpenAI's agents where nothing is stored, ask for reasoning.encrypted_content in each request."""
    reply = shared.post("/v1/responses", {"input": "Hello", "max_output_tokens": 2, "include": [name]})
    assert reply.status_code == 200
    told = reply.json()["output"][0]["content"][0]["logprobs"]
    assert bool(told) == (name == "message.output_text.logprobs")
    ask = {"input": "Hello", "include": [name], "top_logprobs": 1}
    assert (shared.post("/v1/responses", ask).status_code == 200) == bool(told)
    assert set(get_args(Includable)) == set(get_args(ResponseIncludable))


@pytest.mark.parametrize("dump", [{}, {"by_alias": True}, {"exclude_none": True}], ids=str)
def test_items_that_openais_client_has_dumped(server: LiveServer, llm: FakeLLM, dump: dict[str, Any]) -> None:
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    text = {"type": "output_text", "text": "a", "annotations": []}
    items = [
        ParsedResponseOutputMessage[Any].model_validate(
            {"type": "message", "id": "m", "role": "assistant", "status": "completed", "content": [text]}
        ),
        ParsedResponseFunctionToolCall.model_validate(call),
        ResponseFunctionToolCall.model_validate(call),
    ]
    items[0].content[0].parsed = {"a": 1}
    items[1].parsed_arguments = {}
    outputs = [{"type": "function_call_output", "call_id": "c", "output": "b"}] * 2
    body = {"input": [*MESSAGES, *(item.model_dump(**dump) for item in items), *outputs], "max_output_tokens": 1}
    assert server.post("/v1/responses", body).status_code == 200
    assert [message["role"] for message in llm.rendered[0][0]] == ["user", "assistant", "tool", "tool"]


@pytest.mark.parametrize("n", [1, 2])
def test_a_prompt_alone(shared: LiveServer, n: int) -> None:
    """As programs that evaluate texts ask for their log probabilities."""
    body = {"prompt": "Once", "echo": True, "max_tokens": 0, "logprobs": 1, "n": n}
    reply = shared.post("/v1/completions", body).json()
    assert len(reply["choices"]) == n
    for choice in reply["choices"]:
        assert (choice["text"], choice["finish_reason"]) == ("Once", "length")
        assert choice["logprobs"]["tokens"] == ["<bos>", *"Once"]
        assert choice["logprobs"]["token_logprobs"] == [None, *[-0.25] * 4]
    assert (reply["usage"]["prompt_tokens"], reply["usage"]["completion_tokens"]) == (5, 0)
    chunks = shared.events("/v1/completions", body)[:-1]
    assert sorted(chunk["choices"][0]["index"] for chunk in chunks) == [*range(n)]
    for chunk in chunks:
        assert chunk["choices"] == [one for one in reply["choices"] if one["index"] == chunk["choices"][0]["index"]]
    plain = shared.post("/v1/completions", {"prompt": "Once", "echo": True, "max_tokens": 0}).json()
    assert (plain["choices"][0]["text"], plain["choices"][0]["logprobs"]) == ("Once", None)
    for change in ({"echo": False}, {"echo": None}, {"max_tokens": -1}):
        assert shared.post("/v1/completions", {**body, **change}).json()["error"]["param"] == "max_tokens"


def test_models_as_anthropics_client_asks_for_them(llm: FakeLLM) -> None:
    with (
        LiveServer(llm, served_model_name=["a", "b/c"]) as server,
        anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client,
    ):
        page = client.models.list(limit=5)
        assert ([one.id for one in page], page.has_more, page.first_id, page.last_id) == (
            ["a", "b/c"],
            False,
            "a",
            "b/c",
        )
        for told in (*page.data, client.models.retrieve("b/c"), client.beta.models.retrieve("b/c")):
            TypeAdapter(ModelInfo).validate_json(told.model_dump_json(), strict=True)
            assert (told.display_name, told.type, told.lifecycle) == (told.id, "model", "active")
            assert (told.max_input_tokens, told.max_tokens) == (512, 512)
            assert told.created_at.timestamp() == server.client.get("/v1/models").json()["data"][0]["created"]
        with pytest.raises(anthropic.NotFoundError) as caught:
            client.models.retrieve("d")
        assert caught.value.body["error"]["type"] == "not_found_error"  # type: ignore[index]


def test_a_part_that_refuses(server: LiveServer, llm: FakeLLM) -> None:
    parts = [{"type": "text", "text": "Well."}, {"type": "refusal", "refusal": "No."}]
    body = {"messages": [*MESSAGES, {"role": "assistant", "content": parts}, *MESSAGES], "max_tokens": 1}
    assert server.post(CHAT, body).status_code == 200
    said = [{"type": "text", "text": text} for text in ("Well.", "No.")]
    assert llm.rendered[0][0] == [*MESSAGES, {"role": "assistant", "content": said}, *MESSAGES]


def test_parts_by_their_name_in_chats(server: LiveServer, llm: FakeLLM) -> None:
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    parts = [{"type": "input_text", "text": "a"}, {"type": "text", "text": "b"}]
    output = {"type": "function_call_output", "call_id": "c", "output": parts}
    body = {"input": [{"role": "user", "content": parts[1:]}, call, output], "max_output_tokens": 1}
    assert server.post("/v1/responses", body).status_code == 200
    asked, _, told = llm.rendered[0][0]
    assert (asked["content"], [part["text"] for part in told["content"]]) == ("b", ["a", "b"])


def test_input_tokens(shared: LiveServer) -> None:
    ask: dict[str, Any] = {"model": "fake/model", "instructions": "Be brief"}
    tool: dict[str, Any] = {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": False}
    with shared.openai() as client:
        first = client.responses.create(**ask, input="Hello", max_output_tokens=2, tools=[tool])
        assert first.usage is not None
        counted = client.responses.input_tokens.count(**ask, input="Hello", tools=[tool], tool_choice="auto")
        assert (counted.object, counted.input_tokens) == ("response.input_tokens", first.usage.input_tokens)
        assert shared.llm.rendered[-1] == shared.llm.rendered[-2]
        on: dict[str, Any] = {**ask, "previous_response_id": first.id}
        second = client.responses.create(**on, input=MESSAGES, max_output_tokens=2)
        assert second.usage is not None
        assert client.responses.input_tokens.count(**on, input=MESSAGES).input_tokens == second.usage.input_tokens
        assert client.responses.input_tokens.count(**on).input_tokens < second.usage.input_tokens
    seen = len(shared.llm.seen)
    for change, param in (({}, "input"), ({"input": []}, "input"), ({"input": "a", "store": True}, "store")):
        reply = shared.post("/v1/responses/input_tokens", {**ask, **change})
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)
    assert len(shared.llm.seen) == seen


def test_what_codex_sends(server: LiveServer, llm: FakeLLM) -> None:
    """Its request with an MCP server, and the next one, which sends the call and its output back."""
    tool = {"type": "function", "name": "f", "description": "d", "strict": False, "parameters": {"type": "object"}}
    asked = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hello"}]}
    body: dict[str, Any] = {
        "model": "fake/model",
        "instructions": "You code.",
        "input": [{**asked, "role": "developer"}, asked],
        "tools": [tool, {"type": "namespace", "name": "mcp__maps", "description": "Maps.", "tools": [tool]}],
        "tool_choice": "auto",
        "parallel_tool_calls": False,
        "reasoning": {"summary": "auto", "context": "auto"},
        "store": False,
        "stream": True,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "0199",
        "client_metadata": {"x-codex-installation-id": "1"},
        "max_output_tokens": 2,
    }
    assert server.events("/v1/responses", body)[-2]["type"] == "response.incomplete"
    names = [one["function"]["name"] for one in llm.rendered[0][1]["tools"]]
    assert names == ["f", "mcp__maps__f"]
    done = [
        {"type": "reasoning", "summary": [], "encrypted_content": None},
        {"type": "function_call", "name": "f", "namespace": "mcp__maps", "arguments": "{}", "call_id": "c"},
        {"type": "function_call_output", "call_id": "c", "output": "sunny"},
    ]
    assert server.post("/v1/responses", {**body, "stream": False, "input": [asked, *done]}).status_code == 200
    _, _, said, told = llm.rendered[1][0]
    assert said["tool_calls"][0]["function"] == {"name": "mcp__maps__f", "arguments": "{}"}
    assert told == {"role": "tool", "content": "sunny", "tool_call_id": "c"}
    for summary in (
        "concise",
        "detailed",
    ):  # model_reasoning_summary; Copilot and Vercel's AI SDK ask for detailed ones
        asked_for = {**body, "stream": False, "reasoning": {"summary": summary}, "truncation": "auto"}
        reply = server.post("/v1/responses", asked_for).json()
        assert (reply["reasoning"]["summary"], reply["truncation"]) == (summary, "auto")
    for wrong in ({"type": "web_search", "external_web_access": False}, {"type": "local_shell"}):
        error = server.post("/v1/responses", {**body, "tools": [wrong]}).json()["error"]
        assert (error["param"], "Codex" in error["message"]) == ("tools", True)


def test_what_other_agents_send_back(server: LiveServer, llm: FakeLLM) -> None:
    """go-openai leaves out what is empty; Cline, LiteLLM and OpenAI's agents go on with what servers have told."""
    mark = {"google": {"thought_signature": "x"}}
    details = [
        {"type": "reasoning.text", "text": "hm", "format": "unknown", "index": 0},
        {"type": "reasoning.encrypted", "data": "x"},
    ]
    calls: list[dict[str, Any]] = [
        {"id": "a", "type": "function", "function": {"name": "f"}},
        {"id": "b", "type": "function", "function": {"name": "f", "arguments": "{}"}, "extra_content": mark},
    ]
    calls[1]["function"]["provider_specific_fields"] = calls[0]["provider_specific_fields"] = {"thought_signature": "x"}
    body: dict[str, Any] = {
        "messages": [
            *MESSAGES,
            {"role": "assistant", "tool_calls": calls, "reasoning_details": details},
            {"role": "tool", "tool_call_id": "a"},
            {"role": "tool", "tool_call_id": "b", "content": None},
            {"role": "assistant", "content": "b", "reasoning_content": "so", "reasoning_details": details[1:]},
            {"role": "assistant", "content": "c", "annotations": [{"type": "url_citation", "url_citation": {}}]},
            {"role": "assistant", "content": [{"type": "text", "text": "d", "annotations": []}]},
            *MESSAGES,
        ],
        "stream": True,
        "stream_options": {"include_usage": True, "include_obfuscation": False},
        "max_tokens": 1,
    }
    assert server.post(CHAT, body).status_code == 200
    _, called, first, second, said, cited, streamed, _ = llm.rendered[0][0]
    shown = {"id": "a", "type": "function", "function": {"name": "f", "arguments": ""}}
    assert called["tool_calls"] == [shown, {**shown, "id": "b", "function": {"name": "f", "arguments": "{}"}}]
    assert (called["reasoning"], said["reasoning_content"], "reasoning" in said) == ("hm", "so", False)
    assert (first["content"], second["content"]) == ("", "")
    assert cited == {"role": "assistant", "content": "c"}
    assert streamed == {"role": "assistant", "content": [{"type": "text", "text": "d"}]}
    wrong = {**body, "stream_options": {"include_obfuscation": True}}
    assert server.post(CHAT, wrong).json()["error"]["param"] == "stream_options.include_obfuscation"
    assert server.post(CHAT, {**body, "messages": [{"role": "user"}]}).status_code == 400


def test_conversations_that_began_elsewhere(server: LiveServer, llm: FakeLLM) -> None:
    """What another server encrypted is left out, and a null is what is not there."""
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    output = {"type": "function_call_output", "call_id": "c", "output": "1", "name": None, "caller": None}
    thought = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAA"}
    body: dict[str, Any] = {"input": [*MESSAGES, thought, call, output], "max_output_tokens": 1}
    assert server.post("/v1/responses", body).status_code == 200
    blocks = [
        {"type": "thinking", "thinking": "hm", "signature": None},
        {"type": "tool_use", "id": "c", "name": "f", "input": {}},
    ]
    result = {"type": "tool_result", "tool_use_id": "c", "content": None, "is_error": None}
    turns = [*MESSAGES, {"role": "assistant", "content": blocks}, {"role": "user", "content": [result]}]
    assert server.post("/v1/messages", {"model": "fake/model", "max_tokens": 1, "messages": turns}).status_code == 200
    for messages, _ in llm.rendered:
        assert [message["role"] for message in messages] == ["user", "assistant", "tool"]
    assert [messages[1].get("reasoning") for messages, _ in llm.rendered] == [None, "hm"]
    assert [messages[2]["content"] for messages, _ in llm.rendered] == ["1", ""]


@pytest.mark.parametrize(
    "pattern",
    [
        r"prompt is too long: \d+ tokens > \d+ maximum",  # as Anthropic: LangChain, LiteLLM, opencode, Kilo Code
        r"maximum context length is \d+ tokens",  # opencode, Kilo Code, CrewAI
        r"(?i)this model's maximum context length is",  # LiteLLM, and what is built upon it
        r"context length",  # Cline, Goose
    ],
)
def test_how_agents_tell_that_a_conversation_is_too_long(shared: LiveServer, pattern: str) -> None:
    """They make it shorter, and go on; another error ends the task."""
    long = "word " * 200
    asks: dict[str, dict[str, Any]] = {
        CHAT: {"messages": [{"role": "user", "content": long}]},
        "/v1/completions": {"prompt": long},
        "/v1/responses": {"input": long},
        "/v1/messages": {"messages": [{"role": "user", "content": long}], "max_tokens": 9},
    }
    for path, ask in asks.items():
        for stream in (False, True):
            answer = shared.post(path, {"model": "fake/model", "stream": stream, **ask})
            assert answer.status_code == 400
            assert re.search(pattern, answer.json()["error"]["message"])


def test_what_openrouters_client_reads(shared: LiveServer) -> None:
    reply = shared.post(CHAT, {"messages": MESSAGES, "max_tokens": 1}).json()
    assert reply["system_fingerprint"] is None


def test_what_sillytavern_sends(shared: LiveServer) -> None:
    """A chat of many characters by vLLM's completions: all their names stop it, and those of its prompt's marks."""
    stops = [f"\nCharacter {number}:" for number in range(40)] + ["<|im_end|>", "<|im_start|>user"]
    body: dict[str, Any] = {
        "model": "fake/model",
        "prompt": "Once",
        "max_tokens": 8,
        "temperature": 1,
        "top_p": 1,
        "top_k": 0,
        "min_p": 0,
        "n": 1,
        "best_of": 1,
        "presence_penalty": 0,
        "frequency_penalty": 0,
        "repetition_penalty": 1,
        "min_tokens": 0,
        "stop": [*stops, ANSWER[3:5]],
        "ignore_eos": False,
        "skip_special_tokens": True,
        "spaces_between_special_tokens": True,
        "seed": 5,
        "stream": False,
    }
    choice = shared.post("/v1/completions", body).json()["choices"][0]
    assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == (ANSWER[:3], "stop", ANSWER[3:5])
    many = {**body, "stop": [str(number) for number in range(65)]}
    assert shared.post("/v1/completions", many).json()["error"]["param"] == "stop"

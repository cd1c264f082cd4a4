"""A model with a chat template of its own for tools: it shows them, and tells the format of their calls."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from replay import TEMPLATE, replay_model, replay_server
from serving import LiveServer

sys.path.insert(0, str(Path(__file__).parents[1] / "text"))

from answers import RECORDED, TOOLS

PLAIN = "{{ '<s><|user|>' + messages[-1].content + '<|assistant|>' }}"
CALLS = next(one for one in RECORDED if one.format == "mistral")
ASKED: list[Any] = [{"type": "function", "function": {"name": name, "parameters": one}} for name, one in TOOLS.items()]


@pytest.fixture(scope="module")
def server(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    scripts = {"calls": CALLS.text, "qwen": '<tool_call>{"name": "noop", "arguments": {}}</tool_call>'}
    folder = replay_model(checkpoint("llama"), tmp_path_factory.mktemp("replay") / "model", scripts)
    path = folder / "tokenizer_config.json"
    templates = {"default": PLAIN + "{# <tool_call> #}", "tool_use": TEMPLATE + "{# [TOOL_CALLS] #}"}
    named = [{"name": name, "template": text} for name, text in templates.items()]
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": named}))
    with replay_server(folder, trust_request_chat_template=True) as live:
        yield live


def chat(server: LiveServer, script: str, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": script}]
    reply = server.post("/v1/chat/completions", {"messages": messages, "tools": ASKED, "max_tokens": 500, **more})
    message: dict[str, Any] = reply.json()["choices"][0]["message"]
    return message


def prompt(server: LiveServer, **more: Any) -> str:
    body = {"messages": [{"role": "user", "content": "calls"}], "tools": ASKED, **more}
    ids = server.post("/tokenize", body).json()["tokens"]
    text: str = server.post("/detokenize", {"tokens": ids}).json()["prompt"]
    return text


def test_tools_are_shown_by_it(server: LiveServer) -> None:
    bare = "<s><|user|>calls<|assistant|>"
    assert json.loads(prompt(server).removeprefix("<s>").removesuffix(bare[3:])) == ASKED
    assert prompt(server, tools=None) == prompt(server, tools=[]) == prompt(server, tool_choice="none") == bare
    assert prompt(server, chat_template="{{ '<s>' }}{{ tools | length }}") == f"<s>{len(ASKED)}"


def test_it_tells_the_format_of_calls(server: LiveServer) -> None:
    calls = chat(server, "calls")["tool_calls"]
    assert [(one["function"]["name"], json.loads(one["function"]["arguments"])) for one in calls] == CALLS.calls
    assert not chat(server, "qwen").get("tool_calls")


def test_a_template_of_the_requests_own_tells_it_instead(server: LiveServer) -> None:
    (call,) = chat(server, "qwen", chat_template=TEMPLATE + "{# <tool_call> #}")["tool_calls"]
    assert call["function"]["name"] == "noop"


def test_a_broken_one_refuses_chats_alone(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    folder = replay_model(checkpoint("llama"), tmp_path / "model", {"calls": "said"})
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": "{% if %}"}))
    with replay_server(folder, trust_request_chat_template=True) as live:
        body = {"messages": [{"role": "user", "content": "calls"}], "max_tokens": 5}
        refused = live.post("/v1/chat/completions", body)
        assert refused.status_code == 400
        assert refused.json()["error"]["message"].startswith("the chat template does not parse")
        assert live.post("/v1/chat/completions", {**body, "chat_template": PLAIN}).status_code == 200
        assert live.post("/v1/completions", {"prompt": "calls", "max_tokens": 5}).status_code == 200

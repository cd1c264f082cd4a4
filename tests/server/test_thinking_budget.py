"""thinking_token_budget through the real engine, offline and served; random weights never end their reasoning."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from replay import TEMPLATE, replay_model
from serving import LiveServer
from test_bad_input import check_form

from octavo import LLM, SamplingParams
from octavo.api.async_llm import AsyncLLM
from octavo.base.config.config import EngineConfig, ModelConfig
from octavo.base.errors import InputError, UnsupportedError
from octavo.base.types.structured import StructuredOutputsParams
from octavo.engine.grammar.checker import Checker
from octavo.server.anthropic import thinking as thinking_module
from octavo.server.anthropic.thinking import with_thinking
from octavo.server.anthropic.types import ThinkingEnabled
from octavo.server.openai.types import ChatRequest, Message

OPENING = "<think>\n"
SIGNS = "{# <think> </think> #}"
ASKED: Any = [{"role": "user", "content": "plain"}]
STRICT: Any = [{"type": "function", "function": {"name": "noop", "strict": True}}]


@pytest.fixture(scope="module")
def folder(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return replay_model(checkpoint("llama"), tmp_path_factory.mktemp("thinking") / "model", {})


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[LLM]:
    made = LLM(str(folder), load_format="dummy", device="cpu", chat_template=TEMPLATE + SIGNS)
    yield made
    made.close()


def ids(llm: LLM, text: str) -> int:
    return llm.get_tokenizer().convert_tokens_to_ids(text)


def thinking(budget: int | None, **more: Any) -> SamplingParams:
    return SamplingParams(max_tokens=30, seed=3, thinking_token_budget=budget, **more)


@pytest.mark.parametrize("budget", [0, 1, 7])
def test_reasoning_ends_in_time(llm: LLM, budget: int) -> None:
    end = ids(llm, "</think>")
    (output,) = llm.chat(ASKED, thinking(budget, n=3), chat_template_kwargs={"opening": OPENING}, use_tqdm=False)
    for one in output.outputs:
        assert end in one.token_ids[: budget + 2]  # the model may say once more that it begins
        assert ids(llm, "<think>") not in one.token_ids[one.token_ids.index(end) :]


def test_what_is_no_bound(llm: LLM) -> None:
    more: Any = {"chat_template_kwargs": {"opening": OPENING}, "use_tqdm": False}
    free, unbounded = (
        llm.chat(ASKED, thinking(budget, temperature=0), **more)[0].outputs[0].token_ids for budget in (None, -1)
    )
    assert free == unbounded
    closed = llm.chat(
        ASKED, thinking(2), chat_template_kwargs={"opening": "<think>\\n\\n</think>\\n\\n"}, use_tqdm=False
    )
    assert closed[0].finished


@pytest.mark.parametrize("prompt", ["<think>" + 30 * "Hm. ", "<think>Hm</think>So<think>" + 30 * "Hm. "])
def test_a_prompt_that_ends_amid_reasoning(llm: LLM, server: LiveServer, prompt: str) -> None:
    (output,) = llm.generate(prompt, thinking(4), use_tqdm=False)
    assert ids(llm, "</think>") in output.outputs[0].token_ids[:6]
    reply = ask(server, "/v1/completions", prompt=prompt, thinking_token_budget=4, skip_special_tokens=False).json()
    assert reply["choices"][0]["text"].count("</think>")


def test_no_reasoning_begins_where_the_prompt_has_ended_it(llm: LLM) -> None:
    again = thinking(3, logit_bias={ids(llm, "<think>"): 100}, skip_special_tokens=False)
    more: Any = {"chat_template_kwargs": {"opening": "<think>\n\n</think>\n\n"}, "use_tqdm": False}
    (output,) = llm.chat(ASKED, again, **more)
    assert ids(llm, "<think>") not in output.outputs[0].token_ids


def test_the_way_that_an_option_names(folder: Path) -> None:
    given: Any = {"load_format": "dummy", "device": "cpu"}
    with LLM(str(folder), reasoning_parser="seed_oss", **given) as llm:
        (output,) = llm.generate("<seed:think>", thinking(3), use_tqdm=False)
        assert ids(llm, "</seed:think>") in output.outputs[0].token_ids[:5]
    with LiveServer(AsyncLLM(str(folder), reasoning_parser="seed_oss", **given)) as live:
        more: Any = {"thinking_token_budget": 3, "skip_special_tokens": False}
        assert "</seed:think>" in ask(live, "/v1/completions", prompt="<seed:think>", **more).text
        more["chat_template_kwargs"] = {"opening": "<seed:think>"}
        reply = ask(live, "/v1/chat/completions", messages=ASKED, **more).json()
        assert reply["usage"]["completion_tokens_details"]["reasoning_tokens"] <= 4


def test_a_lenient_form_behind_reasoning_is_not_judged_with_it(llm: LLM, server: LiveServer) -> None:
    form = StructuredOutputsParams(json={"type": "integer", "minimum": 3}, lenient=True)
    (output,) = llm.chat(
        ASKED, thinking(3, structured_outputs=form), chat_template_kwargs={"opening": OPENING}, use_tqdm=False
    )
    assert output.outputs[0].finish_reason == "stop"
    assert output.outputs[0].structured_outputs_valid is None
    lenient: Any = {"structured_outputs": {"json": {"type": "integer", "minimum": 3}, "lenient": True}}
    text = ask(server, "/v1/completions", prompt="So: <think>", thinking_token_budget=4, **lenient).json()
    assert text["choices"][0].get("structured_outputs_valid") is None
    chat: Any = {"messages": ASKED, "chat_template_kwargs": {"opening": OPENING}, "thinking_token_budget": 4}
    reply = ask(server, "/v1/chat/completions", **chat, **lenient).json()
    assert reply["choices"][0]["structured_outputs_valid"] is True
    lenient["structured_outputs"]["json"] = {"contains": {"$ref": "http://127.0.0.1:9/"}}  # nothing judges it
    refused = check_form(server.post("/v1/chat/completions", {**chat, **lenient}))
    assert refused["param"] == "structured_outputs.json"


def test_errors(llm: LLM, folder: Path) -> None:
    for wrong in (-2, 1.5, True):
        with pytest.raises(InputError, match="thinking_token_budget must be"):
            thinking(wrong)  # type: ignore[arg-type]
    with LLM(str(folder), load_format="dummy", device="cpu") as plain, pytest.raises(UnsupportedError) as refused:
        plain.chat(ASKED, thinking(5), use_tqdm=False)
    assert refused.value.param == "thinking_token_budget"


def test_marks_that_are_no_special_tokens(folder: Path, tmp_path: Path) -> None:
    """Such are those of Qwen3, DeepSeek-R1, GLM ..."""
    model = shutil.copytree(folder, tmp_path / "model")
    file = json.loads((model / "tokenizer.json").read_text())
    for token in file["added_tokens"]:
        token["special"] = token["special"] and token["content"] not in ("<think>", "</think>")
    (model / "tokenizer.json").write_text(json.dumps(file))
    more: Any = {"chat_template_kwargs": {"opening": OPENING}, "use_tqdm": False}
    with LLM(str(model), load_format="dummy", device="cpu", chat_template=TEMPLATE + SIGNS) as llm:
        for budget in (0, 3):
            (output,) = llm.chat(ASKED, thinking(budget, n=3), **more)
            for one in output.outputs:
                assert "</think>" in one.text
                end = ids(llm, "</think>")
                assert end in one.token_ids[: budget + 2]
                assert ids(llm, "<think>") not in one.token_ids[one.token_ids.index(end) :]


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[LiveServer]:
    with LiveServer(AsyncLLM(str(folder), load_format="dummy", device="cpu", chat_template=TEMPLATE + SIGNS)) as live:
        yield live


def ask(server: LiveServer, path: str, **more: Any) -> httpx.Response:
    body = {"model": "model", "max_tokens": 30, "seed": 3, **more}
    return httpx.post(server.url + path, json=body, timeout=60)


def test_served(server: LiveServer) -> None:
    chat: Any = {"messages": ASKED, "chat_template_kwargs": {"opening": OPENING}, "thinking_token_budget": 4}
    reply = ask(server, "/v1/chat/completions", **chat).json()
    assert reply["usage"]["completion_tokens_details"]["reasoning_tokens"] <= 5
    assert reply["choices"][0]["message"]["content"]
    named = {"thinking_budget" if name == "thinking_token_budget" else name: value for name, value in chat.items()}
    assert ask(server, "/v1/chat/completions", **named).json()["choices"] == reply["choices"]
    for wrong in ({"thinking_budget": -2}, {"thinking_budget": 4, "thinking_token_budget": 4}):
        error = ask(server, "/v1/chat/completions", messages=ASKED, **wrong).json()["error"]
        assert (error["param"], error["message"][:15]) == ("thinking_budget", "thinking_budget")
    text = ask(server, "/v1/completions", prompt="So: <think>", thinking_token_budget=4, skip_special_tokens=False)
    _, end, rest = text.json()["choices"][0]["text"].partition("</think>")
    assert end
    assert rest
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"enum": [12]}}}
    reply = ask(server, "/v1/chat/completions", **chat, response_format=form).json()
    assert reply["choices"][0]["message"]["content"].strip() == "12"
    tools = [{"type": "function", "function": {"name": "noop"}}]
    for more in ({"tool_choice": "required"}, {"tools": STRICT}):  # its template does not tell how it writes calls
        refused = ask(server, "/v1/chat/completions", **{**chat, "tools": tools, **more})
        assert check_form(refused)["param"] in ("tool_choice", "tools[0].function.strict")
    for more in ({}, {"tools": tools}):
        refused = ask(server, "/v1/chat/completions", **chat, **more, structured_outputs={"regex": "a+"})
        assert refused.json()["error"]["param"] == "thinking_token_budget"


def test_calls_that_are_demanded_come_behind_reasoning_that_is_bounded(folder: Path) -> None:
    model = AsyncLLM(str(folder), load_format="dummy", device="cpu", chat_template=TEMPLATE + SIGNS)
    chat: Any = {"messages": ASKED, "chat_template_kwargs": {"opening": OPENING}, "thinking_token_budget": 4}
    with LiveServer(model, tool_call_parser="hermes") as live:
        for choice in ("required", "auto"):
            reply = ask(live, "/v1/chat/completions", **chat, tools=STRICT, tool_choice=choice).json()
            assert reply["usage"]["completion_tokens_details"]["reasoning_tokens"] <= 5


def test_its_grammar_is_not_tried_out_in_the_event_loop(server: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = []
    monkeypatch.setattr(Checker, "check", lambda *_: threads.append(threading.current_thread()))
    reply = ask(server, "/v1/completions", prompt=[1, 70, 71], thinking_token_budget=3)
    assert reply.status_code == 200
    assert threads
    assert server._thread not in threads


def test_messages_name_their_own_field(server: LiveServer) -> None:
    body: Any = {"model": "model", "max_tokens": 30, "messages": ASKED}
    for budget, status in ((1024, 200), (1 << 40, 400)):
        more = {"thinking": {"type": "enabled", "budget_tokens": budget}}
        reply = httpx.post(server.url + "/v1/messages", json=body | more, timeout=60)
        assert reply.status_code == status
    assert reply.json()["error"]["message"].startswith("thinking.budget_tokens must be between")


def test_messages_bound_it_where_it_can_be_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    chat: Any = ChatRequest(messages=[Message(role="user", content="plain")])
    asked = ThinkingEnabled(budget_tokens=2000)
    for marks, bound in (({"<think>": 1, "</think>": 2}, 2000), ({}, None)):
        monkeypatch.setattr(thinking_module, "template_source", lambda *_: SIGNS)
        model = SimpleNamespace(spec=SimpleNamespace(vocab_size=10))
        tokenizer = SimpleNamespace(special_ids=dict, token_to_id=marks.get)
        config = EngineConfig(model=ModelConfig(model="m"))
        services: Any = SimpleNamespace(llm=SimpleNamespace(tokenizer=tokenizer, model=model, config=config))
        assert with_thinking(services, asked, chat).thinking_token_budget == bound
        assert with_thinking(services, None, chat).thinking_token_budget is None


@pytest.mark.parametrize("opening", [OPENING, ""])
def test_ignore_eos_goes_on_behind_reasoning(llm: LLM, opening: str) -> None:
    end = llm.get_tokenizer().eos_token_id
    eager = thinking(2, ignore_eos=True, logit_bias={end: 100})
    (output,) = llm.chat(ASKED, eager, chat_template_kwargs={"opening": opening}, use_tqdm=False)
    (one,) = output.outputs
    assert (len(one.token_ids), one.finish_reason) == (30, "length")

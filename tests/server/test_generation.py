"""What a request's fields become: SamplingParams, prompts and templates as the engine gets them, and replies."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from fake_llm import ANSWER, BOS, MAX_MODEL_LEN, FakeLLM
from serving import LiveServer

from octavo.base.config.config import ServerConfig
from octavo.base.errors import ConfigError
from octavo.base.types.output import Logprob
from octavo.base.types.sampling import RequestOutputKind, SamplingParams
from octavo.server.app import App
from octavo.server.names import ModelNames
from octavo.server.openai.logprobs import TextEnd, chat_logprobs, completion_logprobs, prompt_logprobs

MESSAGES = [{"role": "user", "content": "hi"}]
SAMPLING: dict[str, Any] = {
    "n": 2,
    "temperature": 0.5,
    "top_p": 0.9,
    "top_k": 40,
    "min_p": 0.1,
    "presence_penalty": 0.5,
    "frequency_penalty": -0.5,
    "repetition_penalty": 1.5,
    "seed": 7,
    "stop": ["zebra"],
    "stop_token_ids": [9],
    "include_stop_str_in_output": True,
    "ignore_eos": True,
    "max_tokens": 5,
    "min_tokens": 2,
    "allowed_token_ids": [1, 2],
    "bad_words": ["zap"],
    "skip_special_tokens": False,
    "spaces_between_special_tokens": False,
    "prompt_logprobs": 1,
}


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_every_sampling_field_arrives(server: LiveServer, llm: FakeLLM, path: str) -> None:
    source = {"messages": MESSAGES} if "chat" in path else {"prompt": "hi"}
    answer = server.post(path, {**source, **SAMPLING, "logit_bias": {"5": 1.5}, "cache_salt": "s"})
    assert answer.status_code == 200, answer.text
    _, params, _, salt = llm.seen[0]
    expected = SamplingParams(**SAMPLING, logit_bias={5: 1.5}, output_kind=RequestOutputKind.FINAL_ONLY)
    assert params == expected
    assert salt == "s"
    untested = set(SamplingParams.__struct_fields__) - set(SAMPLING)
    own = {"structured_outputs", "logit_bias", "output_kind", "logprobs", "detokenize", "thinking_token_budget"}
    assert untested == own


def test_the_models_defaults(server: LiveServer, llm: FakeLLM) -> None:
    llm.model.sampling = {"temperature": 0.3, "top_k": 9, "max_tokens": 4}
    server.post("/v1/completions", {"prompt": "a", "top_k": 0})
    server.post("/v1/chat/completions", {"messages": MESSAGES, "max_completion_tokens": 3, "max_tokens": 9})
    _, params, _, _ = llm.seen[0]
    assert (params.temperature, params.top_k, params.max_tokens) == (0.3, 0, 4)
    assert llm.seen[1][1].max_tokens == 3


def test_priority() -> None:
    llm = FakeLLM(policy="priority")
    with LiveServer(llm) as server:
        assert server.post("/v1/completions", {"prompt": "a", "priority": -3}).status_code == 200
    assert llm.seen[0][2] == -3


@pytest.mark.parametrize(("keep", "left"), [(3, 3), (500, 100), (-1, 100)])
def test_truncation(server: LiveServer, llm: FakeLLM, keep: int, left: int) -> None:
    prompt = list(range(100))
    server.post("/v1/completions", {"prompt": prompt, "truncate_prompt_tokens": keep})
    assert llm.seen[0][0] == prompt[-left:]


def test_truncation_to_what_fits(server: LiveServer, llm: FakeLLM) -> None:
    answer = server.post("/v1/completions", {"prompt": "x" * 600, "truncate_prompt_tokens": -1, "max_tokens": 12})
    assert answer.json()["usage"] == {
        "prompt_tokens": MAX_MODEL_LEN - 12,
        "completion_tokens": 12,
        "total_tokens": MAX_MODEL_LEN,
        "prompt_tokens_details": {"cached_tokens": 4},
    }


def test_special_tokens_are_added_unless_told(server: LiveServer, llm: FakeLLM) -> None:
    server.post("/v1/completions", {"prompt": "a"})
    server.post("/v1/completions", {"prompt": "a", "add_special_tokens": False})
    assert [seen[0] for seen in llm.seen] == [[BOS, 97], [97]]


def test_echo_of_token_ids(server: LiveServer) -> None:
    answer = server.post("/v1/completions", {"prompt": [104, 105], "echo": True, "max_tokens": 2, "n": 2})
    assert [choice["text"] for choice in answer.json()["choices"]] == ["hi" + ANSWER[:2]] * 2


def test_prompt_logprobs(server: LiveServer) -> None:
    choice = server.post("/v1/completions", {"prompt": "ab", "prompt_logprobs": 1, "max_tokens": 1}).json()["choices"][
        0
    ]
    assert choice["prompt_logprobs"] == [
        None,
        {"97": {"logprob": -0.25, "rank": 1, "decoded_token": "a"}},
        {"98": {"logprob": -0.25, "rank": 1, "decoded_token": "b"}},
    ]
    chat = server.post("/v1/chat/completions", {"messages": MESSAGES, "prompt_logprobs": 0, "max_tokens": 1}).json()
    assert len(chat["prompt_logprobs"]) == chat["usage"]["prompt_tokens"]


def test_token_ids_in_replies(server: LiveServer) -> None:
    ids = [ord(char) for char in ANSWER[:3]]
    ask = {"prompt": [1, 2], "max_tokens": 3, "return_token_ids": True}
    choice = server.post("/v1/completions", ask).json()["choices"][0]
    assert (choice["token_ids"], choice["prompt_token_ids"]) == (ids, [1, 2])
    events = server.events("/v1/completions", ask)[:-1]
    assert [event["choices"][0]["token_ids"] for event in events] == [[token] for token in ids]
    assert ["prompt_token_ids" in event["choices"][0] for event in events] == [True, False, False]
    chat = server.post("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 3, "return_token_ids": True}).json()
    assert chat["choices"][0]["token_ids"] == ids
    assert len(chat["prompt_token_ids"]) == chat["usage"]["prompt_tokens"]
    asked = {"messages": MESSAGES, "max_tokens": 2, "n": 2, "return_token_ids": True}
    chunks = server.events("/v1/chat/completions", asked)[:-1]
    assert [chunk.get("prompt_token_ids") for chunk in chunks] == [
        chat["prompt_token_ids"],
        *[None] * (len(chunks) - 1),
    ]
    assert not any("prompt_token_ids" in chunk["choices"][0] for chunk in chunks)


def test_tokens_by_their_ids(server: LiveServer) -> None:
    ask = {"max_tokens": 2, "return_tokens_as_token_ids": True}
    names = [f"token_id:{ord(char)}" for char in ANSWER[:2]]
    body = {"prompt": [104], "echo": True, "logprobs": 1, **ask}
    logprobs = server.post("/v1/completions", body).json()["choices"][0]["logprobs"]
    assert (logprobs["tokens"], logprobs["text_offset"]) == (["token_id:104", *names], [0, 1, 2])
    assert [list(tops)[-1] for tops in logprobs["top_logprobs"][1:]] == names
    body = {"messages": MESSAGES, "logprobs": True, "top_logprobs": 1, **ask}
    content = server.post("/v1/chat/completions", body).json()["choices"][0]["logprobs"]["content"]
    told = [(entry["token"], bytes(entry["bytes"]).decode(), entry["top_logprobs"][0]["token"]) for entry in content]
    assert told == list(zip(names, ANSWER[:2], names, strict=True))


def test_continuous_usage(server: LiveServer) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    events = server.events("/v1/completions", {"prompt": "a", "max_tokens": 3, "stream_options": options})
    assert [event["usage"]["completion_tokens"] for event in events[:-1]] == [1, 2, 3, 3]
    assert [len(event["choices"]) for event in events[:-1]] == [1, 1, 1, 0]
    options = {"continuous_usage_stats": True}
    events = server.events("/v1/completions", {"prompt": "a", "max_tokens": 3, "stream_options": options})
    assert [event["usage"]["completion_tokens"] for event in events[:-1]] == [1, 2, 3]


def test_what_the_template_gets(server: LiveServer, llm: FakeLLM) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    sent = {**call, "function": {**call["function"], "parsed_arguments": {"x": 1}}}  # as by openai's parse()
    messages = [
        {"role": "system", "content": [{"type": "text", "text": "be"}, {"type": "text", "text": "kind"}]},
        {"role": "assistant", "content": None, "tool_calls": [sent], "reasoning": "hm", "parsed": {"x": [1]}},
        {"role": "tool", "content": "2", "tool_call_id": "c1", "name": "f"},
    ]
    ask = {"messages": messages, "tools": [tool], "chat_template_kwargs": {"thinking": True}, "documents": [{"a": "b"}]}
    assert server.post("/v1/chat/completions", {**ask, "max_tokens": 1}).status_code == 200
    given, options = llm.rendered[0]
    assert given == [
        messages[0],
        {"role": "assistant", "reasoning": "hm", "tool_calls": [call], "content": None},
        messages[2],
    ]
    assert options == {
        "tools": [tool],
        "chat_template": None,
        "add_generation_prompt": True,
        "continue_final_message": False,
        "chat_template_kwargs": {"thinking": True, "documents": [{"a": "b"}]},
        "tool_call_parser": None,
    }
    server.post("/v1/chat/completions", {**ask, "tool_choice": "none", "max_tokens": 1})
    assert llm.rendered[1][1]["tools"] is None


def test_continuing_a_message(server: LiveServer, llm: FakeLLM) -> None:
    messages = [*MESSAGES, {"role": "assistant", "content": "Once"}]
    ask = {"messages": messages, "continue_final_message": True, "echo": True, "max_tokens": 3}
    reply = server.post("/v1/chat/completions", ask).json()
    message = {"role": "assistant", "content": "Once" + ANSWER[:3], "refusal": None}
    assert reply["choices"][0]["message"] == message
    assert llm.rendered[0][1]["add_generation_prompt"] is False
    events = server.events("/v1/chat/completions", ask)
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": "Once"}


@pytest.mark.parametrize(
    ("template", "given", "told"),
    [
        ("{% if enable_thinking %}", {}, {"enable_thinking": False}),
        ("{% if enable_thinking %}", {"enable_thinking": True}, {"enable_thinking": True}),
        ("{{ reasoning_effort }}", {}, {"reasoning_effort": "none"}),
        ("", {}, {}),
    ],
)
def test_no_reasoning_effort(server: LiveServer, llm: FakeLLM, template: str, given: Any, told: Any) -> None:
    """It turns reasoning off where the template can, and asks for nothing where there is none."""
    llm.model.template.source = template
    ask = {"messages": MESSAGES, "max_tokens": 1, "reasoning_effort": "none", "chat_template_kwargs": given}
    assert server.post("/v1/chat/completions", ask).status_code == 200
    assert llm.rendered[-1][1]["chat_template_kwargs"] == told
    assert server.post("/v1/responses", {"input": "hi", "reasoning": {"effort": "none"}}).status_code == 200


@pytest.mark.parametrize(
    ("template", "names"),
    [
        ("{%- if enable_thinking is defined and not enable_thinking %}", ["enable_thinking"]),
        ("{%- set enable_thinking = enable_thinking | default(true) %}", ["enable_thinking"]),
        ("{% if not thinking is defined %}{% set thinking = false %}{% endif %}", ["thinking"]),
        ("{%- if thinking %}{%- if enable_thinking %}", ["enable_thinking", "thinking"]),
    ],
)
@pytest.mark.parametrize("on", [True, False])
def test_reasoning_turned_on_and_off(
    server: LiveServer, llm: FakeLLM, template: str, names: list[str], on: bool
) -> None:
    llm.model.template.source = template + "{{ message.thinking }}"
    typed = {"type": "enabled" if on else "disabled"}
    for asked in ({"enable_thinking": on}, {"thinking": typed}, {"enable_thinking": on, "thinking": typed}):
        ask = {"messages": MESSAGES, "max_tokens": 1, **asked}
        assert server.post("/v1/chat/completions", ask).status_code == 200
        assert llm.rendered[-1][1]["chat_template_kwargs"] == dict.fromkeys(names, on)
        own = {"chat_template_kwargs": {names[0]: not on, "a": 1}}
        assert server.post("/v1/chat/completions", {**ask, **own}).status_code == 200
        assert llm.rendered[-1][1]["chat_template_kwargs"] == {**dict.fromkeys(names, on), names[0]: not on, "a": 1}
    error = server.post("/v1/chat/completions", {**ask, "enable_thinking": not on}).json()["error"]
    assert (error["param"], "contradict" in error["message"]) == ("thinking", True)


def with_parser(llm: FakeLLM, name: str) -> None:
    model = msgspec.structs.replace(llm.config.model, reasoning_parser=name)
    llm.config = msgspec.structs.replace(llm.config, model=model)


@pytest.mark.parametrize("parser", ["none", "deepseek_r1"])
def test_reasoning_that_is_on_or_off_for_good(llm: FakeLLM, parser: str) -> None:
    llm.model.template.source = "{% if message.thinking %}{# the user's thinking #}"
    with_parser(llm, parser)
    with LiveServer(llm) as server:
        for on in (True, False):
            for asked in ({"enable_thinking": on}, {"thinking": {"type": "enabled" if on else "disabled"}}):
                answer = server.post("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 1, **asked})
                if on == (parser != "none"):
                    assert answer.status_code == 200
                    assert llm.rendered[-1][1]["chat_template_kwargs"] == {}
                else:
                    assert (answer.status_code, answer.json()["error"]["param"]) == (400, *asked)


def test_default_chat_template_kwargs(llm: FakeLLM) -> None:
    llm.model.template.source = "{{ enable_thinking }}"
    with LiveServer(llm, default_chat_template_kwargs={"enable_thinking": False, "a": 1}) as server:
        for route, own, told in (
            ("/v1/chat/completions", {}, {"enable_thinking": False, "a": 1}),
            ("/v1/chat/completions", {"enable_thinking": True}, {"enable_thinking": True, "a": 1}),
            ("/v1/chat/completions", {"a": None}, {"enable_thinking": False, "a": None}),
            ("/tokenize", {}, {"enable_thinking": False, "a": 1}),
        ):
            assert server.post(route, {"messages": MESSAGES, "chat_template_kwargs": own}).status_code == 200
            assert llm.rendered[-1][1]["chat_template_kwargs"] == told
    for wrong in ({"messages": []}, {"a b": 1}):
        with pytest.raises(ConfigError, match="default_chat_template_kwargs may not set"):
            App(llm, ServerConfig(default_chat_template_kwargs=wrong))


def test_reasoning_that_cannot_be_turned_off(llm: FakeLLM) -> None:
    with_parser(llm, "deepseek_r1")
    with LiveServer(llm) as server:
        answer = server.post("/v1/chat/completions", {"messages": MESSAGES, "reasoning_effort": "none"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "reasoning_effort")


@pytest.mark.parametrize(("template", "role"), [("{{ messages[0].role }}", "system"), ("a developer's", "developer")])
def test_developers_are_the_system_to_templates_that_know_none(
    server: LiveServer, llm: FakeLLM, template: str, role: str
) -> None:
    llm.model.template.source = template
    said = [{"role": "developer", "content": "Be kind"}, *MESSAGES]
    for path, ask in (("/v1/chat/completions", {"messages": said}), ("/v1/responses", {"input": said})):
        assert server.post(path, ask).status_code == 200
        assert llm.rendered[-1][0][0] == {"role": role, "content": "Be kind"}


def test_a_template_of_a_request_needs_trust(llm: FakeLLM) -> None:
    ask = {"messages": MESSAGES, "max_tokens": 1, "chat_template": "{{ messages }}"}
    with LiveServer(llm, trust_request_chat_template=True) as server:
        assert server.post("/v1/chat/completions", ask).status_code == 200
        path = server.post("/v1/chat/completions", {**ask, "chat_template": "/etc/passwd"})
        assert path.json()["error"]["param"] == "chat_template"
    assert llm.rendered[0][1]["chat_template"] == "{{ messages }}"


def test_tokenize_and_back(server: LiveServer) -> None:
    reply = server.post("/tokenize", {"prompt": "hé", "return_token_strs": True}).json()
    assert reply["tokens"] == [BOS, *"hé".encode()]
    assert (reply["count"], reply["max_model_len"]) == (4, MAX_MODEL_LEN)
    assert reply["token_strs"] == ["<bos>", "<0x68>", "<0xC3>", "<0xA9>"]
    assert server.post("/detokenize", {"tokens": reply["tokens"][1:]}).json() == {"prompt": "hé"}
    bare = server.post("/tokenize", {"prompt": "h", "add_special_tokens": False}).json()
    assert (bare["tokens"], bare["token_strs"]) == ([104], None)
    chat = server.post("/tokenize", {"messages": MESSAGES}).json()
    assert chat["tokens"][0] == BOS
    wrong = server.post("/detokenize", {"tokens": [1, 258]})
    assert wrong.json()["error"]["param"] == "tokens"


def test_model_names(tmp_path: Any) -> None:
    names = ModelNames(str(tmp_path), [])
    assert names.first == tmp_path.name
    names.check(str(tmp_path))
    names.check(None)
    served = ModelNames("org/model", ["a", "b"])
    assert served.served == ["a", "b"]
    for wrong in ("org/model", "", "A"):
        with pytest.raises(LookupError):
            served.check(wrong)


def test_logprobs_know_no_infinity() -> None:
    entry = {1: Logprob(float("-inf"), 3, "a"), 2: Logprob(-0.5, 1, "b"), 3: Logprob(-1.0, 2, "b")}
    shown = completion_logprobs([1], [entry], most=2, end=TextEnd())
    assert shown.token_logprobs == [-9999.0]
    assert shown.top_logprobs == [{"b": -0.5, "a": -9999.0}]
    chat = chat_logprobs([1], [entry], most=1).content[0]
    assert (chat.logprob, chat.top_logprobs[0].token) == (-9999.0, "b")
    assert prompt_logprobs([None, {4: Logprob(-1.0)}])[1][4].decoded_token is None  # type: ignore[index]
    assert chat_logprobs([4], [{4: Logprob(-1.0)}], most=0).content[0].token == "token_id:4"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "a"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}),
        ("/v1/responses", {"input": "a"}),
        ("/v1/messages", {"messages": [{"role": "user", "content": "a"}], "max_tokens": 9}),
    ],
)
def test_the_first_of_several_names_is_reported(path: str, body: dict[str, Any]) -> None:
    with LiveServer(FakeLLM(), served_model_name=["first", "second"]) as live:
        assert live.post(path, {**body, "model": "second"}).json()["model"] == "first"


def test_invocations(server: LiveServer) -> None:
    """As SageMaker calls every model: by one path, the request told by its fields."""
    for asked, kind in (({"messages": MESSAGES}, "chat.completion"), ({"prompt": "hi"}, "text_completion")):
        answer = server.post("/invocations", {**asked, "max_tokens": 3})
        assert (answer.status_code, answer.json()["object"]) == (200, kind)
        events = server.events("/invocations", {**asked, "max_tokens": 3, "stream": True})
        assert events[0]["object"].startswith(kind)
    for body, words in (
        ({}, "needs messages, prompt, input"),
        ({"inputs": "hi"}, "needs messages, prompt, input"),
        ([], "Expected object, got array"),
        ({"prompt": "a", "max_token": 3}, "'max_tokens'"),
    ):
        answer = server.post("/invocations", body)
        assert answer.status_code == 400
        assert words in answer.json()["error"]["message"]

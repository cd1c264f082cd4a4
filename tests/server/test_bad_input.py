"""Bad values for every field of every request type, made from the types: always a 4xx in form that names the field."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import msgspec
import pytest
from fake_llm import FakeLLM
from serving import LiveServer

from octavo.server.openai.responses.types import InputTokensRequest, ResponsesRequest
from octavo.server.openai.types import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    Message,
    TokenizeChatRequest,
    TokenizeTextRequest,
)

LEAKS = re.compile(r"0x[0-9a-f]{6,}|/home/|/usr/|/tmp/|site-packages|Traceback|\.py\b|, line \d+|msgspec|object at")
MESSAGES = [{"role": "user", "content": "hi"}]
ROUTES: list[tuple[str, type[msgspec.Struct], dict[str, Any]]] = [
    ("/v1/completions", CompletionRequest, {"prompt": "hi", "max_tokens": 2}),
    ("/v1/chat/completions", ChatRequest, {"messages": MESSAGES, "max_tokens": 2}),
    ("/v1/responses", ResponsesRequest, {"input": "hi", "max_output_tokens": 2}),
    ("/v1/responses/input_tokens", InputTokensRequest, {"input": "hi"}),
    ("/tokenize", TokenizeTextRequest, {"prompt": "hi"}),
    ("/tokenize", TokenizeChatRequest, {"messages": MESSAGES}),
    ("/detokenize", DetokenizeRequest, {"tokens": [1, 2]}),
]
FIELDS = [(path, name, base) for path, kind, base in ROUTES for name in kind.__struct_fields__]

WORDS = [
    ("/v1/chat/completions", {"messages": MESSAGES, "response_format": {"type": "xml"}}, ["json_schema", "text"]),
    ("/v1/embeddings", {"input": "hi", "encoding_format": "int8"}, ["base64", "float"]),
    ("/v2/embed", {"texts": ["hi"], "model": "m", "embedding_types": ["float", "int3"]}, ["base64", "float"]),
    ("/v2/embed", {"texts": ["hi"], "model": "m", "truncate": "START"}, ["NONE", "END"]),
]

# as JSON text, since some of them are none
VALUES = [
    *("-9223372036854775809", "-9223372036854775808", "-1", "0", "129", "1025", "2147483648", "9223372036854775807"),
    *("9223372036854775808", "1" + "0" * 5000, "1e400", "-1e400", "NaN", "Infinity", "-Infinity", "1.5", "-0.0"),
    *('""', '"\\u0000"', '"\\ud800"', '"' + "x" * 5000 + '"', "true", "[]", "[[]]", "[null]", '[""]', "[-1]", "[1.5]"),
    *("[true]", '["a",1]', "[99999]", "[" + "1," * 5000 + "1]", '["' + '","'.join("ab" * 1000) + '"]'),
    *("{}", '{"a":1}', '{"5":1}', '{"99999":1}', '{"1":1e9}', "[" * 500 + "]" * 500, '{"a":' * 500 + "1" + "}" * 500),
]
WRONG_FOR_ALL = '{"\\u0001zzz":[{}]}'  # no field takes this, but those for any JSON
ANY_JSON = {"documents", "chat_template_kwargs", "guided_json", "json_schema"}


def with_field(base: dict[str, Any], name: str, value: str) -> bytes:
    kept = {key: known for key, known in base.items() if key != name}
    head = json.dumps(kept)[:-1]
    return (f"{head}, " if kept else "{").encode() + f'"{name}": {value}}}'.encode()


def check_form(answer: httpx.Response) -> dict[str, Any]:
    assert 400 <= answer.status_code < 500, (answer.status_code, answer.text[:300])
    assert len(answer.content) <= 4096
    assert not LEAKS.search(answer.text), answer.text[:500]
    assert "x" * 250 not in answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == answer.status_code
    assert error["message"]
    return error  # type: ignore[no-any-return]


@pytest.fixture(scope="module", autouse=True)
def unharmed(shared: LiveServer) -> Iterator[None]:
    """The server answers the same before and after, and has forgotten every request."""
    control = {"prompt": "control", "max_tokens": 30, "logprobs": 2}
    before = shared.post("/v1/completions", control).json()["choices"]
    yield
    assert shared.post("/v1/completions", control).json()["choices"] == before
    assert shared.llm.running == set()
    assert len(shared.app.traffic) == 0


@pytest.mark.parametrize(("path", "name", "base"), FIELDS, ids=lambda value: value if isinstance(value, str) else "")
def test_values(shared: LiveServer, path: str, name: str, base: dict[str, Any]) -> None:
    for value in VALUES:
        answer = shared.post(path, with_field(base, name, value))
        if answer.status_code == 200:
            continue
        error = check_form(answer)
        if answer.status_code == 404:
            assert name in ("model", "previous_response_id")
        elif error["param"] is None:  # then it was no JSON at all
            assert "JSON" in error["message"], (value[:40], error)
        else:
            assert error["param"].startswith((name, *ALIASES.get(name, ()))), (value[:40], error)


# a field's value may only be wrong beside another field, which is then the one named
ALIASES = {
    "stream": ("stream",),
    "n": ("n",),
    "min_tokens": ("min_tokens",),
    "max_tokens": ("min_tokens", "max_tokens"),
    "logprobs": ("logprobs", "top_logprobs"),
    "add_special_tokens": ("prompt",),
    "instructions": ("input",),
    "add_generation_prompt": ("continue_final_message",),
    "messages": ("prompt",),
}


@pytest.mark.parametrize(("path", "name", "base"), FIELDS, ids=lambda value: value if isinstance(value, str) else "")
def test_a_wrong_type_names_the_field(shared: LiveServer, path: str, name: str, base: dict[str, Any]) -> None:
    if name in ANY_JSON or (path == "/tokenize" and name == "messages"):
        return
    error = check_form(shared.post(path, with_field(base, name, WRONG_FOR_ALL)))
    assert error["param"].startswith(name)


@pytest.mark.parametrize(("path", "name", "base"), FIELDS, ids=lambda value: value if isinstance(value, str) else "")
def test_null_is_not_given(shared: LiveServer, path: str, name: str, base: dict[str, Any]) -> None:
    answer = shared.post(path, with_field(base, name, "null"))
    if name in base and name in ("prompt", "messages", "tokens", "input"):
        assert check_form(answer)["param"] in (name, *ALIASES.get(name, ()))
    else:
        assert answer.status_code == 200, answer.text


def test_null_beside_the_other_form_of_tokenize(shared: LiveServer) -> None:
    for body in ({"prompt": "hi", "messages": None}, {"messages": MESSAGES, "prompt": None}):
        answer = shared.post("/tokenize", body)
        assert answer.status_code == 200, answer.text
    assert check_form(shared.post("/tokenize", {"prompt": "hi", "messages": MESSAGES}))["param"] == "prompt"


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        *dict.fromkeys(("temp", "Temperature", "temprature", "temperature_"), "temperature").items(),
        *dict.fromkeys(("max_len", "max_length", "max_new_tokens"), "max_").items(),
        *dict.fromkeys(("maxTokens", "max_tokens_to_sample"), "max_").items(),
        *dict.fromkeys(("topp", "topP", "top-p"), "top_p").items(),
        ("topk", "top_k"),
        *dict.fromkeys(("rep_penalty", "repeat_penalty", "rep_pen"), "repetition_penalty").items(),
        *dict.fromkeys(("stop_sequences", "stop_strings", "stops"), "stop'").items(),
        *dict.fromkeys(("random_seed", "seeds"), "seed").items(),
        ("eos_token_id", "stop_token_ids"),
        *dict.fromkeys(("typical_p", "system", "api_key", "do_sample", "t", "", "é", "_", "-"), "").items(),
    ],
)
def test_an_unknown_name_leads_to_the_likely_one(name: str, ours: str, shared: LiveServer) -> None:
    for path, base in (("/v1/completions", {"prompt": "a"}), ("/v1/responses", {"input": "a"})):
        error = check_form(shared.post(path, {**base, name: 1}))
        assert (f"did you mean '{ours}" in error["message"]) if ours else ("leave it out" in error["message"])


def test_names_of_other_local_servers_lead_to_those_here(shared: LiveServer) -> None:
    chat = {"messages": MESSAGES, "max_tokens": 1}
    for field, ours in (("n_predict", "max_tokens"), ("num_predict", "max_tokens"), ("repeat_penalty", "repetition_")):
        assert f"did you mean '{ours}" in check_form(shared.post("/v1/chat/completions", {**chat, field: 1}))["message"]
    assert shared.post("/v1/chat/completions", {**chat, "cache_prompt": True}).status_code == 200
    refused = check_form(shared.post("/v1/chat/completions", {**chat, "cache_prompt": False}))
    assert "--no-enable-prefix-caching" in refused["message"]
    for path, field, ours in (
        ("/v1/embeddings", "truncation", "did you mean 'truncate_prompt_tokens'"),
        ("/v1/embeddings", "output_dimension", "did you mean 'dimensions'"),
        ("/v1/rerank", "texts", "did you mean 'documents'"),
    ):
        body = {"input": "a"} if path == "/v1/embeddings" else {"query": "a"}
        assert ours in check_form(shared.post(path, {**body, field: "b"}))["message"]
    for path, here in (("/api/chat", "/v1/chat/completions"), ("/completion", "/v1/completions"), ("/models", "/v1/m")):
        answer = shared.post(path, chat)
        assert answer.status_code == 404
        assert f"did you mean {here}" in answer.json()["error"]["message"]
    assert "the API is under /v1" in shared.post("/v2/nothing", chat).json()["error"]["message"]


@pytest.mark.parametrize(("path", "kind", "base"), ROUTES, ids=lambda value: getattr(value, "__name__", ""))
def test_unknown_fields(shared: LiveServer, path: str, kind: type, base: dict[str, Any]) -> None:
    error = check_form(shared.post(path, {**base, "frobnicate": None}))
    assert error["param"] == "frobnicate"
    assert "unknown field" in error["message"]
    assert check_form(shared.post(path, {**base, "y" * 100_000: 1}))["param"].startswith("yyy")
    for name in ("x - at y", "`$z"):  # as msgspec tells where a value stands
        assert check_form(shared.post(path, {**base, name: 1}))["param"] == name
    check_form(shared.post(path, {**base, "a`b - at `$.x`": 1}))
    check_form(shared.post(path, {**base, "": 1}))
    check_form(shared.post(path, {**base, "\n\x00\u2028": 1}))


@pytest.mark.parametrize(("path", "body", "words"), WORDS)
def test_words_that_a_field_may_have_are_told(
    shared: LiveServer, path: str, body: dict[str, Any], words: list[str]
) -> None:
    message = check_form(shared.post(path, body))["message"]
    assert all(f"{word!r}" in message for word in words), message


def test_a_likely_field_is_suggested(shared: LiveServer) -> None:
    error = check_form(shared.post("/v1/completions", {"prompt": "a", "max_token": 3}))
    assert "'max_tokens'" in error["message"]


ASKING = {
    "best_of": 2,
    "suffix": "x",
    "logits_processors": ["x"],
    "guided_decoding_backend": "outlines",
    "structural_tag": "{}",
    "early_stopping": True,
    "audio": {"voice": "x"},
    "modalities": ["audio"],
    "reasoning_effort": "high",
    "kv_transfer_params": {"host": "10.0.0.1"},
    "functions": [{"name": "f"}],
    "prediction": {"type": "content", "content": "x"},
    "store": True,
    "service_tier": "flex",
    "vllm_xargs": {"a": 1},
    "prompt_embeds": "AAAA",
    "thinking_token_budget": 10,
    "add_special_tokens": True,
}
ASKING_NOTHING = {
    "best_of": 1,
    "suffix": "",
    "response_format": {"type": "text"},
    "logits_processors": [],
    "store": False,
    "service_tier": "auto",
    "parallel_tool_calls": True,
    "tool_choice": "auto",
    "user": "me",
    "metadata": {"a": "b"},
    "length_penalty": 1.0,
    "modalities": ["text"],
    "thinking_token_budget": -1,
    "add_special_tokens": False,
}
CHAT = {"messages": MESSAGES, "max_tokens": 2}
BIASES: list[Any] = [{"hello": 5}, {"5": "a"}]
LONG = [{"role": "user", "content": "x" * 600}]


@pytest.mark.parametrize("name", ASKING)
def test_known_but_unsupported(shared: LiveServer, name: str) -> None:
    error = check_form(shared.post("/v1/chat/completions", {**CHAT, name: ASKING[name]}))
    assert error["param"] == name
    assert "not supported" in error["message"]


@pytest.mark.parametrize("name", ASKING_NOTHING)
def test_what_asks_for_nothing_passes(shared: LiveServer, name: str) -> None:
    assert shared.post("/v1/chat/completions", {**CHAT, name: ASKING_NOTHING[name]}).status_code == 200


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages[0]"),
        ({"messages": [*MESSAGES, {"role": "user", "content": "x", "zap": 1}]}, "messages[1].zap"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]},
            "messages[0].tool_calls",
        ),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"max_completion_tokens": 2, "min_tokens": 3}, "min_tokens"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"include": True}}, "stream_options.include"),
        ({"stream": True, "prompt_logprobs": 1}, "prompt_logprobs"),
        ({"priority": 3}, "priority"),
        ({"chat_template": "{{ messages }}"}, "chat_template"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"documents": []}}, "chat_template_kwargs"),
        ({"continue_final_message": True, "add_generation_prompt": True}, "continue_final_message"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"stop": ["a"] * 65}, "stop"),
        ({"tools": [{"type": "function", "function": {"name": "f", "strict": True}}]}, "tools[0].function.strict"),
        ({"cache_salt": "s" * 129}, "cache_salt"),
        ({"request_id": "a b"}, "request_id"),
    ],
)
def test_chat_requests(shared: LiveServer, change: dict[str, Any], param: str) -> None:
    error = check_form(shared.post("/v1/chat/completions", {**CHAT, **change}))
    assert error["param"].startswith(param)


def test_a_wrong_key_is_told_from_a_wrong_value(shared: LiveServer) -> None:
    """A key of JSON is a string whatever it holds."""
    found = [check_form(shared.post("/v1/completions", {"prompt": "a", "logit_bias": bias})) for bias in BIASES]
    assert [error["message"] for error in found] == [
        "logit_bias: in a key, expected int, got str",
        "logit_bias: expected float, got str",
    ]


@pytest.mark.parametrize(
    ("path", "change", "told"),
    [
        ("/v1/chat/completions", {"logprobs": True, "top_logprobs": 21}, "top_logprobs=21 is above max_logprobs=20; "),
        ("/v1/chat/completions", {"logprobs": True, "top_logprobs": -1}, "top_logprobs=-1 (all) is above max_logprobs"),
        ("/v1/chat/completions", {"messages": LONG}, "the prompt is too long: 607 tokens > 511 maximum; "),
        ("/v1/responses", {"input": LONG}, "the prompt is too long: 607 tokens > 511 maximum; "),
    ],
)
def test_options_and_the_prompt_keep_their_names(shared: LiveServer, path: str, change: Any, told: str) -> None:
    """Where the field has another one, which the message may name, too."""
    body = {"input" if path == "/v1/responses" else "messages": MESSAGES, **change}
    error = check_form(shared.post(path, body))
    assert error["message"].startswith(told)
    assert error["param"] == list(change)[-1]


@pytest.mark.parametrize(
    "prompt",
    ["", [], [[]], [""], ["a", 1], [1, "a"], [[1], 2], [[1, "a"]], ["a"] * 1025, [-1], [258], [2**31], "x" * 600],
    ids=lambda prompt: str(prompt)[:20],
)
def test_prompts(shared: LiveServer, prompt: Any) -> None:
    body = {"prompt": prompt, "add_special_tokens": False}
    assert check_form(shared.post("/v1/completions", body))["param"].startswith("prompt")


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"null", b"1", b'"a"', b"[]", b"{", b'{"prompt":', b"\xff\xfe", b'{"prompt":"\xff"}'),
        *(
            b'{"prompt":"a"}x',
            b"[" * 200_000,
            b'{"prompt":' * 100_000,
            b'{"metadata":' + b'{"a":' * 100_000,
            b"{'prompt':1}",
        ),
    ],
    ids=lambda body: body[:20].decode("latin-1"),
)
def test_bodies_that_are_no_request(shared: LiveServer, body: bytes) -> None:
    for path in ("/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"):
        check_form(shared.post(path, body))


def test_deep_json_in_free_fields(shared: LiveServer) -> None:
    deep: Any = 1
    for _ in range(70):
        deep = [deep]
    for change in ({"chat_template_kwargs": {"a": deep}}, {"documents": [{"a": deep}]}):
        (name,) = change
        assert check_form(shared.post("/v1/chat/completions", {**CHAT, **change}))["param"] == name
    tool = {"type": "function", "function": {"name": "f", "parameters": {"a": deep}}}
    assert "deeper" in check_form(shared.post("/v1/chat/completions", {**CHAT, "tools": [tool]}))["message"]


def test_message_fields_are_typed() -> None:
    for name in set(Message.__struct_fields__) - {"parsed", "provider_specific_fields"}:  # of which nothing is made
        with pytest.raises(msgspec.ValidationError):
            msgspec.json.decode(f'{{"role":"user","{name}":{{"a":[1]}}}}'.encode(), type=Message)


def test_an_unexpected_exception_tells_nothing(
    server: LiveServer, llm: FakeLLM, caplog: pytest.LogCaptureFixture
) -> None:
    llm.fail_at = 0
    llm.failure = KeyError("/home/someone/secret.py at 0x7f0000000000")
    for stream in (False, True):
        answer = server.post("/v1/completions", {"prompt": "a", "stream": stream}, **{"x-request-id": "find-me"})
        assert answer.status_code == 500
        assert answer.json()["error"]["type"] == "InternalServerError"
        assert "secret" not in answer.text
        assert "find-me" in answer.text
        assert answer.headers["x-request-id"] == "find-me"
    assert "find-me" in caplog.text


MANY = 16_385
PART = {"type": "text", "text": "a"}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
RESULT = {"type": "tool_result", "tool_use_id": "c"}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": [PART] * MANY}]}),
        ("/v1/chat/completions", {"messages": [{"role": "assistant", "content": "a", "tool_calls": [CALL] * MANY}]}),
        ("/v1/responses", {"input": [{"role": "user", "content": [{"type": "input_text", "text": "a"}] * MANY}]}),
        ("/v1/messages", {"messages": [{"role": "user", "content": [RESULT] * MANY}], "model": "m", "max_tokens": 1}),
    ],
)
def test_parts_of_a_message_are_as_bounded_as_messages(shared: LiveServer, path: str, body: dict[str, Any]) -> None:
    answer = shared.post(path, body)
    assert answer.status_code == 400, answer.text
    assert "16384" in answer.text

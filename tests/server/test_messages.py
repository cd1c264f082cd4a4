"""/v1/messages by the stock anthropic client: whole, streamed, counted, refused in Anthropic's own form."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import pytest
from fake_llm import ANSWER, MAX_MODEL_LEN, FakeLLM
from serving import LiveServer, parse_events
from test_bad_input import LEAKS, VALUES, WRONG_FOR_ALL, with_field

from octavo.base.errors import RequestFailedError
from octavo.server.anthropic.types import CountTokensRequest, MessagesRequest

MODEL = "fake/model"
HELLO: list[Any] = [{"role": "user", "content": "Hello"}]
ASK: dict[str, Any] = {"model": MODEL, "messages": HELLO, "max_tokens": 12}
SCHEMA = {"type": "json_schema", "schema": {"type": "object"}}


def connect(server: LiveServer, **options: Any) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=server.url, max_retries=0, **{"api_key": "none", **options})


@pytest.fixture(scope="module")
def client(shared: LiveServer) -> Iterator[anthropic.Anthropic]:
    with connect(shared) as talking:
        yield talking


def test_whole(client: anthropic.Anthropic, shared: LiveServer) -> None:
    reply = client.messages.create(**ASK, system="Be brief", metadata={"user_id": "u"})
    assert [block.text for block in reply.content] == [ANSWER[:12]]  # type: ignore[union-attr]
    assert (reply.type, reply.role, reply.model) == ("message", "assistant", MODEL)
    assert (reply.stop_reason, reply.stop_sequence) == ("max_tokens", None)
    usage = reply.usage
    assert (usage.input_tokens, usage.cache_read_input_tokens, usage.output_tokens) == (25, 4, 12)
    assert [message["content"] for message in shared.llm.rendered[-1][0]] == ["Be brief", "Hello"]
    assert reply._request_id


def test_stream_helper(client: anthropic.Anthropic) -> None:
    with client.messages.stream(**{**ASK, "max_tokens": 200}, stop_sequences=["lazy"]) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == final.content[0].text == ANSWER[: ANSWER.index("lazy")]  # type: ignore[union-attr]
    assert (final.stop_reason, final.stop_sequence) == ("stop_sequence", "lazy")
    assert (final.usage.input_tokens, final.usage.output_tokens) == (8, len(text))


@pytest.mark.parametrize("stream", [False, True])
def test_an_end_of_the_context_is_no_end_of_max_tokens(client: anthropic.Anthropic, stream: bool) -> None:
    """Agents make the conversation shorter after the one, and ask for more tokens after the other."""
    told = {}
    room = MAX_MODEL_LEN - 12
    for most in (room - 1, room, room + 1, 64_000):
        ask = {**ASK, "max_tokens": most}
        if stream:
            with client.messages.stream(**ask) as events:
                message = events.get_final_message()
        else:
            message = client.messages.create(**ask, timeout=30)
        told[most] = (message.stop_reason, message.usage.output_tokens)
    assert told == {
        room - 1: ("max_tokens", room - 1),
        room: ("max_tokens", room),
        room + 1: ("model_context_window_exceeded", room),
        64_000: ("model_context_window_exceeded", room),
    }


def test_the_events(shared: LiveServer) -> None:
    events = shared.events("/v1/messages", {**ASK, "max_tokens": 2})
    assert [event["type"] for event in events] == [
        *("message_start", "ping", "content_block_start", "content_block_delta", "content_block_delta"),
        *("content_block_stop", "message_delta", "message_stop"),
    ]
    assert events[0]["message"]["content"] == []
    assert events[2]["content_block"] == {"type": "text", "text": ""}
    assert events[-2]["delta"] == {"stop_reason": "max_tokens", "stop_sequence": None}
    whole = shared.post("/v1/messages", {**ASK, "max_tokens": 2}).json()
    assert whole["content"] == [{"type": "text", "text": ANSWER[:2]}]  # the AI SDK takes no null citations


def test_counting(client: anthropic.Anthropic) -> None:
    counted = client.messages.count_tokens(model=MODEL, messages=HELLO, system="Be brief")
    usage = client.messages.create(**ASK, system="Be brief").usage
    assert counted.input_tokens == usage.input_tokens + (usage.cache_read_input_tokens or 0)


def test_blocks(client: anthropic.Anthropic, shared: LiveServer) -> None:
    messages: Any = [
        {"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": ""},
                {"type": "text", "text": "I look"},
                {"type": "tool_use", "id": "t1", "name": "look", "input": {"at": 1}},
                {"type": "tool_use", "id": "t2", "name": "look", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": "one"},
                {
                    "type": "tool_result",
                    "tool_use_id": "t2",
                    "content": [{"type": "text", "text": "no"}],
                    "is_error": True,
                },
                {"type": "text", "text": "well?"},
            ],
        },
    ]
    client.messages.create(**{**ASK, "messages": messages}, system=[{"type": "text", "text": "s"}])
    sent = shared.llm.rendered[-1][0]
    assert [(message["role"], message["content"]) for message in sent] == [
        ("system", "s"),
        ("user", "a"),
        ("assistant", "I look"),
        ("tool", "one"),
        ("tool", "Error: no"),
        ("user", "well?"),
    ]
    assert sent[2]["reasoning"] == "hm"
    assert [call["function"] for call in sent[2]["tool_calls"]] == [
        {"name": "look", "arguments": '{"at":1}'},
        {"name": "look", "arguments": "{}"},
    ]
    assert [sent[3]["tool_call_id"], sent[4]["tool_call_id"]] == ["t1", "t2"]


def test_turns_of_one_role_are_one(client: anthropic.Anthropic, shared: LiveServer) -> None:
    calls: Any = [{"type": "text", "text": "I"}, {"type": "tool_use", "id": "t1", "name": "look", "input": {}}]
    results: Any = [{"type": "tool_result", "tool_use_id": "t1", "content": "one"}, {"type": "text", "text": "well?"}]
    turns: Any = [
        *("a", [{"type": "text", "text": "b"}, {"type": "text", "text": "c"}]),
        *("Let me look.", calls),
        *(results, "d"),
    ]
    messages: Any = [
        {"role": ("user", "assistant")[number // 2 % 2], "content": turn} for number, turn in enumerate(turns)
    ]
    client.messages.create(**{**ASK, "messages": messages})
    sent = shared.llm.rendered[-1][0]
    texts = [[part["text"] for part in message["content"]] for message in sent if message["role"] != "tool"]
    assert [message["role"] for message in sent] == ["user", "assistant", "tool", "user"]
    assert texts == [["a", "b", "c"], ["Let me look.", "I"], ["well?", "d"]]
    assert sent[1]["tool_calls"][0]["id"] == sent[2]["tool_call_id"] == "t1"


def test_turns_of_the_system_stay_where_they_stand(client: anthropic.Anthropic, shared: LiveServer) -> None:
    turns: Any = [*HELLO, {"role": "system", "content": [{"type": "text", "text": "Be brief"}]}]
    client.messages.create(**{**ASK, "messages": turns}, system="s")
    sent = [(message["role"], message["content"]) for message in shared.llm.rendered[-1][0]]
    assert sent == [("system", "s"), ("user", "Hello"), ("system", "Be brief")]


def test_a_label_for_the_books_is_no_part_of_the_prompt(client: anthropic.Anthropic, shared: LiveServer) -> None:
    label: Any = {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1.37.abc; cch=d1d48;"}
    client.messages.create(**ASK, system=[label, {"type": "text", "text": "s"}])
    assert [message["content"] for message in shared.llm.rendered[-1][0]] == ["s", "Hello"]
    client.messages.create(**ASK, system=[label])
    assert [message["content"] for message in shared.llm.rendered[-1][0]] == ["Hello"]


def test_thoughts_that_cannot_be_read_are_left_out(client: anthropic.Anthropic, shared: LiveServer) -> None:
    said: Any = [{"type": "redacted_thinking", "data": "AbC="}, {"type": "text", "text": "Hi"}]
    client.messages.create(**{**ASK, "messages": [*HELLO, {"role": "assistant", "content": said}, *HELLO]})
    assert shared.llm.rendered[-1][0][1] == {"role": "assistant", "content": "Hi"}


def test_a_last_turn_of_the_assistant_is_gone_on_from(client: anthropic.Anthropic, shared: LiveServer) -> None:
    client.messages.create(**{**ASK, "messages": [*HELLO, {"role": "assistant", "content": "The"}]})
    options = shared.llm.rendered[-1][1]
    assert (options["continue_final_message"], options["add_generation_prompt"]) == (True, False)


@pytest.mark.parametrize("name", ["enable_thinking", "thinking"])
def test_thinking_is_turned_on_and_off(server: LiveServer, llm: FakeLLM, name: str) -> None:
    llm.model.template.source = f"{{% if not {name} %}}<think></think>{{% endif %}}"
    with connect(server) as client:
        asked: list[tuple[Any, bool]] = [
            ({"type": "enabled", "budget_tokens": 1024}, True),
            ({"type": "adaptive", "display": "omitted"}, True),
            ({"type": "adaptive", "display": "summarized", "block_binding": {}, "budget_tokens": 0}, True),
            ({"type": "disabled"}, False),
            (anthropic.omit, False),
        ]
        for thinking, on in asked:
            client.messages.create(**ASK, thinking=thinking)
            assert llm.rendered[-1][1]["chat_template_kwargs"] == {name: on}


def test_an_effort_goes_where_the_template_reads_it(server: LiveServer, llm: FakeLLM) -> None:
    llm.model.template.source = "{{ reasoning_effort }}"
    with connect(server) as client:
        client.messages.create(**ASK, output_config={"effort": "high"})
    assert llm.rendered[-1][1]["chat_template_kwargs"] == {"reasoning_effort": "high"}


def test_what_asks_for_nothing_is_taken(client: anthropic.Anthropic, shared: LiveServer) -> None:
    """As Claude Code and other users of the client's beta send it."""
    cached = {"type": "ephemeral", "scope": "global", "ttl": "1h"}
    asked: dict[str, Any] = {
        "model": MODEL,
        "messages": [{"role": "user", "content": [{"type": "text", "text": "Hello", "cache_control": cached}]}],
        "thinking": {"type": "adaptive"},  # as little as a model without reasoning thinks
        "tools": [{"name": "f", "input_schema": {"type": "object"}, "eager_input_streaming": True}],
        "tool_choice": {"type": "none"},
        "context_management": {
            "edits": [
                {"type": "clear_thinking_20251015", "keep": "all"},
                {
                    "type": "clear_tool_uses_20250919",
                    "trigger": {"type": "input_tokens", "value": 180000},
                    "keep": {"type": "tool_uses", "value": 3},
                    "clear_at_least": {"type": "input_tokens", "value": 40000},
                    "clear_tool_inputs": ["Bash"],
                    "exclude_tools": ["Edit"],
                },
                {"type": "clear_tool_uses_20250919"},
            ]
        },
        "betas": ["context-management-2025-06-27"],
        "mcp_servers": [],
        "output_config": {"effort": "high"},
    }
    more: dict[str, Any] = {
        "max_tokens": 3,
        "container": None,
        "service_tier": "auto",
        "inference_geo": "global",
        "cache_control": cached,
        "diagnostics": {"previous_message_id": None},
        "fallbacks": "default",
        "speed": "standard",
    }
    assert client.beta.messages.create(**asked, **more).stop_reason == "max_tokens"
    assert client.beta.messages.count_tokens(**asked).input_tokens > 0
    assert shared.post("/v1/messages", {**asked, **more}).status_code == 200


def test_thinking_that_was_to_be_cleared_is(client: anthropic.Anthropic, shared: LiveServer) -> None:
    said: Any = [
        {"role": "assistant", "content": [{"type": "thinking", "thinking": f"t{n}"}, {"type": "text", "text": "a"}]}
        for n in range(3)
    ]
    turns = [turn for answer in said for turn in (*HELLO, answer)] + HELLO
    kept: Any
    for kept, thoughts in (
        ("all", ["t0", "t1", "t2"]),
        ({"type": "all"}, ["t0", "t1", "t2"]),
        ({"type": "thinking_turns", "value": 2}, [None, "t1", "t2"]),
        ({"type": "thinking_turns", "value": 9}, ["t0", "t1", "t2"]),
    ):
        edits: Any = [{"type": "clear_thinking_20251015", "keep": kept}]
        client.beta.messages.create(**{**ASK, "messages": turns}, context_management={"edits": edits})
        answers = [message for message in shared.llm.rendered[-1][0] if message["role"] == "assistant"]
        assert [answer.get("reasoning") for answer in answers] == thoughts
        assert [answer["content"] for answer in answers] == ["a"] * 3


def test_keys() -> None:
    with LiveServer(FakeLLM(), api_key=["sk"]) as server:
        for good in ({"api_key": "sk"}, {"api_key": None, "auth_token": "sk"}):
            with connect(server, **good) as client:
                client.messages.create(**ASK)
        with connect(server, api_key="no") as client, pytest.raises(anthropic.AuthenticationError):
            client.messages.create(**ASK)
        for twice in ([("x-api-key", "sk"), ("x-api-key", "sk")], [("x-api-key", "")]):
            answer = server.client.post("/v1/messages", headers=twice)
            assert answer.status_code == 401
            assert answer.json()["error"]["type"] == "authentication_error"
        assert server.client.get("/v1/models", headers={"x-api-key": "sk"}).status_code == 200


def test_faults(server: LiveServer, llm: FakeLLM) -> None:
    with connect(server) as client:
        llm.overloaded = True
        with pytest.raises(anthropic.APIStatusError) as caught:
            client.messages.create(**ASK)
        assert (caught.value.status_code, caught.value.response.headers["retry-after"]) == (529, "7")
        assert caught.value.body["error"]["type"] == "overloaded_error"  # type: ignore[index, call-overload]
        llm.overloaded, llm.fail_at, llm.failure = False, 3, RequestFailedError("non-finite logits")
        with pytest.raises(anthropic.APIError, match="non-finite"), client.messages.stream(**ASK) as stream:
            stream.until_done()
        events = parse_events(server.post("/v1/messages", {**ASK, "stream": True}).text)
        assert events[-1]["type"] == "error"
        assert events[-1]["error"]["type"] == "api_error"


ROUTES: list[tuple[str, Any, dict[str, Any]]] = [
    ("/v1/messages", MessagesRequest, ASK),
    ("/v1/messages/count_tokens", CountTokensRequest, {"model": MODEL, "messages": HELLO}),
]
FIELDS = [(path, name, base) for path, kind, base in ROUTES for name in kind.__struct_fields__]


def check_form(answer: httpx.Response) -> str:
    """Anthropic's error; its message."""
    assert 400 <= answer.status_code < 500, (answer.status_code, answer.text[:300])
    assert len(answer.content) <= 4096
    assert not LEAKS.search(answer.text), answer.text[:500]
    body = answer.json()
    assert set(body) == {"type", "error", "request_id"}
    assert body["type"] == "error"
    assert body["request_id"] == answer.headers["request-id"] == answer.headers["x-request-id"]
    details = {"error_code": "thread_unsupported_request", "unsupported": ["thread"]}
    assert body["error"].pop("details", details) == details
    assert set(body["error"]) == {"type", "message"}
    assert body["error"]["type"] == ("not_found_error" if answer.status_code == 404 else "invalid_request_error")
    return str(body["error"]["message"])


@pytest.mark.parametrize(("path", "name", "base"), FIELDS, ids=lambda value: value if isinstance(value, str) else "")
def test_values(shared: LiveServer, path: str, name: str, base: dict[str, Any]) -> None:
    for value in [*VALUES, WRONG_FOR_ALL]:
        answer = shared.post(path, with_field(base, name, value))
        if answer.status_code == 200:
            continue
        message = check_form(answer)
        assert name in message or "JSON" in message or (name == "system" and "messages" in message), (
            value[:40],
            message,
        )


@pytest.mark.parametrize(("path", "kind", "base"), ROUTES, ids=lambda value: getattr(value, "__name__", ""))
def test_unknown_fields(shared: LiveServer, path: str, kind: Any, base: dict[str, Any]) -> None:
    assert "'frobnicate'" in check_form(shared.post(path, {**base, "frobnicate": None}))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "system", "content": []}]}, "messages[0].content"),
        ({"messages": [{"role": "system", "content": [{"type": "thinking", "thinking": ""}]}]}, "0].content[0]"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "content of type 'image'"),
        ({"messages": [{"role": "user", "content": [{"type": "thinking", "thinking": ""}]}]}, "messages[0].content[0]"),
        (
            {"messages": [{"role": "assistant", "content": [{"type": "tool_result", "tool_use_id": "a"}]}]},
            "messages[0].content[0]",
        ),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking is not supported by this model"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1}}, "thinking"),
        ({"tools": [{"name": "f"}]}, "tools[0].input_schema"),
        ({"tools": [{"name": "a b", "input_schema": {}}]}, "tools[0].name"),
        ({"tools": [{"name": "bash", "type": "bash_20250124"}]}, "tools"),
        ({"tool_choice": {"type": "some"}}, "tool_choice"),
        ({"output_config": {"format": {"type": "xml"}}}, "output_config"),
        ({"output_format": {"type": "xml"}}, "output_format"),
        ({"output_format": SCHEMA, "output_config": {"format": SCHEMA}}, "output_format is output_config.format"),
        ({"stop_sequences": ["a"] * 65}, "stop_sequences"),
        ({"service_tier": "priority"}, "service_tier"),
        ({"output_config": {"effort": "low"}}, "output_config.effort"),
        ({"thread": {"type": "create"}}, "thread"),
        ({"context_management": {"edits": [{"type": "compact_20260112"}]}}, "context_management"),
        (
            {
                "context_management": {
                    "edits": [
                        {"type": "clear_tool_uses_20250919", "trigger": {"type": "input_tokens", "value": 100}},
                    ]
                }
            },
            "context_management.edits[0]: results of calls are not cleared here",
        ),
        (
            {
                "context_management": {
                    "edits": [{"type": "clear_tool_uses_20250919", "trigger": {"type": "tool_uses", "value": 9}}]
                }
            },
            "got 9 tool_uses",
        ),
        ({"container": "c"}, "container"),
        ({"mcp_servers": [{"type": "url"}]}, "mcp_servers"),
        ({"inference_geo": "us"}, "inference_geo"),
        ({"compaction": {"type": "summarize"}}, "compaction"),
        ({"fallbacks": [{"model": "b"}]}, "fallbacks"),
        ({"thinking": {"type": "adaptive", "display": "updates"}}, "thinking"),
    ],
)
def test_refused(shared: LiveServer, change: dict[str, Any], told: str) -> None:
    assert told in check_form(shared.post("/v1/messages", {**ASK, **change}))


def test_a_schema_is_named_as_it_was_sent(llm: FakeLLM) -> None:
    tool = {"name": "f", "input_schema": {"type": "array"}, "strict": True}
    with LiveServer(llm, tool_call_parser="hermes") as server:
        answer = server.post("/v1/messages", {**ASK, "tools": [tool]})
    assert check_form(answer).startswith("tools[0].input_schema.type must be")


def test_clients_are_told_to_go_on_without_a_thread(shared: LiveServer) -> None:
    error = shared.post("/v1/messages", {**ASK, "thread": {"type": "create"}}).json()["error"]
    assert error["details"] == {"error_code": "thread_unsupported_request", "unsupported": ["thread"]}
    assert "details" not in shared.post("/v1/messages", {**ASK, "thrad": None}).json()["error"]


def test_paths_that_are_not_there_and_wrong_methods(shared: LiveServer) -> None:
    assert shared.client.get("/v1/messages").json()["error"]["type"] == "invalid_request_error"
    assert shared.client.post("/v1/messages/x").json()["error"]["type"] == "not_found_error"
    assert "/v1/batches" in shared.client.post("/v1/messages/batches").json()["error"]["message"]

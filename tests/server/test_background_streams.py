"""Responses streamed from the background, by the stock openai client: resumed, left, cancelled, failed, forgotten."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterable
from typing import Any

import openai
import pytest
from fake_llm import ANSWER, FakeLLM
from serving import LiveServer, parse_events, wait_for
from test_bad_input import check_form

from octavo.base.errors import InputError, OverloadedError
from octavo.server.openai.responses import events as kept
from octavo.server.openai.responses.events import EventLog, EventRoom

MODEL = "fake/model"
ASK: dict[str, Any] = {"model": MODEL, "input": "Hello", "background": True}


def begin(client: openai.OpenAI, count: int, **more: Any) -> tuple[str, list[Any]]:
    """The first events of a stream that its client leaves then; the response's id."""
    with client.responses.create(**ASK, stream=True, **more) as stream:
        seen = list(itertools.islice(stream, count))
    return seen[0].response.id, seen


def dumped(events: Iterable[Any]) -> list[Any]:
    return [event.model_dump() for event in events]


def test_a_stream_is_left_and_gone_on_with(server: LiveServer, llm: FakeLLM) -> None:
    llm.delay = 0.01
    with server.openai() as client:
        name, seen = begin(client, 10, max_output_tokens=40)
        kinds = ["response.created", "response.queued", "response.in_progress"]
        assert [event.type for event in seen[:3]] == kinds
        assert [event.response.status for event in seen[:3]] == ["queued", "queued", "in_progress"]
        assert seen[0].response.background
        assert llm.running  # nobody reads it
        rest = list(client.responses.retrieve(name, stream=True, starting_after=seen[-1].sequence_number))
        numbers = [event.sequence_number for event in [*seen, *rest]]
        assert numbers == list(range(len(numbers)))
        assert rest[-1].type == "response.incomplete"
        deltas = [event.delta for event in [*seen, *rest] if event.type == "response.output_text.delta"]
        assert "".join(deltas) == rest[-1].response.output_text == ANSWER[:40]
        assert client.responses.retrieve(name) == rest[-1].response
        assert dumped(client.responses.retrieve(name, stream=True)) == dumped([*seen, *rest])
        last = rest[-1].sequence_number
        assert list(client.responses.retrieve(name, stream=True, starting_after=last)) == []
        gone_on = client.responses.create(model=MODEL, input="x", previous_response_id=name, max_output_tokens=2)
        assert gone_on.output_text == ANSWER[:2]
        assert [message["content"] for message in llm.rendered[-1][0]] == ["Hello", ANSWER[:40], "x"]
        named: Any = {"type": "item_reference", "id": rest[-1].response.output[0].id}
        client.responses.create(model=MODEL, input=[named], max_output_tokens=2)
        assert [message["content"] for message in llm.rendered[-1][0]] == [ANSWER[:40]]


def test_the_helper_resumes(server: LiveServer, llm: FakeLLM) -> None:
    llm.delay = 0.005
    with server.openai() as client:
        with client.responses.stream(**ASK, extra_body={"stop": ["lazy"]}) as stream:
            seen = list(itertools.islice(stream, 8))
        name = seen[0].response.id  # type: ignore[union-attr]
        with client.responses.stream(response_id=name, starting_after=seen[-1].sequence_number) as stream:
            rest = list(stream)
            assert stream.get_final_response().output_text == ANSWER[: ANSWER.index("lazy")]
        assert rest[0].sequence_number == seen[-1].sequence_number + 1


def test_several_follow_one(server: LiveServer, llm: FakeLLM) -> None:
    llm.delay = 0.01
    with server.openai() as client:
        name, _ = begin(client, 3, max_output_tokens=30)
        streams = [client.responses.retrieve(name, stream=True) for _ in range(3)]
        found = [dumped(stream) for stream in streams]
        assert found[0] == found[1] == found[2]
        assert found[0][-1]["type"] == "response.incomplete"


def test_cancelled(server: LiveServer, llm: FakeLLM) -> None:
    llm.delay = 0.02
    with server.openai() as client, client.responses.create(**ASK, stream=True) as stream:
        seen = list(itertools.islice(stream, 8))
        name = seen[0].response.id  # type: ignore[union-attr]
        assert client.responses.cancel(name).status == "cancelled"
        seen += stream
        assert [event.type for event in seen[-4:]] == [
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.incomplete",
        ]
        assert seen[-1].response.status == "cancelled"  # type: ignore[union-attr]
        assert seen[-1].response == client.responses.retrieve(name)  # type: ignore[union-attr]
        wait_for(lambda: not llm.running and not len(server.app.traffic))


def test_deleted_while_it_is_followed(server: LiveServer, llm: FakeLLM) -> None:
    llm.delay = 0.02
    with server.openai() as client, client.responses.create(**ASK, stream=True) as stream:
        seen = list(itertools.islice(stream, 8))
        name = seen[0].response.id  # type: ignore[union-attr]
        client.responses.delete(name)
        assert list(stream)[-1].response.status == "cancelled"  # type: ignore[union-attr]
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(name, stream=True)
        assert server.app._services.responses.room.num_bytes == 0


def test_one_given_up_while_it_is_made_leaves_no_events(
    server: LiveServer, llm: FakeLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who follows it sees its end all the same."""
    llm.delay = 0.02
    with server.openai() as client, client.responses.create(**ASK, stream=True, max_output_tokens=30) as stream:
        name = next(iter(stream)).response.id  # type: ignore[union-attr]
        monkeypatch.setattr("octavo.server.openai.responses.store.MAX_ENTRIES", 1)
        client.responses.create(model=MODEL, input="x", max_output_tokens=1)
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(name)
        assert list(stream)[-1].type == "response.incomplete"
        wait_for(lambda: not len(server.app.traffic))
        assert server.app._services.responses.room.num_bytes == 0


def test_failures(server: LiveServer, llm: FakeLLM) -> None:
    llm.fail_at, llm.failure = 3, KeyError("secret")
    with server.openai() as client:
        last = list(client.responses.create(**ASK, stream=True))[-1]
        assert (last.type, last.response.error.code) == ("response.failed", "server_error")  # type: ignore[union-attr]
        llm.fail_at, llm.delay = None, 0.02
        with client.responses.create(**ASK, stream=True) as stream:
            next(stream)
            going = OverloadedError("the server is shutting down", retry_after=5)
            server.loop.call_soon_threadsafe(server.app.traffic.interrupt_all, going)
            last = list(stream)[-1]
        assert last.type == "response.failed"
        assert "shutting down" in last.response.error.message  # type: ignore[union-attr]
        wait_for(lambda: not len(server.app.traffic))


def test_a_full_queue_is_waited_for(server: LiveServer, llm: FakeLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is there to send it again."""
    llm.overloaded, llm.retry_after = True, 0
    with server.openai() as client:
        name, _ = begin(client, 2, max_output_tokens=3)
        other = client.responses.create(**ASK, max_output_tokens=3).id
        assert [client.responses.retrieve(one).status for one in (name, other)] == ["queued", "queued"]
        ended = client.responses.create(**ASK, max_output_tokens=3).id
        assert client.responses.cancel(ended).status == "cancelled"
        llm.overloaded = False
        assert list(client.responses.retrieve(name, stream=True))[-1].response.output_text == ANSWER[:3]  # type: ignore[union-attr]
        wait_for(lambda: client.responses.retrieve(other).status == "incomplete")
        llm.overloaded, llm.retry_after = True, 7
        monkeypatch.setattr("octavo.server.openai.responses.background.PATIENCE_S", 5.0)
        failed = list(client.responses.create(**ASK, stream=True))[-1]
        assert failed.type == "response.failed"
        assert failed.response.error.message == "the queue is full"  # type: ignore[union-attr]
        assert not llm.running


def test_one_of_which_text_has_come_is_not_begun_anew(server: LiveServer, llm: FakeLLM) -> None:
    llm.fail_at, llm.failure = 3, OverloadedError("the engine was put to sleep", retry_after=0)
    with server.openai() as client:
        name = client.responses.create(**ASK).id
        wait_for(lambda: client.responses.retrieve(name).status == "failed")
        assert client.responses.retrieve(name).output_text == ANSWER[:3]
    assert len(llm.started) == 1


def test_a_drain_ends_what_waits_for_a_full_queue(server: LiveServer, llm: FakeLLM) -> None:
    llm.overloaded, llm.retry_after = True, 0
    with server.openai() as client:
        name = client.responses.create(**ASK).id
        server.app.traffic.draining = True
        wait_for(lambda: client.responses.retrieve(name).status == "failed")


def test_it_stays_alive(server: LiveServer, llm: FakeLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    llm.delay = 0.01
    assert "keep-alive" not in server.post("/v1/responses", {**ASK, "stream": True, "max_output_tokens": 9}).text
    monkeypatch.setattr("octavo.server.openai.responses.background.KEEP_ALIVE_S", 0.05)
    llm.delay = 0.3
    text = server.post("/v1/responses", {**ASK, "stream": True, "max_output_tokens": 2}).text
    assert text.count(": keep-alive\n\n") >= 2
    assert text.endswith("data: [DONE]\n\n")
    assert parse_events(text)[-2]["type"] == "response.incomplete"


def test_refused(server: LiveServer) -> None:
    with server.openai() as client:
        plain = client.responses.create(model=MODEL, input="x", max_output_tokens=2).id
        unseen = client.responses.create(**ASK, max_output_tokens=2).id
        name, _ = begin(client, 3, max_output_tokens=2)
    for path, param in (
        (f"{plain}?stream=true", "stream"),
        (f"{unseen}?stream=true", "stream"),
        (f"{name}?starting_after=1", "starting_after"),
        (f"{name}?stream=true&starting_after=-1", "starting_after"),
        (f"{name}?stream=true&starting_after=x", "starting_after"),
        (f"{name}?stream=true&include_obfuscation=true", "include_obfuscation"),
    ):
        assert check_form(server.client.get(f"/v1/responses/{path}"))["param"] == param


def test_a_stream_belongs_to_its_key() -> None:
    locked = LiveServer(FakeLLM(), api_key=["one", "two"])
    with locked as server, server.openai("one") as one, server.openai("two") as two:
        name, _ = begin(one, 3, max_output_tokens=2)
        with pytest.raises(openai.NotFoundError):
            two.responses.retrieve(name, stream=True)


def test_events_are_bounded(server: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "MAX_BYTES", 30_000)
    room = server.app._services.responses.room
    with server.openai() as client:
        name, _ = begin(client, 3, max_output_tokens=200)
        wait_for(lambda: client.responses.retrieve(name).status == "incomplete")
        assert room.num_bytes <= 30_000
        told = check_form(server.client.get(f"/v1/responses/{name}?stream=true"))
        assert told["param"] == "starting_after"
        first = int(told["message"].partition("starting_after=")[2].partition(" ")[0])
        rest = list(client.responses.retrieve(name, stream=True, starting_after=first))
        assert rest[0].sequence_number == first + 1
        check_form(server.client.get(f"/v1/responses/{name}?stream=true&starting_after={first - 1}"))
        assert rest[-1].type == "response.incomplete"
        assert client.responses.retrieve(name).output_text == ANSWER[:200]


def test_a_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "MAX_BYTES", 1000)
    room = EventRoom()
    older, newer = EventLog(room), EventLog(room)
    older.add(b"event: a\ndata: 1\n\nevent: a\ndata: 2\n\n")
    assert [len(older), room.num_bytes] == [2, 2 * (18 + kept.OVERHEAD)]
    for number in range(20):
        newer.add(b"event: a\ndata: %d\n\n" % number)
        assert room.num_bytes <= 1000
    assert len(older) == 0
    with pytest.raises(InputError):
        older.since(1)
    assert older.since(2) == []
    assert newer.since(19) == [b"event: a\ndata: 19\n\n"]
    room.forget(newer)
    assert room.num_bytes == 0
    gone = weakref.ref(newer)
    del newer
    assert gone() is None


def test_the_oldest_gives_up_its_older_half(monkeypatch: pytest.MonkeyPatch) -> None:
    room = EventRoom()
    older, newer = EventLog(room), EventLog(room)
    older.add(b"event: a\ndata: 1\n\n" * 4)
    monkeypatch.setattr(kept, "MAX_BYTES", room.num_bytes + kept.OVERHEAD + 18)
    newer.add(b"event: a\ndata: 1\n\n")  # all room may be taken
    assert (len(older), len(newer)) == (4, 1)
    newer.add(b"event: a\ndata: 2\n\n")
    assert (len(older), len(newer)) == (2, 2)
    assert len(older.since(2)) == 2
    with pytest.raises(InputError, match="starting_after=1 "):
        older.since(1)

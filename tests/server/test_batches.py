"""/v1/files and /v1/batches by the stock openai client; resumed by the next process; bounded; refused in form."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from io import FileIO
from pathlib import Path
from typing import Any

import openai
import pytest
from fake_llm import ANSWER, FakeLLM
from msgspec import Raw
from serving import LiveServer, wait_for
from test_bad_input import check_form

from octavo.base.errors import ConfigError, EngineDeadError, OverloadedError
from octavo.base.files import write_whole
from octavo.server.batch import batches, lines, run
from octavo.server.batch import store as store_module
from octavo.server.batch.store import KEEP_S, BatchStore, Kept, new_name
from octavo.server.batch.types import BatchObject, BatchStatus, RequestCounts
from octavo.server.errors import HttpError

URL = "/v1/completions"
BODY = {"prompt": "Hi", "max_tokens": 5}


def line(name: str, body: dict[str, Any] = BODY, url: str = URL) -> dict[str, Any]:
    return {"custom_id": name, "method": "POST", "url": url, "body": body}


def content(*lines: Any) -> bytes:
    return b"".join((item if isinstance(item, bytes) else json.dumps(item).encode()) + b"\n" for item in lines)


@pytest.fixture
def client(server: LiveServer) -> Iterator[openai.OpenAI]:
    with server.openai() as talking:
        yield talking


def begin(client: openai.OpenAI, *lines: Any, **options: Any) -> str:
    file = client.files.create(file=("in.jsonl", content(*lines)), purpose="batch")
    return client.batches.create(input_file_id=file.id, endpoint=URL, completion_window="24h", **options).id


def ended(client: openai.OpenAI, name: str) -> Any:
    going_on = ("validating", "in_progress", "finalizing", "cancelling")
    wait_for(lambda: client.batches.retrieve(name).status not in going_on)
    return client.batches.retrieve(name)


def rows(client: openai.OpenAI, name: str | None) -> list[Any]:
    return [json.loads(text) for text in client.files.content(name or "").text.splitlines()]


def test_a_batch(client: openai.OpenAI) -> None:
    name = begin(client, line("a"), line("bad", {**BODY, "max_tokens": -1}), line("b"), metadata={"k": "v"})
    batch = ended(client, name)
    assert (batch.status, batch.endpoint, batch.metadata) == ("completed", URL, {"k": "v"})
    assert (batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed) == (3, 2, 1)
    good = {row["custom_id"]: row for row in rows(client, batch.output_file_id)}
    assert sorted(good) == ["a", "b"]
    assert good["a"]["response"]["body"]["choices"][0]["text"] == ANSWER[:5]
    (bad,) = rows(client, batch.error_file_id)
    assert (bad["custom_id"], bad["response"]["status_code"]) == ("bad", 400)
    assert [item.id for item in client.batches.list()] == [name]
    assert client.batches.cancel(name).status == "completed"


def test_files(client: openai.OpenAI) -> None:
    made = client.files.create(
        file=("näme.jsonl", b"\r\n--x\r\n\x00\xff"),
        purpose="batch",
        expires_after={"anchor": "created_at", "seconds": 3600},
    )
    assert (made.bytes, made.purpose, made.filename) == (9, "batch", "näme.jsonl")
    assert made.expires_at == made.created_at + 3600
    assert client.files.content(made.id).content == b"\r\n--x\r\n\x00\xff"
    assert client.files.retrieve(made.id) == made
    empty = client.files.create(file=("e", b""), purpose="batch")
    assert client.files.content(empty.id).content == b""
    others = [client.files.create(file=("f", b"x"), purpose="batch").id for _ in range(3)]
    assert [file.id for file in client.files.list(limit=2)] == [*others[::-1], empty.id, made.id]  # by pages
    assert client.files.list(order="asc").data[0].id == made.id
    assert client.files.list(purpose="batch_output").data == []
    assert client.files.delete(made.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(made.id)


def test_a_large_file_comes_whole(client: openai.OpenAI, server: LiveServer) -> None:
    data = bytes(range(256)) * 8000
    made = client.files.create(file=("in", data), purpose="batch")
    assert client.files.content(made.id).content == data
    head = server.client.head(f"/v1/files/{made.id}/content")
    assert (head.content, head.headers["content-length"]) == (b"", str(len(data)))


@pytest.mark.parametrize(
    ("lines", "told", "number"),
    [
        ([line("a"), b"", b" \r", line("b", url="/v1/responses")], "endpoint", 4),
        ([line("a"), {"custom_id": "b"}], "method is required", 2),
        ([line("a"), line("a")], "came before", 2),
        ([line("a"), b"\xef\xbb\xbf" + content(line("b"))], "not valid JSON", 2),
        ([], "no request", None),
    ],
)
def test_input_that_cannot_be_run(client: openai.OpenAI, lines: list[Any], told: str, number: int | None) -> None:
    batch = ended(client, begin(client, *lines))
    assert batch.status == "failed"
    assert told in batch.errors.data[0].message
    assert batch.errors.data[0].line == number
    assert batch.output_file_id is None


def test_a_byte_order_mark(client: openai.OpenAI) -> None:
    batch = ended(client, begin(client, b"\xef\xbb\xbf" + content(line("a")), b"\r", line("b")))
    assert {row["custom_id"] for row in rows(client, batch.output_file_id)} == {"a", "b"}


def test_cancelling(client: openai.OpenAI, llm: FakeLLM) -> None:
    name = begin(client, *(line(str(number)) for number in range(4)), line("long", {**BODY, "max_tokens": 400}))
    wait_for(lambda: client.batches.retrieve(name).status == "completed")
    llm.delay = 0.02
    name = begin(client, line("short", {**BODY, "max_tokens": 1}), line("long", {**BODY, "max_tokens": 400}))
    wait_for(lambda: client.batches.retrieve(name).request_counts.completed == 1)  # type: ignore[union-attr]
    assert client.batches.cancel(name).status == "cancelling"
    batch = ended(client, name)
    assert (batch.status, batch.cancelled_at is None) == ("cancelled", False)
    assert [row["custom_id"] for row in rows(client, batch.output_file_id)] == ["short"]
    wait_for(lambda: not llm.running)


def busy_once(llm: FakeLLM, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The queue is full for the first request; the ids of all that are asked for."""
    asked: list[str] = []
    generate = llm.generate

    async def refusing(prompt: Any, params: Any, *, request_id: str, **options: Any) -> Any:
        asked.append(request_id)
        if len(asked) == 1:
            raise OverloadedError("the queue is full", retry_after=1)
        async for output in generate(prompt, params, request_id=request_id, **options):
            yield output

    monkeypatch.setattr(llm, "generate", refusing)
    return asked


def test_a_full_engine_is_waited_for(client: openai.OpenAI, llm: FakeLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = busy_once(llm, monkeypatch)
    batch = ended(client, begin(client, line("a")))
    assert (batch.status, batch.request_counts.completed, len(asked)) == ("completed", 1, 2)


def test_a_pause_is_waited_for(client: openai.OpenAI, server: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "READY_S", 0.01)
    server.app.traffic.paused = True
    name = begin(client, line("a"))
    wait_for(lambda: client.batches.retrieve(name).status == "in_progress")
    server.app.traffic.paused = False
    assert ended(client, name).request_counts.completed == 1


def test_patience_begins_with_the_first_busy_answer(
    client: openai.OpenAI, server: LiveServer, llm: FakeLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy_once(llm, monkeypatch)
    monkeypatch.setattr(batches, "READY_S", 0.01)
    monkeypatch.setattr(run, "PATIENCE_S", 0.1)
    server.app.traffic.paused = True
    name = begin(client, line("a"))
    wait_for(lambda: client.batches.retrieve(name).status == "in_progress")
    time.sleep(0.3)  # longer than its patience
    server.app.traffic.paused = False
    assert ended(client, name).request_counts.completed == 1


def test_a_line_that_stays_refused_is_an_error(
    client: openai.OpenAI, llm: FakeLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def busy(*_: Any, **__: Any) -> Any:
        raise OverloadedError("the queue is full", retry_after=1)
        yield

    monkeypatch.setattr(llm, "generate", busy)
    monkeypatch.setattr(run, "PATIENCE_S", 0.1)
    batch = ended(client, begin(client, line("a")))
    assert (batch.status, batch.request_counts.failed) == ("completed", 1)
    assert [row["error"]["code"] for row in rows(client, batch.error_file_id)] == ["503"]


def test_what_ask_raises_ends_the_lines_and_loses_no_result() -> None:
    async def ask(path: str, body: bytes) -> run.Answer:
        if b"dead" in body:
            raise EngineDeadError("it has ended")
        return run.Answer(200, b"{}", "r")

    asked = [
        lines.BatchLine(custom_id=name, method="POST", url=URL, body=Raw(json.dumps({"prompt": name}).encode()))
        for name in ("dead 1", "a", "dead 2", "b", "after")
    ]
    written: list[str] = []
    with pytest.raises(EngineDeadError):
        asyncio.run(run.run_lines(ask, asked, lambda row: written.append(row.custom_id), urls=(URL,), at_once=4))
    assert sorted(written) == ["a", "b"]


def test_a_busy_answer_is_waited_for_as_long_as_it_says() -> None:
    times: list[float] = []

    async def ask(path: str, body: bytes) -> run.Answer:
        times.append(time.monotonic())
        return run.Answer(503 if len(times) == 1 else 200, b"{}", "r", retry_after=0.2)

    asked = lines.BatchLine(custom_id="a", method="POST", url=URL, body=Raw(b"{}"))
    written: list[lines.BatchResult] = []
    asyncio.run(run.run_lines(ask, [asked], written.append, urls=(URL,), at_once=1))
    assert [row.error for row in written] == [None]
    assert times[1] - times[0] >= 0.19


def test_a_body_that_is_no_object_is_told_by_its_route(client: openai.OpenAI) -> None:
    batch = ended(client, begin(client, {**line("list"), "body": []}, line("a")))
    assert (batch.status, batch.request_counts.completed, batch.request_counts.failed) == ("completed", 1, 1)
    assert [row["error"]["code"] for row in rows(client, batch.error_file_id)] == ["400"]


def test_what_is_under_way_has_ended_when_the_run_has() -> None:
    under_way: list[bytes] = []

    async def ask(path: str, body: bytes) -> run.Answer:
        under_way.append(body)
        try:
            await asyncio.sleep(0.01 if b"dead" in body else 60)
            raise EngineDeadError("it has ended")
        finally:
            under_way.remove(body)

    async def test() -> None:
        asked = [
            lines.BatchLine(custom_id=name, method="POST", url=URL, body=Raw(json.dumps({"prompt": name}).encode()))
            for name in ("long", "dead", "longer")
        ]
        with pytest.raises(EngineDeadError):
            await run.run_lines(ask, asked, lambda row: None, urls=(URL,), at_once=3)
        assert not under_way

    asyncio.run(test())


def test_a_batch_of_too_many_requests(client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "MAX_LINES", 2)
    assert ended(client, begin(client, line("a"), line("b"))).status == "completed"
    batch = ended(client, begin(client, line("a"), line("b"), line("c")))
    assert (batch.status, batch.errors.data[0].line) == ("failed", 3)
    assert "at most 2" in batch.errors.data[0].message


def test_the_next_process_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readers: set[str] = set()

    def noted(known: Callable[..., Any]) -> Callable[..., Any]:
        def read(*arguments: Any) -> Any:
            readers.add(threading.current_thread().name)
            return known(*arguments)

        return read

    monkeypatch.setattr(batches, "read_done", noted(batches.read_done))
    monkeypatch.setattr(lines, "_decode", noted(lines._decode))
    slow = FakeLLM()
    slow.delay = 0.02
    with LiveServer(slow, batch_dir=str(tmp_path)) as first, first.openai() as client:
        name = begin(client, line("short", {**BODY, "max_tokens": 1}), line("long", {**BODY, "max_tokens": 400}))
        wait_for(lambda: client.batches.retrieve(name).request_counts.completed == 1)  # type: ignore[union-attr]
    with LiveServer(FakeLLM(), batch_dir=str(tmp_path)) as second, second.openai() as client:
        batch = ended(client, name)
        assert (batch.status, batch.request_counts.completed) == ("completed", 2)
        found = rows(client, batch.output_file_id)
        assert [row["custom_id"] for row in found] == ["short", "long"]
        assert len(client.files.list().data) == 2
    assert readers
    assert all(name.startswith("asyncio_") for name in readers), "files are read on the event loop"


@pytest.mark.parametrize("lost", ["gone", "no request"])
def test_answers_outlive_their_input(tmp_path: Path, lost: str) -> None:
    slow = FakeLLM()
    slow.delay = 0.02
    with LiveServer(slow, batch_dir=str(tmp_path)) as first, first.openai() as client:
        name = begin(client, line("short", {**BODY, "max_tokens": 1}), line("long", {**BODY, "max_tokens": 400}))
        wait_for(lambda: client.batches.retrieve(name).request_counts.completed == 1)  # type: ignore[union-attr]
        source = tmp_path / f"{client.batches.retrieve(name).input_file_id}.data"
    source.unlink()
    if lost == "no request":
        source.write_bytes(b"{\n")
    with (tmp_path / f"{name}_output.data").open("ab") as output:
        output.write(b'{"id":"batch_req_torn","custom_id":"long","resp')
    with LiveServer(FakeLLM(), batch_dir=str(tmp_path)) as second, second.openai() as client:
        batch = ended(client, name)
        assert (batch.status, batch.request_counts.completed, batch.error_file_id) == ("failed", 1, None)
        assert [row["custom_id"] for row in rows(client, batch.output_file_id)] == ["short"]
        assert client.files.retrieve(batch.output_file_id or "").bytes > 0
    assert not list(tmp_path.glob(f"{name}_*.data"))


def test_what_a_crash_left_is_nobodys_and_goes(tmp_path: Path) -> None:
    store = BatchStore(str(tmp_path))
    kept, lost = (store.path(store.add_file(b"", b"12", filename="a").id) for _ in range(2))
    lost.with_suffix(".json").unlink()
    mine, unread, nobodys = f"batch_{1:032x}", f"file-{2:032x}", f"file-{3:032x}"
    for name in (f"{mine}.json", f"{unread}.json"):  # of a later version, perhaps
        (tmp_path / name).write_text("{}")
    staying = [f"{mine}_output.data", f"{mine}_errors.data", f"{unread}.data", "notes.data", "notes.torn"]
    leaving = [lost.name, f"{nobodys}.data", f"{nobodys}.torn", f"{mine}.torn", f"{new_name('batch')}_output.data"]
    for name in staying + leaving:
        (tmp_path / name).write_bytes(b"{")
    (tmp_path / f"file-{5:032x}.data").mkdir()
    BatchStore(str(tmp_path))
    assert kept.read_bytes() == b"12"
    assert [name for name in staying if not (tmp_path / name).exists()] == []
    assert [name for name in leaving if (tmp_path / name).exists()] == []


def test_the_next_process_lists_them_in_the_same_order(tmp_path: Path) -> None:
    store, kept = BatchStore(str(tmp_path)), []
    files = [store.add_file(b"", b"", filename=str(number)).id for number in range(5)]  # within a second
    for number, file in enumerate(files):
        os.utime(tmp_path / f"{file}.json", (number, number))
    for number in range(3):
        batch = BatchObject(
            id=f"batch_{9 - number}",
            endpoint="/v1/completions",
            input_file_id="f",
            completion_window="24h",
            status="completed",
            created_at=int(time.time()) + number,
            expires_at=int(time.time()) + 9,
            request_counts=RequestCounts(),
        )
        kept.append(Kept(owner=b"", batch=batch))
        store.add_batch(kept[-1])
        os.utime(tmp_path / f"{batch.id}.json", (number, number))
    store.save(kept[0])
    names = ["batch_7", "batch_8", "batch_9"]
    assert [batch.id for batch in store.batches(b"")] == names
    again = BatchStore(str(tmp_path))
    assert [batch.id for batch in again.batches(b"")] == names
    assert [file.id for file in again.files(b"")] == files[::-1]
    assert again.unfinished() == []  # what has ended is not run again


def test_what_comes_too_late_is_left(client: openai.OpenAI, llm: FakeLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("octavo.server.batch.routes.WINDOW_S", 3)
    llm.delay = 0.05
    batch = ended(client, begin(client, line("a"), line("b", {**BODY, "max_tokens": 1000})))
    assert (batch.status, batch.request_counts.completed, batch.request_counts.failed) == ("expired", 1, 0)
    assert batch.expired_at is not None
    assert [row["custom_id"] for row in rows(client, batch.output_file_id)] == ["a"]


def test_results_that_find_no_room_end_it(client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("octavo.server.batch.store.MAX_BYTES", 200)
    batch = ended(client, begin(client, line("a")))
    assert (batch.status, batch.errors.data[0].code) == ("failed", "storage_full")


def test_a_fault_of_ours_ends_it(client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("a bug")

    monkeypatch.setattr("octavo.server.batch.batches.run_lines", fail)
    batch = ended(client, begin(client, line("a")))
    assert (batch.status, batch.errors.data[0].code) == ("failed", "server_error")
    assert "a bug" not in batch.errors.data[0].message


def test_the_next_process_ends_what_was_being_cancelled(tmp_path: Path) -> None:
    now = int(time.time())
    batch = BatchObject(
        id="batch_1",
        endpoint=URL,
        input_file_id="",
        completion_window="24h",
        status="cancelling",
        created_at=now,
        expires_at=now + 9,
        request_counts=RequestCounts(),
    )
    BatchStore(str(tmp_path)).add_batch(Kept(owner=b"", batch=batch))
    with LiveServer(FakeLLM(), batch_dir=str(tmp_path)) as server, server.openai() as client:
        assert client.batches.retrieve("batch_1").status == "cancelled"


@pytest.mark.parametrize("number", [1, 2])
def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    store, replace, calls = BatchStore(str(tmp_path)), os.replace, []

    def full(*paths: Any) -> None:
        calls.append(paths)
        if len(calls) == number:
            raise OSError(28, "No space left on device")
        replace(*paths)

    monkeypatch.setattr("octavo.server.batch.store.os.replace", full)
    with pytest.raises(OSError, match="No space"):
        store.add_file(b"", b"12345", filename="a")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_loses_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room: list[None] = []

    def put(file: FileIO, data: bytes) -> None:
        if not room:
            raise OSError(28, "No space left on device")
        room.pop()
        write_whole(file, data)

    for module in (batches, store_module):
        monkeypatch.setattr(module, "write_whole", put)
    with LiveServer(FakeLLM(), batch_dir=str(tmp_path)) as first, first.openai() as client:
        with pytest.raises(openai.APIStatusError, match="the disk is full") as refused:
            client.with_options(max_retries=0).files.create(file=("f", b"x"), purpose="batch")
        assert refused.value.status_code == 507
        room += [None] * 7  # two for the file, two states of the batch, then three answers
        name = begin(client, *[line(str(number)) for number in range(6)])
        batch = ended(client, name)
        assert (batch.status, batch.errors.data[0].code, batch.request_counts.completed) == (
            "failed",
            "storage_full",
            3,
        )
        assert batch.output_file_id is None
        assert client.batches.cancel(name).status == "failed"
    room += [None] * 100
    asked = FakeLLM()
    with LiveServer(asked, batch_dir=str(tmp_path)) as second, second.openai() as client:
        batch = ended(client, name)
        assert (batch.status, batch.request_counts.completed) == ("completed", 6)
        assert sorted(row["custom_id"] for row in rows(client, batch.output_file_id)) == list("012345")
    assert 100 - len(room) == 6  # two states, three answers, the file of results


def test_a_temporary_folder_is_gone_afterwards(llm: FakeLLM) -> None:
    with LiveServer(llm) as server, server.openai() as client:
        client.files.create(file=("f", b"x"), purpose="batch")
        folder = server.app.batches.store.folder
        assert folder.stat().st_mode & 0o777 == 0o700
        assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    assert not folder.exists()


def test_they_belong_to_their_key() -> None:
    locked = LiveServer(FakeLLM(), api_key=["one", "two"])
    with locked as server, server.openai("one") as one, server.openai("two") as two:
        name = begin(one, line("a"))
        file = ended(one, name).output_file_id
        calls: list[Callable[[], Any]] = [
            lambda: two.batches.retrieve(name),
            lambda: two.batches.cancel(name),
            lambda: two.files.retrieve(file),
            lambda: two.files.content(file),
            lambda: two.files.delete(file),
            lambda: two.batches.create(input_file_id=file, endpoint="/v1/responses", completion_window="24h"),
        ]
        for call in calls:
            with pytest.raises(openai.NotFoundError):
                call()
        assert (list(two.files.list()), list(two.batches.list())) == ([], [])


FORM = "multipart/form-data; boundary=b"
PART = b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
FILE = b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\nx\r\n'


@pytest.mark.parametrize(
    ("kind", "body", "status"),
    [
        (FORM, PART + FILE + b"--b--\r\n", 200),
        (FORM.replace("=b", '="b"; charset=utf-8'), PART + FILE + b"--b--", 200),
        ("application/json", b"{}", 415),
        ("multipart/form-data", PART + FILE + b"--b--", 415),
        (FORM + "x" * 80, b"", 415),
        (FORM, b"", 400),
        (FORM, PART + FILE, 400),
        (FORM, PART + b"--b--", 400),
        (FORM, FILE + b"--b--", 400),
        (FORM, b"x" + PART + FILE + b"--b--", 400),
        (FORM, PART + FILE.replace(b"\r\n\r\n", b"\r\n" + b"a\r\n" * 4000 + b"\r\n") + b"--b--", 400),
        (FORM, PART + PART + FILE + b"--b--", 400),
        (FORM, PART + FILE + PART.replace(b"purpose", b"zap") + b"--b--", 400),
        (FORM, PART.replace(b"\nbatch", b"\nassistants") + FILE + b"--b--", 400),
        (FORM, PART + FILE.replace(b"\r\n\r\n", b"\r\n") + b"--b--", 400),
        (FORM, PART + FILE + b"".join(PART.replace(b"purpose", b"%d" % n) for n in range(20)) + b"--b--", 400),
    ],
)
def test_uploads(shared: LiveServer, kind: str, body: bytes, status: int) -> None:
    answer = shared.client.post("/v1/files", content=body, headers={"content-type": kind})
    assert answer.status_code == status, answer.text
    if status != 200:
        check_form(answer)


def test_an_upload_as_dotnet_writes_it(shared: LiveServer) -> None:
    purpose = PART.replace(b"Content-", b"Content-Type: text/plain; charset=utf-8\r\nContent-").replace(b'"', b"")
    file = FILE.replace(b'name="file"; filename="f"', b"name=file; filename=f.jsonl; filename*=utf-8''f.jsonl")
    kind = FORM.replace("=b", '="b"')
    answer = shared.client.post("/v1/files", content=purpose + file + b"--b--\r\n", headers={"content-type": kind})
    assert answer.status_code == 200, answer.text
    assert (answer.json()["filename"], answer.json()["bytes"]) == ("f.jsonl", 1)


@pytest.mark.parametrize(
    ("written", "name"),
    [
        (rb'"a\"b.jsonl"', 'a"b.jsonl'),  # as Python's requests of old, curl and RFC 2616 write a quote
        (rb'"a%22b.jsonl"', 'a"b.jsonl'),  # as browsers and httpx do
        (rb'"a\\b.jsonl"', r"a\b.jsonl"),
        (rb'"C:\temp\b.jsonl"', r"C:\temp\b.jsonl"),
    ],
)
def test_quotes_in_the_name_of_an_upload(shared: LiveServer, written: bytes, name: str) -> None:
    body = PART + FILE.replace(b'"f"', written) + b"--b--"
    answer = shared.client.post("/v1/files", content=body, headers={"content-type": FORM})
    assert (answer.status_code, answer.json().get("filename")) == (200, name), answer.text


@pytest.mark.parametrize(
    ("path", "param"),
    [
        ("/v1/files?limit=0", "limit"),
        ("/v1/files?limit=x", "limit"),
        ("/v1/files?after=x", "after"),
        ("/v1/files?frob=1", "frob"),
        ("/v1/files?order=up", "order"),
        ("/v1/files?limit=1&limit=2", "query"),
        ("/v1/files?" + "&".join(f"a{n}=1" for n in range(40)), "query"),
        ("/v1/batches?limit=101", "limit"),
        ("/v1/batches?purpose=batch", "purpose"),
    ],
)
def test_queries(shared: LiveServer, path: str, param: str) -> None:
    assert check_form(shared.client.get(path))["param"] == param


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"endpoint": "/v1/models"}, "endpoint"),
        ({"completion_window": "1h"}, "completion_window"),
        ({"input_file_id": "file-x"}, "input_file_id"),
        ({"frob": 1}, "frob"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 1}}, "output_expires_after.seconds"),
    ],
)
def test_batches_that_are_refused(shared: LiveServer, change: dict[str, Any], param: str) -> None:
    body = {"input_file_id": "file-x", "endpoint": URL, "completion_window": "24h", **change}
    assert check_form(shared.post("/v1/batches", body))["param"] == param


def test_the_store_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, most in (("MAX_FILES", 2), ("MAX_BATCHES", 1), ("MAX_BYTES", 10)):
        monkeypatch.setattr(f"octavo.server.batch.store.{name}", most)
    store = BatchStore(str(tmp_path))
    first = store.add_file(b"", b"12345", filename="a")
    with pytest.raises(HttpError, match="no room") as caught:
        store.add_file(b"", b"123456", filename="b")
    assert caught.value.status == 413
    store.add_file(b"", b"", filename="b")
    with pytest.raises(HttpError, match="no room"):
        store.add_file(b"", b"", filename="c")
    store.delete_file(first.id, b"")
    store.add_file(b"", b"1234567890", filename="c", keep_s=1)
    with pytest.raises(HttpError, match="no room"):
        store.add_file(b"", b"", filename="d")
    batch = BatchObject(
        id="batch_1",
        endpoint=URL,
        input_file_id="",
        completion_window="24h",
        created_at=0,
        expires_at=0,
        request_counts=RequestCounts(),
    )
    store.add_batch(Kept(owner=b"", batch=batch))
    with pytest.raises(HttpError) as caught:
        store.add_batch(Kept(owner=b"", batch=batch))
    assert caught.value.status == 413
    (tmp_path / "torn.json").write_text("{")
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "garbled.json").write_bytes(b'{"owner": "", "file": {"id": "\xff"}}')
    again = BatchStore(str(tmp_path))
    assert sorted(file.filename for file in again.files(b"")) == ["b", "c"]
    assert [kept.batch for kept in again.unfinished()] == [batch]
    monkeypatch.setattr("octavo.server.batch.store.time.time", lambda: 4e9)
    assert again.files(b"") == []
    assert not list(tmp_path.glob("*.data"))
    with pytest.raises(ConfigError, match="batch-dir"):
        BatchStore(str(tmp_path / "torn.json"))


def test_what_has_expired_is_gone_and_makes_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def add(name: str, status: BatchStatus) -> None:
        batch = BatchObject(
            id=name,
            endpoint=URL,
            input_file_id="",
            completion_window="24h",
            status=status,
            created_at=int(now),
            expires_at=int(now) + 9,
            request_counts=RequestCounts(),
        )
        store.add_batch(Kept(owner=b"", batch=batch))

    now = 1000.0
    monkeypatch.setattr("octavo.server.batch.store.time.time", lambda: now)
    monkeypatch.setattr("octavo.server.batch.store.MAX_FILES", 1)
    monkeypatch.setattr("octavo.server.batch.store.MAX_BATCHES", 2)
    store = BatchStore(str(tmp_path / "made" / "here"))
    assert store.folder.stat().st_mode & 0o777 == 0o700
    file = store.add_file(b"", b"x", filename="a", keep_s=3600)
    add("batch_ended", "completed")
    add("batch_going_on", "in_progress")
    now += 3599
    assert store.file(file.id, b"") == file
    now += 1
    with pytest.raises(HttpError) as caught:
        store.file(file.id, b"")
    assert caught.value.status == 404
    store.add_file(b"", b"x", filename="b", keep_s=60)
    now += 60
    store.add_file(b"", b"x", filename="c")
    now = 999.0 + KEEP_S
    assert store.batch("batch_ended", b"").batch is not None
    now += 1
    assert [batch.id for batch in store.batches(b"")] == ["batch_going_on"]
    add("batch_2", "failed")
    now += KEEP_S
    add("batch_3", "cancelled")
    assert {path.stem for path in store.folder.iterdir()} == {"batch_going_on", "batch_3"}

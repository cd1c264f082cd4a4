"""Whom the Supervisor tells what of frames that were read together, and when; what it keeps for another process."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import Any, cast

import pytest

from octavo.api import supervisor
from octavo.api.prompts import SHORT, SHORT_AMONG_MANY
from octavo.api.socket_client import SocketClient
from octavo.api.streams import Stream
from octavo.api.supervisor import Supervisor
from octavo.base.config.config import EngineConfig, ModelConfig
from octavo.base.errors import EngineDeadError, ModelFormatError, OverloadedError
from octavo.base.types.messages import EngineStats, Loading, Outputs
from octavo.base.types.output import Output
from octavo.base.types.request import Request
from octavo.base.types.sampling import SamplingParams
from octavo.engine.process import encode

CONFIG = EngineConfig(model=ModelConfig(model="none"))


class Progress:
    """Takes what comes."""

    finished = False

    def __init__(self, seen: list[str], name: str) -> None:
        self._seen, self._name = seen, name

    def push(self, output: Output) -> list[str]:
        self._seen.append(f"push {self._name}")
        return []


class Case:
    """A Supervisor with streams a, b and c, and the client that it would have."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.supervisor = Supervisor(CONFIG, None, watchdog_timeout=1)
        for name in "abc":
            self.supervisor.streams[name] = stream = Stream(cast(Any, Progress(self.seen, name)))
            stream.tell = partial(self._tell, name)
        self.client = SocketClient(
            on_message=self.supervisor._on_message,
            on_read=self.supervisor._tell,
            on_lost=lambda error: self.seen.append("lost"),
        )

    def _tell(self, name: str) -> None:
        self.seen.append(f"tell {name}")
        asyncio.get_running_loop().call_soon(self.seen.append, f"sent {name}")  # as server/sending.py does

    async def read(self, *frames: str) -> list[str]:
        """What is seen of frames with an output each of these streams."""
        self.seen.clear()
        self.client.data_received(b"".join(map(outputs, frames)))
        for _ in range(4):
            await asyncio.sleep(0)
        return self.seen


def outputs(names: str) -> bytes:
    return encode(Outputs([Output(request_id=name, token_ids=[1]) for name in names], EngineStats()))


def test_first_outputs_go_out_before_others_are_taken() -> None:
    async def test() -> None:
        case = Case()
        assert await case.read("a") == ["push a", "tell a", "sent a"]
        first = ["push b", "push c", "tell b", "tell c", "sent b", "sent c"]
        assert await case.read("bc", "a", "c") == [*first, "push a", "push c", "tell a", "tell c", "sent a", "sent c"]
        pushed = ["push c", "push a", "push a", "push c"]
        assert await case.read("ca", "ac") == [*pushed, "tell c", "tell a", "sent c", "sent a"]

    asyncio.run(test())


@pytest.mark.parametrize("crowded", [False, True])
def test_between_first_outputs_and_others_few_streams_let_the_sending_thread_run(
    crowded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        case = Case()
        monkeypatch.setattr(supervisor.os, "sched_yield", partial(case.seen.append, "yield"))
        monkeypatch.setattr(supervisor, "FEW_STREAMS", 2 if crowded else 3)
        let_go = [] if crowded else ["yield"]
        assert await case.read("a", "b") == [
            *("push a", "tell a", "sent a", *let_go),
            *("push b", "tell b", "sent b", *let_go),
        ]
        assert await case.read("ab") == ["push a", "push b", "tell a", "tell b", "sent a", "sent b"]

    asyncio.run(test())


def test_among_many_streams_shorter_texts_are_tokenized_on_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case()
    monkeypatch.setattr(supervisor, "FEW_STREAMS", 3)
    assert case.supervisor.short == SHORT
    monkeypatch.setattr(supervisor, "FEW_STREAMS", 2)
    assert case.supervisor.short == SHORT_AMONG_MANY < SHORT


def test_what_was_read_is_taken_before_the_process_is_lost() -> None:
    async def test() -> None:
        case = Case()
        case.client.data_received(outputs("a") + outputs("bc") + outputs("a") + b"\xff\xff")
        assert case.seen == ["push a", "tell a"]
        case.client.connection_lost(None)
        assert case.seen[2:] == ["push b", "push c", "tell b", "tell c", "push a", "lost"]

    asyncio.run(test())


def test_a_lost_process_has_nothing_that_is_not_told_and_no_heartbeat(monkeypatch: pytest.MonkeyPatch) -> None:
    async def start() -> None:
        started.append(True)

    async def test() -> None:
        case = Case()
        one, one.state = case.supervisor, "ready"
        one.client, case.client.last_heard = case.client, -100.0
        assert one.heartbeat_age() > 100
        monkeypatch.setattr(one, "_start_again", start)
        for _ in range(2):
            one._on_message(Outputs([Output(request_id="a", token_ids=[1])], EngineStats()))
        assert case.seen == ["push a", "tell a", "push a"]
        whole = one.streams["b"]
        whole.num_crashes, cast(Any, whole.progress).finished = supervisor.MAX_CRASHES, True
        one._on_lost(EngineDeadError("it ended"))
        assert case.seen[3:] == ["tell a"]
        assert whole.failure is None
        assert (one.state, one.heartbeat_age()) == ("restarting", 0.0)
        await asyncio.sleep(0)
        assert started

    started: list[bool] = []
    asyncio.run(test())


@pytest.mark.parametrize(("made", "deaths"), [({}, 4), ({"token_ids": [1]}, 1), ({"pooled": bytes(4)}, 1)])
def test_deaths_count_anew_where_something_was_made(
    monkeypatch: pytest.MonkeyPatch, made: dict[str, Any], deaths: int
) -> None:
    async def start() -> None:
        """No process."""

    async def test() -> None:
        one = Case().supervisor
        monkeypatch.setattr(one, "_start_again", start)
        one.state, one._born, one._deaths = "ready", time.monotonic(), 3
        for outputs in ([Output(request_id="a"), Output(request_id="b", **made)], []):
            one._on_message(Outputs(outputs, EngineStats()))
        one._on_lost(EngineDeadError("it ended"))
        assert one._deaths == deaths

    asyncio.run(test())


def test_what_is_loaded_is_told() -> None:
    case = Case()
    case.client.data_received(encode(Loading("weights", 3, 10)))
    assert case.supervisor.loading == ("weights", 3, 10)


@pytest.mark.parametrize("ending", [False, True])
def test_a_drain_goes_on_with_a_new_process_until_it_ends(monkeypatch: pytest.MonkeyPatch, ending: bool) -> None:
    async def start() -> None:
        started.append(True)

    async def test() -> None:
        one = Case().supervisor
        one.state, one._ending = "draining", ending
        monkeypatch.setattr(one, "spawn", start)
        one._on_lost(ModelFormatError("a frame is not a message"))
        if one._restart is not None:
            await one._restart
        assert one.state == "draining"  # who comes now is refused, as before
        assert started == [True] * (not ending)
        assert {type(stream.failure) for stream in one.streams.values()} == {EngineDeadError if ending else type(None)}

    started: list[bool] = []
    asyncio.run(test())


def test_a_damaged_frame_that_waited_ends_the_connection() -> None:
    class Transport(asyncio.Transport):
        def abort(self) -> None:
            aborted.append(True)

    async def test() -> None:
        case, told = Case(), []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["exception"]))
        case.client.connection_made(Transport())
        case.client.data_received(outputs("a") + b"\xff" * 9)
        assert not aborted
        await asyncio.sleep(0)
        assert aborted
        assert [type(error) for error in told] == [ModelFormatError]

    aborted: list[bool] = []
    asyncio.run(test())


@pytest.mark.parametrize("n", [1, 2])
def test_others_end_with_a_completion_that_failed(n: int) -> None:
    """The request ends with an error, so nobody reads what its other completions go on to make."""
    params = SamplingParams(n=n, temperature=1.0)
    request = Request(request_id="r", prompt_token_ids=[1], params=params, seed=1, max_tokens=4)
    progress = type("Row", (), {"request": request, "finished": False})()
    stream = Stream(cast(Any, progress))
    failed = Output(request_id="r", finish_reason="error", error="no token is left", error_kind="InputError")
    assert stream.push(failed) == (["r"] if n > 1 else [])
    assert not stream.going_on


def test_further_work_waits_for_a_process_that_is_being_started_again() -> None:
    class Part:
        finished = False

        def __init__(self, name: str) -> None:
            self.request = Request(request_id=name, prompt_token_ids=[1], params=SamplingParams(), seed=1, max_tokens=4)

        def resume(self) -> list[list[int]]:
            return [[]]

    class Client:
        def add(self, request: Request, emitted: object) -> None:
            added.append((request.request_id, emitted))

    async def test() -> None:
        supervisor = Supervisor(CONFIG, None, watchdog_timeout=1)
        supervisor.state = "restarting"
        with pytest.raises(OverloadedError, match="restarting"):
            supervisor.open(Stream(cast(Any, Part("new"))))
        supervisor.open(Stream(cast(Any, Part("further"))), further=True)
        supervisor.streams["whole"] = whole = Stream(cast(Any, Part("whole")))
        cast(Any, whole.progress).finished = True
        supervisor.client = cast(Any, Client())
        supervisor._resume()
        assert added == [("further", [[]])]
        supervisor.state = "sleeping"
        with pytest.raises(OverloadedError, match="asleep"):
            supervisor.open(Stream(cast(Any, Part("further"))), further=True)

    added: list[tuple[str, object]] = []
    asyncio.run(test())


def test_a_process_that_ends_while_the_rest_is_loaded_is_told() -> None:
    async def load() -> None:
        """Its process was ready, and was lost since."""

    with pytest.raises(EngineDeadError):
        asyncio.run(Supervisor(CONFIG, None, watchdog_timeout=1).unless_closed(load()))


def test_a_process_that_ends_as_it_tells_that_it_is_ready_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    async def start(self: SocketClient, config: EngineConfig, process: object) -> dict[str, Any]:
        self.lost = True
        return {"max_model_len": 9}

    monkeypatch.setattr(SocketClient, "start", start)
    one = Supervisor(CONFIG, None, watchdog_timeout=1)
    with pytest.raises(EngineDeadError):
        asyncio.run(one.spawn())
    assert one.client is None


def test_a_close_cuts_off_in_time_and_a_process_that_is_lost_meanwhile_is_not_started_again() -> None:
    async def test() -> None:
        one = Case().supervisor

        async def watch() -> None:
            try:
                await asyncio.sleep(60)
            finally:
                one._on_lost(EngineDeadError("it ended"))

        one._watchdog = asyncio.create_task(watch())
        await asyncio.sleep(0)
        await one.close(0.01)
        assert one._restart is None
        assert {type(stream.failure) for stream in one.streams.values()} == {EngineDeadError}

    asyncio.run(test())

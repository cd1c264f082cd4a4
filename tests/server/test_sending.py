"""Sender and Outbox: messages in their order, what a client does not take waits, a stream's fault stays its own."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import Any

import pytest

from octavo.server import sending
from octavo.server.exchange import Exchange
from octavo.server.sending import Message, Outbox, Sender


class Server:
    """ASGI's send: takes `room` messages at once; the next is taken when there is room again."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.taken: list[int] = []
        self.free = asyncio.Event()

    async def __call__(self, message: Message) -> None:
        while self.room == 0:
            self.free.clear()
            await self.free.wait()
        self.room -= 1
        if message["n"] < 0:
            raise OSError("gone")
        self.taken.append(message["n"])

    def take(self, count: int) -> None:
        self.room += count
        self.free.set()


def message(n: int) -> Message:
    return {"type": "http.response.body", "n": n}


def test_order_and_fullness() -> None:
    async def test() -> None:
        server, outbox = Server(3), Outbox()
        sender = Sender(server, outbox)
        assert [sender.push(message(n)) for n in range(3)] == [None] * 3
        assert server.taken == []  # when what runs now has run
        await asyncio.sleep(0)
        assert server.taken == [0, 1, 2]
        assert [sender.push(message(n)) for n in (3, 4)] == [None] * 2
        await asyncio.sleep(0)
        full = sender.push(message(5))
        assert full is not None
        await asyncio.sleep(0.01)
        assert (server.taken, full.done()) == ([0, 1, 2], False)
        last = asyncio.create_task(sender.send(message(6)))
        server.take(2)
        await asyncio.sleep(0.01)
        assert (server.taken, full.done()) == ([0, 1, 2, 3, 4], False)
        server.take(2)
        await last
        assert (server.taken, full.done()) == ([*range(7)], True)
        assert sender.push(message(7)) is None

    asyncio.run(test())


def test_many_streams_and_one_that_fails() -> None:
    async def test() -> None:
        outbox = Outbox()
        servers = [Server(9) for _ in range(3)]
        senders = [Sender(server, outbox) for server in servers]
        for n in (1, 2):
            for number, sender in enumerate(senders):
                sender.push(message(-n if number == 1 else n))
        outbox.flush()
        assert [server.taken for server in servers] == [[1, 2], [], [1, 2]]
        with pytest.raises(OSError, match="gone"):
            await senders[1].send(message(3))
        await asyncio.sleep(0)
        assert servers[1].taken == []

    asyncio.run(test())


def test_a_failure_while_it_waits_and_an_end() -> None:
    async def test() -> None:
        server, outbox = Server(0), Outbox()
        sender = Sender(server, outbox)
        sender.push(message(-1))
        outbox.flush()
        full = sender.push(message(2))
        assert full is not None
        server.take(5)
        await asyncio.wait([full])
        with pytest.raises(OSError, match="gone"):
            full.result()
        assert server.taken == []
        server.room = 0
        sender.push(message(3))
        outbox.flush()
        full = sender.push(message(4))
        sender.close()
        assert full is not None
        await asyncio.wait([full])
        server.take(5)
        await asyncio.sleep(0.01)
        assert (full.cancelled(), server.taken) == (True, [])

    asyncio.run(test())


@pytest.mark.parametrize("pushed", [True, False])
def test_a_client_that_takes_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch, pushed: bool) -> None:
    """Whether its messages are waited for or not; one that takes some in time is not."""
    monkeypatch.setattr(sending, "STALL_S", 0.8)

    async def answer(server: Server, senders: list[Sender]) -> None:
        sender = Sender(server, Outbox(), asyncio.current_task())
        senders.append(sender)
        for n in range(4):
            if pushed:
                sender.push(message(n))
            else:
                await sender.send(message(n))
        await sender.drain()

    async def test() -> None:
        server, senders = Server(0), list[Sender]()
        answering = asyncio.create_task(answer(server, senders))
        for _ in range(3):
            await asyncio.sleep(0.25)
            server.take(1)
        await asyncio.sleep(0.25)
        assert (server.taken, answering.done(), senders[0].stalled) == ([0, 1, 2], False, False)
        await asyncio.wait([answering])
        assert (server.taken, answering.cancelled(), senders[0].stalled) == ([0, 1, 2], True, True)
        senders[0].close()

    asyncio.run(test())


def test_an_awaitable_that_is_no_coroutine() -> None:
    class Later:
        def __init__(self, future: asyncio.Future[None]) -> None:
            self.future = future

        def __await__(self) -> Generator[Any, None, None]:
            return self.future.__await__()

    async def test() -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        outbox = Outbox()
        sender = Sender(lambda message: Later(future), outbox)
        sender.push(message(1))
        outbox.flush()
        draining = asyncio.create_task(sender.drain())
        await asyncio.sleep(0.01)
        assert not draining.done()
        future.set_result(None)
        await draining

    asyncio.run(test())


def test_a_client_that_leaves_is_noticed_until_the_answer_ends() -> None:
    """What else the server tells meanwhile is passed over; behind the last bytes a closing means nothing."""

    async def answer(receive: asyncio.Queue[Message], *, whole: bool) -> str:
        async def send(message: Message) -> None: ...

        scope = {"method": "POST", "path": "/", "headers": []}
        exchange = Exchange(scope, receive.get, send, request_id="r", outbox=Outbox())
        exchange.watch()
        exchange.begin_stream()
        if whole:
            await exchange.send_events(b"", last=True)
        for kind in ("http.request", "http.disconnect"):
            receive.put_nowait({"type": kind})
            await asyncio.sleep(0.01)
        return "answered"

    async def test(*, whole: bool) -> str:
        return await asyncio.create_task(answer(asyncio.Queue(), whole=whole))

    assert asyncio.run(test(whole=True)) == "answered"
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(test(whole=False))

"""More than a server can do, clients that go and clients that hardly read: modes of faults.py."""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import random
import re
import signal
import socket
import struct
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import httpx
from served import Answer, Figures, Served, ask, ended, left, message, serving, spread
from soak import gauges, held, read


async def overload(options: argparse.Namespace) -> Figures:
    """Open loop: requests come when they are due, whatever has become of those before."""
    body = {"prompt": "Once upon", "max_tokens": 200, "ignore_eos": True, "temperature": 0}
    async with serving(options.model, "--max-num-queued-reqs 16", rng=random.Random(options.seed)) as served:
        ask_one = functools.partial(ask, served.port, "/v1/completions", body)
        expected = json.loads((await ask_one())[2])["choices"][0]["text"]
        capacity = await closed_loop(ask_one, clients=12, seconds=options.warm_up)
        load = Load(served, expected)
        before, probing = held(served.process.pid)["rss"], asyncio.create_task(load.probe())
        begun, tasks = time.monotonic(), set[asyncio.Task[None]]()
        while (now := time.monotonic()) < begun + 60 * options.minutes:
            task = asyncio.create_task(load.one(ask_one))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            load.num_offered += 1
            await asyncio.sleep(max(0.0, begun + load.num_offered / (10 * capacity) - now))
        span, goodput = now - begun, len(load.spent) / (now - begun)
        full = held(served.process.pid)["rss"]
        await asyncio.gather(*tasks)
        probing.cancel()
        first = await timed(ask_one)
        capacity_after = await closed_loop(ask_one, clients=12, seconds=options.warm_up)
        figures = {
            "capacity_per_s": [round(capacity, 2), round(capacity_after, 2)],
            "offered_per_s": round(load.num_offered / span, 1),
            "goodput": round(2 * goodput / (capacity + capacity_after), 3),
            "answered": len(load.spent),
            "answered_in_s": spread(load.spent),
            "retry_after_s": spread(load.waits),
            "livez_ms": spread([1000 * spent for spent in load.probes]),
            "first_after_s": round(first, 2),
            "rss_growth_mb": full - before,
            **served.counts,
            **await left(served),
        }
    return {**figures, **ended(served)}


@dataclass
class Load:
    """What is offered to a server, and what came of it. Times in seconds."""

    served: Served
    expected: str
    num_offered: int = 0
    spent: list[float] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    probes: list[float] = field(default_factory=list)

    async def one(self, ask_one: Callable[[], Awaitable[Answer]]) -> None:
        """A request."""
        begun = time.monotonic()
        try:
            status, headers, text = await ask_one()
        except OSError:
            self.served.counts["not_ended"] += 1
            return
        if status != 200:
            self.served.refused(status, headers)
            self.waits.append(float(headers.get("retry-after", "0")))
            return
        self.spent.append(time.monotonic() - begun)
        self.served.counts["different"] += json.loads(text)["choices"][0]["text"] != self.expected

    async def probe(self) -> None:
        """Ask /livez, again and again."""
        while True:
            begun = time.monotonic()
            status, _, _ = await ask(self.served.port, "/livez", None)
            self.probes.append(time.monotonic() - begun)
            self.served.counts["wrong_status"] += status != 200
            await asyncio.sleep(0.1)


async def timed(ask_one: Callable[[], Awaitable[Answer]]) -> float:
    """Seconds of one request."""
    begun = time.monotonic()
    await ask_one()
    return time.monotonic() - begun


async def closed_loop(ask_one: Callable[[], Awaitable[Answer]], *, clients: int, seconds: float) -> float:
    """Answers a second of clients that ask one after the other."""
    begun, done = time.monotonic(), 0

    async def talk() -> None:
        nonlocal done
        while time.monotonic() < begun + seconds:
            status, _, _ = await ask_one()
            done += status == 200

    await asyncio.gather(*(talk() for _ in range(clients)))
    return done / (time.monotonic() - begun)


async def disconnects(options: argparse.Namespace) -> Figures:
    """A witness streams beside them, and must get what it got alone."""
    rng, at_once = random.Random(options.seed), 64
    async with serving(options.model, "--max-num-queued-reqs 1024", rng=rng) as served:
        lines, left_over = served.logged().count("\n"), iter(range(options.count))
        grown: list[int] = []

        async def leave() -> None:
            for _ in left_over:
                gone = await drop(served, rng)
                served.counts["disconnects"] += gone
                if served.counts["disconnects"] % (options.count // 10 or 1) == 0:
                    grown.append(held(served.process.pid)["rss"])

        async with served.client() as client:

            async def witness() -> None:
                while True:
                    await served.compare(client, rng.choice(served.jobs))

            watching = asyncio.create_task(witness())
            await asyncio.gather(*(leave() for _ in range(at_once)))
            quick = await freed(served, client, watching)
        figures = {**served.counts, **quick, **await left(served), "rss_mb_by_tenth": grown}
        served.process.send_signal(signal.SIGTERM)
    logged = served.logged()
    figures["log_lines_each"] = round((logged.count("\n") - lines) / options.count, 2)
    figures["warnings"] = len(re.findall(r" (?:WARNING|ERROR) ", logged))
    return {**figures, **ended(served)}


async def drop(served: Served, rng: random.Random) -> bool:
    """Send a request, whole or not, read nothing or something, and go; half of them with a reset."""
    job = rng.choice(served.jobs)
    data = message(job.path, {**job.body, **({} if rng.random() < 0.5 else {"stream": False, "stream_options": None})})
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    except OSError:
        return False
    with suppress(OSError, TimeoutError):
        writer.write(data if rng.random() < 0.8 else data[: rng.randrange(len(data))])
        if rng.random() < 0.7:
            async with asyncio.timeout(rng.choice((0.001, 0.01, 0.05, 0.3))):
                await reader.readexactly(rng.randrange(1, 20_000))
    if rng.random() < 0.5:
        linger = struct.pack("ii", 1, 0)
        with suppress(OSError):
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.close()
    return True


async def freed(served: Served, client: httpx.AsyncClient, watching: asyncio.Task[None]) -> Figures:
    """Seconds after the last one in which nothing is left but the witness, which is ended then."""
    begun = time.monotonic()
    while (await gauges(client))["num_requests_running"] > 1 and time.monotonic() < begun + 20:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    spent = time.monotonic() - begun
    watching.cancel()
    await asyncio.wait([watching])
    return {"free_after_s": round(spent, 2)}


async def readers(options: argparse.Namespace) -> Figures:
    """100 clients ask for much and take 10 bytes a second; others read as fast as it comes."""
    rng = random.Random(options.seed)
    much = {"prompt": "Once", "max_tokens": 230, "ignore_eos": True, "n": 8, "logprobs": 20, "stream": True}
    async with serving(options.model, "--max-num-queued-reqs 1024", rng=rng) as served:
        async with served.client() as client:
            alone = await gaps(served, client, seconds=options.warm_up)
            before, end = held(served.process.pid)["rss"], time.monotonic() + 60 * options.minutes
            slow = [asyncio.create_task(read_slowly(served, much, end)) for _ in range(options.clients)]
            await asyncio.sleep(2)
            beside = await gaps(served, client, seconds=max(1.0, 60 * options.minutes - 5))
            full = held(served.process.pid)["rss"]
            served.counts["given_up"] = sum(await asyncio.gather(*slow))
        figures = {
            "gaps_ms_alone": spread(alone),
            "gaps_ms_beside": spread(beside),
            "rss_growth_mb": full - before,
            **served.counts,
            **await left(served),
        }
    return {**figures, **ended(served)}


async def gaps(served: Served, client: httpx.AsyncClient, *, seconds: float) -> list[float]:
    """Milliseconds between the events of streams that are read at once."""
    soak, end = served.soak, time.monotonic() + seconds
    while time.monotonic() < end:
        job = served.jobs[served.counts["compared"] % len(served.jobs)]
        answer = await read(soak, client, job)
        served.counts["compared"] += 1
        served.counts["different"] += answer != job.alone
    return [1000 * gap for _, gap in soak.gaps]


async def read_slowly(served: Served, body: Any, end: float) -> bool:
    """Take 10 bytes a second until `end`; True where the server has given the connection up."""
    loop, connection = asyncio.get_running_loop(), socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.setblocking(False)
    with connection:
        await loop.sock_connect(connection, ("127.0.0.1", served.port))
        await loop.sock_sendall(connection, message("/v1/completions", body))
        while time.monotonic() < end:
            await asyncio.sleep(1)
            try:
                if not connection.recv(10):
                    return True
            except BlockingIOError:
                continue
            except OSError:
                return True
    return False

"""A model in, a server that answers and has been measured out; what every mode of faults.py needs. Linux."""

from __future__ import annotations

import asyncio
import json
import random
import re
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from soak import SERVER, Job, Soak, held, make_jobs, quiet, read, tree

Figures = dict[str, Any]
Answer = tuple[int, dict[str, str], bytes]


@dataclass
class Served:
    """A server that is ready, and what each job got from it alone."""

    url: str
    port: int
    process: subprocess.Popen[str]
    log: Any
    text: str = ""
    jobs: list[Job] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    before: Counter[str] = field(default_factory=Counter)

    @property
    def soak(self) -> Soak:
        """As soak.read wants it."""
        return Soak(self.url, self.process.pid, self.jobs, 0.0)

    def client(self) -> httpx.AsyncClient:
        """A client without proxies."""
        limits = httpx.Limits(max_connections=None)
        return httpx.AsyncClient(base_url=self.url, timeout=120, trust_env=False, limits=limits)

    def logged(self) -> str:
        """All of stderr, also once the server has ended."""
        if not self.log.closed:
            self.log.seek(0)
            self.text = str(self.log.read())
        return self.text

    async def compare(self, client: httpx.AsyncClient, job: Job) -> None:
        """Read a job to its end; counts what becomes of it."""
        try:
            answer = await read(self.soak, client, job)
            self.counts["compared"] += 1
            self.counts["different"] += answer != job.alone
        except httpx.HTTPStatusError as error:
            self.refused(error.response.status_code, dict(error.response.headers))
        except (ValueError, EOFError, httpx.HTTPError):
            self.counts["not_ended"] += 1

    def refused(self, status: int, headers: dict[str, str]) -> None:
        """Count an answer that is none."""
        self.counts["refused"] += 1
        self.counts["wrong_status"] += status not in (429, 503)
        self.counts["no_retry_after"] += not headers.get("retry-after", "").isdigit()


@asynccontextmanager
async def serving(model: str, flags: str, *, rng: random.Random, jobs: int = 12) -> AsyncIterator[Served]:
    """A server that has answered every job alone and all at once; it is drained afterwards."""
    command = [sys.executable, "-m", "octavo.cli", "serve", model, *SERVER.split(), *flags.split()]
    with tempfile.TemporaryFile("w+") as log:
        process = await asyncio.to_thread(subprocess.Popen, command, stdout=subprocess.PIPE, stderr=log, text=True)
        served = Served("", 0, process, log, jobs=make_jobs(rng, jobs))
        try:
            line = await asyncio.to_thread(process.stdout.readline) if process.stdout else ""
            served.url = re.findall(r"http://[^\s;]+", line)[0]
            served.port = int(served.url.rpartition(":")[2])
            await measure(served)
            yield served
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                await asyncio.to_thread(process.communicate, timeout=60)
            finally:
                process.kill()
                served.logged()


async def measure(served: Served) -> None:
    """What each job gets alone, and what the server holds afterwards."""
    async with served.client() as client:
        while (await client.get("/readyz")).status_code != 200:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        for job in served.jobs:
            job.alone = await read(served.soak, client, job)
        await asyncio.gather(*(read(served.soak, client, job) for job in served.jobs))
        await quiet(client)
    served.before = held(served.process.pid)


async def left(served: Served) -> Figures:
    """What a server holds more of than before, once nothing is under way."""
    async with served.client() as client:
        done = await quiet(client)
    for _ in range(600):  # the server sees connections closed a little later, a busy machine's much later
        after = held(served.process.pid)
        if after["fds"] <= served.before["fds"]:
            break
        await asyncio.sleep(0.05)
    return {
        "leaked_blocks": done["kv_cache_usage_perc"] + done["num_requests_running"] + done["num_requests_waiting"],
        "leaked_fds": max(0, after["fds"] - served.before["fds"]),
        "leaked_threads": max(0, after["threads"] - served.before["threads"]),
        "rss_mb": [served.before["rss"], after["rss"]],
    }


def engines(pid: int) -> list[int]:
    """The engine processes of a server."""
    found = []
    for each in tree(pid)[1:]:
        with suppress(OSError):
            if b"engine_main" in Path(f"/proc/{each}/cmdline").read_bytes():
                found.append(each)
    return found


def ended(served: Served) -> Figures:
    """How the server ended."""
    return {"exit_code": served.process.returncode, "tracebacks": served.logged().count("Traceback")}


def spread(values: list[float]) -> list[float]:
    """Least, median, 99th percentile, most."""
    values = sorted(values) or [0.0]
    return [round(values[int((len(values) - 1) * share)], 3) for share in (0.0, 0.5, 0.99, 1.0)]


async def ask(port: int, path: str, body: Any) -> Answer:
    """One request on a connection of its own: status, headers, body. OSError where no whole answer comes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(message(path, body))
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in head[1:] if ": " in line)
        return int(head[0].split()[1]), headers, await reader.readexactly(int(headers["content-length"]))
    except asyncio.IncompleteReadError as error:
        raise ConnectionError("cut off") from error
    finally:
        writer.close()


def message(path: str, body: Any) -> bytes:
    """An HTTP request: POST of JSON, or GET where there is none."""
    content = b"" if body is None else json.dumps(body).encode()
    kind = f"content-type: application/json\r\ncontent-length: {len(content)}\r\n" if content else ""
    return f"{'POST' if content else 'GET'} {path} HTTP/1.1\r\nhost: localhost\r\n{kind}\r\n".encode() + content

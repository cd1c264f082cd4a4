"""A server under all that clients do wrong at once: what it loses, leaks or answers differently. Linux.

    python benchmarks/soak.py MODEL [--minutes 15] [--clients 64] [--kills 0] [--seed 0]

Starts `octavo serve MODEL` with a cache so small that sequences are preempted and a queue so short that some are
refused. Each client sends request after request: 30 % are closed at any moment of their life, 10 % are read slowly, 5 %
are wrong, the others are read to their end; each text must be the one that the same request got alone. --kills: the
engine process is killed so often, evenly spread. One JSON object at the end; exit code 1 unless the figures of MUST
are all 0 and the others make sense.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

SERVER = "--port 0 --device cpu --threads 1 --max-num-seqs 8 --block-size 16"
MUST = ("different", "not_ended", "wrong_status", "tracebacks", "leaked_blocks", "leaked_fds", "leaked_threads")
WRONG: list[dict[str, Any]] = [
    {"prompt": []},
    {"prompt": "a", "temperature": -1},
    {"prompt": "a", "max_tokens": 10**9, "min_tokens": 10**9},
    {"prompt": "a", "no_such_field": 1},
    {"prompt": [2**31]},
]
Answer = tuple[str, str | None, int]


@dataclass
class Job:
    """A request, and what it got alone: text, finish_reason, completion tokens."""

    path: str
    body: dict[str, Any]
    alone: Answer | None = None


@dataclass
class Soak:
    """One run: where the server is, and what has happened."""

    url: str
    pid: int
    jobs: list[Job]
    until: float
    counts: Counter[str] = field(default_factory=Counter)
    gaps: list[tuple[float, float]] = field(default_factory=list)
    rss: list[tuple[float, float]] = field(default_factory=list)


def queue_length(clients: int) -> int:
    """How many may wait: too few for all clients."""
    return max(clients - 12, 4)


def make_jobs(rng: random.Random, count: int) -> list[Job]:
    """Completions and chats, greedy and drawn; some share a beginning."""
    jobs = []
    for i in range(count):
        words = " ".join(f"w{rng.randrange(30)}" for _ in range(rng.randint(1, 12)))
        text = ("Once upon a time " if i % 3 else "") + words
        body: dict[str, Any] = {"max_tokens": rng.randint(8, 120), "ignore_eos": True, "stream": True}
        body |= {"temperature": 0.0} if i % 2 else {"temperature": 0.8, "seed": i}
        body["stream_options"] = {"include_usage": True}
        chat = i % 4 == 3
        body |= {"messages": [{"role": "user", "content": text}]} if chat else {"prompt": text}
        jobs.append(Job("/v1/chat/completions" if chat else "/v1/completions", body))
    return jobs


async def read(soak: Soak, client: httpx.AsyncClient, job: Job, *, most: int | None = None, pause: float = 0) -> Answer:
    """The answer. most: events after which the connection is closed.  Raises what went wrong."""
    text, finish, tokens, seen, ended = "", None, 0, 0, False
    async with client.stream("POST", job.path, json=job.body) as response:
        if response.status_code != 200:
            await response.aread()
            response.raise_for_status()
        before = time.monotonic()
        async for line in response.aiter_lines():
            if not line.startswith("data: "):
                continue
            now, seen = time.monotonic(), seen + 1
            soak.gaps.append((now, now - before))
            if most is not None and seen > most:
                raise asyncio.CancelledError
            if line == "data: [DONE]":
                ended = True
                break
            event = json.loads(line[6:])
            if "error" in event:
                raise ValueError(event["error"]["message"])
            for choice in event["choices"]:
                text += choice.get("text") or choice.get("delta", {}).get("content") or ""
                finish = choice["finish_reason"] or finish
            tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
            await asyncio.sleep(pause)
            before = time.monotonic()
    if not ended:
        raise EOFError
    return text, finish, tokens


async def one(soak: Soak, client: httpx.AsyncClient, job: Job, rng: random.Random) -> None:
    """One request of a client, of a random kind."""
    kind, counts = rng.random(), soak.counts
    counts["requests"] += 1
    if kind < 0.05:
        answer = await client.post("/v1/completions", json=rng.choice(WRONG))
        counts["invalid"] += 1
        counts["wrong_status"] += not (400 <= answer.status_code < 500 or answer.status_code == 503)
        return
    try:
        if kind < 0.20:  # whenever it may be: queued, in its prompt, between tokens
            counts["aborted"] += 1
            async with asyncio.timeout(rng.uniform(0, 0.5)):
                await read(soak, client, job)
        elif kind < 0.35:
            counts["aborted"] += 1
            await read(soak, client, job, most=rng.randrange(40))
        else:
            slow = kind < 0.45
            counts["slow"] += slow
            answer = await read(soak, client, job, pause=0.05 if slow else 0)
            counts["compared"] += 1
            counts["different"] += answer != job.alone
    except (TimeoutError, asyncio.CancelledError):
        return
    except httpx.HTTPStatusError as error:
        retry = error.response.headers.get("retry-after", "")
        counts["refused"] += 1
        counts["wrong_status"] += error.response.status_code not in (429, 503) or not retry.isdigit()
        await asyncio.sleep(0.2)
    except ValueError as error:
        told = "not tried again" in str(error) and soak.counts["kills"] > 1
        counts["met_two_crashes" if told else "not_ended"] += 1
    except (EOFError, httpx.HTTPError) as error:
        counts["not_ended"] += 1
        counts[f"not_ended_{type(error).__name__}"] += 1


async def run_client(soak: Soak, seed: int) -> None:
    """Request after request until the time is over."""
    rng = random.Random(seed)
    async with httpx.AsyncClient(base_url=soak.url, timeout=120, trust_env=False) as client:
        while time.monotonic() < soak.until:
            await one(soak, client, rng.choice(soak.jobs), rng)


def tree(pid: int) -> list[int]:
    """The process and all that descend from it."""
    found = [pid]
    with suppress(OSError):
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            found += [each for child in children.read_text().split() for each in tree(int(child))]
    return found


def held(pid: int) -> Counter[str]:
    """File descriptors, threads and MB of memory of a process and its children."""
    found: Counter[str] = Counter()
    for each in tree(pid):
        with suppress(OSError):
            found["fds"] += len(os.listdir(f"/proc/{each}/fd"))
            found["threads"] += len(os.listdir(f"/proc/{each}/task"))
            found["rss"] += int(Path(f"/proc/{each}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20
    return found


def kill_engine(pid: int) -> None:
    """Kill the engine process of a server."""
    for each in tree(pid):
        with suppress(OSError):
            if b"engine_main" in Path(f"/proc/{each}/cmdline").read_bytes():
                os.kill(each, signal.SIGKILL)


async def watch(soak: Soak, kills: int) -> None:
    """Memory twice a second; the kills."""
    start, span = time.monotonic(), soak.until - time.monotonic()
    while (now := time.monotonic()) < soak.until:
        soak.rss.append((now - start, held(soak.pid)["rss"]))
        if soak.counts["kills"] < kills and now - start > span * (soak.counts["kills"] + 1) / (kills + 1):
            soak.counts["kills"] += 1
            kill_engine(soak.pid)
        await asyncio.sleep(0.5)


async def gauges(client: httpx.AsyncClient) -> dict[str, float]:
    """The engine's metrics, by name without prefix."""
    lines = re.findall(r"^octavo:(\w+)\{.*\} ([\d.e+-]+)$", (await client.get("/metrics")).text, re.MULTILINE)
    return {name: float(value) for name, value in lines}


async def quiet(client: httpx.AsyncClient) -> dict[str, float]:
    """Wait, up to 20 s, until nothing is under way, and a little longer; the metrics then."""
    for _ in range(100):
        found = await gauges(client)
        if not found["num_requests_running"] + found["num_requests_waiting"] + found["kv_cache_usage_perc"]:
            break
        await asyncio.sleep(0.2)
    await asyncio.sleep(2.5)  # the engine checks its accounts when it is idle, and ends where they do not add up
    return await gauges(client)


def slope(points: list[tuple[float, float]]) -> float:
    """MB an hour, of the later three quarters."""
    points = points[len(points) // 4 :]
    mean_t, mean = (sum(column) / len(points) for column in zip(*points, strict=True))
    spread = sum((t - mean_t) ** 2 for t, _ in points) or 1.0
    return 3600 * sum((t - mean_t) * (value - mean) for t, value in points) / spread


def p99(gaps: list[float]) -> float:
    """Milliseconds between events."""
    return round(1000 * sorted(gaps)[int(len(gaps) * 0.99)], 1) if gaps else 0.0


async def soak_server(url: str, pid: int, options: argparse.Namespace) -> dict[str, Any]:
    """Everything, against a server that is loading; the figures."""
    rng = random.Random(options.seed)
    soak = Soak(url, pid, make_jobs(rng, 24), 0.0)
    async with httpx.AsyncClient(base_url=url, timeout=120, trust_env=False) as client:
        for _ in range(600):
            if (await client.get("/readyz")).status_code == 200:
                break
            await asyncio.sleep(0.2)
        for job in soak.jobs:
            job.alone = await read(soak, client, job)
        at_once = soak.jobs[: min(16, queue_length(options.clients))]  # none of which is refused
        await asyncio.gather(*(read(soak, client, job) for job in at_once))  # all threads have begun
        await quiet(client)
        before = held(pid)
        soak.gaps.clear()
        soak.until = time.monotonic() + 60 * options.minutes
        begun = time.monotonic()
        clients = (run_client(soak, options.seed * 1000 + i) for i in range(options.clients))
        await asyncio.gather(watch(soak, options.kills), *clients)
        done = await quiet(client)
        after = held(pid)
    span = (soak.until - begun) / 3
    first = [gap for at, gap in soak.gaps if at < begun + span]
    last = [gap for at, gap in soak.gaps if at > begun + 2 * span]
    return {
        **dict.fromkeys(MUST, 0),
        **soak.counts,
        "preemptions": int(done["num_preemptions_total"]),
        "leaked_blocks": done["kv_cache_usage_perc"] + done["num_requests_running"] + done["num_requests_waiting"],
        "leaked_fds": max(0, after["fds"] - before["fds"]),
        "leaked_threads": max(0, after["threads"] - before["threads"]),
        "rss_mb": [before["rss"], after["rss"]],
        "rss_mb_per_hour": round(slope(soak.rss), 1),
        "rss_mb_by_tenth": [round(value) for _, value in soak.rss[:: max(1, len(soak.rss) // 10)]],
        "p99_gap_ms": [p99(first), p99(last)],
    }


def main(arguments: list[str] | None = None) -> int:
    """Run, print, judge; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--blocks", type=int, default=24, help="of the cache, 16 tokens each")
    parser.add_argument("--max-model-len", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    flags = f"{SERVER} --num-gpu-blocks-override {options.blocks} --max-model-len {options.max_model_len}"
    flags += f" --max-num-queued-reqs {queue_length(options.clients)}"
    command = [sys.executable, "-m", "octavo.cli", "serve", options.model, *flags.split()]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            url = re.search(r"http://[^\s;]+", process.stdout.readline() if process.stdout else "")
            figures = asyncio.run(soak_server(url[0], process.pid, options)) if url else {}
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=60)
            log.seek(0)
            errors = log.read()
    figures |= {"tracebacks": errors.count("Traceback"), "exit_code": process.returncode}
    print(json.dumps(figures))
    wrong = [name for name in MUST if figures.get(name)] + ["exit_code"] * bool(process.returncode)
    wrong += [name for name in ("compared", "aborted", "preemptions", "refused") if not figures.get(name)]
    if wrong:
        print(f"not as they must be: {', '.join(wrong)}\n{errors[-3000:]}", file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())

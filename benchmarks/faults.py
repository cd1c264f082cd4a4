"""One kind of harm at a time to a server, counted: what was lost, leaked, told wrongly or answered differently. Linux.

    python benchmarks/faults.py MODE MODEL [--count N] [--minutes M] [--clients C] [--seed 0]

crashes      the engine process is killed (three of four) or stopped `count` times (100) under streams, which go on
overload     ten times what the server can do, for `minutes` (5): what is refused how, and what is still done
disconnects  `count` (10,000) connections closed or reset at any moment, of queued, whole and streamed answers
readers      `clients` (100) that read 10 bytes a second, for `minutes` (1), beside others that read
drains       SIGTERM under load, `count` times (20): streams end whole, nothing else is left without an answer
cycles       `count` times (1,000) an LLM is made, used and closed in one process, which grows by 5 MB at most

One JSON object; exit code 1 where a figure of MUST is not 0.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import httpx
from pressure import disconnects, overload, readers
from served import Figures, Served, ended, engines, left, serving, spread
from soak import Job, held, read

from octavo import LLM, SamplingParams

SHARED = "/dev/shm"
MUST = (
    *("different", "not_ended", "wrong_status", "no_retry_after", "leaked_blocks", "leaked_fds", "leaked_threads"),
    *("leaked_mb", "tracebacks", "orphans", "exit_code"),
)


async def crashes(options: argparse.Namespace) -> Figures:
    """Each waits until all that was under way at the last one has ended, so that no request meets two."""
    rng = random.Random(options.seed)
    shared = set(os.listdir(SHARED))
    async with serving(options.model, "--watchdog-timeout 4 --max-num-queued-reqs 256", rng=rng) as served:
        under_way: set[asyncio.Task[None]] = set()
        back: dict[str, list[float]] = {"SIGKILL": [], "SIGSTOP": []}
        stop = asyncio.Event()
        async with served.client() as client:

            async def talk(seed: int) -> None:
                mine = random.Random(seed)
                while not stop.is_set():
                    task = asyncio.create_task(served.compare(client, mine.choice(served.jobs)))
                    under_way.add(task)
                    await task
                    under_way.discard(task)
                    await asyncio.sleep(0.02)

            talking = [asyncio.create_task(talk(number)) for number in range(options.clients)]
            for number in range(options.count):
                await asyncio.sleep(rng.uniform(0.0, 0.5))
                how = signal.SIGSTOP if number % 4 == 3 else signal.SIGKILL
                back[how.name].append(await harm(served, client, how))
                served.counts["open_when_it_ended"] += len(under_way)
                if under_way:
                    await asyncio.wait(set(under_way))
            stop.set()
            await asyncio.gather(*talking)
            figures = {**served.counts, **await left(served)}
            figures["restarts"] = served.logged().count("the engine process is back")
    told = {f"back_s_{how}": [round(min(times), 2), round(max(times), 2)] for how, times in back.items() if times}
    orphans = len(engines(served.process.pid)) + len(set(os.listdir(SHARED)) - shared)
    return {**figures, **told, "orphans": orphans, **ended(served)}


async def harm(served: Served, client: httpx.AsyncClient, how: signal.Signals) -> float:
    """End or stop the engine process; seconds until another one takes requests."""
    (pid,) = engines(served.process.pid)
    begun = time.monotonic()
    while (found := engines(served.process.pid)) in ([pid], []) or (await client.get("/readyz")).status_code != 200:
        if pid in found:  # again and again, should someone let it go on
            with suppress(ProcessLookupError):
                os.kill(pid, how)
        await asyncio.sleep(0.02)
    return time.monotonic() - begun


async def drains(options: argparse.Namespace) -> Figures:
    """Every other one gets a second SIGTERM: then what is cut off must be told so."""
    rng, total, spent = random.Random(options.seed), Counter[str](), []
    for number in range(options.count):
        async with serving(options.model, "--shutdown-timeout 60", rng=rng, jobs=6) as served:
            for job in served.jobs:
                job.body["max_tokens"] = 230
            twice = number % 2 == 1
            async with served.client() as client:
                for job in served.jobs:
                    job.alone = await read(served.soak, client, job)
                streams = [asyncio.create_task(drained(served, client, rng.choice(served.jobs))) for _ in range(24)]
                await asyncio.sleep(rng.uniform(0.02, 0.4))
                begun = time.monotonic()
                served.process.send_signal(signal.SIGTERM)
                if twice:
                    await asyncio.sleep(rng.uniform(0.01, 0.2))
                    served.process.send_signal(signal.SIGTERM)
                await asyncio.gather(*streams)
            await asyncio.to_thread(served.process.wait, 60)
            spent.append(time.monotonic() - begun)
        told = ended(served)
        told["exit_code"] = abs(told["exit_code"])
        served.counts["cut_off_without_cause"] = 0 if twice else served.counts["told_it_was_cut_off"]
        if twice:
            served.counts = Counter({f"{name}_twice": count for name, count in served.counts.items()})
        total.update(served.counts + Counter(told))
    total["not_ended"] += total["cut_off_without_cause"]
    for name in MUST:
        total[name] += total.pop(f"{name}_twice", 0)
    return {"drains": options.count, **total, "seconds": spread(spent)}


async def drained(served: Served, client: httpx.AsyncClient, job: Job) -> None:
    """A stream that a drain meets: whole, refused, told that it was cut off, or never let in: a request that nobody had
    read yet when the server left sees its connection reset.
    """
    soak = served.soak
    try:
        answer = await read(soak, client, job)
        served.counts["whole"] += 1
        served.counts["different"] += answer != job.alone
    except httpx.HTTPStatusError as error:
        served.refused(error.response.status_code, dict(error.response.headers))
    except httpx.ConnectError:
        served.counts["not_let_in"] += 1
    except ValueError:
        served.counts["told_it_was_cut_off"] += 1
    except (EOFError, httpx.HTTPError) as error:
        served.counts["not_ended"] += bool(soak.gaps)
        served.counts[f"{'cut_short' if soak.gaps else 'reset_unread'}_{type(error).__name__}"] += 1


# cycles


async def cycles(options: argparse.Namespace) -> Figures:
    """The first two are what everything was loaded for."""

    def cycle() -> Counter[str]:
        with LLM(options.model, device="cpu", threads=2, max_num_seqs=8, kv_cache_memory_bytes=4 << 20) as llm:
            llm.generate(["Hello"], SamplingParams(max_tokens=4), use_tqdm=False)
        return held(os.getpid())

    def all_of_them() -> tuple[Counter[str], Counter[str]]:
        cycle()
        before = after = cycle()
        for _ in range(options.count):
            after = cycle()
        return before, after

    with ThreadPoolExecutor(1) as alone:  # asyncio's own may begin a second thread meanwhile
        before, after = await asyncio.wrap_future(alone.submit(all_of_them))
    return {
        "cycles": options.count,
        **{f"leaked_{kind}": max(0, after[kind] - before[kind]) for kind in ("fds", "threads")},
        "leaked_mb": max(0, after["rss"] - before["rss"] - 5),
        "rss_mb": [before["rss"], after["rss"]],
    }


MODES = {mode.__name__: mode for mode in (crashes, overload, disconnects, readers, drains, cycles)}
COUNTS = {"crashes": 100, "disconnects": 10_000, "drains": 20, "cycles": 1000}
CLIENTS = {"crashes": 16, "readers": 100}
MINUTES = {"overload": 5.0, "readers": 1.0}


def main(arguments: list[str] | None = None) -> int:
    """Run, print, judge; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=sorted(MODES))
    parser.add_argument("model")
    parser.add_argument("--count", type=int)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--clients", type=int)
    parser.add_argument("--warm-up", type=float, default=10.0, help="seconds in which it is measured unharmed")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    options.count = options.count or COUNTS.get(options.mode, 0)
    options.minutes = options.minutes or MINUTES.get(options.mode, 0.0)
    options.clients = options.clients or CLIENTS.get(options.mode, 0)
    figures = {"mode": options.mode, **dict.fromkeys(MUST, 0), **asyncio.run(MODES[options.mode](options))}
    print(json.dumps(figures))
    wrong = [name for name in MUST if figures[name]]
    if wrong:
        print(f"not as they must be: {', '.join(wrong)}", file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())

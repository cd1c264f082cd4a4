"""What the serving process takes of a token: connections by the hundred over an engine whose device costs nothing.

    python benchmarks/front.py [MODEL] [--connections 64,256] [--step-ms 0,8] [--output FILE]

The server is `octavo serve`'s own, its engine process real but for the executor, which says a text token by token: at
once, or a step of a fixed time at a time. The load comes from a third process over raw sockets. One JSON line each:
tokens a second; microseconds of processor time a token of both processes, and a chunk, which may hold several tokens;
milliseconds to the first token, how many of them the front added, and milliseconds between arrivals on a connection.
`--tokens 1` tells what a request takes. Linux.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from octavo.api.async_llm import AsyncLLM
from octavo.api.engine_main import read_config
from octavo.api.engine_process import EngineProcess
from octavo.base.config.config import EngineConfig, ServerConfig
from octavo.base.config.resolve import resolve
from octavo.base.types.plan import StepPlan, StepResult
from octavo.engine.engine import Engine
from octavo.engine.process import run as run_engine
from octavo.server import launch
from octavo.server.listener import listen

TEXT = "The quick brown fox jumps over the lazy dog, and nobody knows why it does so again and again.\n"
SCRIPT = list(range(400, 3400))  # ids that are words, or parts of words, in any usual vocabulary
NUM_BLOCKS, MAX_MODEL_LEN = 65536, 8192
SHARES = (50, 90, 99, 99.9)
LIMIT_S = 120.0


class TimedExecutor:
    """Row by row the script's token of its position; a step is done `step_s` after it and those before it began."""

    def __init__(self, step_s: float) -> None:
        self._step_s = step_s
        self._plans: deque[tuple[StepPlan, float]] = deque()
        self._done_at = 0.0

    def begin(self, plan: StepPlan) -> None:
        """Keep the plan."""
        self._done_at = max(self._done_at, time.monotonic()) + self._step_s
        self._plans.append((plan, self._done_at))

    def mask(self, masks: dict[int, bytes]) -> None:
        """No row is masked."""

    def finish(self) -> StepResult:
        """One token a row that samples, in its time."""
        plan, done_at = self._plans.popleft()
        if (left := done_at - time.monotonic()) > 0:
            time.sleep(left)
        size = len(SCRIPT)
        return StepResult(
            step=plan.step, tokens=[SCRIPT[(row.start + row.count) % size] for row in plan.rows if row.sample]
        )

    def call(self, name: str, **arguments: object) -> None:
        """Nothing is known."""

    def close(self) -> None:
        """Nothing is held."""


def build(config: EngineConfig, step_s: float) -> Engine:
    """The engine as build_engine makes it, over a TimedExecutor."""
    config = resolve(config, max_position=MAX_MODEL_LEN)
    return Engine(
        TimedExecutor(step_s),
        scheduler=config.scheduler,
        cache=config.cache,
        num_blocks=NUM_BLOCKS,
        max_model_len=MAX_MODEL_LEN,
    )


def serve_engine(fd: int, step_s: float) -> int:
    """The engine process; its exit code."""
    with socket.socket(fileno=fd) as sock:
        config = read_config(sock)
        return run_engine(lambda progress: build(config, step_s), sock)


def serve(model: str, step_ms: str, seqs: int) -> int:
    """The serving process; its exit code."""
    ours, theirs = socket.socketpair()
    with theirs:
        command = [sys.executable, __file__, "engine", str(theirs.fileno()), step_ms]
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
    llm = AsyncLLM(model, process=EngineProcess(ours, process), device="cpu", max_num_seqs=seqs)
    config = ServerConfig(port=0)
    with listen(config.host, 0) as listener:
        launch.say(f"Engine {process.pid}")
        return asyncio.run(launch.run(llm, config, listener=listener))


class Connection(asyncio.Protocol):
    """Sends its requests one after the other, and notes when what comes of them arrives."""

    def __init__(self, body: bytes, requests: int) -> None:
        self.first: list[float] = []
        self.gaps: list[float] = []
        self.chunks = 0
        self.done = asyncio.get_running_loop().create_future()
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        self._request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
        self._left = requests
        self._tail = b""
        self._at = 0.0
        self._begun = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask."""
        self._transport: Any = transport
        self._ask()

    def _ask(self) -> None:
        self._begun, self._left = False, self._left - 1
        self._transport.write(self._request)
        self._at = time.perf_counter()

    def data_received(self, data: bytes) -> None:
        """Note it; ask again at an answer's end."""
        now = time.perf_counter()
        chunks = data.count(b'"delta"')
        self.chunks += chunks
        if chunks:
            (self.gaps if self._begun else self.first).append(now - self._at)
            self._begun, self._at = True, now
        elif not self._begun and not data.startswith(b"HTTP/1.1 200"):
            self.done.set_exception(RuntimeError(data[:300].decode("utf-8", "replace")))
            return
        self._tail = (self._tail + data)[-16:]
        if b"[DONE]" in self._tail and self._tail.endswith(b"0\r\n\r\n"):
            self._tail = b""
            if self._left:
                self._ask()
            else:
                self._transport.close()
                self.done.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """Too early, or after the last answer."""
        if not self.done.done():
            self.done.set_exception(ConnectionResetError("the server closed a connection"))


async def load(port: int, *, connections: int, requests: int, tokens: int, stagger_s: float) -> dict[str, Any]:
    """All connections' requests, to their ends."""
    message = {"role": "user", "content": TEXT * 4}
    body = {"messages": [message], "max_tokens": tokens, "ignore_eos": True, "stream": True, "temperature": 0}
    loop, content, made = asyncio.get_running_loop(), json.dumps(body).encode(), []
    begin = time.perf_counter()
    for _ in range(connections):
        _, connection = await loop.create_connection(lambda: Connection(content, requests), "127.0.0.1", port)
        made.append(connection)
        await asyncio.sleep(stagger_s)
    await asyncio.gather(*(connection.done for connection in made))
    seconds = time.perf_counter() - begin
    total = connections * requests * tokens
    return {
        "tokens": total,
        "tokens_a_second": round(total / seconds),
        "tokens_a_chunk": round(total / max(1, sum(c.chunks for c in made)), 2),
        "first_ms": shares([t for c in made for t in c.first]),
        "first_mean_ms": round(1e3 * sum(t for c in made for t in c.first) / max(1, connections * requests), 3),
        "between_ms": shares([t for c in made for t in c.gaps]),
    }


def shares(times: list[float]) -> dict[str, float]:
    """Percentiles in milliseconds."""
    times.sort()
    return {f"p{share:g}": round(1e3 * times[int(share / 100 * (len(times) - 1))], 2) for share in SHARES if times}


def processor_us(pid: int) -> float:
    """Processor time that a process's threads took so far, in microseconds."""
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e3


def engine_first_token(address: str) -> tuple[float, float]:
    """Seconds to the first token as the engine process saw them: their sum, and of how many requests."""
    with urllib.request.urlopen(f"{address}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    name = "octavo:time_to_first_token_seconds_"
    found = {line[len(name) :].partition("{")[0]: float(line.split()[-1]) for line in lines if line.startswith(name)}
    return found["sum"], found["count"]


@contextmanager
def server(model: str, step_ms: float, seqs: int) -> Iterator[tuple[str, int, int]]:
    """A server's address, and the ids of its two processes."""
    command = [sys.executable, __file__, "serve", model, f"{step_ms:g}", str(seqs)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            text, end = b"", time.monotonic() + LIMIT_S
            while b"Ready: http" not in text or not text.endswith(b"\n"):
                out: Any = process.stdout
                ready = select.select([out], [], [], max(0.0, end - time.monotonic()))[0]
                part = os.read(out.fileno(), 1 << 16) if ready else b""
                if not part:
                    raise RuntimeError(f"the server did not start; it said {text!r}")
                text += part
            told = text.decode()
            yield told.partition("Ready: ")[2].split()[0], process.pid, int(told.partition("Engine ")[2].split()[0])
        finally:
            process.send_signal(signal.SIGTERM)


def measure(model: str, step_ms: float, connections: int, args: argparse.Namespace) -> dict[str, Any]:
    """One line's figures: a warm-up, then the load."""
    with server(model, step_ms, connections) as (address, front, engine):
        port = address.rpartition(":")[2]
        warm = {"connections": 8, "requests": 2, "tokens": 50, "stagger_s": 0.0}
        full = {"connections": connections, "requests": args.requests, "tokens": args.tokens}
        full["stagger_s"] = args.stagger_ms / 1e3
        run_load(port, warm)
        seen = engine_first_token(address)
        before = processor_us(front), processor_us(engine)
        figures = run_load(port, full)
        front_us, engine_us = processor_us(front) - before[0], processor_us(engine) - before[1]
        total, count = (new - old for new, old in zip(engine_first_token(address), seen, strict=True))
    tokens = figures.pop("tokens")
    figures["first_added_mean_ms"] = round(figures.pop("first_mean_ms") - 1e3 * total / max(1, count), 3)
    return {
        "step_ms": step_ms,
        "connections": connections,
        "front_us_a_token": round(front_us / tokens, 2),
        "front_us_a_chunk": round(front_us / tokens * figures["tokens_a_chunk"], 1),
        "engine_us_a_token": round(engine_us / tokens, 2),
        **figures,
    }


def run_load(port: str, what: dict[str, Any]) -> dict[str, Any]:
    """`load` in a process of its own."""
    command = [sys.executable, __file__, "load", port, json.dumps(what)]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2", help="of which only tokenizer and template are read")
    parser.add_argument("--connections", default="64,256")
    parser.add_argument("--step-ms", default="0,8")
    parser.add_argument("--requests", type=int, default=2, help="of each connection, one after the other")
    parser.add_argument("--tokens", type=int, default=400, help="of each answer")
    parser.add_argument("--stagger-ms", type=float, default=0.0, help="between the first requests of two connections")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    found = []
    for step_ms in map(float, args.step_ms.split(",")):
        for connections in map(int, args.connections.split(",")):
            found.append(measure(args.model, step_ms, connections, args))
            print(json.dumps(found[-1]), flush=True)
    if args.output:
        args.output.write_text("".join(json.dumps(line) + "\n" for line in found))


if __name__ == "__main__":
    if sys.argv[1:2] == ["engine"]:
        sys.exit(serve_engine(int(sys.argv[2]), float(sys.argv[3]) / 1e3))
    if sys.argv[1:2] == ["serve"]:
        sys.exit(serve(sys.argv[2], sys.argv[3], int(sys.argv[4])))
    if sys.argv[1:2] == ["load"]:
        print(json.dumps(asyncio.run(load(int(sys.argv[2]), **json.loads(sys.argv[3])))))
    else:
        main()

"""What the serving process takes of a token: connections by the hundred over an engine whose device costs nothing.

    python benchmarks/front.py [MODEL] [--connections 64,256] [--step-ms 0,8] [--pause-ms 0] [--output FILE]

The server is `octavo serve`'s own, its engine process real but for the executor, which says a text token by token: at
once, or a step of a fixed time at a time. The load comes from a third process over raw sockets. One JSON line each:
tokens a second; microseconds of processor time a token of both processes, and a chunk, which may hold several tokens;
milliseconds to the first token and between arrivals on a connection. The first token's added time runs from the moment
at which the executor could have given it (the steps that it had when the request was sent, and one more) to the arrival
of its text in the client's socket, as the kernel notes it; `seen`: until the load generator, which has the other
connections to read as well, comes to it. All connections ask at one moment; with `--pause-ms` each for itself, a random
time of that mean after its last answer.
`--tokens 1` tells what a request takes. Linux.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
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
SHARES = (25, 50, 75, 90, 99, 99.9)
LIMIT_S = 120.0
SLEEP_LATE_S = 4e-4  # by which a sleep may end late: 0.15 ms in the middle where cores sleep too
SO_TIMESTAMPNS = 35  # Linux: a socket tells when its bytes arrived; the socket module has no name for it


class TimedExecutor:
    """Row by row the script's token of its position; a step is done `step_s` after it and those before it began."""

    def __init__(self, step_s: float, timeline: Path) -> None:
        self._step_s = step_s
        self._timeline = timeline
        self._steps: list[tuple[float, float]] = []  # when each was begun, when it is done
        self._plans: deque[tuple[StepPlan, float]] = deque()
        self._done_at = 0.0

    def begin(self, plan: StepPlan) -> None:
        """Keep the plan."""
        now = time.monotonic()
        self._done_at = max(self._done_at, now) + self._step_s
        self._steps.append((now, self._done_at))
        self._plans.append((plan, self._done_at))

    def mask(self, masks: dict[int, bytes]) -> None:
        """No row is masked."""

    def finish(self) -> StepResult:
        """One token a row that samples, in its time."""
        plan, done_at = self._plans.popleft()
        if (left := done_at - time.monotonic() - SLEEP_LATE_S) > 0:
            time.sleep(left)
        while time.monotonic() < done_at:  # as a GPU's driver does
            pass
        size = len(SCRIPT)
        return StepResult(
            step=plan.step, tokens=[SCRIPT[(row.start + row.count) % size] for row in plan.rows if row.sample]
        )

    def call(self, name: str, **arguments: object) -> None:
        """Nothing is known."""

    def close(self) -> None:
        """Tell when the steps were."""
        self._timeline.write_text(json.dumps(self._steps))


def build(config: EngineConfig, step_s: float, timeline: Path) -> Engine:
    """The engine as build_engine makes it, over a TimedExecutor."""
    config = resolve(config, max_position=MAX_MODEL_LEN)
    return Engine(
        TimedExecutor(step_s, timeline),
        scheduler=config.scheduler,
        cache=config.cache,
        num_blocks=NUM_BLOCKS,
        max_model_len=MAX_MODEL_LEN,
    )


def serve_engine(fd: int, step_s: float, timeline: Path) -> int:
    """The engine process; its exit code."""
    with socket.socket(fileno=fd) as sock:
        config = read_config(sock)
        return run_engine(lambda progress: build(config, step_s, timeline), sock)


def serve(model: str, step_ms: str, seqs: int, timeline: str) -> int:
    """The serving process; its exit code."""
    ours, theirs = socket.socketpair()
    with theirs:
        command = [sys.executable, __file__, "engine", str(theirs.fileno()), step_ms, timeline]
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
    llm = AsyncLLM(model, process=EngineProcess(ours, process), device="cpu", max_num_seqs=seqs)
    config = ServerConfig(port=0)
    with listen(config.host, 0) as listener:
        launch.say(f"Engine {process.pid}")
        return asyncio.run(launch.run(llm, config, listener=listener))


class Connection:
    """Sends its requests one after the other, and notes when what comes of them arrives, and when it sees that.

    pause_s: mean of the random times before each.  first: when each was sent, when its first token was in the socket,
    and when it was read.
    """

    def __init__(self, sock: socket.socket, body: bytes, requests: int, pause_s: float, chance: random.Random) -> None:
        self._pause_s, self._chance = pause_s, chance
        self.first: list[tuple[float, float, float]] = []
        self.gaps: list[float] = []
        self.chunks = 0
        self._loop = asyncio.get_running_loop()
        self.done = self._loop.create_future()
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        self._request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
        self._left = requests
        self._tail = b""
        self._at = 0.0
        self._begun = False
        self._sock = sock
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        self._loop.add_reader(sock, self._read)
        self._ask()

    def _ask(self) -> None:
        if self._pause_s:
            self._loop.call_later(self._chance.expovariate(1 / self._pause_s), self._send)
        else:
            self._send()

    def _send(self) -> None:
        self._begun, self._left, self._at = False, self._left - 1, time.monotonic()
        self._sock.send(self._request)

    def _read(self) -> None:
        data, told, _, _ = self._sock.recvmsg(1 << 16, 64)
        seen, now = time.monotonic(), time.time()
        seconds, nanos = struct.unpack("qq", told[0][2][:16]) if told else (now, 0)
        if data:
            self._take(data, seen - (now - seconds - nanos / 1e9), seen)
        elif not self.done.done():
            self._end(ConnectionResetError("the server closed a connection"))

    def _take(self, data: bytes, now: float, seen: float) -> None:
        """Note it; ask again at an answer's end."""
        chunks = data.count(b'"delta"')
        self.chunks += chunks
        if chunks and self._begun:
            self.gaps.append(now - self._at)
        elif chunks:
            self.first.append((self._at, now, seen))
        if chunks:
            self._begun, self._at = True, now
        elif not self._begun and not data.startswith(b"HTTP/1.1 200"):
            self._end(RuntimeError(data[:300].decode("utf-8", "replace")))
            return
        self._tail = (self._tail + data)[-16:]
        if b"[DONE]" in self._tail and self._tail.endswith(b"0\r\n\r\n"):
            self._tail = b""
            if self._left:
                self._ask()
            else:
                self._end(None)

    def _end(self, error: Exception | None) -> None:
        self._loop.remove_reader(self._sock)
        self._sock.close()
        if error is None:
            self.done.set_result(None)
        else:
            self.done.set_exception(error)


async def load(port: int, *, connections: int, requests: int, tokens: int, pause_s: float) -> dict[str, Any]:
    """All connections' requests, to their ends. first: as Connection's."""
    message = {"role": "user", "content": TEXT * 4}
    body = {"messages": [message], "max_tokens": tokens, "ignore_eos": True, "stream": True, "temperature": 0}
    content, made = json.dumps(body).encode(), []
    begin = time.perf_counter()
    for number in range(connections):
        sock = socket.create_connection(("127.0.0.1", port))
        made.append(Connection(sock, content, requests, pause_s, random.Random(number)))
    await asyncio.gather(*(connection.done for connection in made))
    seconds = time.perf_counter() - begin
    total = connections * requests * tokens
    return {
        "tokens": total,
        "tokens_a_second": round(total / seconds),
        "tokens_a_chunk": round(total / max(1, sum(c.chunks for c in made)), 2),
        "first": [pair for c in made for pair in c.first],
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


def added(first: list[list[float]], steps: list[tuple[float, float]], step_s: float) -> list[list[float]]:
    """Seconds that each first token came, and was seen, after the executor could have given it."""
    begins = [begin for begin, _ in steps]
    found = []
    for sent, came, seen in first:
        before = bisect_left(begins, sent)
        free = max(sent, steps[before - 1][1] if before else 0.0)
        found.append([came - free - step_s, seen - free - step_s])
    return found


@contextmanager
def server(model: str, step_ms: float, seqs: int, timeline: Path) -> Iterator[tuple[str, int, int]]:
    """A server's address, and the ids of its two processes. timeline: where it tells in the end when its steps were."""
    command = [sys.executable, __file__, "serve", model, f"{step_ms:g}", str(seqs), str(timeline)]
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
    with TemporaryDirectory() as folder:
        timeline = Path(folder) / "steps.json"
        with server(model, step_ms, connections, timeline) as (address, front, engine):
            port = address.rpartition(":")[2]
            run_load(port, {"connections": 8, "requests": 2, "tokens": 50, "pause_s": 0.0})
            full = {"connections": connections, "requests": args.requests, "tokens": args.tokens}
            before = processor_us(front), processor_us(engine)
            figures = run_load(port, full | {"pause_s": args.pause_ms / 1e3})
            front_us, engine_us = processor_us(front) - before[0], processor_us(engine) - before[1]
        steps = json.loads(timeline.read_text())
    tokens, first = figures.pop("tokens"), figures.pop("first")
    later = added(first, steps, step_ms / 1e3)
    return {
        "step_ms": step_ms,
        "connections": connections,
        "pause_ms": args.pause_ms,
        "tokens": args.tokens,
        "load_average": os.getloadavg()[0],
        "front_us_a_token": round(front_us / tokens, 2),
        "front_us_a_chunk": round(front_us / tokens * figures["tokens_a_chunk"], 1),
        "front_us_a_request": round(front_us / len(first)),
        "engine_us_a_token": round(engine_us / tokens, 2),
        **figures,
        "first_ms": shares([came - sent for sent, came, _ in first]),
        "first_added_ms": shares([came for came, _ in later]),
        "first_seen_added_ms": shares([seen for _, seen in later]),
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
    parser.add_argument("--pause-ms", type=float, default=0.0, help="mean of the random times between two requests")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--draw", type=Path, help="results with lines from before and after: make their chart, no more")
    args = parser.parse_args()
    if args.draw:
        from peers.chart import draw_front

        draw_front(json.loads(args.draw.read_text()), args.draw.with_suffix(".png"))
        return
    found = []
    for step_ms in map(float, args.step_ms.split(",")):
        for connections in map(int, args.connections.split(",")):
            found.append(measure(args.model, step_ms, connections, args))
            print(json.dumps(found[-1]), flush=True)
    if args.output:
        args.output.write_text("".join(json.dumps(line) + "\n" for line in found))


if __name__ == "__main__":
    if sys.argv[1:2] == ["engine"]:
        sys.exit(serve_engine(int(sys.argv[2]), float(sys.argv[3]) / 1e3, Path(sys.argv[4])))
    if sys.argv[1:2] == ["serve"]:
        sys.exit(serve(sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5]))
    if sys.argv[1:2] == ["load"]:
        print(json.dumps(asyncio.run(load(int(sys.argv[2]), **json.loads(sys.argv[3])))))
    else:
        main()

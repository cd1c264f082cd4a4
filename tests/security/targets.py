"""Two servers in this process, one over a scripted model and one over an encoder, called as ASGI applications."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from boundaries import Call
from replay import replay_llm, replay_model
from test_bad_input import LEAKS

from octavo.api.async_llm import AsyncLLM
from octavo.base.config.config import ServerConfig
from octavo.server.app import App

MOST = 4096  # bytes of an error's body
AT_ONCE = 16
POOLING = ("/v1/embeddings", "/v2/embed", "/rerank", "/v1/rerank", "/v2/rerank", "/score", "/v1/score", "/pooling")
REFUSALS = {400, 401, 403, 404, 405, 408, 409, 413, 415, 429}
CONTROL = {"prompt": "control", "max_tokens": 20, "ignore_eos": True, "temperature": 0, "logprobs": 2}


def make_folders(folder: Path, checkpoint: Path) -> tuple[Path, Path]:
    """A scripted model (of that checkpoint's tokenizer) and an encoder."""
    import encoders  # an oracle's library, which only this needs

    replay_model(checkpoint, folder / "scripted", {"hi": "Hello there."})
    encoder = encoders.make_encoder("bert", folder / "encoder")
    encoders.write_sentence_files(encoder, mode="mean_tokens", normalize=True)
    return folder / "scripted", encoder


@dataclass
class Figures:
    """What came of the calls. faults: what must not be."""

    statuses: Counter[int] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    largest_error: int = 0
    slowest: float = 0.0
    slowest_call: str = ""

    @property
    def total(self) -> int:
        """Calls."""
        return self.statuses.total()

    def line(self) -> str:
        """All of it in a line."""
        shown = " ".join(f"{status}:{count}" for status, count in sorted(self.statuses.items()))
        broken = sum(count for status, count in self.statuses.items() if status >= 500)
        return (
            f"{self.total} requests, {broken} x 5xx, {len(self.faults)} faults; largest error body "
            f"{self.largest_error} bytes, longest answer {self.slowest:.2f} s ({self.slowest_call}); {shown}"
        )


class Targets:
    """`async with Targets(folders) as targets`; it ends with both engines unharmed or with an error."""

    def __init__(self, folders: tuple[Path, Path], batch_dir: Path) -> None:
        scripted, encoder = folders
        options: dict[str, Any] = {"device": "cpu", "max_num_queued_reqs": 4096}
        self._llms = [
            replay_llm(scripted, max_model_len=128, **options),
            AsyncLLM(str(encoder), threads=1, max_num_seqs=8, **options),
        ]
        config = ServerConfig(served_model_name=["scripted"], admin_api_key=["admin"], batch_dir=str(batch_dir))
        self.apps: list[App] = []
        self._make = lambda: [App(llm, config) for llm in self._llms]
        self._pids: list[int] = []

    async def __aenter__(self) -> Targets:
        self.apps = self._make()
        for llm in self._llms:
            await llm.start()
        self._before = await self._control()
        self._pids = [llm.engine_pid for llm in self._llms]
        return self

    async def __aexit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        try:
            if error is None:
                await self._check()
        finally:
            for app, llm in zip(self.apps, self._llms, strict=True):
                await app.batches.close()
                await llm.close(0)
                app.batches.store.close()

    async def _control(self) -> Any:
        call = Call("POST", "/v1/completions", b"", JSON_HEAD, json.dumps(CONTROL).encode())
        _, _, body = await ask(self.apps[0], call)
        return json.loads(body)["choices"]

    async def _check(self) -> None:
        """Nothing is under way, blocks add up, the processes are the same and answer the same."""
        end = time.monotonic() + 20
        while any(len(app.traffic) or llm.stats.num_running for app, llm in zip(self.apps, self._llms, strict=True)):
            if time.monotonic() > end:
                raise TimeoutError("requests did not end")
            await asyncio.sleep(0.01)
        same = await self._control() == self._before and [llm.engine_pid for llm in self._llms] == self._pids
        if not same or [await llm.call("check") for llm in self._llms] != [True, True]:  # no assert: it runs under -O
            raise RuntimeError("an engine is another process, answers otherwise or has lost blocks")

    async def run(self, calls: Iterator[Call], *, every: int = 0) -> Figures:
        """Make all the calls, some at once. every: print a line of figures after so many."""
        figures = Figures()
        workers = [self._work(calls, figures, every) for _ in range(AT_ONCE)]
        await asyncio.gather(*workers)
        return figures

    async def _work(self, calls: Iterator[Call], figures: Figures, every: int) -> None:
        for call in calls:
            app = self.apps[call.path.startswith(POOLING)]
            begun = time.monotonic()
            try:
                status, headers, body = await asyncio.wait_for(ask(app, call), 30)
            except Exception as error:
                status, headers, body = 599, {}, repr(error).encode()
            spent = time.monotonic() - begun
            if spent > figures.slowest:
                figures.slowest, figures.slowest_call = spent, f"{call.path[:40]} {call.field}"
            figures.statuses[status] += 1
            if status >= 400:
                figures.largest_error = max(figures.largest_error, len(body))
            fault = judge(call, status, headers, body)
            if fault is not None:
                figures.faults.append(
                    f"{fault}: {call.method} {call.path[:80]} {call.field}: {call.body[:600]!r} "
                    f"-> {status} {body[:600]!r}"
                )
            if every and figures.total % every == 0:
                print(figures.line(), flush=True)


JSON_HEAD = [(b"host", b"localhost"), (b"content-type", b"application/json")]
ADMIN = frozenset({"/reset_prefix_cache", "/pause", "/resume", "/sleep", "/wake_up", "/abort_requests"})


async def ask(app: App, call: Call) -> tuple[int, dict[bytes, bytes], bytes]:
    """Status, headers and body of the answer."""
    body: bytes | None = call.body
    started: list[Any] = []
    pieces: list[bytes] = []

    async def receive() -> dict[str, Any]:
        nonlocal body
        if body is None:
            await asyncio.get_running_loop().create_future()
        given, body = body, None
        return {"type": "http.request", "body": given, "more_body": False}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            started.append(message)
        else:
            pieces.append(message["body"])

    key = [(b"authorization", b"Bearer admin")] if call.path in ADMIN or call.path.startswith("/is_") else []
    scope = {"type": "http", "method": call.method, "path": call.path, "headers": [*call.headers, *key]}
    await app({**scope, "query_string": call.query}, receive, send)
    (start,) = started
    return start["status"], dict(start["headers"]), b"".join(pieces)


def judge(call: Call, status: int, headers: dict[bytes, bytes], body: bytes) -> str | None:
    """What is wrong with an answer."""
    if status >= 500:
        return "5xx"
    if headers.get(b"content-type", b"").startswith(b"text/event-stream"):
        return _judge_events(body.decode())
    if status in (200, 204, 304):
        if headers.get(b"content-type") == b"application/json" and body:
            json.loads(body)
        return None
    if status not in REFUSALS:
        return "a status that is not foreseen"
    if len(body) > MOST:
        return "a large error"
    if call.method == "HEAD":
        return None
    text = body.decode()
    if LEAKS.search(text):
        return "a leak"
    error = json.loads(text)["error"]
    known = {"message", "type"} if call.path.startswith("/v1/messages") else {"message", "type", "param", "code"}
    given = set(error) - ({"details"} if call.path.startswith("/v1/messages") else set())  # Anthropic's, of some
    return None if known == given and error["message"] else "an error of another form"


def _judge_events(text: str) -> str | None:
    for line in text.split("\n"):
        if line.startswith("data: {") and '"error":{' in line:
            error = json.loads(line[6:])["error"]
            if error is not None and (error.get("code", 400) >= 500 or LEAKS.search(line)):
                return "5xx in a stream"
    return None if text.endswith("\n\n") else "a stream cut short"

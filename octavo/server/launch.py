"""EngineConfig and ServerConfig in; a running server, and in the end an exit status, out.

The server listens at once and says over /readyz how far loading is. The first SIGTERM or SIGINT drains: no new
requests, running ones get `shutdown_timeout` seconds, then an error. The second ends them now.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from typing import NoReturn

from octavo.api.async_llm import AsyncLLM
from octavo.api.engine_process import EngineProcess
from octavo.api.log import end_logging, set_up_logging
from octavo.api.model import Model
from octavo.api.pooling import default_task
from octavo.base.collector import settle_collector
from octavo.base.config.config import EngineConfig, ServerConfig
from octavo.base.errors import OctavoError, OverloadedError
from octavo.server.app import App
from octavo.server.listener import HttpServer, listen
from octavo.server.origins import is_loopback

log = logging.getLogger(__name__)

LAST_WORDS_S = 0.5  # for the error events of requests that are cut off
LAST_ARRIVALS_S = 0.2  # for requests that are on their way when nothing is left to do: they are told, not cut off
LAST_SPANS_S = 2.0
_WILDCARDS = ("0.0.0.0", "::")


def serve(config: EngineConfig, server: ServerConfig, *, process: EngineProcess | None = None) -> int:
    """Serve a model until a signal ends it; the exit status. ConfigError where it cannot listen.

    process: as AsyncLLM's.
    """
    set_up_logging(form=server.log_format)
    listener = listen(server.host, server.port)
    with listener:
        llm = AsyncLLM(config, process=process, watchdog_timeout=server.watchdog_timeout)
        return asyncio.run(run(llm, server, listener=listener))


def leave(status: int) -> NoReturn:
    """End the process now, everything written out.

    granian's threads may still be on their way out of Python; an interpreter that is taken down under them aborts.
    """
    end_logging()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


def say(text: str) -> None:
    """Tell the person at the terminal; a terminal or a pipe that is gone ends no server."""
    with suppress(OSError, ValueError):
        sys.stdout.write(text + "\n")
        sys.stdout.flush()


async def run(llm: AsyncLLM, config: ServerConfig, *, listener: socket.socket) -> int:
    """Serve `llm`, which is started here, on an open socket; 0 after a drain, 1 where the model does not load."""
    # a prompt is tokenized alone: the library's threads would be woken for nothing
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    address = _url(config.host, listener.getsockname()[1])
    app = App(llm, config)
    http = HttpServer(app, listener)
    with _stop_signals() as signals, closing(app.batches.store):  # last: an upload may outlive the drain
        app.batches.resume()  # they wait for the model; what comes from now on begins by itself
        serving = asyncio.create_task(http.serve())
        starting = asyncio.create_task(_start(llm))
        try:
            say(f"Listening on {address}; loading {llm.config.model.model}")
            _warn_if_open(app, config)
            first_signal = asyncio.create_task(signals.get())
            await asyncio.wait({starting, first_signal}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done() and not starting.result():
                return 1
            if starting.done():
                app.canary.start()
                settle_collector()
                say(banner(address, app.model, _first_use(llm.model), with_key=bool(app.keys)))
                if not config.disable_ui:
                    say(f"  or open {address} in a browser")
                await asyncio.wait({first_signal, serving}, return_when=asyncio.FIRST_COMPLETED)
            await _drain(app, signals, config.shutdown_timeout)
            return 0
        finally:
            await app.canary.close()
            await app.batches.close()
            await _stop(starting, llm, http, serving)
            if app.tracer is not None:
                await asyncio.to_thread(app.tracer.close, LAST_SPANS_S)


async def _start(llm: AsyncLLM) -> bool:
    try:
        await llm.start()
    except OctavoError as error:
        log.error("the model does not load: %s (octavo doctor, with the same flags, looks for causes)", error.message)
        return False
    return True


async def _drain(app: App, signals: asyncio.Queue[int], seconds: float) -> None:
    """Wait for what runs; after `seconds`, or a second signal, end it with an error."""
    app.traffic.draining = True
    log.info("shutting down: %d requests are running and get %g s", len(app.traffic), seconds)
    idle = asyncio.create_task(app.traffic.wait_idle())
    again = asyncio.create_task(signals.get())
    await asyncio.wait({idle, again}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    again.cancel()
    if not idle.done():
        log.warning("cutting %d requests off", len(app.traffic))
        app.traffic.interrupt_all(OverloadedError("the server is shutting down; send the request again", retry_after=5))
        await asyncio.wait({idle}, timeout=LAST_WORDS_S)
    idle.cancel()
    await asyncio.sleep(LAST_ARRIVALS_S)


async def _stop(starting: asyncio.Task[bool], llm: AsyncLLM, http: HttpServer, serving: asyncio.Task[None]) -> None:
    starting.cancel()
    await asyncio.wait({starting})
    http.stop()  # type: ignore[no-untyped-call]
    await asyncio.wait({serving}, timeout=LAST_WORDS_S)
    await llm.close(0)
    serving.cancel()
    with suppress(asyncio.CancelledError):
        await serving


@contextmanager
def _stop_signals() -> Iterator[asyncio.Queue[int]]:
    """SIGTERM and SIGINT as a queue."""
    loop = asyncio.get_running_loop()
    signals: asyncio.Queue[int] = asyncio.Queue()
    numbers = (signal.SIGTERM, signal.SIGINT)
    for number in numbers:
        loop.add_signal_handler(number, signals.put_nowait, number)
    try:
        yield signals
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


def _url(host: str, port: int) -> str:
    shown = "127.0.0.1" if host in _WILDCARDS else host
    return f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"


def _warn_if_open(app: App, config: ServerConfig) -> None:
    if not app.keys and not is_loopback(config.host):
        log.warning("anyone who reaches %s may use this server: no --api-key is set", config.host)


def banner(address: str, model: str, use: str, *, with_key: bool) -> str:
    """Two lines that work as they are, with nothing installed. use: a key of _FIRST_REQUESTS.  with_key: they take a
    key from a variable."""
    path, body, shown = _FIRST_REQUESTS[use]
    curl_key = ' -H "Authorization: Bearer $OCTAVO_API_KEY"' if with_key else ""
    python_key = ', "Authorization": "Bearer " + os.environ["OCTAVO_API_KEY"]' if with_key else ""
    kind = "Content-Type: application/json"
    hint = " (set OCTAVO_API_KEY to a key for these lines)" if with_key else ""
    return f"""Ready: {address} serves {model}{hint}
  curl {address}{path}{curl_key} -H '{kind}' -d '{body}'
  python3 -c 'import json, os, urllib.request as u; r = u.Request("{address}{path}", json.dumps({body}).encode(), \
{{"Content-Type": "application/json"{python_key}}}); print(json.load(u.urlopen(r)){shown})'"""


def _first_use(model: Model) -> str:
    """The key of _FIRST_REQUESTS that this model answers."""
    pooling = model.spec.pooling
    if pooling is not None:
        return "score" if pooling.labels == 1 else default_task(pooling)
    if model.tokenizer is None:
        return "ids"
    return "text" if model.template is None or model.template.fault is not None else "chat"


_FIRST_REQUESTS = {
    "chat": (
        "/v1/chat/completions",
        '{"messages": [{"role": "user", "content": "Hello!"}], "temperature": 0}',
        '["choices"][0]["message"]["content"]',
    ),
    "text": ("/v1/completions", '{"prompt": "Once upon a time"}', '["choices"][0]["text"]'),
    "ids": ("/v1/completions", '{"prompt": [1, 2]}', '["usage"]'),
    "embed": ("/v1/embeddings", '{"input": "Hello!"}', '["data"][0]["embedding"]'),
    "classify": ("/classify", '{"input": "Hello!"}', '["data"][0]'),
    "score": ("/score", '{"text_1": "Is it cold?", "text_2": ["It snows."]}', '["data"][0]["score"]'),
}
"""Path, body and what is shown of the reply; a body is both JSON and Python."""

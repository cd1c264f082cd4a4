"""A Sample in, one streamed HTTP request out; what came back, and when, as an Outcome. A failure is an Outcome too."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from octavo.base.errors import ConfigError
from octavo.cli.bench.datasets import Sample

if TYPE_CHECKING:
    import httpx2

CONNECT_S = 60.0
SILENCE_S = 600.0  # without a byte; a server that lives sends something, if only a keep-alive
TELLING = 500  # characters of an error's body


@dataclass
class Outcome:
    """One request. Times in seconds; start is of time.perf_counter, ttft and latency count from it.

    itl: between chunks that bring output; a chunk may bring several tokens.  output_tokens: None where the server
    did not tell.  queue_time: waited here for --max-concurrency.  error: "" where it ended well.
    """

    prompt_len: int
    start: float = 0.0
    ttft: float = 0.0
    itl: list[float] = field(default_factory=list)
    latency: float = 0.0
    output_tokens: int | None = None
    text: str = ""
    error: str = ""
    queue_time: float = 0.0


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[Any] | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


class StreamReader:
    """Bytes of an event stream, in pieces cut anywhere, into an Outcome."""

    def __init__(self, outcome: Outcome) -> None:
        self._outcome = outcome
        self._decoder = msgspec.json.Decoder(_Chunk)
        self._rest = b""
        self._last = 0.0
        self._texts: list[str] = []
        self._ended = False

    def feed(self, data: bytes, now: float) -> None:
        """`data` came at `now`. Raises msgspec.DecodeError or UnicodeDecodeError for an event that is no chunk."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if line.startswith(b"data:") and (event := line[5:].strip()):
                self._take(event, now)

    def finish(self) -> None:
        """The stream is over: complete, or with outcome.error saying what is missing."""
        outcome = self._outcome
        outcome.text = "".join(self._texts)
        if not outcome.error and not self._ended:
            outcome.error = "the stream broke off before its end"
        if not outcome.ttft:  # tokens without text, told by usage alone
            outcome.ttft = outcome.latency

    def _take(self, event: bytes, now: float) -> None:
        if event == b"[DONE]":
            self._ended = True
            return
        chunk = self._decoder.decode(event)
        if chunk.error is not None:
            self._outcome.error = error_text(chunk.error)
        if chunk.usage is not None:
            self._outcome.output_tokens = chunk.usage.completion_tokens
            self._outcome.prompt_len = chunk.usage.prompt_tokens or self._outcome.prompt_len
        for choice in chunk.choices:
            self._choose(choice, now)

    def _choose(self, choice: _Choice, now: float) -> None:
        """A choice that brings output sets a time; a chat's first, which only names the role, does not."""
        outcome = self._outcome
        self._ended = self._ended or choice.finish_reason is not None
        outcome.latency = now - outcome.start
        delta = choice.delta or _Delta()
        text = choice.text or delta.content or delta.reasoning or delta.reasoning_content or ""
        if not text and not delta.tool_calls and (choice.text is None or choice.finish_reason is not None):
            return
        self._texts.append(text)
        if outcome.ttft:
            outcome.itl.append(now - self._last)
        else:
            outcome.ttft = now - outcome.start
        self._last = now


def error_text(error: Any) -> str:
    """What an OpenAI error says, in whichever of its forms."""
    message = error.get("message", error) if isinstance(error, dict) else error
    return str(message)[:TELLING]


def check_url(url: str) -> None:
    """ConfigError where no server can have this address."""
    import httpx2

    try:
        parts = httpx2.URL(url)
        wrong = (
            "" if parts.scheme in ("http", "https") and parts.host else "it must be http://HOST:PORT or https://HOST"
        )
        if parts.port is not None and not 0 < parts.port < 1 << 16:
            wrong = "ports go up to 65535"
    except httpx2.InvalidURL as error:
        wrong = str(error)
    if wrong:
        raise ConfigError(f"{url!r} is no server's address: {wrong}; see --base-url", param="--base-url")


class Client:
    """`async with Client(...) as client`: one connection pool, as many connections as requests."""

    def __init__(self, *, base_url: str, headers: dict[str, str], insecure: bool) -> None:
        import httpx2

        timeout = httpx2.Timeout(SILENCE_S, connect=CONNECT_S, pool=None)
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
        self._errors = (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError, OSError)
        self._client: httpx2.AsyncClient = httpx2.AsyncClient(
            base_url=base_url,
            headers={**headers, "accept-encoding": "identity"},
            timeout=timeout,
            limits=limits,
            verify=not insecure,
        )

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._client.aclose()

    async def models(self) -> list[str]:
        """The names in /v1/models; ValueError saying why there are none."""
        try:
            answer = await self._client.get("/v1/models")
        except self._errors as error:
            raise ValueError(_told(error)) from None
        if answer.status_code != 200:
            raise ValueError(_refusal(answer.status_code, answer.content))
        try:
            return [str(model["id"]) for model in answer.json()["data"]]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"/v1/models answers with no list of models ({error!r})") from None

    async def send(self, path: str, body: dict[str, Any], sample: Sample, *, request_id: str) -> Outcome:
        """The request from its first byte to its last; never raises for what the server or the network does."""
        content = msgspec.json.encode(body)
        headers = {"content-type": "application/json", "x-request-id": request_id}
        outcome = Outcome(prompt_len=sample.prompt_len, start=time.perf_counter())
        reader = StreamReader(outcome)
        try:
            async with self._client.stream("POST", path, content=content, headers=headers) as response:
                if response.status_code != 200:
                    outcome.error = _refusal(response.status_code, await response.aread())
                    return outcome
                async for data in response.aiter_raw():
                    reader.feed(data, time.perf_counter())
            reader.finish()
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            outcome.error = f"an event of the stream is no chunk: {error}"
        except self._errors as error:
            outcome.error = _told(error)
        return outcome


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".strip().removesuffix(":")


def _refusal(status: int, body: bytes) -> str:
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return f"HTTP {status}: {body[:TELLING].decode(errors='replace')}"
    error = value.get("error", value.get("detail", value)) if isinstance(value, dict) else value
    return f"HTTP {status}: {error_text(error)}"

"""A Generation and the Form of its route in; the answer out: one JSON body, or a stream of chunks."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol

import msgspec

from octavo.base.types.output import RequestOutput
from octavo.server.errors import DONE
from octavo.server.exchange import Exchange, Reply
from octavo.server.openai.convert import Generation
from octavo.server.openai.replies import CompletionTokensDetails, PromptTokensDetails, Usage
from octavo.server.openai.results import Results
from octavo.server.openai.sse import KEEP_ALIVE, Chunks
from octavo.server.services import Services

FIRST_WAIT_S = 2.0  # so long a refusal can still become an HTTP status; then the stream's head is sent
KEEP_ALIVE_S = 15.0  # without output: proxies close connections that are silent for a minute


class Form(Protocol):
    """How a route shows RequestOutputs."""

    chunk_object: str

    def reply(self, outputs: list[RequestOutput], usage: Usage) -> bytes: ...
    def pieces(self, number: int, output: RequestOutput) -> list[bytes]: ...


async def answer(services: Services, exchange: Exchange, generation: Generation, form: Form) -> Reply | None:
    """Run the generation and answer with it; None where the answer was streamed."""
    async with Results(services, generation) as results:
        if generation.request.stream:
            await send_stream(exchange, results, _ChunkStream(generation, form))
            return None
        return await _whole(generation, form, results)


async def _whole(generation: Generation, form: Form, results: Results) -> Reply:
    outputs: dict[int, RequestOutput] = {}
    count = UsageCount(generation)

    def take(number: int, output: RequestOutput) -> None:
        outputs[number] = output
        count.take(number, output)

    await results.collect(take)
    return Reply(form.reply([outputs[number] for number in range(len(generation.prompts))], count.usage()))


class Stream(Protocol):
    """A protocol's event stream: its first bytes, those of each output, what keeps it alive, and its last bytes."""

    idle: bytes

    def start(self) -> bytes: ...
    def piece(self, number: int, output: RequestOutput) -> bytes: ...
    def end(self) -> bytes: ...


async def send_stream(exchange: Exchange, results: Results, stream: Stream) -> None:
    """Stream all results. The first is waited for a little, so that a refusal still has an HTTP status."""
    sending = _Sending(exchange, stream)
    await results.each(sending.take, wait_s=FIRST_WAIT_S, idle=sending.keep_alive)
    await exchange.send_events(stream.end(), last=True)


class _Sending:
    """A stream's head, its outputs' events, one after the other, and what keeps it alive between them."""

    def __init__(self, exchange: Exchange, stream: Stream) -> None:
        self._exchange = exchange
        self._stream = stream
        self._lock = asyncio.Lock()
        self._due = time.monotonic() + FIRST_WAIT_S

    async def take(self, number: int, output: RequestOutput) -> None:
        """Send what shows an output."""
        async with self._lock:
            head = b"" if self._exchange.streaming else await self._begin()
            if data := head + self._stream.piece(number, output):
                await self._exchange.send_events(data)
                self._due = time.monotonic() + KEEP_ALIVE_S  # not by what shows nothing: a tool call being written

    async def keep_alive(self) -> float:
        """Send something where nothing was for too long; seconds until it is to be asked again."""
        if time.monotonic() >= self._due:
            async with self._lock:
                head = b"" if self._exchange.streaming else await self._begin()
                await self._exchange.send_events(head + self._stream.idle)
                self._due = time.monotonic() + KEEP_ALIVE_S
        return max(0.0, self._due - time.monotonic())

    async def _begin(self) -> bytes:
        await self._exchange.begin_stream()
        return self._stream.start()


class _ChunkStream:
    """OpenAI's chunks of choices."""

    idle = KEEP_ALIVE

    def __init__(self, generation: Generation, form: Form) -> None:
        self._generation = generation
        options = generation.request.stream_options
        self._with_usage = options is not None and bool(options.include_usage)
        self._always = self._with_usage and options is not None and bool(options.continuous_usage_stats)
        self._chunks = Chunks(
            id=generation.id,
            object=form.chunk_object,
            created=generation.created,
            model=generation.model,
            with_usage=self._with_usage,
        )
        self._form = form
        self._count = UsageCount(generation)

    def start(self) -> bytes:
        return b""

    def piece(self, number: int, output: RequestOutput) -> bytes:
        self._count.take(number, output)
        usage = self._count.usage() if self._always else None
        return b"".join([self._chunks.choice(piece, usage) for piece in self._form.pieces(number, output)])

    def end(self) -> bytes:
        usage = self._count.usage() if self._with_usage else None
        return self._chunks.end(usage, self._generation.metrics()) + DONE


class UsageCount:
    """Counts tokens over deltas, or over final outputs."""

    def __init__(self, generation: Generation) -> None:
        self._prompt = sum(len(prompt.token_ids) for prompt in generation.prompts)
        self._generated = self._reasoning = 0
        self._parsed = generation.parsing is not None
        self._cached: dict[int, int] = {}

    def take(self, number: int, output: RequestOutput) -> None:
        """Add an output of prompt `number`."""
        for choice in output.outputs:
            self._generated += len(choice.token_ids)
            self._reasoning += choice.num_reasoning_tokens
        self._cached[number] = output.num_cached_tokens

    def usage(self) -> Usage:
        """The counts so far."""
        cached = PromptTokensDetails(sum(self._cached.values()))
        details = CompletionTokensDetails(self._reasoning) if self._parsed else msgspec.UNSET
        return Usage(self._prompt, self._generated, self._prompt + self._generated, cached, details)

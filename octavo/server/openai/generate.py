"""A Generation and the Form of its route in; the answer out: one JSON body, or a stream of chunks."""

from __future__ import annotations

import asyncio
from typing import Protocol

from msgspec import UNSET, UnsetType

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
    """How a route shows RequestOutputs. prompt_token_ids: what a stream tells of them beside its first choice."""

    chunk_object: str
    prompt_token_ids: list[int] | UnsetType

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
    try:
        await results.each(sending.take)
        await exchange.send_events(sending.head() + stream.end(), last=True)
    finally:
        sending.close()


class _Sending:
    """A stream's head, its outputs' events, one after the other, and what keeps it alive between them."""

    def __init__(self, exchange: Exchange, stream: Stream) -> None:
        self._exchange = exchange
        self._stream = stream
        self._loop = asyncio.get_running_loop()
        self._sent = False  # something, since the timer was set
        self._timer = self._loop.call_later(FIRST_WAIT_S, self._keep_alive)

    def take(self, number: int, output: RequestOutput) -> asyncio.Future[None] | None:
        """Send what shows an output; a future where the client takes no more for now."""
        head = b"" if self._exchange.streaming else self.head()
        data = head + self._stream.piece(number, output)
        if not data:  # nothing is shown, as while a call is written: the stream is kept alive
            return None
        self._sent = True
        return self._exchange.push_events(data)

    def head(self) -> bytes:
        """Begin the stream, unless it has begun; its first bytes."""
        if self._exchange.streaming:
            return b""
        self._exchange.begin_stream()
        return self._stream.start()

    def close(self) -> None:
        """Send no more."""
        self._timer.cancel()

    def _keep_alive(self) -> None:
        if not self._sent:
            self._exchange.push_events(self.head() + self._stream.idle)
        self._sent = False
        self._timer = self._loop.call_later(KEEP_ALIVE_S, self._keep_alive)


class _ChunkStream:
    """OpenAI's chunks of choices."""

    idle = KEEP_ALIVE

    def __init__(self, generation: Generation, form: Form) -> None:
        self._generation = generation
        options = generation.request.stream_options
        self._with_usage = options is not None and bool(options.include_usage)
        self._always = options is not None and bool(options.continuous_usage_stats)
        self._chunks = Chunks(
            id=generation.id,
            object=form.chunk_object,
            created=generation.created,
            model=generation.model,
            with_usage=self._with_usage,
        )
        self._form = form
        self._prompt_ids = form.prompt_token_ids
        self._count = UsageCount(generation)

    def start(self) -> bytes:
        return b""

    def piece(self, number: int, output: RequestOutput) -> bytes:
        self._count.take(number, output)
        usage = self._count.usage() if self._always else None
        pieces = self._form.pieces(number, output)
        if pieces and self._prompt_ids is not UNSET:
            first = self._chunks.choice(pieces.pop(0), usage, ("prompt_token_ids", self._prompt_ids))
            self._prompt_ids = UNSET
            return first + b"".join([self._chunks.choice(piece, usage) for piece in pieces])
        if len(pieces) == 1:
            return self._chunks.choice(pieces[0], usage)
        return b"".join([self._chunks.choice(piece, usage) for piece in pieces])

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
        details = CompletionTokensDetails(self._reasoning) if self._parsed else UNSET
        return Usage(self._prompt, self._generated, self._prompt + self._generated, cached, details)

"""POST /v1/completions: RequestOutputs in, text choices out, whole or as chunks."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from octavo.base.types.output import CompletionOutput, RequestOutput
from octavo.server.exchange import Exchange, Reply
from octavo.server.openai import convert
from octavo.server.openai.convert import Generation
from octavo.server.openai.decode import decode
from octavo.server.openai.generate import answer
from octavo.server.openai.logprobs import completion_logprobs, prompt_logprobs
from octavo.server.openai.replies import CompletionChoice, CompletionLogprobs, CompletionReply, Usage, told
from octavo.server.openai.types import CompletionRequest
from octavo.server.services import Services


async def create_completion(services: Services, exchange: Exchange) -> Reply | None:
    """Continue texts, or token ids; None where it was streamed."""
    request = decode(await services.traffic.read_body(exchange), CompletionRequest)
    services.names.check(request.model)
    exchange.watch()
    generation = await convert.completion(services, exchange, request)
    return await answer(services, exchange, generation, CompletionForm(generation))


class CompletionForm:
    """Renders one request's outputs. Of a stream it remembers, per choice, how far the text has come."""

    chunk_object = "text_completion"
    prompt_token_ids: list[int] | UnsetType = UNSET  # the choices tell them, which may be of many prompts

    def __init__(self, generation: Generation) -> None:
        self._generation = generation
        self._echo = bool(generation.request.echo)
        self._ids = bool(generation.request.return_token_ids)
        self._offsets: dict[int, int] = {}  # choice -> where its next token stands; absent before its first piece
        self._of_prompts: dict[int, list[Any]] = {}  # by number of the prompt: log probabilities of its tokens

    def reply(self, outputs: list[RequestOutput], usage: Usage) -> bytes:
        """The whole reply; outputs by prompt."""
        choices = [
            self._choice(number, output, choice) for number, output in enumerate(outputs) for choice in output.outputs
        ]
        generation = self._generation
        return msgspec.json.encode(
            CompletionReply(
                id=generation.id,
                created=generation.created,
                model=generation.model,
                choices=choices,
                usage=usage,
                metrics=generation.metrics(),
            )
        )

    def pieces(self, number: int, output: RequestOutput) -> list[bytes]:
        """Choices as JSON for chunks, of prompt `number`'s delta."""
        return [piece for choice in output.outputs if (piece := self._piece(number, output, choice))]

    def _piece(self, number: int, output: RequestOutput, choice: CompletionOutput) -> bytes:
        first = self._index(number, choice) not in self._offsets
        plain = choice.finish_reason is None and choice.logprobs is None and not self._ids
        if not plain or (first and self._echo):
            return msgspec.json.encode(self._choice(number, output, choice))
        index = self._index(number, choice)
        self._offsets.setdefault(index, 0)
        if not choice.text:
            return b""
        text = msgspec.json.encode(choice.text)
        return b'{"index":%d,"text":%b,"logprobs":null,"finish_reason":null,"stop_reason":null}' % (index, text)

    def _index(self, number: int, choice: CompletionOutput) -> int:
        return number * self._generation.params.n + choice.index

    def _choice(self, number: int, output: RequestOutput, choice: CompletionOutput) -> CompletionChoice:
        index = self._index(number, choice)
        first = index not in self._offsets
        prompt = self._generation.prompts[number]
        logprobs = self._logprobs(number, output, choice)
        text = prompt.echo + choice.text if first and self._echo else choice.text
        self._offsets.setdefault(index, 0)
        if logprobs is not None and logprobs.tokens:  # text may be held back: what was sent does not tell
            self._offsets[index] = logprobs.text_offset[-1] + len(logprobs.tokens[-1])
        asked = self._generation.request.prompt_logprobs is not None
        return CompletionChoice(
            index=index,
            text=text,
            logprobs=logprobs,
            finish_reason=choice.finish_reason,
            stop_reason=choice.stop_reason,
            structured_outputs_valid=told(choice.structured_outputs_valid),
            token_ids=choice.token_ids if self._ids else UNSET,
            prompt_token_ids=prompt.token_ids if self._ids and first else UNSET,
            prompt_logprobs=prompt_logprobs(output.prompt_logprobs) if asked and output.prompt_logprobs else UNSET,
        )

    def _logprobs(self, number: int, output: RequestOutput, choice: CompletionOutput) -> CompletionLogprobs | None:
        most = self._generation.logprobs
        if most is None or choice.logprobs is None:
            return None
        index = self._index(number, choice)
        ids, entries = list(choice.token_ids), list(choice.logprobs)
        prompt = self._generation.prompts[number]
        if output.prompt_logprobs is not None:  # a stream's first output has them, whichever choices that tells of
            self._of_prompts[number] = output.prompt_logprobs
        if self._echo and index not in self._offsets and number in self._of_prompts:
            ids, entries = prompt.token_ids + ids, self._of_prompts[number] + entries
        offset = self._offsets.get(index, 0)
        return completion_logprobs(ids, entries, most=most, offset=offset, first=prompt.first)

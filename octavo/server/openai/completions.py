"""POST /v1/completions: RequestOutputs in, text choices out, whole or as chunks."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from octavo.base.types.output import CompletionOutput, RequestOutput
from octavo.server.exchange import Exchange, Reply
from octavo.server.openai import convert
from octavo.server.openai.convert import Generation
from octavo.server.openai.generate import answer
from octavo.server.openai.logprobs import TextEnd, completion_logprobs, echoed_end, prompt_logprobs
from octavo.server.openai.replies import CompletionChoice, CompletionLogprobs, CompletionReply, Usage, told
from octavo.server.openai.types import CompletionRequest
from octavo.server.services import Services


async def create_completion(services: Services, exchange: Exchange) -> Reply | None:
    """Continue texts, or token ids; None where it was streamed."""
    request = await services.read(exchange, CompletionRequest)
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
        self._ends: dict[int, TextEnd] = {}  # of each choice's text; absent before its first piece
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
        index = self._index(number, choice)
        first = index not in self._ends
        plain = choice.finish_reason is None and choice.logprobs is None and not self._ids
        if not plain or (first and self._echo):
            return msgspec.json.encode(self._choice(number, output, choice))
        self._end(index)
        if not choice.text:
            return b""
        text = msgspec.json.encode(choice.text)
        return b'{"index":%d,"text":%b,"logprobs":null,"finish_reason":null,"stop_reason":null}' % (index, text)

    def _index(self, number: int, choice: CompletionOutput) -> int:
        return number * self._generation.params.n + choice.index

    def _choice(self, number: int, output: RequestOutput, choice: CompletionOutput) -> CompletionChoice:
        index = self._index(number, choice)
        first = index not in self._ends
        prompt = self._generation.prompts[number]
        logprobs = self._logprobs(number, output, choice)
        text = prompt.echo + choice.text if first and self._echo else choice.text
        self._end(index)
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
        most = self._generation.params.logprobs
        if most is None or choice.logprobs is None:
            return None
        index = self._index(number, choice)
        ids, entries = list(choice.token_ids), list(choice.logprobs)
        prompt = self._generation.prompts[number]
        if output.prompt_logprobs is not None:  # a stream's first output has them, whichever choices that tells of
            self._of_prompts[number] = output.prompt_logprobs
        if self._echo and index not in self._ends and number in self._of_prompts:
            told, of_prompt = prompt.token_ids, self._of_prompts[number]
            token_bytes, first = self._generation.token_bytes, prompt.first
            self._ends[index] = echoed_end(told, of_prompt, shown=prompt.echo, first=first, token_bytes=token_bytes)
            ids, entries = told + ids, of_prompt + entries
        as_ids = bool(self._generation.request.return_tokens_as_token_ids)
        return completion_logprobs(ids, entries, most=most, end=self._end(index), first=prompt.first, as_ids=as_ids)

    def _end(self, index: int) -> TextEnd:
        """Text may be held back: what was sent does not tell where the next token stands."""
        if (end := self._ends.get(index)) is None:
            end = self._ends[index] = TextEnd(self._generation.token_bytes)
        return end

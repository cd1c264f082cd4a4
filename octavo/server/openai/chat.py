"""POST /v1/chat/completions: RequestOutputs in, messages out, whole or as chunks that begin with the role."""

from __future__ import annotations

from collections import defaultdict
from typing import cast

import msgspec
from msgspec import UNSET, UnsetType

from octavo.base.types.output import CompletionOutput, RequestOutput, ToolCall
from octavo.server.exchange import Exchange, Reply
from octavo.server.openai import convert
from octavo.server.openai.conversation import reply_role
from octavo.server.openai.convert import Generation
from octavo.server.openai.generate import answer
from octavo.server.openai.logprobs import chat_logprobs, prompt_logprobs
from octavo.server.openai.parsing import call_id
from octavo.server.openai.replies import (
    ChatChoice,
    ChatDelta,
    ChatLogprobs,
    ChatReply,
    ReplyFunction,
    ReplyMessage,
    ReplyToolCall,
    Usage,
    told,
)
from octavo.server.openai.types import ChatRequest
from octavo.server.services import Services


async def create_chat_completion(services: Services, exchange: Exchange) -> Reply | None:
    """Answer a conversation; None where it was streamed."""
    request = await services.read(exchange, ChatRequest)
    generation = await convert.chat(services, exchange, request)
    return await answer(services, exchange, generation, ChatForm(generation, services.config.reasoning_field))


class ChatForm:
    """Renders one request's outputs. Of a stream it remembers which choices have begun.

    reasoning_field: ServerConfig's.
    """

    chunk_object = "chat.completion.chunk"

    def __init__(self, generation: Generation, reasoning_field: str = "both") -> None:
        self._generation = generation
        self._left_out = {"reasoning": "reasoning_content", "reasoning_content": "reasoning"}.get(reasoning_field)
        self._prompt = generation.prompts[0]
        self._role = reply_role(cast(ChatRequest, generation.request))
        self._ids = bool(generation.request.return_token_ids)
        self.prompt_token_ids: list[int] | UnsetType = self._prompt.token_ids if self._ids else UNSET
        self._reasoning = cast(ChatRequest, generation.request).include_reasoning is not False
        self._broken: set[int] = set()  # choices with a call that has broken off
        self._tool = generation.parsing.tool if generation.parsing else None
        self._begun: set[int] = set()
        self._calls = defaultdict[int, int](int)  # choice -> calls shown

    def reply(self, outputs: list[RequestOutput], usage: Usage) -> bytes:
        """The whole reply, of the one prompt's output."""
        generation, output = self._generation, outputs[0]
        asked = generation.request.prompt_logprobs is not None and output.prompt_logprobs is not None
        return msgspec.json.encode(
            ChatReply(
                id=generation.id,
                created=generation.created,
                model=generation.model,
                choices=[self._choice(choice) for choice in output.outputs],
                usage=usage,
                metrics=generation.metrics(),
                prompt_logprobs=prompt_logprobs(output.prompt_logprobs or []) if asked else UNSET,
                prompt_token_ids=self.prompt_token_ids,
            )
        )

    def _choice(self, choice: CompletionOutput) -> ChatChoice:
        return ChatChoice(
            index=choice.index,
            message=self._message(choice),
            logprobs=self._logprobs(choice),
            finish_reason=_finish_reason(choice, called=_called(choice.tool_calls)),
            stop_reason=choice.stop_reason,
            structured_outputs_valid=told(choice.structured_outputs_valid),
            token_ids=choice.token_ids if self._ids else UNSET,
        )

    def _message(self, choice: CompletionOutput) -> ReplyMessage:
        parsing = self._generation.parsing
        reasoning: str | UnsetType | None = UNSET
        if parsing is not None and parsing.reasoning is not None:  # clients read the field without asking for it
            reasoning = (choice.reasoning or None) if self._reasoning else None
        calls = [
            ReplyToolCall(
                id=call_id(call, self._tool),
                type="function",
                function=ReplyFunction(name=call.name, arguments=call.arguments),
            )
            for call in choice.tool_calls
        ]
        content = self._prompt.echo + choice.text
        return ReplyMessage(
            role=self._role,
            content=content if content or not (calls or choice.reasoning) else None,
            refusal=None,
            reasoning=self._unless("reasoning", reasoning),
            reasoning_content=self._unless("reasoning_content", reasoning),
            tool_calls=calls or UNSET,
        )

    def _unless(self, field: str, reasoning: str | UnsetType | None) -> str | UnsetType | None:
        return UNSET if field == self._left_out else reasoning

    def pieces(self, number: int, output: RequestOutput) -> list[bytes]:
        """Choices as JSON for chunks."""
        found = []
        for choice in output.outputs:
            if choice.index not in self._begun:
                found.append(self._opening(choice.index))
            if choice.reasoning or choice.tool_calls:
                found += self._parsed(choice)
            if piece := self._piece(choice):
                found.append(piece)
        return found

    def _opening(self, index: int) -> bytes:
        self._begun.add(index)
        return msgspec.json.encode(
            ChatDelta(index=index, delta=ReplyMessage(role=self._role, content=self._prompt.echo))
        )

    def _piece(self, choice: CompletionOutput) -> bytes:
        if choice.finish_reason is None and choice.logprobs is None and not self._ids:
            if not choice.text:
                return b""
            return b'{"index":%d,"delta":{"content":%b},"logprobs":null,"finish_reason":null}' % (
                choice.index,
                msgspec.json.encode(choice.text),
            )
        return msgspec.json.encode(
            ChatDelta(
                index=choice.index,
                delta=ReplyMessage(content=choice.text or UNSET),
                logprobs=self._logprobs(choice),
                finish_reason=_finish_reason(
                    choice, called=self._calls[choice.index] > 0 and choice.index not in self._broken
                ),
                stop_reason=choice.stop_reason,
                structured_outputs_valid=told(choice.structured_outputs_valid),
                token_ids=choice.token_ids if self._ids else UNSET,
            )
        )

    def _parsed(self, choice: CompletionOutput) -> list[bytes]:
        """Reasoning and tool calls as chunks of their own: of a call its name, then its arguments as they come."""
        deltas = []
        if choice.reasoning and self._reasoning:
            new, old = (self._unless(name, choice.reasoning) for name in ("reasoning", "reasoning_content"))
            deltas.append(ReplyMessage(reasoning=new, reasoning_content=old))
        for call in choice.tool_calls:
            if call.name:
                self._calls[choice.index] += 1
                head = ReplyFunction(name=call.name, arguments="")
                begun = ReplyToolCall(index=call.index, id=call_id(call, self._tool), type="function", function=head)
                deltas.append(ReplyMessage(tool_calls=[begun]))
            if call.arguments:
                rest = ReplyToolCall(index=call.index, function=ReplyFunction(arguments=call.arguments))
                deltas.append(ReplyMessage(tool_calls=[rest]))
            if call.status == "incomplete":
                self._broken.add(choice.index)
        return [msgspec.json.encode(ChatDelta(index=choice.index, delta=delta)) for delta in deltas]

    def _logprobs(self, choice: CompletionOutput) -> ChatLogprobs | None:
        most, token_bytes = self._generation.params.logprobs, self._generation.token_bytes
        if most is None or choice.logprobs is None:
            return None
        as_ids = bool(self._generation.request.return_tokens_as_token_ids)
        return chat_logprobs(choice.token_ids, choice.logprobs, most=most, token_bytes=token_bytes, as_ids=as_ids)


def _called(calls: list[ToolCall]) -> bool:
    """True if calls are to be carried out: none has broken off."""
    return bool(calls) and all(call.status != "incomplete" for call in calls)


def _finish_reason(choice: CompletionOutput, *, called: bool) -> str | None:
    return "tool_calls" if called and choice.finish_reason == "stop" else choice.finish_reason

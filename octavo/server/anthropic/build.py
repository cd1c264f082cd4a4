"""RequestOutputs of one generation in; the message, and the events that tell how it came about, out."""

from __future__ import annotations

import uuid
from typing import Any

import msgspec

from octavo.base.types.output import CompletionOutput, RequestOutput
from octavo.server.anthropic.replies import MessageReply, MessageUsage, StopReason, TextReply
from octavo.server.openai.convert import Generation
from octavo.server.openai.generate import UsageCount


class MessageBuilder:
    """Takes outputs, deltas or the whole, and keeps the message up to date. Its methods return what a stream sends."""

    idle = b'event: ping\ndata: {"type":"ping"}\n\n'

    def __init__(self, generation: Generation) -> None:
        self._count = UsageCount(generation)
        self._pieces: list[str] | None = None  # of the text block that is being written
        self.message = MessageReply(id=f"msg_{uuid.uuid4().hex}", model=generation.model, usage=self._usage())

    def start(self) -> bytes:
        """The first events. What is cached is not known yet; the last event tells."""
        return _event("message_start", message=self.message) + self.idle

    def piece(self, number: int, output: RequestOutput) -> bytes:
        """The events of an output."""
        self._count.take(number, output)
        events = []
        for choice in output.outputs:
            if choice.text:
                events.append(self._text(choice.text))
            if choice.finish_reason is not None:
                self.message.stop_reason, self.message.stop_sequence = _stop(choice)
        return b"".join(events)

    def end(self) -> bytes:
        """The last events."""
        events = self._close()
        self.message.usage = self._usage()
        delta = {"stop_reason": self.message.stop_reason, "stop_sequence": self.message.stop_sequence}
        return events + _event("message_delta", delta=delta, usage=self.message.usage) + _event("message_stop")

    def _usage(self) -> MessageUsage:
        counted = self._count.usage()
        cached = min(counted.prompt_tokens_details.cached_tokens, counted.prompt_tokens)
        return MessageUsage(
            input_tokens=counted.prompt_tokens - cached,
            cache_read_input_tokens=cached,
            output_tokens=counted.completion_tokens,
        )

    @property
    def _index(self) -> int:
        return len(self.message.content) - 1

    def _text(self, text: str) -> bytes:
        events = b""
        if self._pieces is None:
            self._pieces = []
            self.message.content.append(TextReply(text=""))
            events = _event("content_block_start", index=self._index, content_block=self.message.content[-1])
        self._pieces.append(text)
        delta = {"type": "text_delta", "text": text}
        return events + _event("content_block_delta", index=self._index, delta=delta)

    def _close(self) -> bytes:
        if self._pieces is None:
            return b""
        self.message.content[-1] = TextReply(text="".join(self._pieces))
        self._pieces = None
        return _event("content_block_stop", index=self._index)


def _stop(choice: CompletionOutput) -> tuple[StopReason, str | None]:
    if choice.finish_reason == "length":
        return "max_tokens", None
    if isinstance(choice.stop_reason, str):
        return "stop_sequence", choice.stop_reason
    return "end_turn", None


def _event(kind: str, **fields: Any) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), msgspec.json.encode({"type": kind, **fields}))

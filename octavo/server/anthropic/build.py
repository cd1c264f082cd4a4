"""RequestOutputs of one generation in; the message, and the events that tell how it came about, out."""

from __future__ import annotations

import uuid
from typing import Any, Literal

import msgspec
from msgspec import UNSET

from octavo.base.types.output import CompletionOutput, RequestOutput, ToolCall
from octavo.server.anthropic.replies import (
    MessageReply,
    MessageUsage,
    OutputTokensDetails,
    ReplyBlock,
    StopReason,
    TextReply,
    ThinkingReply,
    ToolUseReply,
)
from octavo.server.errors import NAMED_EVENT
from octavo.server.openai.convert import Generation
from octavo.server.openai.generate import UsageCount
from octavo.server.openai.parsing import call_id, in_order


class MessageBuilder:
    """Takes outputs, deltas or the whole, and keeps the message up to date. Its methods return what a stream sends.

    max_model_len: the context, whose end is told apart from that of max_tokens.
    """

    idle = NAMED_EVENT % (b"ping", b'{"type":"ping"}')

    def __init__(self, generation: Generation, *, with_thinking: bool, max_model_len: int) -> None:
        self._count = UsageCount(generation)
        self._tool = None if generation.parsing is None else generation.parsing.tool
        self._with_thinking = with_thinking
        self._max_tokens, self._max_model_len = generation.request.max_tokens or max_model_len, max_model_len
        self._kind = ""  # of the block that is being written
        self._pieces: list[str] = []
        self._num_told = 0  # characters of text
        self._broken = False  # some call has broken off
        self.message = MessageReply(id=f"msg_{uuid.uuid4().hex}", model=generation.model, usage=self._usage())

    def start(self) -> bytes:
        """The first events. What is cached is not known yet; the last event tells."""
        return _event("message_start", message=self.message) + self.idle

    def piece(self, number: int, output: RequestOutput) -> bytes:
        """The events of an output."""
        self._count.take(number, output)
        events = []
        for choice in output.outputs:
            events += [self._call(call) for call in choice.tool_calls if not call.name]
            if choice.reasoning and self._with_thinking:
                events.append(self._write("thinking", choice.reasoning))
            for part in in_order(choice, self._num_told):
                events.append(self._call(part) if isinstance(part, ToolCall) else self._write("text", part))
            self._num_told += len(choice.text)
            if choice.finish_reason is not None:
                self.message.stop_reason, self.message.stop_sequence = self._stop(choice)
        return b"".join(events)

    def end(self) -> bytes:
        """The last events."""
        events = self._close()
        self.message.usage = self._usage()
        delta = {"stop_reason": self.message.stop_reason, "stop_sequence": self.message.stop_sequence}
        return events + _event("message_delta", delta=delta, usage=self.message.usage) + _event("message_stop")

    def _usage(self) -> MessageUsage:
        counted = self._count.usage()
        details = counted.completion_tokens_details
        cached = min(counted.prompt_tokens_details.cached_tokens, counted.prompt_tokens)
        return MessageUsage(
            input_tokens=counted.prompt_tokens - cached,
            cache_read_input_tokens=cached,
            output_tokens=counted.completion_tokens,
            output_tokens_details=UNSET if details is UNSET else OutputTokensDetails(details.reasoning_tokens),
        )

    def _stop(self, choice: CompletionOutput) -> tuple[StopReason, str | None]:
        if choice.finish_reason == "length":
            counted = self._count.usage()
            full = counted.completion_tokens < self._max_tokens and counted.total_tokens >= self._max_model_len
            return "model_context_window_exceeded" if full else "max_tokens", None
        if isinstance(choice.stop_reason, str):
            return "stop_sequence", choice.stop_reason
        called = any(isinstance(block, ToolUseReply) for block in self.message.content)
        return "tool_use" if called and not self._broken else "end_turn", None

    @property
    def _index(self) -> int:
        return len(self.message.content) - 1

    def _write(self, kind: Literal["text", "thinking"], text: str) -> bytes:
        events = b""
        if self._kind != kind:
            if kind == "text" and self.message.content:
                text = text.lstrip()  # a chat has it between its texts; that of thoughts parts them when they come back
            events = self._close() + self._begin(TextReply(text="") if kind == "text" else ThinkingReply(thinking=""))
            self._kind = kind
        self._pieces.append(text)
        delta = {"type": f"{kind}_delta", kind: text}
        return events + _event("content_block_delta", index=self._index, delta=delta)

    def _call(self, call: ToolCall) -> bytes:
        """A call, or more of the one that is open."""
        events = b""
        if call.name:
            events = self._close() + self._begin(ToolUseReply(id=call_id(call, self._tool), name=call.name, input={}))
            self._kind = "tool_use"
        if call.arguments:
            self._pieces.append(call.arguments)
            delta = {"type": "input_json_delta", "partial_json": call.arguments}
            events += _event("content_block_delta", index=self._index, delta=delta)
        self._broken = self._broken or call.status == "incomplete"
        return events if call.status == "in_progress" else events + self._close()

    def _begin(self, block: ReplyBlock) -> bytes:
        self.message.content.append(block)
        return _event("content_block_start", index=self._index, content_block=block)

    def _close(self) -> bytes:
        if not self._kind:
            return b""
        text, block, events = "".join(self._pieces), self.message.content[-1], b""
        if isinstance(block, ToolUseReply):
            block.input = msgspec.json.decode(text)
        elif isinstance(block, ThinkingReply):
            block.thinking = text
            delta = {"type": "signature_delta", "signature": block.signature}
            events = _event("content_block_delta", index=self._index, delta=delta)
        else:
            block.text = text
        self._kind, self._pieces = "", []
        return events + _event("content_block_stop", index=self._index)


def _event(kind: str, **fields: Any) -> bytes:
    return NAMED_EVENT % (kind.encode(), msgspec.json.encode({"type": kind, **fields}))

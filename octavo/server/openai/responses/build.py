"""RequestOutputs of one generation in; the Response object and the events that tell how it came about out."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field
from typing import Any

import msgspec

from octavo.base.types.output import CompletionOutput, RequestOutput
from octavo.server.errors import DONE, ErrorReply
from octavo.server.openai.convert import Generation
from octavo.server.openai.generate import UsageCount
from octavo.server.openai.logprobs import chat_logprobs
from octavo.server.openai.replies import TokenLogprob
from octavo.server.openai.responses.replies import (
    IncompleteDetails,
    InputTokensDetails,
    OutputMessage,
    OutputTextPart,
    OutputTokensDetails,
    ResponseError,
    ResponseObject,
    ResponseStatus,
    ResponseUsage,
)
from octavo.server.openai.responses.types import ResponsesRequest
from octavo.server.openai.sse import KEEP_ALIVE
from octavo.server.openai.types import Message


@dataclass
class _Open:
    """The item that is being written."""

    item: OutputMessage
    index: int
    pieces: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)


class ResponseBuilder:
    """Takes outputs, deltas or the whole, and keeps the response up to date. Its methods return what a stream sends."""

    idle = KEEP_ALIVE

    def __init__(self, request: ResponsesRequest, generation: Generation) -> None:
        self._generation = generation
        self._count = UsageCount(generation)
        self._number = 0
        self._open: _Open | None = None
        self._finish: CompletionOutput | None = None
        self.response = new_response(request, generation)

    def start(self) -> bytes:
        """The first two events."""
        return self._whole("response.created") + self._whole("response.in_progress")

    def piece(self, number: int, output: RequestOutput) -> bytes:
        """The events of an output."""
        self._count.take(number, output)
        events = []
        for choice in output.outputs:
            if choice.text or choice.token_ids:
                events.append(self._text(choice))
            if choice.finish_reason is not None:
                self._finish = choice
        return b"".join(events)

    def end(self) -> bytes:
        """The last item is done, and so is the response."""
        cut = self._finish is not None and self._finish.finish_reason == "length"
        status: ResponseStatus = "incomplete" if cut else "completed"
        events = b"" if self.response.output else self._begin()
        events += self._close(status)
        if cut:
            self.response.incomplete_details = IncompleteDetails("max_output_tokens")
        return events + self._over(status)

    def fail(self, told: ErrorReply) -> bytes:
        """The response ends with an error; what has come of it stays."""
        self.response.error = ResponseError(_CODES.get(told.status, "server_error"), told.detail.message)
        return self._close("incomplete") + self._over("failed")

    def cancel(self) -> None:
        """The response ends as its client asked."""
        self._close("incomplete")
        self._over("cancelled")

    def said(self) -> list[Message]:
        """What the model said, as messages of the conversation."""
        messages = [item for item in self.response.output if isinstance(item, OutputMessage)]
        text = "".join(part.text for item in messages for part in item.content)
        return [Message(role="assistant", content=text)]

    def _over(self, status: ResponseStatus) -> bytes:
        self.response.status = status
        self.response.completed_at = int(time.time()) if status == "completed" else None
        self.response.usage = self._usage()
        return self._whole(f"response.{status}") + DONE

    def _usage(self) -> ResponseUsage:
        counted = self._count.usage()
        return ResponseUsage(
            input_tokens=counted.prompt_tokens,
            input_tokens_details=InputTokensDetails(counted.prompt_tokens_details.cached_tokens),
            output_tokens=counted.completion_tokens,
            output_tokens_details=OutputTokensDetails(0),
            total_tokens=counted.total_tokens,
        )

    def _text(self, choice: CompletionOutput) -> bytes:
        events = b"" if self._open is not None else self._begin()
        logprobs: list[TokenLogprob] = []
        if self._generation.logprobs is not None and choice.logprobs is not None:
            logprobs = chat_logprobs(choice.token_ids, choice.logprobs, most=self._generation.logprobs).content
        if self._open is None or not (choice.text or logprobs):
            return events
        self._open.pieces.append(choice.text)
        self._open.logprobs += logprobs
        return events + self._part("response.output_text.delta", delta=choice.text, logprobs=logprobs)

    def _begin(self) -> bytes:
        item = OutputMessage(id=new_id("msg"), status="in_progress", content=[])
        self._open = _Open(item, len(self.response.output))
        self.response.output.append(item)
        events = self._item("response.output_item.added")
        item.content.append(OutputTextPart(text=""))
        return events + self._part("response.content_part.added", part=item.content[0])

    def _close(self, status: str) -> bytes:
        opened = self._open
        if opened is None:
            return b""
        part = opened.item.content[0]
        part.text, part.logprobs = "".join(opened.pieces), opened.logprobs
        opened.item.status = status
        events = self._part("response.output_text.done", text=part.text, logprobs=part.logprobs)
        events += self._part("response.content_part.done", part=part)
        events += self._item("response.output_item.done")
        self._open = None
        return events

    def _item(self, kind: str) -> bytes:
        opened = self._open
        return b"" if opened is None else self._event(kind, output_index=opened.index, item=opened.item)

    def _part(self, kind: str, **fields: Any) -> bytes:
        opened = self._open
        if opened is None:
            return b""
        return self._event(kind, item_id=opened.item.id, output_index=opened.index, content_index=0, **fields)

    def _whole(self, kind: str) -> bytes:
        return self._event(kind, response=self.response)

    def _event(self, kind: str, **fields: Any) -> bytes:
        data = msgspec.json.encode({"type": kind, "sequence_number": self._number, **fields})
        self._number += 1
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), data)


_CODES = {400: "invalid_prompt", 429: "rate_limit_exceeded"}


def new_id(kind: str) -> str:
    """A name that nobody can guess."""
    return f"{kind}_{uuid.uuid4().hex}"


def new_response(request: ResponsesRequest, generation: Generation) -> ResponseObject:
    """The response before anything has come of it."""
    params = generation.params
    return ResponseObject(
        id=new_id("resp"),
        created_at=generation.created,
        status="in_progress",
        background=bool(request.background),
        instructions=request.instructions,
        max_output_tokens=request.max_output_tokens,
        model=generation.model,
        parallel_tool_calls=request.parallel_tool_calls is not False,
        previous_response_id=request.previous_response_id,
        prompt_cache_key=request.prompt_cache_key,
        safety_identifier=request.safety_identifier,
        store=request.store is not False,
        temperature=params.temperature,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        text={"format": {"type": "text"}},
        tool_choice=request.tool_choice or "auto",
        tools=[],
        top_logprobs=request.top_logprobs or 0,
        top_p=params.top_p,
        user=request.user,
        metadata=request.metadata or {},
    )

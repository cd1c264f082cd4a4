"""RequestOutputs of one generation in; the Response object and the events that tell how it came about out."""

from __future__ import annotations

import time
import uuid
from typing import Any, Literal

import msgspec
from msgspec import UNSET

from octavo.base.types.output import CompletionOutput, RequestOutput, ToolCall
from octavo.server.errors import DONE, NAMED_EVENT, ErrorReply
from octavo.server.openai.convert import Generation
from octavo.server.openai.generate import UsageCount
from octavo.server.openai.logprobs import chat_logprobs, that_make
from octavo.server.openai.parsing import call_id, in_order
from octavo.server.openai.replies import TokenLogprob
from octavo.server.openai.responses.items import (
    FunctionCallItem,
    Item,
    MessageItem,
    OutputText,
    ReasoningItem,
    ReasoningText,
    as_messages,
)
from octavo.server.openai.responses.replies import (
    IncompleteDetails,
    InputTokensDetails,
    OutputCall,
    OutputItem,
    OutputMessage,
    OutputReasoning,
    OutputTextPart,
    OutputTokensDetails,
    ReasoningTextPart,
    ResponseError,
    ResponseObject,
    ResponseStatus,
    ResponseUsage,
)
from octavo.server.openai.responses.tools import ToolNames
from octavo.server.openai.responses.types import ReasoningConfig, ResponsesRequest
from octavo.server.openai.sse import KEEP_ALIVE
from octavo.server.openai.types import Message


class ResponseBuilder:
    """Takes outputs, deltas or the whole, and keeps the response up to date.

    Its methods return what a stream sends, and nothing where there is no stream.
    """

    idle = KEEP_ALIVE

    def __init__(self, request: ResponsesRequest, tools: ToolNames, generation: Generation) -> None:
        self._generation = generation
        self.streamed = bool(request.stream)
        self._count = UsageCount(generation)
        self._number = 0
        self._open: OutputItem | None = None  # the last of the output, while it is written
        self._cut: OutputItem | None = None  # what was open when it all ended with an error
        self._pieces: list[str] = []
        self._said_logprobs: list[TokenLogprob] = []
        self._num_told = 0  # characters of text
        self._finish: CompletionOutput | None = None
        self._tools = tools
        self.response = new_response(request, generation)

    def start(self) -> bytes:
        """The first two events."""
        return self._whole("response.created") + self._whole(f"response.{self.response.status}")

    def piece(self, number: int, output: RequestOutput) -> bytes:
        """The events of an output."""
        self._count.take(number, output)
        events = [self._begun()]
        for choice in output.outputs:
            events += [self._call(call) for call in choice.tool_calls if not call.name]
            if choice.reasoning:
                events.append(self._reasoning(choice.reasoning))
            events += self._shown(choice)
            if choice.finish_reason is not None:
                self._finish = choice
        return b"".join(events)

    def _shown(self, choice: CompletionOutput) -> list[bytes]:
        """Text and calls that begin."""
        events, told, left = [], self._told_logprobs(choice), len(choice.text)
        for part in in_order(choice, self._num_told):
            if isinstance(part, ToolCall):
                events.append(self._call(part))
                continue
            left -= len(part)
            some = that_make(told, part) if left else told
            told = told[len(some) :]
            events.append(self._text(part, some))
        self._num_told += len(choice.text)
        return events

    def _begun(self) -> bytes:
        if self.response.status != "queued":
            return b""
        self.response.status = "in_progress"
        return self._whole("response.in_progress")

    def end(self) -> bytes:
        """The last item is done, and so is the response."""
        cut = self._finish is not None and self._finish.finish_reason == "length"
        status: ResponseStatus = "incomplete" if cut else "completed"
        events = b"" if self.response.output else self._begin_text("message")
        events += self._close(status)
        if cut:
            self.response.incomplete_details = IncompleteDetails("max_output_tokens")
        return events + self._over(status)

    def fail(self, told: ErrorReply) -> bytes:
        """The response ends with an error; what has come of it stays."""
        self.response.error = ResponseError(
            "invalid_prompt" if told.status == 400 else "server_error", told.detail.message
        )
        self._cut = self._open
        return self._close("incomplete") + self._over("failed")

    def cancel(self) -> bytes:
        """The response ends as its client asked."""
        self._cut = self._open
        return self._close("incomplete") + self._over("cancelled")

    def said(self) -> list[Message]:
        """What the model said, as messages of the conversation: without a call that came only in part."""
        cut = self._cut if isinstance(self._cut, OutputCall) else None
        return as_messages([as_item(item) for item in self.response.output if item is not cut])

    def fill(self) -> None:
        """The item that is being written holds all that has come of it."""
        item, text = self._open, "".join(self._pieces)
        if isinstance(item, OutputCall):
            item.arguments = text
        elif isinstance(item, OutputMessage):
            item.content[0] = OutputTextPart(text=text, logprobs=self._said_logprobs)
        elif item is not None:
            item.content[0] = ReasoningTextPart(text=text)

    def _over(self, status: ResponseStatus) -> bytes:
        self.response.status = status
        self.response.completed_at = int(time.time()) if status == "completed" else None
        self.response.usage = self._usage()
        # there is no event of its own for "cancelled": readers with fixed types would break on one
        return self._whole(f"response.{'incomplete' if status == 'cancelled' else status}") + DONE

    def _usage(self) -> ResponseUsage:
        counted = self._count.usage()
        details = counted.completion_tokens_details
        return ResponseUsage(
            input_tokens=counted.prompt_tokens,
            input_tokens_details=InputTokensDetails(counted.prompt_tokens_details.cached_tokens),
            output_tokens=counted.completion_tokens,
            output_tokens_details=OutputTokensDetails(0 if details is msgspec.UNSET else details.reasoning_tokens),
            total_tokens=counted.total_tokens,
        )

    def _told_logprobs(self, choice: CompletionOutput) -> list[TokenLogprob]:
        """Of the text, with which they come."""
        most, token_bytes = self._generation.params.logprobs, self._generation.token_bytes
        if most is None or choice.text_logprobs is None:
            return []
        ids, entries = [token for token, _ in choice.text_logprobs], [entry for _, entry in choice.text_logprobs]
        return chat_logprobs(ids, entries, most=most, token_bytes=token_bytes).content

    def _reasoning(self, text: str) -> bytes:
        events = self._go_on("reasoning")
        self._pieces.append(text)
        return events + self._part("response.reasoning_text.delta", delta=text)

    def _text(self, text: str, told: list[TokenLogprob]) -> bytes:
        if self.response.output and not isinstance(self._open, OutputMessage):
            text = text.lstrip()  # a chat has it between its texts, here it borders on a call
        events = self._go_on("message")
        self._pieces.append(text)
        self._said_logprobs += told
        return events + self._part("response.output_text.delta", delta=text, logprobs=told)

    def _call(self, call: ToolCall) -> bytes:
        """A call, or more of the one that is open."""
        events = b""
        if call.name:
            tool = None if self._generation.parsing is None else self._generation.parsing.tool
            found = self._tools.find(call.name)
            begun = OutputCall(
                id=new_id("fc"),
                call_id=call_id(call, tool),
                name=call.name if found is None else found.name,
                arguments="",
                status="in_progress",
                namespace=UNSET if found is None or found.namespace is None else found.namespace,
            )
            events = self._close("completed") + self._begin(begun)
        if call.arguments:
            self._pieces.append(call.arguments)
            events += self._about("response.function_call_arguments.delta", delta=call.arguments)
        return events if call.status == "in_progress" else events + self._close(call.status)

    def _go_on(self, kind: Literal["message", "reasoning"]) -> bytes:
        """The item being written is of this kind; a new one begins where it is not."""
        if isinstance(self._open, OutputMessage if kind == "message" else OutputReasoning):
            return b""
        return self._close("completed") + self._begin_text(kind)

    def _begin_text(self, kind: Literal["message", "reasoning"]) -> bytes:
        if kind == "message":
            message = OutputMessage(id=new_id("msg"), status="in_progress", content=[])
            events, part = self._begin(message), OutputTextPart(text="")
            message.content.append(part)
            return events + self._part("response.content_part.added", part=part)
        reasoning = OutputReasoning(id=new_id("rs"), status="in_progress", content=[])
        events, thought = self._begin(reasoning), ReasoningTextPart(text="")
        reasoning.content.append(thought)
        return events + self._part("response.content_part.added", part=thought)

    def _begin(self, item: OutputItem) -> bytes:
        self._open, self._pieces, self._said_logprobs = item, [], []
        self.response.output.append(item)
        return self._event("response.output_item.added", output_index=len(self.response.output) - 1, item=item)

    def _close(self, status: str) -> bytes:
        item = self._open
        if item is None:
            return b""
        self.fill()
        item.status = status
        if isinstance(item, OutputCall):
            events = self._about("response.function_call_arguments.done", name=item.name, arguments=item.arguments)
        elif isinstance(item, OutputMessage):
            part = item.content[0]
            events = self._part("response.output_text.done", text=part.text, logprobs=part.logprobs)
            events += self._part("response.content_part.done", part=part)
        else:
            thought = item.content[0]
            events = self._part("response.reasoning_text.done", text=thought.text)
            events += self._part("response.content_part.done", part=thought)
        self._open = None
        index = len(self.response.output) - 1
        return events + self._event("response.output_item.done", output_index=index, item=item)

    def _part(self, kind: str, **fields: Any) -> bytes:
        return self._about(kind, content_index=0, **fields)

    def _about(self, kind: str, **fields: Any) -> bytes:
        """An event of the item that is open."""
        name = "" if self._open is None else self._open.id
        return self._event(kind, item_id=name, output_index=len(self.response.output) - 1, **fields)

    def _whole(self, kind: str) -> bytes:
        return self._event(kind, response=self.response)

    def _event(self, kind: str, **fields: Any) -> bytes:
        if not self.streamed:
            return b""
        data = msgspec.json.encode({"type": kind, "sequence_number": self._number, **fields})
        self._number += 1
        return NAMED_EVENT % (kind.encode(), data)


def as_item(item: OutputItem) -> Item:
    """What was answered, as an item that could be sent back."""
    if isinstance(item, OutputCall):
        space = None if item.namespace is UNSET else item.namespace
        return FunctionCallItem(call_id=item.call_id, name=item.name, arguments=item.arguments, namespace=space)
    if isinstance(item, OutputReasoning):
        return ReasoningItem(content=[ReasoningText(part.text) for part in item.content])
    return MessageItem(role="assistant", content=[OutputText(text=part.text) for part in item.content])


def new_id(kind: str) -> str:
    """A name that nobody can guess."""
    return f"{kind}_{uuid.uuid4().hex}"


def new_response(request: ResponsesRequest, generation: Generation) -> ResponseObject:
    """The response before anything has come of it."""
    params = generation.params
    asked = None if request.text is None else request.text.format
    return ResponseObject(
        id=new_id("resp"),
        created_at=generation.created,
        status="queued" if request.background else "in_progress",
        background=bool(request.background),
        instructions=request.instructions,
        max_output_tokens=request.max_output_tokens,
        max_tool_calls=request.max_tool_calls,
        model=generation.model,
        parallel_tool_calls=request.parallel_tool_calls is not False,
        previous_response_id=request.previous_response_id,
        prompt_cache_key=request.prompt_cache_key,
        safety_identifier=request.safety_identifier,
        store=request.store is not False,
        temperature=params.temperature,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        reasoning=request.reasoning or ReasoningConfig(),
        text={"format": {"type": "text"} if asked is None else asked},
        tool_choice=request.tool_choice or "auto",
        tools=request.tools or [],
        top_logprobs=request.top_logprobs or 0,
        top_p=params.top_p,
        truncation=request.truncation or "disabled",
        user=request.user,
        metadata=request.metadata or {},
    )

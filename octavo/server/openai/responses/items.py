"""Items of a Responses conversation in; messages of a chat out.

An assistant's reasoning, text and calls are items of their own; in a chat they are one message.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta

from octavo.base.errors import InputError, UnsupportedError
from octavo.server.openai.decode import explain
from octavo.server.openai.responses.tools import joined
from octavo.server.openai.types import (
    MAX_MESSAGES,
    FunctionCall,
    Identifier,
    Message,
    MessagePart,
    TextPart,
    ToolCall,
)
from octavo.server.strict import Tagged

Status = Literal["in_progress", "completed", "incomplete"]


class InputText(Tagged, frozen=True, tag="input_text"):
    """Text that the client wrote."""

    text: str


class ChatText(Tagged, frozen=True, tag="text"):
    """The same by its name in chats, as tools' outputs have it."""

    text: str


class OutputText(Tagged, frozen=True, kw_only=True, tag="output_text"):
    """Text that the model wrote; annotations and logprobs are a client's copy of what an answer told, and parsed says
    once more what text does.
    """

    text: str
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None
    parsed: Any = None


class Refusal(Tagged, frozen=True, tag="refusal"):
    """A refusal that the model wrote."""

    refusal: str


Part = InputText | ChatText | OutputText | Refusal


class MessageItem(Tagged, frozen=True, kw_only=True, tag="message"):
    """One message."""

    role: Literal["user", "assistant", "system", "developer"]
    content: str | Annotated[list[Part], Meta(max_length=MAX_MESSAGES)]
    id: Identifier | None = None
    status: Status | None = None
    phase: Literal["commentary", "final_answer"] | None = None


class FunctionCallItem(Tagged, frozen=True, kw_only=True, tag="function_call"):
    """A call that the model made; arguments is JSON text, which parsed_arguments says once more. Null fields are those
    that the openai client adds; async has two names there.
    """

    call_id: Annotated[str, Meta(min_length=1, max_length=512)]
    name: str
    arguments: str
    id: Identifier | None = None
    status: Status | None = None
    parsed_arguments: Any = None
    namespace: Annotated[str, Meta(min_length=1, max_length=128)] | None = None
    caller: None = None
    async_: None = None
    not_async: None = msgspec.field(name="async", default=None)


class FunctionCallOutput(Tagged, frozen=True, kw_only=True, tag="function_call_output"):
    """What the client's function returned."""

    call_id: Annotated[str, Meta(min_length=1, max_length=512)]
    output: str | Annotated[list[Part], Meta(max_length=MAX_MESSAGES)]
    id: Identifier | None = None
    status: Status | None = None
    name: None = None
    namespace: None = None
    caller: None = None


class SummaryText(Tagged, frozen=True, tag="summary_text"):
    """A piece of a reasoning's summary."""

    text: str


class ReasoningText(Tagged, frozen=True, tag="reasoning_text"):
    """A piece of a reasoning."""

    text: str


class ReasoningItem(Tagged, frozen=True, kw_only=True, tag="reasoning"):
    """What the model thought before it answered or called. encrypted_content: of another server, which that one alone
    can read; it is left out.
    """

    id: Identifier | None = None
    summary: list[SummaryText] = []
    content: list[ReasoningText] | None = None
    encrypted_content: str | None = None
    status: Status | None = None


class ItemReference(Tagged, frozen=True, kw_only=True, tag="item_reference"):
    """An item of a stored answer, by its id."""

    id: Identifier


Item = MessageItem | FunctionCallItem | FunctionCallOutput | ReasoningItem


class _Items(msgspec.Struct):
    """Only names what an error is about."""

    REASONS: ClassVar[dict[str, str]] = {}


def read_items(given: str | Sequence[dict[str, Any]], find: Callable[[str, str], Item]) -> list[Item]:
    """The items of `input`; a text is one message of the user. InputError names item and field.

    find: an item by its id; with the field that names it, for an error.
    """
    if isinstance(given, str):
        return [MessageItem(role="user", content=given)]
    if not given:
        raise InputError("input is empty; send a text or at least one item", param="input")
    return [
        find(item.id, f"input[{index}].id") if isinstance(item, ItemReference) else item
        for index, item in enumerate(map(_read, range(len(given)), given))
    ]


def _read(index: int, item: dict[str, Any]) -> Item | ItemReference:
    where = f"input[{index}]"
    try:
        found: Item | ItemReference = msgspec.convert({"type": "message", **item}, Item | ItemReference)
    except msgspec.ValidationError as error:
        told = explain(str(error), _Items, where=where)
        if told.param == where + ".type" and isinstance(item.get("type"), str):
            raise UnsupportedError(
                f"{where} is of type {item['type'][:40]!r}; taken are message, function_call, function_call_output, "
                "reasoning and item_reference",
                param=told.param,
            ) from None
        raise told from None
    return found


def as_messages(items: Sequence[Item]) -> list[Message]:
    """The chat's messages; items of the assistant that follow each other make one."""
    messages: list[Message] = []
    turn = _Turn()
    for item in items:
        if isinstance(item, FunctionCallOutput):
            messages += [*turn.end(), Message(role="tool", content=_text(item.output), tool_call_id=item.call_id)]
        elif isinstance(item, MessageItem) and item.role != "assistant":
            messages += [*turn.end(), Message(role=item.role, content=_text(item.content))]
        else:
            if turn.is_over(item):
                messages += turn.end()
            turn.take(item)
    return [*messages, *turn.end()]


class _Turn:
    """An assistant's message while it is put together of its items."""

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self._reasoning: list[str] = []
        self._texts: list[str | list[MessagePart]] = []
        self._calls: list[ToolCall] = []

    def is_over(self, item: MessageItem | FunctionCallItem | ReasoningItem) -> bool:
        """True if the item begins a turn: reasoning does, and text behind text. Behind calls it is more of theirs."""
        if isinstance(item, FunctionCallItem) or (isinstance(item, MessageItem) and self._calls):
            return False
        return bool(self._texts or self._calls)

    def take(self, item: MessageItem | FunctionCallItem | ReasoningItem) -> None:
        if isinstance(item, ReasoningItem):
            self._reasoning += [part.text for part in item.content or item.summary]
        elif isinstance(item, MessageItem):
            self._texts.append(_text(item.content))
        else:
            self._calls.append(_call(item))

    def end(self) -> list[Message]:
        """The message, if anything was taken."""
        if not self._texts and not self._calls and not self._reasoning:
            return []
        message = Message(
            role="assistant",
            content=_joined(self._texts),
            tool_calls=self._calls or None,
            reasoning="".join(self._reasoning) or None,
        )
        self._clear()
        return [message]


def _call(item: FunctionCallItem) -> ToolCall:
    return ToolCall(function=FunctionCall(joined(item.namespace, item.name), item.arguments), id=item.call_id)


def _joined(texts: Sequence[str | list[MessagePart]]) -> str | list[MessagePart] | None:
    if len(texts) < 2:
        return texts[0] if texts else None
    return [part for text in texts for part in ([TextPart(text)] if isinstance(text, str) else text)]


def _text(content: str | Sequence[Part]) -> str | list[MessagePart]:
    if isinstance(content, str):
        return content
    texts = [part.refusal if isinstance(part, Refusal) else part.text for part in content]
    return texts[0] if len(texts) == 1 else [TextPart(text) for text in texts]

"""A stored response in; pages of the items that it was made of out: GET /v1/responses/{id}/input_items."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, ClassVar

from msgspec import UNSET, Meta

from octavo.server.exchange import Exchange, Reply
from octavo.server.openai.decode import decode_query
from octavo.server.openai.pages import Page, PageQuery, page_reply
from octavo.server.openai.responses.items import FunctionCallOutput, InputText, MessageItem, OutputText, Part
from octavo.server.openai.responses.replies import OutputCall, OutputReasoning, ReasoningTextPart
from octavo.server.openai.responses.store import Stored
from octavo.server.openai.responses.tools import ToolNames
from octavo.server.openai.responses.types import Told
from octavo.server.openai.types import Message, MessagePart
from octavo.server.services import Services

ListedItem = MessageItem | OutputReasoning | OutputCall | FunctionCallOutput


class ItemList(Page[ListedItem], frozen=True, kw_only=True):
    """GET /v1/responses/{id}/input_items."""


class ItemQuery(PageQuery, frozen=True, kw_only=True):
    """What is listed. after: the last id of the page before."""

    REASONS: ClassVar[dict[str, str]] = {
        "include": "it is a list of OpenAI's names without message.output_text.logprobs, which are not kept",
    }

    limit: Annotated[int, Meta(ge=1, le=100)] = 20
    include: list[Told] | None = None


async def list_input_items(services: Services, exchange: Exchange) -> Reply:
    """What a stored response was made of, with what `previous_response_id` brought; the newest first."""
    query = decode_query(exchange.query("include"), ItemQuery)
    items = _items(services.responses.get(exchange.path_params["id"], exchange.owner))
    return page_reply(ItemList, items[::-1], query, limit=query.limit)


def _items(entry: Stored) -> list[ListedItem]:
    """Oldest first. The conversation is kept as messages, so ids are made: the same ones each time."""
    seed, numbers = entry.response.id.partition("_")[2], itertools.count()

    def name(kind: str) -> str:
        return f"{kind}_{seed}{next(numbers):05}"

    tools = ToolNames(entry.response.tools)
    return [item for message in entry.messages[: entry.num_given] for item in _of_message(message, name, tools)]


def _of_message(message: Message, name: Callable[[str], str], tools: ToolNames) -> Iterator[ListedItem]:
    content = [] if message.content is None else _texts(message.content)
    if message.role == "tool":
        texts: list[Part] = [InputText(text) for text in content]
        output, call = content[0] if len(content) == 1 else texts, message.tool_call_id or ""
        yield FunctionCallOutput(id=name("fco"), call_id=call, output=output, status="completed")
    elif message.role != "assistant":
        parts: list[Part] = [InputText(text) for text in content]
        yield MessageItem(id=name("msg"), role=message.role, content=parts, status="completed")
    else:
        if message.reasoning is not None:
            thought = [ReasoningTextPart(text=message.reasoning)]
            yield OutputReasoning(id=name("rs"), status="completed", content=thought)
        if message.content is not None:
            said: list[Part] = [OutputText(text=text, annotations=[], logprobs=[]) for text in content]
            yield MessageItem(id=name("msg"), role=message.role, content=said, status="completed")
        for one in message.tool_calls or []:
            found = tools.find(one.function.name)
            yield OutputCall(
                id=name("fc"),
                call_id=one.id or "",
                name=one.function.name if found is None else found.name,
                arguments=one.function.arguments,
                status="completed",
                namespace=UNSET if found is None or found.namespace is None else found.namespace,
            )


def _texts(content: str | Sequence[MessagePart]) -> list[str]:
    return [content] if isinstance(content, str) else [part.text for part in content]

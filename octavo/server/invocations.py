"""POST /invocations, the one route that SageMaker's containers have: which request a body is, told by its fields."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import ClassVar

import msgspec
from msgspec import UNSET, Raw, UnsetType

from octavo.base.errors import InputError
from octavo.server.exchange import Exchange, Reply
from octavo.server.openai.chat import create_chat_completion
from octavo.server.openai.completions import create_completion
from octavo.server.openai.decode import decode
from octavo.server.openai.pooling import routes as pooling
from octavo.server.services import Services

Field = Raw | UnsetType
Handler = Callable[[Services, Exchange], Awaitable[Reply | None]]


class Invocation(msgspec.Struct, frozen=True):
    """The fields that tell; what else there is, the request's own type reads."""

    REASONS: ClassVar[dict[str, str]] = {}

    messages: Field = UNSET
    prompt: Field = UNSET
    query: Field = UNSET
    text_1: Field = UNSET
    queries: Field = UNSET
    data_1: Field = UNSET
    task: Field = UNSET
    input: Field = UNSET


async def invoke(services: Services, exchange: Exchange) -> Reply | None:
    """Answer a chat, a completion, or what else the body's fields ask for; None where it was streamed."""
    body = await services.traffic.read_body(exchange)
    handler = _handler(services, decode(body, Invocation))
    exchange.put_back(body)
    return await handler(services, exchange)


def _handler(services: Services, asked: Invocation) -> Handler:
    made = services.llm.model.spec.pooling
    if asked.messages is not UNSET and made is None:
        return create_chat_completion
    if asked.prompt is not UNSET:
        return create_completion
    if asked.query is not UNSET:
        return pooling.create_rerank
    if any(side is not UNSET for side in (asked.text_1, asked.queries, asked.data_1)):
        return pooling.create_scores
    if asked.input is UNSET and asked.messages is UNSET:
        raise InputError(
            "the body is no known request; it needs messages, prompt, input, query and documents, or text_1 and text_2"
        )
    if asked.task is not UNSET:
        return pooling.create_pooling
    return pooling.create_classes if made is not None and made.labels else pooling.create_embeddings

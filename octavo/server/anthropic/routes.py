"""POST /v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

from octavo.server.anthropic.build import MessageBuilder
from octavo.server.anthropic.context import edited
from octavo.server.anthropic.convert import as_chat, terms
from octavo.server.anthropic.replies import TokenCount
from octavo.server.anthropic.thinking import is_told, with_thinking
from octavo.server.anthropic.types import CountTokensRequest, MessagesRequest
from octavo.server.exchange import Exchange, Reply, json_reply
from octavo.server.openai import convert
from octavo.server.openai.conversation import render
from octavo.server.openai.generate import send_stream
from octavo.server.openai.results import Results
from octavo.server.openai.terms import in_terms
from octavo.server.services import Services


async def create_message(services: Services, exchange: Exchange) -> Reply | None:
    """Answer a conversation, by Anthropic's protocol; None where it was streamed."""
    request = await services.read(exchange, MessagesRequest)
    chat = with_thinking(services, request.thinking, as_chat(request, edited(services, request)))
    with in_terms(terms(request)):
        generation = await convert.chat(services, exchange, chat)
        builder = MessageBuilder(
            generation,
            with_thinking=is_told(request.thinking),
            max_model_len=services.llm.info["max_model_len"],
        )
        exchange.names.add(builder.message.id)
        async with Results(services, generation) as results:
            if request.stream:
                await send_stream(exchange, results, builder)
                return None
            await results.collect(builder.piece)
    builder.end()
    return json_reply(builder.message)


async def count_tokens(services: Services, exchange: Exchange) -> Reply:
    """How many tokens the prompt of such a request has."""
    request = await services.read(exchange, CountTokensRequest)
    chat = with_thinking(services, request.thinking, as_chat(request, edited(services, request)))
    with in_terms(terms(request)):
        ids = await render(services, chat)
    return json_reply(TokenCount(len(ids)))

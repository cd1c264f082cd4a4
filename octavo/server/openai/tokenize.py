"""POST /tokenize and /detokenize: text or a conversation to token ids, and back."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from octavo.base.errors import InputError
from octavo.server.exchange import Exchange, Reply, json_reply
from octavo.server.openai.conversation import render
from octavo.server.openai.decode import decode
from octavo.server.openai.replies import DetokenizeReply, TokenizeReply, TokenizerInfo
from octavo.server.openai.types import DetokenizeRequest, TokenizeChatRequest, TokenizeTextRequest
from octavo.server.services import Services


class _Kind(msgspec.Struct):
    """Only tells which of the two forms a body has."""

    messages: Any = None


async def tokenize(services: Services, exchange: Exchange) -> Reply:
    """A text (prompt), or a conversation (messages) by the chat template."""
    body = await services.traffic.read_body(exchange)
    request: TokenizeTextRequest | TokenizeChatRequest
    if decode(body, _Kind).messages is not None:
        request = decode(body, TokenizeChatRequest)
    else:
        request = decode(body, TokenizeTextRequest)
    services.names.check(request.model)
    exchange.watch()
    if isinstance(request, TokenizeChatRequest):
        ids = await render(services, request)
    else:
        ids = await services.llm.encode(request.prompt, add_special_tokens=request.add_special_tokens is not False)
    tokenizer, strings = services.llm.tokenizer, None
    if request.return_token_strs and tokenizer is not None:
        strings = await asyncio.to_thread(tokenizer.token_strings, ids)
    return json_reply(
        TokenizeReply(count=len(ids), max_model_len=services.llm.info["max_model_len"], tokens=ids, token_strs=strings)
    )


async def detokenize(services: Services, exchange: Exchange) -> Reply:
    """Token ids to text; special tokens are shown."""
    request = await services.read(exchange, DetokenizeRequest)
    tokenizer = services.llm.tokenizer
    if tokenizer is None:
        raise InputError("this server runs without a tokenizer (skip_tokenizer_init)", param="tokens")
    wrong = next((token for token in request.tokens if token >= tokenizer.vocab_size), None)
    if wrong is not None:
        raise InputError(
            f"tokens holds token id {wrong}; the vocabulary has 0 to {tokenizer.vocab_size - 1}", param="tokens"
        )
    return json_reply(DetokenizeReply(await services.llm.decode(request.tokens)))


async def show_tokenizer(services: Services, exchange: Exchange) -> Reply:
    """What the tokenizer is, for clients that count or compare tokens."""
    services.check_ready()
    tokenizer = services.llm.tokenizer
    if tokenizer is None:
        raise InputError("this server runs without a tokenizer (skip_tokenizer_init)")
    template, special = services.llm.model.template, tokenizer.special_tokens
    info = TokenizerInfo(
        model_max_length=services.llm.info["max_model_len"],
        vocab_size=tokenizer.vocab_size,
        **{name: special.get(name) for name in ("bos_token", "eos_token", "pad_token", "unk_token")},
        eos_token_ids=list(tokenizer.eos_token_ids),
        special_tokens=dict(tokenizer.special_ids()),
        chat_template=None if template is None else template.source,
    )
    return json_reply(info)

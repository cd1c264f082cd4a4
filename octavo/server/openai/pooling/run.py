"""Texts and PoolingParams of one HTTP request in; the outputs of all, in order, out. Leaving aborts the rest."""

from __future__ import annotations

import asyncio
import base64
import sys
import time
from array import array
from collections.abc import Sequence
from typing import Any

from octavo.api.aside import end_all
from octavo.api.pooling import AnyPoolingOutput, Pair
from octavo.api.prompts import Prompt, parse_prompt
from octavo.base.errors import InputError, UnsupportedError, row_failure
from octavo.base.types.pooling import PoolingParams
from octavo.server.exchange import Exchange
from octavo.server.openai.conversation import render
from octavo.server.openai.convert import split_prompts
from octavo.server.openai.pooling.replies import Typed, Vector
from octavo.server.openai.pooling.types import InputRequest
from octavo.server.openai.replies import PromptTokensDetails, Usage
from octavo.server.openai.terms import in_terms
from octavo.server.openai.types import MAX_PROMPTS, Message, TokenizeChatRequest
from octavo.server.services import Request, Services

MAX_NUMBERS = 1 << 23  # of every token's vectors in one answer: a long prompt of a large model, 170 MB of JSON

# Cohere's, Voyage's and NIM's input types -> sentence-transformers' usual names of prompts, in order
_QUERY, _DOCUMENT = ("query", "search_query"), ("document", "passage", "search_document")
_PROMPTS = {
    "query": _QUERY,
    "search_query": _QUERY,
    "document": _DOCUMENT,
    "passage": _DOCUMENT,
    "search_document": _DOCUMENT,
    "classification": ("classification", "Classification"),
    "clustering": ("clustering", "Clustering"),
}
_OF_CHATS = ("add_generation_prompt", "continue_final_message", "chat_template", "chat_template_kwargs")


async def read(services: Services, exchange: Exchange, kind: type[Request]) -> Request:
    """As Services.read; InputError for a priority that nothing heeds, too."""
    request = await services.read(exchange, kind)
    if getattr(request, "priority", None) and services.llm.config.scheduler.scheduling_policy != "priority":
        raise InputError("priority needs a server started with --scheduling-policy priority", param="priority")
    return request


def check_count(count: int, name: str) -> None:
    """InputError naming the field where it holds more than one request may ask for."""
    if count > MAX_PROMPTS:
        raise InputError(f"{name} holds {count} entries; at most {MAX_PROMPTS} are taken", param=name)


async def run(
    services: Services, prompts: Sequence[Prompt | Pair], params: PoolingParams, *, name: str, request: Any
) -> list[AnyPoolingOutput]:
    """One output a prompt; name: of the field that they came in. Raises what ended the first that did not succeed."""
    check_count(len(prompts), name)
    slots = asyncio.Semaphore(services.llm.config.scheduler.max_num_seqs)
    numbers = 0

    async def one(prompt: Prompt | Pair) -> AnyPoolingOutput:
        async with slots:
            try:
                output = await services.llm.pool(prompt, params, priority=request.priority or 0)
            except asyncio.CancelledError:
                services.metrics.requests.end("abort")
                raise
        services.metrics.requests.pooled(output)
        if output.error is not None:
            raise row_failure(output.error)
        nonlocal numbers
        numbers += sum(len(row) for row in output.outputs.data if isinstance(row, list))
        if numbers > MAX_NUMBERS:
            raise InputError(
                f"every token's vectors of this {name} are more than {MAX_NUMBERS} numbers; send fewer texts at once",
                param=name,
            )
        return output

    tasks = [asyncio.create_task(one(prompt)) for prompt in prompts]
    try:
        return list(await asyncio.gather(*tasks))
    except InputError as error:
        if error.param != "prompt":
            raise
        raise type(error)(error.message, param=name) from None
    finally:
        await end_all(tasks)


def beginning(services: Services, input_type: str | None) -> str:
    """What texts of this type begin with; nothing where the model's files do not tell."""
    known = services.llm.model.prompts
    return next((known[name] for name in _PROMPTS.get(input_type or "", ()) if name in known), "")


async def inputs(services: Services, request: InputRequest, *, input_type: str | None = None) -> list[Prompt]:
    """The field `input`, or the conversation in `messages`."""
    if request.messages is not None:
        if input_type is not None:
            raise InputError("input_type is for texts in input; leave it out with messages", param="input_type")
        return [Prompt(None, await _rendered(services, request, request.messages))]
    if request.input is None:
        raise InputError("input is required (or messages)", param="input")
    unread = next((name for name in _OF_CHATS if getattr(request, name)), None)
    if unread is not None:
        raise InputError(f"{unread} is for messages, and there is an input; leave it out", param=unread)
    found = [parse_prompt(one) for one in split_prompts(request.input, "input")]
    if input_type is not None:
        if any(one.text is None for one in found):
            raise InputError("input_type is for texts, and the input holds token ids; leave it out", param="input_type")
        found = [Prompt(beginning(services, input_type) + (one.text or ""), None) for one in found]
    if request.add_special_tokens is not False:
        return found
    check_count(len(found), "input")
    with in_terms({"prompt": "input"}):
        return [
            Prompt(None, await services.llm.encode(one.text, add_special_tokens=False)) if one.text is not None else one
            for one in found
        ]


async def _rendered(services: Services, request: InputRequest, messages: list[Message]) -> list[int]:
    if request.input is not None:
        raise InputError("input and messages exclude each other; send one of them", param="messages")
    if request.add_special_tokens:
        raise UnsupportedError(
            "add_special_tokens is not supported with messages: the chat template puts them", param="add_special_tokens"
        )
    chat = {name: getattr(request, name) for name in _OF_CHATS}
    chat["add_generation_prompt"] = bool(request.add_generation_prompt)
    return await render(services, TokenizeChatRequest(messages=messages, **chat))


def usage(outputs: Sequence[AnyPoolingOutput]) -> Usage:
    """Tokens of all prompts."""
    tokens = sum(len(output.prompt_token_ids) for output in outputs)
    return Usage(tokens, 0, tokens, PromptTokensDetails(sum(output.num_cached_tokens for output in outputs)))


def shown(data: list[float] | list[list[float]], encoding: str | None) -> Vector:
    """The numbers, or their bytes."""
    if encoding != "base64":
        return [*data]
    rows = (row if isinstance(row, list) else [row] for row in data)
    return _packed([number for row in rows for number in row])


def _packed(data: list[float]) -> str:
    numbers = array("f", data)
    if sys.byteorder == "big":
        numbers.byteswap()
    return base64.b64encode(numbers.tobytes()).decode()


def typed(data: list[float], kind: str) -> Typed:
    """The numbers in one of Cohere's types. ubinary: the bits of a byte tell, the highest first, which of eight numbers
    are not below 0; binary: these bytes less 128."""
    if kind == "float":
        return [*data]
    if kind == "base64":
        return _packed(data)
    bits = "".join("1" if number >= 0 else "0" for number in data)
    packed = int(bits, 2).to_bytes(len(data) // 8, "big")
    return [byte - 128 if kind == "binary" else byte for byte in packed]


def head(services: Services, exchange: Exchange, request: Any, prefix: str) -> dict[str, Any]:
    """What replies begin with."""
    return {
        "id": prefix + (getattr(request, "request_id", None) or exchange.request_id),
        "created": int(time.time()),
        "model": services.names.first,
    }

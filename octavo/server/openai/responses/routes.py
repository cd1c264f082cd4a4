"""POST /v1/responses and /v1/responses/input_tokens; GET, DELETE and POST cancel of /v1/responses/{id}."""

from __future__ import annotations

from octavo.base.errors import InputError
from octavo.server.errors import ErrorReply, OpenAIErrors
from octavo.server.exchange import Exchange, Reply, json_reply
from octavo.server.openai import convert
from octavo.server.openai.conversation import render
from octavo.server.openai.decode import decode_query
from octavo.server.openai.functions import allowed, as_tools, named
from octavo.server.openai.generate import send_stream
from octavo.server.openai.responses.background import follow, start
from octavo.server.openai.responses.build import ResponseBuilder, as_item
from octavo.server.openai.responses.items import as_messages, read_items
from octavo.server.openai.responses.replies import DeletedResponse, InputTokens
from octavo.server.openai.responses.store import Stored
from octavo.server.openai.responses.tools import ToolNames
from octavo.server.openai.responses.truncate import is_too_long, truncated
from octavo.server.openai.responses.types import (
    LOGPROBS,
    AllowedChoice,
    FunctionChoice,
    InputTokensRequest,
    PromptFields,
    ResponseQuery,
    ResponsesRequest,
    SchemaFormat,
)
from octavo.server.openai.results import Results
from octavo.server.openai.structured import JsonSchema, JsonSchemaFormat, ResponseFormat
from octavo.server.openai.terms import in_terms
from octavo.server.openai.types import ChatRequest, Message, ToolChoice
from octavo.server.services import Services

TERMS = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "max_completion_tokens": "max_output_tokens",
    "reasoning_effort": "reasoning.effort",
    "response_format.json_schema": "text.format",
    "response_format": "text.format",
}

_OTHERWISE = ("store", "stream_options", "top_logprobs", "service_tier", "tools", "tool_choice")
_SAME = tuple(
    name
    for name in ResponsesRequest.__struct_fields__
    if name in ChatRequest.__struct_fields__ and name not in _OTHERWISE
)


async def create_response(services: Services, exchange: Exchange) -> Reply | None:
    """Answer a conversation of items, and keep the answer; None where it was streamed."""
    request = await services.read(exchange, ResponsesRequest)
    _check(request)
    names = ToolNames(request.tools or [])
    with in_terms({**TERMS, **names.terms()}):
        messages = _messages(services, exchange, request)
        generation = await _generation(services, exchange, request, _chat(request, messages, names))
        builder = ResponseBuilder(request, names, generation)
        exchange.names.add(builder.response.id)
        entry = Stored(exchange.owner, builder.response, messages)
        if request.background:
            start(services, exchange, generation, builder=builder, entry=entry)
            if entry.events is None:
                return json_reply(builder.response)
            services.traffic.leave(exchange)
            await follow(exchange, entry.events)
            return None
        async with Results(services, generation) as results:
            if request.stream:
                stream = _KeptStream(services, builder, entry)
                exchange.errors = stream
                await send_stream(exchange, results, stream)
                return None
            await results.collect(builder.piece)
            builder.end()
    _keep(services, builder, entry)
    return json_reply(builder.response)


async def count_input_tokens(services: Services, exchange: Exchange) -> Reply:
    """How many tokens the prompt of such a request has."""
    counted = await services.read(exchange, InputTokensRequest)
    if counted.input is None and counted.previous_response_id is None:
        raise InputError("input is required, unless previous_response_id is there", param="input")
    fields = {name: getattr(counted, name) for name in PromptFields.__struct_fields__}
    request = ResponsesRequest(input=counted.input or [], **fields)
    names = ToolNames(request.tools or [])
    with in_terms({**TERMS, **names.terms()}):
        if counted.input is None:
            messages = _earlier(services, exchange, request)
        else:
            messages = _messages(services, exchange, request)
        chat = _chat(request, messages, names)
        ids = await render(services, chat)
        if request.truncation == "auto" and is_too_long(services, len(ids)):
            ids = await render(services, await truncated(services, chat, max_tokens=None))
    return json_reply(InputTokens(len(ids)))


async def show_response(services: Services, exchange: Exchange) -> Reply | None:
    """A stored response, as far as it has come; None where its events were streamed. 404 for one that is not, or not
    for this key.
    """
    query = decode_query(exchange.query("include"), ResponseQuery)
    entry = services.responses.get(exchange.path_params["id"], exchange.owner)
    if query.starting_after is not None and not query.stream:
        raise InputError("starting_after needs stream=true", param="starting_after")
    if query.stream:
        if entry.events is None:
            raise InputError("only responses made with background=true and stream=true can be streamed", param="stream")
        exchange.watch()
        await follow(exchange, entry.events, -1 if query.starting_after is None else query.starting_after)
        return None
    if entry.job is not None:
        entry.job.update()
    return json_reply(entry.response)


async def delete_response(services: Services, exchange: Exchange) -> Reply:
    """Forget a stored response; one that is being made ends."""
    name = exchange.path_params["id"]
    entry = services.responses.get(name, exchange.owner)
    if entry.job is not None:
        await entry.job.cancel()
    services.responses.delete(name, exchange.owner)
    return json_reply(DeletedResponse(name))


async def cancel_response(services: Services, exchange: Exchange) -> Reply:
    """End one that runs in the background. One that has ended stays as it is."""
    entry = services.responses.get(exchange.path_params["id"], exchange.owner)
    if not entry.response.background:
        raise InputError("only responses made with background=true can be cancelled; close a stream to end it")
    if entry.job is not None:
        await entry.job.cancel()
    return json_reply(entry.response)


def _check(request: ResponsesRequest) -> None:
    if request.stream_options is not None and not request.stream:
        raise InputError("stream_options needs stream=true", param="stream_options")
    if request.top_logprobs and LOGPROBS not in (request.include or []):
        raise InputError(f"top_logprobs needs include=[{LOGPROBS!r}]", param="top_logprobs")
    if request.background and request.store is False:
        raise InputError("background needs store: the answer is fetched from there", param="background")


async def _generation(
    services: Services, exchange: Exchange, request: ResponsesRequest, chat: ChatRequest
) -> convert.Generation:
    """The chat made ready, cut where the client lets it be."""
    generation = await convert.chat(services, exchange, chat)
    if request.truncation != "auto" or not is_too_long(services, len(generation.prompts[0].token_ids)):
        return generation
    chat = await truncated(services, chat, max_tokens=generation.params.max_tokens)
    return await convert.chat(services, exchange, chat)


def _messages(services: Services, exchange: Exchange, request: ResponsesRequest) -> list[Message]:
    items = read_items(
        request.input, lambda name, param: as_item(services.responses.item(name, exchange.owner, param=param))
    )
    return [*_earlier(services, exchange, request), *as_messages(items)]


def _earlier(services: Services, exchange: Exchange, request: ResponsesRequest) -> list[Message]:
    name = request.previous_response_id
    if name is None:
        return []
    entry = services.responses.get(name, exchange.owner, param="previous_response_id")
    if entry.response.status not in ("completed", "incomplete"):
        raise InputError(
            f"the response {name!r} is {entry.response.status}; only an answer can be gone on from",
            param="previous_response_id",
        )
    return entry.messages


def _chat(request: ResponsesRequest, messages: list[Message], names: ToolNames) -> ChatRequest:
    """The same question as a chat."""
    system = [] if request.instructions is None else [Message(role="system", content=request.instructions)]
    tools = [one.shown for one in names.functions]
    return ChatRequest(
        messages=[*system, *messages],
        tools=as_tools(tools, [tool.parameters for tool in tools]),
        tool_choice=_choice(request, names),
        reasoning_effort=None if request.reasoning is None else request.reasoning.effort,
        response_format=_format(request),
        max_completion_tokens=request.max_output_tokens,
        logprobs=LOGPROBS in (request.include or []),
        top_logprobs=request.top_logprobs,
        **{name: getattr(request, name) for name in _SAME},
    )


def _choice(request: ResponsesRequest, names: ToolNames) -> ToolChoice | None:
    match request.tool_choice:
        case FunctionChoice(name=name):
            return named(names.shown(name))
        case AllowedChoice(mode=mode, tools=tools):
            return allowed(mode, [names.shown(tool.name) for tool in tools])
        case choice:
            return choice


def _format(request: ResponsesRequest) -> ResponseFormat | None:
    asked = None if request.text is None else request.text.format
    return JsonSchemaFormat(JsonSchema(schema=asked.schema)) if isinstance(asked, SchemaFormat) else asked


def _keep(services: Services, builder: ResponseBuilder, entry: Stored) -> None:
    if builder.response.store:
        entry.messages = [*entry.messages, *builder.said()]
        services.responses.put(entry)


class _KeptStream(OpenAIErrors):
    """The builder as a stream whose response is kept when it is over, before its last bytes are sent."""

    def __init__(self, services: Services, builder: ResponseBuilder, entry: Stored) -> None:
        self._services, self._builder, self._entry = services, builder, entry
        self.idle, self.start, self.piece = builder.idle, builder.start, builder.piece

    def end(self) -> bytes:
        events = self._builder.end()
        _keep(self._services, self._builder, self._entry)
        return events

    def events(self, told: ErrorReply) -> bytes:
        """A stream that has begun ends with response.failed."""
        events = self._builder.fail(told)
        _keep(self._services, self._builder, self._entry)
        return events

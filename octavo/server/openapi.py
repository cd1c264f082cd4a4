"""The route table and the message types in; OpenAPI 3.1 out: GET /openapi.json."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

import msgspec
from starlette.routing import Route

from octavo import __version__
from octavo.server.admin import Aborted, AbortRequest, Done, Paused, Sleeping
from octavo.server.anthropic import replies as anthropic_replies
from octavo.server.anthropic import types as anthropic_types
from octavo.server.batch import types as batch
from octavo.server.errors import ErrorBody
from octavo.server.exchange import Exchange, Reply
from octavo.server.health import Load
from octavo.server.openai import replies, types
from octavo.server.openai.pooling import replies as pooling_replies
from octavo.server.openai.pooling import types as pooling_types
from octavo.server.openai.responses import items, listing
from octavo.server.openai.responses import replies as response_replies
from octavo.server.openai.responses import types as response_types
from octavo.server.services import Services

TEXT = "text/plain"
ANY_JSON = "application/json"


@dataclass(frozen=True)
class Described:
    """A route's bodies: message types, one of which it is, or a content type where no type describes it.

    streams: the answer may come as events, too.  query: what the URL's may hold.
    """

    reply: type[msgspec.Struct] | str
    request: type[msgspec.Struct] | tuple[type[msgspec.Struct], ...] | str | None = None
    streams: bool = False
    query: type[msgspec.Struct] | None = None


TABLE: dict[tuple[str, str], Described] = {
    ("POST", "/v1/completions"): Described(replies.CompletionReply, types.CompletionRequest, streams=True),
    ("POST", "/v1/chat/completions"): Described(replies.ChatReply, types.ChatRequest, streams=True),
    ("POST", "/v1/responses"): Described(
        response_replies.ResponseObject, response_types.ResponsesRequest, streams=True
    ),
    ("POST", "/v1/responses/input_tokens"): Described(response_replies.InputTokens, response_types.InputTokensRequest),
    ("GET", "/v1/responses/{id}"): Described(
        response_replies.ResponseObject, streams=True, query=response_types.ResponseQuery
    ),
    ("DELETE", "/v1/responses/{id}"): Described(response_replies.DeletedResponse),
    ("POST", "/v1/responses/{id}/cancel"): Described(response_replies.ResponseObject),
    ("GET", "/v1/responses/{id}/input_items"): Described(listing.ItemList, query=listing.ItemQuery),
    ("POST", "/v1/messages"): Described(anthropic_replies.MessageReply, anthropic_types.MessagesRequest, streams=True),
    ("POST", "/v1/messages/count_tokens"): Described(anthropic_replies.TokenCount, anthropic_types.CountTokensRequest),
    ("POST", "/v1/files"): Described(batch.FileObject, "multipart/form-data"),
    ("GET", "/v1/files"): Described(batch.FileList, query=batch.Query),
    ("GET", "/v1/files/{id}"): Described(batch.FileObject),
    ("DELETE", "/v1/files/{id}"): Described(batch.Deleted),
    ("GET", "/v1/files/{id}/content"): Described("application/octet-stream"),
    ("POST", "/v1/batches"): Described(batch.BatchObject, batch.BatchRequest),
    ("GET", "/v1/batches"): Described(batch.BatchList, query=batch.Query),
    ("GET", "/v1/batches/{id}"): Described(batch.BatchObject),
    ("POST", "/v1/batches/{id}/cancel"): Described(batch.BatchObject),
    ("POST", "/reset_prefix_cache"): Described(Done),
    ("POST", "/pause"): Described(Done),
    ("POST", "/resume"): Described(Done),
    ("GET", "/is_paused"): Described(Paused),
    ("POST", "/sleep"): Described(Done),
    ("POST", "/wake_up"): Described(Done),
    ("GET", "/is_sleeping"): Described(Sleeping),
    ("POST", "/abort_requests"): Described(Aborted, AbortRequest),
    ("GET", "/v1/models"): Described(replies.ModelList),
    ("GET", "/v1/models/{model:path}"): Described(replies.ModelCard),
    ("POST", "/v1/embeddings"): Described(pooling_replies.EmbeddingsReply, pooling_types.EmbeddingRequest),
    ("POST", "/v2/embed"): Described(pooling_replies.EmbedReply, pooling_types.EmbedRequest),
    **dict.fromkeys(
        (("POST", path) for path in ("/rerank", "/v1/rerank", "/v2/rerank")),
        Described(pooling_replies.RerankReply, pooling_types.RerankRequest),
    ),
    **dict.fromkeys(
        (("POST", path) for path in ("/score", "/v1/score")),
        Described(pooling_replies.ScoresReply, pooling_types.ScoreRequest),
    ),
    ("POST", "/classify"): Described(pooling_replies.ClassesReply, pooling_types.ClassifyRequest),
    ("POST", "/pooling"): Described(pooling_replies.PoolingReply, pooling_types.PoolRequest),
    ("POST", "/invocations"): Described(
        ANY_JSON,
        (
            *(types.ChatRequest, types.CompletionRequest, pooling_types.EmbeddingRequest, pooling_types.PoolRequest),
            *(pooling_types.ClassifyRequest, pooling_types.ScoreRequest, pooling_types.RerankRequest),
        ),
        streams=True,
    ),
    ("POST", "/tokenize"): Described(replies.TokenizeReply, (types.TokenizeTextRequest, types.TokenizeChatRequest)),
    ("POST", "/detokenize"): Described(replies.DetokenizeReply, types.DetokenizeRequest),
    ("GET", "/tokenizer_info"): Described(replies.TokenizerInfo),
    ("GET", "/load"): Described(Load),
    ("GET", "/health"): Described(ANY_JSON),
    ("GET", "/livez"): Described(ANY_JSON),
    ("GET", "/ping"): Described(ANY_JSON),
    ("GET", "/readyz"): Described(ANY_JSON),
    ("GET", "/version"): Described(ANY_JSON),
    ("GET", "/metrics"): Described(TEXT),
    ("GET", "/openapi.json"): Described(ANY_JSON),
    ("GET", "/docs"): Described("text/html"),
    ("GET", "/"): Described("text/html"),
    ("GET", "/ui/{name}"): Described("text/javascript"),
}
"""Every route; a test compares it with the server's own table."""

_REF = "#/components/schemas/{name}"
# responses/items.py reads the items by themselves, as a message may leave its type out
_KINDS = (*get_args(items.Item), items.ItemReference)
_ITEMS = [{"$ref": _REF.format(name=kind.__name__)} for kind in _KINDS]
_INPUT = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"anyOf": _ITEMS}}]}


async def show_openapi(services: Services, exchange: Exchange) -> Reply:
    """This description."""
    return Reply(_encoded(rows(services.routes)))


Row = tuple[str, str, str]
"""A route: method, path, docstring of its handler."""


def rows(routes: Iterable[Route]) -> tuple[Row, ...]:
    """What a description is made of."""
    return tuple(
        (method, route.path, route.endpoint.__doc__ or "")
        for route in routes
        for method in sorted((route.methods or set()) - {"HEAD"})
    )


@functools.cache  # it takes some 20 ms, and anyone may ask
def _encoded(rows: tuple[Row, ...]) -> bytes:
    return msgspec.json.encode(document(rows))


def document(rows: Iterable[Row]) -> dict[str, Any]:
    """The OpenAPI document of these routes."""
    rows = [row for row in rows if row[:2] in TABLE]
    told = [TABLE[method, path] for method, path, _ in rows]
    wanted = [kind for each in told for body in (each.request, each.reply, each.query) for kind in _types(body)]
    extra = [*_KINDS, ErrorBody, anthropic_replies.AnthropicErrorBody]
    _, schemas = msgspec.json.schema_components([*wanted, *extra], ref_template=_REF)
    for name in schemas.keys() & {"ResponsesRequest", "InputTokensRequest"}:
        schemas[name]["properties"]["input"] = _INPUT
    paths: dict[str, dict[str, Any]] = {}
    for method, matched, about in rows:
        path = re.sub(r":\w+\}", "}", matched)
        paths.setdefault(path, {})[method.lower()] = _operation(about, path, TABLE[method, matched], schemas)
    keys = {"type": "http", "scheme": "bearer"}, {"type": "apiKey", "in": "header", "name": "X-Api-Key"}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Octavo", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": _portable(schemas),
            "securitySchemes": dict(zip(("bearer", "x-api-key"), keys, strict=True)),
        },
        "security": [{}, {"bearer": []}, {"x-api-key": []}],
    }


def _types(body: Any) -> tuple[type[msgspec.Struct], ...]:
    if body is None or isinstance(body, str):
        return ()
    return body if isinstance(body, tuple) else (body,)


def _operation(about: str, path: str, told: Described, schemas: Mapping[str, Any]) -> dict[str, Any]:
    error = "AnthropicErrorBody" if path.startswith("/v1/messages") else "ErrorBody"
    content = _content(told.reply)
    if told.streams:
        content["text/event-stream"] = {"schema": {"description": "Server-sent events."}}  # no type: readers differ
    operation: dict[str, Any] = {
        "summary": about.strip().split("\n")[0].partition("; None ")[0],
        "responses": {
            "200": {"description": "The answer.", "content": content},
            "default": {"description": "What was wrong.", "content": {ANY_JSON: {"schema": _ref(error)}}},
        },
    }
    if told.request is not None:
        operation["requestBody"] = {"required": True, "content": _content(told.request)}
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"\{(\w+)\}", path)
    ]
    if told.query is not None:
        fields = schemas[told.query.__name__]["properties"]
        parameters += [{"name": name, "in": "query", "schema": schema} for name, schema in fields.items()]
    if parameters:
        operation["parameters"] = parameters
    return operation


def _content(kind: Any) -> dict[str, Any]:
    if kind == "multipart/form-data":
        file = {"type": "string", "format": "binary"}
        form = {"purpose": {"type": "string", "enum": ["batch"]}, "file": file}
        return {kind: {"schema": {"type": "object", "properties": form, "required": list(form)}}}
    if isinstance(kind, str):
        return {kind: {"schema": {} if kind == ANY_JSON else {"type": "string"}}}
    schemas, _ = msgspec.json.schema_components(_types(kind), ref_template=_REF)
    return {ANY_JSON: {"schema": schemas[0] if len(schemas) == 1 else {"anyOf": list(schemas)}}}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": _REF.format(name=name)}


def _portable(schema: Any) -> Any:
    """The schema with patterns as JSON Schema has them, where Python's own end of text is written otherwise."""
    if isinstance(schema, dict):
        return {
            key: value.replace("\\Z", "$") if key == "pattern" and isinstance(value, str) else _portable(value)
            for key, value in schema.items()
        }
    return [_portable(item) for item in schema] if isinstance(schema, list) else schema

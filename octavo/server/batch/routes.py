"""/v1/files and /v1/batches: what is uploaded, run, asked for and fetched."""

from __future__ import annotations

import time

import msgspec

from octavo.base.errors import InputError, UnsupportedError
from octavo.server.batch.batches import WINDOW_S
from octavo.server.batch.form import Field, parse_form
from octavo.server.batch.store import KEEP_S, Kept, new_name
from octavo.server.batch.types import (
    BatchList,
    BatchObject,
    BatchRequest,
    Deleted,
    ExpiresAfter,
    FileList,
    Query,
    RequestCounts,
)
from octavo.server.exchange import Exchange, Reply, json_reply
from octavo.server.openai.decode import decode, decode_query, explain
from octavo.server.openai.pages import page_reply
from octavo.server.services import Services

MAX_PAGE = {"files": 10_000, "batches": 100}
_FIELDS = ("purpose", "file", "expires_after[anchor]", "expires_after[seconds]")


async def upload_file(services: Services, exchange: Exchange) -> Reply:
    """Keep a file: a form with purpose ("batch") and file."""
    body = await services.traffic.read_body(exchange, kind=b"multipart/form-data")
    fields = parse_form(exchange.header(b"content-type") or b"", body)
    for name in fields:
        if name not in _FIELDS:
            raise InputError(f"unknown field {name[:40]!r}; leave it out", param=name)
    for name in ("purpose", "file"):
        if name not in fields:
            raise InputError(f"{name} is required", param=name)
    if fields["purpose"].text != "batch":
        raise UnsupportedError("this purpose is not supported: files are taken for 'batch'", param="purpose")
    made = services.batches.store.add_file(
        exchange.owner, fields["file"].content, filename=fields["file"].filename[:255], keep_s=_keep_s(fields)
    )
    return json_reply(made)


def _keep_s(fields: dict[str, Field]) -> int:
    names = ("anchor", "seconds")
    given = {name: field.text for name in names if (field := fields.get(f"expires_after[{name}]")) is not None}
    if not given:
        return KEEP_S
    try:
        return msgspec.convert(given, ExpiresAfter, strict=False).seconds
    except msgspec.ValidationError as error:
        raise explain(str(error), ExpiresAfter, where="expires_after") from None


async def list_files(services: Services, exchange: Exchange) -> Reply:
    """All files, the newest first, unless asked otherwise."""
    query = _query(exchange, "files")
    files = services.batches.store.files(exchange.owner)
    if query.purpose is not None:
        files = [file for file in files if file.purpose == query.purpose]
    return page_reply(FileList, files, query, limit=query.limit)


async def show_file(services: Services, exchange: Exchange) -> Reply:
    """What is known of a file."""
    return json_reply(services.batches.store.file(exchange.path_params["id"], exchange.owner))


async def fetch_file(services: Services, exchange: Exchange) -> None:
    """A file's content, as it is."""
    file = services.batches.store.file(exchange.path_params["id"], exchange.owner)
    exchange.watch()
    await exchange.send_file(services.batches.store.path(file.id), file.bytes)


async def delete_file(services: Services, exchange: Exchange) -> Reply:
    """Forget a file."""
    name = exchange.path_params["id"]
    services.batches.store.delete_file(name, exchange.owner)
    return json_reply(Deleted(name))


async def create_batch(services: Services, exchange: Exchange) -> Reply:
    """Begin a batch with the requests of a file."""
    if services.traffic.draining:
        services.check_ready()
    request = decode(await services.traffic.read_body(exchange), BatchRequest)
    if request.endpoint not in services.batches.urls:
        known = ", ".join(sorted(services.batches.urls))
        raise InputError(f"the endpoint must be one of {known}", param="endpoint")
    file = services.batches.store.file(request.input_file_id, exchange.owner, param="input_file_id")
    if file.purpose != "batch":
        raise InputError("the file is no upload with the purpose 'batch'", param="input_file_id")
    now = int(time.time())
    batch = BatchObject(
        id=new_name("batch"),
        endpoint=request.endpoint,
        input_file_id=file.id,
        completion_window=request.completion_window,
        created_at=now,
        expires_at=now + WINDOW_S,
        request_counts=RequestCounts(),
        metadata=request.metadata,
    )
    after = request.output_expires_after
    services.batches.add(
        Kept(owner=exchange.owner, batch=batch, keep_results_s=KEEP_S if after is None else after.seconds)
    )
    return json_reply(batch)


async def list_batches(services: Services, exchange: Exchange) -> Reply:
    """All batches, the newest first, unless asked otherwise."""
    query = _query(exchange, "batches")
    if query.purpose is not None:
        raise InputError("batches have no purpose", param="purpose")
    return page_reply(BatchList, services.batches.store.batches(exchange.owner), query, limit=query.limit)


async def show_batch(services: Services, exchange: Exchange) -> Reply:
    """How far a batch is, and its results' files."""
    return json_reply(_found(services, exchange).batch)


async def cancel_batch(services: Services, exchange: Exchange) -> Reply:
    """End a batch: its state is cancelling, and cancelled soon after."""
    kept = _found(services, exchange)
    services.batches.cancel(kept)
    return json_reply(kept.batch)


def _found(services: Services, exchange: Exchange) -> Kept:
    return services.batches.store.batch(exchange.path_params["id"], exchange.owner)


def _query(exchange: Exchange, what: str) -> Query:
    query = decode_query(exchange.query(), Query)
    if query.limit > MAX_PAGE[what]:
        raise InputError(f"limit may be at most {MAX_PAGE[what]}", param="limit")
    return query

"""Bodies of /v1/files and /v1/batches, as types; in this form they are kept on disk, too."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import msgspec
from msgspec import Meta

from octavo.server.openai.pages import Page, PageQuery
from octavo.server.openai.types import Identifier
from octavo.server.strict import Strict

BatchStatus = Literal[
    "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
]

Purpose = Literal["batch", "batch_output"]


class FileObject(msgspec.Struct, kw_only=True):
    """A file. Times are seconds since 1970."""

    id: str
    object: str = "file"
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: Purpose
    status: str = "processed"


class FileList(Page[FileObject], frozen=True, kw_only=True):
    """GET /v1/files."""


class Deleted(msgspec.Struct, frozen=True):
    """DELETE /v1/files/{id}."""

    id: str
    object: str = "file"
    deleted: bool = True


class ExpiresAfter(Strict, frozen=True, kw_only=True):
    """How long the results are kept."""

    anchor: Literal["created_at"]
    seconds: Annotated[int, Meta(ge=3600, le=30 * 86400)]


class BatchRequest(Strict, frozen=True, kw_only=True):
    """POST /v1/batches. endpoint: the route that all lines name."""

    REASONS: ClassVar[dict[str, str]] = {"completion_window": "batches begin at once and have 24h"}

    input_file_id: Identifier
    endpoint: Annotated[str, Meta(max_length=512)]
    completion_window: Literal["24h"]
    metadata: Annotated[dict[str, str], Meta(max_length=16)] | None = None
    output_expires_after: ExpiresAfter | None = None


class BatchFault(msgspec.Struct, frozen=True):
    """Why a batch could not begin or go on. line: of the input file, from 1."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


class BatchFaults(msgspec.Struct, frozen=True, kw_only=True):
    """A list of them."""

    object: str = "list"
    data: list[BatchFault]


class RequestCounts(msgspec.Struct):
    """Lines, those with a good answer, and those with an error."""

    total: int = 0
    completed: int = 0
    failed: int = 0


class BatchObject(msgspec.Struct, kw_only=True):
    """A batch. Times are seconds since 1970, null where it did not come to that."""

    id: str
    object: str = "batch"
    endpoint: str
    errors: BatchFaults | None = None
    input_file_id: str
    completion_window: str
    status: BatchStatus = "validating"
    output_file_id: str | None = None
    error_file_id: str | None = None
    created_at: int
    in_progress_at: int | None = None
    expires_at: int
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: RequestCounts
    metadata: dict[str, str] | None = None


class BatchList(Page[BatchObject], frozen=True, kw_only=True):
    """GET /v1/batches."""


class Query(PageQuery, frozen=True, kw_only=True):
    """What a list may be asked for. after: the last id of the page before."""

    limit: Annotated[int, Meta(ge=1, le=10_000)] = 100
    purpose: Identifier | None = None

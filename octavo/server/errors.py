"""An exception in; the HTTP answer that tells a client about it out. All routes and streams answer through here."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from http import HTTPStatus
from typing import Protocol

import msgspec

from octavo.base.errors import EndedByOperatorError, EngineDeadError, OctavoError, OverloadedError

log = logging.getLogger(__name__)

MAX_MESSAGE = 500  # characters; JSON takes at most 6 bytes for one, so a body stays under 4 kB
MAX_PARAM = 80
DONE = b"data: [DONE]\n\n"  # what OpenAI's streams end with
NAMED_EVENT = b"event: %b\ndata: %b\n\n"  # its kind and its JSON, as Responses and Anthropic have it


class HttpError(OctavoError):
    """A request that HTTP itself refuses: a wrong key, method, path, size or content type."""

    def __init__(self, status: int, message: str, *, kind: str, param: str | None = None) -> None:
        super().__init__(message, param=param)
        self.status = status
        self.kind = kind


class ClientGoneError(Exception):
    """The client closed its connection, or reads no more: nobody is left to answer."""


class ErrorDetail(msgspec.Struct, frozen=True):
    """OpenAI's error object; code is the HTTP status."""

    message: str
    type: str
    param: str | None
    code: int


class ErrorBody(msgspec.Struct, frozen=True):
    """What every error answer holds."""

    error: ErrorDetail


@dataclass(frozen=True)
class ErrorReply:
    """An error as status, what to tell about it, and the headers that belong to it."""

    status: int
    detail: ErrorDetail
    headers: tuple[tuple[bytes, bytes], ...] = ()


class ErrorForm(Protocol):
    """How a protocol tells an error: as a whole answer (status, body), or as the end of a stream that has begun."""

    def whole(self, told: ErrorReply) -> tuple[int, bytes]: ...
    def events(self, told: ErrorReply) -> bytes: ...


class OpenAIErrors:
    """OpenAI's error object as the body, or as a stream's last event before its end."""

    def whole(self, told: ErrorReply) -> tuple[int, bytes]:
        """Status and body."""
        return told.status, msgspec.json.encode(ErrorBody(told.detail))

    def events(self, told: ErrorReply) -> bytes:
        """The body as an event, and the end."""
        return b"data: " + msgspec.json.encode(ErrorBody(told.detail)) + b"\n\n" + DONE


def describe(error: BaseException, *, request_id: str) -> ErrorReply:
    """The answer to an error. One that nobody intended is logged under `request_id` and answered without detail."""
    if not isinstance(error, OctavoError):
        log.error("request %s failed unexpectedly", request_id, exc_info=error)
        error = OctavoError(f"internal error; the server's log has it under request {request_id}")
    elif error.status >= HTTPStatus.INTERNAL_SERVER_ERROR and not isinstance(error, OverloadedError):
        log.warning("request %s failed: %s", request_id, error.message)
    detail = ErrorDetail(
        message=_cut(error.message, MAX_MESSAGE),
        type=error.kind,
        param=None if error.param is None else _cut(error.param, MAX_PARAM),
        code=error.status,
    )
    return ErrorReply(error.status, detail, _headers(error))


def _headers(error: OctavoError) -> tuple[tuple[bytes, bytes], ...]:
    if isinstance(error, OverloadedError | EngineDeadError):
        return ((b"retry-after", str(max(1, error.retry_after)).encode()),)
    if isinstance(error, EndedByOperatorError):
        return ((b"x-should-retry", b"false"),)  # to the clients of OpenAI and Anthropic, which try a 500 again
    if error.status == HTTPStatus.UNAUTHORIZED:
        return ((b"www-authenticate", b"Bearer"),)
    return ()


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"

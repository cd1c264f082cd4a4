"""GET / and GET /ui/{name}: the files of static/, with the headers that bind a browser to them; 304 where it has one.

They hold no secret and answer without a key; what the page then asks for needs one like any other client's request.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from octavo.server.errors import HttpError
from octavo.server.exchange import Exchange, Reply
from octavo.server.services import Services

FOLDER = Path(__file__).parent / "static"
INDEX = "index.html"
PREFIX = "/ui/"

_KINDS = {
    ".html": b"text/html; charset=utf-8",
    ".css": b"text/css; charset=utf-8",
    ".js": b"text/javascript; charset=utf-8",
    ".svg": b"image/svg+xml",
}

# Nothing inline, nothing from elsewhere, no way from text to markup (trusted types): what a model writes stays text.
POLICY = b"; ".join(
    (
        b"default-src 'none'",
        b"script-src 'self'",
        b"style-src 'self'",
        b"connect-src 'self'",
        b"img-src 'self' data:",
        b"frame-ancestors 'none'",
        b"base-uri 'none'",
        b"form-action 'none'",
        b"require-trusted-types-for 'script'",
        b"trusted-types 'none'",
    )
)

# no-cache: kept, but asked about each time, so that the page never lags behind the server
_HEADERS = (
    (b"content-security-policy", POLICY),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-cache"),
)


@dataclass(frozen=True)
class File:
    """A file's bytes, its content type, and a tag that changes with the bytes."""

    body: bytes
    kind: bytes
    etag: bytes


@functools.cache
def files() -> Mapping[str, File]:
    """Every file by the path that it is served under; read once."""
    found = {}
    for path in sorted(FOLDER.iterdir()):
        if path.suffix in _KINDS:
            body = path.read_bytes()
            etag = b'"' + hashlib.sha256(body).hexdigest()[:20].encode() + b'"'
            served = "/" if path.name == INDEX else PREFIX + path.name
            found[served] = File(body, _KINDS[path.suffix], etag)
    return found


async def show(services: Services, exchange: Exchange) -> Reply:
    """The file at this path; 304 where the client names its tag, 404 where there is none."""
    file = files().get(exchange.path)
    if file is None:
        raise HttpError(404, "the page has no such file", kind="NotFoundError")
    headers = ((b"etag", file.etag), *_HEADERS)
    if _has(exchange.header_values(b"if-none-match"), file.etag):
        return Reply(b"", HTTPStatus.NOT_MODIFIED, file.kind, headers)
    return Reply(file.body, HTTPStatus.OK, file.kind, headers)


def _has(given: list[bytes], etag: bytes) -> bool:
    tags = {tag.strip().removeprefix(b"W/") for value in given for tag in value.split(b",")}
    return etag in tags or b"*" in tags

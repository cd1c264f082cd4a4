"""A multipart/form-data body (RFC 7578) in; its fields out."""

from __future__ import annotations

import re
from dataclasses import dataclass

from octavo.base.errors import InputError
from octavo.server.errors import HttpError

MAX_FIELDS = 16
MAX_BOUNDARY = 70
MAX_HEAD = 8192
# .NET's clients write quotes only where they must
_PARAM = re.compile(rb';\s*(name|filename)=(?:"((?:[^"\\\r\n]|\\[^\r\n]){0,512})"|([^\s";]{1,512}))', re.I)
# Within quotes: RFC 9110 puts a backslash before a quote, browsers write %22. Before other letters it is a path's own.
_ESCAPED = re.compile(rb'\\(["\\])|%22')


@dataclass(frozen=True)
class Field:
    """One field; filename is empty where none was told."""

    content: bytes
    filename: str = ""

    @property
    def text(self) -> str:
        """The content of a field that is text."""
        return self.content.decode(errors="replace")


def parse_form(content_type: bytes, body: bytes) -> dict[str, Field]:
    """Fields by name. HttpError 415 for another content type, InputError for a body that is not of this form."""
    boundary = _boundary(content_type)
    if not 1 <= len(boundary) <= MAX_BOUNDARY:
        raise HttpError(415, "send multipart/form-data with the fields purpose and file", kind="UnsupportedMediaType")
    first, *parts = (b"\r\n" + body).split(b"\r\n--" + boundary, MAX_FIELDS + 1)
    if first or not parts or not parts[-1].startswith(b"--"):
        raise InputError(f"the body is no multipart/form-data of at most {MAX_FIELDS} fields")
    fields: dict[str, Field] = {}
    for part in parts[:-1]:
        head, separator, content = part.partition(b"\r\n\r\n")
        if len(head) > MAX_HEAD:
            raise InputError(f"a field's headers are longer than {MAX_HEAD} bytes")
        params = {key.lower(): _plain(quoted) or bare for key, quoted, bare in _PARAM.findall(_disposition(head))}
        name = params.get(b"name", b"").decode(errors="replace")
        if not separator or not name or name in fields:
            raise InputError("a field of the form has no name, or one that came before")
        fields[name] = Field(content, params.get(b"filename", b"").decode(errors="replace"))
    return fields


def _boundary(content_type: bytes) -> bytes:
    kind, *params = content_type.split(b";")
    if kind.strip().lower() != b"multipart/form-data":
        return b""
    pairs = (param.partition(b"=") for param in params)
    return next((value.strip().strip(b'"') for name, _, value in pairs if name.strip().lower() == b"boundary"), b"")


def _plain(quoted: bytes) -> bytes:
    return _ESCAPED.sub(lambda found: found[1] or b'"', quoted)


def _disposition(head: bytes) -> bytes:
    lines = [line for line in head.split(b"\r\n") if line.lower().startswith(b"content-disposition: form-data")]
    return lines[0] if len(lines) == 1 else b""

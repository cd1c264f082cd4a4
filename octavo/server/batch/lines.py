"""Lines of OpenAI's batch JSONL: requests in, results out, and which of them a half-written output has already."""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from octavo.base.errors import InputError
from octavo.server.openai.decode import decode
from octavo.server.strict import Strict

MAX_LINES = 50_000  # OpenAI's own bound
_ROOM = 1 << 16  # of a line, beside its body
_BEGINNING = b'{"id":"batch_req_'  # of every line of results


class BatchLine(Strict, frozen=True, kw_only=True):
    """One request. body: as it would be sent to `url`."""

    custom_id: Annotated[str, Meta(min_length=1, max_length=512)]
    method: Literal["POST"]
    url: Annotated[str, Meta(max_length=512)]
    body: msgspec.Raw


class BatchError(msgspec.Struct, frozen=True):
    """Why a line has no good answer. code: the HTTP status where there is one."""

    code: str
    message: str


class BatchResponse(msgspec.Struct, frozen=True):
    """The route's answer."""

    status_code: int
    request_id: str
    body: msgspec.Raw


class BatchResult(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the output. An answer that is an error stands in both fields."""

    id: str
    custom_id: str
    response: BatchResponse | None
    error: BatchError | None


class LineError(InputError):
    """A line that is no request. number: counted from 1."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(f"line {number}: {message}", param=f"line {number}")
        self.number = number


def read_lines(path: Path, *, max_body_bytes: int, url: str | None = None) -> Iterator[BatchLine]:
    """The file's requests; empty lines and a byte order mark are passed over.

    url: the one that all must have. LineError for another one, for what is no request, and for a custom_id's second.
    """
    seen: set[str] = set()
    with path.open("rb") as file:
        number = 0
        while text := file.readline(max_body_bytes + _ROOM):
            number += 1
            if number == 1:
                text = text.removeprefix(codecs.BOM_UTF8)
            if not text.strip():
                continue
            if len(text) == max_body_bytes + _ROOM:
                raise LineError(number, f"longer than a request's {max_body_bytes} bytes")
            line = _decode(number, text)
            if line.custom_id in seen:
                raise LineError(number, f"the custom_id {line.custom_id[:80]!r} came before")
            if url is not None and line.url != url:
                raise LineError(number, f"the url is {line.url[:80]!r}, the batch's endpoint {url!r}")
            if len(seen) == MAX_LINES:
                raise LineError(number, f"a batch holds at most {MAX_LINES} requests; split it")
            seen.add(line.custom_id)
            yield line


def _decode(number: int, text: bytes) -> BatchLine:
    try:
        return decode(text, BatchLine)
    except InputError as error:
        raise LineError(number, error.message) from None


class _Done(msgspec.Struct):
    id: str
    custom_id: str
    response: msgspec.Raw
    error: msgspec.Raw = msgspec.Raw(b"null")


@dataclass(frozen=True)
class Done:
    """What an output holds. answers: custom_id -> whether it is a good one. end: where a torn last line begins."""

    answers: dict[str, bool]
    end: int


def read_done(path: Path) -> Done:
    """The answers of a batch that was broken off; the file stays as it is. InputError where it is no batch's output."""
    answers: dict[str, bool] = {}
    end = 0
    if not path.exists():
        return Done(answers, end)
    with path.open("r+b") as file:  # it is to be written, too
        for text in file:
            if not text.endswith(b"\n"):
                if not _is_torn(text):
                    raise _foreign(path)
                break
            try:
                row = msgspec.json.decode(text, type=_Done)
            except (msgspec.MsgspecError, UnicodeDecodeError):
                raise _foreign(path) from None
            answers[row.custom_id] = bytes(row.error) == b"null"
            end += len(text)
    return Done(answers, end)


def cut_off(path: Path, end: int) -> None:
    """Remove a torn last line: what comes after `end`, as `read_done` found it."""
    if path.exists() and path.stat().st_size > end:
        os.truncate(path, end)


def _is_torn(text: bytes) -> bool:
    """Whether it is the beginning of a line of results."""
    return text.startswith(_BEGINNING) or _BEGINNING.startswith(text)


def _foreign(path: Path) -> InputError:
    return InputError(f"{path} exists and is no output of a batch; name another file")

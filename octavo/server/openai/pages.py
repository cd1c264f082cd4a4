"""Rows in, a page of them as OpenAI's lists have it out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, Literal, Protocol, TypeVar

import msgspec

from octavo.base.errors import InputError
from octavo.server.exchange import Reply, json_reply
from octavo.server.openai.types import Identifier
from octavo.server.strict import Strict

Row = TypeVar("Row")


class Page(msgspec.Struct, Generic[Row], frozen=True, kw_only=True):
    """The rows, or a part of them; null ids where there are none."""

    object: str = "list"
    data: list[Row]
    first_id: str | None
    last_id: str | None
    has_more: bool


class PageQuery(Strict, frozen=True, kw_only=True):
    """What is listed. after: the last id of the page before."""

    after: Identifier | None = None
    order: Literal["asc", "desc"] = "desc"


class Listed(Protocol):
    """A row."""

    @property
    def id(self) -> str | None: ...


def page_reply(kind: type[Page[Any]], newest_first: Sequence[Listed], query: PageQuery, *, limit: int) -> Reply:
    """At most `limit` rows from where and in the order that the query asks for. InputError for an unknown `after`."""
    rows = list(newest_first) if query.order == "desc" else list(newest_first)[::-1]
    if query.after is not None:
        at = next((number for number, row in enumerate(rows, 1) if row.id == query.after), None)
        if at is None:
            raise InputError("after names nothing that is listed", param="after")
        rows = rows[at:]
    page = rows[:limit]
    first, last = (page[0].id, page[-1].id) if page else (None, None)
    return json_reply(kind(data=page, first_id=first, last_id=last, has_more=len(rows) > limit))

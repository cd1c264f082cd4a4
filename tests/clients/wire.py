"""A client's type and raw JSON in; where the JSON is not of that type, and fields that the type does not name, out.

Clients construct what they get without a look at it: a wrong answer fails where it is used, or nowhere. Here nothing is
coerced, what is required is there, and each value of a Literal and each tag of a union is one that is known.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Sequence
from datetime import datetime
from enum import Enum
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

_UNKNOWN = " is not known"
_PLAIN = {str: (str,), int: (int,), float: (int, float), bool: (bool,), type(None): (type(None),)}


def faults(kind: Any, value: Any) -> list[str]:
    """What is wrong with the value: its place, and what."""
    return [told for told in _walk(kind, value, "") if not told.endswith(_UNKNOWN)]


def unknown(kind: Any, value: Any) -> set[str]:
    """Places of fields that the type does not name."""
    return {told.removesuffix(_UNKNOWN) for told in _walk(kind, value, "") if told.endswith(_UNKNOWN)}


def _walk(kind: Any, value: Any, where: str, notes: Sequence[Any] = ()) -> Iterator[str]:
    origin = get_origin(kind)
    if origin is Annotated:
        kind, *notes = get_args(kind)
        yield from _walk(kind, value, where, notes)
    elif origin in (Union, types.UnionType):
        yield from _union(get_args(kind), value, where, notes)
    elif origin is Literal or (isinstance(kind, type) and issubclass(kind, Enum)):
        known = get_args(kind) or [one.value for one in kind]
        if not any(value == one and type(value) is type(one) for one in known):
            yield f"{where} is {value!r}, not one of {known}"
    elif isinstance(kind, type) and issubclass(kind, BaseModel):
        yield from _model(kind, value, where)
    elif kind not in (Any, object):
        yield from _value(kind, value, where)


def _value(kind: Any, value: Any, where: str) -> Iterator[str]:
    origin, inner = get_origin(kind), get_args(kind)
    if origin is list and isinstance(value, list):
        for item in value:
            yield from _walk(inner[0], item, f"{where}[]")
    elif origin is dict and isinstance(value, dict):
        for item in value.values():
            yield from _walk(inner[1], item, f"{where}{{}}")
    elif kind is datetime and isinstance(value, str):
        datetime.fromisoformat(value)
    elif type(value) not in _PLAIN.get(kind, ()):
        yield f"{where} is {value!r:.60}, not {kind}"


def _model(kind: type[BaseModel], value: Any, where: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{where} is {value!r:.60}, not a {kind.__name__}"
        return
    fields = {field.alias or name: field for name, field in kind.model_fields.items()}
    for name, field in fields.items():
        if name in value:
            yield from _walk(field.annotation, value[name], f"{where}.{name}", field.metadata)
        elif field.is_required():
            yield f"{where}.{name} of {kind.__name__} is missing"
    yield from (f"{where}.{name}{_UNKNOWN}" for name in value.keys() - fields.keys())


def _union(members: tuple[Any, ...], value: Any, where: str, notes: Sequence[Any]) -> Iterator[str]:
    """Of the member that the value's tag names; where there are no tags, of the one that fits best."""
    if value is None and type(None) in members:
        return
    tag = next((name for note in notes if (name := _tag_field(note))), None)
    if tag is not None:
        told = value.get(tag) if isinstance(value, dict) else None
        members = tuple(one for one in _models(members) if told in get_args(one.model_fields[tag].annotation))
        if not members:
            yield f"{where}.{tag} is {told!r}, which no member of the union has"
            return
    tried = [list(_walk(one, value, where)) for one in members if one is not type(None)]
    yield from min(tried, key=lambda told: (sum(not one.endswith(_UNKNOWN) for one in told), len(told)))


def _tag_field(note: Any) -> str | None:
    """By what OpenAI's and Anthropic's clients note down beside a union."""
    name: str | None = getattr(note, "discriminator", None) or getattr(note, "field_name", None)
    return name


def _models(members: tuple[Any, ...]) -> Iterator[type[BaseModel]]:
    for one in members:
        if get_origin(one) is not None:
            yield from _models(get_args(one)[: 1 if get_origin(one) is Annotated else None])
        elif isinstance(one, type) and issubclass(one, BaseModel):
            yield one

"""A request's body in; a typed request out, or an InputError that names the field, what was wrong and the remedy."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import msgspec
from msgspec import inspect

from octavo.base.errors import InputError, UnsupportedError
from octavo.base.near import nearest
from octavo.server.openai.refused import REASONS, UnsupportedFields

T = TypeVar("T", bound=msgspec.Struct)

_UNKNOWN = "Object contains unknown field `"
_MISSING = "Object missing required field `"
_NO_CHOICE = ("Invalid enum value", "Invalid value")
_SUGGEST_UP_TO = 40  # characters of an unknown name that a likely one is sought for
_SHOWN = 200  # characters of a client's own text in a message


@functools.cache
def _decoder(kind: type[Any]) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(kind)


def decode(body: bytes, kind: type[T]) -> T:
    """The body as `kind`."""
    try:
        request: T = _decoder(kind).decode(body)
    except msgspec.ValidationError as error:
        raise explain(str(error), kind) from None
    except msgspec.DecodeError as error:
        raise InputError(f"the body is not valid JSON: {str(error)[:_SHOWN]}") from None
    except UnicodeDecodeError:
        raise InputError("the body is not valid JSON: it is not UTF-8 text") from None
    except RecursionError:
        raise InputError("the body's JSON nests too deeply") from None
    return request


def decode_query(query: Mapping[str, object], kind: type[T]) -> T:
    """A URL's query as `kind`."""
    try:
        return msgspec.convert(query, kind, strict=False)
    except msgspec.ValidationError as error:
        raise explain(str(error), kind) from None


def explain(text: str, kind: type[msgspec.Struct], *, where: str = "") -> InputError:
    """An InputError made of msgspec's message, `what - at `$.path``.

    kind: what was read; its REASONS tell why fields are not supported.  where: its path in the body.
    """
    what, path = text, ""
    head, found, tail = text.rpartition(" - at ")
    if found and "`$" in tail:
        what, path = head, tail.partition("`$")[2].rstrip("`").replace("[...]", "").lstrip(".")
    choices = _choices(kind, path) if what.startswith(_NO_CHOICE) else []
    path = _joined(where, path) if path else where
    reasons: Mapping[str, str] = getattr(kind, "REASONS", REASONS)
    if what.startswith(_UNKNOWN):
        return _unknown(what[len(_UNKNOWN) : -1], path, kind)
    if what.startswith(_MISSING):
        name = _joined(path, what[len(_MISSING) : -1])
        return InputError(f"{name} is required", param=name)
    top = re.match(r"\w*", path)
    if top is not None and top[0] in reasons:
        name = top[0]
        return UnsupportedError(f"this value of {path} is not supported: {reasons[name]}", param=name)
    if re.search(r"\.(content|output)\[\d+\]\.type$", path):
        kind_of = what.removeprefix("Invalid value ")[:_SHOWN]
        return UnsupportedError(f"{path}: content of type {kind_of} is not supported; send text", param=path)
    reason = what.replace("`", "").replace(" | null", "")[:_SHOWN]
    if choices:
        reason += f"; send {' or '.join(choices)}"
    if not path:
        return InputError(f"the body: {reason}")
    which = "in a key, " if tail.startswith("`key`") else ""
    return InputError(f"{path}: {which}{reason[:1].lower()}{reason[1:]}", param=path)


def _choices(kind: type[msgspec.Struct], path: str) -> list[str]:
    """The values that the field at `path` may have, where they are words."""
    found: list[inspect.Type] = [_type_info(kind)]
    words: list[Any] = []
    for name in re.findall(r"[A-Za-z_]\w*", path):
        structs = [one for one in found if isinstance(one, inspect.StructType)]
        words = [one.tag for one in structs if one.tag_field == name]
        fields = [field for one in structs for field in one.fields if field.encode_name == name]
        found = [part for field in fields for part in _parts(field.type)]
    words += [value for one in found if isinstance(one, inspect.LiteralType) for value in one.values]
    return [repr(word) for word in dict.fromkeys(words)]


@functools.cache
def _type_info(kind: type[msgspec.Struct]) -> inspect.Type:
    """Of a request's type: it takes milliseconds to find."""
    return inspect.type_info(kind)


def _parts(kind: inspect.Type) -> Iterator[inspect.Type]:
    """What a field of this type, or an element of it, may be."""
    if isinstance(kind, inspect.UnionType):
        for one in kind.types:
            yield from _parts(one)
    elif isinstance(kind, inspect.Metadata):
        yield from _parts(kind.type)
    elif isinstance(kind, inspect.ListType):
        yield from _parts(kind.item_type)
    else:
        yield kind


def _unknown(name: str, path: str, kind: type[msgspec.Struct]) -> InputError:
    shown = name[:_SUGGEST_UP_TO]
    hint = "leave it out"
    if not path and name == shown:
        refused = UnsupportedFields.__struct_fields__
        near = nearest(name, kind.__struct_fields__, refused=refused)
        hint = f"did you mean {near!r}?" if near else hint
    where = f" in {path}" if path else ""
    return InputError(f"unknown field {shown!r}{where}; {hint}", param=_joined(path, shown))


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path and not name.startswith("[") else path + name

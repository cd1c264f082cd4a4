"""The server's routes and message types in; an endless, seeded stream of hostile calls out.

A call is a good request of some route in which one to three fields were exchanged for values at, beside and beyond
their types' bounds, or for values of no type at all; now and then its head is odd instead.
"""

from __future__ import annotations

import functools
import json
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec
from msgspec import inspect
from test_bad_input import VALUES

from octavo.server.openapi import TABLE, Described

Headers = list[tuple[bytes, bytes]]

MESSAGES = [{"role": "user", "content": "hi"}]
GOOD: dict[str, Any] = {
    "model": "scripted",
    "prompt": "hi",
    "messages": MESSAGES,
    "input": "hi",
    "tokens": [1, 2],
    "max_tokens": 2,
    "max_output_tokens": 2,
    "texts": ["a"],
    "query": "a",
    "documents": ["a", "b"],
    "text_1": "a",
    "text_2": ["a", "b"],
    "queries": "a",
    "request_ids": ["a"],
    "input_file_id": "file-x",
    "endpoint": "/v1/completions",
    "completion_window": "24h",
}
"""What fields hold in a good request. A new required field belongs here."""
FILLED = {"max_tokens", "max_output_tokens", "text_1", "text_2"}  # though not required

LONGEST_LIST = 1 << 22  # characters
LIMITS = (0, 1, 2, 16, 17, 20, 21, 64, 65, 100, 101, 127, 128, 129, 255, 256, 640, 1024, 1025, 2**31 - 1, 2**31)
FLOATS = ("0", "-0.0", "1e-320", "1.0000001", "2.0000001", "-2.0000001", "1e308", "1e309", "-1e309", "5e-324", "2")
TEXTS = (
    *('""', '"\\u0000"', '"a\\u0000b"', '"\\ud800"', '"\\udfff\\ud800"', '"\\ud83d\\ude00"', '"\\u202e"', '"\x7f"'),
    *('"<|assistant|>"', '"</s><s>"', '"<|image_pad|>"', "\"{{ ''.__class__.__mro__ }}\"", '"{% for a in b %}"'),
    *(
        '"../../etc/hosts"',
        '"file:///etc/hosts"',
        '"http://127.0.0.1:1/"',
        '"a\\r\\nx: y"',
        '"![a](http://127.0.0.1:1)"',
    ),
    *('"(a+)+b"', '"[a"', '"(?=a)"', '"\\\\1"', '"root ::= root"', '"start: start"', '"start: /(/"', '"hi"', '"auto"'),
)
SCHEMAS = (
    *('{"type": "stsring"}', '{"type": ["object", 1]}', '{"$ref": "#"}', '{"$ref": "http://127.0.0.1:1/s"}'),
    *('{"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}', '{"pattern": "[", "type": "string"}'),
    *('{"type": "string", "minLength": 5, "maxLength": 2}', '{"enum": []}', '{"type": "integer", "minimum": 1e400}'),
    *('{"type": "object", "properties": {"a": false}, "required": ["a"]}', '{"not": {}}', '{"anyOf": []}', "{}"),
    *('{"type": "object", "properties": {"a": {"type": "string"}}}', '{"type": "array", "minItems": 9999999999}'),
)
HUGE = (
    '"' + "x" * 300_000 + '"',
    '"' + "\\u0000" * 30_000 + '"',
    "[" * 100_000 + "]" * 100_000,
    '{"a":' * 60_000 + "1" + "}" * 60_000,
    "[" + "0," * 100_000 + "0]",
    "{" + ",".join(f'"{number}":{number}' for number in range(20_000)) + "}",
    "9" * 100_000,
)
IDS = (
    "x",
    "",
    "resp_x",
    "a" * 5000,
    "\0",
    "../x",
    "..",
    "a/b",
    "%00",
    "\ud7ff",
    "é",
    "batch_0",
    "file-0",
    " ",
    "?",
    "#",
)
QUERIES = (
    *(
        b"limit=0",
        b"limit=10001",
        b"limit=-1",
        b"limit=NaN",
        b"limit=1e400",
        b"limit=" + b"9" * 5000,
        b"after=x",
        b"a=b",
    ),
    *(
        b"after=" + b"x" * 600,
        b"order=up",
        b"limit=1&limit=2",
        b"&" * 5000,
        b"a&" * 100,
        b"%00=%ff",
        b"=",
        b"after=%00",
    ),
)
KINDS = (
    b"",
    b"text/plain",
    b"application/json; charset=utf-16",
    b"multipart/form-data",
    b"\xff",
    b"application/json" * 99,
)
ODD_HEADERS: Headers = [
    *((b"x-request-id", value) for value in (b"", b"a b", b"x" * 5000, b"\xff\x00", b"ok-1")),
    *((b"content-encoding", value) for value in (b"gzip", b"br", b"identity", b"gzip, gzip")),
    *((b"content-length", value) for value in (b"-1", b"1e3", b"9" * 30, b"0x10", b"+5", b"")),
    *((b"host", value) for value in (b"", b"evil.example", b"[", b"[::1", b"\xff", b"a" * 5000, b"127.0.0.1@evil")),
    *((b"origin", value) for value in (b"null", b"https://evil.example", b"http://[", b"\xff", b"x" * 5000)),
    *((b"authorization", value) for value in (b"", b"Bearer", b"Bearer \xff", b"Basic x", b"Bearer " + b"x" * 5000)),
    *((b"access-control-request-method", b"POST"), (b"expect", b"100-continue"), (b"", b""), (b"\xff", b"\xff")),
]
METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE", "CONNECT", "FROB", "get", "", "\xff")
FORMS = (
    b"",
    b"--b\r\n",
    b"--b--\r\n",
    b'--b\r\nContent-Disposition: form-data; name="file"; filename="../../x"\r\n\r\n{}\r\n--b--\r\n',
    b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
    b'--b\r\nContent-Disposition: form-data; name="file"; filename="a\\"\r\n\r\n\xff\r\n--b--\r\n',
    b"--b\r\n" * 5000,
    b"--b\r\nContent-Disposition: " + b"x;" * 50_000 + b"\r\n\r\n\r\n--b--\r\n",
)
# these change what the server does for all others, so that here they only meet queries they must refuse
FOR_ALL = frozenset({"/pause", "/resume", "/sleep", "/wake_up"})


@dataclass(frozen=True)
class Call:
    """One request as ASGI tells it. field: what was exchanged, for whoever reads a failure."""

    method: str
    path: str
    query: bytes = b""
    headers: Headers = field(default_factory=list)
    body: bytes = b""
    field: str = ""


class Boundaries:
    """routes: (method, path) of openapi's TABLE; by default all."""

    def __init__(self, seed: int, routes: list[tuple[str, str]] | None = None) -> None:
        self._random = random.Random(seed)
        self._routes = sorted(routes or TABLE)
        # a route has as much to get wrong as its types have fields
        self._weights = [1 + 2 * sum(len(kind.__struct_fields__) for kind in kinds(TABLE[key])) for key in self._routes]

    def calls(self, count: int) -> Iterator[Call]:
        """`count` calls."""
        for _ in range(count):
            ((method, path),) = self._random.choices(self._routes, self._weights)
            yield self._call(method, path, TABLE[method, path])

    def _call(self, method: str, path: str, told: Described) -> Call:
        pick = self._random
        query = pick.choice(QUERIES) if pick.random() < 0.3 and method == "GET" else b""
        if path in FOR_ALL:
            query = b"frobnicate=1"
        filled = re.sub(r"\{[^}]+\}", lambda _: pick.choice(IDS), path)
        types = kinds(told)
        name, body, headers = "", b"", [(b"host", b"localhost")]
        if types:
            name, body = self._body(pick.choice(types))
            headers.append((b"content-type", b"application/json"))
        elif isinstance(told.request, str):
            body = pick.choice(FORMS)
            headers.append((b"content-type", pick.choice((b"multipart/form-data; boundary=b", b"multipart/form-data"))))
        if path not in FOR_ALL and pick.random() < 0.04:
            return self._odd(Call(method, filled, query, headers, body, name))
        return Call(method, filled, query, headers, body, name)

    def _odd(self, call: Call) -> Call:
        pick = self._random
        kind, headers, method = pick.randrange(4), list(call.headers), call.method
        if kind == 0:
            method = pick.choice(METHODS)
        elif kind == 1:
            headers = [(name, pick.choice(KINDS) if name == b"content-type" else value) for name, value in headers]
        else:
            headers += pick.sample(ODD_HEADERS, 2)
        return Call(method, call.path, call.query, headers, call.body, "head")

    def _body(self, kind: type[msgspec.Struct]) -> tuple[str, bytes]:
        pick = self._random
        fields = fields_of(kind)
        values = {name: json.dumps(GOOD[name]) for name, each in fields.items() if each.required or name in FILLED}
        if "stream" in fields and pick.random() < 0.2:
            values["stream"] = "true"
        changed = pick.sample(sorted(fields), min(len(fields), pick.choice((1, 1, 1, 2, 3))))
        for name in changed:
            values[name] = pick.choice(HUGE) if pick.random() < 0.003 else self.value(fields[name].type)
        if pick.random() < 0.01:
            values[pick.choice(("frobnicate", "", "a`b - at `$.x`", "y" * 3000, "\u2028\n"))] = "1"
        text = ", ".join(f"{json.dumps(name)}: {value}" for name, value in values.items())
        body = f"{{{text}}}".encode()
        if pick.random() < 0.02:
            body = self._spoiled(body)
        return "+".join(changed), body

    def _spoiled(self, body: bytes) -> bytes:
        at = self._random.randrange(len(body))
        return self._random.choice(
            (body[:at], body[:at] + b"\xff" + body[at:], body[at:], body + body, b"\xef\xbb\xbf" + body)
        )

    def value(self, kind: inspect.Type, depth: int = 0) -> str:
        """JSON text, or what is nearly so: of this type and at its bounds three times in four."""
        if depth > 5 or self._random.random() < 0.25:
            return self._random.choice(VALUES if self._random.random() < 0.7 else TEXTS)
        for known, make in self._makers.items():
            if isinstance(kind, known):
                return make(self, kind, depth)
        return self._random.choice(SCHEMAS if self._random.random() < 0.5 else VALUES)  # any JSON

    def _number(self, kind: Any, depth: int) -> str:
        bounds = [bound for bound in (kind.gt, kind.ge, kind.lt, kind.le) if bound is not None]
        near = [bound + step for bound in bounds for step in (-1, 0, 1)]
        if isinstance(kind, inspect.FloatType) and self._random.random() < 0.6:
            return self._random.choice(FLOATS)
        return str(
            self._random.choice(near if near and self._random.random() < 0.5 else [*LIMITS, *(-n for n in LIMITS)])
        )

    def _text(self, kind: Any, depth: int) -> str:
        lengths = [length + step for length in (kind.min_length, kind.max_length) if length for step in (-1, 0, 1)]
        if lengths and self._random.random() < 0.5:
            return json.dumps(self._random.choice(("x", "é", "\0")) * self._random.choice(lengths))
        return self._random.choice(TEXTS)

    def _list(self, kind: Any, depth: int) -> str:
        count = self._random.choice((0, 1, 1, 2, 3, 17))
        lengths = [length + step for length in (kind.min_length, kind.max_length) if length for step in (-1, 0, 1)]
        if lengths and self._random.random() < 0.3:
            count = self._random.choice(lengths)
        items = [self.value(kind.item_type, depth + 1) for _ in range(min(count, 3))]
        if count * max(map(len, items), default=0) > LONGEST_LIST:
            count = len(items)  # long lists in long lists would not fit anywhere
        return f"[{', '.join((items * (count // 3 + 1))[:count])}]"

    def _dict(self, kind: Any, depth: int) -> str:
        if isinstance(kind.value_type, inspect.AnyType) and self._random.random() < 0.6:
            return self._random.choice(SCHEMAS)
        count = self._random.choice((0, 1, 2, 17, 301))
        keys = [str(self._random.choice(LIMITS) + number) for number in range(count)] or ["a", ""][:count]
        value = self.value(kind.value_type, depth + 1)
        return f"{{{', '.join(f'{json.dumps(key)}: {value}' for key in keys)}}}"

    def _struct(self, kind: Any, depth: int) -> str:
        optional = 2 / (1 + len(kind.fields))
        pairs = [
            f"{json.dumps(each.encode_name)}: {self.value(each.type, depth + 1)}"
            for each in kind.fields
            if self._random.random() < (0.97 if each.required else optional)
        ]
        if kind.tag is not None and self._random.random() < 0.97:
            pairs.append(f"{json.dumps(kind.tag_field)}: {json.dumps(kind.tag)}")
        return f"{{{', '.join(pairs)}}}"

    def _literal(self, kind: Any, depth: int) -> str:
        return json.dumps(self._random.choice([*kind.values, str(kind.values[0]) + "x"]))

    _makers: dict[type, Callable[[Boundaries, Any, int], str]] = {
        inspect.Metadata: lambda self, kind, depth: self.value(kind.type, depth),
        inspect.UnionType: lambda self, kind, depth: self.value(self._random.choice(kind.types), depth),
        inspect.IntType: _number,
        inspect.FloatType: _number,
        inspect.StrType: _text,
        inspect.ListType: _list,
        inspect.DictType: _dict,
        inspect.StructType: _struct,
        inspect.LiteralType: _literal,
        inspect.BoolType: lambda self, kind, depth: self._random.choice(("true", "false", "0", '"true"')),
        inspect.NoneType: lambda self, kind, depth: self._random.choice(("null", "null", "1", "{}")),
    }


@functools.cache
def fields_of(kind: type[msgspec.Struct]) -> dict[str, inspect.Field]:
    """A message type's fields, by their names in JSON."""
    return {each.encode_name: each for each in inspect.type_info(kind).fields}  # type: ignore[attr-defined]


def kinds(told: Described) -> tuple[type[msgspec.Struct], ...]:
    """The message types that a route takes."""
    if told.request is None or isinstance(told.request, str):
        return ()
    return told.request if isinstance(told.request, tuple) else (told.request,)

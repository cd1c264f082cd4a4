"""The OpenAPI document in; GET /docs out: a page for people, in which nothing is fetched and nothing runs."""

from __future__ import annotations

import base64
import functools
import hashlib
from html import escape
from typing import Any

import msgspec

from octavo.server.exchange import Exchange, Reply
from octavo.server.openapi import ANY_JSON, Row, document, rows
from octavo.server.services import Services

_STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}
html{color-scheme:light dark}
summary{cursor:pointer;padding:.2rem 0}code{font-size:90%}b{display:inline-block;min-width:4.5rem}
table{border-collapse:collapse;margin:.3rem 0 1rem}
td{border-top:1px solid #8884;padding:.2rem .7rem;vertical-align:top}"""
_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_HEADERS = (
    (b"content-security-policy", f"default-src 'none'; style-src 'sha256-{_HASH}'; frame-ancestors 'none'".encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)


async def show_docs(services: Services, exchange: Exchange) -> Reply:
    """All routes and their fields, for people."""
    return Reply(_page(rows(services.routes)), content_type=b"text/html; charset=utf-8", headers=_HEADERS)


@functools.cache
def _page(rows: tuple[Row, ...]) -> bytes:
    return render(document(rows)).encode()


def render(spec: dict[str, Any]) -> str:
    """The document as HTML."""
    operations = [
        _operation_html(method.upper(), path, operation)
        for path, methods in spec["paths"].items()
        for method, operation in methods.items()
    ]
    schemas = [_schema_html(name, schema) for name, schema in spec["components"]["schemas"].items()]
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Octavo API</title><style>{_STYLE}</style>'
        f"<h1>Octavo {escape(spec['info']['version'])}</h1><p>The same for programs: "
        '<a href="/openapi.json">openapi.json</a></p><h2>Routes</h2>'
        f"{''.join(operations)}<h2>Types</h2>{''.join(schemas)}</html>"
    )


def _operation_html(method: str, path: str, operation: dict[str, Any]) -> str:
    takes = _content_html(operation["requestBody"]["content"]) if "requestBody" in operation else "nothing"
    query = [each["name"] for each in operation.get("parameters", []) if each["in"] == "query"]
    asked = f"<tr><td>query<td><code>{escape(', '.join(query))}</code>" if query else ""
    gives = _content_html(operation["responses"]["200"]["content"])
    return (
        f"<details><summary><b>{method}</b> <code>{escape(path)}</code> {escape(operation['summary'])}</summary>"
        f"<table><tr><td>takes<td>{takes}{asked}<tr><td>gives<td>{gives}</table></details>"
    )


def _content_html(content: dict[str, Any]) -> str:
    return ", ".join(
        _kind_html(body["schema"]) if kind == ANY_JSON and body["schema"] else escape(kind)
        for kind, body in content.items()
    )


def _schema_html(name: str, schema: dict[str, Any]) -> str:
    required = schema.get("required", [])
    rows = [
        f"<tr><td><code>{escape(field)}</code><td>{_kind_html(kind)}<td>{'required' if field in required else ''}"
        for field, kind in schema.get("properties", {}).items()
    ]
    told = escape(schema.get("description", "")).replace("\n", "<br>")
    return (
        f'<details id="{escape(name)}"><summary><code>{escape(name)}</code></summary><p>{told}</p>'
        f"<table>{''.join(rows)}</table></details>"
    )


def _kind_html(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    if "anyOf" in schema:
        return " or ".join(_kind_html(kind) for kind in schema["anyOf"])
    if "enum" in schema:
        return " or ".join(f"<code>{escape(msgspec.json.encode(value).decode())}</code>" for value in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_kind_html(schema.get('items', {}))}"
    return escape(str(schema.get("type", "anything")))

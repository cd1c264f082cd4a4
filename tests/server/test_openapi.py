"""/openapi.json and /docs tell every route, and nothing that is not so; /load and /tokenizer_info."""

from __future__ import annotations

import re
from typing import Any

import pytest
from fake_llm import BOS, EOS, FakeLLM
from serving import LiveServer
from test_bad_input import FIELDS, ROUTES, check_form

from octavo.server.openapi import TABLE, document


@pytest.fixture(scope="module")
def spec(shared: LiveServer) -> dict[str, Any]:
    answer = shared.client.get("/openapi.json")
    assert answer.status_code == 200
    return answer.json()  # type: ignore[no-any-return]


def test_every_route_is_described(shared: LiveServer, spec: dict[str, Any]) -> None:
    served = {(method, route.path) for route in shared.app.routes for method in (route.methods or set()) - {"HEAD"}}
    assert served <= TABLE.keys(), "describe it in octavo/server/openapi.py"
    told = {(method.upper(), path) for path, methods in spec["paths"].items() for method in methods}
    assert told == {(method, path.replace(":path", "")) for method, path in served}
    for methods in spec["paths"].values():
        assert all(operation["summary"] for operation in methods.values())


def references(value: Any) -> set[str]:
    if isinstance(value, dict):
        own = {value["$ref"]} if "$ref" in value else set()
        return own.union(*map(references, value.values()))
    return set().union(*map(references, value)) if isinstance(value, list) else set()


def test_references_and_patterns_hold(spec: dict[str, Any]) -> None:
    schemas = spec["components"]["schemas"]
    assert {name.rpartition("/")[2] for name in references(spec)} <= schemas.keys()
    assert references(spec["components"]["schemas"]["ResponsesRequest"]) >= {"#/components/schemas/MessageItem"}
    patterns = re.findall(r'"pattern": "([^"]*)"', str(spec).replace("'", '"'))
    assert patterns
    assert not [pattern for pattern in patterns if "\\Z" in pattern]


def kind_of(spec: dict[str, Any], path: str) -> dict[str, Any]:
    schema = spec["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    names = [schema, *schema.get("anyOf", [])]
    found: dict[str, Any] = {}
    for name in names:
        if "$ref" in name:
            found |= spec["components"]["schemas"][name["$ref"].rpartition("/")[2]]["properties"]
    return found


@pytest.mark.parametrize("path", sorted({path for path, _, _ in ROUTES}))
def test_the_fields_are_the_ones_that_are_taken(spec: dict[str, Any], path: str) -> None:
    assert set(kind_of(spec, path)) == {name for other, name, _ in FIELDS if other == path}


def test_the_page(shared: LiveServer, spec: dict[str, Any]) -> None:
    answer = shared.client.get("/docs")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert not re.search(r"<script|<link|<img|https?://|style=| on\w+=", answer.text)
    for path in spec["paths"]:
        assert f"<code>{path}</code>" in answer.text
    names = set(re.findall(r'href="#(\w+)"', answer.text))
    assert names
    assert names <= set(re.findall(r'id="(\w+)"', answer.text))


def test_only_routes_that_are_there() -> None:
    assert document([])["paths"] == {}


def test_load_and_tokenizer(shared: LiveServer, llm: FakeLLM) -> None:
    assert shared.client.get("/load").json() == {
        "server_load": 0,
        "num_requests_running": shared.llm.stats.num_running,
        "num_requests_waiting": 0,
        "kv_cache_usage_perc": 0.0,
    }
    info = shared.client.get("/tokenizer_info").json()
    assert (info["bos_token"], info["eos_token"], info["pad_token"]) == ("<bos>", "<eos>", None)
    assert (info["model_max_length"], info["vocab_size"], info["eos_token_ids"]) == (512, 258, [EOS])
    assert info["special_tokens"] == {"<bos>": BOS, "<eos>": EOS}
    llm.tokenizer = None  # type: ignore[assignment]
    with LiveServer(llm) as textless:
        check_form(textless.client.get("/tokenizer_info"))

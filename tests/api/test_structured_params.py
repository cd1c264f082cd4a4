"""StructuredOutputsParams checks itself, and travels inside a Request."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from octavo import SamplingParams, StructuredOutputsParams
from octavo.base.errors import InputError
from octavo.base.types.request import Request

GIVEN: list[dict[str, Any]] = [
    {"json": {"type": "object"}, "disable_any_whitespace": True},
    {"json": '{"type": "object"}', "whitespace_pattern": " ?"},
    {"regex": "[a-z]+"},
    {"choice": ["yes", "no"]},
    {"grammar": 'start: "a"'},
    {"json_object": True},
    {"structural_tag": '{"structures": [], "triggers": []}'},
]


@pytest.mark.parametrize("values", GIVEN)
def test_survives_the_socket(values: dict[str, Any]) -> None:
    params = SamplingParams(structured_outputs=StructuredOutputsParams(**values))
    request = Request(request_id="a", prompt_token_ids=[1], params=params, max_tokens=1, seed=0)
    back = msgspec.msgpack.Decoder(Request).decode(msgspec.msgpack.encode(request))
    assert back == request


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({}, ""),
        ({"json": {}, "regex": "a"}, ""),
        ({"json": 3}, ".json"),
        ({"json": ""}, ".json"),
        ({"regex": ["a"]}, ".regex"),
        ({"regex": "a" * ((1 << 20) + 1)}, ".regex"),
        ({"json": {"maximum": 10**30}}, ".json"),
        ({"json": {"const": {1, 2}.__class__}}, ".json"),
        ({"regex": "\ud800"}, ".regex"),
        ({"choice": []}, ".choice"),
        ({"choice": ["a", ""]}, ".choice"),
        ({"choice": "ab"}, ".choice"),
        ({"choice": ["a"] * 1025}, ".choice"),
        ({"json_object": False}, ".json_object"),
        ({"regex": "a", "disable_any_whitespace": True}, ".disable_any_whitespace"),
        ({"json": {}, "disable_any_whitespace": 1}, ".disable_any_whitespace"),
        ({"json": {}, "disable_any_whitespace": True, "whitespace_pattern": " "}, ".whitespace_pattern"),
    ],
)
def test_bad_values_are_named(values: dict[str, Any], field: str) -> None:
    with pytest.raises(InputError) as caught:
        StructuredOutputsParams(**values)
    assert caught.value.param == "structured_outputs" + field


def test_must_be_the_type() -> None:
    with pytest.raises(InputError, match="must be StructuredOutputsParams"):
        SamplingParams(structured_outputs={"regex": "a"})  # type: ignore[arg-type]

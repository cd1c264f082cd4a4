"""A schema in, jsonschema-rs' validator out: for texts whose grammar left keywords out. Nothing is fetched."""

from __future__ import annotations

from typing import Any

import msgspec
from jsonschema_rs import ReferencingError, ValidationError, validator_for

from octavo.base.errors import InputError
from octavo.base.types.structured import StructuredOutputsParams
from octavo.engine.grammar.rewrite import as_uri, with_known_draft
from octavo.engine.grammar.schema import asked_schema


def make_validator(params: StructuredOutputsParams) -> Any:
    """Of params.json, formats asserted. Raises InputError naming the field."""
    schema = with_known_draft(asked_schema(params))
    try:
        return validator_for(_with_uris(schema), validate_formats=True, retriever=_refuse)
    except (ValidationError, ReferencingError, ValueError, TypeError, RecursionError) as error:
        name = "structured_outputs.json"
        words = " ".join(str(error).partition("\n\n")[0].split())[:300]
        raise InputError(f"{name}: answers could not be validated by it: {words}", param=name) from None


def is_valid(params: StructuredOutputsParams, text: str) -> bool:
    """Whether the text is JSON of the schema."""
    try:
        return bool(make_validator(params).is_valid(msgspec.json.decode(text)))
    except (msgspec.DecodeError, InputError, ValidationError, ValueError, RecursionError):
        return False


def _with_uris(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_with_uris(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: part if key in ("const", "enum") else _with_uris(part) for key, part in schema.items()}
    if isinstance(found.get("$ref"), str):
        found["$ref"] = as_uri(found["$ref"])
    return found


def _refuse(uri: str) -> Any:
    raise ValueError("schemas elsewhere are not fetched")

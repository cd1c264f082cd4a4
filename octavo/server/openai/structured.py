"""response_format, structured_outputs and other servers' names of the latter's fields: their types, and the one
StructuredOutputsParams that they ask for."""

from __future__ import annotations

import json
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from octavo.base.errors import InputError
from octavo.base.types.structured import StructuredOutputsParams
from octavo.server.openai.refused import UnsupportedFields
from octavo.server.strict import Strict, Tagged

NAMES = {
    "guided_json": "json",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
    "json_schema": "json",
    "regex": "regex",
    "ebnf": "grammar",
    "grammar": "grammar",
}
"""Fields of requests that stand for one of structured_outputs: vLLM's earlier ones, SGLang's and llama.cpp's."""


class TextFormat(Tagged, frozen=True, tag="text"):
    """Asks for nothing."""


class JsonObjectFormat(Tagged, frozen=True, tag="json_object", omit_defaults=True):
    """Any JSON object, or JSON of a schema: `schema` is llama.cpp's field, `value` that of Hugging Face's client."""

    schema: dict[str, Any] | None = None
    value: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.schema is not None and self.value is not None:
            raise ValueError("schema and value are one thing; send one of them")


class JsonSchema(Strict, frozen=True, kw_only=True):
    """OpenAI's named schema. It is enforced whatever `strict` says; name and description are the client's own."""

    schema: dict[str, Any]
    name: Annotated[str, Meta(max_length=64)] | None = None
    description: str | None = None
    strict: bool | None = None


class JsonSchemaFormat(Tagged, frozen=True, tag="json_schema"):
    """JSON of a schema, OpenAI's named one or, as llama.cpp and SGLang have it, the bare one."""

    json_schema: JsonSchema | None = None
    schema: dict[str, Any] | None = None


class StructuralTagFormat(Tagged, frozen=True, tag="structural_tag"):
    """Free text in which a trigger starts a tag; checked as StructuredOutputsParams.structural_tag."""

    structures: list[Any]
    triggers: list[Any]


ResponseFormat = TextFormat | JsonObjectFormat | JsonSchemaFormat | StructuralTagFormat


class StructuredOutputs(Strict, frozen=True, kw_only=True):
    """StructuredOutputsParams as a body has it: null means not given."""

    json: str | dict[str, Any] | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    structural_tag: str | None = None
    disable_any_whitespace: bool | None = None
    disable_additional_properties: bool | None = None
    whitespace_pattern: str | None = None
    lenient: bool | None = None


class StructuredFields(UnsupportedFields, frozen=True, kw_only=True):
    """One form at most is asked for; several of them may say it, as guidance sends older and newer names together."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: str | dict[str, Any] | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    json_schema: str | dict[str, Any] | None = None
    regex: str | None = None
    ebnf: str | None = None
    grammar: str | None = None
    guided_whitespace_pattern: str | None = None


def structured_params(request: StructuredFields) -> StructuredOutputsParams | None:
    """What the request asks for, or None. Raises InputError in terms of StructuredOutputsParams, see `field_name`."""
    asked = _asked(request)
    forms = [_values(request, name) for name in asked]
    if any(form != forms[0] for form in forms[1:]):
        raise InputError(f"{' and '.join(asked)} exclude each other; send one of them", param=asked[1])
    if request.guided_whitespace_pattern is not None and asked != ["guided_json"]:
        raise InputError("guided_whitespace_pattern goes with guided_json", param="guided_whitespace_pattern")
    return StructuredOutputsParams(**forms[0]) if forms else None


def _asked(request: StructuredFields) -> list[str]:
    found = [] if isinstance(request.response_format, TextFormat | None) else ["response_format"]
    if request.structured_outputs is not None:
        found.append("structured_outputs")
    return found + [name for name in NAMES if getattr(request, name) is not None]


def _values(request: StructuredFields, name: str) -> dict[str, Any]:
    if name == "structured_outputs":
        given = msgspec.structs.asdict(request.structured_outputs)  # type: ignore[arg-type]
        return {key: value for key, value in given.items() if value is not None}
    if name != "response_format":
        values = {NAMES[name]: getattr(request, name)}
        if request.guided_whitespace_pattern is not None:
            values["whitespace_pattern"] = request.guided_whitespace_pattern
        return values
    match request.response_format:
        case JsonSchemaFormat(json_schema, schema):
            return {"json": _schema(json_schema, schema)}
        case JsonObjectFormat(schema, value) if schema or value:
            return {"json": schema or value}
        case StructuralTagFormat(structures, triggers):
            return {"structural_tag": json.dumps({"structures": structures, "triggers": triggers})}
    return {"json_object": True}


def _schema(named: JsonSchema | None, bare: dict[str, Any] | None) -> dict[str, Any]:
    if named is not None and bare is not None:
        raise InputError("json_schema and schema exclude each other; send one of them", param="response_format.schema")
    if named is not None:
        return named.schema
    if bare is not None:
        return bare
    raise InputError("response_format.json_schema is required", param="response_format.json_schema")


def _schema_field(asked: ResponseFormat | None) -> str:
    if getattr(asked, "schema", None) is not None:
        return ".schema"
    return ".value" if isinstance(asked, JsonObjectFormat) else ".json_schema.schema"


def field_name(request: StructuredFields, param: str) -> str:
    """The client's own name for a field of StructuredOutputsParams that an error names."""
    _, _, part = param.partition("structured_outputs.")
    if not part or request.structured_outputs is not None:
        return param
    asked = _asked(request)
    if not asked:
        return "tools"  # the form is that of a call
    field, _, rest = part.partition(".")
    if field == "whitespace_pattern":
        return "guided_whitespace_pattern"
    if asked[0] != "response_format":
        return asked[0]
    where = {"json": _schema_field(request.response_format), "structural_tag": f".{rest}" if rest else ""}
    return "response_format" + where.get(field, "")

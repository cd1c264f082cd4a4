"""StructuredOutputsParams in, llguidance's grammar out; what cannot be enforced is refused by its name.

Sources: llguidance's docs/syntax.md (its Lark), docs/json_schema.md (options under "x-guidance").
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import Any

import msgspec
from llguidance import LLMatcher, StructTag

from octavo.base.errors import InputError, UnsupportedError
from octavo.base.types.structured import StructuredOutputsParams
from octavo.engine.grammar.gbnf import is_gbnf
from octavo.engine.grammar.gbnf_lark import gbnf_to_lark
from octavo.engine.grammar.rewrite import EXACT, MAPS, rewrite

MAX_TAGS = 128
MAX_LITERAL = 8192  # characters of a string that must come as it is: at each of its tokens all of the rest is walked
MAX_NAME = 512  # characters of a name or number of Lark's: what the library says against one takes its square
MAX_MULTIPLE_OF = 10_000  # the automaton of a multiple of n has n states, each made from all digits
_NOT_FORCED = '%llguidance {"no_forcing": true}'
"""Text that is certain may come in any tokens, as the model cuts it; the library would have each of its bytes alone."""
_ANNOTATIONS = ("title", "description", "$comment", "default", "examples")
_SHOWN = 300  # characters of the library's own words


def make_grammar(params: StructuredOutputsParams, special: Collection[str]) -> str:
    """The grammar's text, not compiled. special: spellings of control tokens, which a structural tag may begin with.

    Raises InputError, or UnsupportedError for a part that is known and not enforced; both name the field.
    """
    return f"{_lark_of(params, special)}\n{_NOT_FORCED}"


def _lark_of(params: StructuredOutputsParams, special: Collection[str]) -> str:
    if params.json_object:
        return _json({"type": "object"}, params)
    if params.json is not None:
        return _json(asked_schema(params), params)
    if params.regex is not None:
        _check_literal(params.regex, _field("regex"))
        made = json.loads(LLMatcher.grammar_from_regex(params.regex))
        return str(made["grammars"][0]["lark_grammar"])
    if params.choice is not None:
        for text in params.choice:
            _check_literal(text, _field("choice"))
        return "start: " + " | ".join(map(_quoted, params.choice))
    if params.grammar is not None:
        return _lark(params.grammar)
    return _structural_tag(params.structural_tag or "", special)


def asked_schema(params: StructuredOutputsParams) -> dict[str, Any]:
    """What an answer of params.json must be valid by. Raises InputError naming the field."""
    name = _field("json")
    schema = _schema("" if params.json is None else params.json, name)
    try:
        return _closed(schema) if params.disable_additional_properties else schema
    except RecursionError:
        raise InputError(f"{name} nests too deeply", param=name) from None


def explain(params: StructuredOutputsParams, reason: str) -> InputError:
    """The error for what llguidance says against a grammar."""
    name = _field(params.kind)
    words = re.sub(rf"\s*\d+ \| {re.escape(_NOT_FORCED)}", "", reason.partition("\n<state>")[0])
    if found := re.match(r"at \d+\(\d+\): failed to compile JSON schema: (.*)", words):  # of a %json inside Lark
        words = found[1]
    if found := re.match(r"Unimplemented keys: \[(.*)\]", words):
        keys = found[1].replace('"', "'")
        return UnsupportedError(f"{name}: {keys}: not supported, as it could not be enforced; leave it out", param=name)
    if words.startswith("oneOf constraints"):
        return UnsupportedError(
            f"{name}: 'oneOf' is supported only where no value can match two of its schemas (types or constants of a "
            "required property differ); use 'anyOf'",
            param=name,
        )
    if found := re.match(r"Unknown format: (.*)", words):
        return UnsupportedError(f"{name}: 'format': {found[1]:.80} is not supported; use 'pattern'", param=name)
    return InputError(f"{name}: {' '.join(words.split())[:_SHOWN]}", param=name)


def _field(name: str) -> str:
    return f"structured_outputs.{name}"


def _quoted(text: str) -> str:
    """A string of Lark's, which is JSON's without control characters as they are."""
    return json.dumps(text).replace("\x7f", "\\u007f")


_LITERAL = re.compile(r'"(?:[^"\\\n]|\\.)*"|/(?:[^/\\\n]|\\.)*/')


def _lark(text: str) -> str:
    if is_gbnf(text):
        return gbnf_to_lark(text)
    name = _field("grammar")
    for literal in _LITERAL.findall(text):
        _check_literal(literal, name)
    word = max(re.findall(r"\w+", _LITERAL.sub(" ", text)), key=len, default="")
    if len(word) > MAX_NAME:
        raise InputError(f"{name} has a name of {len(word)} characters; at most {MAX_NAME} are taken", param=name)
    return _rewritten(text)


def _rewritten(lark: str) -> str:
    """With the schemas behind %json in other words."""
    first, *rest = re.split(r"(?<=%json)(?=\s*\{)", lark)
    parts = [first]
    for part in rest:
        start = part.index("{")
        try:
            schema, end = json.JSONDecoder().raw_decode(part, start)
            parts.append(f" {json.dumps(rewrite(schema))}{part[end:]}")
        except (ValueError, RecursionError):  # the library says what it is
            parts.append(part)
            continue
        _check_values(schema, _field("grammar"))
    return "".join(parts)


def _schema(given: str | dict[str, Any], name: str) -> dict[str, Any]:
    if isinstance(given, str):
        try:
            given = msgspec.json.decode(given)
        except (msgspec.DecodeError, UnicodeError) as error:
            raise InputError(f"{name} is not valid JSON: {error}", param=name) from None
        except RecursionError:
            raise InputError(f"{name} nests too deeply", param=name) from None
    if not isinstance(given, dict):
        raise InputError(f"{name} must be a JSON Schema that is an object, got {given!s:.40}", param=name)
    return given


def _json(schema: dict[str, Any], params: StructuredOutputsParams) -> str:
    name = _field(params.kind)
    try:
        _check_values(schema, name)
        schema = rewrite(schema)
        options: dict[str, Any] = {
            # these win over an "x-guidance" inside the schema: what is not enforced is refused unless the request says
            "lenient": params.lenient,
            "coerce_one_of": params.lenient,
            "whitespace_flexible": not params.disable_any_whitespace,
        }
        if params.whitespace_pattern is not None:
            options["whitespace_pattern"] = params.whitespace_pattern
        return "start: %json " + json.dumps({**schema, "x-guidance": options})
    except RecursionError:
        raise InputError(f"{name} nests too deeply", param=name) from None
    except (ValueError, UnicodeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{name}: {str(error)[:_SHOWN]}", param=name) from None


def _closed(schema: Any) -> Any:
    """The schema in which objects that list properties have no others."""
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed: dict[str, Any] = {}
    for key, value in schema.items():
        if key in MAPS and isinstance(value, dict):
            closed[key] = {name: _closed(part) for name, part in value.items()}
        else:
            closed[key] = value if key in ("const", "enum", "default", "examples") else _closed(value)
    if isinstance(schema.get("properties"), dict):
        closed.setdefault("additionalProperties", False)
    return closed


def _check_values(schema: Any, name: str) -> None:
    """Refuse what compiles, but costs too much or would not be enforced: literals, multiples and constants."""
    if isinstance(schema, str):
        _check_literal(schema, name)
    elif isinstance(schema, list):
        for item in schema:
            _check_values(item, name)
    elif isinstance(schema, dict):
        step = schema.get("multipleOf")
        if isinstance(step, int | float) and _numerator(step) > MAX_MULTIPLE_OF:
            raise UnsupportedError(
                f"{name}: 'multipleOf': {step} is not supported; at most {MAX_MULTIPLE_OF} in units of its last digit",
                param=name,
            )
        for key, value in schema.items():
            _check_literal(key, name)
            if key in MAPS and isinstance(value, dict):
                for word, part in value.items():
                    _check_literal(word, name)
                    _check_values(part, name)
            elif key in ("const", "enum"):
                _check_constant(value, name)
            elif key not in _ANNOTATIONS:
                _check_values(value, name)


def _check_constant(value: Any, name: str) -> None:
    if isinstance(value, str):
        _check_literal(value, name)
    elif isinstance(value, list | dict):
        for item in value:
            _check_constant(item, name)
            if isinstance(value, dict):
                _check_constant(value[item], name)
    elif isinstance(value, int) and abs(value) > EXACT:
        raise UnsupportedError(
            f"{name}: the constant {value} is not supported: integers are exact up to {EXACT}; use a string", param=name
        )


def _check_literal(text: str, name: str) -> None:
    if len(text) > MAX_LITERAL:
        raise InputError(f"{name} has a string of {len(text)} characters; at most {MAX_LITERAL} are taken", param=name)


def _numerator(step: float) -> int:
    """The number without its decimal point."""
    digits = re.sub(r"[eE].*|\D", "", repr(abs(step))).lstrip("0")
    return int(digits.rstrip("0") or "0") if isinstance(step, float) else abs(step)


def _structural_tag(text: str, special: Collection[str]) -> str:
    """{"structures": [{"begin", "schema", "end"}], "triggers"}: as vLLM and SGLang have it."""
    name = _field("structural_tag")
    tag = _schema(text, name)
    if "format" in tag:
        raise UnsupportedError(f"{name}.format is not supported; use structures and triggers", param=f"{name}.format")
    unknown = tag.keys() - {"type", "structures", "triggers"}
    if unknown or tag.get("type", "structural_tag") != "structural_tag":
        raise InputError(f"{name} has type, structures and triggers; got {sorted(tag)!s:.200}", param=name)
    structures, triggers = tag.get("structures"), tag.get("triggers")
    if not isinstance(structures, list) or not 0 < len(structures) <= MAX_TAGS:
        raise InputError(f"{name}.structures must be a list of 1 to {MAX_TAGS} tags", param=f"{name}.structures")
    if not isinstance(triggers, list) or not triggers or not all(isinstance(t, str) and t for t in triggers):
        raise InputError(f"{name}.triggers must be a list of non-empty strings", param=f"{name}.triggers")
    tags = [_tag(item, triggers, f"{name}.structures[{i}]") for i, item in enumerate(structures)]
    named = {tag.trigger in special for tag in tags}
    if len(named) > 1:
        raise UnsupportedError(f"{name}.triggers mixes control tokens and text; use one kind", param=f"{name}.triggers")
    # the library takes every "<...>" for a control token, or none
    if named == {False} or all(t.trigger.startswith("<") and t.trigger.endswith(">") for t in tags):
        return str(StructTag.to_grammar(tags, assume_special=named == {True}))
    raise UnsupportedError(f"{name}.triggers: control tokens must be spelled <...>", param=f"{name}.triggers")


def _tag(item: Any, triggers: list[str], name: str) -> StructTag:
    if not isinstance(item, dict) or item.keys() != {"begin", "schema", "end"}:
        raise InputError(f"{name} must have begin, schema and end", param=name)
    begin, end = item["begin"], item["end"]
    if not isinstance(begin, str) or not isinstance(end, str):
        raise InputError(f"{name}: begin and end must be strings", param=name)
    trigger = next((t for t in triggers if begin.startswith(t)), None)
    if trigger is None:
        raise InputError(f"{name}.begin starts with none of the triggers", param=f"{name}.begin")
    schema = _schema(item["schema"], f"{name}.schema")
    _check_values(schema, name)
    strict = {"lenient": False, "coerce_one_of": False}
    return StructTag(trigger=trigger, begin=begin, grammar={**rewrite(schema), "x-guidance": strict}, end=end)

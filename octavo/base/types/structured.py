"""StructuredOutputsParams: what form a request's answer must have. Field names and meanings are vLLM's."""

from __future__ import annotations

from typing import Any

import msgspec

from octavo.base.errors import InputError

MAX_GRAMMAR_CHARS = 1 << 20
MAX_CHOICES = 1024

_KINDS = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")
_FOR_JSON = ("disable_any_whitespace", "disable_additional_properties", "whitespace_pattern")


class StructuredOutputsParams(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True
):
    """Exactly one of the first six is given. Raises InputError naming the field.

    json: a JSON Schema (draft 2020-12), as an object or its text.  regex: of the whole answer, in the syntax of
    Rust's regex.  choice: the answer is one of these.  grammar: in GBNF, or in llguidance's form of Lark.
    json_object: any JSON object.  structural_tag: JSON text, {"type": "structural_tag", "structures": [{"begin",
    "schema", "end"}], "triggers": [...]}: free text, in which a trigger starts one of the tags.
    For json and json_object alone: disable_any_whitespace: none between tokens of JSON;  whitespace_pattern: a regex
    of what may stand between them;  disable_additional_properties: objects with `properties` have no others.
    For json alone, lenient: keywords that cannot be enforced are left out of the form in place of being refused; the
    answer is validated by them when it is finished, and CompletionOutput.structured_outputs_valid tells.
    """

    json: str | dict[str, Any] | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    structural_tag: str | None = None
    disable_any_whitespace: bool = False
    disable_additional_properties: bool = False
    whitespace_pattern: str | None = None
    lenient: bool = False

    def __post_init__(self) -> None:
        given = [name for name in _KINDS if getattr(self, name) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none of them"
            raise _wrong("", f"takes exactly one of {', '.join(_KINDS)}; given: {found}")
        _check_texts(self)
        for name in ("disable_any_whitespace", "disable_additional_properties", "lenient"):
            if not isinstance(getattr(self, name), bool):
                raise _wrong(name, "must be true or false")
        if self.json_object is not None and self.json_object is not True:
            raise _wrong("json_object", "must be true; for free text leave structured_outputs out")
        if self.choice is not None:
            _check_choice(self.choice)
        for name in _FOR_JSON:
            if getattr(self, name) and given[0] not in ("json", "json_object"):
                raise _wrong(name, f"goes with json or json_object, not with {given[0]}")
        if self.lenient and given[0] != "json":
            raise _wrong("lenient", f"goes with json, not with {given[0]}")
        if self.disable_any_whitespace and self.whitespace_pattern is not None:
            raise _wrong("whitespace_pattern", "contradicts disable_any_whitespace; give one of them")
        _check_plain(self, given[0])

    @property
    def kind(self) -> str:
        """The name of the one field that is given."""
        return next(name for name in _KINDS if getattr(self, name) is not None)


def _check_texts(params: StructuredOutputsParams) -> None:
    if not isinstance(params.json, str | dict | None):
        raise _wrong("json", "must be a JSON Schema: an object, or its text")
    for name in ("json", "regex", "grammar", "structural_tag", "whitespace_pattern"):
        value = getattr(params, name)
        if value is None or (name == "json" and isinstance(value, dict)):
            continue
        if not isinstance(value, str) or not value:
            raise _wrong(name, "must be a non-empty string")
        if len(value) > MAX_GRAMMAR_CHARS:
            raise _wrong(name, f"has {len(value)} characters; at most {MAX_GRAMMAR_CHARS} are taken")


def _check_plain(params: StructuredOutputsParams, name: str) -> None:
    """It must travel: numbers of 64 bits, Unicode text, plain containers."""
    try:
        size = len(msgspec.msgpack.encode(params))
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise _wrong(name, f"holds what is not taken: {str(error)[:100]}") from None
    if size > 4 * MAX_GRAMMAR_CHARS:
        raise _wrong(name, f"takes {size} bytes; at most {4 * MAX_GRAMMAR_CHARS} are taken")


def _check_choice(choice: object) -> None:
    if not isinstance(choice, list | tuple) or not choice or not all(isinstance(c, str) and c for c in choice):
        raise _wrong("choice", "must be a list of non-empty strings, at least one")
    if len(choice) > MAX_CHOICES:
        raise _wrong("choice", f"has {len(choice)} strings; at most {MAX_CHOICES} are taken")
    if sum(map(len, choice)) > MAX_GRAMMAR_CHARS:
        raise _wrong("choice", f"has more than {MAX_GRAMMAR_CHARS} characters")


def _wrong(name: str, what: str) -> InputError:
    param = f"structured_outputs.{name}" if name else "structured_outputs"
    return InputError(f"{param} {what}", param=param)

"""A JSON Schema in, one of the same meaning out, in the keywords that llguidance enforces.

What cannot be said in them stays as it is, for the library to refuse by name. Sources: JSON Schema Core and Validation
2020-12; the formats are those of its section 7.3, which are enforced; any other is an annotation (7.2.3).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from octavo.engine.grammar.logic import TYPES, Logic, UnknownError, all_of, any_of, well_formed

MAX_CHOICES = 6  # alternatives that one schema adds: they multiply
MAX_UNIQUE = 5  # values of which arrays without a duplicate are listed: 326 of 5
MAX_EXPANDED = 8  # schemas of a oneOf that a value could match two of
EXACT = 2**53  # up to it every integer is a double, which the library's numbers are
_FAR = 9 * 10**18  # and up to it the library has ranges
MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies")
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_ONE = ("items", "additionalItems", "additionalProperties", "contains", "propertyNames", "not", "if", "then", "else")
_UNEVALUATED = ("unevaluatedItems", "unevaluatedProperties")
_DEPENDENT = ("dependentRequired", "dependentSchemas", "dependencies")
_APPLIED = ("$ref", "$dynamicRef", "$recursiveRef", "allOf", "anyOf", "oneOf", "not", "if", "then", "else")
_Choice = Callable[[dict[str, Any], dict[str, Any]], Any]
"""Of a schema with rewritten parts, which loses what is said otherwise, and as it came: what must hold beside it."""
_PLAIN = r"A-Za-z0-9._~!$&'()*+,;=\-"
_MORE = r"\x{A0}-\x{D7FF}\x{F900}-\x{FDCF}\x{FDF0}-\x{FFEF}"
_HEX = "%[0-9A-Fa-f]{2}"
_POINTER = "(?:/(?:[^~/]|~[01])*)*"
_NAME = f"(?:[A-Za-z0-9_]|{_HEX})(?:[.]?(?:[A-Za-z0-9_]|{_HEX}))*(?::[1-9][0-9]{{0,3}}|[*])?"


def _reference(more: str, relative: bool) -> str:
    """RFC 3986's URI or relative reference, RFC 3987's with `more`; hosts are names."""
    char, first = f"(?:[{_PLAIN}{more}:@]|{_HEX})", f"(?:[{_PLAIN}{more}@]|{_HEX})"
    host = f"//(?:(?:[{_PLAIN}{more}:]|{_HEX})*@)?(?:[{_PLAIN}{more}]|{_HEX})*(?::[0-9]*)?(?:/{char}*)*"
    path = f"/(?:{char}+(?:/{char}*)*)?"
    after = f"(?:[?](?:{char}|[/?])*)?(?:#(?:{char}|[/?])*)?"
    absolute = f"[A-Za-z][A-Za-z0-9+.\\-]*:(?:{host}|{path}|{char}+(?:/{char}*)*)?"
    return f"(?:{absolute}{f'|{host}|{path}|{first}+(?:/{char}*)*|' if relative else ''}){after}"


FORMATS = {
    "uri-reference": _reference("", relative=True),
    "iri": _reference(_MORE, relative=False),
    "iri-reference": _reference(_MORE, relative=True),
    "json-pointer": _POINTER,  # RFC 6901
    "relative-json-pointer": f"(?:0|[1-9][0-9]*)(?:#|{_POINTER})",
    # RFC 6570, without operators that are reserved
    "uri-template": rf"(?:[!#$&(-;=?-\[\]_a-z~{_MORE}]|{_HEX}|\{{[+#./;?&]?{_NAME}(?:,{_NAME})*\}})*",
}
_KNOWN_FORMATS = {"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uri", "uuid"}
_KNOWN_FORMATS |= {"idn-email", "idn-hostname", "regex"}
"""Enforced by the library, or refused by it."""


def rewrite(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema in other words. It is not changed."""
    found: dict[str, Any] = _Rewriter(schema).schema(schema)
    return with_known_draft(found)


def with_known_draft(schema: dict[str, Any]) -> dict[str, Any]:
    """With the draft's own spelling in $schema, where it can be told."""
    draft, found = schema.get("$schema"), dict(schema)
    if isinstance(draft, str) and "://json-schema" in draft:
        known = re.fullmatch(
            r"https?://json-schema[.-]org/(?:(draft-0[467])|(draft/20(?:19-09|20-12)))/schema#?", draft
        )
        if known is not None:
            found["$schema"] = f"http://json-schema.org/{known[1]}/schema#" if known[1] else _newer(known[2])
        elif re.fullmatch(r"https?://json-schema\.org/schema#?", draft):  # the latest
            found["$schema"] = _newer("draft/2020-12")
    return found


def _newer(draft: str) -> str:
    return f"https://json-schema.org/{draft}/schema"


class _Rewriter:
    """Of one document."""

    def __init__(self, root: dict[str, Any]) -> None:
        self._logic = Logic(root)
        self._old = re.search(r"draft-0[467]", str(root.get("$schema"))) is not None

    def schema(self, given: Any) -> Any:
        """Parts first; then, in those of one schema, keyword by keyword."""
        if not isinstance(given, dict) or not well_formed(given) or not self._logic.spend():
            return given  # as it is, for the library to refuse
        found = dict(given)
        if self._old and "$ref" in found:  # which hides what is beside it, a base of references too
            found.pop("$id", None)
        for key in found.keys() & {*MAPS, *_LISTS, *_ONE, *_UNEVALUATED}:
            value = found[key]
            if key in MAPS and isinstance(value, dict):
                found[key] = {name: self.schema(part) for name, part in value.items()}
            elif key in _LISTS and isinstance(value, list):
                found[key] = [self.schema(part) for part in value]
            else:
                found[key] = self.schema(value)
        added: list[Any] = []
        for change in (_reference_in_ascii, _bounds, _format, _unevaluated, _property_names, self._unique):
            change(found, added)
        choices: list[_Choice] = [self._not, self._if, self._one_of]
        asked = [(key, name) for key in _DEPENDENT for name in found.get(key, ())]
        if len(asked) <= MAX_CHOICES:
            choices += [_dependency(key, name) for key, name in asked]
        for choice in choices:
            try:
                added.append(choice(found, given))
            except UnknownError:
                continue
        return _with(found, added)

    def _negate(self, schema: Any) -> Any:
        """schema: as it came; what was rewritten may be stricter, and its opposite would be laxer."""
        return self.schema(self._logic.negate(schema))

    def _not(self, schema: dict[str, Any], given: dict[str, Any]) -> Any:
        if "not" not in schema:
            return True
        opposite = self._negate(given["not"])
        del schema["not"]
        return opposite

    def _if(self, schema: dict[str, Any], given: dict[str, Any]) -> Any:
        """Where it holds `then`, or else `else`."""
        if "if" in schema:
            condition, then, other = schema["if"], schema.get("then", True), schema.get("else", True)
            if then is True:
                made = any_of([condition, other])
            else:
                opposite = self._negate(given["if"])
                made = any_of(
                    [then, opposite] if other is True else [all_of([condition, then]), all_of([opposite, other])]
                )
        else:
            made = True
        for name in ("if", "then", "else"):
            schema.pop(name, None)
        return made

    def _one_of(self, schema: dict[str, Any], given: dict[str, Any]) -> Any:
        options = schema.get("oneOf")
        if not options:
            return True
        silent = [self._logic.silent(option) for option in given["oneOf"]]
        kinds = [
            kind for kind in TYPES if sum(kind in types for types in silent) < 2
        ]  # any value matches two, of others
        rest = {key: value for key, value in given.items() if key not in ("oneOf", "anyOf", "allOf")}
        whole = [{"allOf": [option, rest, {"type": kinds}]} for option in given["oneOf"]]
        if not self._logic.marked(given["oneOf"]) and not self._logic.apart(whole):
            if len(options) > MAX_EXPANDED:
                raise UnknownError
            options = [
                all_of([option, *[self._without(whole, given["oneOf"], i, j) for j in range(len(options)) if j != i]])
                for i, option in enumerate(options)
            ]
        del schema["oneOf"]
        return all_of([any_of(options), True if len(kinds) == len(TYPES) else {"type": kinds}])

    def _without(self, whole: list[Any], options: list[Any], i: int, j: int) -> Any:
        """What must hold beside the option i for the option j not to."""
        if self._logic.disjoint(whole[i], whole[j]):
            return True
        filled = {"minItems": 1}  # often only [] matches both
        return filled if self._logic.disjoint({"allOf": [whole[i], filled]}, whole[j]) else self._negate(options[j])

    def _unique(self, schema: dict[str, Any], added: list[Any]) -> None:
        """Arrays of few values are listed."""
        if schema.get("uniqueItems") is False or schema.get("maxItems") in (0, 1):
            schema.pop("uniqueItems", None)
        if schema.get("uniqueItems") is not True or schema.get("type") != "array" or "prefixItems" in schema:
            return
        values = self._finite(schema.get("items"))
        if values is None:
            return
        sizes = range(schema.get("minItems", 0), min(schema.get("maxItems", len(values)), len(values)) + 1)
        if lists := [list(some) for size in sizes for some in itertools.permutations(values, size)]:
            for key in ("uniqueItems", "items"):
                del schema[key]
            added.append({"enum": lists})

    def _finite(self, items: Any) -> list[Any] | None:
        """The values that items can have, where they are few and the schema says nothing else of them."""
        try:
            while isinstance(items, dict) and isinstance(items.get("$ref"), str) and len(items) == 1:
                items = self._logic.resolve(items["$ref"])
        except UnknownError:
            return None
        if not isinstance(items, dict) or not well_formed(items):
            return None
        if items.get("type") == "boolean" and not items.keys() & {"enum", "const"}:
            return [False, True]
        if items.keys() - {"type", "enum", "description", "title", "default", "examples"}:
            return None
        values = items.get("enum", [])
        kinds = [kind for kind, name in ((str, "string"), (int, "integer")) if items.get("type", name) == name]
        if any(type(value) not in kinds for value in values):
            return None
        return values if 0 < len(values) <= MAX_UNIQUE and len(set(values)) == len(values) else None


def _with(schema: dict[str, Any], added: list[Any]) -> Any:
    """The schema and these."""
    added = [part for part in added if part is not True and part != {}]
    if not added:
        return schema
    if len(added) == 1 and isinstance(added[0], dict) and not added[0].keys() & schema.keys():
        return {**schema, **added[0]}
    return {**schema, "allOf": [*schema.get("allOf", ()), *added]}


def _reference_in_ascii(schema: dict[str, Any], added: list[Any]) -> None:
    if isinstance(schema.get("$ref"), str):
        schema["$ref"] = as_uri(schema["$ref"])


def as_uri(reference: str) -> str:
    """A reference as it is, or with the characters that no URI has in escapes, as to classes with such names."""
    return quote(reference, safe="%/:?#@!$&'()*+,;=-._~")


def _bounds(schema: dict[str, Any], added: list[Any]) -> None:
    """Bounds that are no doubles, or outside of all ranges, are moved inwards: by a part in 2**50, or so far."""
    for name, most, sign in (("minimum", max, 1), ("maximum", min, -1)):
        for key in (name, f"exclusive{name.capitalize()}"):
            value, kind = schema.get(key), schema.get("type")
            if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) <= EXACT:
                continue
            if key == "maximum" and kind == "integer" and value >= 2**63 - 1:  # for these the library keeps to 64 bits
                continue
            exact = key == name and float(value) == value
            moved = most(int(value) + (0 if exact else sign * (abs(int(value)) >> 50)), -sign * _FAR)
            del schema[key]
            schema[name] = most(moved, schema.get(name, moved))


def _format(schema: dict[str, Any], added: list[Any]) -> None:
    name = schema.get("format")
    if not isinstance(name, str) or name in _KNOWN_FORMATS:
        return
    del schema["format"]
    if name in FORMATS:
        added.append({"pattern": f"^(?:{FORMATS[name]})$"})


def _unevaluated(schema: dict[str, Any], added: list[Any]) -> None:
    """Where nothing beside it evaluates, it is as if it were `additional`."""
    if any(key in schema for key in (*_APPLIED, "dependentSchemas", "contains")):
        return
    for key, plain in (("unevaluatedProperties", "additionalProperties"), ("unevaluatedItems", "items")):
        if key in schema and not isinstance(schema.get("items"), list):
            value = schema.pop(key)
            schema.setdefault(plain, value)


def _property_names(schema: dict[str, Any], added: list[Any]) -> None:
    """As the one pattern, or the list, of properties."""
    names = schema.get("propertyNames")
    if names is True or names == {} or names == {"type": "string"}:
        del schema["propertyNames"]
    if (
        not isinstance(names, dict)
        or not well_formed(names)
        or any(key in schema for key in ("properties", "patternProperties", "required"))
    ):
        return
    if names.get("type", "string") != "string":
        return
    rest = names.keys() - {"type", "title", "description", "$comment"}
    values, others = names.get("enum", ()), schema.get("additionalProperties", True)
    if rest == {"enum"} and all(isinstance(value, str) for value in values):
        schema["properties"] = dict.fromkeys(values, others)
    elif rest == {"pattern"}:
        schema["patternProperties"] = {names["pattern"]: others}
    elif rest and rest <= {"minLength", "maxLength"}:
        schema["patternProperties"] = {f"^(?s:.){{{names.get('minLength', 0)},{names.get('maxLength', '')}}}$": others}
    else:
        return
    schema["additionalProperties"] = False
    del schema["propertyNames"]


def _dependency(key: str, name: str) -> _Choice:
    """A property that asks for others, or for a schema: it is not there, or they hold."""

    def choice(schema: dict[str, Any], given: dict[str, Any]) -> Any:
        asked = schema[key][name]
        if not isinstance(asked, dict | bool) and not well_formed({"required": asked}):
            raise UnknownError
        schema[key] = {other: part for other, part in schema[key].items() if other != name}
        if not schema[key]:
            del schema[key]
        holds: Any = {"required": asked} if isinstance(asked, list) else asked
        return True if asked == [] else any_of([{"properties": {name: False}}, holds])

    return choice

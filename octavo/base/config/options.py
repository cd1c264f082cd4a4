"""Config structs in; one Option row per field out: what flags, LLM arguments, error messages and docs are made from."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from octavo.base.errors import ConfigError

INT64 = 1 << 63  # what goes to another process is no larger
Kind = Literal["bool", "int", "float", "str", "choice", "list", "object"]


@dataclass(frozen=True)
class Option:
    """One field of a config struct. choices: its values where kind is choice; optional: None is allowed."""

    name: str
    kind: Kind
    choices: tuple[str | int | None, ...]
    optional: bool
    required: bool
    default: Any
    description: str

    @property
    def flag(self) -> str:
        """Name on the command line."""
        return "--" + self.name.replace("_", "-")


_KINDS: dict[type, Kind] = {
    msgspec.inspect.BoolType: "bool",
    msgspec.inspect.IntType: "int",
    msgspec.inspect.FloatType: "float",
    msgspec.inspect.StrType: "str",
    msgspec.inspect.LiteralType: "choice",
    msgspec.inspect.ListType: "list",
    msgspec.inspect.DictType: "object",
}


@functools.cache
def options(struct: type[msgspec.Struct]) -> dict[str, Option]:
    """A struct's fields by name, in order. TypeError for a field of a type that has no Kind (a programming error)."""
    info = msgspec.inspect.type_info(struct)
    if not isinstance(info, msgspec.inspect.StructType):
        raise TypeError(f"{struct.__name__} is no struct")
    return {field.name: _option(field) for field in info.fields}


def _option(field: msgspec.inspect.Field) -> Option:
    kind, optional, description = field.type, False, ""
    if isinstance(kind, msgspec.inspect.Metadata):
        description = (kind.extra_json_schema or {}).get("description", "")
        kind = kind.type
    if isinstance(kind, msgspec.inspect.UnionType):
        inner = [one for one in kind.types if not isinstance(one, msgspec.inspect.NoneType)]
        optional, kind = len(inner) < len(kind.types), inner[0]
    if type(kind) not in _KINDS:
        raise TypeError(f"option {field.name}: no flag can be made of {kind}")
    choices = tuple(kind.values) if isinstance(kind, msgspec.inspect.LiteralType) else ()
    default = field.default
    if field.default_factory is not msgspec.NODEFAULT:
        default = field.default_factory()
    return Option(field.name, _KINDS[type(kind)], choices, optional, field.required, default, description)


def build_struct(struct: type[msgspec.Struct], values: dict[str, Any]) -> Any:
    """The struct, every field checked against its type and bounds; ConfigError names field, value and bound."""
    fields = {field.name: field for field in msgspec.structs.fields(struct)}
    checked = {}
    for name, value in values.items():
        if name not in fields:
            raise ConfigError(f"unknown option {name!r}", param=name)
        try:
            checked[name] = msgspec.convert(value, fields[name].type)
        except msgspec.ValidationError as error:
            option = options(struct)[name]
            if option.kind == "list":  # of keys, maybe: they are not shown
                raise ConfigError(f"{name}: must be a list of texts, none of them empty", param=name) from None
            raise ConfigError(f"{name}={value!r}: {_reason(option, error)}", param=name) from None
        if isinstance(checked[name], int) and not -INT64 <= checked[name] < INT64:
            raise ConfigError(f"{name}={value!r}: must be int of 64 bits", param=name)
    for name, field in fields.items():
        if field.required and name not in checked:
            raise ConfigError(f"option {name!r} is needed", param=name)
    return struct(**checked)


def _reason(option: Option, error: msgspec.ValidationError) -> str:
    if option.choices:
        return "must be one of " + ", ".join(map(str, option.choices))
    return "must be " + str(error).split(" - at ")[0].removeprefix("Expected ").replace("`", "")

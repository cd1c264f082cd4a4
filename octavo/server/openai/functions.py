"""Functions as Responses and Messages describe them in; a chat's tools out, checked as a chat's are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Protocol

import msgspec

from octavo.server.openai.decode import explain
from octavo.server.openai.terms import in_terms
from octavo.server.openai.types import (
    AllowedTools,
    NamedFunction,
    NamedTool,
    Tool,
    ToolChoice,
    ToolChoiceObject,
    Tools,
)


class Function(Protocol):
    """What both have."""

    @property
    def name(self) -> str: ...
    @property
    def description(self) -> str | None: ...
    @property
    def strict(self) -> bool | None: ...


class _Tools(msgspec.Struct):
    """Only names what an error is about."""

    REASONS: ClassVar[dict[str, str]] = {}


def as_tools(functions: Sequence[Function], parameters: Sequence[dict[str, Any] | None]) -> list[Tool] | None:
    """The chat's tools; None for none. InputError names the function's field."""
    rows = [
        {
            "function": {
                "name": one.name,
                "description": one.description,
                "parameters": schema,
                "strict": one.strict,
            }
        }
        for one, schema in zip(functions, parameters, strict=True)
    ]
    with in_terms({}):
        try:
            return msgspec.convert(rows, Tools) or None
        except msgspec.ValidationError as error:
            raise explain(str(error), _Tools, where="tools") from None


def named(function: str) -> ToolChoice:
    """The tool_choice that demands a call of this function."""
    return ToolChoiceObject(function=NamedFunction(function))


def allowed(mode: Literal["auto", "required"], functions: Sequence[str]) -> ToolChoice:
    """The tool_choice that allows calls of these functions."""
    tools = [NamedTool(function=NamedFunction(name)) for name in functions]
    return ToolChoiceObject(type="allowed_tools", allowed_tools=AllowedTools(mode=mode, tools=tools))

"""Tools of a Responses request, some of them grouped in namespaces, in; functions of a chat, and the way back, out.

A chat's functions have one name each, so one in a namespace is called NAMESPACE__NAME there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from octavo.base.errors import InputError
from octavo.server.openai.responses.types import FunctionTool, NamespaceTool


@dataclass(frozen=True)
class Named:
    """A function: as a chat shows it; its name, namespace and place (`tools[1].tools[0]`) in the request."""

    shown: FunctionTool
    name: str
    namespace: str | None
    where: str


def joined(namespace: str | None, name: str) -> str:
    """The name in a chat."""
    if namespace is None:
        return name
    return namespace + name if namespace.endswith("__") else f"{namespace}__{name}"


class ToolNames:
    """All functions, by both of their names. InputError where two have one name in a chat."""

    def __init__(self, tools: Sequence[FunctionTool | NamespaceTool]) -> None:
        self.functions = _flat(tools)
        self._by_shown: dict[str, Named] = {}
        for one in self.functions:
            name = one.shown.name
            other = self._by_shown.setdefault(name, one)
            if other.namespace != one.namespace:
                raise InputError(f"{other.where} and {one.where} are both {name!r:.150} to the model", param="tools")
        # models leave the namespace out at times, and tool_choice has no place for it
        self._alone: dict[str, Named | None] = {}
        for one in self._by_shown.values():
            self._alone[one.name] = None if one.name in self._alone else one

    def find(self, name: str) -> Named | None:
        """The function that is called so in a chat, or by a name that no other has."""
        return self._by_shown.get(name) or self._alone.get(name)

    def shown(self, name: str) -> str:
        """The name in a chat of what the request calls so."""
        found = self.find(name)
        return name if found is None else found.shown.name

    def terms(self) -> dict[str, str]:
        """Places in a chat's tools -> those in the request's, where they differ."""
        places = {f"tools[{number}]": one.where for number, one in enumerate(self.functions)}
        return {place: where for place, where in places.items() if place != where}


def _flat(tools: Sequence[FunctionTool | NamespaceTool]) -> list[Named]:
    found = []
    for index, tool in enumerate(tools):
        where = f"tools[{index}]"
        if isinstance(tool, FunctionTool):
            found.append(Named(tool, tool.name, None, where))
            continue
        about = tool.description or ""
        for number, one in enumerate(tool.tools):
            # the namespace's own description stands once, before that of its first function
            text = "\n\n".join(filter(None, [about, one.description])) or None
            about = ""
            shown = msgspec.structs.replace(one, name=joined(tool.name, one.name), description=text)
            found.append(Named(shown, one.name, tool.name, f"{where}.tools[{number}]"))
    return found
